//! Wrong schedules: each is refused, and for the right reason.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

mod common;

use common::{lowered, plan};
use trine_schedule::{
    Action, Compute, Delivery, Message, Payload, Schedule, ScheduleError, ScheduleKind, Transfer,
    UniformCosts, VerifyError, VerifyErrorKind as Kind, add_grad_sync, add_transfers,
    fuse_exchanges, generate, lower, simulate, verify,
};

fn one_f_one_b(stages: usize, micro_batches: usize) -> Schedule {
    let compute = ScheduleKind::OneFOneB.generate(stages, micro_batches).unwrap();
    let schedule = lowered(&compute, true);
    verify(&schedule).unwrap();
    schedule
}

fn position(schedule: &Schedule, rank: usize, word: &str) -> usize {
    let action: Action = word.parse().unwrap();
    schedule.actions[rank].iter().position(|a| *a == action).unwrap()
}

fn remove(schedule: &mut Schedule, rank: usize, word: &str) {
    let position = position(schedule, rank, word);
    schedule.actions[rank].remove(position);
}

fn swap(schedule: &mut Schedule, rank: usize, first: &str, second: &str) {
    let (a, b) = (position(schedule, rank, first), position(schedule, rank, second));
    schedule.actions[rank].swap(a, b);
}

fn replace(schedule: &mut Schedule, rank: usize, word: &str, by: &[&str]) {
    let position = position(schedule, rank, word);
    let by = by.iter().map(|word| word.parse::<Action>().unwrap());
    schedule.actions[rank].splice(position..=position, by);
}

/// Moves an action to stand before another of the same rank.
fn move_before(schedule: &mut Schedule, rank: usize, word: &str, before: &str) {
    let from = position(schedule, rank, word);
    let action = schedule.actions[rank].remove(from);
    let to = position(schedule, rank, before);
    schedule.actions[rank].insert(to, action);
}

type Mutation = fn(&mut Schedule);

