//! Properties over random schedules: the text round-trips, and nothing makes the crate panic.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

mod common;

use common::lowered;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::BTreeSet;
use trine_schedule::{
    Action, Compute, Delivery, Message, Payload, Purpose, Reduction, Schedule, ScheduleKind,
    SyncPlan, TiedSegment, Transfer, UniformCosts, draw, lower, simulate, verify,
};

/// A number that usually exists, and sometimes is absurd.
fn number() -> impl Strategy<Value = usize> {
    prop_oneof![40 => 0_usize..4, 1 => any::<usize>()]
}

fn transfer() -> impl Strategy<Value = Transfer> {
    let payload = prop_oneof![Just(Payload::Activation), Just(Payload::Gradient)];
    (payload, number(), number(), number()).prop_map(|(payload, stage, micro_batch, peer)| {
        Transfer { payload, stage, micro_batch, peer }
    })
}

fn action() -> impl Strategy<Value = Action> {
    let segment = || proptest::option::of(number());
    prop_oneof![
        (number(), number()).prop_map(|(stage, micro_batch)| Action::Compute(Compute::Forward {
            stage,
            micro_batch
        })),
        (number(), number(), segment()).prop_map(|(stage, micro_batch, segment)| {
            Action::Compute(Compute::BackwardInput { stage, micro_batch, segment })
        }),
        (number(), number(), segment()).prop_map(|(stage, micro_batch, segment)| {
            Action::Compute(Compute::BackwardWeight { stage, micro_batch, segment })
        }),
        transfer().prop_map(|send| Action::Message(Message::Send(send))),
        transfer().prop_map(|recv| Action::Message(Message::Recv(recv))),
        (transfer(), transfer())
            .prop_map(|(send, recv)| Action::Message(Message::Exchange { send, recv })),
        number().prop_map(|stage| Action::Sync(Reduction::ReduceTied { stage })),
        (number(), number())
            .prop_map(|(stage, segment)| Action::Sync(Reduction::ReduceGrad { stage, segment })),
        (number(), number())
            .prop_map(|(stage, segment)| Action::Sync(Reduction::AwaitGrad { stage, segment })),
    ]
}

fn sync() -> impl Strategy<Value = SyncPlan> {
    let tied = (number(), number()).prop_map(|(stage, segment)| TiedSegment { stage, segment });
    (proptest::collection::vec(number(), 0..5), proptest::collection::vec(tied, 0..3))
        .prop_map(|(segments, tied)| SyncPlan { segments, tied })
}

/// Anything that has the type of a schedule.
fn any_schedule() -> impl Strategy<Value = Schedule> {
    let lists = proptest::collection::vec(proptest::collection::vec(action(), 0..12), 0..5);
    let numbers = || proptest::collection::vec(number(), 0..5);
    let purpose = prop_oneof![Just(Purpose::Train), Just(Purpose::Evaluate)];
    (purpose, number(), numbers(), numbers(), proptest::option::of(sync()), lists).prop_map(
        |(purpose, micro_batches, placement, in_flight_max, sync, actions)| Schedule {
            name: "any".into(),
            purpose,
            micro_batches,
            placement,
            in_flight_max,
            sync,
            actions,
        },
    )
}

/// Random lists whose frame fits: stages, ranks and bounds agree.
fn framed_schedule() -> impl Strategy<Value = Schedule> {
    (any_schedule(), 1_usize..4, 1_usize..4, any::<bool>()).prop_map(
        |(mut schedule, ranks, micro_batches, has_sync)| {
            schedule.micro_batches = micro_batches;
            schedule.actions.resize(ranks, Vec::new());
            schedule.placement = (0..ranks).collect();
            schedule.in_flight_max = vec![1; ranks];
            schedule.sync = (has_sync && schedule.purpose == Purpose::Train)
                .then(|| SyncPlan::one_bucket_each(ranks));
            schedule
        },
    )
}

/// Verifies, lowers, simulates and prints; only the absence of a panic is asked.
fn exercise(schedule: &Schedule) {
    let verified = verify(schedule);
    if let Err(error) = &verified {
        assert!(!error.to_string().is_empty());
    }
    let _ = lower(schedule, schedule.sync.as_ref());
    for delivery in [Delivery::Buffered, Delivery::Rendezvous] {
        let timeline = simulate(schedule, delivery, &UniformCosts::new(schedule));
        if let Ok(timeline) = &timeline {
            assert!(draw::ascii(timeline, 80).lines().all(|line| line.len() < 200));
            assert!(draw::svg(timeline).ends_with("</svg>\n"));
        }
        assert!(verified.is_err() || timeline.is_ok(), "verified, but stuck");
    }
}

