//! Predicted against published, row by row and in sum.

use crate::published::{MemoryKind, Outcome, PublishedRun};
use crate::{Cluster, Constants, Estimate, PlanError, Planner, Stack};
use std::collections::BTreeMap;

/// What is needed to plan published runs.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// The machines.
    pub clusters: &'a [Cluster],
    /// The software.
    pub stacks: &'a [Stack],
    /// What was calibrated.
    pub constants: &'a Constants,
}

/// One row beside its prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared<'a> {
    /// The row.
    pub row: &'a PublishedRun,
    /// The prediction, or why there is none.
    pub estimate: Result<Estimate, String>,
}

/// The summary. Errors are shares: |predicted − published| / published.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Rows of the file.
    pub rows: usize,
    /// Rows with a published and a predicted time.
    pub time_rows: usize,
    /// Median error of the time.
    pub time_median_abs_err: Option<f64>,
    /// 90th percentile of it.
    pub time_p90_abs_err: Option<f64>,
    /// Rows with a published and a predicted memory.
    pub memory_rows: usize,
    /// Median error of the memory.
    pub memory_median_abs_err: Option<f64>,
    /// 90th percentile of it.
    pub memory_p90_abs_err: Option<f64>,
    /// Rows that say whether they fitted.
    pub oom_rows: usize,
    /// Share of them predicted rightly.
    pub oom_accuracy: Option<f64>,
    /// Mean of the two shares of right answers: among those that fitted, and among those that did not.
    pub oom_balanced_accuracy: Option<f64>,
    /// Rank correlation of predicted and published times where a group (same model, devices, sequence and batch) has
    /// at least three timed rows: group, rows, correlation.
    pub spearman_by_group: Vec<(String, usize, f64)>,
    /// How much slower the row that the plan calls fastest was than the fastest, by group: group, rows, share.
    pub best_layout_regret_by_group: Vec<(String, usize, f64)>,
}

impl World<'_> {
    /// Plans every row.
    ///
    /// # Errors
    /// A device or stack without constants.
    pub fn compare<'a>(&self, rows: &'a [PublishedRun]) -> Result<Vec<Compared<'a>>, PlanError> {
        rows.iter().map(|row| Ok(Compared { row, estimate: self.estimate(row)? })).collect()
    }

    fn estimate(&self, row: &PublishedRun) -> Result<Result<Estimate, String>, PlanError> {
        Ok(match &row.run {
            Ok(run) => {
                let (cluster, stack) = (&self.clusters[run.cluster], &self.stacks[run.stack]);
                let planner = Planner::new(&run.model, cluster, stack, self.constants)?;
                Ok(planner.estimate(&run.layout))
            }
            Err(why) => Err(why.clone()),
        })
    }
}

impl Compared<'_> {
    /// Predicted over published time, minus one.
    pub fn time_error(&self) -> Option<f64> {
        Some(self.estimate.as_ref().ok()?.time.step / self.row.time_s? - 1.0)
    }

    /// The predicted bytes that the published figure counts.
    pub fn memory_predicted(&self) -> Option<f64> {
        let memory = &self.estimate.as_ref().ok()?.memory;
        Some(match self.row.memory?.1 {
            MemoryKind::Allocated => memory.allocated(),
            MemoryKind::Reserved => memory.reserved(),
            MemoryKind::Device => memory.total(),
        })
    }

    /// Predicted over published memory, minus one. A run that failed for lack of memory has none.
    pub fn memory_error(&self) -> Option<f64> {
        if self.row.outcome == Some(Outcome::OutOfMemory) {
            return None;
        }
        Some(self.memory_predicted()? / self.row.memory?.0 - 1.0)
    }

    /// Whether it was predicted rightly to fit or not to.
    pub fn fits_rightly(&self) -> Option<bool> {
        let fits = self.estimate.as_ref().ok()?.fits(0.0);
        Some(fits == (self.row.outcome? == Outcome::Fits))
    }
}

