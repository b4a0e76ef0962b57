//! What ranks that share a GPU exchange.

use crate::gpu::elements;
use crate::kernels::Kernels;
use std::sync::Arc;
use trine_buffer::{BufferError, Pool, Slice, SliceMut};
use trine_comm::{Mark, ReduceOp, SharedDevice};
use trine_gpu::{Arg, Event, GpuError, Span, SpanMut, Stream};

/// Ranks that one reduction takes.
const RANKS_MAX: usize = 16;

/// The exchanges of ranks that are threads of one process and share a GPU, which NCCL refuses: copies and reductions on
/// a stream of their own, ordered by events with the streams of the ranks.
#[derive(Debug)]
pub struct Exchanges {
    stream: Stream,
    kernels: Kernels,
    pool: Pool,
}

impl Exchanges {
    /// Exchanges on a stream, which is best one that no rank computes on and that its GPU prefers.
    pub fn new(stream: Stream, kernels: Kernels) -> Self {
        let pool = Pool::on(stream.place());
        Self { stream, kernels, pool }
    }
}

/// The point that this crate has made of a mark.
fn event(mark: &Mark) -> Result<&Event, BufferError> {
    mark.downcast_ref().ok_or_else(|| BufferError::Device("a point of another device".into()))
}

fn kind_of(op: ReduceOp) -> u32 {
    match op {
        ReduceOp::Sum => 0,
        ReduceOp::Mean => 1,
        ReduceOp::Max => 2,
    }
}

impl SharedDevice for Exchanges {
    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn mark(&self, buf: Slice<'_>) -> Result<Mark, BufferError> {
        Ok(Arc::new(Span::of(buf)?.stream().record()?))
    }

    fn follow(&self, buf: Slice<'_>, mark: &Mark) -> Result<(), BufferError> {
        Ok(Span::of(buf)?.stream().wait(event(mark)?)?)
    }

    fn begin(&self, behind: &Mark) -> Result<(), BufferError> {
        Ok(self.stream.wait(event(behind)?)?)
    }

    fn copy(&self, from: Slice<'_>, to: SliceMut<'_>) -> Result<(), BufferError> {
        Ok(self.stream.copy(SpanMut::of(to)?, Span::of(from)?)?)
    }

    fn reduce(
        &self,
        op: ReduceOp,
        contributions: &[Slice<'_>],
        to: SliceMut<'_>,
    ) -> Result<(), BufferError> {
        let (dtype, len, ranks) = (to.dtype(), to.len(), contributions.len());
        if ranks == 0 || ranks > RANKS_MAX {
            let message =
                format!("a GPU reduces over 1 to {RANKS_MAX} ranks that share it, not {ranks}");
            return Err(BufferError::Device(message));
        }
        let to = SpanMut::of(to)?;
        let from =
            contributions.iter().map(|part| Span::of(*part)).collect::<Result<Vec<_>, _>>()?;
        if let Some(other) = from.iter().find(|span| span.bytes() != to.bytes()) {
            return Err(GpuError::Length { from: other.bytes(), to: to.bytes() }.into());
        }
        if len == 0 {
            return Ok(());
        }
        let mut args = vec![Arg::Write(to)];
        // Pointers that are not followed are those of the first.
        let unused = std::iter::repeat_n(from[0], RANKS_MAX - ranks);
        args.extend(from.iter().copied().chain(unused).map(Arg::Read));
        args.extend([Arg::U32(ranks as u32), Arg::U32(kind_of(op)), Arg::U64(len as u64)]);
        let name = format!("reduce_{dtype}");
        // SAFETY: all of them have `len` elements of this type, and the result is none of the contributions.
        unsafe { self.kernels.launch(&self.stream, &name, elements(len), &args)? };
        Ok(())
    }

    fn end(&self) -> Result<Mark, BufferError> {
        Ok(Arc::new(self.stream.record()?))
    }
}
