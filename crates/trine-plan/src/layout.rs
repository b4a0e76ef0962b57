//! How a model is laid out over devices: what a plan varies.

use crate::model::Ends;
use crate::recompute::{List, Recompute};
use crate::{Model, PlanError, Precision};
use trine_mesh::{Axis, AxisSet, Degrees};
use trine_schedule::{Purpose, Schedule, ScheduleError, ScheduleKind, Shape};
use trine_spec::Shares;

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attention {
    /// Fused and tiled, scores never stored (Dao 2023, FlashAttention-2, and later).
    Flash2,
    /// The first FlashAttention: one block a head and batch row, slower.
    Flash1,
    /// Batched products with a fused scale, mask and softmax between them (Megatron's kernel).
    FusedSoftmax,
    /// Batched products and separate element-wise kernels.
    Unfused,
}

impl Attention {
    /// Whether the scores are stored in memory.
    pub fn stores_scores(self) -> bool {
        matches!(self, Self::FusedSoftmax | Self::Unfused)
    }
}

impl Ends {
    /// Of most ranks of a pipeline: none. Without a pipeline, both.
    pub(crate) fn of_rest(layout: &Layout) -> Self {
        let is_alone = layout.degrees.pp == 1;
        Self { embedding: is_alone, head: is_alone }
    }
}

/// A layout and the batch that runs through it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Layout {
    /// dp, pp, tp, cp.
    pub degrees: Degrees,
    /// Virtual stages of a pipeline rank.
    pub virtual_stages: usize,
    /// The order of forwards and backwards.
    pub pipeline: ScheduleKind,
    /// Sequences of a micro-batch.
    pub micro_batch: usize,
    /// Sequences of an optimizer step, over all replicas.
    pub global_batch: usize,
    /// Tokens of a sequence.
    pub seq: usize,
    /// Whether what tensor parallelism replicates is split along the sequence (Korthikanti et al.).
    pub sequence_parallel: bool,
    /// What backward computes again.
    pub recompute: Recompute,
    /// How attention is computed.
    pub attention: Attention,
    /// ZeRO stage, 0 to 3 (3 = FSDP).
    pub zero: u8,
    /// What products are computed in.
    pub precision: Precision,
}

impl Layout {
    /// Micro-batches of a replica in one step.
    pub fn micro_batches(&self) -> usize {
        self.global_batch / (self.micro_batch * self.degrees.dp)
    }

    /// Devices.
    pub fn devices(&self) -> usize {
        self.degrees.world()
    }

    /// Axes over which gradients are summed: those whose ranks see other tokens and hold the same weights.
    pub fn summed(&self) -> AxisSet {
        AxisSet::of(&[Axis::Dp, Axis::Cp])
    }

    /// Ranks that a gradient is summed over.
    pub fn replicas(&self) -> usize {
        self.degrees.product(self.summed())
    }

    /// Axes over which ranks divide weights, gradients and states.
    pub fn shares(&self) -> Shares {
        Shares::zero(self.zero, self.summed())
    }

    /// Tokens of one micro-batch that one rank of a tensor group sees.
    pub fn tokens(&self) -> f64 {
        self.micro_batch as f64 * self.seq as f64 / self.degrees.cp as f64
    }

    /// The shape of its pipeline.
    pub fn shape(&self) -> Shape {
        Shape {
            ranks: self.degrees.pp,
            chunks: self.virtual_stages,
            micro_batches: self.micro_batches(),
        }
    }

    /// The stages of a pipeline rank.
    pub fn stages_of(&self, rank: usize) -> impl Iterator<Item = usize> + use<> {
        let (shape, pipeline) = (self.shape(), self.pipeline);
        (0..shape.chunks).map(move |chunk| pipeline.stage_of(&shape, rank, chunk))
    }

    /// What a pipeline rank has of the ends of the model.
    pub fn ends_of(&self, rank: usize) -> Ends {
        let shape = self.shape();
        let has = |stage: usize| self.pipeline.rank_of(&shape, stage) == rank;
        Ends { embedding: has(0), head: has(shape.stages() - 1) }
    }

    /// The compute-only lists of its pipeline.
    ///
    /// # Errors
    /// A shape for which the schedule is not defined; the error names the nearest.
    pub fn schedule(&self) -> Result<Schedule, ScheduleError> {
        self.pipeline.generate_shape(self.shape())
    }

    /// Activations that a pipeline rank holds at most, as a multiple of those of one micro-batch through its whole
    /// stage.
    pub fn in_flight(&self, rank: usize) -> f64 {
        self.pipeline.in_flight_max(&self.shape(), rank) as f64 / self.virtual_stages as f64
    }

    /// Checks the layout against a model. A batch that is no multiple of dp × micro-batch is refused.
    ///
    /// # Errors
    /// The first rule that is broken, with the nearest value that would do.
    pub fn check(&self, model: &Model) -> Result<(), PlanError> {
        let bad = |field, value: &dyn std::fmt::Display, rule: String, nearest: String| {
            Err(PlanError::Layout { field, value: value.to_string(), rule, nearest })
        };
        let d = &self.degrees;
        for (field, value) in [
            ("dp", d.dp),
            ("pp", d.pp),
            ("tp", d.tp),
            ("cp", d.cp),
            ("virtual stages", self.virtual_stages),
            ("micro-batch", self.micro_batch),
            ("global batch", self.global_batch),
            ("seq", self.seq),
        ] {
            if value == 0 {
                return bad(field, &0, "must be at least 1".into(), "1".into());
            }
        }
        if self.zero > 3 {
            return bad("zero", &self.zero, "ZeRO has stages 0 to 3".into(), "3".into());
        }
        model.spec.check_layout(d.tp, d.pp)?;
        let chunks = d.pp * self.virtual_stages;
        // The embedding and the head may be chunks of their own.
        if chunks > model.spec.layers + 2 {
            let rule = format!(
                "pp × virtual stages = {chunks} is more than embedding, layers and head: {}",
                model.spec.layers + 2
            );
            let nearest = (model.spec.layers / d.pp).max(1).to_string();
            return bad("virtual stages", &self.virtual_stages, rule, nearest);
        }
        let step = self.micro_batch.saturating_mul(d.dp);
        if !self.global_batch.is_multiple_of(step) {
            let rule = format!("must be a multiple of dp × micro-batch = {step}");
            let nearest = self.global_batch.next_multiple_of(step).to_string();
            return bad("global batch", &self.global_batch, rule, nearest);
        }
        if self.pipeline.info().purpose != Purpose::Train {
            let rule = "computes no gradients".into();
            return bad("schedule", &self.pipeline, rule, ScheduleKind::OneFOneB.to_string());
        }
        self.pipeline.check_shape(&self.shape())?;
        if matches!(self.recompute, Recompute::Full { every: 0 }) {
            let rule = "every block or fewer are computed again: must be at least 1".into();
            return bad("recompute every", &0, rule, "1".into());
        }
        if let Recompute::Tensors(List(list)) = self.recompute
            && !model.has_list(List(list))
        {
            let rule = "must be a list of tensors of this model".into();
            return bad("recompute list", &list, rule, "0".into());
        }
        Ok(())
    }
}