/// A mutation of the 1F1B schedule of 3 stages (1, 2 and 3 segments, first and last tied) and 4
/// micro-batches, the kind of error, and the rank and action it names.
#[rustfmt::skip]
const MUTANTS: &[(&str, Mutation, Kind, usize, &str)] = &[
    ("dropped send",
        |s| remove(s, 0, "SA0.0>1"),
        Kind::UnmatchedReceive, 1, "RA1.0<0"),
    ("dropped receive",
        |s| remove(s, 1, "RA1.0<0"),
        Kind::UnmatchedSend, 0, "SA0.0>1"),
    ("dropped message",
        |s| { remove(s, 0, "SA0.0>1"); remove(s, 1, "RA1.0<0"); },
        Kind::MissingInput, 1, "F1.0"),
    ("swapped receives",
        |s| {
            replace(s, 2, "RA2.0<1", &["RA2.1<1"]);
            replace(s, 2, "SG2.0>1+RA2.1<1", &["SG2.0>1+RA2.0<1"]);
        },
        Kind::TransferOrder, 2, "RA2.1<1"),
    ("swapped send",
        |s| {
            replace(s, 0, "SA0.0>1", &["SA0.1>1"]);
            // The other of the two now carries the first micro-batch.
            let list = &mut s.actions[0];
            for action in list.iter_mut().skip(2) {
                if let Action::Message(Message::Send(t)) | Action::Message(Message::Exchange { send: t, .. }) = action
                    && t.micro_batch == 1 { t.micro_batch = 0; break; }
            }
        },
        Kind::TransferOrder, 1, "RA1.0<0"),
    ("sent before it is computed",
        |s| swap(s, 0, "F0.0", "SA0.0>1"),
        Kind::SendTooEarly, 0, "SA0.0>1"),
    ("message sent twice",
        |s| replace(s, 0, "SA0.0>1", &["SA0.0>1", "SA0.0>1"]),
        Kind::Duplicate, 0, "SA0.0>1"),
    ("message to the wrong rank",
        |s| replace(s, 0, "SA0.0>1", &["SA0.0>2"]),
        Kind::OutOfPlace, 0, "SA0.0>2"),
    ("message from before the first stage",
        |s| replace(s, 0, "SA0.0>1", &["SG0.0>1"]),
        Kind::OutOfPlace, 0, "SG0.0>1"),
    ("swapped W before B",
        |s| swap(s, 1, "B1.0", "W1.0"),
        Kind::Order, 1, "W1.0"),
    ("B before F",
        |s| swap(s, 2, "F2.0", "B2.0"),
        Kind::Order, 2, "B2.0"),
    ("segments forwards",
        |s| { swap(s, 1, "B1.3/1", "B1.3/0"); swap(s, 1, "W1.3/1", "W1.3/0"); },
        Kind::Order, 1, "B1.3/0"),
    ("B of a segment twice",
        |s| replace(s, 1, "B1.3/0", &["B1.3/1", "B1.3/0"]),
        Kind::Duplicate, 1, "B1.3/1"),
    ("W twice",
        |s| replace(s, 1, "W1.0", &["W1.0", "W1.0"]),
        Kind::Duplicate, 1, "W1.0"),
    ("F twice",
        |s| replace(s, 0, "F0.0", &["F0.0", "F0.0"]),
        Kind::Duplicate, 0, "F0.0"),
    ("stage of another rank",
        |s| replace(s, 0, "F0.0", &["F1.0"]),
        Kind::OutOfPlace, 0, "F1.0"),
    ("micro-batch that is not there",
        |s| replace(s, 0, "F0.0", &["F0.4"]),
        Kind::OutOfPlace, 0, "F0.4"),
    ("segment that is not there",
        |s| replace(s, 1, "G1/0", &["G1/2"]),
        Kind::OutOfPlace, 1, "G1/2"),
    ("reduced too early",
        |s| move_before(s, 1, "G1/1", "W1.3/1"),
        Kind::ReduceTooEarly, 1, "G1/1"),
    ("reduced a micro-batch too early",
        |s| move_before(s, 2, "G2/1", "B2.3/2"),
        Kind::ReduceTooEarly, 2, "G2/1"),
    ("tied reduction too early",
        |s| { move_before(s, 0, "T0", "F0.3"); },
        Kind::ReduceTooEarly, 0, "T0"),
    ("reduced twice",
        |s| replace(s, 1, "G1/0", &["G1/0", "G1/0"]),
        Kind::Duplicate, 1, "G1/0"),
    ("tied after the reduction",
        |s| swap(s, 0, "T0", "G0/0"),
        Kind::TiedAfterReduce, 0, "G0/0"),
    ("reduction not awaited",
        |s| remove(s, 1, "A1/1"),
        Kind::MissingAwait, 1, "G1/1"),
    ("awaited too early",
        |s| swap(s, 1, "G1/0", "A1/0"),
        Kind::AwaitTooEarly, 1, "A1/0"),
];

#[test]
fn every_mutant_is_refused_for_its_reason() {
    for (what, mutate, kind, rank, word) in MUTANTS {
        let mut schedule = one_f_one_b(3, 4);
        mutate(&mut schedule);
        let error = verify(&schedule).expect_err(what);
        assert_eq!(error.kind, *kind, "{what}: {error}");
        assert_eq!(error.rank, Some(*rank), "{what}: {error}");
        assert_eq!(error.action.as_ref().unwrap().to_string(), *word, "{what}");
        let action = schedule.actions[*rank][error.position.unwrap()];
        assert_eq!(action.to_string(), *word, "{what}");
        assert!(error.to_string().contains(&format!("{word} <--")), "{what}: {error}");
    }
    assert_eq!(MUTANTS.len(), 25);
}

/// What is removed, the kind of error, the rank, and what is expected there.
#[rustfmt::skip]
const MISSING: &[(&[&str], Kind, usize, &str)] = &[
    (&["F2.1"], Kind::Missing, 2, "`F2.1`"),
    (&["B0.0", "W0.0"], Kind::Missing, 0, "`B0.0`"),
    (&["W1.0"], Kind::Missing, 1, "`W1.0`"),
    (&["W1.3/0"], Kind::Missing, 1, "`W1.3/0`"),
    (&["G1/0"], Kind::MissingReduce, 1, "`G1/0`"),
    (&["G0/0"], Kind::MissingReduce, 0, "`G0/0`"),
    (&["T2"], Kind::MissingReduce, 2, "tied segment 2/2"),
];

