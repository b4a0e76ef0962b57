//! A model as the planner needs it: sums over [`ModelSpec`], taken once.

use crate::PlanError;
use crate::again::Again;
use crate::elements::{Degree, Elements, PieceElements};
use crate::recompute::{List, Recompute};
use crate::trained::Trained;
use std::ops::{Add, Mul};
use trine_spec::{
    Block, Branch, Inner, Kept, ModelSpec, Pattern, PieceSizes, QkNorm, SavedTensor, Split,
};

/// What a block does beside its products, on average over those of a model.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct BlockWork {
    /// Branches: each adds to the stream, and enters and leaves one tensor-parallel region.
    pub(crate) branches: f64,
    /// Norms of the stream.
    pub(crate) norms: f64,
    /// Norms of queries and norms of keys.
    pub(crate) qk_norms: f64,
    /// Features that these read for each token, split by heads.
    pub(crate) qk_features: f64,
    /// Sums over tensor parallelism that those over all heads take, each way: one of queries and keys together.
    pub(crate) qk_sums: f64,
}

impl BlockWork {
    fn of_block(block: &Block) -> Self {
        block.branches.iter().map(Self::of).fold(Self::default(), Add::add)
    }

    fn of(branch: &Branch) -> Self {
        let norms = [branch.before, branch.after].iter().flatten().count() as f64;
        let plain = Self { branches: 1.0, norms, ..Self::default() };
        let (Inner::Attention(attention), [q, k, ..]) = (branch.inner, &branch.columns[..]) else {
            return plain;
        };
        let (qk_norms, qk_features) = (2.0, (q.width + k.width) as f64);
        match attention.qk_norm {
            QkNorm::None => plain,
            QkNorm::Head => Self { qk_norms, qk_features, ..plain },
            QkNorm::All => Self { qk_norms, qk_features, qk_sums: 1.0, ..plain },
        }
    }
}

impl Add for BlockWork {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            branches: self.branches + other.branches,
            norms: self.norms + other.norms,
            qk_norms: self.qk_norms + other.qk_norms,
            qk_features: self.qk_features + other.qk_features,
            qk_sums: self.qk_sums + other.qk_sums,
        }
    }
}

impl Mul<f64> for BlockWork {
    type Output = Self;

    fn mul(self, share: f64) -> Self {
        Self {
            branches: self.branches * share,
            norms: self.norms * share,
            qk_norms: self.qk_norms * share,
            qk_features: self.qk_features * share,
            qk_sums: self.qk_sums * share,
        }
    }
}

/// What a block saves for each token, by the type that it is kept in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Saved {
    /// In the compute type.
    pub(crate) compute: Elements,
    /// In the accumulator type.
    pub(crate) sums: Elements,
    /// In the type of the residual stream.
    pub(crate) stream: Elements,
}

impl Saved {
    /// On average over the blocks, of the tensors that `of_block` gives for each branch.
    fn mean(blocks: &Kinds, of_block: impl Fn(&Block) -> Vec<Vec<SavedTensor>>) -> Self {
        let of = |kept| blocks.mean(|block| saved(block, &of_block(block), kept));
        Self { compute: of(Kept::Compute), sums: of(Kept::Sums), stream: of(Kept::Stream) }
    }
}

/// What the blocks of a model drop.
#[derive(Debug, Clone, PartialEq)]
struct Dropping {
    what: trine_spec::Recompute,
    /// What a block keeps alone, and where several ranks share it.
    kept: [Saved; 2],
    again: Again,
}

impl Dropping {
    fn new(blocks: &Kinds, hidden: usize, what: &trine_spec::Recompute) -> Self {
        let mut blocks = blocks.clone();
        for (index, (block, _)) in blocks.0.iter_mut().enumerate() {
            block.recompute(index, what);
        }
        let kept = |tp| {
            Saved::mean(&blocks, |block| {
                let replays = block.replays();
                let numbered = replays.iter().enumerate();
                numbered.map(|(at, replay)| block.kept_by(at, replay, hidden, tp)).collect()
            })
        };
        Self { what: what.clone(), kept: [1, 2].map(kept), again: blocks.mean(Again::of_block) }
    }
}

/// The kinds of blocks that a model has, each with its share of them.
#[derive(Debug, Clone, PartialEq)]
struct Kinds(Vec<(Block, f64)>);

impl Kinds {
    fn new(spec: &ModelSpec) -> Self {
        let mut counted: Vec<(Block, usize)> = Vec::new();
        for block in (0..spec.layers).map(|block| spec.block(block)) {
            match counted.iter_mut().find(|(known, _)| *known == block) {
                Some((_, count)) => *count += 1,
                None => counted.push((block, 1)),
            }
        }
        let share = |count: usize| count as f64 / spec.layers as f64;
        Self(counted.into_iter().map(|(block, count)| (block, share(count))).collect())
    }

    fn mean<T: Default + Add<Output = T> + Mul<f64, Output = T>>(
        &self,
        of: impl Fn(&Block) -> T,
    ) -> T {
        self.0.iter().map(|(block, share)| of(block) * *share).fold(T::default(), Add::add)
    }
}

