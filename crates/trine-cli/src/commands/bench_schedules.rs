//! `trine bench schedules`: the bubble of every schedule as the executor runs it, beside the simulator's.
//!
//! Stages sleep. Ranks that sleep need no cores, so as many as one likes run on any machine.

use crate::args::BenchSchedulesArgs;
use crate::failure::Failure;
use crate::output::{self, Align, Table};
use anyhow::Context;
use std::thread;
use std::time::{Duration, Instant};
use trine_buffer::{Act, Buf, DType, Pool};
use trine_comm::threads;
use trine_pipeline::{Execution, PipelineError, StageError, StageOps, execute};
use trine_schedule::{
    Delivery, Payload, Purpose, Reduction, Schedule, ScheduleKind, Shape, UniformCosts, lower,
    simulate,
};

/// What is asked of the executor: a bubble this near to the simulated one.
const DIFFERENCE_MAX: f64 = 0.05;

/// Runs the command: each schedule in turn, the shortest of the rounds, as other work can only add to it.
pub(crate) fn run(args: &BenchSchedulesArgs) -> Result<(), Failure> {
    let time = Duration::from_millis(args.milliseconds);
    let mut table = Table::new(&[
        ("schedule", Align::Left),
        ("stages", Align::Right),
        ("step ms", Align::Right),
        ("simulated", Align::Right),
        ("bubble", Align::Right),
        ("simulated", Align::Right),
        ("", Align::Left),
    ]);
    let training = ScheduleKind::all().iter().filter(|info| info.purpose == Purpose::Train);
    for info in training {
        let (ranks, micro_batches) = (args.ranks, args.micro_batches);
        let shape = Shape { ranks, chunks: info.chunks_usual, micro_batches };
        let lists = info.kind.generate_shape(shape).map_err(Failure::usage)?;
        let schedule = lower(&lists, None).context("cannot complete the schedule")?;
        let simulated = simulate(&schedule, Delivery::Buffered, &UniformCosts::new(&schedule))
            .context("cannot simulate the schedule")?;
        let rounds = (0..args.rounds).map(|_| step(&schedule, time));
        let steps = rounds.collect::<Result<Vec<Step>, Failure>>()?;
        let shortest = steps.into_iter().min_by_key(|step| step.took);
        let measured = shortest.context("no round was asked for")?;
        let bubbles = [measured.bubble(ranks), simulated.bubble_fraction()];
        let is_near = (bubbles[0] - bubbles[1]).abs() <= DIFFERENCE_MAX;
        let milliseconds = |time: Duration| format!("{:.1}", 1e3 * time.as_secs_f64());
        table.row([
            info.name.to_owned(),
            schedule.stages().to_string(),
            milliseconds(measured.took),
            milliseconds(time.mul_f64(simulated.makespan)),
            format!("{:.1} %", 100.0 * bubbles[0]),
            format!("{:.1} %", 100.0 * bubbles[1]),
            if is_near { "as asked" } else { "MISSED" }.to_owned(),
        ]);
    }
    output::print(&format!(
        "{} ranks, {} micro-batches, {} ms each for F, B and W of a stage; asked: bubbles within {:.0} points\n{}",
        args.ranks,
        args.micro_batches,
        args.milliseconds,
        100.0 * DIFFERENCE_MAX,
        table.render()
    ))
}

/// A step of all ranks.
struct Step {
    /// From the first action of any rank to the end of the last.
    took: Duration,
    /// How long F, B and W took, over all ranks.
    worked: Duration,
}

impl Step {
    /// The share of all ranks' time that is not work.
    fn bubble(&self, ranks: usize) -> f64 {
        1.0 - self.worked.as_secs_f64() / (ranks as f64 * self.took.as_secs_f64())
    }
}

/// Executes a schedule once; F, B and W take `time` each.
fn step(schedule: &Schedule, time: Duration) -> Result<Step, Failure> {
    let ranks = threads::run(schedule.ranks(), &Default::default(), |comm| {
        let (pool, mut stage) = (Pool::new(), Asleep { time, worked: Duration::ZERO });
        let begin = Instant::now();
        let execution = Execution { schedule, comm: &*comm, pool: &pool };
        execute(&execution, &mut stage, &mut |_, _, _| {})?;
        Ok::<_, PipelineError>((begin, Instant::now(), stage.worked))
    })
    .context("cannot execute the schedule")?;
    let begin = ranks.iter().map(|rank| rank.0).min();
    let end = ranks.iter().map(|rank| rank.1).max();
    let took = begin.zip(end).map_or(Duration::ZERO, |(begin, end)| end - begin);
    Ok(Step { took, worked: ranks.iter().map(|rank| rank.2).sum() })
}

/// A stage whose work is to sleep, and whose messages are one number long.
struct Asleep {
    time: Duration,
    worked: Duration,
}

impl Asleep {
    fn work(&mut self) -> Act {
        let begin = Instant::now();
        thread::sleep(self.time);
        self.worked += begin.elapsed();
        Act::new(Buf::zeros(DType::F32, 1))
    }
}

impl StageOps for Asleep {
    fn forward(&mut self, _: usize, _: usize, _: Option<Act>) -> Result<Act, StageError> {
        Ok(self.work())
    }

    fn backward_input(
        &mut self,
        _: usize,
        _: usize,
        _: Option<usize>,
        _: Option<Act>,
    ) -> Result<Option<Act>, StageError> {
        Ok(Some(self.work()))
    }

    fn backward_weight(&mut self, _: usize, _: usize, _: Option<usize>) -> Result<(), StageError> {
        self.work();
        Ok(())
    }

    fn transfer_len(&self, _: Payload) -> (DType, usize) {
        (DType::F32, 1)
    }

    fn sync(&mut self, _: Reduction) -> Result<(), StageError> {
        Ok(())
    }
}
