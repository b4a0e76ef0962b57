//! Bytes of weights, gradients and optimizer state: what a rank holds between steps, from lengths alone (contract C10).
//!
//! The rank that trains and the planner that has never seen it both count with these, so that they cannot differ.

use crate::layout::{end, offset, padded};
use crate::{
    Bucket, ModelSpec, OUTPUT_LAYER, ParamSpec, Piece, RankLayout, Shares, SpecError,
    params::TOKEN_EMBEDDING,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use trine_mesh::Degrees;

/// A gradient bucket is closed once it holds this many elements: large enough that a reduction is
/// bandwidth and not latency, small enough that several overlap the backward pass.
pub const BUCKET_ELEMENTS: usize = 1 << 18;

/// Bytes that one rank holds for its stages. Padding is included: it is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankBytes {
    /// Weights in the compute type.
    pub weights: usize,
    /// Gradients in the accumulator type. In reference numerics: after the reduction; before it
    /// they are trees over samples.
    pub gradients: usize,
    /// Master weights in the accumulator type, where the weights are not in it.
    pub master: usize,
    /// The optimizer's moments in the accumulator type.
    pub moments: usize,
}

/// Bytes of the training state of one element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElementBytes {
    /// Of its weight.
    pub weights: usize,
    /// Of its gradient.
    pub gradients: usize,
    /// Of its master weight; 0 where the weight is its own.
    pub master: usize,
    /// Of its moments.
    pub moments: usize,
}

impl ElementBytes {
    /// Of an element that is not trained.
    pub fn frozen(&self) -> Self {
        Self { weights: self.weights, gradients: 0, master: 0, moments: 0 }
    }

    /// Bytes that a rank needs beside buckets of `elements` elements together to exchange them: where states are
    /// shared out, its own part of every gradient bucket, which are all under way at once, and then of every weight
    /// bucket.
    pub fn exchanged(&self, elements: usize, shared: &Shares, degrees: &Degrees) -> usize {
        match degrees.product(shared.states) {
            1 => 0,
            owners => elements / owners * (self.gradients + self.weights),
        }
    }

    /// [`ElementBytes::exchanged`] for all buckets of a layout.
    pub fn exchanged_of(&self, layout: &RankLayout, degrees: &Degrees) -> usize {
        let of = |bucket: &Bucket| self.exchanged(bucket.len, &bucket.shared, degrees);
        layout.buckets.iter().map(of).sum()
    }
}

impl RankBytes {
    /// What a rank holds of buckets of `elements` elements together, padding included, that are shared out alike.
    /// Every bucket is a multiple of the ranks that share it, so all have equal parts.
    pub fn planned(
        elements: usize,
        each: &ElementBytes,
        shared: &Shares,
        degrees: &Degrees,
    ) -> Self {
        let held = |axes| elements / degrees.product(axes);
        Self {
            weights: held(shared.weights) * each.weights,
            gradients: held(shared.gradients) * each.gradients,
            master: held(shared.states) * each.master,
            moments: held(shared.states) * each.moments,
        }
    }

    /// [`RankBytes::planned`] for all buckets of a layout.
    pub fn of(layout: &RankLayout, each: &ElementBytes, degrees: &Degrees) -> Self {
        let of = |bucket: &Bucket| {
            let each = if bucket.trainable { *each } else { each.frozen() };
            Self::planned(bucket.len, &each, &bucket.shared, degrees)
        };
        layout.buckets.iter().map(of).sum()
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.gradients + self.master + self.moments
    }
}

impl Sum for RankBytes {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        let none = Self { weights: 0, gradients: 0, master: 0, moments: 0 };
        parts.fold(none, |sum, part| Self {
            weights: sum.weights + part.weights,
            gradients: sum.gradients + part.gradients,
            master: sum.master + part.master,
            moments: sum.moments + part.moments,
        })
    }
}

impl fmt::Display for RankBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weights, gradients, master, moments } = self;
        write!(f, "weights {weights}, gradients {gradients}, master {master}, moments {moments}")
    }
}

/// The part of a model that one stage has, for [`PieceSizes::elements`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageShape {
    /// Blocks of the stage.
    pub blocks: usize,
    /// Whether it has the embedding.
    pub first: bool,
    /// Whether it has the head.
    pub last: bool,
    /// Ranks that gradients are summed over: the product of their degrees.
    pub replicas: usize,
    /// As in [`crate::RankRequest`].
    pub tied_apart: bool,
    /// As in [`crate::RankRequest`].
    pub bucket_elements: usize,
}

