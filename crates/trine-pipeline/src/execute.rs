//! The executor: one loop, one match over [`Action`].

use crate::{PipelineError, StageError};
use std::collections::HashMap;
use trine_buffer::{Act, Buf, DType, Pool};
use trine_comm::{Communicator, Name};
use trine_schedule::{Action, Compute, Message, Payload, Reduction, Schedule, Transfer};

/// What the actions of a schedule mean on one rank.
///
/// `stage` is the number of a stage that this rank holds.
pub trait StageOps {
    /// F: the stage's output for a micro-batch. `x` is `None` on the first stage, which takes the
    /// micro-batch's tokens.
    ///
    /// # Errors
    /// Whatever a layer runs into.
    fn forward(
        &mut self,
        stage: usize,
        micro_batch: usize,
        x: Option<Act>,
    ) -> Result<Act, StageError>;

    /// B, of one segment or of all, last to first. `dy` is handed to the first call for a
    /// micro-batch, and is `None` on the last stage; later segments go on from the one before.
    /// Returns the gradient of the stage's input once segment 0 is done.
    ///
    /// # Errors
    /// Whatever a layer runs into.
    fn backward_input(
        &mut self,
        stage: usize,
        micro_batch: usize,
        segment: Option<usize>,
        dy: Option<Act>,
    ) -> Result<Option<Act>, StageError>;

    /// W, of one segment or of all.
    ///
    /// # Errors
    /// Whatever a layer runs into.
    fn backward_weight(
        &mut self,
        stage: usize,
        micro_batch: usize,
        segment: Option<usize>,
    ) -> Result<(), StageError>;

    /// Type and length of what travels between stages.
    fn transfer_len(&self, payload: Payload) -> (DType, usize);

    /// The reduction of gradients: of tied copies at once, of a bucket posted and then awaited.
    ///
    /// # Errors
    /// Whatever a collective runs into.
    fn sync(&mut self, reduction: Reduction) -> Result<(), StageError>;
}

/// Where a schedule runs.
#[derive(Debug, Clone, Copy)]
pub struct Execution<'a> {
    /// A lowered and verified schedule.
    pub schedule: &'a Schedule,
    /// The pipeline ranks, in the schedule's order.
    pub comm: &'a dyn Communicator,
    /// Where received activations come from.
    pub pool: &'a Pool,
}

/// The two ends of an action, for observers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The action is about to run.
    Begin,
    /// It is done.
    End,
}

/// Runs this rank's list from top to bottom. `observe` is called before and after each action with
/// its position: for traces and measurements.
///
/// # Errors
/// The first failure, with the action that it happened in.
pub fn execute(
    execution: &Execution<'_>,
    stage: &mut dyn StageOps,
    observe: &mut dyn FnMut(usize, &Action, Moment),
) -> Result<(), PipelineError> {
    let (rank, schedule) = (execution.comm.rank(), execution.schedule);
    if schedule.ranks() != execution.comm.size() {
        let size = execution.comm.size();
        return Err(PipelineError::Ranks { ranks: schedule.ranks(), size });
    }
    let recorder = execution.comm.recorder();
    let mut runner = Runner { execution, rank, ready: HashMap::new() };
    for (position, action) in schedule.actions[rank].iter().enumerate() {
        observe(position, action, Moment::Begin);
        // What hangs or fails from here on is reported with the action it was in.
        recorder.begin_action(position, action);
        runner.run(action, stage).map_err(|failure| failure.at(rank, position, *action))?;
        observe(position, action, Moment::End);
    }
    recorder.end_actions();
    Ok(())
}

enum Failure {
    Missing(&'static str),
    Cause(StageError),
}

impl Failure {
    fn at(self, rank: usize, position: usize, action: Action) -> PipelineError {
        match self {
            Self::Missing(what) => PipelineError::Input { rank, position, action, what },
            Self::Cause(cause) => PipelineError::Stage { rank, position, action, cause },
        }
    }
}

impl<E: Into<StageError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Cause(error.into())
    }
}

/// An activation or gradient by the stage that consumes it, and its micro-batch.
type Key = (Payload, usize, usize);

struct Runner<'a> {
    execution: &'a Execution<'a>,
    rank: usize,
    /// Produced or received, and not yet consumed or sent.
    ready: HashMap<Key, Act>,
}

