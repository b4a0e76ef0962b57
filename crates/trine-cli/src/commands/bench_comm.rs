//! `trine bench comm`: what ranks that are threads cost each other.

use crate::args::BenchCommArgs;
use crate::failure::Failure;
use crate::machine::cores;
use crate::output;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trine_buffer::{Buf, DType};
use trine_comm::wrap::{Action, Link, LinkSpeed, LinkTime, Tap};
use trine_comm::{CommError, Communicator, Group, Name, Operation, Recorder, ReduceOp, Request};
use trine_comm::{Phase, threads};
use trine_trainer::bench::{StepRequest, steps, steps_through};
use trine_trainer::config::{Config, Setting, Typed};

/// Bytes of each rank's buffer in the row of bandwidth.
const BYTES: usize = 32 << 20;

/// Buffers that a rank goes through in turn: together larger than the last cache of any machine.
const BUFFERS: usize = 16;

/// A slow network: 1 GB/s and 50 µs.
const SLOW: LinkSpeed = LinkSpeed { bytes_per_s: 1e9, latency: Duration::from_micros(50) };

/// Blocks of the models that run on the slow network. The gradient of the token embedding is complete
/// when the whole backward pass is, so its reduction, and in a large model little else, has nothing to
/// hide under: it is a quarter of the default model's parameters, and a tenth with twelve blocks (of
/// GPT-2 with 774M parameters it is a twelfth).
const OVERLAP_BLOCKS: [&str; 2] = ["model.layers=4", "model.layers=12"];

/// What a gradient bucket's reduction is called.
const BUCKET: &str = "gradient";

/// How often the control of the recorder's cost records every operation once more.
const EXTRA_RECORDS: usize = 20;

/// Runs the command.
pub(crate) fn run(args: &BenchCommArgs) -> Result<(), Failure> {
    if !(args.seconds > 0.0 && args.seconds <= 3600.0) {
        let seconds = args.seconds;
        return Err(Failure::usage(format!("--seconds {seconds}: must be above 0, at most 3600")));
    }
    if args.rounds == 0 {
        return Err(Failure::usage("--rounds 0: must be at least 1; nearest valid: 1"));
    }
    let time = Duration::from_secs_f64(args.seconds);
    output::print(&bandwidth(time, args.rounds)?)?;
    for blocks in OVERLAP_BLOCKS {
        output::print(&overlap(time, blocks)?)?;
    }
    output::print(&recorder(time, args.rounds)?)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// GB/s of copying and of all-reduces in alternation, bytes read and written.
fn bandwidth(time: Duration, rounds: usize) -> Result<String, Failure> {
    let each = time.div_f64(2.0 * rounds as f64);
    let (mut copies, mut reductions) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        copies.push(two_ranks(each, |_, pair| {
            let (from, to) = pair.split_at_mut(1);
            to[0].slice_mut().copy_from(from[0].slice())?;
            Ok(2 * BYTES)
        })?);
        reductions.push(two_ranks(each, |comm, pair| {
            let own = std::mem::replace(&mut pair[0], Buf::zeros(DType::F32, 0));
            pair[0] = comm.all_reduce(own, ReduceOp::Sum, "bandwidth")?;
            // Each rank's buffer is read once and written once.
            Ok(2 * BYTES)
        })?);
    }
    let (copy, reduction) = (median(copies), median(reductions));
    Ok(format!(
        "all-reduce of {} MiB f32 between 2 ranks, {rounds} turns in alternation with copies by 2 \
         threads, {BUFFERS} buffers each, bytes read and written:\n  \
         copy {copy:.1} GB/s, all-reduce {reduction:.1} GB/s, ratio {:.2} ({})\n",
        BYTES >> 20,
        reduction / copy,
        at_least(reduction / copy, 0.5),
    ))
}

/// GB/s of two ranks together that repeat `work` on pairs of their buffers; it returns the bytes that
/// it has moved.
fn two_ranks(
    time: Duration,
    work: impl Fn(&dyn Communicator, &mut [Buf]) -> Result<usize, CommError> + Sync,
) -> Result<f64, Failure> {
    let speeds = threads::run(2, &Default::default(), |comm| {
        let ones = || Buf::from_vec(vec![1.0f32; BYTES / 4]);
        let mut buffers: Vec<Buf> = (0..BUFFERS).map(|_| ones()).collect();
        comm.barrier("begin")?;
        let (began, mut bytes) = (Instant::now(), 0);
        loop {
            for pair in buffers.chunks_exact_mut(2) {
                bytes += work(&*comm, pair)?;
            }
            let enough = u64::from(began.elapsed() >= time);
            let all = comm.all_reduce(Buf::from_vec(vec![enough]), ReduceOp::Max, "enough")?;
            if all.typed::<u64>()?[0] == 1 {
                return Ok::<_, CommError>(bytes as f64 / began.elapsed().as_secs_f64() / 1e9);
            }
        }
    });
    let speeds = speeds.map_err(|error| Failure::Run(anyhow::anyhow!("{error}")))?;
    Ok(speeds.iter().sum())
}

/// The default model with the settings `layout`.
fn config(layout: &[&str]) -> Result<Config, Failure> {
    let settings = layout.iter().map(|text| Setting::set(text)).collect();
    Ok(Config::load(&Typed { settings, ..Typed::default() })?)
}

fn request(time: Duration) -> StepRequest {
    StepRequest::plain(cores(), 3, time)
}

