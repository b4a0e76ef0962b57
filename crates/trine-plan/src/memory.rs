//! What one pipeline rank holds at its peak, item by item.

use crate::elements::{Elements, PieceElements, mean};
use crate::model::BlockWork;
use crate::pipeline::blocks_of;
use crate::stack::Partition;
use crate::{Attention, Ends, Layout, Planner, Precision, Recompute};
use trine_spec::{BUCKET_ELEMENTS, ElementBytes, RankBytes, StageShape, stage_blocks};

/// Bytes of one rank, itemised. Everything is live at the peak, except [`Memory::reserve`] and
/// [`Memory::context`], which the allocator and the driver add.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Memory {
    /// Weights that kernels read.
    pub weights: f64,
    /// Gradients, with the wider second ones of stacks that have them.
    pub gradients: f64,
    /// f32 master weights.
    pub master: f64,
    /// Optimizer moments.
    pub moments: f64,
    /// What forward passes in flight have saved.
    pub activations: f64,
    /// What a block needs while it works: recomputed activations, gradients of activations; or, if larger, the
    /// vocabulary logits and their gradient.
    pub working_set: f64,
    /// Weights and gradients gathered around a block (ZeRO-3), buckets, messages.
    pub buffers: f64,
    /// Held by the allocator, not live.
    pub reserve: f64,
    /// Context of the device, communicators, libraries.
    pub context: f64,
}

impl Memory {
    /// Live bytes at the peak: what a framework's allocator counts as allocated.
    pub fn allocated(&self) -> f64 {
        self.states() + self.activations + self.working_set + self.buffers
    }

    /// Weights, gradients, master weights and moments.
    pub fn states(&self) -> f64 {
        self.weights + self.gradients + self.master + self.moments
    }

    /// What the allocator has taken from the device.
    pub fn reserved(&self) -> f64 {
        self.allocated() + self.reserve
    }

    /// What the device's own tool shows, and what must fit.
    pub fn total(&self) -> f64 {
        self.reserved() + self.context
    }
}

