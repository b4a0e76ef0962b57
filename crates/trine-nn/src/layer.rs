//! The layer trait: explicit forward, input gradient and weight gradient.

use crate::{Context, GradStore, NnError, ParamId, ParamStore};
use trine_buffer::Act;
use trine_kernels::{MatMut, MatRef, Product};

/// What a forward pass keeps for the backward pass: activations, and the saved states of inner
/// layers. It is consumed by the backward pass, so memory follows the schedule.
#[derive(Debug, Default)]
pub struct Saved {
    acts: Vec<Act>,
    children: Vec<Self>,
}

impl Saved {
    /// Nothing: evaluation, or a layer that needs nothing.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// These activations and these inner states.
    pub fn new(acts: impl Into<Vec<Act>>, children: impl Into<Vec<Self>>) -> Self {
        Self { acts: acts.into(), children: children.into() }
    }

    /// Takes everything out again.
    ///
    /// # Errors
    /// The state was made by another layer (other counts).
    pub fn take<const ACTS: usize, const CHILDREN: usize>(
        self,
    ) -> Result<([Act; ACTS], [Self; CHILDREN]), NnError> {
        let held = (self.acts.len(), self.children.len());
        let wrong = || NnError::Saved { held, expected: (ACTS, CHILDREN) };
        let acts = self.acts.try_into().map_err(|_| wrong())?;
        let children = self.children.try_into().map_err(|_| wrong())?;
        Ok((acts, children))
    }

    /// The activations, `count` of them, where there are no inner states.
    ///
    /// # Errors
    /// Another number of them, or inner states beside them.
    pub fn into_acts_of(self, count: usize) -> Result<Vec<Act>, NnError> {
        let held = (self.acts.len(), self.children.len());
        if held != (count, 0) {
            return Err(NnError::Saved { held, expected: (count, 0) });
        }
        Ok(self.acts)
    }

    /// The inner states of `count` layers.
    ///
    /// # Errors
    /// Another number of them, or activations beside them.
    pub fn into_children_of(self, count: usize) -> Result<Vec<Self>, NnError> {
        let held = (self.acts.len(), self.children.len());
        if held != (0, count) {
            return Err(NnError::Saved { held, expected: (0, count) });
        }
        Ok(self.children)
    }

    /// Bytes kept. An activation that several places keep is counted at each.
    pub fn bytes(&self) -> usize {
        let own: usize = self.acts.iter().map(|act| act.size_bytes()).sum();
        own + self.children.iter().map(Self::bytes).sum::<usize>()
    }
}

/// One weight gradient still to be computed: `dw[outputs, inputs] += dyᵀ · x`.
#[derive(Debug, Clone)]
pub struct WeightTask {
    /// The weight, `[outputs, inputs]`.
    pub weight: ParamId,
    /// The layer's input, `[rows, inputs]`.
    pub x: Act,
    /// The gradient of the layer's output, `[rows, outputs]`.
    pub dy: Act,
    /// Columns of `x`.
    pub inputs: usize,
    /// Columns of `dy`.
    pub outputs: usize,
}

/// The weight gradients that a backward pass has left for later: exactly the (x, dy) pairs that are
/// still needed. It needs no weights, so zero-bubble schedules can run it any time later
/// (Qi et al., 2401.10241).
#[derive(Debug, Default)]
pub struct WeightWork {
    tasks: Vec<WeightTask>,
}

impl WeightWork {
    /// Nothing left to do.
    pub fn nothing() -> Self {
        Self::default()
    }

    /// Adds a task.
    pub fn push(&mut self, task: WeightTask) {
        self.tasks.push(task);
    }

    /// Adds another layer's tasks behind these.
    pub fn append(&mut self, mut other: Self) {
        self.tasks.append(&mut other.tasks);
    }

    /// Bytes of the activations kept.
    pub fn bytes(&self) -> usize {
        self.tasks.iter().map(|task| task.x.size_bytes() + task.dy.size_bytes()).sum()
    }

    /// Computes the gradients and adds them into `grads`, dropping each pair once it is used.
    ///
    /// # Errors
    /// A bucket is away, or a kernel refuses.
    pub fn run(self, ctx: &Context<'_>, grads: &mut GradStore) -> Result<(), NnError> {
        self.tasks.into_iter().try_for_each(|task| task.run(ctx, grads))
    }
}

