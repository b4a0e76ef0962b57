//! The search: every layout of a model on so many devices, ranked by the time of a step.

use crate::choices::{devices_max, for_each_layout};
use crate::impossible::why_not;
use crate::{Choice, Impossible, Layout, Limit, PlanError, Planner, Request, Time, simulate_step};
use std::ops::ControlFlow;

/// So many of the best are simulated on the schedule's lists.
const SIMULATED: usize = 50;
/// A layout that misses by less than this share of the memory is nearly feasible, and one that fits with less than
/// it to spare nearly infeasible.
const NEAR: f64 = 0.1;

/// What a search found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Layouts whose memory and time were evaluated.
    pub evaluated: usize,
    /// Those that fit.
    pub feasible: usize,
    /// The best, fastest first; all simulated by [`search`].
    pub best: Vec<Choice>,
    /// Layouts that would be faster than the first but miss the memory by a tenth at most, fastest first.
    pub near: Vec<Choice>,
}

impl Found {
    /// Those of the best that leave little memory beyond the headroom.
    pub fn tight(&self, headroom: f64) -> impl Iterator<Item = &Choice> {
        self.best.iter().filter(move |one| one.memory_share() > (1.0 - headroom) * (1.0 - NEAR))
    }
}

/// Why a search has no result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SearchError {
    /// The request cannot be met.
    #[error("no layout is possible")]
    Impossible(Box<Impossible>),
    /// The model or a layout is wrong in itself.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// The batch of a request that gives none: the most sequences, in 2^k times the odd part of the devices, that are not
/// above 16 Mi tokens (what Llama 3 405B used at the end; large runs use 4 to 20 million).
pub fn default_global_batch(devices: usize, seq: usize) -> usize {
    let odd = devices.max(1) >> devices.max(1).trailing_zeros();
    let most = ((16 << 20) / seq.max(1)).max(1);
    odd * 2_usize.pow((most / odd).max(1).ilog2())
}

/// Evaluates every layout in closed form, ranks those that fit, and simulates the best.
///
/// # Errors
/// [`SearchError::Impossible`] with the limit that binds and the nearest possible request.
pub fn search(planner: &Planner<'_>, request: &Request) -> Result<Found, SearchError> {
    let mut found = rank(planner, request)?;
    for choice in &mut found.best {
        choice.simulated = Some(simulate_step(planner, &choice.layout, &choice.estimate)?);
    }
    found.best.sort_by(|a, b| a.step().total_cmp(&b.step()));
    let first = found.best[0].step();
    found.near.retain(|one| one.estimate.time.step < first);
    Ok(found)
}

/// The first part of [`search`]: time and memory of every layout in closed form, and the best of them.
///
/// # Errors
/// As [`search`].
pub fn rank(planner: &Planner<'_>, request: &Request) -> Result<Found, SearchError> {
    check_devices(planner, request)?;
    let mut state = Ranking::new(request.headroom);
    let all = for_each_layout(planner, request, |layout| {
        state.add(planner, layout);
        ControlFlow::Continue(())
    });
    debug_assert!(all.is_continue(), "nothing ends it early");
    if state.feasible == 0 {
        return Err(SearchError::Impossible(Box::new(why_not(planner, request, state.leanest))));
    }
    let Ranking { evaluated, feasible, best, near, .. } = state;
    Ok(Found { evaluated, feasible, best, near })
}

fn check_devices(planner: &Planner<'_>, request: &Request) -> Result<(), SearchError> {
    let most = devices_max(planner);
    let nearest = request.devices.clamp(1, most);
    if nearest == request.devices {
        return Ok(());
    }
    Err(SearchError::Impossible(Box::new(Impossible {
        limit: Limit::Devices,
        devices: Some(nearest),
        global_batch: None,
        headroom: None,
    })))
}

/// The best so far, and what is nearly possible.
struct Ranking {
    headroom: f64,
    evaluated: usize,
    feasible: usize,
    best: Vec<Choice>,
    near: Vec<Choice>,
    leanest: Option<Choice>,
}

impl Ranking {
    fn new(headroom: f64) -> Self {
        let (best, near) = (Vec::new(), Vec::new());
        Self { headroom, evaluated: 0, feasible: 0, best, near, leanest: None }
    }

    fn add(&mut self, planner: &Planner<'_>, layout: &Layout) {
        let estimate = planner.estimate(layout);
        self.evaluated += 1;
        let choice = Choice { layout: *layout, estimate, simulated: None };
        let bytes = |one: &Choice| one.estimate.memory.total();
        if self.leanest.as_ref().is_none_or(|leanest| bytes(&choice) < bytes(leanest)) {
            self.leanest = Some(choice);
        }
        if estimate.fits(self.headroom) {
            self.feasible += 1;
            insert(&mut self.best, choice, SIMULATED);
        } else if choice.memory_share() <= (1.0 - self.headroom) * (1.0 + NEAR) {
            insert(&mut self.near, choice, 5);
        }
    }
}

/// Keeps the `most` fastest, sorted. Of layouts that differ in their ZeRO stage alone and take equally long, the first
/// (with the lowest stage) stands for all.
fn insert(list: &mut Vec<Choice>, choice: Choice, most: usize) {
    let same = |one: &Choice| {
        one.estimate.time.step == choice.estimate.time.step
            && one.layout == Layout { zero: one.layout.zero, ..choice.layout }
    };
    if list.iter().any(same) {
        return;
    }
    let slower = |one: &Choice| one.estimate.time.step <= choice.estimate.time.step;
    let at = list.partition_point(slower);
    if at < most {
        list.truncate(most - 1);
        list.insert(at, choice);
    }
}

/// Why `a` beats `b`: the items of time that differ, largest first, in seconds that `a` saves (negative: loses).
pub fn explain_lead(a: &Choice, b: &Choice) -> Vec<(&'static str, f64)> {
    let (x, y) = (items(&a.estimate.time), items(&b.estimate.time));
    let mut differences: Vec<(&str, f64)> =
        x.iter().zip(&y).map(|((name, x), (_, y))| (*name, y - x)).collect();
    differences.retain(|(_, saved)| saved.abs() > 1e-3 * b.estimate.time.step);
    differences.sort_by(|x, y| y.1.abs().total_cmp(&x.1.abs()));
    differences
}

/// The items of a step by name.
pub fn items(time: &Time) -> [(&'static str, f64); 10] {
    [
        ("forward", time.forward),
        ("backward", time.backward),
        ("recompute", time.recompute),
        ("tensor parallelism", time.tensor),
        ("context parallelism", time.context),
        ("messages", time.messages),
        ("bubble", time.bubble),
        ("data parallelism", time.data),
        ("optimizer", time.optimizer),
        ("stragglers", time.straggling),
    ]
}
