//! The most activation bytes of one rank of a trine run: what each action of its schedule keeps and frees, added up.
//! What a piece's passes hold, [`ModelParts::passes`] says.

use std::collections::{HashMap, HashSet};
use trine_schedule::{Action, Compute, Message, Schedule};
use trine_spec::{Bucket, ModelParts, Pass, PassShape, Passes, Piece, RankLayout};

/// One rank of a run.
#[derive(Debug, Clone, Copy)]
pub struct ActivationRequest<'a> {
    /// The model, as its tensor-parallel ranks share it.
    pub model: &'a ModelParts,
    /// How passes are run.
    pub shape: PassShape,
    /// The lowered schedule of a training step.
    pub schedule: &'a Schedule,
    /// The pipeline rank.
    pub rank: usize,
    /// What it holds: the pieces of each of its stages, by segment.
    pub layout: &'a RankLayout,
}

/// The peak in bytes, messages between stages included, for fast numerics.
///
/// Small buffers of single rows are not counted, and a message that the other side has not taken yet may stay a little
/// longer than here.
pub fn activation_peak(request: &ActivationRequest<'_>) -> usize {
    let ActivationRequest { model, shape, .. } = request;
    let held: HashSet<Piece> =
        request.layout.buckets.iter().flat_map(|bucket| &bucket.pieces).copied().collect();
    let parts = model.pieces.iter().filter(|part| held.contains(&part.piece));
    let passes: HashMap<Piece, Passes> =
        parts.map(|part| (part.piece, model.passes(part, shape))).collect();
    let stream = model.stream_bytes(shape);
    // Each piece frees what its weight gradients have needed as soon as it has them.
    let at_once = request.schedule.has_weights_at_once();
    let mut memory = Held::default();
    for action in &request.schedule.actions[request.rank] {
        match *action {
            Action::Compute(Compute::Forward { stage, .. }) => {
                request.pieces(stage, None).for_each(|piece| {
                    memory.step(&passes[&piece].forward);
                })
            }
            Action::Compute(Compute::BackwardInput { stage, segment, .. }) => {
                request.pieces(stage, segment).rev().for_each(|piece| {
                    memory.step(&passes[&piece].backward);
                    if at_once {
                        memory.add(-passes[&piece].work);
                    }
                })
            }
            Action::Compute(Compute::BackwardWeight { .. }) if at_once => {}
            Action::Compute(Compute::BackwardWeight { stage, segment, .. }) => {
                let pieces = request.pieces(stage, segment);
                memory.add(-pieces.map(|piece| passes[&piece].work).sum::<i64>());
            }
            Action::Message(Message::Recv(_)) => memory.add(stream),
            Action::Message(Message::Send(_)) => memory.add(-stream),
            Action::Message(Message::Exchange { .. }) => {
                memory.step(&Pass { needs: stream, leaves: 0 })
            }
            Action::Sync(_) => {}
        }
    }
    memory.peak.max(0) as usize
}

impl ActivationRequest<'_> {
    /// The pieces of a segment of a stage, or of all of them, in forward order.
    fn pieces(
        &self,
        stage: usize,
        segment: Option<usize>,
    ) -> impl DoubleEndedIterator<Item = Piece> + '_ {
        let is_meant = move |bucket: &&Bucket| {
            bucket.stage == stage && segment.is_none_or(|segment| bucket.segment == segment)
        };
        self.layout.buckets.iter().filter(is_meant).flat_map(|bucket| &bucket.pieces).copied()
    }
}

#[derive(Debug, Default)]
struct Held {
    now: i64,
    peak: i64,
}

impl Held {
    fn add(&mut self, bytes: i64) {
        self.now += bytes;
        self.peak = self.peak.max(self.now);
    }

    fn step(&mut self, pass: &Pass) {
        self.peak = self.peak.max(self.now + pass.needs);
        self.add(pass.leaves);
    }
}
