//! Dropout whose mask is a function of global coordinates.

use crate::{Context, NnError};
use trine_buffer::{Act, Buf};
use trine_kernels::{DropoutPlace, MatMut, MatRef};
use trine_rng::Stream;

/// Dropout on the residual stream, `[tokens, cols]` or a run of its rows. The mask is drawn from
/// (step, global sample, token, feature) by a counter-based generator (contract C1): nothing is
/// stored, recompute and every layout see the same mask, and backward is the same call on the
/// gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct Dropout {
    probability: f64,
    key: u64,
    cols: usize,
}

impl Dropout {
    /// Dropout with its own random stream `name`.
    pub fn new(probability: f64, seed: u64, name: &str, cols: usize) -> Self {
        Self { probability, key: Stream::new(seed, name).key(), cols }
    }

    /// The kernel's description of this mask, for a call whose first sample is `first_sample` of the
    /// global batch. `None` when nothing is dropped.
    pub fn kernel(&self, ctx: &Context<'_>) -> Option<trine_kernels::Dropout> {
        (ctx.training() && self.probability > 0.0).then_some(trine_kernels::Dropout {
            probability: self.probability,
            key: self.key,
            step: ctx.step as u32,
            first_sample: ctx.rows.samples.start as u32,
        })
    }

    /// Applies the mask to rows `first_row..` of the micro-batch. Without dropout `x` itself comes
    /// back.
    ///
    /// # Errors
    /// A length that is no multiple of the row's.
    pub fn apply(&self, x: Act, first_row: usize, ctx: &Context<'_>) -> Result<Act, NnError> {
        let Some(dropout) = self.kernel(ctx) else { return Ok(x) };
        let mut y = ctx.pool.alloc(x.dtype(), x.len())?;
        self.mask(dropout, &mut y, &x, first_row, ctx)?;
        Ok(Act::new(y))
    }

    /// Rows that begin inside a sample are masked sample by sample, because the kernel counts
    /// samples from the start of one.
    fn mask(
        &self,
        dropout: trine_kernels::Dropout,
        y: &mut Buf,
        x: &Buf,
        first_row: usize,
        ctx: &Context<'_>,
    ) -> Result<(), NnError> {
        let (rows, seq) = (x.len() / self.cols, ctx.rows.seq);
        let mut row = 0;
        while row < rows {
            let global = first_row + row;
            let tokens = (seq - global % seq).min(rows - row);
            let elements = row * self.cols..(row + tokens) * self.cols;
            let sample = dropout.first_sample + (global / seq) as u32;
            let dropout = trine_kernels::Dropout { first_sample: sample, ..dropout };
            let place = DropoutPlace { tokens, first_token: global % seq, first_feature: 0 };
            let out = MatMut::new(y.slice_mut().range(elements.clone())?, tokens, self.cols);
            let x = MatRef::new(x.slice().range(elements)?, tokens, self.cols);
            ctx.ops.dropout(dropout, place, out, x)?;
            row += tokens;
        }
        Ok(())
    }
}
