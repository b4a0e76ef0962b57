//! What an attention works on: sizes, positions, and how many pairs of query and key they make.

use crate::Dropout;
use std::fmt;

/// Shape of a causal attention over any part of each sequence's queries and any part of its keys.
///
/// Query row `sample · queries + i` sits at position `query_start + i` of its sequence, key row
/// `sample · keys + j` at `key_start + j`. A query sees the keys up to its own position, with a window
/// the last ones of these. All queries and all keys from position 0 on are training. The last queries
/// against all keys continue a sequence whose keys and values are cached. Ranks that split a sequence
/// call once for each part of the keys, and put the results together with
/// [`Ops::attention_merge`](crate::Ops::attention_merge).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Sequences.
    pub samples: usize,
    /// Query rows of a sequence.
    pub queries: usize,
    /// Key and value rows of a sequence.
    pub keys: usize,
    /// Position of the first query in its sequence.
    pub query_start: usize,
    /// Position of the first key in its sequence.
    pub key_start: usize,
    /// How many positions a query sees: its own and the ones directly before. `None` means all. At
    /// least 1.
    pub window: Option<usize>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / √head_dim`.
    pub scale: f64,
    /// Bound of the scores: `softcap · tanh(score / softcap)` takes the place of a score, the scale
    /// being in it (Gemma 2, arXiv 2408.00118). `None` leaves scores as they are. Positive.
    pub softcap: Option<f64>,
}

/// Dropout of attention probabilities: coordinates are (sample, head, query's position, key's
/// position).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionDropout {
    /// Probability and stream.
    pub dropout: Dropout,
    /// Global index of the first query head of the call.
    pub first_head: usize,
}

impl AttentionShape {
    /// Floating-point operations of the two products of [`Ops::attention`](crate::Ops::attention), the
    /// visible pairs of query and key alone. Documents are not known here: they hide nothing.
    pub fn flops(&self) -> f64 {
        self.product_flops() * 2.0
    }

    /// The same of the four products of
    /// [`Ops::attention_backward`](crate::Ops::attention_backward): scores that are computed again are
    /// not counted.
    pub fn backward_flops(&self) -> f64 {
        self.product_flops() * 4.0
    }

    fn product_flops(&self) -> f64 {
        2.0 * (self.samples * self.heads * self.head_dim) as f64 * self.pairs(self.queries)
    }

    /// Visible pairs of a key and one of the first `queries` queries of a sequence.
    pub(super) fn pairs(&self, queries: usize) -> f64 {
        let keys = self.keys as f64;
        // The sum over all whole numbers up to `last` of the number, held within 0..=keys.
        let up_to = |last: f64| {
            let inside = last.clamp(0.0, keys);
            inside * (inside + 1.0) / 2.0 + (last - inside).max(0.0) * keys
        };
        // The first query has `first` keys up to its position, each other query one more than the one
        // before; negative where the keys begin later, and more than there are where they end earlier.
        let sum = |first: f64| up_to(first - 1.0 + queries as f64) - up_to(first - 1.0);
        let first = self.query_start as f64 + 1.0 - self.key_start as f64;
        // Those in front of the window are hidden again.
        sum(first) - self.window.map_or(0.0, |window| sum(first - window as f64))
    }
}

impl fmt::Display for AttentionShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} samples of {} queries and {} keys, {} heads and {} key heads of {}",
            self.samples, self.queries, self.keys, self.heads, self.kv_heads, self.head_dim
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: AttentionShape = AttentionShape {
        samples: 2,
        queries: 3,
        keys: 3,
        query_start: 0,
        key_start: 0,
        window: None,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        scale: 1.0,
        softcap: None,
    };

    #[test]
    fn attention_counts_visible_pairs() {
        assert_eq!(WHOLE.flops(), (2 * 4 * 8 * 6 * 2 * 2) as f64);
        assert_eq!(WHOLE.backward_flops(), 2.0 * WHOLE.flops());
    }

    #[test]
    fn pairs_are_those_that_one_would_count() {
        let mut seen = 0;
        for (queries, keys) in [(0, 4), (1, 1), (1, 9), (5, 9), (9, 5), (7, 7), (3, 0)] {
            for (query_start, key_start) in [(0, 0), (4, 0), (0, 4), (20, 3), (3, 20), (6, 5)] {
                for window in [None, Some(1), Some(3), Some(18), Some(usize::MAX)] {
                    let shape =
                        AttentionShape { queries, keys, query_start, key_start, window, ..WHOLE };
                    let sees = |query: usize, key: usize| {
                        key <= query && window.is_none_or(|window| query - key < window)
                    };
                    for some in 0..=queries {
                        let counted = (query_start..query_start + some)
                            .flat_map(|q| (key_start..key_start + keys).map(move |k| (q, k)))
                            .filter(|(query, key)| sees(*query, *key))
                            .count();
                        assert_eq!(shape.pairs(some), counted as f64, "{some} of {shape:?}");
                        seen += counted;
                    }
                }
            }
        }
        assert!(seen > 1000, "{seen}");
    }
}
