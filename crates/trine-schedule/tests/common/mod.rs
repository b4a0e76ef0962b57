//! What several test files share.

use trine_schedule::{Schedule, SyncPlan, TiedSegment, lower};

/// A plan with uneven stages (1, 2, 3, 1, … segments); tied first and last segments if asked.
pub(crate) fn plan(stages: usize, is_tied: bool) -> SyncPlan {
    let segments: Vec<usize> = (0..stages).map(|stage| stage % 3 + 1).collect();
    let first = TiedSegment { stage: 0, segment: 0 };
    let last = TiedSegment { stage: stages - 1, segment: segments[stages - 1] - 1 };
    let tied = if is_tied && first != last { vec![first, last] } else { vec![] };
    SyncPlan { segments, tied }
}

/// Lowers a schedule with [`plan`].
pub(crate) fn lowered(compute: &Schedule, is_tied: bool) -> Schedule {
    lower(compute, Some(&plan(compute.stages(), is_tied))).unwrap()
}
