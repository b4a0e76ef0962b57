//! A transformer block: branches one behind the other, or side by side.

use crate::BranchLayer;
use crate::held::Held;
use trine_buffer::Act;
use trine_nn::{Context, GradStore, Layer, NnError, ParamStore, Saved, WeightWork};
use trine_shard::Stream;
use trine_spec::{Block, BranchTensor, Replay, Step};

/// The branches of a block, each added to the residual stream. What they have dropped is computed again before their
/// backward pass: dropout masks are functions of coordinates (contract C1), so the steps give the same bits again, and
/// a sharded layer repeats its collectives, on all ranks alike.
#[derive(Debug)]
pub struct BlockLayer {
    branches: Vec<BranchLayer>,
    replays: Vec<Replay>,
    /// Whether all branches read what enters the block; else each reads what the one before has added to.
    parallel: bool,
}

impl BlockLayer {
    /// The layers of the branches of `block`, in its order.
    pub fn new(block: &Block, branches: Vec<BranchLayer>) -> Self {
        Self { branches, replays: block.replays(), parallel: block.parallel }
    }

    /// Brings back what branch `number` and those before it in its chain have dropped.
    fn bring_back(
        &self,
        number: usize,
        held: &mut [Held],
        w: &ParamStore,
        ctx: &Context<'_>,
    ) -> Result<(), NnError> {
        let mut entering: Option<Stream> = None;
        for at in Block::chain(&self.replays, number) {
            let (branch, replay, held) = (&self.branches[at], &self.replays[at], &mut held[at]);
            if let Some(x) = entering.take() {
                held.put(BranchTensor::Entering, x.into_inner());
            }
            // The step that reads it may let go of it.
            let x = replay.gives_again.then(|| held.get(BranchTensor::Entering).cloned());
            branch.run(&replay.again, held, &replay.needed, w, ctx)?;
            if let Some(x) = x.transpose()? {
                entering = Some(branch.add_to_stream(Stream::assume(x), held, ctx)?);
            }
            held.keep(|kind| replay.needed.contains(&kind));
        }
        Ok(())
    }
}

impl Layer for BlockLayer {
    fn forward(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let mut sum = Stream::assume(x);
        let entering = self.parallel.then(|| sum.clone());
        let mut all = Vec::with_capacity(self.branches.len());
        for (branch, replay) in self.branches.iter().zip(&self.replays) {
            let kept: &[BranchTensor] = if ctx.training() { &replay.kept } else { &[] };
            let x = entering.as_ref().unwrap_or(&sum);
            let mut held = Held::entering((**x).clone());
            branch.run(&Step::ALL, &mut held, kept, w, ctx)?;
            sum = branch.add_to_stream(sum, &mut held, ctx)?;
            all.push(held.saved(kept)?);
        }
        let saved = if ctx.training() { Saved::new([], all) } else { Saved::nothing() };
        Ok((sum.into_inner(), saved))
    }

    fn backward_input(
        &self,
        w: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let states = saved.into_children_of(self.branches.len())?.into_iter().zip(&self.replays);
        let held = states.map(|(saved, replay)| Held::from_saved(saved, &replay.kept));
        let mut held: Vec<Held> = held.collect::<Result<_, _>>()?;
        let mut dx = Stream::assume(dy);
        // Side by side, all branches read the gradient that enters.
        let entering = self.parallel.then(|| dx.clone());
        let mut work = WeightWork::nothing();
        for (number, branch) in self.branches.iter().enumerate().rev() {
            self.bring_back(number, &mut held, w, ctx)?;
            let own = &mut held[number];
            let (d, left) = branch.take(w, own, entering.as_ref().unwrap_or(&dx), ctx, grads)?;
            dx = branch.add_gradient(w, own, d, dx, ctx, grads)?;
            work.append(left);
        }
        Ok((dx.into_inner(), work))
    }
}
