//! Why a request has no layout, and the nearest that has one.

use crate::choices::{degrees, devices_max, for_each_layout};
use crate::stack::layout_rule;
use crate::{Choice, Fixed, PlanError, Planner, Recompute, Request};
use std::ops::ControlFlow;
use trine_schedule::ScheduleKind;

/// Which limit makes a request impossible.
#[derive(Debug, Clone, PartialEq)]
pub enum Limit {
    /// More devices than the cluster has, or none.
    Devices,
    /// No replica count divides the batch.
    Batch,
    /// No layout fits the memory.
    Memory {
        /// The layout that needs least.
        leanest: Box<Choice>,
    },
    /// What the request fixes rules out every layout.
    Fixed {
        /// The degree that none can have, with the nearest that some can.
        degree: Option<PlanError>,
    },
}

/// Why nothing can be planned, and what can be.
#[derive(Debug, Clone, PartialEq)]
pub struct Impossible {
    /// The limit that binds.
    pub limit: Limit,
    /// The nearest number of devices with which it can be done, if there is one in the cluster; where they cannot share
    /// the batch, with another one.
    pub devices: Option<usize>,
    /// The nearest other batch with which it can be done, if only that is wrong, or with [`Self::devices`].
    pub global_batch: Option<usize>,
    /// The largest headroom that would do, if only that is too large.
    pub headroom: Option<f64>,
}

/// Names the limit, and finds the nearest request that is possible.
pub(crate) fn why_not(
    planner: &Planner<'_>,
    request: &Request,
    leanest: Option<Choice>,
) -> Impossible {
    let nearest = || {
        let found = nearest_devices(planner, request);
        let batch = found.map(|(_, batch)| batch).filter(|size| *size != request.global_batch);
        (found.map(|(devices, _)| devices), batch)
    };
    let Some(leanest) = leanest else {
        let found = nearest_batch(planner, request, |wanted| fits(planner, wanted));
        if found.is_some() {
            let (limit, devices, headroom) = (Limit::Batch, None, None);
            return Impossible { limit, devices, global_batch: found, headroom };
        }
        let other = nearest_batch(planner, request, |wanted| is_possible(planner, wanted));
        let limit = match other {
            Some(_) => Limit::Batch,
            None => Limit::Fixed { degree: bad_degree(planner, request) },
        };
        let (devices, global_batch) = nearest();
        return Impossible { limit, devices, global_batch, headroom: None };
    };
    let share = leanest.memory_share();
    let (devices, global_batch) = nearest();
    let limit = Limit::Memory { leanest: Box::new(leanest) };
    Impossible { limit, devices, global_batch, headroom: (share <= 1.0).then_some(1.0 - share) }
}

/// The first degree that a request keeps and no layout of its devices has.
fn bad_degree(planner: &Planner<'_>, request: &Request) -> Option<PlanError> {
    let (Fixed { tp, pp, cp, .. }, spec) = (request.fixed, &planner.model.spec);
    let axes: [(_, _, _, &dyn Fn(usize) -> Option<String>); 3] = [
        ("tp", tp, spec.heads, &|tp| planner.stack.degree_obstacle(spec, tp)),
        ("pp", pp, spec.layers, &|pp| layout_rule(spec, 1, pp)),
        ("cp", cp, request.devices, &|_| None),
    ];
    let all = [tp, pp, cp].into_iter().flatten().fold(1, usize::saturating_mul);
    let error = |is_beside: bool| {
        axes.iter().find_map(|&(axis, degree, most, obstacle)| {
            let degree = degree?;
            let others = if is_beside { all / degree.max(1) } else { 1 };
            let obstacle =
                |degree| obstacle(degree).or_else(|| left_over(degree, others, request.devices));
            let most = most.min(request.devices);
            let error = PlanError::unless_degree((axis, degree), most, obstacle)?;
            let PlanError::Layout { nearest, .. } = &error else { return None };
            (!nearest.is_empty()).then_some(error)
        })
    };
    // Beside the other degrees; or by itself, where these leave nothing to it.
    error(true).or_else(|| error(false))
}

