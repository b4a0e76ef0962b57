//! Named streams: what is drawn at an index, or at the coordinates of a dropout mask.

use crate::normal::normal_pair;
use crate::philox::{philox_lanes, philox4x32_10};

/// Blocks computed side by side in the fast paths.
const LANES: usize = 8;
/// Words of one Philox block.
const WORDS: usize = 4;

/// A random stream: a 64-bit key made from a seed and a name.
///
/// One stream serves one purpose. The methods that take an index and those that take the
/// coordinates of a mask share counters, so a stream used for both would repeat itself.
///
/// ```
/// use trine_rng::Stream;
///
/// let stream = Stream::new(1, "layers.0.dropout");
/// // Word 6 of (step 9, sample 2) is the third of that mask's second block.
/// let mut words = [0; 8];
/// stream.fill_bits(9, 2, 0, &mut words);
/// assert_eq!(stream.keep(9, 2, 6), words[6]);
/// assert_eq!(stream.block([9, 2, 0, 1])[2], words[6]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stream {
    key: u64,
}

impl Stream {
    /// The stream `name` of `seed`.
    ///
    /// key = mix(mix(seed) ⊕ fnv1a(name)) with 64-bit FNV-1a over the name's bytes and the
    /// finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) as mix. Both are fixed forever. For
    /// one name, different seeds never share a key.
    pub fn new(seed: u64, name: &str) -> Self {
        Self { key: mix(mix(seed) ^ fnv1a(name.as_bytes())) }
    }

    /// The stream of a key that [`Stream::key`] gave: for kernels, which get numbers, not names.
    pub const fn from_key(key: u64) -> Self {
        Self { key }
    }

    /// The key. Its low half is the first key word of Philox.
    pub const fn key(&self) -> u64 {
        self.key
    }

    /// Four random words at a counter.
    #[inline]
    pub fn block(&self, counter: [u32; 4]) -> [u32; 4] {
        philox4x32_10(counter, self.words())
    }

