//! Each micro-batch once and in order on every stage, with its inputs there and its outputs sent.

use std::collections::HashSet;

use super::{VerifyError, VerifyErrorKind};
use crate::action::Parcel;
use crate::{Action, Compute, Payload, Purpose, Schedule};

/// How far a (stage, micro-batch) has come. Only the rank of the stage writes it.
#[derive(Clone, Copy)]
struct Progress {
    forward_done: bool,
    /// Segments whose B is still to run; they run from last to first.
    input_left: usize,
    /// Segments whose W is still to run.
    weight_left: usize,
    activation_received: bool,
    gradient_received: bool,
}

struct Walk<'a> {
    schedule: &'a Schedule,
    /// By stage, then micro-batch.
    progress: Vec<Progress>,
}

/// Relies on [`super::check_places`]: what actions name exists.
pub(super) fn check(schedule: &Schedule) -> Result<(), VerifyError> {
    check_forwards(schedule)?;
    let fresh = |stage| Progress {
        forward_done: false,
        input_left: schedule.segments(stage),
        weight_left: schedule.segments(stage),
        activation_received: false,
        gradient_received: false,
    };
    let stages = 0..schedule.stages();
    let progress = stages.flat_map(|s| std::iter::repeat_n(fresh(s), schedule.micro_batches));
    let mut walk = Walk { schedule, progress: progress.collect() };
    for (rank, list) in schedule.actions.iter().enumerate() {
        for (position, action) in list.iter().enumerate() {
            walk.step(rank, action).map_err(|(kind, expected)| {
                VerifyError::at(schedule, kind, (rank, position), expected)
            })?;
        }
    }
    walk.check_complete()
}

/// Every F is there. Comes first, and bounds the table of the walk by the length of the lists, so
/// that a short text cannot ask for much memory.
fn check_forwards(schedule: &Schedule) -> Result<(), VerifyError> {
    let mut seen = HashSet::new();
    for action in schedule.actions.iter().flatten() {
        if let Action::Compute(Compute::Forward { stage, micro_batch }) = *action {
            seen.insert((stage, micro_batch));
        }
    }
    if schedule.stages().checked_mul(schedule.micro_batches) == Some(seen.len()) {
        return Ok(());
    }
    for micro_batch in 0..schedule.micro_batches {
        for (stage, &rank) in schedule.placement.iter().enumerate() {
            if !seen.contains(&(stage, micro_batch)) {
                let expected = Compute::Forward { stage, micro_batch };
                return Err(missing(schedule, rank, &expected));
            }
        }
    }
    Ok(())
}

fn missing(schedule: &Schedule, rank: usize, action: &Compute) -> VerifyError {
    let expected = format!("`{action}` in the list of rank {rank}");
    VerifyError::missing(schedule, VerifyErrorKind::Missing, rank, expected)
}

type Step = Result<(), (VerifyErrorKind, String)>;

