//! What the calls of [`crate::Ops`] are told beside their operands.

/// The target id of a token that does not count: no loss, no gradient.
pub const IGNORE: u32 = u32::MAX;

/// Which product a matrix multiplication is, named by which factors are transposed. With
/// `y = x · wᵀ`, the weight `w` being `[out, in]`, a linear layer needs all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Product {
    /// `C[m,n] = A[m,k] · B[n,k]ᵀ`: forward, `y = x · wᵀ`.
    Nt,
    /// `C[m,n] = A[m,k] · B[k,n]`: input gradient, `dx = dy · w`.
    Nn,
    /// `C[m,n] = A[k,m]ᵀ · B[k,n]`: weight gradient, `dw = dyᵀ · x`.
    Tn,
}

impl Product {
    /// The three products as users know them: what each is in a linear layer.
    pub const fn name(self, accumulate: bool) -> &'static str {
        match (self, accumulate) {
            (Self::Nt, _) => "matmul y = x·wᵀ",
            (Self::Nn, _) => "matmul dx = dy·w",
            (Self::Tn, true) => "matmul dw += dyᵀ·x",
            (Self::Tn, false) => "matmul dw = dyᵀ·x",
        }
    }
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Function {
    /// GELU with tanh, as GPT-2 was trained.
    GeluTanh,
    /// GELU with the error function, its definition (arXiv 1606.08415).
    GeluErf,
    /// `x / (1 + e^−x)`, also called Swish.
    Silu,
    /// `max(x, 0)`, whose derivative at 0 is 0.
    Relu,
}

impl Function {
    /// All functions.
    pub const ALL: [Self; 4] = [Self::GeluTanh, Self::GeluErf, Self::Silu, Self::Relu];
}

/// Shape of a normalisation over rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormShape {
    /// Rows, each normalised by itself.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Added to the variance (layer norm) or the mean square (RMS norm).
    pub eps: f64,
}

/// An RMS norm of groups of columns, of which a call may hold a part: the sums of [`crate::Ops::rms_squares`] and
/// [`crate::Ops::rms_products`] can be added over those who hold the parts before they are used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsShape {
    /// Equal runs of a row's columns, each normalised by itself: the heads, or 1.
    pub groups: usize,
    /// Equal blocks of a group's columns in this call, at most 64: a sum is a balanced tree over them.
    pub blocks: usize,
    /// Elements of a group in all parts.
    pub elements: usize,
    /// Added to the mean square.
    pub eps: f64,
}

/// What rotary embedding works on: `[rows, heads · head_dim]`, where row `r` is at position
/// `start + r % seq` of its sequence. Of each head the first `turned` elements are turned, the pairs
/// `(i, i + turned / 2)` of them; the others stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeShape {
    /// Heads in a row.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements at the front of each head that are turned; even, at most `head_dim`.
    pub turned: usize,
    /// Rows of one sequence.
    pub seq: usize,
    /// Position of the first row of each sequence.
    pub start: usize,
}

/// Where the random numbers of a dropout mask come from. The mask is a pure function of these and
/// of global coordinates, is never stored, and is drawn again by the backward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Probability that an element becomes zero, in `0..1`; the others are scaled by
    /// `1 / (1 − probability)`.
    pub probability: f64,
    /// Key of the random stream ([`trine_rng::Stream::key`]), one for each layer and place.
    pub key: u64,
    /// Optimizer step.
    pub step: u32,
    /// Global index of the first sample of the call.
    pub first_sample: u32,
}

/// The place of a matrix `[samples · tokens, features]` inside the global activation: coordinates
/// are (sample, token, feature), so a shard of tokens or features draws its slice of the mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutPlace {
    /// Rows of one sample in this call.
    pub tokens: usize,
    /// Position of the first of them in its sequence.
    pub first_token: usize,
    /// Global index of the first column.
    pub first_feature: usize,
}

/// Shape of a loss over logits whose columns are a range of the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossShape {
    /// Columns that are real; those after them are padding and count as −∞.
    pub valid_cols: usize,
    /// Vocabulary index of the first column.
    pub first_col: usize,
    /// The bound that the logits have got by [`crate::Ops::softcap`]. Their gradient is then that of the logits before.
    pub softcap: Option<f64>,
}

/// Constants of one AdamW step (arXiv 1711.05101), the same for all elements of a call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// `1 − beta1^t` for step `t ≥ 1`.
    pub bias_correction1: f64,
    /// `1 − beta2^t`.
    pub bias_correction2: f64,
    /// Factor on the gradient: clipping, loss scale.
    pub grad_scale: f64,
}

/// Constants of one SGD step: `v = momentum · v + g + weight_decay · w`, `w −= lr · v`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the velocity; without a velocity slice it must be 0.
    pub momentum: f64,
    /// Weight decay, added to the gradient.
    pub weight_decay: f64,
    /// Factor on the gradient.
    pub grad_scale: f64,
}