/// Elements that each piece of a model takes in a bucket on the first tensor-parallel rank, from an aligned start: the
/// most that any rank of the group has, and the same where heads and features divide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceSizes {
    /// The embedding: with the token table first, and without it.
    embedding: [usize; 2],
    block: usize,
    /// The head: with the output layer behind the norm, and without it.
    head: [usize; 2],
    /// The token table, or the output layer, by itself.
    table: usize,
    tied: bool,
}

impl PieceSizes {
    /// The sizes for `tp` ranks.
    ///
    /// # Errors
    /// A layer that `tp` ranks cannot share.
    pub fn new(model: &ModelSpec, tp: usize) -> Result<Self, SpecError> {
        model.check_layout(tp, 1)?;
        let is_table = |spec: &ParamSpec| spec.name == TOKEN_EMBEDDING || spec.name == OUTPUT_LAYER;
        let both = |piece| {
            let specs = model.params(piece, tp);
            let rest = specs.iter().filter(|spec| !is_table(spec));
            [end(specs.iter(), tp), end(rest, tp)]
        };
        let embedding = model.params(Piece::Embedding, tp);
        Ok(Self {
            embedding: both(Piece::Embedding),
            block: end(model.params(Piece::Block(0), tp).iter(), tp),
            head: both(Piece::Head),
            table: end(embedding.iter().filter(|spec| is_table(spec)), tp),
            tied: model.tied,
        })
    }

