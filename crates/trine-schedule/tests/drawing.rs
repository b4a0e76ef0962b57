//! The drawings, and the costs that they show.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use trine_schedule::{
    Action, Delivery, Schedule, ScheduleError, SyncPlan, TiedSegment, UniformCosts, draw, generate,
    lower, simulate,
};

fn pipeline(stages: usize, micro_batches: usize) -> Schedule {
    lower(&generate::one_f_one_b(stages, micro_batches).unwrap(), None).unwrap()
}

#[test]
fn a_timeline_in_characters() {
    let schedule = pipeline(3, 4);
    let timeline = simulate(&schedule, Delivery::Buffered, &UniformCosts::new(&schedule)).unwrap();
    let drawn = draw::ascii(&timeline, 100);
    assert_eq!(
        drawn,
        "\
1f1b: 3 stages on 3 ranks, 4 micro-batches; makespan 18, bubble 33.3 %
rank 0 |F0-F1-F2-............B0=W0~F3-B1=W1~...B2=W2~...B3=W3~|
rank 1 |...F0-F1-......B0=W0~F2-B1=W1~F3-B2=W2~...B3=W3~......|
rank 2 |......F0-B0=W0~F1-B1=W1~F2-B2=W2~F3-B3=W3~............|
time    0                 6                 12              18
F- forward, B= input gradient, W~ weight gradient, . idle; numbers are micro-batches
"
    );
    // Narrower than the numbers need: letters only, and it says so.
    let narrow = draw::ascii(&timeline, 40);
    assert!(narrow.lines().skip(1).take(4).all(|line| line.len() <= 40), "{narrow}");
    assert!(narrow.contains("too narrow for some numbers"), "{narrow}");
}

#[test]
fn idle_columns_match_the_bubble() {
    let schedule = pipeline(4, 8);
    let timeline = simulate(&schedule, Delivery::Buffered, &UniformCosts::new(&schedule)).unwrap();
    let drawn = draw::ascii(&timeline, 200);
    let rows: Vec<&str> = drawn.lines().filter(|line| line.starts_with("rank")).collect();
    assert_eq!(rows.len(), 4);
    for row in rows {
        // Three columns for each of the 33 units, 9 of them idle on every rank.
        assert_eq!(row.matches('.').count(), 3 * 9, "{row}");
    }
}

#[test]
fn reductions_run_beside_the_backward_and_are_awaited() {
    let plan = SyncPlan {
        segments: vec![2, 2],
        tied: [(0, 0), (1, 1)].map(|(stage, segment)| TiedSegment { stage, segment }).to_vec(),
    };
    let schedule = lower(&generate::gpipe(2, 1).unwrap(), Some(&plan)).unwrap();
    let mut costs = UniformCosts::new(&schedule);
    costs.reduce_grad = 1.5;
    costs.reduce_tied = 0.5;
    let timeline = simulate(&schedule, Delivery::Buffered, &costs).unwrap();
    // Rank 0: F 0–1, waits for rank 1's backward (2–4), segment 1 until 5, its reduction beside
    // segment 0 (5–6) and the tied sum (6–6.5) until 6.5, then the tied bucket until 8.
    assert_eq!(timeline.makespan, 8.0);
    let end = |rank: usize, word: &str| {
        let action: Action = word.parse().unwrap();
        let position = schedule.actions[rank].iter().position(|a| *a == action).unwrap();
        timeline.spans[rank][position].end
    };
    let ends = [end(0, "W0.0/1"), end(0, "G0/1"), end(0, "W0.0/0"), end(0, "T0"), end(0, "G0/0")];
    assert_eq!(ends, [5.0, 6.5, 6.0, 6.5, 8.0]);
    // Rank 1 is done with its backward at 4 and waits for rank 0 in the tied sum.
    assert_eq!([end(1, "G1/0"), end(1, "T1"), end(1, "A1/1")], [5.5, 6.5, 8.0]);
    // Waiting is not work: F, B and W are 3, the tied sum 0.5.
    assert_eq!(timeline.busy, [3.5, 3.5]);

    let drawn = draw::ascii(&timeline, 100);
    assert_eq!(drawn.lines().filter(|line| line.starts_with("reduce |")).count(), 2, "{drawn}");
    assert!(drawn.contains("G0/1+"), "{drawn}");
}