/// What a pipeline rank has of the ends of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The embedding: the rank of the first stage has it.
    pub embedding: bool,
    /// The head: the rank of the last stage has it. In a V that is the first rank too.
    pub head: bool,
}

/// A model with what the planner asks of it again and again.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The model.
    pub spec: ModelSpec,
    /// Unique parameters.
    pub params: f64,
    pub(crate) elements: PieceElements,
    /// All of it, unless something is frozen ([`Model::freeze`]).
    pub(crate) trained: Trained,
    pub(crate) work: BlockWork,
    /// What a block saves alone, and where several ranks share it: what a branch gives has another type there.
    saved: [Saved; 2],
    blocks: Kinds,
    /// What whole blocks that are computed again drop, by steps.
    whole: Dropping,
    /// Lists of tensors that blocks may drop.
    lists: Vec<Dropping>,
    /// What a search of trine's own layouts tries.
    ladder: Vec<Recompute>,
    /// For every tensor-parallel degree that the layers can be shared over.
    sizes: Vec<(usize, PieceSizes)>,
}

impl Model {
    /// Takes the sums.
    ///
    /// # Errors
    /// What [`ModelSpec::check`] finds.
    pub fn new(spec: &ModelSpec) -> Result<Self, PlanError> {
        spec.check()?;
        let elements = PieceElements::of(spec.layers, |piece| spec.params(piece, 1));
        let blocks = Kinds::new(spec);
        let of_block = |block: &Block, tp| {
            let branches = 0..block.branches.len();
            branches.map(|branch| block.saved_by(branch, spec.hidden, tp)).collect()
        };
        let elementwise = trine_spec::Recompute::tensors(trine_spec::Recompute::ELEMENTWISE);
        let mut model = Self {
            spec: spec.clone(),
            params: spec.param_count() as f64,
            elements,
            trained: Trained::all(elements),
            work: blocks.mean(BlockWork::of_block),
            saved: [1, 2].map(|tp| Saved::mean(&blocks, |block| of_block(block, tp))),
            whole: Dropping::new(&blocks, spec.hidden, &trine_spec::Recompute::FULL),
            lists: vec![Dropping::new(&blocks, spec.hidden, &elementwise)],
            blocks,
            ladder: vec![Recompute::None],
            sizes: (1..=spec.heads)
                .filter_map(|tp| Some((tp, PieceSizes::new(spec, tp).ok()?)))
                .collect(),
        };
        for way in trine_spec::Recompute::ladder() {
            let way = model.drop_tensors(&way)?;
            model.ladder.push(way);
        }
        Ok(model)
    }

    /// Freezes what some patterns name ([`trine_spec::ModelParts::freeze`]): times and memory are those of the rest.
    ///
    /// # Errors
    /// What cannot be frozen.
    pub fn freeze(&mut self, patterns: &[Pattern]) -> Result<(), PlanError> {
        self.trained = match patterns {
            [] => Trained::all(self.elements),
            patterns => {
                let mut parts = self.spec.parts(1)?;
                parts.freeze(patterns)?;
                Trained::of(&parts)
            }
        };
        Ok(())
    }

    /// What a run computes again, as a plan has it. A list of tensors becomes one of the model's.
    ///
    /// # Errors
    /// A name of nothing that can be computed again.
    pub fn drop_tensors(&mut self, what: &trine_spec::Recompute) -> Result<Recompute, PlanError> {
        Ok(match what {
            trine_spec::Recompute::None => Recompute::None,
            trine_spec::Recompute::Blocks { every } => Recompute::Full { every: *every },
            trine_spec::Recompute::Tensors(_) => {
                let known = self.lists.iter().position(|list| list.what == *what);
                let place = known.unwrap_or(self.lists.len());
                if known.is_none() {
                    // Blocks alone know no name of the head.
                    self.spec.parts(1)?.recompute(what)?;
                    self.lists.push(Dropping::new(&self.blocks, self.spec.hidden, what));
                }
                Recompute::Tensors(List(place))
            }
        })
    }

    /// What trine itself tries: nothing, and then [`trine_spec::Recompute::ladder`].
    pub(crate) fn ladder(&self) -> &[Recompute] {
        &self.ladder
    }

    /// How trine's configuration says it, if trine runs it.
    pub fn dropped(&self, again: Recompute) -> Option<trine_spec::Recompute> {
        match again {
            Recompute::None => Some(trine_spec::Recompute::None),
            Recompute::Full { every } => {
                Some(trine_spec::Recompute::Blocks { every }.within(self.spec.layers))
            }
            Recompute::Tensors(List(list)) => Some(self.lists.get(list)?.what.clone()),
            Recompute::Selective | Recompute::SelectiveOps => None,
        }
    }

    pub(crate) fn has_list(&self, List(list): List) -> bool {
        list < self.lists.len()
    }

    /// What runs again of a block that drops a list of tensors.
    pub(crate) fn again(&self, List(list): List) -> Again {
        self.lists[list].again
    }

    /// What runs again of a whole block, without the steps that nothing needs.
    pub(crate) fn whole_again(&self) -> Again {
        self.whole.again
    }

