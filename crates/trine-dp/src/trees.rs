//! Sums over samples in the serial run's order: ranks exchange subtrees, and each adds them all up.

use crate::DpError;
use trine_buffer::{Buf, DType, Pool};
use trine_comm::{Communicator, Name, Pending};
use trine_kernels::Ops;
use trine_mesh::part;
use trine_nn::{Node, SampleTree, subtrees};

/// The exchange of subtrees of the sum over samples among the ranks of a group. Who contributes which is a pure
/// function of the batch, so that only numbers need to be exchanged.
#[derive(Debug)]
pub(crate) struct TreeExchange<'a> {
    /// By rank, in order of the samples.
    by_rank: Vec<Vec<Node>>,
    comm: &'a dyn Communicator,
}

impl<'a> TreeExchange<'a> {
    /// Trainers refuse batches that the ranks do not divide; the sums here do not need them to.
    pub(crate) fn new(global_batch: usize, comm: &'a dyn Communicator) -> Self {
        let samples = |rank| part(global_batch, comm.size(), rank);
        Self { by_rank: (0..comm.size()).map(samples).map(subtrees).collect(), comm }
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
    ) -> Result<Pending, DpError> {
        let nodes: Vec<Node> = held.iter().map(|(node, _)| *node).collect();
        let expected = &self.by_rank[self.comm.rank()];
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
        Ok(self.comm.post_all_gather(send, recv, name)?)
    }

    /// Adds all ranks' subtrees up: the bits of the serial run, on every rank. The sums of the padding
    /// are not read.
    pub(crate) fn finish(&self, gathered: &Buf, len: usize, ops: &dyn Ops) -> Result<Buf, DpError> {
        let (mut tree, each) = (SampleTree::default(), self.each());
        for (rank, nodes) in self.by_rank.iter().enumerate() {
            for (place, node) in nodes.iter().enumerate() {
                let start = (rank * each + place) * len;
                let mut sum = ops.place().zeros(gathered.dtype(), len)?;
                sum.slice_mut().copy_from(gathered.slice().range(start..start + len)?)?;
                tree.insert(*node, sum, ops)?;
            }
        }
        // A batch without a sample has a gradient of zero.
        let sum = tree.finish(ops)?;
        Ok(sum.map_or_else(|| ops.place().zeros(gathered.dtype(), len), Ok)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_comm::{CommError, threads};

    fn subtrees_of(ranks: usize, batch: usize) -> (Vec<Vec<Node>>, usize) {
        let all = threads::run(ranks, &Default::default(), |comm| {
            let exchange = TreeExchange::new(batch, &*comm);
            Ok::<_, CommError>((exchange.by_rank.clone(), exchange.each()))
        });
        let all = all.unwrap();
        assert!(all.iter().all(|rank| *rank == all[0]), "{all:?}");
        all[0].clone()
    }

    #[test]
    fn shares_are_all_ranks_subtrees_and_the_largest_number_of_them() {
        let node = |level, index| Node { level, index };
        let (by_rank, each) = subtrees_of(2, 12);
        assert_eq!(by_rank, [[node(2, 0), node(1, 2)], [node(1, 3), node(2, 2)]]);
        assert_eq!(each, 2);
        // 7 samples on 3 ranks: 0..2, 2..4, 4..7.
        let (by_rank, each) = subtrees_of(3, 7);
        let counts: Vec<usize> = by_rank.iter().map(Vec::len).collect();
        assert_eq!((counts, each), (vec![1, 1, 2], 2));
    }
}
