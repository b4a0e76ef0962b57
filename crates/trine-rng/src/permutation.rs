//! A random order of `0..n` that needs no memory: the place of any item is computed alone.

use crate::Stream;

/// Rounds of the Feistel network. Four make it indistinguishable from random for wide halves (Luby
/// and Rackoff, SIAM J. Computing 17, 1988); more cost nothing here and help narrow ones.
const ROUNDS: u32 = 8;

/// A keyed bijection of `0..n`.
///
/// A balanced Feistel network permutes the numbers of the next even bit width; a result outside of
/// `0..n` is permuted again until it is inside (Black and Rogaway, CT-RSA 2002), which takes fewer
/// than four passes on average.
///
/// ```
/// use trine_rng::{Permutation, Stream};
///
/// let order = Permutation::new(5, Stream::new(0, "example"));
/// let mut all: Vec<u64> = (0..5).map(|i| order.get(i)).collect();
/// all.sort();
/// assert_eq!(all, [0, 1, 2, 3, 4]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    stream: Stream,
}

impl Permutation {
    /// The permutation of `0..len` that `stream` stands for.
    pub fn new(len: u64, stream: Stream) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2).max(1), stream }
    }

    /// How many numbers are permuted.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to permute.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What stands at place `index`.
    ///
    /// # Panics
    /// When `index` is not below [`len`](Self::len), like a slice.
    pub fn get(&self, index: u64) -> u64 {
        assert!(index < self.len, "place {index} of a permutation of {}", self.len);
        let mut value = self.encrypt(index);
        while value >= self.len {
            value = self.encrypt(value);
        }
        value
    }

    /// The network over all numbers of `2 · half_bits` bits.
    fn encrypt(&self, value: u64) -> u64 {
        let mask = self.mask();
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ self.round(round, right));
        }
        left << self.half_bits | right
    }

    fn round(&self, round: u32, half: u64) -> u64 {
        u64::from(self.stream.block([round, 0, 0, half as u32])[0]) & self.mask()
    }

    fn mask(&self) -> u64 {
        (1 << self.half_bits) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The network backwards, which exists only if `encrypt` is a bijection.
    fn decrypt(permutation: &Permutation, value: u64) -> u64 {
        let (mut left, mut right) = (value >> permutation.half_bits, value & permutation.mask());
        for round in (0..ROUNDS).rev() {
            (left, right) = (right ^ permutation.round(round, left), left);
        }
        left << permutation.half_bits | right
    }

    #[test]
    fn small_ones_are_bijections() {
        let mut checked = 0;
        for n in 1..=300 {
            let order = Permutation::new(n, Stream::new(n, "small"));
            let mut seen = vec![false; n as usize];
            for index in 0..n {
                let value = order.get(index) as usize;
                assert!(!std::mem::replace(&mut seen[value], true), "{value} twice in 0..{n}");
            }
            checked += 1;
        }
        assert_eq!(checked, 300);
    }

    #[test]
    fn large_ones_invert() {
        for n in [1_000_003, (1 << 40) + 1, u64::MAX] {
            let order = Permutation::new(n, Stream::new(3, "large"));
            for i in 0..2000_u64 {
                let index = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % n;
                let value = order.get(index);
                assert!(value < n);
                let mut back = decrypt(&order, value);
                while back >= n {
                    back = decrypt(&order, back);
                }
                assert_eq!(back, index);
            }
        }
    }

    /// Every place holds every value about equally often over many keys.
    #[test]
    fn no_place_prefers_a_value() {
        const N: usize = 10;
        const KEYS: u64 = 20_000;
        let mut counts = [[0_f64; N]; N];
        for seed in 0..KEYS {
            let order = Permutation::new(N as u64, Stream::new(seed, "fair"));
            for (place, row) in counts.iter_mut().enumerate() {
                row[order.get(place as u64) as usize] += 1.0;
            }
        }
        let expected = KEYS as f64 / N as f64;
        let chi2: f64 = counts.iter().flatten().map(|c| (c - expected).powi(2) / expected).sum();
        // 81 degrees of freedom: mean 81, standard deviation 12.7.
        assert!((30.0..145.0).contains(&chi2), "chi² = {chi2}");
    }
}
