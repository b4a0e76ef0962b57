//! `trine bench plan`: how fast planning is, on one core.

use crate::args::BenchPlanArgs;
use crate::failure::Failure;
use crate::output::{self, Align, Table, grouped};
use anyhow::Context;
use std::time::{Duration, Instant};
use trine_plan::{
    Attention, Constants, Fixed, Model, Planner, Precision, Request, clusters, find_cluster,
    find_stack, rank, stacks,
};
use trine_schedule::{ScheduleKind, Shape, StageCosts, UniformStage, step_times};

/// What a search must reach: so many layouts, each with time and memory, in so many seconds.
const LAYOUTS_MIN: usize = 100_000;
const SEARCH_SECONDS_MAX: f64 = 2.0;
/// One step of 1T: 64 ranks × 1,600 micro-batches, in so many milliseconds.
const STEP: (usize, usize) = (64, 1600);
const STEP_MILLISECONDS_MAX: f64 = 50.0;

/// Runs the command: each measurement is the best of the rounds, as other work can only add to it.
pub(crate) fn run(args: &BenchPlanArgs) -> Result<(), Failure> {
    if args.rounds == 0 {
        return Err(Failure::usage("--rounds 0: at least 1"));
    }
    let search = search(args.rounds)?;
    let steps = steps(args.rounds)?;
    output::print(&format!("{search}\n{steps}"))
}

fn best<T>(rounds: usize, mut run: impl FnMut() -> T) -> (T, Duration) {
    let mut timed = || {
        let start = Instant::now();
        let value = run();
        (value, start.elapsed())
    };
    let first = timed();
    (1..rounds).map(|_| timed()).fold(first, |best, next| if next.1 < best.1 { next } else { best })
}

fn verdict(holds: bool) -> &'static str {
    if holds { "as asked" } else { "MISSED" }
}

/// Every layout of a trillion parameters on 3,072 dies of Frontier, in closed form.
fn search(rounds: usize) -> Result<String, Failure> {
    let preset = trine_spec::presets::find("frontier-1t").context("no preset")?;
    let model = Model::new(&preset.model).context("no model")?;
    let (clusters, stacks) = (clusters(&[]).context("clusters")?, stacks().context("stacks")?);
    let constants = Constants::built_in().context("constants")?;
    let cluster = find_cluster(&clusters, "frontier").context("no cluster")?;
    let stack = find_stack(&stacks, "megatron-deepspeed").context("no stack")?;
    let planner = Planner::new(&model, cluster, stack, &constants).context("no constants")?;
    let request = Request {
        devices: 3072,
        global_batch: 9600,
        seq: 2048,
        headroom: 0.1,
        precision: Precision::Bf16,
        attention: Attention::Flash2,
        fixed: Fixed::default(),
    };
    let (found, time) = best(rounds, || rank(&planner, &request));
    let found = found.context("nothing fits")?;
    let seconds = time.as_secs_f64();
    let holds = found.evaluated >= LAYOUTS_MIN && seconds <= SEARCH_SECONDS_MAX;
    Ok(format!(
        "search: {} layouts with time and memory in {seconds:.2} s, {} a second; asked: {} in {SEARCH_SECONDS_MAX:.0} s: {}\n",
        grouped(found.evaluated as u64),
        grouped((found.evaluated as f64 / seconds) as u64),
        grouped(LAYOUTS_MIN as u64),
        verdict(holds)
    ))
}

/// One step of every schedule at the size of the trillion-parameter run.
fn steps(rounds: usize) -> Result<String, Failure> {
    let (ranks, micro_batches) = STEP;
    let mut table = Table::new(&[
        ("schedule", Align::Left),
        ("actions", Align::Right),
        ("lists ms", Align::Right),
        ("simulated ms", Align::Right),
        ("", Align::Left),
    ]);
    let one =
        UniformStage { forward: 1.0, backward_input: 1.0, backward_weight: 1.0, transfer: 0.01 };
    let training = ScheduleKind::all().iter().filter(|info| info.kind != ScheduleKind::ForwardOnly);
    for info in training {
        let shape = Shape { ranks, chunks: info.chunks_usual, micro_batches };
        let (schedule, lists) = best(rounds, || info.kind.generate_shape(shape));
        let schedule = schedule.context("cannot make the schedule")?;
        let costs = StageCosts::uniform(schedule.stages(), one);
        let (times, simulated) = best(rounds, || step_times(&schedule, &costs));
        times.context("cannot simulate")?;
        let actions: usize = schedule.actions.iter().map(Vec::len).sum();
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        table.row([
            format!("{} × {}", info.name, info.chunks_usual),
            grouped(actions as u64),
            format!("{:.1}", milliseconds(lists)),
            format!("{:.1}", milliseconds(simulated)),
            verdict(milliseconds(simulated) <= STEP_MILLISECONDS_MAX).to_owned(),
        ]);
    }
    Ok(format!(
        "simulation: {ranks} ranks × {} micro-batches; asked: {STEP_MILLISECONDS_MAX:.0} ms\n{}",
        grouped(micro_batches as u64),
        table.render()
    ))
}
