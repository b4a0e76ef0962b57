//! `Ops`: the seam between devices.

use crate::{
    AdamW, AttentionDropout, AttentionShape, Dropout, DropoutPlace, Function, GateUpMut,
    KernelError, LossShape, MatMut, MatRef, NormShape, Product, Qkv, QkvMut, RmsShape, RopeShape,
    Sgd,
};
use std::fmt;
use trine_buffer::{Place, Slice, SliceMut};

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
/// *On a GPU.* `T` is f32 or bf16. A sum over rows is one of parts of 64 rows, each and all of them in ascending order;
/// a sum over a row has an order of its own, which the row's length fixes.
///
/// *Errors.* Every method checks types and lengths first ([`checks`](crate::checks)) and writes nothing if they are wrong.
pub trait Ops: Send + Sync + fmt::Debug {
    /// Where the buffers of the calls lie.
    fn place(&self) -> &Place;

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

    /// `y = x + by`: `x` holds `T`, `y` is `Acc`.
    ///
    /// # Errors
    /// Types or lengths that do not fit.
    fn offset(&self, y: SliceMut<'_>, x: Slice<'_>, by: f64) -> Done;

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

    /// `y = x · rstd · gamma` for each row (arXiv 1910.07467). `x` and `gamma` each hold `T` or `Acc`, `rstd[rows]`
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

    /// `sums[r, g] = Σ x²` over the columns of group `g` in row `r`: the first step of an RMS norm. `sums` is
    /// `[rows, groups]`, `Acc`.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn rms_squares(&self, shape: RmsShape, sums: SliceMut<'_>, x: MatRef<'_>) -> Done;

    /// `y = x · rstd · gamma`, `rstd[r, g] = 1 / √(stats[r, g] / elements + eps)`: the second step. `stats` holds the
    /// whole sums of squares and receives `rstd`. `gamma` has the columns of a group and serves all groups.
    ///
    /// With one block the bits are those of [`Ops::rms_norm`] of each group as a row.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn rms_scale(
        &self,
        shape: RmsShape,
        y: MatMut<'_>,
        stats: SliceMut<'_>,
        x: MatRef<'_>,
        gamma: Slice<'_>,
    ) -> Done;

    /// `sums[r, g] = Σ dy · gamma · x` over the columns of group `g`: the first step of the backward pass.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn rms_products(
        &self,
        shape: RmsShape,
        sums: SliceMut<'_>,
        x: MatRef<'_>,
        gamma: Slice<'_>,
        dy: MatRef<'_>,
    ) -> Done;

    /// The input gradient: `d` holds `dy` and becomes `(d · gamma − x · rstd² · products / elements) · rstd`, where
    /// `products` are the whole sums of [`Ops::rms_products`].
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn rms_backward(
        &self,
        shape: RmsShape,
        d: MatMut<'_>,
        x: MatRef<'_>,
        rstd: Slice<'_>,
        products: Slice<'_>,
        gamma: Slice<'_>,
    ) -> Done;

    /// The gain's gradient, `dgamma[c] += Σ dy · x · rstd` (`dgamma` is `Acc`): for each group the rows in ascending
    /// order, then a tree that halves the groups.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn rms_gain(
        &self,
        shape: RmsShape,
        dgamma: SliceMut<'_>,
        x: MatRef<'_>,
        rstd: Slice<'_>,
        dy: MatRef<'_>,
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
    /// target is elsewhere or [`crate::IGNORE`]: both may be summed over the vocabulary's ranks.
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

    /// `loss[r] = ln(sum_exp[r]) + (max[r] − target_logit[r])`, 0 for [`crate::IGNORE`]; all `Acc`.
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
    /// `1 − (logit / softcap)²`; zero in padding and in the rows of [`crate::IGNORE`].
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

    /// `acc[0] += Σ x²`: blocks of 4096 elements, and a tree over the blocks that halves at powers of two. `acc` is one
    /// f64.
    ///
    /// # Errors
    /// Types or lengths that do not fit.
    fn sum_squares(&self, acc: SliceMut<'_>, x: Slice<'_>) -> Done;

    /// `sums[r] = Σ_c x[r, c]`, columns in ascending order: the losses of samples from those of their tokens. `sums`
    /// are f64.
    ///
    /// # Errors
    /// Types or dimensions that do not fit.
    fn row_sums(&self, sums: SliceMut<'_>, x: MatRef<'_>) -> Done;

    /// The index of the first element that is infinite or not a number. The one method that answers the host, which
    /// waits for the device.
    ///
    /// # Errors
    /// A type that kernels do not compute in.
    fn first_non_finite(&self, x: Slice<'_>) -> Result<Option<usize>, KernelError>;
}
