//! Where a step's time goes: any [`Ops`] with a stopwatch around each call.

use crate::kernel_methods;
use crate::{
    AdamW, AttentionDropout, AttentionShape, Dropout, DropoutPlace, Function, GateUpMut,
    KernelError, LossShape, MatMut, MatRef, NormShape, Ops, Product, Qkv, QkvMut, RmsShape,
    RopeShape, Sgd,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use trine_buffer::{Place, Slice, SliceMut};

/// The calls of one kernel since the last [`Profiled::take`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct KernelTime {
    /// Calls.
    pub calls: u64,
    /// Wall time of the calling thread inside them.
    pub time: Duration,
    /// Floating-point operations of matrix products, two for each multiply-add; attention
    /// counts the visible pairs. 0 for the other kernels, which are bound by memory.
    pub flops: f64,
}

/// Kernels that note how long each call takes.
#[derive(Debug)]
pub struct Profiled {
    ops: Arc<dyn Ops>,
    times: Mutex<BTreeMap<&'static str, KernelTime>>,
}

type Done = Result<(), KernelError>;

impl Profiled {
    /// The kernels of `ops`, timed.
    pub fn new(ops: Arc<dyn Ops>) -> Self {
        Self { ops, times: Mutex::default() }
    }

    /// What was noted since the last call, by kernel.
    pub fn take(&self) -> BTreeMap<&'static str, KernelTime> {
        std::mem::take(&mut self.times.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn time<R>(&self, kernel: &'static str, flops: f64, call: impl FnOnce(&dyn Ops) -> R) -> R {
        let start = Instant::now();
        let result = call(&*self.ops);
        let took = start.elapsed();
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = times.entry(kernel).or_default();
        entry.calls += 1;
        entry.time += took;
        entry.flops += flops;
        result
    }
}

/// Forwards each call under its name.
macro_rules! timed {
    ($($module:ident { $(fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty;)+ })+) => {$($(
        fn $name(&self, $($arg: $type),*) -> $ret {
            self.time(stringify!($name), 0.0, |ops| ops.$name($($arg),*))
        }
    )+)+};
}

impl Ops for Profiled {
    fn place(&self) -> &Place {
        self.ops.place()
    }

    fn matmul(
        &self,
        product: Product,
        accumulate: bool,
        a: MatRef<'_>,
        b: MatRef<'_>,
        c: MatMut<'_>,
    ) -> Done {
        let k = if product == Product::Tn { a.rows } else { a.cols };
        let flops = 2.0 * c.rows as f64 * c.cols as f64 * k as f64;
        self.time(product.name(accumulate), flops, |ops| ops.matmul(product, accumulate, a, b, c))
    }

    fn linear(&self, y: MatMut<'_>, x: MatRef<'_>, w: MatRef<'_>, bias: Slice<'_>) -> Done {
        let flops = 2.0 * y.rows as f64 * y.cols as f64 * x.cols as f64;
        self.time("linear y = x·wᵀ + bias", flops, |ops| ops.linear(y, x, w, bias))
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
        self.time("attention", shape.flops(), |ops| {
            ops.attention(shape, o, lse, qkv, document_start, dropout)
        })
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
        self.time("attention_backward", shape.backward_flops(), |ops| {
            ops.attention_backward(shape, d, d_o, o, lse, qkv, document_start, dropout)
        })
    }

    kernel_methods!(timed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuOps, Team};
    use trine_buffer::Buf;

    #[test]
    fn calls_are_counted_and_their_results_passed_on() {
        let ops = Profiled::new(Arc::new(CpuOps::new(Team::new(1))));
        let (a, b) = (vec![1.0f32; 6], vec![2.0f32; 12]);
        let mut c = Buf::from_vec(vec![0.0f32; 8]);
        for _ in 0..2 {
            let (a, b) = (MatRef::new(Slice::new(&a), 2, 3), MatRef::new(Slice::new(&b), 4, 3));
            let c = MatMut::new(c.slice_mut(), 2, 4);
            ops.matmul(Product::Nt, false, a, b, c).unwrap();
        }
        assert_eq!(c.typed::<f32>().unwrap(), [6.0; 8]);
        assert_eq!(ops.first_non_finite(c.slice()).unwrap(), None);
        let times = ops.take();
        let product = times["matmul y = x·wᵀ"];
        assert_eq!((product.calls, product.flops), (2, 2.0 * 2.0 * 2.0 * 3.0 * 4.0));
        assert_eq!((times["first_non_finite"].calls, times.len()), (1, 2));
        assert!(ops.take().is_empty());
    }
}
