//! What can go wrong between data-parallel ranks.

use std::fmt::Write;
use trine_buffer::BufferError;
use trine_comm::CommError;
use trine_kernels::KernelError;
use trine_mesh::AxisSet;
use trine_nn::{NnError, Node};

/// What can go wrong between data-parallel ranks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DpError {
    /// Ranks would divide what they can only hold whole.
    #[error(
        "bucket {bucket} divides its {what} over {axes}, and its gradient is summed over {summed}: only states are \
         divided, over all axes of that sum or none; nearest valid value: {nearest}"
    )]
    Shares {
        /// The bucket.
        bucket: usize,
        /// Weights, gradients or states.
        what: &'static str,
        /// Over which axes.
        axes: AxisSet,
        /// The axes that its gradient is summed over.
        summed: AxisSet,
        /// What would do.
        nearest: AxisSet,
    },
    /// A bucket is waited for that was not posted.
    #[error("bucket {bucket} is waited for, but its {what} were not posted")]
    NotPosted {
        /// Gradients or weights.
        what: &'static str,
        /// The bucket.
        bucket: usize,
    },
    /// The gradient store sums over other samples than the rank is given.
    #[error(
        "bucket {bucket} holds sums over the sample subtrees {held:?}, this rank's samples are {expected:?}"
    )]
    Samples {
        /// The bucket.
        bucket: usize,
        /// What the store holds.
        held: Vec<Node>,
        /// What the rank's samples consist of.
        expected: Vec<Node>,
    },
    /// The gradient store keeps a tree over samples and the run is in fast numerics.
    #[error("bucket {bucket} is a tree over samples, but gradients are reduced in fast numerics")]
    Numerics {
        /// The bucket.
        bucket: usize,
    },
    /// Tied buckets and the link to their other copies do not match.
    #[error("tied buckets {buckets:?} on this stage {}", tied_rule(*.peers))]
    Tied {
        /// The stage's tied buckets.
        buckets: Vec<usize>,
        /// Size of the communicator to the other copy, if one was given.
        peers: Option<usize>,
    },
    /// A parameter that the model does not have.
    #[error("parameter \"{parameter}\" is on this rank but not in the model")]
    Unknown {
        /// The parameter.
        parameter: String,
    },
    /// A parameter cannot be summed in canonical blocks.
    #[error(
        "reference numerics sum \"{parameter}\" in {blocks} equal blocks of dimension {dim}, but it has {len} elements \
         there and this rank holds {start}..{end}"
    )]
    Blocks {
        /// The parameter.
        parameter: String,
        /// How many blocks.
        blocks: usize,
        /// The dimension that tensor parallelism splits.
        dim: usize,
        /// Its global length.
        len: usize,
        /// First element held.
        start: usize,
        /// One past the last element held.
        end: usize,
    },
    /// A gradient is infinite or not a number.
    #[error(
        "the gradient of \"{parameter}\" is not finite: element {element} of bucket {bucket} on rank {rank}"
    )]
    NonFinite {
        /// World rank that found it.
        rank: usize,
        /// The parameter.
        parameter: String,
        /// The bucket on that rank.
        bucket: usize,
        /// The first such element in it.
        element: usize,
    },
    /// All gradients are finite and the sum of their squares is not.
    #[error("every gradient is finite, but the square of the global norm is {squared}")]
    NormOverflow {
        /// The sum of squares.
        squared: f64,
    },
    /// Weights that must be equal are not.
    #[error(
        "replicas of \"{parameter}\" (bucket {bucket}) differ in group {group}: {}",
        held_by(hashes)
    )]
    Replicas {
        /// The group, such as `dp[0,2]`.
        group: String,
        /// The bucket.
        bucket: usize,
        /// The parameter.
        parameter: String,
        /// The hash of the weights and the world rank that holds them.
        hashes: Vec<(u64, usize)>,
    },
    /// The communicator failed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A store refused.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// A kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A buffer has the wrong type or length.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

fn tied_rule(peers: Option<usize>) -> String {
    let given = match peers {
        Some(size) => format!("and a communicator of size {size}"),
        None => "and no communicator".to_string(),
    };
    format!(
        "{given}: there must be one bucket and a communicator of the 2 ranks that hold its copies, or two buckets that \
         are each other's copies, or none"
    )
}

/// Which ranks hold which value: `ranks 0, 2 hold 1f…, rank 1 holds 2a…`.
fn held_by(hashes: &[(u64, usize)]) -> String {
    let mut text = String::new();
    let mut sorted = hashes.to_vec();
    // The value of the lowest rank first, so that all ranks print the same.
    let first =
        |hash: u64| hashes.iter().filter(|(other, _)| *other == hash).map(|(_, r)| *r).min();
    sorted.sort_by_key(|(hash, rank)| (first(*hash), *rank));
    for same in sorted.chunk_by(|a, b| a.0 == b.0) {
        let ranks: Vec<String> = same.iter().map(|(_, rank)| rank.to_string()).collect();
        let (ranks, hold) = match ranks.len() {
            1 => (format!("rank {}", ranks[0]), "holds"),
            _ => (format!("ranks {}", ranks.join(", ")), "hold"),
        };
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to a String cannot fail.
        write!(text, "{comma}{ranks} {hold} {:016x}", same[0].0)
            .expect("invariant: a String grows");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_ranks_are_grouped_by_what_they_hold() {
        let text = held_by(&[(9, 4), (7, 0), (9, 2), (7, 6), (1, 5)]);
        let hex = |hash: u64| format!("{hash:016x}");
        let expected = format!(
            "ranks 0, 6 hold {}, ranks 2, 4 hold {}, rank 5 holds {}",
            hex(7),
            hex(9),
            hex(1)
        );
        assert_eq!(text, expected);
    }
}
