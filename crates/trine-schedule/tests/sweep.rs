//! Every generator, every shape of ranks 1–8, micro-batches 1–32 and stages of a rank 1–4: verified, and
//! equal to theory.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

mod common;

use common::{lowered, plan};
use trine_schedule::{
    Action, Compute, Delivery, Purpose, Schedule, ScheduleError, ScheduleKind, Shape, StageCosts,
    SyncPlan, TiedSegment, Timeline, UniformCosts, UniformStage, lower, simulate, step_times,
    verify,
};

/// The times of a micro-batch on a stage: F, B and W.
const TIMES: (f64, f64, f64) = (1.0, 1.25, 0.75);

/// Calls `check` for all 256 pairs of stages and micro-batches and asserts that it did.
fn sweep(mut check: impl FnMut(usize, usize)) {
    let mut pairs = 0;
    for stages in 1..=8 {
        for micro_batches in 1..=32 {
            check(stages, micro_batches);
            pairs += 1;
        }
    }
    assert_eq!(pairs, 256);
}

fn timed(schedule: &Schedule, delivery: Delivery) -> Timeline<'_> {
    let mut costs = UniformCosts::new(schedule);
    (costs.forward, costs.backward_input, costs.backward_weight) = TIMES;
    simulate(schedule, delivery, &costs).unwrap()
}

fn assert_close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() < 1e-9 * expected.max(1.0), "{what}: {found} ≠ {expected}");
}

/// Verifies a lowered schedule and compares it with the closed forms.
fn check_training(kind: ScheduleKind, p: usize, m: usize, is_tied: bool) {
    let what = format!("{kind} p={p} m={m} tied={is_tied}");
    let schedule = lowered(&kind.generate(p, m).unwrap(), is_tied);
    let report = verify(&schedule).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(report.pairs, p * m);
    assert_eq!(report.messages, 2 * (p - 1) * m, "{what}");
    assert_eq!(report.buckets, plan(p, is_tied).segments.iter().sum::<usize>());

    let in_flight: Vec<usize> = (0..p)
        .map(|rank| match kind {
            ScheduleKind::GPipe => m,
            ScheduleKind::OneFOneB => m.min(p - rank),
            other => unreachable!("{other} has a sweep of its own"),
        })
        .collect();
    assert_eq!(report.in_flight_peak, in_flight, "{what}");

    let (p, m) = (p as f64, m as f64);
    for delivery in [Delivery::Buffered, Delivery::Rendezvous] {
        let timeline = timed(&schedule, delivery);
        let micro_batch = TIMES.0 + TIMES.1 + TIMES.2;
        assert_close(timeline.makespan, (m + p - 1.0) * micro_batch, &what);
        assert_close(timeline.bubble_fraction(), (p - 1.0) / (m + p - 1.0), &what);
        assert_eq!(timeline.in_flight_peak(), in_flight, "{what}");
        for (busy, idle) in timeline.busy.iter().zip(timeline.idle()) {
            assert_close(*busy, m * micro_batch, &what);
            assert_close(idle, (p - 1.0) * micro_batch, &what);
        }
    }
}

fn sweep_training(kind: ScheduleKind) {
    for is_tied in [false, true] {
        sweep(|stages, micro_batches| check_training(kind, stages, micro_batches, is_tied));
    }
}