#[test]
fn latency_delays_by_delivery() {
    let schedule = pipeline(2, 1);
    let mut costs = UniformCosts::new(&schedule);
    costs.latency = 0.5;
    // F F B W B W, and one message each way.
    for delivery in [Delivery::Buffered, Delivery::Rendezvous] {
        let timeline = simulate(&schedule, delivery, &costs).unwrap();
        assert_eq!((timeline.makespan, timeline.busy), (7.0, vec![3.0, 3.0]));
    }
    // The sender goes on at once, or is held until the receiver has the message.
    let schedule = lower(&generate::forward_only(2, 1).unwrap(), None).unwrap();
    for (delivery, sent) in [(Delivery::Buffered, 1.0), (Delivery::Rendezvous, 1.5)] {
        let timeline = simulate(&schedule, delivery, &costs).unwrap();
        assert_eq!((timeline.spans[0][1].end, timeline.makespan), (sent, 2.5));
    }
}

#[test]
fn measured_durations_are_replayed() {
    let schedule = pipeline(2, 2);
    // As if measured: everything on rank 1 takes three times as long, messages take 0.25 to copy.
    let measured: Vec<Vec<f64>> = schedule
        .actions
        .iter()
        .enumerate()
        .map(|(rank, list)| {
            let one = |action: &Action| match action.is_compute() {
                true => [1.0, 3.0][rank],
                false => 0.25,
            };
            list.iter().map(one).collect()
        })
        .collect();
    let replay = |rank: usize, position: usize, _: &Action| measured[rank][position];
    let timeline = simulate(&schedule, Delivery::Buffered, &replay).unwrap();
    for (rank, durations) in measured.iter().enumerate() {
        assert_eq!(timeline.busy[rank], durations.iter().sum::<f64>());
    }
    // F0, send, [copy, F, B, W, exchange, F, B, W, send on rank 1], copy, B, W on rank 0.
    let expected = 1.0 + 0.25 + (0.25 + 9.0 + 0.25 + 9.0 + 0.25) + 0.25 + 2.0;
    assert_eq!(timeline.makespan, expected);
    let share = timeline.busy.iter().sum::<f64>() / (2.0 * expected);
    assert!((timeline.bubble_fraction() - (1.0 - share)).abs() < 1e-12);
}

#[test]
fn costs_that_are_not_costs_are_refused() {
    let schedule = pipeline(2, 2);
    for value in [-1.0, f64::NAN, f64::INFINITY] {
        let costs = |rank: usize, position: usize, _: &Action| match (rank, position) {
            (1, 2) => value,
            _ => 1.0,
        };
        let error = simulate(&schedule, Delivery::Buffered, &costs).unwrap_err();
        let found = matches!(error, ScheduleError::Cost { rank: 1, position: 2, .. });
        assert!(found, "{error}");
    }
}

#[test]
fn an_svg_has_a_box_for_each_piece_of_work() {
    let schedule = pipeline(4, 8);
    let timeline = simulate(&schedule, Delivery::Buffered, &UniformCosts::new(&schedule)).unwrap();
    let svg = draw::svg(&timeline);
    assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""));
    assert!(svg.ends_with("</svg>\n"));
    assert!(svg.contains("<title>1f1b: 4 stages on 4 ranks, 8 micro-batches; makespan 33"));
    // Background, 4 rows, 4 words of the legend, and F, B, W of 8 micro-batches on 4 ranks.
    assert_eq!(svg.matches("<rect").count(), 1 + 4 + 4 + 3 * 8 * 4);
    assert_eq!(
        svg.matches("<rect").count() + svg.matches("<line").count(),
        svg.matches("/>").count()
    );
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    for word in ["rank 3", "F forward", "idle", ">time<"] {
        assert!(svg.contains(word), "{word}");
    }
}
