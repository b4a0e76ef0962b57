//! The tensor-parallel group, the borders of a parallel region, and the placements on either side.

use std::ops::Range;
use std::sync::Arc;
use trine_buffer::{Act, Buf, DType};
use trine_comm::{CommError, Communicator, Name, ReduceOp};
use trine_nn::{Context, NnError};

/// The residual stream outside a parallel region or a branch of it, `[rows, hidden]`: equal on all
/// ranks, or with sequence parallelism each rank's own run of rows.
#[derive(Debug, Clone)]
pub struct Stream(Act);

/// Inside a region: all rows and all features, equal on all ranks.
#[derive(Debug, Clone)]
pub struct Whole(Act);

/// Inside a region: all rows, this rank's features or heads.
#[derive(Debug, Clone)]
pub struct Split(Act);

/// Inside a region: a summand. The value is the sum over the ranks.
#[derive(Debug)]
#[must_use = "a summand that is not reduced is lost"]
pub struct Partial(Buf);

macro_rules! placement {
    ($type:ident, $holds:ty) => {
        impl $type {
            /// Declares a placement: for the ends of a region, where no layer vouches for it.
            pub fn assume(values: $holds) -> Self {
                Self(values)
            }

            /// Takes the values out, giving up the placement.
            pub fn into_inner(self) -> $holds {
                self.0
            }
        }

        impl std::ops::Deref for $type {
            type Target = $holds;

            fn deref(&self) -> &$holds {
                &self.0
            }
        }
    };
}

placement!(Stream, Act);
placement!(Whole, Act);
placement!(Split, Act);
placement!(Partial, Buf);

impl Stream {
    /// The same values in another type: itself where it has that type already.
    ///
    /// # Errors
    /// A type that kernels do not compute in.
    pub fn to(self, dtype: DType, ctx: &Context<'_>) -> Result<Self, NnError> {
        if self.dtype() == dtype {
            return Ok(self);
        }
        let mut cast = ctx.pool.alloc(dtype, self.len())?;
        ctx.ops.cast(cast.slice_mut(), self.slice())?;
        Ok(Self(Act::new(cast)))
    }
}

/// The ranks that share each layer. Owns both crossings of a parallel region in both directions,
/// so that a forward collective cannot be written without its backward.
#[derive(Debug, Clone)]
pub struct TensorGroup {
    comm: Arc<dyn Communicator>,
    sequence_parallel: bool,
}

impl TensorGroup {
    /// The group of `comm`'s ranks. With `sequence_parallel` the stream is split by rows.
    pub fn new(comm: Arc<dyn Communicator>, sequence_parallel: bool) -> Self {
        // One rank holds all rows either way; the plain path costs nothing there.
        let sequence_parallel = sequence_parallel && comm.size() > 1;
        Self { comm, sequence_parallel }
    }

    /// Ranks in the group.
    pub fn size(&self) -> usize {
        self.comm.size()
    }

    /// This rank's index in the group.
    pub fn rank(&self) -> usize {
        self.comm.rank()
    }

    /// Whether the stream is split by rows.
    pub fn sequence_parallel(&self) -> bool {
        self.sequence_parallel
    }

    /// The communicator.
    pub fn comm(&self) -> &Arc<dyn Communicator> {
        &self.comm
    }

    /// The rows of a micro-batch of `tokens` rows that this rank's stream holds.
    pub fn stream_rows(&self, tokens: usize) -> Range<usize> {
        if !self.sequence_parallel {
            return 0..tokens;
        }
        let each = tokens / self.size();
        self.rank() * each..(self.rank() + 1) * each
    }

    /// Into the region: all rows on all ranks.
    ///
    /// # Errors
    /// A failed collective.
    pub fn enter(&self, x: &Stream, name: Name, ctx: &Context<'_>) -> Result<Whole, NnError> {
        self.whole(x.clone(), name, ctx)
    }

    /// The backward of [`TensorGroup::enter`]: each rank's features contribute to the gradient.
    ///
    /// # Errors
    /// A failed collective.
    pub fn enter_backward(
        &self,
        dx: Partial,
        name: Name,
        ctx: &Context<'_>,
    ) -> Result<Stream, NnError> {
        self.sum(dx, name, ctx)
    }

    /// Out of the region: the sum over the ranks.
    ///
    /// # Errors
    /// A failed collective.
    pub fn leave(&self, y: Partial, name: Name, ctx: &Context<'_>) -> Result<Stream, NnError> {
        self.sum(y, name, ctx)
    }

    /// The backward of [`TensorGroup::leave`]: every rank's summand has the same gradient. Rows that nobody else holds
    /// are sent without a copy.
    ///
    /// # Errors
    /// A failed collective.
    pub fn leave_backward(
        &self,
        dy: Stream,
        name: Name,
        ctx: &Context<'_>,
    ) -> Result<Whole, NnError> {
        self.whole(dy, name, ctx)
    }

    /// All rows of a stream.
    fn whole(&self, x: Stream, name: Name, ctx: &Context<'_>) -> Result<Whole, NnError> {
        if !self.sequence_parallel {
            return Ok(Whole(x.0));
        }
        Ok(Whole(self.gather_rows(x.0, name, ctx)?))
    }

    /// The sum of a region's summands, as a stream.
    fn sum(&self, summand: Partial, name: Name, ctx: &Context<'_>) -> Result<Stream, NnError> {
        let summand = summand.0;
        if !self.sequence_parallel {
            return Ok(Stream(Act::new(self.all_reduce(summand, ReduceOp::Sum, name)?)));
        }
        let own = ctx.pool.alloc(summand.dtype(), summand.len() / self.size())?;
        let (_, own) =
            self.comm.reduce_scatter(summand, own, ReduceOp::Sum, name).map_err(failed)?;
        Ok(Stream(Act::new(own)))
    }

    /// All ranks' rows, in rank order.
    pub(crate) fn gather_rows(
        &self,
        rows: Act,
        name: Name,
        ctx: &Context<'_>,
    ) -> Result<Act, NnError> {
        let all = ctx.pool.alloc(rows.dtype(), rows.len() * self.size())?;
        let own = rows.into_buf(ctx.pool)?;
        let (_, all) = self.comm.all_gather(own, all, name).map_err(failed)?;
        Ok(Act::new(all))
    }

    pub(crate) fn all_reduce(&self, buf: Buf, op: ReduceOp, name: Name) -> Result<Buf, NnError> {
        if self.size() == 1 {
            return Ok(buf);
        }
        self.comm.all_reduce(buf, op, name).map_err(failed)
    }
}

/// A collective's failure as a layer's.
pub(crate) fn failed(error: CommError) -> NnError {
    NnError::Communication(Box::new(error))
}