/// Why devices cannot be split into groups of a degree and the others, if they cannot.
fn left_over(degree: usize, others: usize, devices: usize) -> Option<String> {
    let product = degree.saturating_mul(others);
    (product == 0 || !devices.is_multiple_of(product)).then(|| match others {
        1 => format!("{degree} does not divide the {devices} devices"),
        _ => format!("tp × pp × cp = {product} does not divide the {devices} devices"),
    })
}

/// Whether a request has a layout that fits the memory, looked for among the leanest.
fn fits(planner: &Planner<'_>, request: &Request) -> bool {
    let Fixed { micro_batch, recompute, pipeline, virtual_stages, .. } = request.fixed;
    let lean = Fixed {
        micro_batch: micro_batch.or(Some(1)),
        recompute: recompute.or(Some(Recompute::Full { every: 1 })),
        pipeline: pipeline.or(virtual_stages.is_none().then_some(ScheduleKind::OneFOneB)),
        ..request.fixed
    };
    let allowed = planner.cluster.device.memory_bytes as f64 * (1.0 - request.headroom);
    let found = for_each_layout(planner, &Request { fixed: lean, ..*request }, |layout| {
        match planner.peak_memory(layout).1.total() <= allowed {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    found.is_break()
}

/// The other batch nearest to the one asked for with which a request is as wanted.
fn nearest_batch(
    planner: &Planner<'_>,
    request: &Request,
    is_wanted: impl Fn(&Request) -> bool,
) -> Option<usize> {
    let largest = Request { global_batch: usize::MAX, ..*request };
    let asked = request.global_batch;
    let sizes = degrees(planner, &largest).into_iter().flat_map(|degrees| {
        let unit = degrees.dp.saturating_mul(request.fixed.micro_batch.unwrap_or(1).max(1));
        // Interleaved schedules take whole groups; the others any number.
        let unit = match request.fixed.pipeline {
            Some(ScheduleKind::Interleaved) => unit.saturating_mul(degrees.pp),
            _ => unit,
        };
        [(asked / unit).max(1).saturating_mul(unit), (asked / unit + 1).saturating_mul(unit)]
    });
    let mut sizes: Vec<usize> = sizes.filter(|size| *size != asked).collect();
    sizes.sort_by_key(|size| size.abs_diff(asked));
    sizes.dedup();
    sizes.into_iter().find(|size| is_wanted(&Request { global_batch: *size, ..*request }))
}

/// The fewest devices, of those that doubling finds, with which some layout fits, and the batch: the one asked for, or
/// the next that they can share out.
fn nearest_devices(planner: &Planner<'_>, request: &Request) -> Option<(usize, usize)> {
    let Fixed { tp, pp, cp, micro_batch, .. } = request.fixed;
    let asked = request.global_batch;
    let fitting = |devices: &usize| {
        let whole = asked.next_multiple_of(devices.saturating_mul(micro_batch.unwrap_or(1)));
        let batches = [asked, asked.next_multiple_of(*devices), whole];
        let is_enough = |batch: &usize| {
            fits(planner, &Request { devices: *devices, global_batch: *batch, ..*request })
        };
        batches.into_iter().find(is_enough).map(|batch| (*devices, batch))
    };
    let most = devices_max(planner);
    let replica = [tp, pp, cp].into_iter().flatten().fold(1, usize::saturating_mul);
    let doubled = |from: usize| {
        std::iter::successors(Some(from), |devices| devices.checked_mul(2))
            .take_while(|devices| *devices <= most)
    };
    let mut sizes: Vec<usize> = doubled(request.devices).chain(doubled(replica)).collect();
    sizes.sort_unstable();
    sizes.retain(|devices| *devices > request.devices);
    let (enough, batch) = sizes.iter().find_map(fitting)?;
    // Between half of that, which may be too few, and it, in eighths.
    let step = (enough / 16).max(1);
    let between = (1..8).map(|part| enough / 2 + part * step);
    let between = between.filter(|devices| *devices > request.devices && *devices < enough);
    Some(between.into_iter().find_map(|devices| fitting(&devices)).unwrap_or((enough, batch)))
}

/// Whether a request has a layout at all, whatever it needs.
fn is_possible(planner: &Planner<'_>, request: &Request) -> bool {
    for_each_layout(planner, request, |_| ControlFlow::Break(())).is_break()
}
