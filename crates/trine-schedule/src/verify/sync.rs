//! Reductions: after the last W, once, awaited, and in one order wherever groups overlap.

use std::collections::{BTreeMap, HashMap};

use super::{VerifyError, VerifyErrorKind};
use crate::{Action, Compute, Reduction, Schedule, SyncPlan, TiedSegment};

/// Where a rank does what its reductions depend on.
#[derive(Default)]
struct Positions {
    /// The last W of all segments of a stage at once, and of single ones.
    weight_whole: HashMap<usize, usize>,
    weight: HashMap<(usize, usize), usize>,
    tied: Vec<usize>,
    /// In the order of the list.
    reduce: Vec<((usize, usize), usize)>,
    awaited: BTreeMap<(usize, usize), usize>,
}

/// Relies on [`super::check_places`] (without a plan there is nothing to check here) and on
/// [`super::order`] (every W is there).
pub(super) fn check(schedule: &Schedule) -> Result<(), VerifyError> {
    let Some(plan) = &schedule.sync else { return Ok(()) };
    let mut ranks = Vec::with_capacity(schedule.ranks());
    for rank in 0..schedule.ranks() {
        ranks.push(positions(schedule, rank)?);
    }
    // By rank, so that many ranks do not each look at all stages.
    let (mut stages, mut tied) = (vec![Vec::new(); ranks.len()], vec![Vec::new(); ranks.len()]);
    for (stage, &rank) in schedule.placement.iter().enumerate() {
        stages[rank].push(stage);
    }
    for segment in &plan.tied {
        tied[schedule.placement[segment.stage]].push(segment);
    }
    for (rank, positions) in ranks.iter().enumerate() {
        check_all_reduced(schedule, plan, (rank, &stages[rank]), positions)?;
        check_tied(schedule, (rank, &tied[rank]), positions)?;
        check_awaited(schedule, rank, positions)?;
    }
    check_common_order(schedule, plan, &ranks)
}

/// Collects the positions; a reduction that comes twice, or before its last W, is an error.
fn positions(schedule: &Schedule, rank: usize) -> Result<Positions, VerifyError> {
    let mut found = Positions::default();
    let mut reduced = HashMap::new();
    let twice = |first: usize, position: usize| {
        let expected = format!("this once; it is at position {first} already");
        Err(VerifyError::at(schedule, VerifyErrorKind::Duplicate, (rank, position), expected))
    };
    for (position, action) in schedule.actions[rank].iter().enumerate() {
        match *action {
            Action::Compute(Compute::BackwardWeight { stage, segment: None, .. }) => {
                found.weight_whole.insert(stage, position);
            }
            Action::Compute(Compute::BackwardWeight { stage, segment: Some(segment), .. }) => {
                found.weight.insert((stage, segment), position);
            }
            Action::Sync(Reduction::ReduceTied { .. }) => found.tied.push(position),
            Action::Sync(Reduction::ReduceGrad { stage, segment }) => {
                if let Some(first) = reduced.insert((stage, segment), position) {
                    return twice(first, position);
                }
                found.reduce.push(((stage, segment), position));
            }
            Action::Sync(Reduction::AwaitGrad { stage, segment }) => {
                if let Some(first) = found.awaited.insert((stage, segment), position) {
                    return twice(first, position);
                }
            }
            Action::Compute(Compute::Forward { .. } | Compute::BackwardInput { .. })
            | Action::Message(_) => {}
        }
    }
    if let [first, again, ..] = found.tied[..] {
        return twice(first, again);
    }
    for &(bucket, position) in &found.reduce {
        expect_complete(schedule, rank, &found, bucket, position)?;
    }
    Ok(found)
}

/// The bucket has its last W before `position`.
fn expect_complete(
    schedule: &Schedule,
    rank: usize,
    positions: &Positions,
    bucket: (usize, usize),
    position: usize,
) -> Result<(), VerifyError> {
    let whole = positions.weight_whole.get(&bucket.0);
    let Some(&last) = positions.weight.get(&bucket).max(whole) else { return Ok(()) };
    if last < position {
        return Ok(());
    }
    let expected = format!("it after the last weight gradient of its bucket, at position {last}");
    let cells = [(rank, position), (rank, last)];
    Err(VerifyError::marked(schedule, VerifyErrorKind::ReduceTooEarly, &cells, expected))
}

