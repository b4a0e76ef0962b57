//! The methods of `Ops`.

use crate::gpu::GpuOps;
use crate::{
    activation, attention, elementwise, embedding, loss, mask, norm, optim, products, rms, rope,
    softcap,
};
use trine_buffer::{Place, Slice, SliceMut};
use trine_kernels::{
    AdamW, AttentionDropout, AttentionShape, Dropout, DropoutPlace, Function, GateUpMut,
    KernelError, LossShape, MatMut, MatRef, NormShape, Ops, Product, Qkv, QkvMut, RmsShape,
    RopeShape, Sgd, checks, kernel_methods,
};

type Done = Result<(), KernelError>;

/// Each method looks at its arguments as the CPU's does, and then launches.
macro_rules! launched {
    ($($module:ident { $(fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty;)+ })+) => {$($(
        fn $name(&self, $($arg: $type),*) -> $ret {
            checks::$name($(&$arg),*)?;
            $module::$name(self, $($arg),*)
        }
    )+)+};
}

impl Ops for GpuOps {
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
        products::matmul(self, product, accumulate, a, b, c)
    }

    fn linear(&self, y: MatMut<'_>, x: MatRef<'_>, w: MatRef<'_>, bias: Slice<'_>) -> Done {
        checks::linear(&y, &x, &w, &bias)?;
        products::linear(self, y, x, w, bias)
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

    kernel_methods!(launched);
}
