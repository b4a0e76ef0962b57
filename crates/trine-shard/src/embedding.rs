//! The token embedding, split by rows of the vocabulary, with learned positions.

use crate::{Partial, Stream, TensorGroup};
use std::ops::Range;
use trine_buffer::{Act, Buf, BufferError, Slice};
use trine_comm::Name;
use trine_nn::{Context, GradStore, NnError, ParamId, ParamStore, Saved};

/// Token embeddings, and learned positions where the model has them. Each rank looks up the ids in
/// its rows and contributes zeros for the others; the sum leaves the region as a stream.
#[derive(Debug, Clone)]
pub struct VocabEmbedding {
    /// The tensor-parallel group.
    pub group: TensorGroup,
    /// The table's local rows.
    pub table: ParamId,
    /// Learned positions, `[seq_max, hidden]`, replicated.
    pub positions: Option<ParamId>,
    /// The vocabulary's ids whose rows this rank holds.
    pub rows: Range<usize>,
    /// Width of the residual stream.
    pub hidden: usize,
    /// The factor on tokens' rows, before positions are added (Gemma's √hidden). It multiplies in the
    /// stream's type and is not rounded itself; Hugging Face rounds it to the compute type.
    pub scale: Option<f64>,
}

const NAME: Name = Name::new("embedding");

impl VocabEmbedding {
    /// `[tokens]` ids to the stream. The ranks' parts are added in the compute type: all but one are
    /// zero.
    ///
    /// # Errors
    /// A wrong shape, or a failed collective.
    pub fn forward(
        &self,
        weights: &ParamStore,
        ids: Act,
        ctx: &Context<'_>,
    ) -> Result<(Stream, Saved), NnError> {
        let tokens = ctx.rows.tokens();
        let table = weights.lease(&self.table)?;
        let mut y = ctx.alloc(tokens, self.hidden)?;
        let (ids_in, first) = (ids.slice(), self.rows.start);
        ctx.ops.embedding(self.hidden, y.slice_mut(), ids_in, table.slice(), first)?;
        let mut y = self.group.leave(Partial::assume(y), NAME, ctx)?.to(ctx.stream(), ctx)?;
        if let Some(factor) = self.scale {
            let mut scaled = y.into_inner().into_buf(ctx.pool)?;
            ctx.ops.scale(scaled.slice_mut(), factor)?;
            y = Stream::assume(Act::new(scaled));
        }
        if let Some(positions) = &self.positions {
            let rows = self.group.stream_rows(tokens);
            let mut sum = y.into_inner().into_buf(ctx.pool)?;
            let mut learned = ctx.alloc(rows.len(), self.hidden)?;
            let (at, table) = (position_ids(rows, ctx)?, weights.lease(positions)?);
            ctx.ops.embedding(self.hidden, learned.slice_mut(), at.slice(), table.slice(), 0)?;
            ctx.ops.add_assign(sum.slice_mut(), learned.slice())?;
            y = Stream::assume(Act::new(sum));
        }
        let saved = if ctx.training() { Saved::new([ids], []) } else { Saved::nothing() };
        Ok((y, saved))
    }

    /// Adds the gradients of the rows that were looked up. Ids have no gradient.
    ///
    /// # Errors
    /// As [`VocabEmbedding::forward`].
    pub fn backward(
        &self,
        saved: Saved,
        dy: Stream,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(), NnError> {
        let ([ids], []) = saved.take()?;
        let mut dy = self.group.leave_backward(dy, NAME, ctx)?.into_inner();
        if let Some(positions) = &self.positions {
            let at = position_ids(0..ctx.rows.tokens(), ctx)?;
            self.scatter((positions, &at, 0), &dy, ctx, grads)?;
        }
        if let Some(factor) = self.scale {
            let mut scaled = dy.into_buf(ctx.pool)?;
            ctx.ops.scale(scaled.slice_mut(), factor)?;
            dy = Act::new(scaled);
        }
        self.scatter((&self.table, &ids, self.rows.start), &dy, ctx, grads)
    }

    /// Adds the gradients of rows to those of a table, of which this rank has the rows from the first on.
    fn scatter(
        &self,
        (table, ids, first_row): (&ParamId, &Buf, usize),
        dy: &Buf,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(), NnError> {
        grads.add(table, &ctx.rows, |rows, sum| {
            let dy = dy.slice().range(rows.start * self.hidden..rows.end * self.hidden)?;
            let ids = ids.slice().range(rows)?;
            Ok(ctx.ops.embedding_backward(self.hidden, sum, ids, dy, first_row)?)
        })
    }
}

/// The position of each row in its sequence.
fn position_ids(rows: Range<usize>, ctx: &Context<'_>) -> Result<Buf, BufferError> {
    let position = |row| (ctx.first_position() + row % ctx.rows.seq) as u32;
    ctx.pool.copy_of(Slice::new(&rows.map(position).collect::<Vec<_>>()))
}
