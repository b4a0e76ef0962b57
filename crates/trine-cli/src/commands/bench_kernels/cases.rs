//! What `trine bench kernels` measures: kernels and shapes as data.

use super::calls::{self, Bench, Prepared};
use trine_kernels::{AttentionShape, KernelError, Product};

/// Elements of a head.
pub(super) const HEAD_DIM: usize = 64;

/// Columns of the logits: GPT-2's vocabulary of 50,257 tokens, padded.
pub(super) const VOCAB: usize = 50_304;

/// Tokens, inputs and outputs of the linear layers of GPT-2 124M, and of one of a small model.
const LINEARS: [[usize; 3]; 6] = [
    [512, 768, 768],
    [512, 768, 3072],
    [512, 3072, 768],
    [512, 768, VOCAB],
    [2048, 768, 2304],
    [3072, 384, 1536],
];

/// Tokens of a sample, and key heads for 12 query heads.
const ATTENTIONS: [[usize; 2]; 6] =
    [[256, 12], [1024, 12], [4096, 12], [256, 4], [1024, 4], [4096, 4]];

/// Samples of an attention.
const SAMPLES: usize = 4;
/// Query heads of GPT-2 124M.
const HEADS: usize = 12;

/// A kernel that memory bounds, on matrices of these rows and columns.
pub(super) struct Stream {
    name: &'static str,
    prepare: for<'a> fn(Bench<'a>, usize, usize) -> Result<Prepared<'a>, KernelError>,
    shapes: &'static [[usize; 2]],
}

/// Activations of GPT-2 124M and of a small model: between the blocks, and inside the MLP.
const HIDDEN: &[[usize; 2]] = &[[2048, 768], [3072, 384]];
const MLP: &[[usize; 2]] = &[[2048, 3072], [3072, 1536]];
const LOGITS: &[[usize; 2]] = &[[512, VOCAB]];
/// Parameters, more than a cache holds.
const FLAT: &[[usize; 2]] = &[[32_768, 1024]];

/// All of `Ops` but the products, attention, the loss from its sums, which is one number a row, and the steps of RMS
/// norms that ranks share, which are parts of `rms_norm` and its backward pass.
const STREAMS: &[Stream] = &[
    Stream { name: "layer_norm", prepare: calls::layer_norm, shapes: HIDDEN },
    Stream { name: "layer_norm_backward", prepare: calls::layer_norm_backward, shapes: HIDDEN },
    Stream { name: "rms_norm", prepare: calls::rms_norm, shapes: HIDDEN },
    Stream { name: "rms_norm_backward", prepare: calls::rms_norm_backward, shapes: HIDDEN },
    Stream { name: "gelu", prepare: calls::gelu, shapes: MLP },
    Stream { name: "gelu_backward", prepare: calls::gelu_backward, shapes: MLP },
    Stream { name: "swiglu", prepare: calls::swiglu, shapes: MLP },
    Stream { name: "swiglu_backward", prepare: calls::swiglu_backward, shapes: MLP },
    Stream { name: "rope", prepare: calls::rope, shapes: HIDDEN },
    Stream { name: "add_bias", prepare: calls::add_bias, shapes: MLP },
    Stream { name: "sum_rows", prepare: calls::sum_rows, shapes: MLP },
    Stream { name: "add", prepare: calls::add, shapes: HIDDEN },
    Stream { name: "add_assign", prepare: calls::add_assign, shapes: HIDDEN },
    Stream { name: "scale", prepare: calls::scale, shapes: HIDDEN },
    Stream { name: "copy", prepare: calls::copy, shapes: HIDDEN },
    Stream { name: "dropout", prepare: calls::dropout, shapes: HIDDEN },
    Stream { name: "embedding", prepare: calls::embedding, shapes: HIDDEN },
    Stream { name: "embedding_backward", prepare: calls::embedding_backward, shapes: HIDDEN },
    Stream { name: "softcap", prepare: calls::softcap, shapes: LOGITS },
    Stream { name: "ce_max", prepare: calls::ce_max, shapes: LOGITS },
    Stream { name: "ce_sum", prepare: calls::ce_sum, shapes: LOGITS },
    Stream { name: "ce_grad", prepare: calls::ce_grad, shapes: LOGITS },
    Stream { name: "cast", prepare: calls::cast, shapes: FLAT },
    Stream { name: "adamw", prepare: calls::adamw, shapes: FLAT },
    Stream { name: "sgd", prepare: calls::sgd, shapes: FLAT },
    Stream { name: "sum_squares", prepare: calls::sum_squares, shapes: FLAT },
    Stream { name: "row_sums", prepare: calls::row_sums, shapes: FLAT },
    Stream { name: "first_non_finite", prepare: calls::first_non_finite, shapes: FLAT },
];