/// How much of the bucket reductions of two replicas hides under the backward pass on a slow link.
fn overlap(time: Duration, blocks: &str) -> Result<String, Failure> {
    let config = config(&["layout.dp=2", "layout.tp=1", "layout.pp=1", blocks])?;
    let link = Link::new(SLOW);
    let times = steps_through(&config, request(time), &|comm| link.around(comm))?;
    let mut text = format!(
        "bucket reductions of {}, {blocks}, under the backward pass, {}, {} × {} tokens a \
         micro-batch, on a link of {:.0} GB/s and {:.0} µs, in {} timed steps of {:.1} ms and the \
         ones before:\n",
        config.name,
        config.degrees(),
        config.batch.micro,
        config.data.seq,
        SLOW.bytes_per_s / 1e9,
        SLOW.latency.as_secs_f64() * 1e6,
        times.steps.len(),
        times.median_s() * 1e3,
    );
    let ms = |time: Duration, count: u64| time.as_secs_f64() * 1e3 / count as f64;
    let mut hidden = f64::INFINITY;
    for rank in 0..config.world() {
        let mut buckets = link.times(rank, BUCKET);
        // In the order of the backward pass.
        buckets.sort_by_key(|(name, _)| std::cmp::Reverse(name.index("bucket")));
        let all: LinkTime = buckets.iter().map(|(_, time)| *time).sum();
        let steps = buckets.first().map_or(1, |(_, time)| time.operations);
        hidden = hidden.min(all.hidden());
        text += &format!(
            "  rank {rank}: {} reductions a step, {:.2} ms on the link, {:.2} ms of it after both ranks \
             had ended their backward pass: {:.0} % hidden; {:.2} ms waited in all, also for the other \
             rank\n",
            buckets.len(),
            ms(all.transfer, steps),
            ms(all.exposed, steps),
            100.0 * all.hidden(),
            ms(all.waited, steps),
        );
        for (name, time) in &buckets {
            text += &format!(
                "    {name}: {:.2} ms on the link, {:.2} ms shown, {:.2} ms waited\n",
                ms(time.transfer, time.operations),
                ms(time.exposed, time.operations),
                ms(time.waited, time.operations),
            );
        }
    }
    Ok(text + &format!("  hidden: {:.0} % ({})\n", 100.0 * hidden, at_least(hidden, 0.7)))
}

/// Whether a value reaches its target, in words.
fn at_least(value: f64, target: f64) -> String {
    format!("target: {target}, {}", if value >= target { "met" } else { "missed" })
}

/// What the flight recorder costs: computed, and by training steps that record every operation many
/// times.
fn recorder(time: Duration, rounds: usize) -> Result<String, Failure> {
    let config = config(&["layout.dp=2", "layout.tp=2", "layout.pp=2"])?;
    let request = request(time.div_f64(2.0 * rounds as f64));
    let (mut once, mut often) = (Vec::new(), Vec::new());
    let (mut operations, mut actions) = (0.0f64, 0);
    for _ in 0..rounds {
        let times = steps(&config, request)?;
        once.push(times.median_s());
        (operations, actions) = (times.operations, times.actions);
        often.push(steps_through(&config, request, &|comm| recording_more(comm))?.median_s());
    }
    let (operation_ns, action_ns) = recorder_ns();
    let (once, often) = (median(once), median(often));
    let cost = (operations * operation_ns + actions as f64 * action_ns) * 1e-9;
    Ok(format!(
        "flight recorder, {} of {}:\n  \
         {operations:.0} operations × {operation_ns:.0} ns + {actions} actions × {action_ns:.0} ns = \
         {:.3} ms of a step of {:.1} ms: {:.3} % (target: 1, {})\n  \
         medians of {rounds} turns in alternation: {:.1} ms; with every operation recorded {} times: \
         {:.1} ms\n",
        config.degrees(),
        config.name,
        cost * 1e3,
        once * 1e3,
        100.0 * cost / once,
        if cost <= 0.01 * once { "met" } else { "missed" },
        once * 1e3,
        EXTRA_RECORDS + 1,
        often * 1e3,
    ))
}

/// A rank whose operations are recorded many times more, in a recorder of its own.
fn recording_more(comm: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
    let spare = Recorder::new(comm.rank(), "");
    Tap::around(comm, move |group, request| {
        if group.size() > 1 {
            for _ in 0..EXTRA_RECORDS {
                record(&spare, request, group);
            }
        }
        Action::Forward
    })
}

/// What a backend notes of one operation.
fn record(recorder: &Recorder, request: &Request, group: &Group) {
    let number = recorder.post(request.call(group, 0));
    recorder.wait(number);
    recorder.finish(number);
}

/// Nanoseconds to record an operation and an action, the best of some rounds.
fn recorder_ns() -> (f64, f64) {
    const CALLS: u32 = 20_000;
    let best = |call: &mut dyn FnMut()| {
        let round = |_| {
            let began = Instant::now();
            (0..CALLS).for_each(|_| call());
            began.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
        };
        (0..10).map(round).fold(f64::INFINITY, f64::min)
    };
    let comms = threads::connect(2, &Default::default());
    let group = comms[0].group();
    let name = Name::new(BUCKET).with("bucket", 1);
    let site = std::panic::Location::caller();
    let request = Request::new(Operation::AllReduce(ReduceOp::Sum), name, site);
    let recorder = Recorder::new(0, "");
    recorder.begin_phase(Phase::from(Name::new("training")));
    let operation = best(&mut || record(&recorder, &request, group));
    let action = best(&mut || recorder.begin_action(7, format_args!("B{}.{}", 1, 3)));
    (operation, action)
}