fn check_all_reduced(
    schedule: &Schedule,
    plan: &SyncPlan,
    (rank, stages): (usize, &[usize]),
    positions: &Positions,
) -> Result<(), VerifyError> {
    let reduced: HashMap<_, _> = positions.reduce.iter().copied().collect();
    for &stage in stages {
        let missing = |segment: &usize| !reduced.contains_key(&(stage, *segment));
        if let Some(segment) = (0..plan.segments[stage]).find(missing) {
            let kind = VerifyErrorKind::MissingReduce;
            let expected = format!("`{}`", Reduction::ReduceGrad { stage, segment });
            return Err(VerifyError::missing(schedule, kind, rank, expected));
        }
    }
    Ok(())
}

fn check_tied(
    schedule: &Schedule,
    (rank, tied): (usize, &[&TiedSegment]),
    positions: &Positions,
) -> Result<(), VerifyError> {
    let reduced: HashMap<_, _> = positions.reduce.iter().copied().collect();
    for tied in tied {
        let bucket = (tied.stage, tied.segment);
        let Some(&position) = positions.tied.first() else {
            let kind = VerifyErrorKind::MissingReduce;
            let expected = format!("a reduction of the tied segment {}/{}", bucket.0, bucket.1);
            return Err(VerifyError::missing(schedule, kind, rank, expected));
        };
        expect_complete(schedule, rank, positions, bucket, position)?;
        if let Some(&reduce) = reduced.get(&bucket).filter(|&&reduce| reduce < position) {
            let kind = VerifyErrorKind::TiedAfterReduce;
            let expected = format!("the tied reduction (at position {position}) before it");
            let cells = [(rank, reduce), (rank, position)];
            return Err(VerifyError::marked(schedule, kind, &cells, expected));
        }
    }
    Ok(())
}

fn check_awaited(
    schedule: &Schedule,
    rank: usize,
    positions: &Positions,
) -> Result<(), VerifyError> {
    for &(bucket, position) in &positions.reduce {
        let (stage, segment) = bucket;
        match positions.awaited.get(&bucket) {
            None => {
                let kind = VerifyErrorKind::MissingAwait;
                let expected = format!("`{}` after it", Reduction::AwaitGrad { stage, segment });
                return Err(VerifyError::at(schedule, kind, (rank, position), expected));
            }
            Some(&awaited) if awaited < position => {
                let kind = VerifyErrorKind::AwaitTooEarly;
                let expected = format!("the reduction, which is at position {position}, before it");
                return Err(VerifyError::at(schedule, kind, (rank, awaited), expected));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The group of the tied reduction and the data-parallel groups of its ranks overlap, so all its
/// ranks must agree which reductions come before it.
fn check_common_order(
    schedule: &Schedule,
    plan: &SyncPlan,
    ranks: &[Positions],
) -> Result<(), VerifyError> {
    // Of each rank with a tied reduction, its first untied reduction after it, if any.
    let late = |positions: &Positions| {
        let tied = *positions.tied.first()?;
        let is_late = |&&((stage, segment), position): &&((usize, usize), usize)| {
            position > tied && !plan.is_tied(stage, segment)
        };
        positions.reduce.iter().find(is_late).map(|entry| entry.1)
    };
    let early = |positions: &Positions| {
        let tied = *positions.tied.first()?;
        let is_early = |entry: &&((usize, usize), usize)| entry.1 < tied;
        positions.reduce.iter().find(is_early).map(|entry| entry.1)
    };
    for (rank, positions) in ranks.iter().enumerate() {
        let Some(position) = late(positions) else { continue };
        let others = ranks.iter().enumerate().filter(|(other, _)| *other != rank);
        let found = others.filter_map(|(other, p)| Some((other, early(p)?))).next();
        if let Some((other, early)) = found {
            let expected = format!(
                "it before the tied reduction, as on rank {other} (position {early}): \
                 the groups of both overlap"
            );
            let cells = [(rank, position), (other, early)];
            let kind = VerifyErrorKind::CollectiveOrder;
            return Err(VerifyError::marked(schedule, kind, &cells, expected));
        }
    }
    Ok(())
}
