//! The published runs of Qi et al. (2401.10241) on the schedules themselves: ordered as measured.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, its helpers too")]

use std::collections::BTreeMap;
use trine_plan::{Constants, Planner, clusters, published, stacks};
use trine_schedule::step_times;

const RUNS: &str = include_str!("../data/published/runs.csv");

/// What each schedule of a group takes.
type Values = Vec<(f64, String)>;

/// Measured and planned, by group: same model, same micro-batches.
#[derive(Default)]
struct Group {
    times: (Values, Values),
    memory: (Values, Values),
}

fn groups() -> BTreeMap<String, Group> {
    let (clusters, stacks) = (clusters(&[]).unwrap(), stacks().unwrap());
    let constants = Constants::built_in().unwrap();
    let rows = published::read(RUNS, &clusters, &stacks).unwrap();
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.row_id.starts_with("ZB-")) {
        let run = row.run.as_ref().unwrap();
        let (cluster, stack) = (&clusters[run.cluster], &stacks[run.stack]);
        let planner = Planner::new(&run.model, cluster, stack, &constants).unwrap();
        let schedule = run.layout.schedule().unwrap();
        let costs = planner.stage_costs(&run.layout, &schedule.placement);
        // Ranks begin the next step one after the other: the update is validated afterwards.
        let span = step_times(&schedule, &costs).unwrap().rank_span_max();
        let memory = planner.estimate(&run.layout).memory.allocated();
        let key = format!("{:.1}B m={}", run.model.params / 1e9, run.layout.micro_batches());
        let group = groups.entry(key).or_default();
        group.times.0.push((row.time_s.unwrap(), schedule.name.clone()));
        group.times.1.push((span, schedule.name.clone()));
        group.memory.0.push((row.memory.unwrap().0, schedule.name.clone()));
        group.memory.1.push((memory, schedule.name));
    }
    groups
}

/// Asserts that whatever was measured more than `noise` apart is planned in the same order.
fn check(group: &str, (measured, planned): &(Values, Values), noise: f64) {
    assert_eq!(measured.len(), 4, "{group}");
    let value = |name: &str| planned.iter().find(|one| one.1 == name).unwrap().0;
    let mut ordered = 0;
    for (less, low) in measured {
        for (_, high) in measured.iter().filter(|(more, _)| *more > (1.0 + noise) * less) {
            assert!(value(low) < value(high), "{group}: {low} before {high}: {planned:?}");
            ordered += 1;
        }
    }
    assert!(ordered >= 4, "{group}: only {ordered} of 6 pairs differ by more than {noise}");
}

#[test]
fn schedules_are_ordered_as_measured_in_every_group() {
    let groups = groups();
    assert_eq!(groups.len(), 6);
    for (name, group) in &groups {
        // Two runs at m = 64 are 0.2 % and 2.2 % apart, and planned the other way round by less than 2 %.
        check(name, &group.times, 0.025);
        check(name, &group.memory, 0.0);
    }
}
