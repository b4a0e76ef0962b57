//! A named model, as families list them.

use crate::{Family, ModelSpec};
use trine_mesh::Degrees;

/// A named model.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    /// What it is called on the command line.
    pub name: &'static str,
    /// One line: what it is and where its shape comes from.
    pub about: &'static str,
    /// The model.
    pub model: ModelSpec,
    /// Layouts that are known to work well, smallest first: degrees and the micro-batch size.
    pub layouts: Vec<(Degrees, usize)>,
}

impl Preset {
    /// A model with layouts that work well.
    pub(crate) fn new(
        name: &'static str,
        about: &'static str,
        model: ModelSpec,
        layouts: &[Layout],
    ) -> Self {
        Self { name, about, model, layouts: layouts.iter().copied().map(layout).collect() }
    }
}

/// Degrees dp, pp, tp and the micro-batch size.
pub(crate) type Layout = (usize, usize, usize, usize);

/// The sizes of a published model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) ffn: usize,
    pub(crate) vocab: usize,
    pub(crate) seq_max: usize,
}

impl Sizes {
    /// The model of a family with these sizes.
    pub(crate) fn of(self, family: Family) -> ModelSpec {
        let Self { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, seq_max } = self;
        let usual = ModelSpec::smallest(family);
        ModelSpec { layers, hidden, heads, kv_heads, head_dim, ffn, vocab, seq_max, ..usual }
            .of_family(family)
    }
}

fn layout((dp, pp, tp, micro_batch): Layout) -> (Degrees, usize) {
    (Degrees { dp, pp, tp, ..Degrees::SERIAL }, micro_batch)
}
