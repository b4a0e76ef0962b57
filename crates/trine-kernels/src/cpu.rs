//! `CpuOps`: the kernels of this crate behind [`Ops`].

use crate::kernel_methods;
use crate::scratch::ScratchPool;
use crate::team::PARTS_PER_THREAD;
use crate::{
    AdamW, AttentionDropout, AttentionShape, Dropout, DropoutPlace, Function, GateUpMut, Isa,
    KernelError, LossShape, MatMut, MatRef, NormShape, Ops, Product, Qkv, QkvMut, RmsShape,
    RopeShape, Sgd, Team,
};
use crate::{
    activation, attention, checks, elementwise, embedding, gemm, loss, mask, norm, optim, rms,
    rope, softcap,
};
use std::ops::Range;
use trine_buffer::{Place, Slice, SliceMut};

/// Elements below which waking another thread costs more than it brings.
const ELEMENTS_PER_PART_MIN: usize = 8 * 1024;

/// The host's implementation of [`Ops`]: a team of threads, the instruction set found at run time,
/// and working memory that is kept between calls.
#[derive(Debug)]
pub struct CpuOps {
    pub(crate) team: Team,
    pub(crate) isa: Isa,
    pub(crate) scratch: ScratchPool,
    place: Place,
}

impl CpuOps {
    /// Kernels on the threads of `team` with the processor's best instruction set.
    pub fn new(team: Team) -> Self {
        let scratch = ScratchPool::new(team.threads());
        Self { team, isa: Isa::detect(), scratch, place: Place::Host }
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

/// Looks at the arguments, then calls the kernel with the threads and the instruction set.
macro_rules! called {
    ($($module:ident { $(fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty;)+ })+) => {$($(
        fn $name(&self, $($arg: $type),*) -> $ret {
            checks::$name($(&$arg),*)?;
            $module::$name(self, $($arg),*)
        }
    )+)+};
}

impl Ops for CpuOps {
    fn place(&self) -> &Place {
        &self.place
    }

    fn matmul(
        &self,
        product: Product,
        accumulate: bool,
        a: MatRef<'_>,
        b: MatRef<'_>,
        c: MatMut<'_>,
    ) -> Done {
        checks::matmul(product, &a, &b, &c)?;
        gemm::matmul(self, product, accumulate, a, b, c)
    }

    fn linear(&self, y: MatMut<'_>, x: MatRef<'_>, w: MatRef<'_>, bias: Slice<'_>) -> Done {
        checks::linear(&y, &x, &w, &bias)?;
        gemm::linear(self, y, x, w, bias)
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
        checks::attention(&shape, &o, &lse, &qkv, &document_start, &dropout)?;
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
        checks::attention_backward(&shape, &d, &d_o, &o, &lse, &qkv, &document_start, &dropout)?;
        attention::attention_backward(self, shape, d, d_o, o, lse, qkv, document_start, dropout)
    }

    kernel_methods!(called);
}
