//! What runs again where a model's blocks drop tensors.

use std::ops::{Add, Mul};
use trine_spec::{Block, Branch, Replay, Step};

/// How often the steps of a block run again before its backward pass, on average over the blocks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Again {
    /// The columns of attention, and of the MLP.
    pub(crate) columns: [f64; 2],
    /// Attention itself, and the function of the MLP.
    pub(crate) inner: [f64; 2],
    /// The rows of both, with their sums over tensor parallelism.
    pub(crate) rows: [f64; 2],
    /// Norms of the stream.
    pub(crate) norms: f64,
    /// Branches that are added to the stream once more.
    pub(crate) sums: f64,
}

impl Again {
    pub(crate) fn of_block(block: &Block) -> Self {
        let replays = block.replays();
        let branches = block.branches.iter().zip(&replays);
        branches.map(|(branch, replay)| Self::of(branch, replay)).fold(Self::default(), Add::add)
    }

    fn of(branch: &Branch, replay: &Replay) -> Self {
        let kind = branch.inner.number();
        let mut again = Self { sums: f64::from(u8::from(replay.gives_again)), ..Self::default() };
        for step in &replay.again {
            match step {
                Step::Read if branch.before.is_none() => {}
                Step::Read | Step::After => again.norms += 1.0,
                Step::Columns => again.columns[kind] += 1.0,
                Step::Inner => again.inner[kind] += 1.0,
                Step::Row => again.rows[kind] += 1.0,
            }
        }
        again
    }

    /// Steps, each of which launches kernels.
    pub(crate) fn count(&self) -> f64 {
        let both: f64 = [self.columns, self.inner, self.rows].iter().flatten().sum();
        both + self.norms + self.sums
    }
}

impl Mul<f64> for Again {
    type Output = Self;

    fn mul(self, share: f64) -> Self {
        let both = |numbers: [f64; 2]| numbers.map(|number| number * share);
        Self {
            columns: both(self.columns),
            inner: both(self.inner),
            rows: both(self.rows),
            norms: self.norms * share,
            sums: self.sums * share,
        }
    }
}

impl Add for Again {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let both = |a: [f64; 2], b: [f64; 2]| [a[0] + b[0], a[1] + b[1]];
        Self {
            columns: both(self.columns, other.columns),
            inner: both(self.inner, other.inner),
            rows: both(self.rows, other.rows),
            norms: self.norms + other.norms,
            sums: self.sums + other.sums,
        }
    }
}
