//! The ways of messages: one for each direction of each pair of ranks.
//!
//! NCCL works on a group's calls one after another. Two ranks that both send first would wait for each other for ever,
//! and a message to one rank would wait behind one from another. So each direction of a pair is a group of its own, of
//! two ranks. They are made in rounds in which every rank has one partner, as in a tournament.

use crate::link::{Link, Place};
use std::sync::Arc;
use trine_comm::CommError;

/// A rank's ways to and from the others, by their ranks; none to itself.
#[derive(Debug)]
pub(crate) struct Channels {
    pub(crate) to: Vec<Option<Arc<Link>>>,
    pub(crate) from: Vec<Option<Arc<Link>>>,
}

/// How many rounds pair every two of `size` ranks once.
fn rounds(size: usize) -> usize {
    size.next_multiple_of(2) - 1
}

/// The partner of a rank in a round; `None` if it rests.
fn partner(rank: usize, round: usize, size: usize) -> Option<usize> {
    let rounds = rounds(size);
    let partner = match (2 * round + rounds - rank % rounds) % rounds {
        // The last one of an even number has the one that would meet itself.
        _ if rank == rounds => round,
        same if same == rank => rounds,
        other => other,
    };
    (partner < size).then_some(partner)
}

impl Channels {
    /// Divides a group into its pairs, once for each direction. A collective call; `settle` waits for a new group.
    pub(crate) fn new(
        group: &Link,
        Place { name, rank, size }: Place<'_>,
        settle: impl Fn(&Arc<Link>) -> Result<(), CommError>,
    ) -> Result<Self, CommError> {
        let mut channels = Self { to: vec![None; size], from: vec![None; size] };
        for round in 0..rounds(size) {
            let peer = partner(rank, round, size);
            for lower_sends in [true, false] {
                // The one that sends is the first of the pair.
                let sends = peer.is_some_and(|peer| (rank < peer) == lower_sends);
                let key = usize::from(!sends);
                let pair = format!("{name}, messages");
                let place = Place { name: &pair, rank: key, size: 2 };
                let Some(link) = group.split(peer.map(|peer| peer.min(rank)), key, place)? else {
                    continue;
                };
                let link = Arc::new(link);
                settle(&link)?;
                let ways = if sends { &mut channels.to } else { &mut channels.from };
                if let Some(peer) = peer {
                    ways[peer] = Some(link);
                }
            }
        }
        Ok(channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_two_ranks_meet_once() {
        for size in 2..=17 {
            let mut met = vec![vec![0; size]; size];
            for round in 0..rounds(size) {
                for (rank, met) in met.iter_mut().enumerate() {
                    let Some(peer) = partner(rank, round, size) else { continue };
                    assert_eq!(partner(peer, round, size), Some(rank), "{size} ranks");
                    met[peer] += 1;
                }
            }
            for (rank, met) in met.iter().enumerate() {
                let expected = |peer| usize::from(peer != rank);
                assert_eq!(*met, (0..size).map(expected).collect::<Vec<_>>(), "{size} ranks");
            }
        }
    }
}
