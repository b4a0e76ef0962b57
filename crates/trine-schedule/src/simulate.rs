//! The simulator: how long a schedule takes, where its bubbles are, what it keeps in memory.

use crate::engine::{Costs, Delivery, Outcome, Span, run};
use crate::waits::{stuck, waits};
use crate::{Action, Compute, Reduction, Schedule, ScheduleError, Transfer, UniformStage};

/// The same costs for every stage and micro-batch.
///
/// A segment costs its share of the stage. Messages and reductions are free unless set.
#[derive(Debug, Clone, PartialEq)]
pub struct UniformCosts {
    /// F of a whole stage.
    pub forward: f64,
    /// B of a whole stage.
    pub backward_input: f64,
    /// W of a whole stage.
    pub backward_weight: f64,
    /// From the end of a send to the arrival of its message.
    pub latency: f64,
    /// The reduction of one bucket.
    pub reduce_grad: f64,
    /// The reduction of the tied parameter, once all ranks are there.
    pub reduce_tied: f64,
    segments: Vec<usize>,
}

impl UniformCosts {
    /// F, B and W cost 1 each (a backward is twice a forward), all else is free.
    pub fn new(schedule: &Schedule) -> Self {
        let alike =
            UniformStage { forward: 1.0, backward_input: 1.0, backward_weight: 1.0, transfer: 0.0 };
        Self::of(schedule, &alike)
    }

    /// F, B, W and messages take these times, all else is free.
    pub fn of(schedule: &Schedule, times: &UniformStage) -> Self {
        Self {
            forward: times.forward,
            backward_input: times.backward_input,
            backward_weight: times.backward_weight,
            latency: times.transfer,
            reduce_grad: 0.0,
            reduce_tied: 0.0,
            segments: (0..schedule.stages()).map(|stage| schedule.segments(stage)).collect(),
        }
    }

    fn share(&self, stage: usize, segment: Option<usize>) -> f64 {
        match segment {
            Some(_) => 1.0 / self.segments.get(stage).copied().unwrap_or(1) as f64,
            None => 1.0,
        }
    }
}

impl Costs for UniformCosts {
    fn duration(&self, _rank: usize, _position: usize, action: &Action) -> f64 {
        match *action {
            Action::Compute(Compute::Forward { .. }) => self.forward,
            Action::Compute(Compute::BackwardInput { stage, segment, .. }) => {
                self.backward_input * self.share(stage, segment)
            }
            Action::Compute(Compute::BackwardWeight { stage, segment, .. }) => {
                self.backward_weight * self.share(stage, segment)
            }
            Action::Message(_) => 0.0,
            Action::Sync(Reduction::ReduceTied { .. }) => self.reduce_tied,
            Action::Sync(Reduction::ReduceGrad { .. }) => self.reduce_grad,
            Action::Sync(Reduction::AwaitGrad { .. }) => 0.0,
        }
    }

    fn latency(&self, _rank: usize, _send: &Transfer) -> f64 {
        self.latency
    }
}

/// A simulated step: the span of every action of a schedule.
#[derive(Debug, Clone)]
pub struct Timeline<'a> {
    /// The schedule that was executed.
    pub schedule: &'a Schedule,
    /// The span of each action, by rank and position. That of a [`crate::Reduction::ReduceGrad`] lies on the
    /// lane beside its rank.
    pub spans: Vec<Vec<Span>>,
    /// The end of the last action of all.
    pub makespan: f64,
    /// The working time of each rank, waiting and posted reductions excluded.
    pub busy: Vec<f64>,
}

/// Executes a schedule in thought.
///
/// # Errors
/// [`ScheduleError::Shape`] if its parts do not fit together, [`ScheduleError::Cost`] for a cost that
/// is negative or not finite, [`ScheduleError::Stuck`] if ranks wait for what never comes.
pub fn simulate<'a, C: Costs + ?Sized>(
    schedule: &'a Schedule,
    delivery: Delivery,
    costs: &C,
) -> Result<Timeline<'a>, ScheduleError> {
    schedule.check()?;
    check_peers(schedule)?;
    let spans = match run(schedule, delivery, costs)? {
        Outcome::Done(spans) => spans,
        Outcome::Blocked(cells) => {
            let what =
                format!("under {delivery:?} delivery, {}", waits(schedule, delivery, &cells));
            return Err(stuck(schedule, &cells, what));
        }
    };
    let makespan = spans.iter().flatten().map(|span| span.end).fold(0.0, f64::max);
    let busy = schedule.actions.iter().zip(&spans).map(|(list, spans)| working_time(list, spans));
    Ok(Timeline { schedule, makespan, busy: busy.collect(), spans })
}

fn check_peers(schedule: &Schedule) -> Result<(), ScheduleError> {
    let ranks = schedule.ranks();
    for (rank, list) in schedule.actions.iter().enumerate() {
        for (position, action) in list.iter().enumerate() {
            let (send, recv) = action.transfers();
            if let Some(bad) = send.into_iter().chain(recv).find(|t| t.peer >= ranks) {
                let peer = bad.peer;
                let what = format!(
                    "rank {rank}, position {position}: `{action}` names rank {peer} of {ranks}"
                );
                return Err(ScheduleError::Shape { what });
            }
        }
    }
    Ok(())
}

fn working_time(list: &[Action], spans: &[Span]) -> f64 {
    let beside = |action: &Action| matches!(action, Action::Sync(Reduction::ReduceGrad { .. }));
    list.iter().zip(spans).filter(|(action, _)| !beside(action)).map(|(_, span)| span.busy).sum()
}

impl Timeline<'_> {
    /// The time each rank waits.
    pub fn idle(&self) -> Vec<f64> {
        self.busy.iter().map(|busy| self.makespan - busy).collect()
    }

    /// 1 − busy / (ranks · makespan): the share of all ranks' time that is not work.
    pub fn bubble_fraction(&self) -> f64 {
        let total = self.makespan * self.busy.len() as f64;
        if total == 0.0 { 0.0 } else { 1.0 - self.busy.iter().sum::<f64>() / total }
    }

    /// For each rank, the most micro-batches whose F was done and whose W was not.
    pub fn in_flight_peak(&self) -> Vec<usize> {
        self.schedule.in_flight_peaks().iter().map(|peak| peak.count).collect()
    }
}
