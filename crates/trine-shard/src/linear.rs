//! Column- and row-parallel linear layers.

use crate::{Partial, Split, Stream, TensorGroup};
use std::ops::Range;
use trine_buffer::Act;
use trine_comm::Name;
use trine_nn::{
    Context, GradStore, Linear, NnError, Numerics, ParamId, ParamStore, Saved, WeightWork,
};

/// A run of a column-parallel layer's local output features that belong together (all queries, all
/// keys, the gate).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// Local features.
    pub cols: usize,
    /// Ranks that hold these very features (shared KV heads); 1 otherwise.
    pub replicas: usize,
    /// Which of them this rank is.
    pub replica: usize,
}

impl Section {
    /// Features that no other rank holds.
    pub fn own(cols: usize) -> Self {
        Self { cols, replicas: 1, replica: 0 }
    }
}

/// Output features split over the ranks: `Stream` in, `Split` out.
#[derive(Debug, Clone)]
pub struct ColumnLinear {
    group: TensorGroup,
    linear: Linear,
    name: Name,
}

impl ColumnLinear {
    /// A layer with `inputs` features in and the local `sections` out, whose weights are neighbours
    /// under one address.
    pub fn new(
        group: TensorGroup,
        (weight, bias): (ParamId, Option<ParamId>),
        inputs: usize,
        sections: &[Section],
        numerics: Numerics,
        name: Name,
    ) -> Self {
        let outputs = sections.iter().map(|section| section.cols).sum();
        let output_blocks = output_blocks(sections, numerics.blocks(group.size()));
        let linear = Linear { output_blocks, ..Linear::new(weight, bias, inputs, outputs) };
        Self { group, linear, name }
    }

    /// `y = x · wᵀ + b` by features, and what backward needs.
    ///
    /// # Errors
    /// A wrong shape, or a failed collective.
    pub fn forward(
        &self,
        weights: &ParamStore,
        x: &Stream,
        ctx: &Context<'_>,
    ) -> Result<(Split, Saved), NnError> {
        let y = self.apply(weights, x, ctx)?;
        // The stream's own rows are kept, and gathered again when the weight gradient needs them.
        let kept: Vec<Act> = if ctx.training() { vec![(**x).clone()] } else { vec![] };
        Ok((y, Saved::new(kept, [])))
    }

    /// `y = x · wᵀ + b` by features.
    ///
    /// # Errors
    /// A wrong shape, or a failed collective.
    pub fn apply(
        &self,
        weights: &ParamStore,
        x: &Stream,
        ctx: &Context<'_>,
    ) -> Result<Split, NnError> {
        let whole = self.group.enter(x, self.name, ctx)?;
        let y = self.linear.apply(weights, &whole, ctx.compute, ctx)?;
        Ok(Split::assume(Act::new(y)))
    }

    /// The stream's gradient, and the weight gradient as work for later.
    ///
    /// # Errors
    /// As [`ColumnLinear::forward`].
    pub fn backward_input(
        &self,
        weights: &ParamStore,
        saved: Saved,
        dy: Split,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Stream, WeightWork), NnError> {
        let ([x], []) = saved.take()?;
        let dx = Partial::assume(self.linear.input_grad(weights, &dy, ctx)?);
        let dx = self.group.enter_backward(dx, self.name, ctx)?;
        let x = self.group.enter(&Stream::assume(x), self.name, ctx)?;
        let work = self.linear.weight_grad(x.into_inner(), dy.into_inner(), ctx, grads)?;
        Ok((dx, work))
    }
}

/// The leaves of the input gradient's sum over output features. Replicas of a section each take a
/// part of it, so that every feature counts once. In `blocks` equal parts the sum over all ranks is
/// the same tree for every degree.
fn output_blocks(sections: &[Section], blocks: usize) -> Vec<Vec<Range<usize>>> {
    let mut first = 0;
    let mut parts = Vec::new();
    for section in sections {
        let border = |replica| first + section.cols * replica / section.replicas;
        parts.push(border(section.replica)..border(section.replica + 1));
        first += section.cols;
    }
    let contiguous = parts.windows(2).all(|pair| pair[0].end == pair[1].start);
    if blocks == 1 && contiguous {
        return vec![vec![parts[0].start..parts[parts.len() - 1].end]];
    }
    let block = |part: &Range<usize>, index: usize| {
        let width = part.len() / blocks;
        part.start + index * width..part.start + (index + 1) * width
    };
    (0..blocks).map(|index| parts.iter().map(|part| block(part, index)).collect()).collect()
}