/// Proves the schedule of a shape, or expects the error that names the nearest shape, and proves that.
/// True if the shape itself is defined.
fn check_shape(kind: ScheduleKind, shape: Shape, is_tied: bool) -> bool {
    let what = format!("{kind} {shape:?} tied={is_tied}");
    let compute = match kind.generate_shape(shape) {
        Ok(compute) => compute,
        Err(ScheduleError::Chunks { nearest, .. }) => {
            let near = Shape { chunks: nearest, ..shape };
            // Its micro-batches may be too few beside.
            let other = kind.check_shape(&near).err();
            let fits = other.is_none_or(|error| matches!(error, ScheduleError::Few { .. }));
            assert!(nearest != shape.chunks && fits, "{what}: {nearest}");
            return false;
        }
        Err(ScheduleError::Few { nearest, .. }) => {
            let near = Shape { micro_batches: nearest, ..shape };
            assert!(nearest > shape.micro_batches && kind.check_shape(&near).is_ok(), "{what}");
            return false;
        }
        Err(ScheduleError::Groups { nearest, .. }) => {
            let near = Shape { micro_batches: nearest, ..shape };
            assert!(nearest.abs_diff(shape.micro_batches) < shape.ranks, "{what}: {nearest}");
            assert!(kind.check_shape(&near).is_ok(), "{what}: {nearest}");
            return false;
        }
        Err(error) => panic!("{what}: {error}"),
    };
    let schedule = lowered(&compute, is_tied);
    let report = verify(&schedule).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(report.pairs, shape.stages() * shape.micro_batches, "{what}");
    let apart = schedule.placement.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert_eq!(report.messages, 2 * apart * shape.micro_batches, "{what}");
    let planned = plan(shape.stages(), is_tied).segments.iter().sum::<usize>();
    assert_eq!(report.buckets, planned, "{what}");
    let in_flight = (0..shape.ranks).map(|rank| kind.in_flight_max(&shape, rank));
    assert_eq!(report.in_flight_peak, in_flight.collect::<Vec<_>>(), "{what}");

    // F, B and W alike, messages free: neither delivery makes a rank wait for longer than theory.
    let one =
        UniformStage { forward: 1.0, backward_input: 1.0, backward_weight: 1.0, transfer: 0.0 };
    let form = kind.closed_form(&shape, &one).unwrap();
    let theory = step_times(&compute, &StageCosts::uniform(shape.stages(), one)).unwrap();
    for delivery in [Delivery::Buffered, Delivery::Rendezvous] {
        let timeline = simulate(&schedule, delivery, &UniformCosts::new(&schedule)).unwrap();
        assert_close(timeline.makespan, theory.makespan, &what);
        if form.exact {
            assert_close(timeline.makespan, form.makespan, &what);
            let bubble = form.bubble_fraction(&shape, &one);
            assert!((timeline.bubble_fraction() - bubble).abs() < 1e-9, "{what}: {bubble}");
        }
    }
    true
}

/// Sweeps all 1,024 shapes, untied and tied; `defined` of them have a schedule.
fn sweep_shapes(kind: ScheduleKind, defined: usize) {
    for is_tied in [false, true] {
        let mut found = 0;
        for chunks in 1..=4 {
            sweep(|ranks, micro_batches| {
                let shape = Shape { ranks, chunks, micro_batches };
                found += usize::from(check_shape(kind, shape, is_tied));
            });
        }
        assert_eq!(found, defined, "{kind} tied={is_tied}");
    }
}

#[test]
fn interleaved_is_right_everywhere() {
    // All 256 with one chunk; the multiples of p with 2, 3 and 4.
    let multiples: usize = (1..=8).map(|p| 32 / p).sum();
    sweep_shapes(ScheduleKind::Interleaved, 256 + 3 * multiples);
}

#[test]
fn breadth_first_is_right_everywhere() {
    sweep_shapes(ScheduleKind::BreadthFirst, 4 * 256);
}

#[test]
fn zb_h1_is_right_everywhere() {
    sweep_shapes(ScheduleKind::ZbH1, 256);
}

#[test]
fn zb_h2_is_right_everywhere() {
    sweep_shapes(ScheduleKind::ZbH2, 256);
}

#[test]
fn zb_v_is_right_everywhere() {
    sweep_shapes(ScheduleKind::ZbV, 256);
}

#[test]
fn dual_pipe_v_is_right_everywhere() {
    // At least two micro-batches for each rank.
    let defined = (1..=8).map(|p| 32 - 2 * p + 1).sum();
    sweep_shapes(ScheduleKind::DualPipeV, defined);
}

#[test]
fn gpipe_and_one_f_one_b_have_one_stage_a_rank() {
    sweep_shapes(ScheduleKind::GPipe, 256);
    sweep_shapes(ScheduleKind::OneFOneB, 256);
}

#[test]
fn zb_h1_puts_weights_where_a_rank_would_wait() {
    let schedule = lower(&ScheduleKind::ZbH1.generate(3, 4).unwrap(), None).unwrap();
    // The gradient leaves right after B, and W fills the time until the next is there.
    assert_eq!(
        words(&schedule.actions[1]),
        "RA1.0<0 F1.0 SA1.0>2+RA1.1<0 F1.1 SA1.1>2+RG1.0<2 B1.0 SG1.0>0+RA1.2<0 F1.2 \
         SA1.2>2+RG1.1<2 B1.1 SG1.1>0 W1.0 RA1.3<0 RG1.2<2 F1.3 SA1.3>2 B1.2 SG1.2>0 W1.1 RG1.3<2 \
         B1.3 SG1.3>0 W1.2 W1.3"
    );
}

#[test]
fn gpipe_is_right_everywhere() {
    sweep_training(ScheduleKind::GPipe);
}

#[test]
fn one_f_one_b_is_right_everywhere() {
    sweep_training(ScheduleKind::OneFOneB);
}

