//! What a rank can be told to do: one [`Action`] at a time.

/// What a transfer between two stages carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payload {
    /// The output of a stage, on its way to the next stage.
    Activation,
    /// The gradient of a stage's input, on its way to the stage before.
    Gradient,
}

impl std::fmt::Display for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Activation => "activation",
            Self::Gradient => "gradient",
        })
    }
}

/// One end of a message between neighbouring stages that live on different ranks.
///
/// `stage` is always a stage of the rank that holds the action: the one that produced the payload in
/// a send, the one that will consume it in a receive. An executor finds its own state by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transfer {
    /// What is carried.
    pub payload: Payload,
    /// The stage of this rank that produced (send) or consumes (receive) it.
    pub stage: usize,
    /// The micro-batch it belongs to.
    pub micro_batch: usize,
    /// The pipeline rank at the other end.
    pub peer: usize,
}

/// One step of a rank's list: work of its own, a message to or from another stage, or a sum over ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// F, B or W.
    Compute(Compute),
    /// A message between stages.
    Message(Message),
    /// The reduction of gradients.
    Sync(Reduction),
}

/// The work of a stage on a micro-batch.
///
/// A stage's layers may be cut into *segments*, one gradient bucket each, numbered in forward order.
/// Backward runs them from last to first; `segment: None` means all of them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compute {
    /// F: run the stage on a micro-batch and keep what backward needs.
    Forward {
        /// The stage to run.
        stage: usize,
        /// The micro-batch to run it on.
        micro_batch: usize,
    },
    /// B: the gradient of the stage's input. What is left to do for its weights is kept for W.
    BackwardInput {
        /// The stage to run.
        stage: usize,
        /// The micro-batch to run it on.
        micro_batch: usize,
        /// The segment to run; `None` is all, last to first.
        segment: Option<usize>,
    },
    /// W: the gradient of the stage's weights, added to its buckets. Frees what F kept.
    BackwardWeight {
        /// The stage to run.
        stage: usize,
        /// The micro-batch to run it on.
        micro_batch: usize,
        /// The segment to run; `None` is all, last to first.
        segment: Option<usize>,
    },
}

/// One end of a message between stages, or of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message {
    /// Send what the stage produced.
    Send(Transfer),
    /// Receive what the stage will consume.
    Recv(Transfer),
    /// A send and a receive posted together; done when both are. The peers may differ.
    ///
    /// Two neighbours that both send first and receive second wait for each other for ever when
    /// a send completes only once it is received; posted together, they cannot.
    Exchange {
        /// What is sent.
        send: Transfer,
        /// What is received.
        recv: Transfer,
    },
}

/// A part of the sum of gradients over ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Sum the gradient of a tied parameter over all its copies, in every stage that holds one.
    /// Waits for the other ranks. A rank with several copies says it once, for the lowest stage.
    ReduceTied {
        /// The lowest stage of this rank that holds a copy.
        stage: usize,
    },
    /// Post the data-parallel reduction of one gradient bucket, without waiting for it.
    ReduceGrad {
        /// The stage of the bucket.
        stage: usize,
        /// The segment whose bucket it is.
        segment: usize,
    },
    /// Wait for a reduction that [`Reduction::ReduceGrad`] posted.
    AwaitGrad {
        /// The stage of the bucket.
        stage: usize,
        /// The segment whose bucket it is.
        segment: usize,
    },
}

impl From<Compute> for Action {
    fn from(compute: Compute) -> Self {
        Self::Compute(compute)
    }
}

impl From<Message> for Action {
    fn from(message: Message) -> Self {
        Self::Message(message)
    }
}

impl From<Reduction> for Action {
    fn from(reduction: Reduction) -> Self {
        Self::Sync(reduction)
    }
}

impl Action {
    /// The stage of this rank that the action works for (of an exchange: the sending one).
    pub fn stage(&self) -> usize {
        match self {
            Action::Compute(compute) => compute.stage(),
            Action::Message(message) => message.stage(),
            Action::Sync(reduction) => reduction.stage(),
        }
    }

    /// True for F, B and W.
    pub fn is_compute(&self) -> bool {
        match self {
            Action::Compute(_) => true,
            Action::Message(_) | Action::Sync(_) => false,
        }
    }

    /// True for F, B and W of all segments at once.
    pub(crate) fn is_whole_compute(&self) -> bool {
        match self {
            Action::Compute(compute) => compute.is_whole(),
            Action::Message(_) | Action::Sync(_) => false,
        }
    }

    /// What the action sends and what it receives.
    pub fn transfers(&self) -> (Option<Transfer>, Option<Transfer>) {
        match self {
            Action::Message(message) => message.transfers(),
            Action::Compute(_) | Action::Sync(_) => (None, None),
        }
    }
}

impl Compute {
    /// The stage that is run.
    pub fn stage(&self) -> usize {
        match *self {
            Compute::Forward { stage, .. }
            | Compute::BackwardInput { stage, .. }
            | Compute::BackwardWeight { stage, .. } => stage,
        }
    }

    /// The micro-batch that it is run on.
    pub fn micro_batch(&self) -> usize {
        match *self {
            Compute::Forward { micro_batch, .. }
            | Compute::BackwardInput { micro_batch, .. }
            | Compute::BackwardWeight { micro_batch, .. } => micro_batch,
        }
    }

    /// Whether all segments are run at once.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Compute::Forward { .. } => true,
            Compute::BackwardInput { segment, .. } | Compute::BackwardWeight { segment, .. } => {
                segment.is_none()
            }
        }
    }
}

impl Message {
    /// The stage of this rank that it works for (of an exchange: the sending one).
    pub fn stage(&self) -> usize {
        match *self {
            Message::Send(transfer) | Message::Recv(transfer) => transfer.stage,
            Message::Exchange { send, .. } => send.stage,
        }
    }

    /// What is sent and what is received.
    pub fn transfers(&self) -> (Option<Transfer>, Option<Transfer>) {
        match *self {
            Message::Send(send) => (Some(send), None),
            Message::Recv(recv) => (None, Some(recv)),
            Message::Exchange { send, recv } => (Some(send), Some(recv)),
        }
    }
}

impl Reduction {
    /// The stage of the bucket.
    pub fn stage(&self) -> usize {
        match *self {
            Reduction::ReduceTied { stage }
            | Reduction::ReduceGrad { stage, .. }
            | Reduction::AwaitGrad { stage, .. } => stage,
        }
    }
}

/// A message as both of its ends see it, named by the stage that consumes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Parcel {
    pub(crate) payload: Payload,
    pub(crate) to_stage: usize,
    pub(crate) micro_batch: usize,
}

impl Transfer {
    /// The message that this sends; `None` if no stage can consume it (a gradient of stage 0).
    pub(crate) fn sent(&self) -> Option<Parcel> {
        let to_stage = match self.payload {
            Payload::Activation => self.stage.checked_add(1)?,
            Payload::Gradient => self.stage.checked_sub(1)?,
        };
        Some(Parcel { payload: self.payload, to_stage, micro_batch: self.micro_batch })
    }

    /// The message that this receives.
    pub(crate) fn received(&self) -> Parcel {
        Parcel { payload: self.payload, to_stage: self.stage, micro_batch: self.micro_batch }
    }
}

impl Parcel {
    /// The stage that produces it; `None` if there is none (an activation for stage 0).
    pub(crate) fn source_stage(&self) -> Option<usize> {
        match self.payload {
            Payload::Activation => self.to_stage.checked_sub(1),
            Payload::Gradient => self.to_stage.checked_add(1),
        }
    }
}
