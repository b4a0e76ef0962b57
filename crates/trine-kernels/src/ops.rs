//! `Ops`: the seam between devices.

use crate::{
    AttentionDropout, AttentionShape, GateUpMut, KernelError, MatMut, MatRef, Qkv, QkvMut,
};
use std::fmt;
use trine_buffer::{Slice, SliceMut};

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
    /// The bound that the logits have got by [`Ops::softcap`]. Their gradient is then that of the logits before.
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

type Done = Result<(), KernelError>;

/// Everything a training step computes, over views of buffers on one device.
///
/// *Types.* `T` is the compute type of a call (f64, f32 or bf16) and `Acc` its accumulator (f64 for
/// f64, else f32): gradients of weights, statistics and optimizer state are `Acc`. Sums are kept in
/// `Acc` and rounded once.
///
/// *Order.* No result depends on the number of threads, on which rows or columns a call covers, or
/// on the instruction set (products apart: those of bf16 have orders of their own with AVX-512 BF16, those of bf16 and
/// f32 with AMX): row `r` of a call over many rows has the bits of a call over row `r` alone.
///
/// *f32 on AMX.* A product of f32 is made of six products of bf16, each factor being the sum of three numbers of
/// bf16. A sum's error is that of fused multiply-adds in f32 (less where a sum is long, up to twice it in a sum of a
/// few terms), but numbers below 2⁻¹¹⁰ lose digits and count as zero below 2⁻¹²⁶, and an infinite factor, or one from
/// 3.39 · 10³⁸ on, gives a result that is not a number. [`Isa::without_tiles`](crate::Isa::without_tiles) is for those who
/// cannot have that.
///
/// *Errors.* Every method checks types and lengths first and writes nothing if they are wrong.
pub trait Ops: Send + Sync + fmt::Debug {
    /// `C = A · B` in the form `product`, or `C += A · B`.
    ///
    /// A and B hold `T`, C holds `T` or `Acc`. Each element of C is one chain of fused multiply-adds (on AMX: of
    /// groups) over ascending `k`, started at zero or, to accumulate, at the old value: accumulating the
    /// products of consecutive row ranges of A and B in the [`Product::Tn`] form gives the bits of
    /// one product over all rows (in bf16, and in f32 on AMX: if the ranges begin at multiples of 32, and C is
    /// `Acc`).
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn matmul(
        &self,
        product: Product,
        accumulate: bool,
        a: MatRef<'_>,
        b: MatRef<'_>,
        c: MatMut<'_>,
    ) -> Done;

    /// `y = x · wᵀ + bias` for each row of x, rounded once; all `T`, but y may be `S`. Each sum starts
    /// at its bias.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn linear(&self, y: MatMut<'_>, x: MatRef<'_>, w: MatRef<'_>, bias: Slice<'_>) -> Done;

    /// `y[r, c] += bias[c]`; all `T`.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn add_bias(&self, y: MatMut<'_>, bias: Slice<'_>) -> Done;

    /// `acc[c] += Σ_r x[r, c]`, rows added in ascending order: the gradient of a bias. `acc` is
    /// `Acc`.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn sum_rows(&self, acc: SliceMut<'_>, x: MatRef<'_>) -> Done;

    /// `y = a + b`; `b` holds `T`, `y` and `a` both hold `T` or both `Acc`.
    ///
    /// # Errors
    /// Types or lengths that do not fit.
    fn add(&self, y: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) -> Done;

    /// `y += a`; `y` holds `T` or `Acc`.
    ///
    /// # Errors
    /// Types or lengths that do not fit.
    fn add_assign(&self, y: SliceMut<'_>, a: Slice<'_>) -> Done;