#[test]
fn forward_only_is_right_everywhere() {
    sweep(|p, m| {
        let schedule = lower(&ScheduleKind::ForwardOnly.generate(p, m).unwrap(), None).unwrap();
        let report = verify(&schedule).unwrap();
        assert_eq!((report.pairs, report.messages), (p * m, (p - 1) * m));
        assert_eq!(report.in_flight_peak, vec![0; p]);
        for delivery in [Delivery::Buffered, Delivery::Rendezvous] {
            assert_close(timed(&schedule, delivery).makespan, (m + p - 1) as f64, "forward-only");
        }
    });
}

#[test]
fn one_f_one_b_exchanges_in_the_steady_state() {
    let schedule = lower(&ScheduleKind::OneFOneB.generate(2, 3).unwrap(), None).unwrap();
    let lists: Vec<String> = schedule.actions.iter().map(|list| words(list)).collect();
    assert_eq!(
        lists,
        [
            "F0.0 SA0.0>1 F0.1 SA0.1>1+RG0.0<1 B0.0 W0.0 F0.2 SA0.2>1+RG0.1<1 B0.1 W0.1 RG0.2<1 \
             B0.2 W0.2",
            "RA1.0<0 F1.0 B1.0 W1.0 SG1.0>0+RA1.1<0 F1.1 B1.1 W1.1 SG1.1>0+RA1.2<0 F1.2 B1.2 W1.2 \
             SG1.2>0",
        ]
    );
}

fn words(list: &[Action]) -> String {
    list.iter().map(Action::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn reductions_are_posted_while_the_backward_runs() {
    let plan = SyncPlan {
        segments: vec![3, 2],
        tied: [(0, 0), (1, 1)].map(|(stage, segment)| TiedSegment { stage, segment }).to_vec(),
    };
    let schedule = lower(&ScheduleKind::GPipe.generate(2, 1).unwrap(), Some(&plan)).unwrap();
    assert_eq!(
        words(&schedule.actions[0]),
        "F0.0 SA0.0>1+RG0.0<1 B0.0/2 W0.0/2 G0/2 B0.0/1 W0.0/1 G0/1 B0.0/0 W0.0/0 \
         T0 G0/0 A0/2 A0/1 A0/0"
    );
    assert_eq!(
        words(&schedule.actions[1]),
        "RA1.0<0 F1.0 B1.0/1 W1.0/1 B1.0/0 W1.0/0 G1/0 SG1.0>0 T1 G1/1 A1/0 A1/1"
    );
    verify(&schedule).unwrap();
}

#[test]
fn two_tied_copies_on_one_stage_are_summed_once() {
    let plan = SyncPlan {
        segments: vec![2],
        tied: [(0, 0), (0, 1)].map(|(stage, segment)| TiedSegment { stage, segment }).to_vec(),
    };
    let schedule = lower(&ScheduleKind::OneFOneB.generate(1, 2).unwrap(), Some(&plan)).unwrap();
    verify(&schedule).unwrap();
    assert_eq!(
        words(&schedule.actions[0]),
        "F0.0 B0.0 W0.0 F0.1 B0.1/1 W0.1/1 B0.1/0 W0.1/0 T0 G0/1 G0/0 A0/1 A0/0"
    );
}

/// V-shaped: rank r of 2 holds stages r and 3 − r. B and W stand apart.
fn v_shaped(micro_batches: usize) -> Schedule {
    let f = |stage, micro_batch| Action::Compute(Compute::Forward { stage, micro_batch });
    let b = |stage, micro_batch| {
        Action::Compute(Compute::BackwardInput { stage, micro_batch, segment: None })
    };
    let w = |stage, micro_batch| {
        Action::Compute(Compute::BackwardWeight { stage, micro_batch, segment: None })
    };
    let all = 0..micro_batches;
    let list = |low: usize, high: usize| {
        let forwards = all.clone().flat_map(move |i| [f(low, i), f(high, i)]);
        let backwards = all.clone().flat_map(move |i| [b(high, i), b(low, i)]);
        let weights = all.clone().flat_map(move |i| [w(high, i), w(low, i)]);
        forwards.chain(backwards).chain(weights).collect()
    };
    Schedule {
        name: "v".into(),
        purpose: Purpose::Train,
        micro_batches,
        placement: vec![0, 1, 1, 0],
        in_flight_max: vec![2 * micro_batches; 2],
        sync: None,
        actions: vec![list(0, 3), list(1, 2)],
    }
}

#[test]
fn a_v_written_by_hand_lowers_without_deadlock() {
    let mut cases = 0;
    for micro_batches in 1..=8 {
        for is_tied in [false, true] {
            let schedule = lowered(&v_shaped(micro_batches), is_tied);
            let report = verify(&schedule).unwrap_or_else(|error| panic!("{error}"));
            // The turn at stages 1 and 2 needs no message.
            assert_eq!(report.messages, 4 * micro_batches);
            cases += 1;
        }
    }
    assert_eq!(cases, 8 * 2);
}
