//! Weak and strong scaling of one layout: more replicas, up to the size of the cluster.

use crate::choices::devices_max;
use crate::search::items;
use crate::{Estimate, Layout, PlanError, Planner, simulate_step};

/// What grows with the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scaling {
    /// The batch: each replica keeps its own.
    Weak,
    /// Nothing: the replicas share one batch.
    Strong,
}

/// One size of a curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScalingPoint {
    /// The layout.
    pub layout: Layout,
    /// Memory and time.
    pub estimate: Estimate,
    /// Simulated seconds of a step.
    pub step: f64,
    /// Tokens per second and device, relative to the first point.
    pub efficiency: f64,
    /// The item of time whose share grew most since the first point, and by how much of the step.
    pub bend: Option<(&'static str, f64)>,
}

/// The curve of a layout over numbers of devices. A number that does not hold whole replicas, or whose replicas do not
/// divide the batch, is left out, as are those beyond the cluster.
///
/// # Errors
/// A layout that breaks a rule.
pub fn scale(
    planner: &Planner<'_>,
    base: &Layout,
    devices: &[usize],
    scaling: Scaling,
) -> Result<Vec<ScalingPoint>, PlanError> {
    base.check(planner.model)?;
    planner.stack.check_degree(&planner.model.spec, base.degrees.tp)?;
    let replica = base.devices() / base.degrees.dp;
    let share = base.global_batch / base.degrees.dp;
    let mut points: Vec<ScalingPoint> = Vec::new();
    for &count in devices.iter().filter(|count| **count <= devices_max(planner)) {
        let dp = count / replica;
        if dp == 0 || !count.is_multiple_of(replica) {
            continue;
        }
        let mut layout = *base;
        layout.degrees.dp = dp;
        if scaling == Scaling::Weak {
            layout.global_batch = share * dp;
        }
        if layout.check(planner.model).is_err() {
            continue;
        }
        let estimate = planner.estimate(&layout);
        let step = simulate_step(planner, &layout, &estimate)?.step;
        let (efficiency, bend) = match points.first() {
            None => (1.0, None),
            Some(first) => (rate(&layout, step) / rate(&first.layout, first.step), {
                grown(&first.estimate, &estimate)
            }),
        };
        points.push(ScalingPoint { layout, estimate, step, efficiency, bend });
    }
    Ok(points)
}

/// Tokens per second and device.
fn rate(layout: &Layout, step: f64) -> f64 {
    (layout.global_batch * layout.seq) as f64 / step / layout.devices() as f64
}

/// What takes a larger share of the step than before.
fn grown(before: &Estimate, after: &Estimate) -> Option<(&'static str, f64)> {
    let shares = |estimate: &Estimate| {
        items(&estimate.time).map(|(name, seconds)| (name, seconds / estimate.time.step))
    };
    let (before, after) = (shares(before), shares(after));
    let grown =
        before.iter().zip(&after).map(|((name, before), (_, after))| (*name, after - before));
    grown.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, share)| *share > 1e-3)
}