impl Walk<'_> {
    fn at(&mut self, stage: usize, micro_batch: usize) -> &mut Progress {
        &mut self.progress[stage * self.schedule.micro_batches + micro_batch]
    }

    fn step(&mut self, rank: usize, action: &Action) -> Step {
        match *action {
            Action::Compute(Compute::Forward { stage, micro_batch }) => {
                self.forward(rank, stage, micro_batch)
            }
            Action::Compute(Compute::BackwardInput { stage, micro_batch, segment }) => {
                self.backward_input(rank, stage, micro_batch, segment)
            }
            Action::Compute(Compute::BackwardWeight { stage, micro_batch, segment }) => {
                self.backward_weight(stage, micro_batch, segment)
            }
            Action::Message(_) => {
                let (send, recv) = action.transfers();
                // What is sent must be there before; what is received is there after.
                if let Some(message) = send.and_then(|send| send.sent()) {
                    self.send(message)?;
                }
                if let Some(recv) = recv {
                    self.receive(recv.received());
                }
                Ok(())
            }
            Action::Sync(_) => Ok(()),
        }
    }

    fn forward(&mut self, rank: usize, stage: usize, micro_batch: usize) -> Step {
        let message = Parcel { payload: Payload::Activation, to_stage: stage, micro_batch };
        self.expect_input(rank, message)?;
        let progress = self.at(stage, micro_batch);
        if progress.forward_done {
            return Err((VerifyErrorKind::Duplicate, "one forward of a micro-batch".into()));
        }
        progress.forward_done = true;
        Ok(())
    }

    fn backward_input(
        &mut self,
        rank: usize,
        stage: usize,
        micro_batch: usize,
        segment: Option<usize>,
    ) -> Step {
        if !self.at(stage, micro_batch).forward_done {
            let forward = Compute::Forward { stage, micro_batch };
            return Err((VerifyErrorKind::Order, format!("`{forward}` before it")));
        }
        let message = Parcel { payload: Payload::Gradient, to_stage: stage, micro_batch };
        self.expect_input(rank, message)?;
        let segments = self.schedule.segments(stage);
        let progress = self.at(stage, micro_batch);
        progress.input_left = next_segment(progress.input_left, segments, segment)?;
        Ok(())
    }

    fn backward_weight(
        &mut self,
        stage: usize,
        micro_batch: usize,
        segment: Option<usize>,
    ) -> Step {
        let segments = self.schedule.segments(stage);
        let progress = self.at(stage, micro_batch);
        let left = next_segment(progress.weight_left, segments, segment)?;
        if progress.input_left > left {
            let before = Compute::BackwardInput { stage, micro_batch, segment };
            return Err((VerifyErrorKind::Order, format!("`{before}` before it")));
        }
        progress.weight_left = left;
        Ok(())
    }

    /// The input of `message.to_stage` is there: received, or computed on the same rank.
    fn expect_input(&mut self, rank: usize, message: Parcel) -> Step {
        let Parcel { payload, to_stage, micro_batch } = message;
        let Some(from) = message.source_stage().filter(|&from| from < self.schedule.stages())
        else {
            // The first stage reads the data, the last has the loss.
            return Ok(());
        };
        let home = self.schedule.placement[from];
        let progress = *self.at(to_stage, micro_batch);
        let there = match payload {
            _ if home == rank => self.is_produced(from, payload, micro_batch),
            Payload::Activation => progress.activation_received,
            Payload::Gradient => progress.gradient_received,
        };
        if there {
            return Ok(());
        }
        let how = if home == rank { "computed before it" } else { "received before it" };
        let expected = format!("the {payload} of stage {from} (rank {home}) to be {how}");
        Err((VerifyErrorKind::MissingInput, expected))
    }

    fn is_produced(&mut self, stage: usize, payload: Payload, micro_batch: usize) -> bool {
        let progress = self.at(stage, micro_batch);
        match payload {
            Payload::Activation => progress.forward_done,
            Payload::Gradient => progress.input_left == 0,
        }
    }

    fn send(&mut self, message: Parcel) -> Step {
        let Parcel { payload, micro_batch, .. } = message;
        let Some(stage) = message.source_stage() else { return Ok(()) };
        if self.is_produced(stage, payload, micro_batch) {
            return Ok(());
        }
        let expected = format!("stage {stage} to have computed it before");
        Err((VerifyErrorKind::SendTooEarly, expected))
    }

    fn receive(&mut self, message: Parcel) {
        let progress = self.at(message.to_stage, message.micro_batch);
        match message.payload {
            Payload::Activation => progress.activation_received = true,
            Payload::Gradient => progress.gradient_received = true,
        }
    }

    /// In training, B and W of everything are there.
    fn check_complete(&self) -> Result<(), VerifyError> {
        if self.schedule.purpose == Purpose::Evaluate {
            return Ok(());
        }
        for (index, progress) in self.progress.iter().enumerate() {
            let stage = index / self.schedule.micro_batches;
            let micro_batch = index % self.schedule.micro_batches;
            let segments = self.schedule.segments(stage);
            let next = |left: usize| (left < segments).then(|| left - 1);
            let rank = self.schedule.placement[stage];
            if progress.input_left > 0 {
                let segment = next(progress.input_left);
                let action = Compute::BackwardInput { stage, micro_batch, segment };
                return Err(missing(self.schedule, rank, &action));
            }
            if progress.weight_left > 0 {
                let segment = next(progress.weight_left);
                let action = Compute::BackwardWeight { stage, micro_batch, segment };
                return Err(missing(self.schedule, rank, &action));
            }
        }
        Ok(())
    }
}

/// How many segments are left after `segment` (`None` is all) has run next.
fn next_segment(
    left: usize,
    segments: usize,
    segment: Option<usize>,
) -> Result<usize, (VerifyErrorKind, String)> {
    let is_done = |segment: usize| segment >= left;
    match segment {
        _ if left == 0 => {
            Err((VerifyErrorKind::Duplicate, "it once for each micro-batch".to_owned()))
        }
        None if left == segments => Ok(0),
        None => Err((VerifyErrorKind::Order, format!("segment {}, not all", left - 1))),
        Some(segment) if segment + 1 == left => Ok(segment),
        Some(segment) if is_done(segment) => {
            Err((VerifyErrorKind::Duplicate, "each segment once".to_owned()))
        }
        Some(_) => {
            let expected = format!("segment {} (from last to first)", left - 1);
            Err((VerifyErrorKind::Order, expected))
        }
    }
}
