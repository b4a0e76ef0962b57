//! Who takes part.

use std::fmt;
use std::sync::Arc;

/// The ranks of a communicator, seen by one of them. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Group {
    name: Arc<str>,
    ranks: Arc<[usize]>,
    index: usize,
}

impl Group {
    /// A group called `name` of the given world ranks, seen by the one at `index`; `None` if there
    /// is no such rank.
    pub fn new(name: &str, ranks: Vec<usize>, index: usize) -> Option<Self> {
        (index < ranks.len()).then(|| Self { name: name.into(), ranks: ranks.into(), index })
    }

    /// The same group, seen by another member; `None` if there is no such rank.
    pub(crate) fn seen_by(&self, index: usize) -> Option<Self> {
        (index < self.size()).then(|| Self { index, ..self.clone() })
    }

    /// What the group is for: `tp`, `dp`, `world`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The members' world ranks, in the group's order.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// The calling rank's index in the group.
    pub fn rank(&self) -> usize {
        self.index
    }

    /// Number of members.
    pub fn size(&self) -> usize {
        self.ranks.len()
    }

    /// The calling rank's number in the world.
    pub fn world_rank(&self) -> usize {
        self.ranks[self.index]
    }
}

/// `tp[4,5]`: what errors show.
impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.name)?;
        for (at, rank) in self.ranks.iter().enumerate() {
            write!(f, "{}{rank}", if at == 0 { "" } else { "," })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} seen by rank {}", self.world_rank())
    }
}
