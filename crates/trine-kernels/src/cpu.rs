//! `CpuOps`: the kernels of this crate behind [`Ops`].

use crate::scratch::ScratchPool;
use crate::{
    AdamW, AttentionDropout, AttentionShape, Dropout, DropoutPlace, GateUpMut, GeluKind, Isa,
    KernelError, LossShape, MatMut, MatRef, NormShape, Ops, Product, Qkv, QkvMut, RopeShape, Sgd,
    Team,
};
use crate::{activation, attention, elementwise, embedding, gemm, loss, mask, norm, optim, rope};
use std::ops::Range;
use trine_buffer::{Slice, SliceMut};

/// Elements below which waking another thread costs more than it brings.
const ELEMENTS_PER_PART_MIN: usize = 8 * 1024;

/// Parts for each thread where there is enough to do: a thread that loses its core for a while then
/// delays a part of the call, not its whole share.
pub(crate) const PARTS_PER_THREAD: usize = 4;

/// The host's implementation of [`Ops`]: a team of threads, the instruction set found at run time,
/// and working memory that is kept between calls.
#[derive(Debug)]
pub struct CpuOps {
    pub(crate) team: Team,
    pub(crate) isa: Isa,
    pub(crate) scratch: ScratchPool,
}

impl CpuOps {
    /// Kernels on the threads of `team` with the processor's best instruction set.
    pub fn new(team: Team) -> Self {
        let scratch = ScratchPool::new(team.threads());
        Self { team, isa: Isa::detect(), scratch }
    }

    /// Kernels with a poorer instruction set than the best: for tests and measurements.
    ///
    /// # Errors
    /// If the processor does not have it.
    pub fn with_isa(team: Team, isa: Isa) -> Result<Self, KernelError> {
        Ok(Self { isa: isa.checked()?, ..Self::new(team) })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads in use, to measure what they could do.
    pub fn team(&self) -> &Team {
        &self.team
    }

    /// How many threads are in use.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    /// Cuts `0..items` into a few ranges a thread, fewer if there is little to do, and runs `f` on
    /// each. `cost` is the number of elements an item stands for.
    pub(crate) fn parallel(&self, items: usize, cost: usize, f: impl Fn(Range<usize>) + Sync) {
        let enough = (items * cost.max(1)).div_ceil(ELEMENTS_PER_PART_MIN);
        let threads = self.team.threads();
        let parts = (threads * PARTS_PER_THREAD).min(enough).min(items);
        if threads == 1 || parts <= 1 {
            return f(0..items);
        }
        self.team.run(parts, |part| f(part * items / parts..(part + 1) * items / parts));
    }
}

type Done = Result<(), KernelError>;

impl Ops for CpuOps {
    fn matmul(
        &self,
        product: Product,
        accumulate: bool,
        a: MatRef<'_>,
        b: MatRef<'_>,
        c: MatMut<'_>,
    ) -> Done {
        gemm::matmul(self, product, accumulate, a, b, c)
    }

    fn linear(&self, y: MatMut<'_>, x: MatRef<'_>, w: MatRef<'_>, bias: Slice<'_>) -> Done {
        gemm::linear(self, y, x, w, bias)
    }

    fn add_bias(&self, y: MatMut<'_>, bias: Slice<'_>) -> Done {
        elementwise::add_bias(self, y, bias)
    }

    fn sum_rows(&self, acc: SliceMut<'_>, x: MatRef<'_>) -> Done {
        elementwise::sum_rows(self, acc, x)
    }

    fn add(&self, y: SliceMut<'_>, a: Slice<'_>, b: Slice<'_>) -> Done {
        elementwise::add(self, y, a, b)
    }

    fn add_assign(&self, y: SliceMut<'_>, a: Slice<'_>) -> Done {
        elementwise::add_assign(self, y, a)
    }

    fn scale(&self, y: SliceMut<'_>, factor: f64) -> Done {
        elementwise::scale(self, y, factor)
    }

    fn cast(&self, y: SliceMut<'_>, x: Slice<'_>) -> Done {
        elementwise::cast(self, y, x)
    }

    fn copy(&self, y: MatMut<'_>, x: MatRef<'_>) -> Done {
        elementwise::copy(self, y, x)
    }

    fn gelu(&self, kind: GeluKind, y: SliceMut<'_>, x: Slice<'_>) -> Done {
        activation::gelu(self, kind, y, x)
    }

    fn gelu_backward(&self, kind: GeluKind, dx: SliceMut<'_>, x: Slice<'_>, dy: Slice<'_>) -> Done {
        activation::gelu_backward(self, kind, dx, x, dy)
    }

    fn swiglu(&self, y: MatMut<'_>, gate: MatRef<'_>, up: MatRef<'_>) -> Done {
        activation::swiglu(self, y, gate, up)
    }

