//! The times for which a schedule is made, measured by the ranks before they train.

use crate::TrainError;
use crate::config::Times;
use crate::engine::{Batch, Engine, EngineConfig};
use crate::plan::RunPlan;
use crate::planned::median;
use crate::run::build::build;
use crate::run::data::RunData;
use crate::run::events::report;
use crate::run::prepare::{Prepared, planned};
use crate::run::{Event, Ranks, Reporter, TrainRequest, Work, on_threads};
use std::array;
use std::sync::{Arc, Mutex};
use trine_buffer::{Buf, Stamp};
use trine_comm::{Communicator, Name, Phase};
use trine_mesh::AxisSet;
use trine_pipeline::Moment;
use trine_schedule::{Action, Compute, UniformStage};

/// Passes that do not count: memory is first touched there.
const WARM_UP_PASSES: usize = 1;
/// Passes of which the medians count.
const PASSES: usize = 3;

/// F, B and W of a stage and a message.
type Four = [f64; 4];

/// The request with times for its schedule: where they are to be measured, the ranks do so now, and all is planned
/// again for what they have found. From there on the run is one with given times.
pub(super) fn settled<'a>(
    request: &TrainRequest<'a>,
    ranks: Ranks<'_>,
    prepared: &mut Prepared,
    reporter: &Mutex<dyn Reporter + '_>,
) -> Result<TrainRequest<'a>, TrainError> {
    let mut settled = request.clone();
    if request.config.layout.times != Times::Measured {
        return Ok(settled);
    }
    report(reporter, &Event::Work(Work::Measuring));
    let times = measured(request, ranks, prepared, reporter)?;
    settled.config.layout.times = times.into();
    // Another order keeps other activations.
    (prepared.plan, prepared.memory) = planned(&settled, ranks, reporter)?;
    report(reporter, &Event::Measured(times));
    Ok(settled)
}

/// The times, the same on all ranks. Engines that are thrown away measure them, with initial weights: nothing of the
/// run is touched.
fn measured(
    request: &TrainRequest<'_>,
    ranks: Ranks<'_>,
    prepared: &Prepared,
    reporter: &Mutex<dyn Reporter + '_>,
) -> Result<UniformStage, TrainError> {
    let engine = &prepared.plan.config;
    let plan = Arc::new(RunPlan::new(&alone(engine))?);
    let data = &prepared.data;
    match ranks {
        Ranks::Threads => {
            let rank = |world| measure(request, (engine, &plan), data, world, false);
            let all = on_threads(request, &prepared.directory, reporter, rank)?;
            Ok(all[0])
        }
        Ranks::Process(process) => {
            measure(request, (engine, &plan), data, process.world().clone(), true)
                .map_err(|error| TrainError::Begun(Box::new(error)))
        }
    }
}

/// A step of one micro-batch. It goes through the pipeline alone, so that ranks which share cores hardly slow down one
/// another.
fn alone(engine: &EngineConfig) -> EngineConfig {
    EngineConfig { global_batch: engine.degrees.dp * engine.micro_batch, ..engine.clone() }
}

/// One rank's part. A collective call.
fn measure(
    request: &TrainRequest<'_>,
    (engine, plan): (&EngineConfig, &Arc<RunPlan>),
    data: &RunData,
    world: Arc<dyn Communicator>,
    is_process: bool,
) -> Result<UniformStage, TrainError> {
    let deadline = Some(request.config.long_deadline());
    world.recorder().begin_phase(Phase { name: Name::new("measuring times"), deadline });
    let (_pinned, mut rank) = build(request, plan, world, is_process)?;
    rank.split_backward();
    let batch = data.first_micro_batch(engine, rank.coordinate().dp)?;
    let mut passes = Vec::new();
    for _ in 0..WARM_UP_PASSES + PASSES {
        passes.push(pass(&mut rank, &batch)?);
    }
    agreed(&**rank.world(), middle(&passes[WARM_UP_PASSES..]), engine.degrees.pp)
}

/// The median of each time.
fn middle(passes: &[Four]) -> Four {
    array::from_fn(|what| median(&passes.iter().map(|pass| pass[what]).collect::<Vec<_>>()))
}

/// Seconds of F, B and W of a stage, on average over those of the rank, and of a message. Wall time of the processor: a
/// stage waits for its helper threads and its tensor-parallel neighbours; or time of the device's queue.
fn pass(rank: &mut Engine, batch: &Batch) -> Result<Four, TrainError> {
    let place = rank.place().clone();
    let mut begun = place.stamp()?;
    let mut done: Vec<(usize, [Stamp; 2])> = Vec::new();
    let mut failed = None;
    rank.backward(0, batch, &mut |_, action, moment| match (place.stamp(), moment) {
        (Err(error), _) => failed = failed.take().or(Some(error)),
        (Ok(here), Moment::Begin) => begun = here,
        (Ok(here), Moment::End) => {
            done.extend(kind(action).map(|kind| (kind, [begun.clone(), here])))
        }
    })?;
    failed.map_or(Ok(()), Err)?;
    let mut seconds = [0.0; 3];
    for (kind, [begin, end]) in &done {
        seconds[*kind] += end.seconds_since(begin)?;
    }
    let [forward, backward_input, backward_weight] =
        seconds.map(|sum| sum / rank.layout().stages.len() as f64);
    Ok([forward, backward_input, backward_weight, message(rank)?])
}