/// A row of the report.
pub(super) enum Case {
    /// A product of a linear layer.
    Matmul { product: Product, tokens: usize, inputs: usize, outputs: usize },
    /// Attention forward.
    Attention(AttentionShape),
    /// Attention backward.
    AttentionBackward(AttentionShape),
    /// A kernel that memory bounds.
    Stream { stream: &'static Stream, rows: usize, cols: usize },
}

/// All rows, in the order of the report.
pub(super) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for [tokens, inputs, outputs] in LINEARS {
        for product in [Product::Nt, Product::Nn, Product::Tn] {
            cases.push(Case::Matmul { product, tokens, inputs, outputs });
        }
    }
    for [tokens, kv_heads] in ATTENTIONS {
        let shape = AttentionShape {
            samples: SAMPLES,
            queries: tokens,
            keys: tokens,
            query_start: 0,
            key_start: 0,
            window: None,
            heads: HEADS,
            kv_heads,
            head_dim: HEAD_DIM,
            scale: 1.0 / (HEAD_DIM as f64).sqrt(),
            softcap: None,
        };
        cases.extend([Case::Attention(shape), Case::AttentionBackward(shape)]);
    }
    for stream in STREAMS {
        let shapes = stream.shapes.iter();
        cases.extend(shapes.map(|&[rows, cols]| Case::Stream { stream, rows, cols }));
    }
    cases
}

impl Case {
    /// The kernel, as `trine bench step --profile` names it.
    pub(super) fn kernel(&self) -> &'static str {
        match self {
            Self::Matmul { product, .. } => product.name(calls::accumulates(*product)),
            Self::Attention(_) => "attention",
            Self::AttentionBackward(_) => "attention_backward",
            Self::Stream { stream, .. } => stream.name,
        }
    }

    /// Tokens, inputs and outputs; samples, tokens and heads; rows and columns.
    pub(super) fn shape(&self) -> String {
        match self {
            Self::Matmul { tokens, inputs, outputs, .. } => {
                format!("{tokens} x {inputs} x {outputs}")
            }
            Self::Attention(shape) | Self::AttentionBackward(shape) => format!(
                "{} x {}, {} of {} kv heads",
                shape.samples, shape.queries, shape.kv_heads, shape.heads
            ),
            Self::Stream { rows, cols, .. } => format!("{rows} x {cols}"),
        }
    }

    /// Whether the row is asked for: all are, unless there are filters.
    pub(super) fn is_wanted(&self, filters: &[String]) -> bool {
        let name = format!("{} {}", self.kernel(), self.shape());
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter))
    }

    /// The kernel with everything that it works on.
    pub(super) fn prepare<'a>(&self, bench: Bench<'a>) -> Result<Prepared<'a>, KernelError> {
        match *self {
            Self::Matmul { product, tokens, inputs, outputs } => {
                calls::matmul(bench, product, tokens, inputs, outputs)
            }
            Self::Attention(shape) => calls::attention(bench, shape),
            Self::AttentionBackward(shape) => calls::attention_backward(bench, shape),
            Self::Stream { stream, rows, cols } => (stream.prepare)(bench, rows, cols),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let cases = all();
        let names: BTreeSet<_> = cases.iter().map(|c| (c.kernel(), c.shape())).collect();
        assert_eq!((names.len(), cases.len()), (76, 76));
        let kernels: BTreeSet<_> = cases.iter().map(Case::kernel).collect();
        assert_eq!(kernels.len(), 3 + 2 + STREAMS.len());
    }

    #[test]
    fn filters_choose_by_name_and_shape() {
        let count = |filters: &[&str]| {
            let filters: Vec<_> = filters.iter().map(|&f| f.to_owned()).collect();
            all().iter().filter(|case| case.is_wanted(&filters)).count()
        };
        assert_eq!(count(&[]), 76);
        assert_eq!(count(&["matmul"]), 18);
        assert_eq!(count(&["512 x 768 x 768", "rms_norm"]), 3 + 4);
        assert_eq!(count(&["attention_backward 4 x 256, 4"]), 1);
        assert_eq!(count(&["no such kernel"]), 0);
    }
}
