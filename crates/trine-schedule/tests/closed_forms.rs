//! Closed forms against the simulators, for every generator, p ≤ 16 and m ≤ 64.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use trine_schedule::{
    Action, ClosedForm, Compute, Delivery, Purpose, Schedule, ScheduleError, ScheduleKind, Shape,
    StageCosts, UniformCosts, UniformStage, lower, simulate, step_times,
};

const fn stage(f: f64, b: f64, w: f64, transfer: f64) -> UniformStage {
    UniformStage { forward: f, backward_input: b, backward_weight: w, transfer }
}

/// Times within the range in which every form is exact: each of F, B and W the longest and the
/// shortest, up to a factor of 3, with transfers up to a fifth.
const BALANCED: [UniformStage; 8] = [
    stage(1.0, 1.0, 1.0, 0.0),
    stage(1.0, 1.0, 1.0, 0.125),
    stage(1.0, 3.0, 1.0, 0.2),
    stage(3.0, 1.0, 1.5, 0.05),
    stage(1.0, 1.25, 3.0, 0.2),
    stage(2.0, 2.5, 1.0, 0.1),
    stage(1.5, 3.0, 2.5, 0.0),
    stage(3.0, 2.25, 1.0, 0.2),
];

/// Times beyond it, where only some forms claim to be exact.
const EXTREME: [UniformStage; 3] =
    [stage(1.0, 1.0, 1.0, 5.0), stage(1.0, 8.0, 0.5, 0.5), stage(10.0, 1.0, 3.0, 0.0)];

fn training() -> impl Iterator<Item = ScheduleKind> {
    ScheduleKind::all().iter().filter(|i| i.purpose == Purpose::Train).map(|info| info.kind)
}

/// Calls `check` with every training schedule that is defined for p ≤ 16, m ≤ 64, v ≤ 4 (all p and m
/// for v ≤ 2, powers of two beyond), and says how often.
fn sweep(mut check: impl FnMut(ScheduleKind, Shape, &Schedule)) -> usize {
    let mut shapes = 0;
    for kind in training() {
        for (ranks, chunks) in (1..=16).flat_map(|p| (1..=4).map(move |v| (p, v))) {
            for micro_batches in 1..=64 {
                let sizes = [ranks, micro_batches];
                if chunks > 2 && !sizes.iter().all(|size: &usize| size.is_power_of_two()) {
                    continue;
                }
                let shape = Shape { ranks, chunks, micro_batches };
                if let Ok(schedule) = kind.generate_shape(shape) {
                    check(kind, shape, &schedule);
                    shapes += 1;
                }
            }
        }
    }
    shapes
}

/// The step's makespan, and the longest that one rank takes.
fn simulated(schedule: &Schedule, one: UniformStage) -> [f64; 2] {
    let times = step_times(schedule, &StageCosts::uniform(schedule.stages(), one)).unwrap();
    [times.makespan, times.rank_span_max()]
}

fn is_close(found: f64, expected: f64) -> bool {
    (found - expected).abs() <= 1e-9 * expected
}

#[test]
fn every_form_equals_the_simulation_where_it_says_so() {
    let (mut exact, mut estimates) = (0, 0);
    let shapes = sweep(|kind, shape, schedule| {
        let turn = shape.ranks + shape.chunks + shape.micro_batches;
        let others = [BALANCED[turn % 8], BALANCED[(turn + 3) % 8], EXTREME[turn % 3]];
        for one in BALANCED[..2].iter().chain(&others) {
            let form = kind.closed_form(&shape, one).unwrap();
            let [time, span] = simulated(schedule, *one);
            if form.exact {
                let ClosedForm { makespan, rank_span, .. } = form;
                assert!(is_close(makespan, time), "{kind} {shape:?} {one:?}: {makespan} ≠ {time}");
                let case = || format!("{kind} {shape:?} {one:?}: {rank_span} ≠ {span}");
                assert!(is_close(rank_span, span), "{}", case());
                exact += 1;
            } else {
                estimates += 1;
            }
        }
    });
    // 1,024 shapes for each of 5 kinds with one chunk and 1,024 more for breadth-first and ZB-V, …
    assert!(shapes > 7_800, "{shapes} shapes");
    // Of DualPipeV there are only estimates.
    assert!(exact > 4 * estimates, "{exact} exact, {estimates} estimates");
}

