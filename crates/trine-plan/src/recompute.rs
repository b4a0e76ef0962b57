//! What the backward pass computes again, as a plan has it.

/// What the backward pass computes again instead of keeping it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recompute {
    /// Everything is kept.
    None,
    /// The attention core alone (Korthikanti et al., 2205.05198).
    Selective,
    /// Every second matrix product and all element-wise operations (torchtitan's per-operator checkpoints).
    SelectiveOps,
    /// Tensors by name, as trine drops them: a list of the model ([`drop_tensors`](crate::Model::drop_tensors)).
    Tensors(List),
    /// Whole blocks: every `every`-th block of a stage keeps its input alone, the others everything.
    Full {
        /// 1: every block; 2: every second one; and so on.
        every: usize,
    },
}

/// The place of a list of tensors among those of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct List(pub(crate) usize);

impl Recompute {
    /// Norms and the function of the MLP ([`trine_spec::Recompute::ELEMENTWISE`]), which every model has.
    pub const ELEMENTWISE: Self = Self::Tensors(List(0));

    /// How many of a stage's blocks are computed again as a whole.
    pub fn whole_blocks(self, blocks: f64) -> f64 {
        match self {
            Self::Full { every } => (blocks / every as f64).ceil(),
            _ => 0.0,
        }
    }
}
