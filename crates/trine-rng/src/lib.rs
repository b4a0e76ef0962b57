//! Random numbers that are pure functions of where they are used.
//!
//! A [`Stream`] is named by a seed and a purpose (`"layers.3.attention.weight"`, `"data.order"`).
//! What it yields at an index or at coordinates depends on nothing else: there is no state, and
//! nothing can be drawn "next". So any shard of a tensor draws its own slice, a recomputed forward
//! pass draws its masks again, and no layout, order of work or number of threads changes a number.
//! The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
//! SC 2011), checked against the published vectors.
//!
//! Everything here is integer arithmetic or IEEE operations that round correctly, so the numbers
//! are also the same on every machine. They are part of the format of a run: they never change.
//!
//! ```
//! use trine_rng::{Permutation, Stream};
//!
//! let stream = Stream::new(7, "embedding.weight");
//! let mut whole = [0.0; 8];
//! stream.fill_normal(0, 0.02, &mut whole);
//! // A shard that owns elements 5..8 draws the same numbers.
//! let mut shard = [0.0; 3];
//! stream.fill_normal(5, 0.02, &mut shard);
//! assert_eq!(shard, whole[5..]);
//!
//! // The order in which an epoch of 1000 windows is read.
//! let order = Permutation::new(1000, Stream::new(7, "data.order.0"));
//! let mut seen: Vec<u64> = (0..1000).map(|i| order.get(i)).collect();
//! seen.sort();
//! assert!(seen.into_iter().eq(0..1000));
//! ```

mod normal;
mod permutation;
mod philox;
mod stream;

pub use permutation::Permutation;
pub use philox::philox4x32_10;
pub use stream::Stream;
