//! Which steps of a piece run again before its backward pass, for the tensors that it has dropped. The layers run them
//! and the plan of memory follows them, so that the order of operations stands once.

use crate::{Block, Branch};

/// A step of a branch's forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The norm of the stream, or the stream in the type of products.
    Read,
    /// The columns; norms and turning of queries and keys.
    Columns,
    /// Attention, or the function of the MLP.
    Inner,
    /// The row, and the sum over the tensor-parallel ranks.
    Row,
    /// The norm of what the row comes to.
    After,
}

/// A tensor of a branch, in forward order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BranchTensor {
    /// The stream that enters.
    Entering,
    /// Statistics of its norm.
    ReadStats,
    /// What the columns read.
    Read,
    /// Queries and keys before their norms.
    QkInput,
    /// Statistics of these norms.
    QkStats,
    /// What the inner part reads.
    Columns,
    /// What it gives, and the row reads.
    Given,
    /// Attention's logarithms of sums.
    LogSum,
    /// What the row comes to, where a norm follows.
    Row,
    /// Statistics of that norm.
    RowStats,
    /// What is added to the stream, but for dropout. No backward pass needs it.
    Leaving,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Read, Self::Columns, Self::Inner, Self::Row, Self::After];

    /// What it gives, last of all what the next step reads; `after`: whether a norm follows the row.
    pub fn gives(self, after: bool) -> &'static [BranchTensor] {
        match self {
            Self::Read => &[BranchTensor::ReadStats, BranchTensor::Read],
            Self::Columns => &[BranchTensor::QkInput, BranchTensor::QkStats, BranchTensor::Columns],
            Self::Inner => &[BranchTensor::LogSum, BranchTensor::Given],
            Self::Row if after => &[BranchTensor::Row],
            Self::Row => &[BranchTensor::Leaving],
            Self::After => &[BranchTensor::RowStats, BranchTensor::Leaving],
        }
    }
}

impl BranchTensor {
    /// All of them, each in the place of its number.
    pub const ALL: [Self; 11] = [
        Self::Entering,
        Self::ReadStats,
        Self::Read,
        Self::QkInput,
        Self::QkStats,
        Self::Columns,
        Self::Given,
        Self::LogSum,
        Self::Row,
        Self::RowStats,
        Self::Leaving,
    ];

    /// The name that several have together in a list of tensors: `norms` for what norms of the stream give, with their
    /// statistics.
    pub fn group(self, branch: &Branch) -> Option<String> {
        match self {
            Self::Read if branch.before.is_none() => None,
            Self::ReadStats | Self::Read | Self::RowStats => Some("norms".into()),
            Self::QkInput | Self::QkStats => {
                Some(format!("{}.{}", branch.name, branch.inner.columns()))
            }
            Self::LogSum => Some(format!("{}.core", branch.name)),
            Self::Entering | Self::Columns | Self::Given | Self::Row | Self::Leaving => None,
        }
    }
}

/// What a branch keeps, and what brings back the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// What its backward pass needs, in forward order.
    pub needed: Vec<BranchTensor>,
    /// What it keeps for that.
    pub kept: Vec<BranchTensor>,
    /// The steps that run again before its backward pass, in order.
    pub again: Vec<Step>,
    /// Whether what enters is what the branch before has added to, once more: then that one is brought back first.
    pub is_chained: bool,
    /// Whether the next branch is chained to this one.
    pub gives_again: bool,
}

impl Block {
    /// What each of its branches keeps, and what runs again.
    pub fn replays(&self) -> Vec<Replay> {
        let mut replays: Vec<Replay> = Vec::new();
        // From the last: what a branch gives is needed again where the next one has dropped what enters it.
        for branch in self.branches.iter().rev() {
            let gives_again = replays.last().is_some_and(|next| next.is_chained);
            replays.push(branch.replay(gives_again));
        }
        replays.reverse();
        replays
    }

    /// The branches that are brought back together with branch `number`, which ends their chain: nothing if a later one
    /// does.
    pub fn chain(replays: &[Replay], number: usize) -> std::ops::Range<usize> {
        if replays[number].gives_again {
            return number..number;
        }
        let start = (0..=number).rev().find(|first| !replays[*first].is_chained);
        start.unwrap_or(0)..number + 1
    }
}

