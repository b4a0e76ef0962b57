//! The two ends of a model.

use crate::LossLayer;
use trine_buffer::{Act, Buf};
use trine_nn::{Context, GradStore, Layer, NnError, ParamStore, Saved, WeightWork};
use trine_shard::{Stream, StreamDropout, StreamNorm, VocabEmbedding, VocabHead};
use trine_spec::HeadTensor;

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
    /// What is not kept for the backward pass, but computed again.
    pub dropped: Vec<HeadTensor>,
}

impl Head {
    /// Statistics, what the output layer reads and its logits' gradient; those that are dropped are computed again from
    /// `x`.
    fn bring_back(
        &self,
        kept: [Option<Act>; 3],
        x: &Stream,
        w: &ParamStore,
        ctx: &Context<'_>,
    ) -> Result<[Act; 3], NnError> {
        let [stats, input, logits] = kept;
        let (stats, input) = match (stats, input) {
            (Some(stats), Some(input)) => (stats, input),
            (stats, input) => {
                let (h, again) = self.norm.normalise(w, x, ctx)?;
                (stats.unwrap_or(again), input.unwrap_or_else(|| h.into_inner()))
            }
        };
        let logits = match logits {
            Some(logits) => logits,
            None => {
                let (_, again) = self.output.forward(w, &Stream::assume(input.clone()), ctx)?;
                let ([_, logits], []) = again.take()?;
                logits
            }
        };
        Ok([stats, input, logits])
    }
}

impl LossLayer for Head {
    fn logits(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<Buf, NnError> {
        let (h, _) = self.norm.forward(w, &Stream::assume(x), ctx)?;
        self.output.logits(w, &h, ctx)
    }
}

impl Layer for Head {
    fn forward(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let x = Stream::assume(x);
        let (h, stats) = self.norm.normalise(w, &x, ctx)?;
        let (loss, output) = self.output.forward(w, &h, ctx)?;
        if !ctx.training() {
            return Ok((Act::new(loss), Saved::nothing()));
        }
        let ([input, logits], []) = output.take()?;
        let all = HeadTensor::ALL.into_iter().zip([stats, input, logits]);
        let kept = all.filter(|(kind, _)| !self.dropped.contains(kind)).map(|(_, act)| act);
        let kept: Vec<Act> = [x.into_inner()].into_iter().chain(kept).collect();
        Ok((Act::new(loss), Saved::new(kept, [])))
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
        let keeps = |kind: HeadTensor| !self.dropped.contains(&kind);
        let count = 1 + HeadTensor::ALL.into_iter().filter(|kind| keeps(*kind)).count();
        let mut acts = saved.into_acts_of(count)?.into_iter();
        let x = Stream::assume(acts.next().expect("invariant: one at least"));
        let kept = HeadTensor::ALL.map(|kind| keeps(kind).then(|| acts.next()).flatten());
        let [stats, input, logits] = self.bring_back(kept, &x, w, ctx)?;
        let output = Saved::new([input, logits], []);
        let (dh, work) = self.output.backward_input(w, output, ctx, grads)?;
        let norm = Saved::new([x.into_inner(), stats], []);
        let dx = self.norm.backward_input(w, norm, dh, None, ctx, grads)?;
        Ok((dx.into_inner(), work))
    }
}