    /// `y *= factor`, computed in `Acc`.
    ///
    /// # Errors
    /// A type that kernels do not compute in.
    fn scale(&self, y: SliceMut<'_>, factor: f64) -> Done;

    /// `y = cap · tanh(y / cap)`, computed in `Acc`: logits with a bound (Gemma 2, arXiv 2408.00118).
    ///
    /// # Errors
    /// A type that kernels do not compute in, a bound that is not above 0.
    fn softcap(&self, y: SliceMut<'_>, cap: f64) -> Done;

    /// Converts between f64, f32 and bf16, rounding to nearest even.
    ///
    /// # Errors
    /// Lengths that differ, other types.
    fn cast(&self, y: SliceMut<'_>, x: Slice<'_>) -> Done;

    /// Copies a matrix, rows of any stride to rows of any stride; any type, both the same.
    ///
    /// # Errors
    /// Types or dimensions that differ.
    fn copy(&self, y: MatMut<'_>, x: MatRef<'_>) -> Done;

    /// `y = f(x)`.
    ///
    /// # Errors
    /// Types or lengths that differ.
    fn activation(&self, function: Function, y: SliceMut<'_>, x: Slice<'_>) -> Done;

    /// `dx = dy · f′(x)`.
    ///
    /// # Errors
    /// Types or lengths that differ.
    fn activation_backward(
        &self,
        function: Function,
        dx: SliceMut<'_>,
        x: Slice<'_>,
        dy: Slice<'_>,
    ) -> Done;

    /// `y = f(gate) · up` (arXiv 2002.05202): SwiGLU with [`Function::Silu`], GEGLU with either GELU, ReGLU with
    /// [`Function::Relu`].
    ///
    /// # Errors
    /// Types or dimensions that differ.
    fn gated(&self, function: Function, y: MatMut<'_>, gate: MatRef<'_>, up: MatRef<'_>) -> Done;

    /// The gradients of [`Ops::gated`] with respect to gate and up.
    ///
    /// # Errors
    /// Types or dimensions that differ.
    fn gated_backward(
        &self,
        function: Function,
        d: GateUpMut<'_>,
        gate: MatRef<'_>,
        up: MatRef<'_>,
        dy: MatRef<'_>,
    ) -> Done;

    /// `y = (x − mean) · rstd · gamma + beta` for each row (arXiv 1607.06450). `x` holds `T` or
    /// `Acc`: a residual stream of the latter loses nothing to rounding. `stats[rows, 2]` (`Acc`)
    /// receives mean and reciprocal standard deviation.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn layer_norm(
        &self,
        shape: NormShape,
        y: SliceMut<'_>,
        stats: SliceMut<'_>,
        x: Slice<'_>,
        gamma: Slice<'_>,
        beta: Slice<'_>,
    ) -> Done;

    /// The gradients of [`Ops::layer_norm`]. `dx`, of the type of `x`, is written, or added to with
    /// `add_to_dx` (the residual stream's gradient is then in it); `dgamma` and `dbeta` (`Acc`) are added to, rows in
    /// ascending order.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn layer_norm_backward(
        &self,
        shape: NormShape,
        dx: SliceMut<'_>,
        add_to_dx: bool,
        dgamma: SliceMut<'_>,
        dbeta: SliceMut<'_>,
        x: Slice<'_>,
        stats: Slice<'_>,
        gamma: Slice<'_>,
        dy: Slice<'_>,
    ) -> Done;

    /// `y = x · rstd · gamma` for each row (arXiv 1910.07467). `x` holds `T` or `Acc`, `rstd[rows]`
    /// is `Acc`.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn rms_norm(
        &self,
        shape: NormShape,
        y: SliceMut<'_>,
        rstd: SliceMut<'_>,
        x: Slice<'_>,
        gamma: Slice<'_>,
    ) -> Done;

    /// The gradients of [`Ops::rms_norm`], as in [`Ops::layer_norm_backward`].
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn rms_norm_backward(
        &self,
        shape: NormShape,
        dx: SliceMut<'_>,
        add_to_dx: bool,
        dgamma: SliceMut<'_>,
        x: Slice<'_>,
        rstd: Slice<'_>,
        gamma: Slice<'_>,
        dy: Slice<'_>,
    ) -> Done;

    /// Rotates query or key heads in place (arXiv 2104.09864), in the "rotate half" convention of
    /// Hugging Face and GPT-NeoX: of the elements that are turned, the first half pairs with the
    /// second. `table` comes from [`crate::rope_table`]. `inverse` turns the other way, with the
    /// table's amplitude again: the backward pass.
    ///
    /// # Errors
    /// Types or dimensions that do not fit, positions beyond the table.
    fn rope(&self, shape: RopeShape, inverse: bool, x: MatMut<'_>, table: Slice<'_>) -> Done;