/// Sums up.
pub fn summarize(compared: &[Compared<'_>]) -> Summary {
    let time: Vec<f64> = compared.iter().filter_map(|row| row.time_error()).map(f64::abs).collect();
    let memory: Vec<f64> =
        compared.iter().filter_map(|row| row.memory_error()).map(f64::abs).collect();
    let right = |outcome: Outcome| {
        let of = compared.iter().filter(move |row| row.row.outcome == Some(outcome));
        let answers: Vec<bool> = of.filter_map(Compared::fits_rightly).collect();
        (answers.iter().filter(|right| **right).count(), answers.len())
    };
    let (fitted, full) = (right(Outcome::Fits), right(Outcome::OutOfMemory));
    let oom_rows = fitted.1 + full.1;
    let share = |(right, of): (usize, usize)| (of > 0).then(|| right as f64 / of as f64);
    let (mut spearman_by_group, mut best_layout_regret_by_group) = (Vec::new(), Vec::new());
    for (group, rows) in groups(compared) {
        if rows.len() >= 3 {
            spearman_by_group.push((group.clone(), rows.len(), spearman(&rows)));
        }
        if rows.len() >= 2 {
            best_layout_regret_by_group.push((group, rows.len(), regret(&rows)));
        }
    }
    Summary {
        rows: compared.len(),
        time_rows: time.len(),
        time_median_abs_err: quantile(&time, 0.5),
        time_p90_abs_err: quantile(&time, 0.9),
        memory_rows: memory.len(),
        memory_median_abs_err: quantile(&memory, 0.5),
        memory_p90_abs_err: quantile(&memory, 0.9),
        oom_rows,
        oom_accuracy: share((fitted.0 + full.0, oom_rows)),
        oom_balanced_accuracy: share(fitted).zip(share(full)).map(|(a, b)| (a + b) / 2.0),
        spearman_by_group,
        best_layout_regret_by_group,
    }
}

/// The (predicted, published) times of each group.
fn groups(compared: &[Compared<'_>]) -> BTreeMap<String, Vec<(f64, f64)>> {
    let mut groups: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in compared {
        let Ok(estimate) = &row.estimate else { continue };
        if let (Some(group), Some(published)) = (row.row.group_key(), row.row.time_s) {
            groups.entry(group).or_default().push((estimate.time.step, published));
        }
    }
    groups
}

fn regret(rows: &[(f64, f64)]) -> f64 {
    let best = rows.iter().map(|row| row.1).fold(f64::INFINITY, f64::min);
    let chosen = rows.iter().min_by(|a, b| a.0.total_cmp(&b.0)).map_or(best, |row| row.1);
    chosen / best - 1.0
}

/// Spearman's rank correlation; equal values share their mean rank.
fn spearman(rows: &[(f64, f64)]) -> f64 {
    let predicted = ranks(rows.iter().map(|row| row.0).collect());
    let published = ranks(rows.iter().map(|row| row.1).collect());
    let mean = (rows.len() as f64 - 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum()
    };
    let spread = (product(&predicted, &predicted) * product(&published, &published)).sqrt();
    if spread == 0.0 { 0.0 } else { product(&predicted, &published) / spread }
}

fn ranks(values: Vec<f64>) -> Vec<f64> {
    let below = |value: f64| values.iter().filter(|other| **other < value).count() as f64;
    let same = |value: f64| values.iter().filter(|other| **other == value).count() as f64;
    values.iter().map(|&value| below(value) + (same(value) - 1.0) / 2.0).collect()
}

/// Linear between the two nearest of the sorted values.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = share * (sorted.len().checked_sub(1)?) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

/// Rows that differ in nothing but their result bound what any prediction can reach: each such set's size and the
/// error that its best single prediction (the median) leaves, by row.
pub fn noise_floor(rows: &[PublishedRun]) -> Vec<f64> {
    let mut same: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for row in rows {
        if let (Ok(_), Some(time)) = (&row.run, row.time_s) {
            same.entry(row.layout_key()).or_default().push(time);
        }
    }
    let several = same.into_values().filter(|times| times.len() > 1);
    let errors = several.flat_map(|times| {
        let middle = quantile(&times, 0.5).expect("invariant: two times at least");
        times.into_iter().map(move |time| (middle / time - 1.0).abs()).collect::<Vec<_>>()
    });
    errors.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_the_textbooks() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[0.0, 1.0], 0.9), Some(0.9));
        assert_eq!(quantile(&[], 0.5), None);
        let same = [(1.0, 10.0), (2.0, 20.0), (3.0, 30.0)];
        assert_eq!(spearman(&same), 1.0);
        let turned = [(3.0, 10.0), (2.0, 20.0), (1.0, 30.0)];
        assert_eq!(spearman(&turned), -1.0);
        // One swap among four: 1 − 6 · 2 / (4 · 15).
        let swapped = [(1.0, 1.0), (2.0, 3.0), (3.0, 2.0), (4.0, 4.0)];
        assert!((spearman(&swapped) - 0.8).abs() < 1e-12);
        assert_eq!(regret(&turned), 2.0);
        assert_eq!(regret(&same), 0.0);
        assert_eq!(ranks(vec![5.0, 1.0, 5.0]), [1.5, 0.0, 1.5]);
    }
}
