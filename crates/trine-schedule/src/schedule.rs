//! A whole schedule: the lists of all ranks and what they promise.

use crate::{Action, Compute, ScheduleError};
use trine_mesh::plural;

/// More segments in a stage than this are refused; real stages have about one a layer.
const SEGMENTS_MAX: usize = 1 << 16;

/// What a schedule is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// F, B and W of every micro-batch.
    Train,
    /// F of every micro-batch; nothing is kept for backward.
    Evaluate,
}

impl Purpose {
    /// The word in the text form.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Purpose::Train => "train",
            Purpose::Evaluate => "evaluate",
        }
    }
}

/// A segment whose bucket holds a copy of a tied parameter (an embedding that is also the output
/// projection).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TiedSegment {
    /// The stage that holds the copy.
    pub stage: usize,
    /// The segment whose bucket holds it.
    pub segment: usize,
}

/// Which gradients a step must reduce.
///
/// `tied` is empty when no parameter is shared, or when the only use of a shared one is in one place.
/// All tied segments belong to one group: their gradients are summed over all of them, before each
/// is reduced over the data-parallel replicas.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncPlan {
    /// Segments (gradient buckets) of each stage. A stage without trainable parameters has 0.
    pub segments: Vec<usize>,
    /// Segments that hold a copy of the tied parameter.
    pub tied: Vec<TiedSegment>,
}

/// A pipeline schedule as data: for each rank, the list of what it does in one optimizer step.
///
/// The fields are open, because schedules are also written by hand and by users; [`crate::verify()`]
/// is what says whether one is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// One word for people.
    pub name: String,
    /// Training or evaluation.
    pub purpose: Purpose,
    /// Micro-batches of one step.
    pub micro_batches: usize,
    /// The rank that holds each stage; its length is the number of stages.
    pub placement: Vec<usize>,
    /// Declared for each rank: the most micro-batches, over all its stages, whose F is done and
    /// whose W is not.
    pub in_flight_max: Vec<usize>,
    /// The gradients to reduce; `None` if the lists hold no reductions.
    pub sync: Option<SyncPlan>,
    /// The list of each rank; its length is the number of ranks.
    pub actions: Vec<Vec<Action>>,
}

impl Schedule {
    /// The number of stages the model is cut into.
    pub fn stages(&self) -> usize {
        self.placement.len()
    }

    /// The number of pipeline ranks.
    pub fn ranks(&self) -> usize {
        self.actions.len()
    }

    /// The number of segments that B and W of a stage may be cut into (at least 1).
    pub fn segments(&self, stage: usize) -> usize {
        let planned = self.sync.as_ref().and_then(|plan| plan.segments.get(stage));
        planned.copied().unwrap_or(1).max(1)
    }

    /// The stages of a rank, ascending.
    pub fn stages_of(&self, rank: usize) -> impl Iterator<Item = usize> + '_ {
        self.placement.iter().enumerate().filter(move |&(_, &r)| r == rank).map(|(stage, _)| stage)
    }

    /// Checks that the parts fit together, so that a list can be read at all.
    ///
    /// # Errors
    /// [`ScheduleError::Shape`], which names the part that does not fit.
    pub fn check(&self) -> Result<(), ScheduleError> {
        let ranks = self.ranks();
        let shape = |what: String| Err(ScheduleError::Shape { what });
        if self.name.is_empty() || self.name.contains(|c: char| c.is_whitespace() || c == '#') {
            return shape(format!("name {:?} is not one word without `#`", self.name));
        }
        if self.stages() == 0 || ranks == 0 || self.micro_batches == 0 {
            return shape(format!(
                "stages: {}, ranks: {ranks}, micro-batches: {}; each must be at least 1",
                self.stages(),
                self.micro_batches
            ));
        }
        if let Some(stage) = self.placement.iter().position(|&rank| rank >= ranks) {
            let rank = self.placement[stage];
            return shape(format!(
                "stage {stage} is placed on rank {rank}, but the last is {}",
                ranks - 1
            ));
        }
        if self.in_flight_max.len() != ranks {
            let given = self.in_flight_max.len();
            return shape(format!(
                "{given} {} of activations in flight for {ranks} {}",
                plural(given as u64, "bound"),
                plural(ranks as u64, "rank")
            ));
        }
        match (&self.sync, self.purpose) {
            (None, _) => Ok(()),
            (Some(_), Purpose::Evaluate) => {
                shape("an evaluation has no gradients to reduce".into())
            }
            (Some(plan), Purpose::Train) => plan.check(self.stages()),
        }
    }

    /// Refuses lists with an action that does not fit.
    pub(crate) fn expect_only(
        &self,
        expected: &'static str,
        fits: impl Fn(&Action) -> bool,
    ) -> Result<(), ScheduleError> {
        for (rank, list) in self.actions.iter().enumerate() {
            if let Some(position) = list.iter().position(|action| !fits(action)) {
                return Err(ScheduleError::Lowered {
                    rank,
                    position,
                    action: list[position],
                    expected,
                });
            }
        }
        Ok(())
    }

    /// True if every W stands right behind its B, as in GPipe and 1F1B: the two are then one unit.
    pub(crate) fn keeps_backward_whole(&self) -> bool {
        let has_segment = |action: &Action| {
            matches!(action, Action::Compute(Compute::BackwardInput { segment: Some(_), .. }))
        };
        self.has_weights_at_once() && !self.actions.iter().flatten().any(has_segment)
    }

    /// True if every W stands right behind its B, segment by segment: then a piece needs to keep nothing for W beyond
    /// its own backward pass.
    pub fn has_weights_at_once(&self) -> bool {
        let is_input =
            |action: &Action| matches!(action, Action::Compute(Compute::BackwardInput { .. }));
        self.actions.iter().all(|list| {
            let mut inputs = list.iter().enumerate().filter(|(_, action)| is_input(action));
            inputs.all(|(index, _)| is_backward_pair(list, index))
        })
    }

    /// Refuses a rank without a stage.
    pub(crate) fn check_stages(&self) -> Result<(), ScheduleError> {
        let mut is_idle = vec![true; self.ranks()];
        self.placement.iter().for_each(|&rank| is_idle[rank] = false);
        match is_idle.iter().position(|is_idle| *is_idle) {
            None => Ok(()),
            Some(rank) => {
                let what = format!("rank {rank} of {} has no stage", self.ranks());
                Err(ScheduleError::Shape { what })
            }
        }
    }

    /// For each stage, the most micro-batches whose F is done and whose W is not.
    pub(crate) fn kept_by_stage(&self) -> Vec<usize> {
        let of_stage = |(stage, &rank): (usize, &usize)| {
            let list = self.actions[rank].iter().copied();
            let own: Vec<Action> = list.filter(|action| action.stage() == stage).collect();
            in_flight_peak(&own, self.purpose).count
        };
        self.placement.iter().enumerate().map(of_stage).collect()
    }

    /// For each rank, the most activations in flight and where in its list that is first reached.
    pub(crate) fn in_flight_peaks(&self) -> Vec<Peak> {
        self.actions.iter().map(|list| in_flight_peak(list, self.purpose)).collect()
    }
}