    fn swiglu_backward(
        &self,
        d: GateUpMut<'_>,
        gate: MatRef<'_>,
        up: MatRef<'_>,
        dy: MatRef<'_>,
    ) -> Done {
        activation::swiglu_backward(self, d, gate, up, dy)
    }

    fn layer_norm(
        &self,
        shape: NormShape,
        y: SliceMut<'_>,
        stats: SliceMut<'_>,
        x: Slice<'_>,
        gamma: Slice<'_>,
        beta: Slice<'_>,
    ) -> Done {
        norm::layer_norm(self, shape, y, stats, x, gamma, beta)
    }

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
    ) -> Done {
        norm::layer_norm_backward(self, shape, dx, add_to_dx, dgamma, dbeta, x, stats, gamma, dy)
    }

    fn rms_norm(
        &self,
        shape: NormShape,
        y: SliceMut<'_>,
        rstd: SliceMut<'_>,
        x: Slice<'_>,
        gamma: Slice<'_>,
    ) -> Done {
        norm::rms_norm(self, shape, y, rstd, x, gamma)
    }

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
    ) -> Done {
        norm::rms_norm_backward(self, shape, dx, add_to_dx, dgamma, x, rstd, gamma, dy)
    }

    fn rope(&self, shape: RopeShape, inverse: bool, x: MatMut<'_>, table: Slice<'_>) -> Done {
        rope::rope(self, shape, inverse, x, table)
    }

    fn attention(
        &self,
        shape: AttentionShape,
        o: MatMut<'_>,
        lse: SliceMut<'_>,
        qkv: Qkv<'_>,
        document_start: Option<Slice<'_>>,
        dropout: Option<AttentionDropout>,
    ) -> Done {
        attention::attention(self, shape, o, lse, qkv, document_start, dropout)
    }

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
    ) -> Done {
        attention::attention_backward(self, shape, d, d_o, o, lse, qkv, document_start, dropout)
    }

    fn embedding(
        &self,
        cols: usize,
        y: SliceMut<'_>,
        ids: Slice<'_>,
        table: Slice<'_>,
        first_row: usize,
    ) -> Done {
        embedding::embedding(self, cols, y, ids, table, first_row)
    }

    fn embedding_backward(
        &self,
        cols: usize,
        dtable: SliceMut<'_>,
        ids: Slice<'_>,
        dy: Slice<'_>,
        first_row: usize,
    ) -> Done {
        embedding::embedding_backward(self, cols, dtable, ids, dy, first_row)
    }

    fn ce_max(&self, shape: LossShape, max: SliceMut<'_>, logits: MatRef<'_>) -> Done {
        loss::ce_max(self, shape, max, logits)
    }

    fn ce_sum(
        &self,
        shape: LossShape,
        blocks: usize,
        sum_exp: SliceMut<'_>,
        target_logit: SliceMut<'_>,
        logits: MatRef<'_>,
        max: Slice<'_>,
        targets: Slice<'_>,
    ) -> Done {
        loss::ce_sum(self, shape, blocks, sum_exp, target_logit, logits, max, targets)
    }

    fn ce_loss(
        &self,
        loss: SliceMut<'_>,
        max: Slice<'_>,
        sum_exp: Slice<'_>,
        target_logit: Slice<'_>,
        targets: Slice<'_>,
    ) -> Done {
        loss::ce_loss(loss, max, sum_exp, target_logit, targets)
    }

    fn ce_grad(
        &self,
        shape: LossShape,
        logits: MatMut<'_>,
        max: Slice<'_>,
        sum_exp: Slice<'_>,
        targets: Slice<'_>,
        scale: f64,
    ) -> Done {
        loss::ce_grad(self, shape, logits, max, sum_exp, targets, scale)
    }

    fn dropout(&self, dropout: Dropout, place: DropoutPlace, y: MatMut<'_>, x: MatRef<'_>) -> Done {
        mask::dropout(self, dropout, place, y, x)
    }

    fn adamw(
        &self,
        adamw: AdamW,
        weights: SliceMut<'_>,
        m: SliceMut<'_>,
        v: SliceMut<'_>,
        grad: Slice<'_>,
        compute: Option<SliceMut<'_>>,
    ) -> Done {
        optim::adamw(self, adamw, weights, m, v, grad, compute)
    }

    fn sgd(
        &self,
        sgd: Sgd,
        weights: SliceMut<'_>,
        velocity: Option<SliceMut<'_>>,
        grad: Slice<'_>,
        compute: Option<SliceMut<'_>>,
    ) -> Done {
        optim::sgd(self, sgd, weights, velocity, grad, compute)
    }

    fn sum_squares(&self, x: Slice<'_>) -> Result<f64, KernelError> {
        optim::sum_squares(self, x)
    }

    fn max_abs(&self, x: Slice<'_>) -> Result<f64, KernelError> {
        optim::max_abs(self, x)
    }

    fn first_non_finite(&self, x: Slice<'_>) -> Result<Option<usize>, KernelError> {
        optim::first_non_finite(self, x)
    }
}