impl Runner<'_> {
    fn run(&mut self, action: &Action, ops: &mut dyn StageOps) -> Result<(), Failure> {
        match action {
            Action::Compute(compute) => self.compute(*compute, ops),
            Action::Message(message) => self.message(message, ops),
            Action::Sync(reduction) => Ok(ops.sync(*reduction)?),
        }
    }

    fn compute(&mut self, compute: Compute, ops: &mut dyn StageOps) -> Result<(), Failure> {
        match compute {
            Compute::Forward { stage, micro_batch } => {
                let x = self.input((Payload::Activation, stage, micro_batch), stage == 0)?;
                let y = ops.forward(stage, micro_batch, x)?;
                if !self.is_last(stage) {
                    self.ready.insert((Payload::Activation, stage + 1, micro_batch), y);
                }
            }
            Compute::BackwardInput { stage, micro_batch, segment } => {
                // Only the first segment to run takes the gradient from the next stage.
                let last = self.execution.schedule.segments(stage) - 1;
                let first_to_run = segment.is_none_or(|segment| segment == last);
                let key = (Payload::Gradient, stage, micro_batch);
                let dy = self.input(key, !first_to_run || self.is_last(stage))?;
                let dx = ops.backward_input(stage, micro_batch, segment, dy)?;
                if let Some((dx, below)) = dx.zip(stage.checked_sub(1)) {
                    self.ready.insert((Payload::Gradient, below, micro_batch), dx);
                }
            }
            Compute::BackwardWeight { stage, micro_batch, segment } => {
                ops.backward_weight(stage, micro_batch, segment)?;
            }
        }
        Ok(())
    }

    fn message(&mut self, message: &Message, ops: &dyn StageOps) -> Result<(), Failure> {
        match message {
            Message::Send(send) => {
                let outgoing = self.outgoing(send)?;
                self.execution.comm.send(outgoing, send.peer, name(send, true))?;
            }
            Message::Recv(recv) => {
                let buffer = self.incoming(recv, ops)?;
                let filled = self.execution.comm.recv(buffer, recv.peer, name(recv, false))?;
                self.ready.insert(consumer(recv, false), Act::new(filled));
            }
            Message::Exchange { send, recv } => self.exchange(send, recv, ops)?,
        }
        Ok(())
    }

    /// Both are posted before either is waited for. They are two messages with two peers, so each
    /// keeps its own name.
    fn exchange(
        &mut self,
        send: &Transfer,
        recv: &Transfer,
        ops: &dyn StageOps,
    ) -> Result<(), Failure> {
        let comm = self.execution.comm;
        let (outgoing, buffer) = (self.outgoing(send)?, self.incoming(recv, ops)?);
        let sending = comm.post_send(outgoing, send.peer, name(send, true))?;
        let receiving = comm.post_recv(buffer, recv.peer, name(recv, false))?;
        let filled = receiving.wait()?.recv.ok_or(Failure::Missing("received buffer"))?;
        sending.wait()?;
        self.ready.insert(consumer(recv, false), Act::new(filled));
        Ok(())
    }

    fn is_last(&self, stage: usize) -> bool {
        stage + 1 == self.execution.schedule.stages()
    }

    fn input(&mut self, key: Key, none: bool) -> Result<Option<Act>, Failure> {
        if none {
            return Ok(None);
        }
        let what = match key.0 {
            Payload::Activation => "input activation",
            Payload::Gradient => "output gradient",
        };
        self.ready.remove(&key).map(Some).ok_or(Failure::Missing(what))
    }

    fn outgoing(&mut self, send: &Transfer) -> Result<Buf, Failure> {
        let act = self.ready.remove(&consumer(send, true)).ok_or(Failure::Missing("message"))?;
        Ok(act.into_buf(self.execution.pool)?)
    }

    fn incoming(&self, recv: &Transfer, ops: &dyn StageOps) -> Result<Buf, Failure> {
        debug_assert_ne!(recv.peer, self.rank, "a rank does not send to itself");
        let (dtype, len) = ops.transfer_len(recv.payload);
        Ok(self.execution.pool.alloc(dtype, len)?)
    }
}

/// Who consumes a message, seen from either end.
fn consumer(transfer: &Transfer, sending: bool) -> Key {
    let stage = match (transfer.payload, sending) {
        (_, false) => transfer.stage,
        (Payload::Activation, true) => transfer.stage + 1,
        // Stage 0 sends no gradient; a schedule in which it does finds nothing under this key.
        (Payload::Gradient, true) => transfer.stage.wrapping_sub(1),
    };
    (transfer.payload, stage, transfer.micro_batch)
}

/// Both ends give a message the same name.
fn name(transfer: &Transfer, sending: bool) -> Name {
    let (payload, stage, micro_batch) = consumer(transfer, sending);
    let label = match payload {
        Payload::Activation => "activation for",
        Payload::Gradient => "gradient for",
    };
    Name::new(label).with("stage", stage as u64).with("mb", micro_batch as u64)
}