/// The most activations in flight on a rank, and the position of the F that first reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Peak {
    pub(crate) count: usize,
    pub(crate) position: Option<usize>,
}

fn in_flight_peak(list: &[Action], purpose: Purpose) -> Peak {
    let mut peak = Peak::default();
    if purpose == Purpose::Evaluate {
        return peak;
    }
    let mut count = 0_usize;
    for (position, action) in list.iter().enumerate() {
        match action {
            Action::Compute(Compute::Forward { .. }) => count += 1,
            // Segments run from last to first: segment 0 ends the micro-batch.
            Action::Compute(Compute::BackwardWeight { segment: None | Some(0), .. }) => {
                count = count.saturating_sub(1);
            }
            Action::Compute(
                Compute::BackwardWeight { segment: Some(_), .. } | Compute::BackwardInput { .. },
            )
            | Action::Message(_)
            | Action::Sync(_) => {}
        }
        if count > peak.count {
            peak = Peak { count, position: Some(position) };
        }
    }
    peak
}

impl SyncPlan {
    /// One bucket in each of `stages` stages, nothing tied.
    pub fn one_bucket_each(stages: usize) -> Self {
        Self { segments: vec![1; stages], tied: Vec::new() }
    }

    /// Checks the plan against a number of stages.
    ///
    /// # Errors
    /// [`ScheduleError::Shape`], which names the part that does not fit.
    pub fn check(&self, stages: usize) -> Result<(), ScheduleError> {
        let shape = |what: String| Err(ScheduleError::Shape { what });
        if self.segments.len() != stages {
            let given = self.segments.len();
            let noun = plural(given as u64, "stage");
            return shape(format!("segments are given for {given} {noun}, not for {stages}"));
        }
        if let Some(stage) = self.segments.iter().position(|&count| count > SEGMENTS_MAX) {
            let given = self.segments[stage];
            return shape(format!("stage {stage} has {given} segments; at most {SEGMENTS_MAX}"));
        }
        for (index, tied) in self.tied.iter().enumerate() {
            let TiedSegment { stage, segment } = *tied;
            let Some(&segments) = self.segments.get(stage) else {
                return shape(format!("tied stage {stage}: the last is {}", stages - 1));
            };
            if segment >= segments {
                return shape(format!(
                    "tied segment {stage}/{segment}: stage {stage} has {segments} segments"
                ));
            }
            if self.tied[..index].contains(tied) {
                return shape(format!("tied segment {stage}/{segment} is named twice"));
            }
        }
        Ok(())
    }

    /// True if the segment holds a copy of the tied parameter.
    pub fn is_tied(&self, stage: usize, segment: usize) -> bool {
        self.tied.contains(&TiedSegment { stage, segment })
    }
}

/// True if `list[index]` is B and `list[index + 1]` its W, of the same segment if there are any.
pub(crate) fn is_backward_pair(list: &[Action], index: usize) -> bool {
    let Some(&Action::Compute(Compute::BackwardInput { stage, micro_batch, segment })) =
        list.get(index)
    else {
        return false;
    };
    let weight = Compute::BackwardWeight { stage, micro_batch, segment };
    list.get(index + 1) == Some(&weight.into())
}