    /// Causal attention: `o[samples · queries, heads · head_dim]`, and `lse[samples, heads, queries]`
    /// (`Acc`), the logarithm of each row's sum of exponentials, for the backward pass and for
    /// [`Ops::attention_merge`]. Scores exist one tile at a time (arXiv 2205.14135). A row that sees
    /// no key of the call has `o = 0` and `lse = −∞`.
    ///
    /// `document_start` (`u32`, one for each query row) is the first visible position of the row's own
    /// sequence; `None` means 0. It never hides the row's own position.
    ///
    /// *Order.* A row takes the keys in blocks that begin at positions that are multiples of 256,
    /// wherever the call's keys begin: the call's first block may be a shorter one. So a row has the
    /// bits of a call over the whole sequence if the call holds every key that the row sees (in bf16,
    /// and in f32 on AMX: if `key_start` is a multiple of 32).
    ///
    /// # Errors
    /// Types or dimensions that do not fit, an impossible scale, window or cap, positions from 2³² on
    /// (with dropout: from 2²⁴ on).
    fn attention(
        &self,
        shape: AttentionShape,
        o: MatMut<'_>,
        lse: SliceMut<'_>,
        qkv: Qkv<'_>,
        document_start: Option<Slice<'_>>,
        dropout: Option<AttentionDropout>,
    ) -> Done;

    /// The gradients of [`Ops::attention`]. Probabilities are computed again from `lse`. The
    /// gradient of a key head is the sum over its query heads in a tree that halves the range of
    /// heads, so that heads split over ranks add up the same way.
    ///
    /// `o` and `lse` are those of the whole rows: of a call over all keys that the queries see, or
    /// merged by [`Ops::attention_merge`]. The call may then hold a part of these keys. It gives this
    /// part's share of the queries' gradient, and the share that these queries have in the gradient of
    /// its keys and values. Shares add up to the whole gradient. Rows that see no key of the call have
    /// a share of exactly 0.
    ///
    /// # Errors
    /// As [`Ops::attention`], and fused gradients where `queries ≠ keys`.
    fn attention_backward(
        &self,
        shape: AttentionShape,
        d: QkvMut<'_>,
        d_o: MatRef<'_>,
        o: MatRef<'_>,
        lse: Slice<'_>,
        qkv: Qkv<'_>,
        document_start: Option<Slice<'_>>,
        dropout: Option<AttentionDropout>,
    ) -> Done;

