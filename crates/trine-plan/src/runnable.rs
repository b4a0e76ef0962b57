//! What trine's own trainer runs, of all that can be planned. No other place of this crate says so.

use crate::{Fixed, Layout, Precision, Recompute, Request};
use trine_schedule::{Purpose, ScheduleKind};

/// Whether trine runs a ZeRO stage: it shares out optimizer state only.
fn runs_zero(stage: u8) -> bool {
    stage <= 1
}

/// Whether trine computes this again: whole blocks, tensors by name, or nothing.
fn runs_recompute(again: Recompute) -> bool {
    match again {
        Recompute::None | Recompute::Tensors(_) | Recompute::Full { .. } => true,
        Recompute::Selective | Recompute::SelectiveOps => false,
    }
}

/// Whether trine computes in a type.
fn runs_precision(precision: Precision) -> bool {
    matches!(precision, Precision::Bf16 | Precision::F32)
}

/// Whether trine runs a schedule: those of training.
pub fn runs_schedule(kind: ScheduleKind) -> bool {
    kind.info().purpose == Purpose::Train
}

impl Layout {
    /// Whether trine's own trainer runs it: ZeRO-0 or -1, whole blocks or tensors by name computed again, no context
    /// parallelism, in bf16 or f32, and a step of which lists are made. Where the stream is split, each rank must
    /// have as many tokens.
    pub fn is_runnable(&self) -> bool {
        let splits = self.sequence_parallel && self.degrees.tp > 1;
        self.degrees.cp == 1
            && runs_zero(self.zero)
            && runs_recompute(self.recompute)
            && runs_precision(self.precision)
            && runs_schedule(self.pipeline)
            && !self.shape().is_too_long()
            && (!splits || (self.micro_batch * self.seq).is_multiple_of(self.degrees.tp))
    }
}

impl Request {
    /// The nearest request that trine's trainer can meet: without the fixed values that it never runs, and in bf16
    /// instead of a type that it does not compute in.
    pub fn for_trine(&self) -> Self {
        let Fixed { cp, pipeline, zero, recompute, .. } = self.fixed;
        let fixed = Fixed {
            cp: cp.filter(|degree| *degree == 1),
            pipeline: pipeline.filter(|kind| runs_schedule(*kind)),
            zero: zero.filter(|stage| runs_zero(*stage)),
            recompute: recompute.filter(|again| runs_recompute(*again)),
            runnable: true,
            ..self.fixed
        };
        let precision =
            if runs_precision(self.precision) { self.precision } else { Precision::Bf16 };
        Self { precision, fixed, ..*self }
    }
}
