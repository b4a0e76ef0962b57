//! Schedules of one's own: what is filled in, what a run takes, and what is said of mistakes.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

mod common;

use common::lowered;
use trine_schedule::{
    Action, Purpose, Schedule, ScheduleError, ScheduleKind, generate, lower, verify,
};

/// Lists of F, B and W that are 1F1B of two stages.
const LISTS: &str = "schedule mine
rank 0
  F0.0 F0.1 B0.0 W0.0
  F0.2 B0.1 W0.1 B0.2 W0.2
rank 1
  F1.0 B1.0 W1.0 F1.1 B1.1 W1.1 F1.2 B1.2 W1.2
";

fn named(name: &str, schedule: Schedule) -> Schedule {
    Schedule { name: name.into(), ..schedule }
}

#[test]
fn lists_alone_give_the_whole_schedule() {
    let mut cases = 0;
    for info in ScheduleKind::all().iter().filter(|info| info.purpose == Purpose::Train) {
        for ranks in 1..=5 {
            let whole = info.kind.generate(ranks, 3 * ranks).unwrap();
            let own = Schedule::compute(info.name, whole.actions.clone()).unwrap();
            assert_eq!(own, whole, "{} {ranks}", info.name);
            own.check_order().unwrap();
            cases += 1;
        }
    }
    assert_eq!(cases, 8 * 5);
    let read: Schedule = LISTS.parse().unwrap();
    assert_eq!(read, named("mine", generate::one_f_one_b(2, 3).unwrap()));
    // Each key may be given without the others.
    for key in ["micro-batches 3", "placement 0 1", "in-flight 2 1", "purpose train"] {
        assert_eq!(format!("{key}\n{LISTS}").parse::<Schedule>().unwrap(), read, "{key}");
    }
    assert_eq!(
        format!("in-flight 3 1\n{LISTS}").parse::<Schedule>().unwrap().in_flight_max,
        [3, 1]
    );
}

#[test]
fn messages_that_are_there_are_kept() {
    let plain = lower(&generate::gpipe(3, 2).unwrap(), None).unwrap();
    // Rank 0 receives both gradients before it computes with the first: allowed, and not what is added.
    let mut eager = plain.clone();
    let list = &mut eager.actions[0];
    let late = list.iter().position(|action| action.to_string() == "RG0.1<1").unwrap();
    let recv = list.remove(late);
    let early = list.iter().position(|action| action.to_string() == "B0.0").unwrap();
    list.insert(early, recv);
    assert_ne!(eager, plain);
    eager.check_order().unwrap();
    assert_eq!(lower(&eager, None).unwrap(), eager);
    let reduced = lowered(&eager, true);
    let is_message = |action: &&Action| action.transfers() != (None, None);
    let messages = |schedule: &Schedule| -> Vec<Action> {
        schedule.actions.iter().flatten().filter(is_message).copied().collect()
    };
    assert_eq!(messages(&reduced), messages(&eager));
    assert_eq!(verify(&reduced).unwrap().buckets, 1 + 2 + 3);
}

#[test]
fn a_stage_is_on_one_rank_and_none_is_left_out() {
    let wrong = |from: &str, to: &str| {
        let text = LISTS.replace(from, to);
        text.parse::<Schedule>().unwrap_err().in_text(&text)
    };
    assert_eq!(
        wrong("F1.1", "F0.1"),
        "line 6: rank 1, position 3: `F0.1`, but the forwards of stage 0 before it are on rank 0; a stage has one rank"
    );
    let gap = wrong("F1.", "F18446744073709551615.");
    assert!(gap.contains("no rank has a forward of stage 1; stages are numbered from 0"), "{gap}");
    // Numbers are no sizes of memory.
    let text = LISTS.replace("F1.2", "F1.18446744073709551615");
    let error = text.parse::<Schedule>().unwrap().check_order().unwrap_err().to_string();
    assert!(
        error.contains("18446744073709551615 pairs of stage and micro-batch; a step"),
        "{error}"
    );
    let error = Schedule::compute("two words", vec![vec![]]).unwrap_err().to_string();
    assert!(error.contains("\"two words\" is not one word"), "{error}");
}

#[test]
fn what_a_run_cannot_train_by_is_refused_with_its_place() {
    let refused = |text: &str| {
        let schedule: Schedule = text.parse().unwrap();
        schedule.check_order().unwrap_err().in_text(text)
    };
    let reduced = lowered(&generate::gpipe(2, 2).unwrap(), false);
    let error = refused(&reduced.to_string());
    assert!(error.contains("it reduces gradients (rank 0, position "), "{error}");
    let error = refused(&format!("segments 1 1\n{LISTS}"));
    assert!(error.contains("it reduces gradients (`segments`)"), "{error}");
    let error = refused(&lower(&generate::forward_only(2, 2).unwrap(), None).unwrap().to_string());
    assert!(error.contains("it is an evaluation"), "{error}");
    let error = refused(&format!("{LISTS}rank 2\n"));
    assert!(error.contains("rank 2 of 3 has no stage"), "{error}");
    let idle: Schedule = format!("{LISTS}rank 2\n").parse().unwrap();
    let error = verify(&lower(&idle, None).unwrap()).unwrap_err().to_string();
    assert!(error.contains("rank 2 of 3 has no stage"), "{error}");
    let error = refused(&LISTS.replace("B0.2 W0.2", "W0.2 B0.2"));
    assert!(error.starts_with("line 4: wrong order: rank 0, position "), "{error}");
    assert!(error.contains("`W0.2`: expected `B0.2` before it"), "{error}");
    let error = refused(&format!("in-flight 3 1\n{LISTS}"));
    assert!(error.contains("expected a peak of 3 as declared, not 2"), "{error}");
    // Rank 1 wants the last micro-batch before it hands back a gradient.
    let stuck =
        LISTS.replace("F1.0 B1.0 W1.0 F1.1 B1.1 W1.1 F1.2", "F1.0 F1.1 F1.2 B1.0 W1.0 B1.1 W1.1");
    let error = refused(&stuck);
    assert!(error.starts_with("line 3: the schedule cannot be executed"), "{error}");
    assert!(
        error.contains(
            "rank 0 at step 2 (B0.0) waits for rank 1 at step 4 (W1.0); \
             rank 1 at step 2 (F1.2) waits for rank 0 at step 4 (F0.2)"
        ),
        "{error}"
    );
    let schedule: Schedule = stuck.parse().unwrap();
    assert!(matches!(schedule.check_order(), Err(ScheduleError::Stuck { .. })));
}

/// Stages may lie on ranks in any way: an evaluation goes through them all the same.
#[test]
fn evaluations_run_on_any_placement() {
    let mut cases = 0;
    for stages in 1..=5_usize {
        // Every map of stages to ranks that leaves no rank out.
        for code in 0..stages.pow(stages as u32) {
            let placement: Vec<usize> =
                (0..stages).map(|stage| code / stages.pow(stage as u32) % stages).collect();
            let ranks = placement.iter().max().unwrap() + 1;
            if (0..ranks).any(|rank| !placement.contains(&rank)) {
                continue;
            }
            for micro_batches in [1, 3, 4] {
                let forward = generate::forward_only_on(&placement, micro_batches).unwrap();
                let report = verify(&lower(&forward, None).unwrap());
                assert_eq!(report.unwrap().pairs, stages * micro_batches, "{placement:?}");
                cases += 1;
            }
        }
    }
    // Ordered partitions of 1 to 5 stages.
    assert_eq!(cases, 3 * (1 + 3 + 13 + 75 + 541));
}
