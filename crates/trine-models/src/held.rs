//! The tensors of a branch that are there at a moment.

use trine_buffer::Act;
use trine_nn::{NnError, Saved};
use trine_spec::BranchTensor;

/// Each tensor of a branch, or none in its place.
#[derive(Debug, Default)]
pub(crate) struct Held([Option<Act>; BranchTensor::ALL.len()]);

impl Held {
    /// A branch that has what enters, and nothing else.
    pub(crate) fn entering(x: Act) -> Self {
        let mut held = Self::default();
        held.put(BranchTensor::Entering, x);
        held
    }

    /// What [`Held::saved`] has given.
    pub(crate) fn from_saved(saved: Saved, kinds: &[BranchTensor]) -> Result<Self, NnError> {
        let acts = saved.into_acts_of(kinds.len())?;
        let mut held = Self::default();
        kinds.iter().zip(acts).for_each(|(kind, act)| held.put(*kind, act));
        Ok(held)
    }

    /// Puts a tensor where none is.
    pub(crate) fn put(&mut self, kind: BranchTensor, act: Act) {
        self.0[kind as usize].get_or_insert(act);
    }

    pub(crate) fn has(&self, kind: BranchTensor) -> bool {
        self.0[kind as usize].is_some()
    }

    pub(crate) fn get(&self, kind: BranchTensor) -> Result<&Act, NnError> {
        self.0[kind as usize].as_ref().ok_or(MISSING)
    }

    pub(crate) fn take(&mut self, kind: BranchTensor) -> Result<Act, NnError> {
        self.0[kind as usize].take().ok_or(MISSING)
    }

    /// Takes tensors out, as the saved state of a layer.
    pub(crate) fn saved(&mut self, kinds: &[BranchTensor]) -> Result<Saved, NnError> {
        let acts: Vec<Act> = kinds.iter().map(|kind| self.take(*kind)).collect::<Result<_, _>>()?;
        Ok(Saved::new(acts, []))
    }

    /// Lets go of those that do not stay.
    pub(crate) fn keep(&mut self, stays: impl Fn(BranchTensor) -> bool) {
        for kind in BranchTensor::ALL {
            if !stays(kind) {
                self.0[kind as usize] = None;
            }
        }
    }
}

/// A step or a backward pass runs before what it reads is there: the lists of a [`trine_spec::Replay`] are wrong.
const MISSING: NnError =
    NnError::Missing { layer: "a branch", what: "a tensor that it has dropped" };