#[test]
fn what_is_missing_has_a_rank_but_no_position() {
    for &(words, kind, rank, expected) in MISSING {
        let mut schedule = one_f_one_b(3, 4);
        words.iter().for_each(|word| remove(&mut schedule, rank, word));
        let error = verify(&schedule).expect_err(expected);
        let found = (error.kind, error.rank, error.position);
        assert_eq!(found, (kind, Some(rank), None), "{error}");
        assert!(error.expected.contains(expected), "{error}");
    }
    assert_eq!(MISSING.len(), 7);
}

#[test]
fn an_evaluation_has_no_backward_and_a_schedule_without_plan_no_reduction() {
    let mut schedule = lower(&generate::forward_only(2, 2).unwrap(), None).unwrap();
    schedule.actions[1].push("B1.0".parse().unwrap());
    assert_eq!(verify(&schedule).unwrap_err().kind, Kind::Unexpected);

    let mut schedule = lower(&generate::gpipe(2, 2).unwrap(), None).unwrap();
    schedule.actions[1].push("G1/0".parse().unwrap());
    assert_eq!(verify(&schedule).unwrap_err().kind, Kind::Unexpected);
}

#[test]
fn two_ranks_that_order_collectives_differently_are_both_named() {
    // The last rank posts an untied reduction after the tied one, the first before it.
    let compute = generate::one_f_one_b(3, 4).unwrap();
    let mut plan = plan(3, true);
    plan.segments[0] = 2;
    let mut schedule =
        add_grad_sync(fuse_exchanges(add_transfers(&compute).unwrap()), &plan).unwrap();
    verify(&schedule).unwrap();
    move_before(&mut schedule, 2, "G2/0", "A2/1");
    let error = verify(&schedule).unwrap_err();
    assert_eq!((error.kind, error.rank), (Kind::CollectiveOrder, Some(2)), "{error}");
    assert!(error.to_string().contains("rank 0"), "{error}");
}

/// 1F1B with another number of forwards before the first backward; everything else as declared.
fn with_warm_up(stages: usize, micro_batches: usize, change: isize) -> Schedule {
    let mut schedule = generate::one_f_one_b(stages, micro_batches).unwrap();
    for stage in 0..stages {
        let warm_up = (stages - stage - 1).saturating_add_signed(change).min(micro_batches);
        let mut list = Vec::new();
        for i in 0..micro_batches + warm_up {
            if i < micro_batches {
                list.push(Action::Compute(Compute::Forward { stage, micro_batch: i }));
            }
            if let Some(micro_batch) = i.checked_sub(warm_up) {
                let segment = None;
                list.push(Action::Compute(Compute::BackwardInput { stage, micro_batch, segment }));
                list.push(Action::Compute(Compute::BackwardWeight { stage, micro_batch, segment }));
            }
        }
        schedule.actions[stage] = list;
    }
    lower(&schedule, None).unwrap()
}

fn makespan(schedule: &Schedule) -> f64 {
    let costs = UniformCosts::new(schedule);
    simulate(schedule, Delivery::Buffered, &costs).unwrap().makespan
}

#[test]
fn a_longer_warm_up_is_seen_in_memory_only() {
    let mut cases = 0;
    for stages in 2..=8 {
        for micro_batches in 2..=32 {
            let ideal = ((micro_batches + stages - 1) * 3) as f64;
            assert_eq!(makespan(&with_warm_up(stages, micro_batches, 0)), ideal);
            verify(&with_warm_up(stages, micro_batches, 0)).unwrap();

            let longer = with_warm_up(stages, micro_batches, 1);
            assert_eq!(makespan(&longer), ideal, "time alone does not tell");
            let error = verify(&longer).unwrap_err();
            assert_eq!(error.kind, Kind::InFlightAboveBound, "{error}");

            let shorter = with_warm_up(stages, micro_batches, -1);
            assert!(makespan(&shorter) > ideal);
            let error = verify(&shorter).unwrap_err();
            assert_eq!(error.kind, Kind::InFlightBelowBound, "{error}");
            cases += 1;
        }
    }
    assert_eq!(cases, 217);
}

