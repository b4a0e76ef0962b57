//! A model as the planner needs it: sums over [`ModelSpec`], taken once.

use crate::PlanError;
use trine_spec::{Kept, ModelSpec, ParamSpec, Piece, PieceSizes, Split};

/// Elements of a piece: those that tensor parallelism splits, and those that every rank holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Elements {
    pub(crate) split: f64,
    pub(crate) replicated: f64,
}

impl Elements {
    pub(crate) fn local(self, tp: f64) -> f64 {
        self.split / tp + self.replicated
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
    pub(crate) block: Elements,
    pub(crate) embedding: Elements,
    /// Final norm and, if untied, the output layer.
    pub(crate) head: Elements,
    /// The output layer by itself, which a stage without the embedding holds in any case.
    pub(crate) output: Elements,
    /// Bytes that a block saves per token in 16-bit compute types: for everybody, split over features, split over
    /// sequence; the last two are the same where there is one tensor rank.
    pub(crate) saved: [f64; 3],
    /// Saved bytes per token in the accumulator type, of the same three kinds.
    pub(crate) saved_sums: [f64; 3],
    /// Saved elements per token of the residual stream.
    pub(crate) saved_stream: [f64; 3],
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
        let params = |piece| spec.params(piece, 1);
        let head = params(Piece::Head);
        let (output, rest): (Vec<ParamSpec>, Vec<ParamSpec>) =
            head.into_iter().partition(|param| param.name == "head.output.weight");
        let mut saved = [0.0; 3];
        let mut saved_sums = [0.0; 3];
        let mut saved_stream = [0.0; 3];
        let blocks = (0..spec.layers).flat_map(|block| spec.block(block).saved(spec.hidden, 1));
        for tensor in blocks {
            let kind = match tensor.split {
                Split::None | Split::Gathered => 0,
                Split::Tensor => 1,
                Split::Sequence => 2,
            };
            let sum = match tensor.kept {
                Kept::Compute => &mut saved,
                Kept::Sums => &mut saved_sums,
                Kept::Stream => &mut saved_stream,
            };
            sum[kind] += tensor.per_token as f64;
        }
        for kinds in [&mut saved, &mut saved_sums, &mut saved_stream] {
            for of_all in kinds {
                *of_all /= spec.layers as f64;
            }
        }
        let unique = sum(&rest);
        let output = sum(&output);
        Ok(Self {
            spec: spec.clone(),
            params: spec.param_count() as f64,
            block: mean((0..spec.layers).map(|block| sum(&params(Piece::Block(block))))),
            embedding: sum(&params(Piece::Embedding)),
            head: if spec.tied {
                unique
            } else {
                Elements {
                    split: unique.split + output.split,
                    replicated: unique.replicated + output.replicated,
                }
            },
            output,
            saved,
            saved_sums,
            saved_stream,
            sizes: (1..=spec.heads)
                .filter_map(|tp| Some((tp, PieceSizes::new(spec, tp).ok()?)))
                .collect(),
        })
    }

    /// Elements of each piece on one of `tp` ranks, if they can share the layers.
    pub(crate) fn sizes(&self, tp: usize) -> Option<&PieceSizes> {
        self.sizes.iter().find(|(degree, _)| *degree == tp).map(|(_, sizes)| sizes)
    }

    /// Elements that one tensor rank of some blocks and ends holds. A tied output layer without the embedding is a
    /// second copy of it.
    pub(crate) fn stage_elements(&self, blocks: f64, ends: Ends, tp: f64) -> f64 {
        let mut elements = blocks * self.block.local(tp);
        if ends.embedding {
            elements += self.embedding.local(tp);
        }
        if ends.head {
            elements += self.head.local(tp);
            if self.spec.tied && !ends.embedding {
                elements += self.output.local(tp);
            }
        }
        elements
    }

    /// Stored vocabulary per tensor rank.
    pub(crate) fn vocab_local(&self, tp: f64) -> f64 {
        self.output.split / self.spec.hidden as f64 / tp
    }
}

fn mean(blocks: impl ExactSizeIterator<Item = Elements>) -> Elements {
    let count = blocks.len() as f64;
    let none = Elements { split: 0.0, replicated: 0.0 };
    let all = blocks.fold(none, |all, block| Elements {
        split: all.split + block.split,
        replicated: all.replicated + block.replicated,
    });
    Elements { split: all.split / count, replicated: all.replicated / count }
}

fn sum(params: &[ParamSpec]) -> Elements {
    let mut elements = Elements { split: 0.0, replicated: 0.0 };
    for param in params {
        let len = param.shape.iter().product::<usize>() as f64;
        if param.split_dim().is_some() {
            elements.split += len;
        } else {
            elements.replicated += len;
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
        assert_eq!(128.0 * model.block.local(1.0), blocks);
    }

    #[test]
    fn stages_sum_to_the_model() {
        for name in ["gpt2-124m", "llama3-8b", "frontier-175b"] {
            let spec = presets::find(name).unwrap().model;
            let model = Model::new(&spec).unwrap();
            let all =
                model.stage_elements(spec.layers as f64, Ends { embedding: true, head: true }, 1.0);
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
        assert_eq!(model.stage_elements(6.0, inner, 4.0), 2_718_480_384.0);
        // Theirs pads 50257 to 50688 and keeps the positions (2048 × h) on both ends.
        let last = model.stage_elements(6.0, Ends { head: true, ..inner }, 4.0);
        assert!((last - 2_899_384_320.0).abs() < 26e6, "{last}");
    }
}
