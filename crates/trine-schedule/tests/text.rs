//! The text form: golden text, users' text, and what is said about mistakes.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

mod common;

use common::lowered;
use trine_schedule::{
    Action, ParseError, Purpose, Schedule, ScheduleError, ScheduleKind, SyncPlan, TiedSegment,
    generate, lower, verify,
};

#[test]
fn the_text_of_a_schedule() {
    let plan = SyncPlan {
        segments: vec![2, 1],
        tied: [(0, 0), (1, 0)].map(|(stage, segment)| TiedSegment { stage, segment }).to_vec(),
    };
    let schedule = lower(&generate::one_f_one_b(2, 2).unwrap(), Some(&plan)).unwrap();
    let text = "\
schedule 1f1b
purpose train
micro-batches 2
placement 0 1
in-flight 2 1
segments 2 1
tied 0/0 1/0
rank 0
  F0.0 SA0.0>1 F0.1 SA0.1>1+RG0.0<1 B0.0 W0.0 RG0.1<1 B0.1/1 W0.1/1 G0/1 B0.1/0 W0.1/0 T0 G0/0 A0/1
  A0/0
rank 1
  RA1.0<0 F1.0 B1.0 W1.0 SG1.0>0+RA1.1<0 F1.1 B1.1 W1.1 SG1.1>0 T1 G1/0 A1/0
";
    assert_eq!(schedule.to_string(), text);
    assert_eq!(text.parse::<Schedule>().unwrap(), schedule);
}

#[test]
fn every_generated_schedule_round_trips() {
    let mut cases = 0;
    for info in ScheduleKind::all() {
        for stages in 1..=8 {
            for micro_batches in [2, 3, 4, 8] {
                // Interleaved takes groups of as many as ranks, DualPipeV at least two of them.
                let micro_batches = micro_batches * stages;
                let compute = info.kind.generate(stages, micro_batches).unwrap();
                let schedule = match info.purpose {
                    Purpose::Evaluate => lower(&compute, None).unwrap(),
                    Purpose::Train => lowered(&compute, true),
                };
                for schedule in [compute, schedule] {
                    assert_eq!(schedule.to_string().parse::<Schedule>().unwrap(), schedule);
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 9 * 8 * 4 * 2);
}

#[test]
fn users_write_comments_and_break_lines_as_they_like() {
    let text = "
        # backwards of both micro-batches in reverse order
        schedule lifo   # any one word
        purpose train
        micro-batches 2
        placement 0
        in-flight 2
        rank 0 F0.0 F0.1   # the list may begin here
          B0.1 W0.1

          B0.0 W0.0
    ";
    let schedule: Schedule = text.parse().unwrap();
    assert_eq!(schedule.actions[0].len(), 6);
    verify(&lower(&schedule, Some(&SyncPlan::one_bucket_each(1))).unwrap()).unwrap();
}

const HEAD: &str =
    "schedule x\npurpose train\nmicro-batches 2\nplacement 0 1\nin-flight 2 1\nrank 0\n";

/// A wrong line after a right head; line, column, the word found, the nearest.
const MISTAKES: &[(&str, usize, usize, &str, &str)] = &[
    ("  F0.0 F0,1", 7, 8, "F0,1", "F0.1"),
    ("  f0.1", 7, 3, "f0.1", "F0.1"),
    ("  F0.0 B0-1", 7, 8, "B0-1", "B0.1"),
    ("  SA0.1", 7, 3, "SA0.1", "SA0.1>0"),
    ("  SA0.1<1", 7, 3, "SA0.1<1", "SA0.1>1"),
    ("  SA0.1>1+RG0.0>1", 7, 3, "SA0.1>1+RG0.0>1", "SA0.1>1+RG0.0<1"),
    ("  G0.1", 7, 3, "G0.1", "G0/1"),
    ("  W0.1/", 7, 3, "W0.1/", "W0.1"),
    ("  F0.+1", 7, 3, "F0.+1", "SA0.0>0+RA1.0<0"),
    ("rnk 1", 7, 1, "rnk", "rank"),
    ("rank 2", 7, 6, "2", "1"),
    ("rank", 7, 1, "rank", "rank 1"),
    ("tied 0-1", 7, 6, "0-1", "0/1"),
    ("segments 1 x", 7, 12, "x", "0"),
    ("purpose train", 7, 1, "purpose", "#"),
];

#[test]
fn mistakes_are_located_and_the_nearest_word_is_named() {
    for &(line, number, column, token, near) in MISTAKES {
        let error = format!("{HEAD}{line}\n").parse::<Schedule>().unwrap_err();
        let ScheduleError::Parse(error) = error else { panic!("{line}: {error}") };
        let ParseError { line: l, column: c, token: t, nearest: n, .. } = &error;
        let found = (*l, *c, t.as_str());
        assert_eq!(found, (number, column, token), "{error}");
        assert_eq!(n, near, "{error}");
    }
    assert_eq!(MISTAKES.len(), 15);
}

#[test]
fn the_message_reads_well() {
    let error = "F0,3".parse::<Action>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 1, column 1: `F0,3` is not an action (F<stage>.<micro-batch>); the nearest is `F0.3`"
    );
    let error = "schedule x\npurpose training\n".parse::<Schedule>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 2, column 9: `training` is not a purpose; the nearest is `train`"
    );
}

#[test]
fn what_is_missing_at_the_end_is_named() {
    for (text, key) in
        [("purpose train\nrank 0\n", "schedule"), ("schedule x\npurpose train\n", "rank")]
    {
        assert_eq!(
            text.parse::<Schedule>().unwrap_err().to_string(),
            format!("line 3, column 1: the text ends here, but `{key}` is missing")
        );
    }
    // The frame is read, but does not fit together: only one of two ranks has a list.
    let error = HEAD.parse::<Schedule>().unwrap_err();
    assert!(
        error.to_string().contains("stage 1 is placed on rank 1, but the last is 0"),
        "{error}"
    );
}