impl WeightTask {
    fn run(self, ctx: &Context<'_>, grads: &mut GradStore) -> Result<(), NnError> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        grads.add_or_set(&self.weight, &ctx.rows, |rows, sum, accumulate| {
            let dy = matrix(&self.dy, &rows, outputs)?;
            let x = matrix(&self.x, &rows, inputs)?;
            let sum = MatMut::new(sum, outputs, inputs);
            ctx.ops.matmul(Product::Tn, accumulate, dy, x, sum)?;
            Ok(())
        })
    }
}

/// Some rows of an activation of `cols` columns.
fn matrix<'a>(
    act: &'a Act,
    rows: &std::ops::Range<usize>,
    cols: usize,
) -> Result<MatRef<'a>, NnError> {
    let elements = act.slice().range(rows.start * cols..rows.end * cols)?;
    Ok(MatRef::new(elements, rows.len(), cols))
}

/// A part of a model with an explicit backward pass. Weights are not in the layer: they are leased
/// from the [`ParamStore`] for the call.
///
/// The order of calls for one micro-batch is `forward`, `backward_input`, and later
/// [`WeightWork::run`]. Bias, norm and embedding gradients are cheap and finish in
/// `backward_input`; matrix products are left to the weight work.
pub trait Layer: Send + Sync + std::fmt::Debug {
    /// `y = f(x)`, and what backward needs (nothing in [`crate::Mode::Eval`]).
    ///
    /// # Errors
    /// A wrong shape, a bucket that is away, or a failed collective.
    fn forward(
        &self,
        weights: &ParamStore,
        x: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, Saved), NnError>;

    /// The gradient of the input, and the weight gradients still to do.
    ///
    /// # Errors
    /// As [`Layer::forward`], or a saved state of another layer.
    fn backward_input(
        &self,
        weights: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError>;
}

impl Layer for Box<dyn Layer> {
    fn forward(
        &self,
        weights: &ParamStore,
        x: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, Saved), NnError> {
        (**self).forward(weights, x, ctx)
    }

    fn backward_input(
        &self,
        weights: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        (**self).backward_input(weights, saved, dy, ctx, grads)
    }
}

/// Full activation recompute around any layer: keeps the input alone and runs forward again before
/// backward. Dropout masks are functions of coordinates (contract C1), so the replay is exact; a
/// sharded layer repeats its collectives, on all ranks alike.
#[derive(Debug)]
pub struct Recompute<L>(pub L);

impl<L: Layer> Layer for Recompute<L> {
    fn forward(
        &self,
        weights: &ParamStore,
        x: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, Saved), NnError> {
        if !ctx.training() {
            return self.0.forward(weights, x, ctx);
        }
        let (y, replayed) = self.0.forward(weights, x.clone(), ctx)?;
        drop(replayed);
        Ok((y, Saved::new([x], [])))
    }

    fn backward_input(
        &self,
        weights: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let ([x], []) = saved.take()?;
        let (y, saved) = self.0.forward(weights, x, ctx)?;
        drop(y);
        self.0.backward_input(weights, saved, dy, ctx, grads)
    }
}

/// Layers one behind the other.
#[derive(Debug)]
pub struct Stack(pub Vec<Box<dyn Layer>>);

impl Layer for Stack {
    fn forward(
        &self,
        weights: &ParamStore,
        x: Act,
        ctx: &Context<'_>,
    ) -> Result<(Act, Saved), NnError> {
        let (mut x, mut children) = (x, Vec::new());
        for layer in &self.0 {
            let (y, saved) = layer.forward(weights, x, ctx)?;
            children.push(saved);
            x = y;
        }
        Ok((x, Saved::new([], children)))
    }

    fn backward_input(
        &self,
        weights: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let (mut dy, mut work) = (dy, WeightWork::nothing());
        let children = saved.into_children_of(self.0.len())?;
        for (layer, saved) in self.0.iter().zip(children).rev() {
            let (dx, left) = layer.backward_input(weights, saved, dy, ctx, grads)?;
            work.append(left);
            dy = dx;
        }
        Ok((dy, work))
    }
}