/// Every exchange replaced by its send, then its receive.
fn without_exchanges(schedule: &Schedule) -> Schedule {
    let split = |action: &Action| match *action {
        Action::Message(Message::Exchange { send, recv }) => {
            vec![Message::Send(send).into(), Message::Recv(recv).into()]
        }
        other => vec![other],
    };
    let actions = schedule.actions.iter().map(|list| list.iter().flat_map(split).collect());
    Schedule { actions: actions.collect(), ..schedule.clone() }
}

#[test]
fn plain_sends_and_receives_deadlock_under_rendezvous_only() {
    let (mut stuck, mut free) = (0, 0);
    for stages in 1..=8 {
        for micro_batches in 1..=32 {
            let compute = generate::one_f_one_b(stages, micro_batches).unwrap();
            let plain = without_exchanges(&lower(&compute, None).unwrap());
            simulate(&plain, Delivery::Buffered, &UniformCosts::new(&plain)).unwrap();
            match verify(&plain) {
                Ok(_) => free += 1,
                Err(error) => {
                    assert_eq!(error.kind, Kind::Deadlock(Delivery::Rendezvous), "{error}");
                    stuck += 1;
                }
            }
        }
    }
    // Every case with at least two stages and two micro-batches.
    assert_eq!((stuck, free), (217, 39));
}

#[test]
fn a_deadlock_shows_where_every_rank_waits() {
    let compute = generate::one_f_one_b(2, 2).unwrap();
    let plain = without_exchanges(&lower(&compute, None).unwrap());
    let error = verify(&plain).unwrap_err();
    assert_eq!(
        error.to_string(),
        "deadlock with rendezvous sends: rank 0, position 3, `SA0.1>1`: expected all ranks to \
         finish; rank 0 at step 3 (SA0.1>1) waits for rank 1 at step 5 (RA1.1<0); \
         rank 1 at step 4 (SG1.0>0) waits for rank 0 at step 4 (RG0.0<1)\n\
         step | rank 0      rank 1\n   \
            0 | F0.0        RA1.0<0\n   \
            1 | SA0.0>1     F1.0\n   \
            2 | F0.1        B1.0\n   \
            3 | SA0.1>1 <-- W1.0\n   \
            4 | RG0.0<1     SG1.0>0 <--\n   \
            5 | B0.0        RA1.1<0\n   \
            6 | W0.0        F1.1\n   \
            7 | RG0.1<1     B1.1"
    );
}

#[test]
fn a_true_circle_is_found_under_both_deliveries() {
    // Both ranks receive before they send what the other waits for.
    let mut schedule = lower(&generate::gpipe(2, 1).unwrap(), None).unwrap();
    schedule.actions[0] =
        ["RG0.0<1", "F0.0", "SA0.0>1", "B0.0", "W0.0"].map(|word| word.parse().unwrap()).to_vec();
    let error = verify(&schedule).unwrap_err();
    assert_eq!(error.kind, Kind::Deadlock(Delivery::Buffered), "{error}");
    let error = simulate(&schedule, Delivery::Buffered, &UniformCosts::new(&schedule)).unwrap_err();
    assert!(matches!(error, ScheduleError::Stuck { .. }));
}

#[test]
fn compute_lists_that_wait_in_a_circle_cannot_be_lowered() {
    let mut schedule = generate::gpipe(2, 1).unwrap();
    schedule.actions[0].rotate_left(1);
    let error = lower(&schedule, None).unwrap_err();
    assert!(matches!(error, ScheduleError::Stuck { .. }), "{error}");
    let circle = "rank 0 at step 0 (B0.0) waits for rank 1 at step 2 (W1.0); \
                  rank 1 at step 0 (F1.0) waits for rank 0 at step 2 (F0.0)";
    assert!(error.to_string().contains(circle), "{error}");
    // An action that no rank has is waited for in vain.
    let mut schedule = generate::gpipe(2, 1).unwrap();
    schedule.actions[0].remove(0);
    let error = lower(&schedule, None).unwrap_err().to_string();
    assert!(
        error.contains("rank 1 at step 0 (F1.0) waits for `F0.0`, which is in no list"),
        "{error}"
    );
}

