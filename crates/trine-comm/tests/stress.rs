//! Random programs under random interleavings, and the order of the tree.

use proptest::prelude::*;
use std::sync::Arc;
use trine_buffer::Buf;
use trine_comm::threads::{self, WorldOptions};
use trine_comm::{CommError, Communicator, Delivery, Pending, ReduceOp, tree_fold};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}

/// A collective under way with the sum that it must have.
type Expected = (Pending, u64);

fn settle((pending, wanted): Expected) -> Result<u64, CommError> {
    let sum = pending.wait()?.send.map(Buf::into_vec::<u64>).transpose()?;
    assert_eq!(sum.and_then(|sum| sum.last().copied()), Some(wanted));
    Ok(1)
}

/// One rank of a random program: all ranks draw the same program from `seed`, and each its own
/// yields and its own order of waiting. Returns how many results it has checked.
fn program(world: &Arc<dyn Communicator>, seed: u64) -> Result<u64, CommError> {
    let mut shared = Random(seed);
    let mut own = Random(seed ^ (world.rank() as u64 + 1) << 32);
    let halves = world.split(world.rank() as u64 / 2, "halves")?;
    let parity = world.split(world.rank() as u64 % 2, "parity")?;
    let groups = [world, &halves, &parity];
    let mut pending: Vec<Expected> = Vec::new();
    let mut checked = 0;
    for step in 0..24 {
        for _ in 0..own.below(4) {
            std::thread::yield_now();
        }
        let group = groups[shared.below(3) as usize];
        let len = 1 + shared.below(300) as usize;
        if shared.below(4) == 0 {
            let (size, rank) = (group.size(), group.rank());
            let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
            let mine = Buf::from_vec(vec![rank as u64 + step; len]);
            let theirs = Buf::from_vec(vec![0u64; len]);
            let (_, got) = group.exchange(mine, next, theirs, previous, "ring")?;
            assert_eq!(got.typed::<u64>()?, vec![previous as u64 + step; len]);
            checked += 1;
        } else {
            let buf = Buf::from_vec(vec![group.group().world_rank() as u64 + step; len]);
            let wanted = group.group().ranks().iter().map(|rank| *rank as u64 + step).sum();
            pending.push((group.post_all_reduce(buf, ReduceOp::Sum, "sum")?, wanted));
        }
        if pending.len() > 4 {
            let index = own.below(pending.len() as u64) as usize;
            checked += settle(pending.swap_remove(index))?;
        }
    }
    for expected in pending {
        checked += settle(expected)?;
    }
    Ok(checked)
}

#[test]
fn random_programs_end_with_the_right_sums() {
    let mut checked = 0;
    for seed in 0..300 {
        let ranks = [2, 4, 6, 8][seed as usize % 4];
        let delivery = if seed % 3 == 0 { Delivery::Buffered } else { Delivery::Rendezvous };
        let options = WorldOptions { delivery, ..Default::default() };
        let counts = threads::run(ranks, &options, |comm| program(&comm, seed));
        let counts = counts.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(counts, vec![24; ranks], "seed {seed}");
        checked += counts.iter().sum::<u64>();
    }
    assert_eq!(checked, 24 * 75 * (2 + 4 + 6 + 8));
}

/// The documented order, written down recursively.
fn recursive(items: &[String]) -> String {
    if items.len() == 1 {
        return items[0].clone();
    }
    let mut left = 1;
    while left * 2 < items.len() {
        left *= 2;
    }
    format!("({}{})", recursive(&items[..left]), recursive(&items[left..]))
}

proptest! {
    #[test]
    fn the_fold_is_the_recursive_tree(n in 1usize..200) {
        let items: Vec<String> = (0..n).map(|i| format!("{i} ")).collect();
        let fold = tree_fold(items.clone(), |l, r| format!("({l}{r})"));
        prop_assert_eq!(fold, Some(recursive(&items)));
    }

    /// A power of two of equal shares may be folded share by share: what the partial sums of
    /// several ranks need.
    #[test]
    fn a_tree_of_trees_is_the_tree(shares in 1usize..9, bits in 0u32..5) {
        let len = 1 << bits;
        let items: Vec<String> = (0..shares * len).map(|i| format!("{i} ")).collect();
        let join = |l: String, r: String| format!("({l}{r})");
        let parts: Vec<String> =
            items.chunks(len).filter_map(|share| tree_fold(share.to_vec(), join)).collect();
        prop_assert_eq!(tree_fold(parts, join), tree_fold(items, join));
    }
}

#[test]
fn nothing_folds_to_nothing() {
    assert_eq!(tree_fold(Vec::<u8>::new(), |l, _| l), None);
}