impl Branch {
    /// Its steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = Step> + use<> {
        let after = self.after.is_some();
        Step::ALL.into_iter().filter(move |step| after || *step != Step::After)
    }

    /// The tensor that stands for what enters: the stream, or without a norm what the columns read of it.
    pub(crate) fn entering(&self) -> BranchTensor {
        if self.before.is_some() { BranchTensor::Entering } else { BranchTensor::Read }
    }

    fn replay(&self, gives_again: bool) -> Replay {
        let is_chained = self.dropped.contains(&self.entering());
        let mut dropped = self.dropped.clone();
        let mut needed: Vec<BranchTensor> =
            self.tensors(1, 1).iter().map(|(kind, _)| *kind).collect();
        needed.dedup();
        let mut kept = needed.clone();
        if gives_again && self.before.is_none() && !is_chained {
            // The stream itself is kept, and what the columns read is a copy of it in another type.
            dropped.push(BranchTensor::Read);
            kept.insert(0, BranchTensor::Entering);
        }
        kept.retain(|tensor| !dropped.contains(tensor));
        let after = self.after.is_some();
        let is_again = |step: &Step| {
            step.gives(after).iter().any(|tensor| match tensor {
                BranchTensor::Leaving => gives_again,
                BranchTensor::Row => gives_again || dropped.contains(tensor),
                tensor => dropped.contains(tensor),
            })
        };
        let again = self.steps().filter(is_again).collect();
        Replay { needed, kept, again, is_chained, gives_again }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        Branch, BranchTensor, ModelParts, Pattern, Piece, Recompute, Replay, Step, presets,
    };

    fn replays(preset: &str, what: &Recompute) -> Vec<Replay> {
        let mut parts = presets::find(preset).unwrap().model.parts(1).unwrap();
        parts.recompute(what).unwrap();
        block(&parts).replays()
    }

    fn block(parts: &ModelParts) -> &crate::Block {
        match &parts.get(Piece::Block(0)).unwrap().body {
            crate::Body::Block(block) => block,
            other => panic!("{other:?}"),
        }
    }

    fn named(names: &[&str]) -> Recompute {
        Recompute::Tensors(names.iter().map(|name| Pattern::new(*name)).collect())
    }

    #[test]
    fn nothing_runs_again_unless_something_is_dropped() {
        for replay in replays("gpt2-124m", &Recompute::None) {
            assert!(replay.again.is_empty() && !replay.is_chained && !replay.gives_again);
        }
    }

    #[test]
    fn whole_blocks_keep_their_input_and_leave_out_the_last_row() {
        let [attention, mlp] = &replays("gpt2-124m", &Recompute::FULL)[..] else { panic!() };
        assert_eq!(attention.kept, [BranchTensor::Entering]);
        assert_eq!(attention.again, [Step::Read, Step::Columns, Step::Inner, Step::Row]);
        assert!(attention.gives_again && !attention.is_chained);
        assert!(mlp.kept.is_empty() && mlp.is_chained && !mlp.gives_again);
        assert_eq!(mlp.again, [Step::Read, Step::Columns, Step::Inner]);
        // Norms behind the branches only: the stream is kept instead of a copy of it.
        let [attention, mlp] = &replays("olmo2-1b", &Recompute::FULL)[..] else { panic!() };
        assert_eq!(attention.kept, [BranchTensor::Entering]);
        assert_eq!(attention.again, Step::ALL);
        assert_eq!(mlp.again, Step::ALL);
        // Side by side each begins from the stream.
        let [attention, mlp] = &replays("pythia-160m", &Recompute::FULL)[..] else { panic!() };
        assert_eq!(
            (&attention.kept[..], &mlp.kept[..]),
            (&[BranchTensor::Entering][..], &[BranchTensor::Entering][..])
        );
        assert!(!mlp.is_chained && !attention.gives_again);
    }

    #[test]
    fn steps_run_again_for_what_is_named_only() {
        let again = |names: &[&str]| -> Vec<Vec<Step>> {
            replays("gpt2-124m", &named(names)).into_iter().map(|replay| replay.again).collect()
        };
        assert_eq!(
            again(&["norms", "mlp.activation"]),
            [vec![Step::Read], vec![Step::Read, Step::Inner]]
        );
        assert_eq!(again(&["attention.qkv"]), [vec![Step::Columns], vec![]]);
        assert_eq!(again(&["attention.log_sum"]), [vec![Step::Inner], vec![]]);
        assert_eq!(again(&["norm2.input"]), [vec![Step::Row], vec![]]);
        let ends = |branch: &Branch| branch.steps().last();
        let parts = presets::find("gemma2-2b").unwrap().model.parts(1).unwrap();
        assert_eq!(ends(&block(&parts).branches[0]), Some(Step::After));
    }
}