/// Which of F, B and W an action is, if it computes.
fn kind(action: &Action) -> Option<usize> {
    match action {
        Action::Compute(Compute::Forward { .. }) => Some(0),
        Action::Compute(Compute::BackwardInput { .. }) => Some(1),
        Action::Compute(Compute::BackwardWeight { .. }) => Some(2),
        Action::Message(_) | Action::Sync(_) => None,
    }
}

/// Seconds of a message between neighbours, by the clock of the pipeline's first rank: one goes to the last rank and
/// back. 0 on the other ranks, and where there is one alone.
fn message(rank: &Engine) -> Result<f64, TrainError> {
    let pp = rank.groups().of(AxisSet::PP)?;
    let (own, last) = (pp.rank(), pp.size() - 1);
    let (dtype, len) = rank.config().message();
    let mut message = rank.place().zeros(dtype, len)?;
    let (there, back) = (Name::new("timed message"), Name::new("timed message back"));
    let began = rank.place().stamp()?;
    if own > 0 {
        message = pp.recv(message, own - 1, there)?;
    }
    if own < last {
        message = pp.send(message, own + 1, there)?;
        message = pp.recv(message, own + 1, back)?;
    }
    if own > 0 {
        message = pp.send(message, own - 1, back)?;
    }
    let ended = rank.place().stamp()?;
    drop(message);
    let is_timed = own == 0 && last > 0;
    Ok(if is_timed { ended.seconds_since(&began)? / (2 * last) as f64 } else { 0.0 })
}

/// One set of times of what all ranks have measured, F being 1: the same on all, which gather and add in one order. A
/// collective call.
///
/// A schedule counts stages as alike. What differs between their times is mostly noise, of which the mean takes less
/// than the maximum; and the largest F, B and W of several ranks would be in the proportion of none.
fn agreed(world: &dyn Communicator, own: Four, pp: usize) -> Result<UniformStage, TrainError> {
    let room = Buf::from_vec(vec![0.0; own.len() * world.size()]);
    let own = Buf::from_vec(own.to_vec());
    let (_, all) = world.all_gather(own, room, Name::new("measured times"))?;
    let mut sums = [0.0; 4];
    for (at, time) in all.typed::<f64>()?.iter().enumerate() {
        sums[at % 4] += time;
    }
    let [forward, .., message] = &mut sums;
    // Of the ranks of a pipeline, the first alone has timed messages.
    *message *= pp as f64;
    let unit = *forward;
    Ok(UniformStage::new(sums.map(|sum| two_digits(sum / unit)))?)
}

/// A number with two digits that count.
fn two_digits(number: f64) -> f64 {
    format!("{number:.1e}").parse().expect("invariant: what is written of a number is read as one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_comm::threads;

    #[test]
    fn numbers_have_two_digits() {
        let numbers = [1.0, 1.049, 0.8749, 0.003_149, 123.0, 0.0].map(two_digits);
        assert_eq!(numbers, [1.0, 1.0, 0.87, 0.0031, 120.0, 0.0]);
    }

    #[test]
    fn a_time_is_the_median_of_its_passes() {
        let passes = [[1.0, 9.0, 5.0, 0.1], [3.0, 8.0, 4.0, 0.3], [2.0, 1.0, 6.0, 0.2]];
        assert_eq!(middle(&passes), [2.0, 8.0, 5.0, 0.2]);
    }

    /// Whatever each has measured, all have the same numbers: the means, relative to F. Messages are the first ranks'.
    #[test]
    fn all_ranks_agree_on_one_set_of_times() {
        let own = [
            [1.0, 2.0, 0.5, 0.25],
            [3.0, 3.0, 0.5, 0.0],
            [2.0, 1.0, 1.5, 0.35],
            [2.0, 6.0, 1.0, 0.0],
        ];
        let all =
            threads::run(4, &Default::default(), |world| agreed(&*world, own[world.rank()], 2));
        let expected = UniformStage::new([1.0, 1.5, 0.44, 0.15]).unwrap();
        assert_eq!(all.unwrap(), [expected; 4]);
        // What no clock has seen is refused, and not divided by.
        let nothing = threads::run(2, &Default::default(), |world| agreed(&*world, [0.0; 4], 2));
        assert!(nothing.unwrap_err().to_string().contains("F, B and W take more than 0"));
    }
}