    /// What a block keeps that drops a list of tensors, where `tp` ranks share it.
    pub(crate) fn kept(&self, List(list): List, tp: usize) -> &Saved {
        &self.lists[list].kept[usize::from(tp > 1)]
    }

    /// Over how many of `tp` ranks layers are split.
    pub(crate) fn degree(&self, tp: usize) -> Degree {
        let (heads, inner) = (self.spec.query_features(), self.spec.inner_features());
        Degree { heads: heads.degree(tp), inner: inner.degree(tp), vocab: tp as f64 }
    }

    /// What a block saves where `tp` ranks share it.
    pub(crate) fn saved(&self, tp: usize) -> &Saved {
        &self.saved[usize::from(tp > 1)]
    }

    /// Elements of each piece on the fullest of `tp` ranks, if they can share the layers.
    pub(crate) fn sizes(&self, tp: usize) -> Option<&PieceSizes> {
        self.sizes.iter().find(|(degree, _)| *degree == tp).map(|(_, sizes)| sizes)
    }

    /// Elements that the fullest tensor rank of some blocks and ends holds.
    pub(crate) fn stage_elements(&self, blocks: f64, ends: Ends, tp: usize) -> f64 {
        self.held(&self.elements, blocks, ends, tp)
    }

    /// Those of them that are trained.
    pub(crate) fn stage_trained(&self, blocks: f64, ends: Ends, tp: usize) -> f64 {
        self.held(&self.trained.elements, blocks, ends, tp)
    }

    /// What a stage holds of some elements. A tied output layer without the embedding is a second copy of it.
    pub(crate) fn held(&self, of: &PieceElements, blocks: f64, ends: Ends, tp: usize) -> f64 {
        let degree = self.degree(tp);
        let local = |elements: Elements| elements.local(&degree, 1.0);
        let mut elements = blocks * local(of.block);
        if ends.embedding {
            elements += local(of.embedding);
        }
        if ends.head {
            elements += local(of.norm);
            if !self.spec.tied || !ends.embedding {
                elements += local(of.output);
            }
        }
        elements
    }

    /// Stored vocabulary per tensor rank.
    pub(crate) fn vocab_local(&self, tp: f64) -> f64 {
        self.elements.output.vocab / self.spec.hidden as f64 / tp
    }
}

/// Elements for each token of what the branches of a block keep in one type.
fn saved(block: &Block, tensors: &[Vec<SavedTensor>], kept: Kept) -> Elements {
    let mut elements = Elements::default();
    for (branch, tensors) in block.branches.iter().zip(tensors) {
        for tensor in tensors.iter().filter(|tensor| tensor.kept == kept) {
            let kind = match (tensor.split, branch.inner) {
                (Split::None | Split::Gathered, _) => &mut elements.replicated,
                (Split::Tensor { .. }, Inner::Attention(_)) => &mut elements.heads,
                (Split::Tensor { .. }, Inner::Mlp { .. }) => &mut elements.inner,
                (Split::Sequence, _) => &mut elements.tokens,
            };
            *kind += tensor.per_token as f64;
        }
    }
    elements
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_spec::presets;

    #[test]
    fn a_trillion_parameters_are_counted() {
        let spec = presets::find("frontier-1t").unwrap().model;
        let model = Model::new(&spec).unwrap();
        // Products and embedding alone: 12·128·25600² + 50688·25600 = 1.0079e12; biases, norms, positions on top.
        assert!((model.params / 1.0079e12 - 1.0).abs() < 2e-4, "{}", model.params);
        let blocks = 128.0 * (12.0 * 25600.0 * 25600.0 + 13.0 * 25600.0);
        assert_eq!(128.0 * model.elements.block.local(&model.degree(1), 1.0), blocks);
    }

    #[test]
    fn stages_sum_to_the_model() {
        for name in ["gpt2-124m", "llama3-8b", "frontier-175b"] {
            let spec = presets::find(name).unwrap().model;
            let model = Model::new(&spec).unwrap();
            let all =
                model.stage_elements(spec.layers as f64, Ends { embedding: true, head: true }, 1);
            let padding = (spec.vocab_stored(1) - spec.vocab) * spec.hidden;
            let padding = padding as f64 * if spec.tied { 1.0 } else { 2.0 };
            assert_eq!(all, model.params + padding, "{name}");
        }
    }

    #[test]
    fn the_175b_stages_of_the_log() {
        // Crusher's log: 2,718,480,384 parameters on stages 1 to 14, 2,899,384,320 on the last.
        let mut spec = presets::find("frontier-175b").unwrap().model;
        spec.vocab = 50688;
        let model = Model::new(&spec).unwrap();
        let inner = Ends { embedding: false, head: false };
        assert_eq!(model.stage_elements(6.0, inner, 4), 2_718_480_384.0);
        // Theirs pads 50257 to 50688 and keeps the positions (2048 × h) on both ends.
        let last = model.stage_elements(6.0, Ends { head: true, ..inner }, 4);
        assert!((last - 2_899_384_320.0).abs() < 26e6, "{last}");
    }
}