#[test]
fn forms_claim_to_be_exact_where_the_documentation_says() {
    let claims = |kind: ScheduleKind, m: usize, one: &UniformStage| {
        let chunks = kind.info().chunks_usual;
        let shape = Shape { ranks: 4, chunks, micro_batches: m };
        kind.closed_form(&shape, one).unwrap().exact
    };
    for kind in training() {
        let always = [ScheduleKind::GPipe, ScheduleKind::OneFOneB, ScheduleKind::BreadthFirst];
        for one in &BALANCED {
            assert_eq!(claims(kind, 8, one), kind != ScheduleKind::DualPipeV, "{kind} {one:?}");
        }
        assert_eq!(claims(kind, 8, &EXTREME[0]), always.contains(&kind), "{kind}");
    }
    for (kind, m, exact) in [
        (ScheduleKind::ZbH1, 1, true),
        (ScheduleKind::ZbH2, 3, false),
        (ScheduleKind::ZbH2, 4, true),
        (ScheduleKind::ZbV, 7, false),
        (ScheduleKind::ZbV, 8, true),
    ] {
        assert_eq!(claims(kind, m, &BALANCED[3]), exact, "{kind} m={m}");
    }
}

#[test]
fn estimates_are_near_the_simulation() {
    let mut worst: f64 = 0.0;
    sweep(|kind, shape, schedule| {
        let one = BALANCED[(shape.ranks + shape.micro_batches) % 8];
        let form = kind.closed_form(&shape, &one).unwrap();
        for (found, time) in
            [form.makespan, form.rank_span].into_iter().zip(simulated(schedule, one))
        {
            worst = worst.max((found / time - 1.0).abs());
        }
    });
    assert!(worst < 0.35, "{worst}");
}

#[test]
fn activations_in_flight_are_as_the_form_says() {
    let shapes = sweep(|kind, shape, schedule| {
        for (rank, list) in schedule.actions.iter().enumerate() {
            let (mut now, mut peak) = (0_usize, 0);
            for action in list {
                match action {
                    Action::Compute(Compute::Forward { .. }) => now += 1,
                    Action::Compute(Compute::BackwardWeight { .. }) => now -= 1,
                    _ => {}
                }
                peak = peak.max(now);
            }
            assert_eq!(peak, kind.in_flight_max(&shape, rank), "{kind} {shape:?} rank {rank}");
        }
    });
    assert!(shapes > 7_800, "{shapes} shapes");
}

#[test]
fn bubbles_are_ordered_as_published() {
    // Qi et al. (arXiv 2401.10241), figures 2, 3 and table 5: longest to shortest at p = 8, m = 32.
    let one = stage(1.0, 1.0, 1.0, 0.01);
    let at = |kind: ScheduleKind, chunks: usize| {
        let shape = Shape { ranks: 8, chunks, micro_batches: 32 };
        // The same rank's work, cut into chunks.
        let part = 1.0 / chunks as f64;
        let one = stage(part, part, part, one.transfer);
        let schedule = kind.generate_shape(shape).unwrap();
        let costs = StageCosts::uniform(schedule.stages(), one);
        let times = step_times(&schedule, &costs).unwrap();
        let kept = schedule.in_flight_max.iter().max().unwrap();
        (times.rank_span_max(), *kept as f64 / chunks as f64)
    };
    let (plain, looped) = (at(ScheduleKind::OneFOneB, 1), at(ScheduleKind::Interleaved, 2));
    let (h1, h2) = (at(ScheduleKind::ZbH1, 1), at(ScheduleKind::ZbH2, 1));
    let v = at(ScheduleKind::ZbV, 2);
    let spans = [plain.0, looped.0, h1.0, h2.0, v.0];
    let work = 96.0;
    assert!(spans[0] > spans[1] && spans[1] > spans[2] && spans[2] > spans[3], "{spans:?}");
    assert!((v.0 / h2.0 - 1.0).abs() < 0.01 && h2.0 < 1.005 * work, "{spans:?}");
    // 1F1B, ZB-H1 and ZB-V keep p micro-batches, ZB-H2 2p − 1, interleaved p (1 + (p − 1) / (p v)).
    assert_eq!([plain.1, h1.1, v.1, h2.1], [8.0, 8.0, 8.0, 15.0]);
    assert_eq!(looped.1, (2.0 * 7.0 + 8.0 + 1.0) / 2.0);
}

