//! Zero-bubble schedules made for measured times: shorter steps, never longer ones, in the memory of the handcrafted
//! lists.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use trine_schedule::{
    Delivery, Order, Schedule, ScheduleError, ScheduleKind, Shape, UniformCosts, UniformStage,
    lower, simulate, verify,
};

const TIMED: [ScheduleKind; 3] = [ScheduleKind::ZbH1, ScheduleKind::ZbH2, ScheduleKind::ZbV];

fn shape(kind: ScheduleKind, ranks: usize, micro_batches: usize) -> Shape {
    Shape { ranks, chunks: kind.info().chunks_usual, micro_batches }
}

/// How long a step takes as it is executed.
fn step(lists: &Schedule, times: &UniformStage) -> f64 {
    let whole = lower(lists, None).unwrap();
    simulate(&whole, Delivery::Buffered, &UniformCosts::of(&whole, times)).unwrap().makespan
}

#[test]
fn a_step_is_shorter_where_another_order_fills_the_waits() {
    for (kind, ranks, micro_batches, times, usual, fitted) in [
        (ScheduleKind::ZbV, 4, 4, [1.0, 1.0, 2.0, 0.0], 39.0, 36.0),
        (ScheduleKind::ZbV, 8, 8, [1.0, 1.0, 2.0, 0.0], 83.0, 74.0),
        (ScheduleKind::ZbH2, 4, 8, [1.0, 1.0, 3.0, 1.0], 58.0, 52.0),
    ] {
        let (shape, times) = (shape(kind, ranks, micro_batches), UniformStage::new(times).unwrap());
        assert_eq!(step(&kind.generate_shape(shape).unwrap(), &times), usual, "{kind} {times}");
        let lists = kind.generate_for(shape, &times).unwrap();
        assert_eq!(step(&lists, &times), fitted, "{kind} {times}");
        assert_eq!(Order::Named(kind).generate(shape, Some(&times)).unwrap(), lists);
    }
}

#[test]
fn no_step_is_longer_and_no_rank_keeps_more() {
    let all = [
        [1.0, 1.0, 2.0, 0.0],
        [2.0, 1.0, 1.0, 0.1],
        [1.0, 1.6, 0.7, 0.3],
        [1.0, 3.0, 1.0, 0.0],
        [1.0, 1.0, 3.0, 1.0],
    ];
    let (mut cases, mut shorter) = (0, 0);
    for kind in TIMED {
        for (ranks, micro_batches) in (1..=6).flat_map(|ranks| [1, 2, 5, 8].map(|m| (ranks, m))) {
            for times in all {
                let shape = shape(kind, ranks, micro_batches);
                let times = UniformStage::new(times).unwrap();
                let usual = kind.generate_shape(shape).unwrap();
                let fitted = kind.generate_for(shape, &times).unwrap();
                fitted.check_order().unwrap();
                assert!(step(&fitted, &times) <= step(&usual, &times), "{kind} {shape:?} {times}");
                let bounds = fitted.in_flight_max.iter().zip(&usual.in_flight_max);
                assert!(bounds.clone().all(|(peak, bound)| peak <= bound), "{kind} {shape:?}");
                shorter += usize::from(fitted != usual);
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 3 * 6 * 4 * 5);
    assert!(shorter >= 40, "{shorter}");
}

#[test]
fn equal_times_give_the_handcrafted_lists() {
    for kind in TIMED {
        for (ranks, micro_batches) in (1..=8).flat_map(|ranks| [1, 3, 8, 20].map(|m| (ranks, m))) {
            for times in [[1.0, 1.0, 1.0, 0.0], [0.3, 0.3, 0.3, 0.1]] {
                let shape = shape(kind, ranks, micro_batches);
                let times = UniformStage::new(times).unwrap();
                let fitted = kind.generate_for(shape, &times).unwrap();
                assert_eq!(fitted, kind.generate_shape(shape).unwrap(), "{kind} {shape:?}");
                verify(&lower(&fitted, None).unwrap()).unwrap();
            }
        }
    }
}

#[test]
fn times_are_written_as_people_write_them() {
    let times = UniformStage::new([1e300, 1.0, 1.5, 1e-7]).unwrap();
    assert_eq!(times.to_string(), "F 1e300, B 1, W 1.5, message 1e-7");
    let times = UniformStage::new([1000.0, 0.25, 12345678.5, 0.0]).unwrap();
    assert_eq!(times.to_string(), "F 1000, B 0.25, W 12345678.5, message 0");
}

#[test]
fn times_that_there_cannot_be_and_kinds_that_take_none_are_refused() {
    for wrong in [
        [0.0, 1.0, 1.0, 0.0],
        [1.0, -1.0, 1.0, 0.0],
        [1.0, 1.0, f64::NAN, 0.0],
        [1.0, 1.0, 1.0, -0.1],
        [1.0, 1.0, 1.0, f64::INFINITY],
    ] {
        let error = UniformStage::new(wrong).unwrap_err();
        assert!(matches!(error, ScheduleError::Times { .. }), "{error}");
    }
    let times = UniformStage::new([1.0, 2.0, 1.0, 0.0]).unwrap();
    let mut refused = 0;
    for info in ScheduleKind::all().iter().filter(|info| !TIMED.contains(&info.kind)) {
        let shape = shape(info.kind, 2, 4);
        let error = info.kind.generate_for(shape, &times).unwrap_err().to_string();
        let all = "is made without times; those that take them: zb-h1, zb-h2, zb-v";
        assert_eq!(error, format!("{} {all}", info.name));
        refused += 1;
    }
    assert_eq!(refused, 6);
}
