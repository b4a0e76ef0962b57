//! A schedule of one's own: what its lists imply, and whether a run can train by it.

use std::collections::BTreeMap;

use crate::{Action, Compute, Purpose, Reduction, Schedule, ScheduleError, Shape, lower, verify};

impl Schedule {
    /// A training schedule of one's own: what each rank computes, in order. The rest follows from the
    /// lists: a stage is on the rank of its forwards, and the bound of activations in flight is what
    /// they reach. [`crate::lower()`] adds messages and reductions.
    ///
    /// ```
    /// use trine_schedule::{Action, Schedule, lower, verify};
    ///
    /// // A stage on each of two ranks, one micro-batch.
    /// let list = |text: &str| text.split(' ').map(str::parse::<Action>).collect::<Result<_, _>>();
    /// let lists = vec![list("F0.0 B0.0 W0.0")?, list("F1.0 B1.0 W1.0")?];
    /// let mine = Schedule::compute("mine", lists)?;
    /// assert_eq!((&mine.placement[..], mine.micro_batches), (&[0, 1][..], 1));
    /// assert_eq!(verify(&lower(&mine, None)?)?.in_flight_peak, [1, 1]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ScheduleError::TwoHomes`] for a stage on two ranks, [`ScheduleError::Shape`] for stages that are
    /// not numbered from 0 without a gap, no forward at all, or a name that is not one word.
    pub fn compute(
        name: impl Into<String>,
        actions: Vec<Vec<Action>>,
    ) -> Result<Self, ScheduleError> {
        let (placement, micro_batches) = implied(&actions)?;
        let mut schedule = Self {
            name: name.into(),
            purpose: Purpose::Train,
            micro_batches,
            placement,
            in_flight_max: vec![],
            sync: None,
            actions,
        };
        schedule.in_flight_max = schedule.in_flight_peaks().iter().map(|peak| peak.count).collect();
        schedule.check()?;
        Ok(schedule)
    }

    /// Proves that a run can train by it: the lists hold F, B and W of training, with or without messages,
    /// every rank has a stage, and nothing is reduced. A run adds the reductions of its own buckets.
    ///
    /// # Errors
    /// [`ScheduleError::Shape`] for an evaluation, a rank without a stage or more than a step may have
    /// ([`Shape::is_too_long`]), [`ScheduleError::Reduces`], and what [`crate::lower()`] or [`crate::verify()`] finds.
    pub fn check_order(&self) -> Result<(), ScheduleError> {
        let shape = |what: String| Err(ScheduleError::Shape { what });
        self.check()?;
        if self.purpose == Purpose::Evaluate {
            return shape(
                "it is an evaluation; a run trains by a schedule of `purpose train`".into(),
            );
        }
        let (ranks, pairs) = (self.ranks(), self.stages().saturating_mul(self.micro_batches));
        let (ranks_max, pairs_max) = (Shape::STEP_RANKS_MAX, Shape::STEP_PAIRS_MAX);
        if ranks > ranks_max || pairs > pairs_max {
            return shape(format!(
                "{ranks} ranks and {pairs} pairs of stage and micro-batch; a step has at most {ranks_max} and \
                 {pairs_max}"
            ));
        }
        self.check_stages()?;
        if let Some(what) = self.reduces() {
            return Err(ScheduleError::Reduces { what });
        }
        verify(&lower(self, None)?)?;
        Ok(())
    }

    /// What in it is about buckets of gradients, if anything is.
    fn reduces(&self) -> Option<String> {
        let is_of_buckets = |action: &Action| match action {
            Action::Compute(compute) => !compute.is_whole(),
            Action::Sync(
                Reduction::ReduceTied { .. }
                | Reduction::ReduceGrad { .. }
                | Reduction::AwaitGrad { .. },
            ) => true,
            Action::Message(_) => false,
        };
        for (rank, list) in self.actions.iter().enumerate() {
            if let Some(position) = list.iter().position(is_of_buckets) {
                return Some(format!("rank {rank}, position {position}: `{}`", list[position]));
            }
        }
        self.sync.as_ref().map(|_| "`segments`".to_owned())
    }
}

/// The rank of each stage and the number of micro-batches, as the forwards say.
pub(crate) fn implied(actions: &[Vec<Action>]) -> Result<(Vec<usize>, usize), ScheduleError> {
    let mut homes = BTreeMap::new();
    let mut last = None;
    for (rank, list) in actions.iter().enumerate() {
        for (position, &action) in list.iter().enumerate() {
            let Action::Compute(Compute::Forward { stage, micro_batch }) = action else { continue };
            let home = *homes.entry(stage).or_insert(rank);
            if home != rank {
                return Err(ScheduleError::TwoHomes { rank, position, action, home });
            }
            last = last.max(Some(micro_batch));
        }
    }
    if let Some(gap) = (0..homes.len()).find(|stage| !homes.contains_key(stage)) {
        let what = format!("no rank has a forward of stage {gap}; stages are numbered from 0");
        return Err(ScheduleError::Shape { what });
    }
    let micro_batches = last.map_or(0, |last| last.saturating_add(1));
    Ok((homes.into_values().collect(), micro_batches))
}