/// A right schedule with a few random edits: near enough to reach the late checks.
fn edited() -> impl Strategy<Value = Schedule> {
    let edit = (any::<Index>(), any::<Index>(), any::<Index>(), proptest::option::of(action()));
    let kinds = prop_oneof![
        Just(ScheduleKind::GPipe),
        Just(ScheduleKind::OneFOneB),
        Just(ScheduleKind::BreadthFirst),
        Just(ScheduleKind::ZbH1),
        Just(ScheduleKind::ZbV),
    ];
    let edits = proptest::collection::vec(edit, 1..4);
    (kinds, 1_usize..5, 1_usize..5, any::<bool>(), edits).prop_map(|(kind, p, m, tied, edits)| {
        let mut schedule = lowered(&kind.generate(p, m).unwrap(), tied);
        for (rank, from, to, replacement) in edits {
            let rank = rank.index(p);
            let list = &mut schedule.actions[rank];
            if list.is_empty() {
                continue;
            }
            let moved = list.remove(from.index(list.len()));
            let to = to.index(list.len() + 1);
            list.insert(to, replacement.unwrap_or(moved));
        }
        schedule
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn actions_round_trip(action in action()) {
        prop_assert_eq!(action.to_string().parse::<Action>(), Ok(action));
    }

    #[test]
    fn schedules_round_trip(schedule in prop_oneof![framed_schedule(), edited()]) {
        let text = schedule.to_string();
        prop_assert_eq!(text.parse::<Schedule>().unwrap(), schedule);
        prop_assert!(text.lines().skip(7).all(|line| line.len() <= 100 + 3 * 20));
    }

    #[test]
    fn arbitrary_lists_never_panic(schedule in prop_oneof![any_schedule(), framed_schedule()]) {
        exercise(&schedule);
    }

    #[test]
    fn edited_schedules_never_panic_and_what_is_verified_runs(schedule in edited()) {
        exercise(&schedule);
    }

    #[test]
    fn arbitrary_text_never_panics(text in "[a-zA-Z0-9 #./<>+\n-]{0,80}") {
        let _ = text.parse::<Schedule>();
        let _ = format!("schedule x\npurpose train\nmicro-batches 1\nplacement 0\nin-flight 1\n{text}")
            .parse::<Schedule>();
        let _ = text.parse::<Action>();
    }

    #[test]
    fn random_placements_lower_and_verify(
        placement in proptest::collection::vec(0_usize..3, 1..7),
        micro_batches in 1_usize..6,
        is_tied in any::<bool>(),
    ) {
        // Every rank has a stage.
        let used: BTreeSet<usize> = placement.iter().copied().collect();
        let placement: Vec<usize> =
            placement.iter().map(|rank| used.range(..rank).count()).collect();
        // Every rank runs what can be run next on its stages, forwards and backwards in any mixture.
        let schedule = greedy(&placement, micro_batches);
        let schedule = lowered(&schedule, is_tied);
        let report = verify(&schedule);
        prop_assert!(report.is_ok(), "{}", report.unwrap_err());
    }
}

/// Compute lists for any placement, B and W apart, made by running everything in one possible order.
fn greedy(placement: &[usize], micro_batches: usize) -> Schedule {
    let stages = placement.len();
    let ranks = placement.iter().max().unwrap() + 1;
    let mut actions = vec![Vec::new(); ranks];
    for micro_batch in 0..micro_batches {
        for (stage, &rank) in placement.iter().enumerate() {
            actions[rank].push(Action::Compute(Compute::Forward { stage, micro_batch }));
        }
        if micro_batch % 2 == 1 {
            continue;
        }
        for stage in (0..stages).rev() {
            let b = Action::Compute(Compute::BackwardInput { stage, micro_batch, segment: None });
            actions[placement[stage]].push(b);
        }
    }
    for micro_batch in (1..micro_batches).step_by(2) {
        for stage in (0..stages).rev() {
            let b = Action::Compute(Compute::BackwardInput { stage, micro_batch, segment: None });
            actions[placement[stage]].push(b);
        }
    }
    for (stage, &rank) in placement.iter().enumerate() {
        for micro_batch in 0..micro_batches {
            let w = Action::Compute(Compute::BackwardWeight { stage, micro_batch, segment: None });
            actions[rank].push(w);
        }
    }
    let in_flight_max = (0..ranks)
        .map(|rank| micro_batches * placement.iter().filter(|&&home| home == rank).count())
        .collect();
    Schedule {
        name: "greedy".into(),
        purpose: Purpose::Train,
        micro_batches,
        placement: placement.to_vec(),
        in_flight_max,
        sync: None,
        actions,
    }
}