/// Input features split over the ranks: `Split` in, `Stream` out. The bias is added once, after the
/// sum.
#[derive(Debug, Clone)]
pub struct RowLinear {
    group: TensorGroup,
    linear: Linear,
    name: Name,
}

impl RowLinear {
    /// A layer with the local `inputs` features in and `outputs` features out.
    pub fn new(
        group: TensorGroup,
        (weight, bias): (ParamId, Option<ParamId>),
        inputs: usize,
        outputs: usize,
        numerics: Numerics,
        name: Name,
    ) -> Self {
        let input_blocks = numerics.blocks(group.size());
        let linear = Linear { input_blocks, ..Linear::new(weight, bias, inputs, outputs) };
        Self { group, linear, name }
    }

    /// `y = Σ over ranks x · wᵀ, + b`, and what backward needs.
    ///
    /// # Errors
    /// A wrong shape, or a failed collective.
    pub fn forward(
        &self,
        weights: &ParamStore,
        x: Split,
        ctx: &Context<'_>,
    ) -> Result<(Stream, Saved), NnError> {
        let y = self.apply(weights, &x, ctx)?;
        let saved =
            if ctx.training() { Saved::new([x.into_inner()], []) } else { Saved::nothing() };
        Ok((y, saved))
    }

    /// `y = Σ over ranks x · wᵀ, + b`. One rank gives it in the type of the stream that it is added
    /// to; several send their summands, and what they come to, in the compute type.
    ///
    /// # Errors
    /// A wrong shape, or a failed collective.
    pub fn apply(
        &self,
        weights: &ParamStore,
        x: &Split,
        ctx: &Context<'_>,
    ) -> Result<Stream, NnError> {
        let y = if self.group.size() == 1 {
            self.linear.apply(weights, x, ctx.stream(), ctx)?
        } else {
            let sum = Partial::assume(self.linear.product(weights, x, ctx.compute, ctx)?);
            let mut y = self.group.leave(sum, self.name, ctx)?.into_inner().into_buf(ctx.pool)?;
            self.linear.add_bias(weights, &mut y, ctx)?;
            y
        };
        Ok(Stream::assume(Act::new(y)))
    }

    /// The gradient of this rank's features, and the weight gradient as work for later.
    ///
    /// # Errors
    /// As [`RowLinear::forward`].
    pub fn backward_input(
        &self,
        weights: &ParamStore,
        saved: Saved,
        dy: &Stream,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Split, WeightWork), NnError> {
        let ([x], []) = saved.take()?;
        let dy = self.group.leave_backward(dy.clone(), self.name, ctx)?;
        let dx = Act::new(self.linear.input_grad(weights, &dy, ctx)?);
        let work = self.linear.weight_grad(x, dy.into_inner(), ctx, grads)?;
        Ok((Split::assume(dx), work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_block_without_replicas_is_one_product() {
        let sections = [Section::own(8), Section::own(4), Section::own(4)];
        let all = 0..16;
        assert_eq!(output_blocks(&sections, 1), [[all]]);
    }

    #[test]
    fn replicas_share_the_features_and_blocks_interleave_the_sections() {
        let kv = Section { cols: 4, replicas: 2, replica: 1 };
        assert_eq!(output_blocks(&[Section::own(8), kv, kv], 1), [[0..8, 10..12, 14..16]]);
        // Three replicas of four features have one, one and two of them.
        let kv = Section { cols: 4, replicas: 3, replica: 2 };
        assert_eq!(output_blocks(&[Section::own(8), kv], 1), [[0..8, 10..12]]);
        let blocks = output_blocks(&[Section::own(8), kv, kv], 2);
        assert_eq!(blocks, [[0..4, 10..11, 14..15], [4..8, 11..12, 15..16]]);
    }
}