    /// A uniform number in `[0, 1)`, a multiple of 2⁻²⁴, at an index.
    #[inline]
    pub fn uniform(&self, index: u64) -> f32 {
        let word = self.keep(0, 0, index);
        (word >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// A standard normal deviate at an index. Words (0, 1) of the index's block make its elements 0
    /// and 1, words (2, 3) its elements 2 and 3.
    #[inline]
    pub fn normal(&self, index: u64) -> f32 {
        let words = self.block(counter(0, 0, index / WORDS as u64));
        let pair = index as usize & 2;
        normal_pair(words[pair], words[pair + 1])[index as usize & 1] as f32
    }

    /// Normal deviates of standard deviation `std` for indices `first_index..`, one for each element
    /// of `out`: `normal(first_index + i) * std`, bit for bit.
    pub fn fill_normal(&self, first_index: u64, std: f32, out: &mut [f32]) {
        self.for_each_block(0, 0, first_index, out, |words| {
            let [a, b] = normal_pair(words[0], words[1]);
            let [c, d] = normal_pair(words[2], words[3]);
            [a, b, c, d].map(|z| z as f32 * std)
        });
    }

    /// The random word of one element of a mask: of `sample` (its place in the global batch) at
    /// `step`, where `element` is its global index within the sample, (token, feature) or (head,
    /// query, key) flattened.
    ///
    /// Counter layout: `[step, sample, high, low]` where (high, low) are the halves of
    /// `element / 4`; the four words of a block belong to elements 4k..4k + 4. An element is kept
    /// when its word, as a fraction of 2³², is at least the dropout probability.
    #[inline]
    pub fn keep(&self, step: u32, sample: u32, element: u64) -> u32 {
        self.block(counter(step, sample, element / WORDS as u64))[element as usize % WORDS]
    }

    /// The words of elements `first_element..` of a mask, one for each element of `out`:
    /// [`keep`](Self::keep) of each, computed several blocks at a time.
    #[inline]
    pub fn fill_bits(&self, step: u32, sample: u32, first_element: u64, out: &mut [u32]) {
        self.for_each_block(step, sample, first_element, out, |words| words);
    }

    /// Fills `out` from the blocks that hold elements `first..`; `finish` makes a block's four
    /// elements of its four words.
    #[inline]
    fn for_each_block<T: Copy + Default>(
        &self,
        step: u32,
        sample: u32,
        first: u64,
        out: &mut [T],
        finish: impl Fn([u32; 4]) -> [T; 4],
    ) {
        let mut block = first / WORDS as u64;
        let skip = first as usize % WORDS;
        let head = (WORDS - skip).min(out.len()) % WORDS;
        let (before, out) = out.split_at_mut(if skip == 0 { 0 } else { head });
        if !before.is_empty() {
            let elements = finish(self.block(counter(step, sample, block)));
            before.copy_from_slice(&elements[skip..skip + before.len()]);
            block += 1;
        }
        let mut wide = out.chunks_exact_mut(LANES * WORDS);
        for chunk in &mut wide {
            let words = self.lanes(step, sample, block);
            for (lane, elements) in chunk.chunks_exact_mut(WORDS).enumerate() {
                elements.copy_from_slice(&finish(words.map(|word| word[lane])));
            }
            block += LANES as u64;
        }
        for elements in wide.into_remainder().chunks_mut(WORDS) {
            let values = finish(self.block(counter(step, sample, block)));
            elements.copy_from_slice(&values[..elements.len()]);
            block += 1;
        }
    }

    /// Blocks `block..block + LANES`, word by word.
    #[inline]
    fn lanes(&self, step: u32, sample: u32, block: u64) -> [[u32; LANES]; 4] {
        let at = |word: usize| {
            std::array::from_fn(|lane| counter(step, sample, block + lane as u64)[word])
        };
        let counters = [at(0), at(1), at(2), at(3)];
        philox_lanes(counters, self.words())
    }

    #[inline]
    fn words(&self) -> [u32; 2] {
        [self.key as u32, (self.key >> 32) as u32]
    }
}

#[inline]
fn counter(step: u32, sample: u32, block: u64) -> [u32; 4] {
    [step, sample, (block >> 32) as u32, block as u32]
}

/// The 64-bit FNV-1a hash.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// SplitMix64 of a state: a bijection in which every input bit reaches every output bit.
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_published_ones() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn fast_paths_equal_single_draws() {
        let stream = Stream::new(42, "fast");
        let mut compared = 0;
        for first in [0, 1, 2, 3, 4, 29, (1 << 34) - 7, u64::MAX - 200] {
            for len in [0, 1, 2, 3, 4, 5, 31, 32, 33, 71, 150] {
                let mut normals = vec![f32::NAN; len];
                let mut bits = vec![0; len];
                stream.fill_normal(first, 0.5, &mut normals);
                stream.fill_bits(3, 4, first, &mut bits);
                for i in 0..len {
                    let index = first + i as u64;
                    assert_eq!(normals[i].to_bits(), (stream.normal(index) * 0.5).to_bits());
                    assert_eq!(bits[i], stream.keep(3, 4, index));
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, 8 * 332);
    }

    #[test]
    fn coordinates_and_names_give_different_numbers() {
        let stream = Stream::new(1, "mask");
        let words = [
            stream.keep(0, 0, 0),
            stream.keep(1, 0, 0),
            stream.keep(0, 1, 0),
            stream.keep(0, 0, 1),
            stream.keep(0, 0, 4),
            stream.keep(0, 0, 1 << 34),
            Stream::new(2, "mask").keep(0, 0, 0),
            Stream::new(1, "mask2").keep(0, 0, 0),
        ];
        let distinct: std::collections::BTreeSet<_> = words.iter().collect();
        assert_eq!(distinct.len(), words.len());
        assert_eq!(Stream::from_key(stream.key()), stream);
    }
}
