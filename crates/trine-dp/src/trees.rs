//! Sums over samples in the serial run's order: ranks exchange subtrees, and each adds them all up.

use crate::{DpError, Partition};
use trine_buffer::{Buf, DType, Pool};
use trine_comm::{Communicator, Name, Pending};
use trine_kernels::Ops;
use trine_nn::{Node, SampleTree, subtrees};

/// Which subtrees of the sum over samples each data-parallel rank contributes. A pure function of
/// the batch, so that only numbers need to be exchanged.
#[derive(Debug)]
pub(crate) struct TreeShares {
    /// By rank, in order of the samples.
    by_rank: Vec<Vec<Node>>,
    index: usize,
}

impl TreeShares {
    pub(crate) fn new(partition: &Partition, global_batch: usize) -> Self {
        let by_rank = partition.samples(global_batch).map(subtrees).collect();
        Self { by_rank, index: partition.index() }
    }

    /// Sums that every rank sends: as many as the rank with the most, because a gather needs equal
    /// parts.
    fn each(&self) -> usize {
        self.by_rank.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Posts the exchange of a bucket's subtrees. A rank that holds none (nobody contributed to the
    /// bucket) sends zeros.
    pub(crate) fn post(
        &self,
        bucket: usize,
        (dtype, len): (DType, usize),
        held: &[(Node, Buf)],
        pool: &Pool,
        comm: &dyn Communicator,
    ) -> Result<Pending, DpError> {
        let nodes: Vec<Node> = held.iter().map(|(node, _)| *node).collect();
        let expected = &self.by_rank[self.index];
        if !nodes.is_empty() && nodes != *expected {
            return Err(DpError::Samples { bucket, held: nodes, expected: expected.clone() });
        }
        let each = self.each();
        let mut send = pool.zeros(dtype, each * len)?;
        for (place, (_, sum)) in held.iter().enumerate() {
            send.slice_mut().range(place * len..(place + 1) * len)?.copy_from(sum.slice())?;
        }
        let recv = pool.alloc(dtype, self.by_rank.len() * each * len)?;
        let name = Name::new("gradient subtrees").with("bucket", bucket as u64);
        Ok(comm.post_all_gather(send, recv, name)?)
    }

    /// Adds all ranks' subtrees up: the bits of the serial run, on every rank. The sums of the padding
    /// are not read.
    pub(crate) fn finish(&self, gathered: &Buf, len: usize, ops: &dyn Ops) -> Result<Buf, DpError> {
        let (mut tree, each) = (SampleTree::default(), self.each());
        for (rank, nodes) in self.by_rank.iter().enumerate() {
            for (place, node) in nodes.iter().enumerate() {
                let start = (rank * each + place) * len;
                let mut sum = Buf::zeros(gathered.dtype(), len);
                sum.slice_mut().copy_from(gathered.slice().range(start..start + len)?)?;
                tree.insert(*node, sum, ops)?;
            }
        }
        // A batch without a sample has a gradient of zero.
        Ok(tree.finish(ops)?.unwrap_or_else(|| Buf::zeros(gathered.dtype(), len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ZeroStage;

    #[test]
    fn shares_are_all_ranks_subtrees_and_the_largest_number_of_them() {
        let partition = Partition::new(ZeroStage::Zero0, 2, 1).unwrap();
        let shares = TreeShares::new(&partition, 12);
        let node = |level, index| Node { level, index };
        assert_eq!(shares.by_rank[0], [node(2, 0), node(1, 2)]);
        assert_eq!(shares.by_rank[1], [node(1, 3), node(2, 2)]);
        assert_eq!(shares.each(), 2);
        // 7 samples on 3 ranks: 0..2, 2..4, 4..7.
        let shares = TreeShares::new(&Partition::new(ZeroStage::Zero0, 3, 0).unwrap(), 7);
        let counts: Vec<usize> = shares.by_rank.iter().map(Vec::len).collect();
        assert_eq!((counts, shares.each()), (vec![1, 1, 2], 2));
    }
}