    /// Takes attention over more keys into a result: `(o, lse)` and `(part_o, part_lse)`, of the same
    /// queries over two disjoint sets of keys, become in place of the first what [`Ops::attention`]
    /// gives over both, up to rounding. `part_o` holds `T`, `o` holds `T` or `Acc`: of many parts, the
    /// latter is rounded once. Of `shape` only the samples, the queries, the heads and their size
    /// matter.
    ///
    /// With `m = max(lse, part_lse)`, `w = e^(lse − m)` and `v = e^(part_lse − m)`: `o` becomes
    /// `(o · w + part_o · v) / (w + v)`, `lse` becomes `m + ln(w + v)`. Two results of one type may
    /// change places without changing a bit; the order of three may not. A row with `lse = −∞` counts
    /// for nothing, and the other side comes out as it is: `o = 0` with `lse = −∞` is where to begin.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn attention_merge(
        &self,
        shape: AttentionShape,
        o: MatMut<'_>,
        lse: SliceMut<'_>,
        part_o: MatRef<'_>,
        part_lse: Slice<'_>,
    ) -> Done;

    /// `y[r] = table[ids[r] − first_row]`, zeros for ids outside the table's rows: the partial
    /// result of a vocabulary shard. `ids` are `u32`, `cols` is the length of a row.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn embedding(
        &self,
        cols: usize,
        y: SliceMut<'_>,
        ids: Slice<'_>,
        table: Slice<'_>,
        first_row: usize,
    ) -> Done;

    /// `dtable[ids[r] − first_row] += dy[r]` (`dtable` is `Acc`), tokens in ascending order.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn embedding_backward(
        &self,
        cols: usize,
        dtable: SliceMut<'_>,
        ids: Slice<'_>,
        dy: Slice<'_>,
        first_row: usize,
    ) -> Done;

    /// `max[r]` (`Acc`) = the largest valid logit of row `r`; −∞ if none is valid.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn ce_max(&self, shape: LossShape, max: SliceMut<'_>, logits: MatRef<'_>) -> Done;

    /// `sum_exp[r] = Σ e^(logit − max[r])` and `target_logit[r]` (all `Acc`), the latter 0 where the
    /// target is elsewhere or [`IGNORE`]: both may be summed over the vocabulary's ranks.
    ///
    /// The sum is a balanced tree over `blocks` equal column ranges: a rank with 4 of 8 blocks has
    /// one half of the tree. `blocks` must divide the columns.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn ce_sum(
        &self,
        shape: LossShape,
        blocks: usize,
        sum_exp: SliceMut<'_>,
        target_logit: SliceMut<'_>,
        logits: MatRef<'_>,
        max: Slice<'_>,
        targets: Slice<'_>,
    ) -> Done;

    /// `loss[r] = ln(sum_exp[r]) + (max[r] − target_logit[r])`, 0 for [`IGNORE`]; all `Acc`.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn ce_loss(
        &self,
        loss: SliceMut<'_>,
        max: Slice<'_>,
        sum_exp: Slice<'_>,
        target_logit: Slice<'_>,
        targets: Slice<'_>,
    ) -> Done;

    /// Turns logits into their gradient in place: `(softmax − onehot) · scale`, with a bound times
    /// `1 − (logit / softcap)²`; zero in padding and in the rows of [`IGNORE`].
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn ce_grad(
        &self,
        shape: LossShape,
        logits: MatMut<'_>,
        max: Slice<'_>,
        sum_exp: Slice<'_>,
        targets: Slice<'_>,
        scale: f64,
    ) -> Done;

    /// `y = x · mask / (1 − probability)`. The same call on `dy` is the backward pass.
    ///
    /// # Errors
    /// Types or dimensions that do not fit, a probability outside `0..1`.
    fn dropout(&self, dropout: Dropout, place: DropoutPlace, y: MatMut<'_>, x: MatRef<'_>) -> Done;

    /// One AdamW step over a flat range. `weights`, `m`, `v` and `grad` are `Acc`; `compute`, if
    /// given, receives the new weights in any compute type, in the same pass.
    ///
    /// # Errors
    /// Types or lengths that do not fit.
    fn adamw(
        &self,
        adamw: AdamW,
        weights: SliceMut<'_>,
        m: SliceMut<'_>,
        v: SliceMut<'_>,
        grad: Slice<'_>,
        compute: Option<SliceMut<'_>>,
    ) -> Done;

    /// One SGD step over a flat range, as [`Ops::adamw`].
    ///
    /// # Errors
    /// Types or lengths that do not fit, momentum without `velocity`.
    fn sgd(
        &self,
        sgd: Sgd,
        weights: SliceMut<'_>,
        velocity: Option<SliceMut<'_>>,
        grad: Slice<'_>,
        compute: Option<SliceMut<'_>>,
    ) -> Done;

    /// Σ x² in f64: blocks of 4096 elements, and a tree over the blocks that halves at powers of
    /// two.
    ///
    /// # Errors
    /// A type that kernels do not compute in.
    fn sum_squares(&self, x: Slice<'_>) -> Result<f64, KernelError>;

    /// The largest |x|, 0 if there is none. Not-a-number is passed over.
    ///
    /// # Errors
    /// A type that kernels do not compute in.
    fn max_abs(&self, x: Slice<'_>) -> Result<f64, KernelError>;

    /// The index of the first element that is infinite or not a number.
    ///
    /// # Errors
    /// A type that kernels do not compute in.
    fn first_non_finite(&self, x: Slice<'_>) -> Result<Option<usize>, KernelError>;
}