    /// Elements of all buckets of a stage, padding included: what [`crate::RankLayout::elements`] counts, without
    /// laying anything out.
    pub fn elements(&self, stage: &StageShape) -> usize {
        let apart = self.tied && stage.tied_apart;
        let with_table = |sizes: [usize; 2], held: bool| sizes[usize::from(!held)];
        let (mut closed, mut open) = (0, 0);
        let mut place = |size: usize| {
            if open >= stage.bucket_elements {
                closed += padded(open, stage.replicas);
                open = 0;
            }
            // A piece begins with a parameter that is not fused.
            open = offset(open, false) + size;
        };
        if stage.first {
            place(with_table(self.embedding, !apart));
        }
        (0..stage.blocks).for_each(|_| place(self.block));
        if stage.last {
            // A tied output layer is the embedding itself where both are here, and a bucket of its own
            // where they are apart.
            let own = !self.tied || (!apart && !stage.first);
            place(with_table(self.head, own));
        }
        let tables = if apart { usize::from(stage.first) + usize::from(stage.last) } else { 0 };
        closed + padded(open, stage.replicas) + tables * padded(self.table, stage.replicas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RankRequest, presets, split_layers};
    use trine_mesh::AxisSet;

    fn models() -> Vec<ModelSpec> {
        let mut gpt = presets::find("gpt2-124m").unwrap().model;
        (gpt.hidden, gpt.layers, gpt.ffn, gpt.vocab, gpt.seq_max) = (40, 5, 120, 301, 24);
        (gpt.heads, gpt.kv_heads, gpt.head_dim) = (4, 4, 10);
        let mut llama = presets::find("llama3-8b").unwrap().model;
        (llama.hidden, llama.layers, llama.ffn, llama.vocab) = (72, 7, 200, 1009);
        (llama.heads, llama.kv_heads, llama.head_dim) = (8, 2, 18);
        let untied = ModelSpec { tied: false, ..gpt.clone() };
        let tied = ModelSpec { tied: true, ..llama.clone() };
        vec![gpt, untied, llama, tied]
    }

    /// The sizes are those of the first tensor-parallel rank. The others have the same buckets, none of them longer.
    #[test]
    fn uneven_ranks_have_the_same_buckets_and_the_first_has_most() {
        let mut shorter = 0;
        for (heads, kv_heads) in [(5, 5), (6, 3), (5, 1)] {
            let model = ModelSpec { heads, kv_heads, ffn: 65, ..models().remove(0) };
            for tp in (2..=4).filter(|tp| model.check_layout(*tp, 1).is_ok()) {
                let parts = model.parts(tp).unwrap();
                let stages = split_layers(&parts, 1, None).unwrap();
                for bucket_elements in [1, 4_000, 10_000] {
                    let layout = |tp_index| {
                        let degrees = Degrees { tp, dp: 2, ..Degrees::SERIAL };
                        let serial = RankRequest::serial(&parts, &stages);
                        let summed = AxisSet::DP;
                        let request =
                            RankRequest { degrees, tp_index, summed, bucket_elements, ..serial };
                        RankLayout::new(&request).unwrap()
                    };
                    let first = layout(0);
                    let shape = StageShape {
                        blocks: model.layers,
                        first: true,
                        last: true,
                        replicas: 2,
                        tied_apart: false,
                        bucket_elements,
                    };
                    let sizes = PieceSizes::new(&model, tp).unwrap();
                    assert_eq!(sizes.elements(&shape), first.elements());
                    for other in (1..tp).map(layout) {
                        let params = |bucket: &Bucket| bucket.params.clone();
                        assert!(
                            first.buckets.iter().map(params).eq(other.buckets.iter().map(params))
                        );
                        let pairs = first.buckets.iter().zip(&other.buckets);
                        assert!(pairs.into_iter().all(|(first, other)| first.len >= other.len));
                        shorter += usize::from(other.elements() < first.elements());
                    }
                }
            }
        }
        // Alike where heads divide and rounding hides it.
        assert!(shorter >= 3 * 12, "{shorter}");
    }

    #[test]
    fn sizes_are_what_a_layout_holds_on_every_rank() {
        let mut cases = 0;
        for model in models() {
            for (tp, pp, dp) in [(1, 1, 1), (2, 2, 3), (4, 5, 2), (1, 3, 8), (4, 1, 7)] {
                let sizes = PieceSizes::new(&model, tp).unwrap();
                let parts = model.parts(tp).unwrap();
                for bucket_elements in [1, 5_000, 30_000, 1 << 18] {
                    for tied_apart in [pp > 1, true] {
                        let stages = split_layers(&parts, pp, None).unwrap();
                        for (stage, held) in stages.iter().enumerate() {
                            let ends = usize::from(stage == 0) + usize::from(stage + 1 == pp);
                            let shape = StageShape {
                                blocks: held.pieces.len() - ends,
                                first: stage == 0,
                                last: stage + 1 == pp,
                                replicas: dp,
                                tied_apart,
                                bucket_elements,
                            };
                            for tp_index in 0..tp {
                                let request = RankRequest {
                                    degrees: Degrees { dp, tp, ..Degrees::SERIAL },
                                    tp_index,
                                    summed: AxisSet::DP,
                                    tied_apart,
                                    bucket_elements,
                                    ..RankRequest::serial(&parts, std::slice::from_ref(held))
                                };
                                let layout = RankLayout::new(&request).unwrap();
                                assert_eq!(
                                    sizes.elements(&shape),
                                    layout.elements(),
                                    "{request:?}"
                                );
                                cases += 1;
                            }
                        }
                    }
                }
            }
        }
        assert_eq!(cases, 4 * 4 * 2 * (1 + 2 * 2 + 4 * 5 + 3 + 4));
    }

    #[test]
    fn what_is_shared_out_is_divided_by_the_degrees_and_the_rest_is_not() {
        let each = ElementBytes { weights: 2, gradients: 4, master: 4, moments: 8 };
        let degrees = Degrees { dp: 3, tp: 2, ..Degrees::SERIAL };
        let elements = 48 * 3;
        let bytes = |stage| {
            let shared = Shares::zero(stage, AxisSet::DP);
            let held = RankBytes::planned(elements, &each, &shared, &degrees);
            let RankBytes { weights, gradients, master, moments } = held;
            let exchanged = each.exchanged(elements, &shared, &degrees);
            ([weights, gradients, master, moments], held.total(), exchanged)
        };
        assert_eq!(bytes(0), ([288, 576, 576, 1152], 2592, 0));
        assert_eq!(bytes(1), ([288, 576, 192, 384], 1440, 48 * 6));
        assert_eq!(bytes(3).0, [96, 192, 192, 384]);
    }

    #[test]
    fn a_layout_holds_what_its_buckets_do_each_by_its_own_shares() {
        let model = models().remove(0).parts(1).unwrap();
        let stages = split_layers(&model, 1, None).unwrap();
        let degrees = Degrees { dp: 2, ..Degrees::SERIAL };
        let shared = Shares::zero(1, AxisSet::DP);
        let mut layout = RankLayout::new(&RankRequest {
            degrees,
            summed: AxisSet::DP,
            shared,
            bucket_elements: 5_000,
            ..RankRequest::serial(&model, &stages)
        })
        .unwrap();
        layout.buckets[0].shared = Shares::NONE;
        let whole = layout.buckets[0].len;
        let rest = layout.elements() - whole;
        assert!(whole > 0 && rest > 0);
        let each = ElementBytes { weights: 2, gradients: 4, master: 4, moments: 8 };
        let held = RankBytes::of(&layout, &each, &degrees);
        assert_eq!((held.weights, held.gradients), (2 * (whole + rest), 4 * (whole + rest)));
        assert_eq!((held.master, held.moments), (4 * whole + 2 * rest, 8 * whole + 4 * rest));
        assert_eq!(each.exchanged_of(&layout, &degrees), 3 * rest);
    }
}
