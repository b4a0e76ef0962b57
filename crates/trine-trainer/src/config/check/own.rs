//! What a schedule of one's own asks of the rest, and times for which one is made.

use super::super::Times;
use super::Check;
use trine_mesh::plural;
use trine_schedule::{Schedule, ScheduleError};

impl Check<'_> {
    /// Times for which the schedule is made, if there are some.
    pub(super) fn times(&mut self) {
        let layout = &self.config.layout;
        let (given, checked) = match &layout.times {
            Times::Measured => (format!("{:?}", Times::MEASURED), layout.schedule.check_timed()),
            Times::Given(times) => {
                let takes = |times: Option<_>| layout.schedule.check_times(times.as_ref());
                (format!("{times:?}"), self.config.stage_times().and_then(takes))
            }
        };
        let Err(error) = checked else { return };
        let nearest = match error {
            ScheduleError::Untimed { .. } => "[]",
            _ => "[1.0, 1.0, 1.0, 0.0]",
        };
        self.report("layout.times", given, error.to_string(), nearest);
    }

    /// Those of a schedule of one's own, which has its ranks and their stages.
    pub(super) fn own_stages(&mut self, own: &Schedule) {
        let (layout, layers) = (&self.config.layout, self.config.model.layers);
        let each: Vec<usize> = (0..own.ranks()).map(|rank| own.stages_of(rank).count()).collect();
        let (asked, stages, schedule) = (layout.virtual_stages, own.stages(), self.own_name(own));
        if layout.pp != own.ranks() {
            let rule = format!(
                "{schedule} has lists of {} {}",
                own.ranks(),
                plural(own.ranks() as u64, "rank")
            );
            self.report("layout.pp", layout.pp, rule, own.ranks());
        } else if asked != 0 && each.iter().any(|stages| *stages != asked) {
            let rule = format!("{schedule} has {each:?} stages on its ranks");
            self.report("layout.virtual", asked, rule, 0);
        } else if stages > layers {
            let rule = format!(
                "has {stages} stages, and model.layers = {layers}{}; every stage needs a layer",
                self.given("model.layers")
            );
            self.report(
                "layout.schedule",
                format!("\"{}\"", own.name),
                rule,
                format!("model.layers = {stages}"),
            );
        } else if !layout.layers.is_empty() {
            self.layers(&layout.layers, stages, format!("the {stages} stages of {schedule}:"));
        }
    }

    /// A schedule of one's own in a rule: `layout.schedule = "mine" (--schedule file:mine.txt)`.
    fn own_name(&self, own: &Schedule) -> String {
        format!("layout.schedule = \"{}\"{}", own.name, self.given("layout.schedule"))
    }

    /// A schedule of one's own has as many micro-batches as a step.
    pub(super) fn own_micro_batches(&mut self, own: &Schedule, given: usize) {
        let (batch, has) = (&self.config.batch, own.micro_batches);
        if given == has {
            return;
        }
        let dp = self.config.layout.dp;
        let rule = format!(
            "gives {given} {} of a rank with layout.dp × batch.micro = {dp}{} × {}{}, and {} has {has}",
            plural(given as u64, "micro-batch"),
            self.given("layout.dp"),
            batch.micro,
            self.given("batch.micro"),
            self.own_name(own)
        );
        let each = batch.global / dp;
        let divided = each.is_multiple_of(has).then(|| format!("batch.micro = {}", each / has));
        let other = format!("batch.global = {}", has * dp * batch.micro);
        let nearest: Vec<String> = divided.into_iter().chain([other]).collect();
        self.report("batch.global", batch.global, rule, nearest.join(" or "));
    }
}
