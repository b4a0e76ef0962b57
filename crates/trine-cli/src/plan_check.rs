//! Planned against measured, as a table.

use crate::output::{Align, Table, counted, human_bytes};
use trine_trainer::{PlanCheck, RankCheck, RankMemory};

/// More ranks than this are shown by the first of each stage.
const RANKS_SHOWN_MAX: usize = 8;

/// The same in a line: what was planned, and how far it was off.
pub(crate) fn line(check: &PlanCheck) -> String {
    let measured = 1e3 * check.step_s_measured;
    let step = match (check.step_s_planned, &check.unplanned) {
        (Some(planned), _) => format!(
            "a step takes {measured:.1} ms, planned {:.1} ms ({:.2}); bubble {}, planned {}",
            1e3 * planned,
            check.step_s_measured / planned,
            share(check.bubble_measured),
            share(check.bubble_planned),
        ),
        (None, Some(why)) => format!("a step takes {measured:.1} ms, not planned: {why}"),
        (None, None) => format!("a step takes {measured:.1} ms"),
    };
    let off = check.ranks.iter().filter(|rank| !is_exact(rank)).count();
    let memory = match off {
        0 => "memory is as planned".to_owned(),
        off => format!("other bytes than planned: {off} of {}", counted(check.ranks.len(), "rank")),
    };
    format!("plan: {step}; {memory} (--verbose shows it by rank)")
}

/// The table of a run's first steps.
pub(crate) fn table(check: &PlanCheck) -> String {
    let mut text = format!(
        "planned against measured after {}; machine: {}\n",
        counted(check.after_steps as usize, "step"),
        check.machine
    );
    if let Some(why) = &check.unplanned {
        text += &format!("  time and bubble are not planned: {why}\n");
    }
    text += &indented(&times(check));
    text += &indented(&bytes(check));
    text
}

fn times(check: &PlanCheck) -> String {
    let mut table = Table::new(&[
        ("", Align::Left),
        ("planned", Align::Right),
        ("measured", Align::Right),
        ("measured / planned", Align::Right),
    ]);
    let seconds = |value: f64| format!("{:.1} ms", 1e3 * value);
    let (planned, measured) = (check.step_s_planned, check.step_s_measured);
    table.row([
        format!("step (median of {})", check.timed_steps),
        or_none(planned.map(seconds)),
        seconds(measured),
        or_none(planned.map(|planned| format!("{:.2}", measured / planned))),
    ]);
    table.row([
        "pipeline bubble".into(),
        share(check.bubble_planned),
        share(check.bubble_measured),
        String::new(),
    ]);
    table.render()
}

fn share(value: Option<f64>) -> String {
    or_none(value.map(|value| format!("{:.1} %", 100.0 * value)))
}

fn or_none(value: Option<String>) -> String {
    value.unwrap_or_else(|| "–".into())
}

fn bytes(check: &PlanCheck) -> String {
    let mut table = Table::new(&[
        ("rank", Align::Left),
        ("weights", Align::Right),
        ("gradients", Align::Right),
        ("master", Align::Right),
        ("moments", Align::Right),
        ("buffers", Align::Right),
        ("activations, peak", Align::Right),
        ("arena", Align::Right),
    ]);
    for rank in shown(&check.ranks) {
        let (planned, measured) = (&rank.planned, &rank.measured);
        let state = |of: fn(&RankMemory) -> usize| exact(Some(of(planned)), Some(of(measured)));
        table.row([
            format!("{} ({})", rank.rank, rank.place),
            state(|memory| memory.state.weights),
            state(|memory| memory.state.gradients),
            state(|memory| memory.state.master),
            state(|memory| memory.state.moments),
            exact(planned.buffers, measured.buffers),
            near(planned.activations, measured.activations),
            near(planned.arena, measured.arena),
        ]);
    }
    let mut text = table.render();
    if check.ranks.len() > RANKS_SHOWN_MAX {
        let off = check.ranks.iter().filter(|rank| !is_exact(rank)).count();
        text += &format!(
            "the first rank of each stage of {}; {} with other bytes than planned\n",
            check.ranks.len(),
            if off == 0 { "none".to_owned() } else { off.to_string() }
        );
    }
    text
}

/// Whether everything that is planned to the byte is so.
fn is_exact(rank: &RankCheck) -> bool {
    let (planned, measured) = (&rank.planned, &rank.measured);
    planned.state == measured.state
        && planned.buffers.is_none_or(|bytes| Some(bytes) == measured.buffers)
}

fn shown(ranks: &[RankCheck]) -> Vec<&RankCheck> {
    let stage = |rank: &RankCheck| rank.planned;
    let mut seen: Vec<RankMemory> = Vec::new();
    let mut is_new = |rank: &RankCheck| {
        let new = !seen.contains(&stage(rank));
        if new {
            seen.push(stage(rank));
        }
        new
    };
    let few = ranks.len() <= RANKS_SHOWN_MAX;
    ranks.iter().filter(|rank| few || is_new(rank) || !is_exact(rank)).collect()
}

/// What must be equal: once if it is, else both.
fn exact(planned: Option<usize>, measured: Option<usize>) -> String {
    match (planned, measured) {
        (Some(planned), Some(measured)) if planned == measured => human(planned),
        (Some(planned), Some(measured)) => format!("{planned} B, not {measured} B"),
        (planned, measured) => near(planned, measured),
    }
}

/// Planned, and how far the measured is from it.
fn near(planned: Option<usize>, measured: Option<usize>) -> String {
    match (planned, measured) {
        (Some(planned), Some(measured)) if planned > 0 => {
            let off = 100.0 * (measured as f64 / planned as f64 - 1.0);
            format!("{} {off:+.1} %", human(planned))
        }
        (Some(planned), Some(measured)) => format!("{}, not {}", human(planned), human(measured)),
        (None, Some(measured)) => format!("{} (not planned)", human(measured)),
        (_, None) => "–".into(),
    }
}

fn human(bytes: usize) -> String {
    human_bytes(bytes as u64)
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_equal_is_said_once_and_what_is_not_planned_is_said_so() {
        assert_eq!(exact(Some(2048), Some(2048)), "2.0 KiB");
        assert_eq!(exact(Some(2048), Some(2049)), "2048 B, not 2049 B");
        assert_eq!(near(Some(1000), Some(1100)), "1000 B +10.0 %");
        assert_eq!(near(None, Some(1024)), "1.0 KiB (not planned)");
        assert_eq!(exact(None, Some(0)), "0 B (not planned)");
    }
}