#[test]
fn passes_refuse_what_is_lowered_already() {
    let compute = generate::gpipe(2, 2).unwrap();
    let lowered = lower(&compute, Some(&plan(2, false))).unwrap();
    for error in [
        lower(&lowered, None).unwrap_err(),
        add_grad_sync(lowered.clone(), &plan(2, false)).unwrap_err(),
    ] {
        assert!(matches!(error, ScheduleError::Lowered { .. }), "{error}");
    }
    let evaluation = generate::forward_only(2, 2).unwrap();
    let error = lower(&evaluation, Some(&plan(2, false))).unwrap_err();
    assert!(error.to_string().contains("an evaluation has no gradients to reduce"), "{error}");
    let error = lower(&compute, Some(&plan(3, false))).unwrap_err();
    assert!(error.to_string().contains("given for 3 stages, not for 2"), "{error}");
}

#[test]
fn generators_refuse_nothing_and_too_much() {
    for info in ScheduleKind::all() {
        for (ranks, micro_batches) in [(0, 1), (1, 0)] {
            let error = info.kind.generate(ranks, micro_batches).unwrap_err();
            let stages = ranks * info.chunks_usual;
            assert_eq!(error, ScheduleError::Zero { stages, micro_batches });
        }
        let error = info.kind.generate(1 << 20, 1 << 20).unwrap_err();
        let most = format!("at most {} micro-batches", 16 / info.chunks_usual);
        assert!(error.to_string().contains(&most), "{error}");
    }
}

#[test]
fn a_name_that_is_not_known_gets_the_nearest() {
    for info in ScheduleKind::all() {
        assert_eq!(info.name.parse::<ScheduleKind>().unwrap(), info.kind);
        let schedule = info.kind.generate(2, 4).unwrap();
        assert_eq!((schedule.name.as_str(), schedule.purpose), (info.name, info.purpose));
    }
    for (asked, nearest) in [("1F1", "1f1b"), ("Gpip", "gpipe"), ("forward", "forward-only")] {
        let error = asked.parse::<ScheduleKind>().unwrap_err().to_string();
        assert!(error.contains(&format!("did you mean `{nearest}`?")), "{error}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let breaks: [(Mutation, &str); 6] = [
        (|s| s.placement[1] = 7, "stage 1 is placed on rank 7, but the last is 1"),
        (|s| s.in_flight_max.truncate(1), "1 bound of activations in flight for 2 ranks"),
        (|s| s.micro_batches = 0, "each must be at least 1"),
        (|s| s.name = "my schedule".into(), "is not one word"),
        (|s| s.sync.as_mut().unwrap().tied[0].segment = 9, "stage 0 has 1 segments"),
        (|s| s.sync.as_mut().unwrap().segments[1] = usize::MAX, "at most 65536"),
    ];
    for (mutate, expected) in breaks {
        let mut schedule = one_f_one_b(2, 2);
        mutate(&mut schedule);
        let VerifyError { kind, expected: found, .. } = verify(&schedule).unwrap_err();
        assert_eq!(kind, Kind::Shape);
        assert!(found.contains(expected), "{found}");
    }
    // A peer that does not exist is the simulator's to refuse as well.
    let mut schedule = one_f_one_b(2, 2);
    let nowhere = Transfer { payload: Payload::Activation, stage: 0, micro_batch: 0, peer: 9 };
    schedule.actions[0].push(Action::Message(Message::Send(nowhere)));
    let costs = UniformCosts::new(&schedule);
    let error = simulate(&schedule, Delivery::Buffered, &costs).unwrap_err();
    assert!(matches!(error, ScheduleError::Shape { .. }), "{error}");
    let error = simulate(&schedule, Delivery::Buffered, &|_: usize, _: usize, _: &Action| -1.0);
    assert!(matches!(error.unwrap_err(), ScheduleError::Shape { .. }));
}