#[test]
fn the_fast_simulator_agrees_with_the_full_one() {
    let mut compared = 0;
    for kind in training() {
        for (p, m) in [(1, 1), (2, 4), (3, 6), (4, 8), (4, 16), (6, 12), (8, 16)] {
            let compute = match kind.generate(p, m) {
                Err(ScheduleError::Few { .. }) => continue,
                made => made.unwrap(),
            };
            let lowered = lower(&compute, None).unwrap();
            let costs = UniformCosts::new(&lowered);
            let full = simulate(&lowered, Delivery::Buffered, &costs).unwrap();
            let costs = StageCosts::uniform(compute.stages(), stage(1.0, 1.0, 1.0, 0.0));
            let fast = step_times(&compute, &costs).unwrap();
            assert_eq!(fast.makespan, full.makespan, "{kind} p={p} m={m}");
            assert_eq!(fast.busy, full.busy, "{kind} p={p} m={m}");
            assert!((fast.bubble_fraction() - full.bubble_fraction()).abs() < 1e-12);
            compared += 1;
        }
    }
    // DualPipeV has no schedule of one micro-batch on one rank.
    assert_eq!(compared, 8 * 7 - 1);
}

#[test]
fn shapes_that_are_not_defined_name_the_nearest() {
    for (kind, chunks, m, said) in [
        (ScheduleKind::ZbV, 1, 4, "zb-v has 2 stages on each rank, not 1; the nearest is 2"),
        (ScheduleKind::ZbH1, 3, 4, "zb-h1 has 1 stage on each rank, not 3; the nearest is 1"),
        (ScheduleKind::Interleaved, 2, 9, "multiples of its 4 ranks, not 9; the nearest is 8"),
        (ScheduleKind::Interleaved, 2, 1, "multiples of its 4 ranks, not 1; the nearest is 4"),
        (ScheduleKind::DualPipeV, 2, 7, "at least 8 micro-batches on 4 ranks, not 7"),
    ] {
        let shape = Shape { ranks: 4, chunks, micro_batches: m };
        let error = kind.generate_shape(shape).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        let form = kind.closed_form(&shape, &BALANCED[0]).unwrap_err();
        assert_eq!(form, error);
    }
    let zero = Shape { ranks: 4, chunks: 0, micro_batches: 4 };
    let error = ScheduleKind::Interleaved.generate_shape(zero).unwrap_err();
    assert!(matches!(error, ScheduleError::Zero { .. }), "{error}");
}

#[test]
fn costs_that_do_not_fit_are_refused() {
    let schedule = ScheduleKind::OneFOneB.generate(2, 2).unwrap();
    let mut costs = StageCosts::uniform(2, BALANCED[0]);
    costs.forward.pop();
    let error = step_times(&schedule, &costs).unwrap_err().to_string();
    assert!(error.contains("1 cost of forward for 2 stages, not 2"), "{error}");
    let mut costs = StageCosts::uniform(2, BALANCED[0]);
    costs.backward_weight[1] = f64::NAN;
    let error = step_times(&schedule, &costs).unwrap_err().to_string();
    assert!(error.contains("backward_weight of stage 1 costs NaN"), "{error}");
    let lowered = lower(&schedule, None).unwrap();
    let error = step_times(&lowered, &StageCosts::uniform(2, BALANCED[0])).unwrap_err();
    assert!(matches!(error, ScheduleError::Lowered { .. }), "{error}");
    let mut misplaced = schedule.clone();
    misplaced.actions[0][0] = Action::Compute(Compute::Forward { stage: 1, micro_batch: 0 });
    let error = step_times(&misplaced, &StageCosts::uniform(2, BALANCED[0])).unwrap_err();
    assert!(error.to_string().contains("`F1.0` is not its work"), "{error}");
    let mut circle = schedule;
    circle.actions[0].rotate_right(2);
    let error = step_times(&circle, &StageCosts::uniform(2, BALANCED[0]));
    assert!(matches!(error, Err(ScheduleError::Stuck { .. })), "{error:?}");
}
