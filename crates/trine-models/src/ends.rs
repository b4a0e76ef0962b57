//! The two ends of a model.

use crate::LossLayer;
use trine_buffer::{Act, Buf};
use trine_nn::{Context, GradStore, Layer, NnError, ParamStore, Saved, WeightWork};
use trine_shard::{Stream, StreamDropout, StreamNorm, VocabEmbedding, VocabHead};

/// Token ids to the residual stream.
#[derive(Debug)]
pub struct Embedding {
    /// Token and position tables.
    pub tables: VocabEmbedding,
    /// Dropout of the embedded tokens.
    pub dropout: StreamDropout,
}

impl Layer for Embedding {
    fn forward(
        &self,
        w: &ParamStore,
        ids: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, Saved), NnError> {
        let (x, saved) = self.tables.forward(w, ids, ctx)?;
        Ok((self.dropout.apply(x, ctx)?.into_inner(), saved))
    }

    /// Ids have no gradient: the one returned is empty.
    fn backward_input(
        &self,
        _: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let dy = self.dropout.apply(Stream::assume(dy), ctx)?;
        self.tables.backward(saved, dy, ctx, grads)?;
        Ok((Act::new(Buf::zeros(ctx.compute, 0)), WeightWork::nothing()))
    }
}

/// The residual stream to the loss of each token, `[tokens]` in the accumulator type.
#[derive(Debug)]
pub struct Head {
    /// The final norm.
    pub norm: StreamNorm,
    /// Output layer and loss.
    pub output: VocabHead,
}

impl LossLayer for Head {
    fn logits(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<Buf, NnError> {
        let (h, _) = self.norm.forward(w, &Stream::assume(x), ctx)?;
        self.output.logits(w, &h, ctx)
    }
}

impl Layer for Head {
    fn forward(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let (h, norm) = self.norm.forward(w, &Stream::assume(x), ctx)?;
        let (loss, output) = self.output.forward(w, &h, ctx)?;
        Ok((Act::new(loss), Saved::new([], [norm, output])))
    }

    /// The loss is the end of the model, so the gradient handed in is not looked at: the scale of
    /// the loss is in the context (contract C2).
    fn backward_input(
        &self,
        w: &ParamStore,
        saved: Saved,
        _: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let ([], [norm, output]) = saved.take()?;
        let (dh, work) = self.output.backward_input(w, output, ctx, grads)?;
        let dx = self.norm.backward_input(w, norm, dh, None, ctx, grads)?;
        Ok((dx.into_inner(), work))
    }
}