impl Planner<'_> {
    /// Memory of each device of a pipeline rank, all its stages together.
    pub fn rank_memory(&self, layout: &Layout, rank: usize) -> Memory {
        let p = layout.degrees.pp;
        let ends = layout.ends_of(rank);
        let blocks = blocks_of(&self.model.spec, layout, self.stack, rank);
        let state = self.stack.states(layout.precision);
        let mut memory = self.states(layout, rank);
        let tokens = layout.tokens();
        let compute = layout.precision.element_bytes();
        let tp = layout.degrees.tp as f64;
        let h = self.model.spec.hidden as f64;

        let flight = layout.in_flight(rank);
        let again = layout.recompute.whole_blocks(blocks);
        let mut each = again * self.checkpoint_bytes(layout)
            + (blocks - again) * self.block_saved_bytes(layout, layout.recompute);
        let stream = tokens * h / sequence_parts(layout);
        if ends.embedding && self.stack.dropout_masks {
            each += stream;
        }
        if self.stack.stage_input_kept && p > 1 {
            each += compute * tokens * h / tp;
        }
        memory.activations = flight * each;
        memory.working_set = self.working_set(layout, ends.head);
        let exchanged = self.bucketed(layout, rank).map_or(0, |([trained, _], each)| {
            each.exchanged(trained, &layout.shares(), &layout.degrees)
        });
        memory.buffers = self.stack.buffer_bytes + self.gathered(layout) + exchanged as f64;
        if p > 1 {
            memory.buffers += 2.0 * self.stack.stream_bytes(layout.precision) * stream;
        }
        let owned = if state.master > 0.0 { memory.master / state.master } else { 0.0 };
        memory.reserve = self.costs.reserve * memory.allocated()
            + if layout.precision == Precision::F16 {
                self.stack.step_gradient_bytes * owned
            } else {
                0.0
            };
        memory.context = self.stack.context_bytes;
        memory
    }

    /// The pipeline rank that needs most, and its memory. Ranks hold less the later they come, but for those that also
    /// hold the embedding and the head, and for a V: there the later ones have more in flight, so that it may be the
    /// last of those with as many blocks as any.
    pub fn peak_memory(&self, layout: &Layout) -> (usize, Memory) {
        let last = layout.degrees.pp - 1;
        let fullest = if layout.ends_of(last).head { last } else { self.last_full(layout) };
        let mut worst = (0, self.rank_memory(layout, 0));
        for rank in [1, fullest, last] {
            if rank <= last && rank > worst.0 {
                let memory = self.rank_memory(layout, rank);
                if memory.total() > worst.1.total() {
                    worst = (rank, memory);
                }
            }
        }
        worst
    }

    /// Of the ranks behind the first, the last that has as many blocks as the second: later ones have fewer, or none
    /// has.
    fn last_full(&self, layout: &Layout) -> usize {
        let blocks = |rank| blocks_of(&self.model.spec, layout, self.stack, rank);
        let (mut full, mut end) = (1, layout.degrees.pp);
        while end - full > 1 {
            let middle = full.midpoint(end);
            let is_full = blocks(middle) >= blocks(1);
            (full, end) = if is_full { (middle, end) } else { (full, middle) };
        }
        full
    }

    /// Elements of the training state of one rank of a stage.
    fn elements(&self, layout: &Layout, blocks: f64, ends: Ends) -> f64 {
        let d = &layout.degrees;
        match self.model.sizes(d.tp).filter(|_| self.stack.bucketed) {
            None => self.model.stage_elements(blocks, ends, d.tp),
            Some(sizes) => sizes.elements(&StageShape {
                blocks: blocks as usize,
                first: ends.embedding,
                last: ends.head,
                replicas: layout.replicas(),
                tied_apart: layout.shape().stages() > 1,
                bucket_elements: BUCKET_ELEMENTS,
            }) as f64,
        }
    }

    /// What a pipeline rank of a trine run holds between steps, to the byte (contract C10): for stacks whose state
    /// lies in buckets, under ZeRO-0 and -1. Where something is frozen, the padding of buckets is that of a model that
    /// is trained as a whole.
    pub fn rank_bytes(&self, layout: &Layout, rank: usize) -> Option<RankBytes> {
        let ([trained, frozen], each) = self.bucketed(layout, rank)?;
        let bytes = |elements, each: &ElementBytes| {
            RankBytes::planned(elements, each, &layout.shares(), &layout.degrees)
        };
        Some([bytes(trained, &each), bytes(frozen, &each.frozen())].into_iter().sum())
    }

    /// Elements in buckets that are trained, and that are frozen.
    fn bucketed(&self, layout: &Layout, rank: usize) -> Option<([usize; 2], ElementBytes)> {
        if !self.stack.bucketed || layout.zero > 1 {
            return None;
        }
        let (spec, stages) = (&self.model.spec, layout.shape().stages());
        let elements: f64 = if self.stack.partition == Partition::Work && stages <= spec.layers {
            let of = |stage| {
                let blocks = stage_blocks(spec, stages, stage) as f64;
                let ends = Ends { embedding: stage == 0, head: stage == stages - 1 };
                self.elements(layout, blocks, ends)
            };
            layout.stages_of(rank).map(of).sum()
        } else {
            let (blocks, ends) = (blocks_of(spec, layout, self.stack, rank), layout.ends_of(rank));
            self.elements(layout, blocks, ends)
        };
        let state = self.stack.states(layout.precision);
        let each = ElementBytes {
            weights: state.weights as usize,
            gradients: state.gradients as usize,
            master: state.master as usize,
            moments: state.moments as usize,
        };
        let trained = (elements * self.trained_share(layout, rank)) as usize;
        Some(([trained, elements as usize - trained], each))
    }

    fn states(&self, layout: &Layout, rank: usize) -> Memory {
        if let Some(bytes) = self.rank_bytes(layout, rank) {
            return Memory {
                weights: bytes.weights as f64,
                gradients: bytes.gradients as f64,
                master: bytes.master as f64,
                moments: bytes.moments as f64,
                ..Memory::default()
            };
        }
        let blocks = blocks_of(&self.model.spec, layout, self.stack, rank);
        let elements = self.elements(layout, blocks, layout.ends_of(rank));
        let state = self.stack.states(layout.precision);
        let shares = layout.shares();
        let trained = elements * self.trained_share(layout, rank);
        let held = |elements: f64, axes| elements / layout.degrees.product(axes) as f64;
        let owned = held(trained, shares.states);
        let main = if state.main_gradients_sharded { owned } else { trained };
        let gradients = held(trained, shares.gradients);
        Memory {
            weights: state.weights * held(elements, shares.weights),
            gradients: state.gradients * gradients + state.main_gradients * main,
            master: state.master * owned,
            moments: state.moments * owned,
            ..Memory::default()
        }
    }

    /// The trained share of the elements that a pipeline rank holds. Blocks are where trine has them; other software is
    /// taken to cut evenly.
    pub(crate) fn trained_share(&self, layout: &Layout, rank: usize) -> f64 {
        let (trained, spec) = (&self.model.trained, &self.model.spec);
        if trained.is_all() {
            return 1.0;
        }
        let (layers, stages) = (spec.layers, layout.shape().stages());
        let by_work = self.stack.partition == Partition::Work && stages <= layers;
        let border = |stage: usize| match by_work {
            true => (0..stage).map(|stage| stage_blocks(spec, stages, stage)).sum(),
            false => layers * stage / stages,
        };
        let held = layout.stages_of(rank).flat_map(|stage| border(stage)..border(stage + 1));
        let (ends, tp) = (layout.ends_of(rank), layout.degrees.tp);
        let blocks: Vec<Elements> = held.map(|block| trained.blocks[block].1).collect();
        let count = blocks.len() as f64;
        let own = PieceElements { block: mean(blocks.into_iter()), ..trained.elements };
        let of = |elements: &PieceElements, ends: Ends| self.model.held(elements, count, ends, tp);
        of(&own, ends) / of(&self.model.elements, ends)
    }

    /// Bytes that a block keeps for its backward pass, without recompute of whole blocks.
    pub(crate) fn block_saved_bytes(&self, layout: &Layout, recompute: Recompute) -> f64 {
        let spec = &self.model.spec;
        let (tp, tokens) = (self.model.degree(layout.degrees.tp), layout.tokens());
        let compute = layout.precision.element_bytes();
        let parts = sequence_parts(layout);
        let (h, f) = (spec.hidden as f64, spec.ffn as f64);
        let (q, kv) = (spec.q_dim() as f64, spec.kv_dim() as f64);
        if recompute == Recompute::SelectiveOps {
            // Kept: the block's input and every second product: q, v, gate, down; and the attention core.
            return tokens
                * compute
                * (h / parts + (2.0 * q + kv) / tp.heads + f / tp.inner + h / parts);
        }
        let stream = self.stack.stream_bytes(layout.precision);
        let BlockWork { branches, norms, .. } = self.model.work;
        let saved = match recompute {
            Recompute::Tensors(list) => self.model.kept(list, layout.degrees.tp),
            _ => self.model.saved(layout.degrees.tp),
        };
        let mut bytes = 0.0;
        for (elements, each) in
            [(saved.compute, compute), (saved.sums, 4.0), (saved.stream, stream)]
        {
            bytes += tokens * each * elements.local(&tp, parts);
        }
        // Norms that keep an upcast copy of what they read.
        bytes += tokens * norms * self.stack.norm_extra_bytes * h / parts;
        if self.stack.gathered_inputs_kept {
            bytes += tokens * compute * branches * h * (1.0 - 1.0 / parts);
        }
        if self.stack.gate_activation {
            bytes += tokens * compute * f * spec.gates() / tp.inner;
        }
        if self.stack.dropout_masks {
            bytes += tokens * branches * h / parts;
        }
        if layout.attention.stores_scores() && recompute != Recompute::Selective {
            bytes += self.score_bytes(layout);
        }
        bytes
    }

    /// Scores of every query and key of the fullest rank.
    fn score_elements(&self, layout: &Layout) -> f64 {
        layout.tokens() * layout.seq as f64 * self.model.spec.heads as f64
            / self.model.degree(layout.degrees.tp).heads
    }

    /// Softmax output, and with dropout its mask and what is left (Korthikanti et al.: 5 a s² b; without: 2 a s² b).
    fn score_bytes(&self, layout: &Layout) -> f64 {
        let elements = self.score_elements(layout);
        let compute = layout.precision.element_bytes();
        elements * if self.stack.dropout_masks { 2.0 * compute + 1.0 } else { 2.0 * compute }
    }

    /// The input of a block.
    pub(crate) fn checkpoint_bytes(&self, layout: &Layout) -> f64 {
        let bytes = self.stack.stream_bytes(layout.precision);
        layout.tokens() * self.model.spec.hidden as f64 * bytes / sequence_parts(layout)
    }

    /// Gradients of scores and probabilities, and without a fused kernel their f32 copies.
    fn score_gradient_bytes(&self, layout: &Layout) -> f64 {
        let elements = self.score_elements(layout);
        match layout.attention {
            Attention::Unfused => 12.0 * elements,
            Attention::FusedSoftmax => 4.0 * elements,
            Attention::Flash1 | Attention::Flash2 => 0.0,
        }
    }

    fn working_set(&self, layout: &Layout, has_head: bool) -> f64 {
        let spec = &self.model.spec;
        let (tp, tokens) = (self.model.degree(layout.degrees.tp), layout.tokens());
        let compute = layout.precision.element_bytes();
        let inner = spec.ffn as f64 * (1.0 + spec.gates());
        // Gradients of the residual stream and of the MLP's inside, at both ends of its activation.
        let gradients = tokens * compute * (2.0 * spec.hidden as f64 + 2.0 * inner / tp.inner)
            + self.score_gradient_bytes(layout);
        let recomputed = match layout.recompute {
            Recompute::None => 0.0,
            Recompute::Selective if layout.attention.stores_scores() => self.score_bytes(layout),
            Recompute::Selective => 0.0,
            Recompute::SelectiveOps | Recompute::Full { .. } => {
                self.block_saved_bytes(layout, Recompute::None)
            }
            // What is dropped comes beside what is kept.
            Recompute::Tensors(_) => {
                self.block_saved_bytes(layout, Recompute::None)
                    - self.block_saved_bytes(layout, layout.recompute)
            }
        };
        let logits = if has_head {
            let parts = if self.stack.logits_whole { 1.0 } else { tp.vocab };
            tokens * self.model.vocab_local(parts) * self.stack.logit_bytes
                + tokens * spec.hidden as f64 * compute * 2.0
        } else {
            0.0
        };
        (gradients + recomputed).max(logits)
    }

    /// With ZeRO-3, two blocks' weights (one in use, one fetched ahead) and a block's gradient are whole; the
    /// embedding too.
    fn gathered(&self, layout: &Layout) -> f64 {
        if layout.zero < 3 {
            return 0.0;
        }
        let tp = self.model.degree(layout.degrees.tp);
        let block = self.model.elements.block.local(&tp, 1.0);
        let ends = self.model.elements.embedding.local(&tp, 1.0);
        let compute = layout.precision.element_bytes();
        3.0 * block * compute + ends * compute
    }
}

/// Over how many ranks the residual stream is split.
fn sequence_parts(layout: &Layout) -> f64 {
    if layout.sequence_parallel { layout.degrees.tp as f64 } else { 1.0 }
}
