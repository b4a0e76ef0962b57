//! The baseline every run is measured against: a bigram model, interpolated with unigrams and the
//! uniform distribution (Jelinek and Mercer, 1980).

use crate::DataError;

/// One in so many training pairs, the last ones, is held out to fit the weights.
const HELD_OUT_PARTS: usize = 10;
/// Expectation-maximisation stops when no weight moves by more.
const TOLERANCE: f64 = 1e-6;
const ITERATIONS_MAX: usize = 200;
/// No weight falls below: a token never seen has a finite cost.
const WEIGHT_MIN: f64 = 1e-6;

/// p(b | a) = λ₂ c(a, b)/c(a) + λ₁ c(b)/n + λ₀/V, where the λ are fitted by expectation-maximisation
/// on a tenth of the training pairs that the counts do not include, and the counts are then taken
/// over all of them. Where a was never seen, λ₁ and λ₀ share its weight.
///
/// ```
/// use trine_data::{Bigram, toy};
///
/// let bytes = toy::text(50_000).into_bytes();
/// let pairs: Vec<_> = bytes.windows(2).map(|p| (u32::from(p[0]), u32::from(p[1]))).collect();
/// let (train, validation) = pairs.split_at(40_000);
/// let model = Bigram::fit(256, train.iter().copied())?;
/// let bits_per_byte = model.bits(validation.iter().copied()) / validation.len() as f64;
/// assert!(bits_per_byte < 4.0);
/// # Ok::<(), trine_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Bigram {
    counts: Counts,
    /// λ₂, λ₁, λ₀.
    weights: [f64; 3],
}

impl Bigram {
    /// Fits the model on pairs (token before, token) in the order in which they were seen.
    ///
    /// # Errors
    /// Fewer than two pairs; a token outside of the vocabulary.
    pub fn fit(
        vocab_size: usize,
        pairs: impl IntoIterator<Item = (u32, u32)>,
    ) -> Result<Self, DataError> {
        let pairs: Vec<(u32, u32)> = pairs.into_iter().collect();
        check(&pairs, vocab_size)?;
        let held_out = (pairs.len() / HELD_OUT_PARTS).max(1);
        let (counted, held_out) = pairs.split_at(pairs.len() - held_out);
        let weights = Counts::new(vocab_size, counted).fit_weights(held_out);
        Ok(Self { counts: Counts::new(vocab_size, &pairs), weights })
    }

    /// The cost of all pairs in bits. Divided by the bytes that they stand for it is bits per byte.
    /// Tokens outside of the vocabulary count as never seen.
    pub fn bits(&self, pairs: impl IntoIterator<Item = (u32, u32)>) -> f64 {
        pairs.into_iter().map(|(before, token)| -self.probability(before, token).log2()).sum()
    }

    /// p(token | before).
    pub fn probability(&self, before: u32, token: u32) -> f64 {
        let (p2, p1, p0) = self.counts.estimates(before, token);
        let [w2, w1, w0] = self.weights;
        let lower = w1 * p1 + w0 * p0;
        match p2 {
            Some(p2) => w2 * p2 + lower,
            None => lower / (w1 + w0),
        }
    }

    /// The weights of bigram, unigram and uniform distribution. They add up to 1.
    pub fn weights(&self) -> [f64; 3] {
        self.weights
    }
}

fn check(pairs: &[(u32, u32)], vocab_size: usize) -> Result<(), DataError> {
    if pairs.len() < 2 {
        return Err(DataError::Shape {
            what: "training pairs of the bigram model",
            asked: pairs.len() as u64,
            rule: "counting and weighting need one each".to_owned(),
            nearest: 2,
        });
    }
    let outside = pairs.iter().zip(0..).find(|(pair, _)| pair.0.max(pair.1) as usize >= vocab_size);
    let Some((pair, position)) = outside else { return Ok(()) };
    let token = pair.0.max(pair.1);
    let place = "the bigram model's training pairs".to_owned();
    Err(DataError::TokenRange { place, position, token, vocab_size })
}

/// How often tokens and pairs occur. The followers of token a are the entries
/// `row_starts[a]..row_starts[a + 1]`, sorted.
#[derive(Debug, Clone)]
struct Counts {
    row_starts: Vec<usize>,
    followers: Vec<u32>,
    follower_counts: Vec<u32>,
    /// Pairs that begin with each token.
    before: Vec<u64>,
    /// Pairs that end with each token.
    token: Vec<u64>,
    total: u64,
}

impl Counts {
    /// Sorts pairs by their first token (counting sort), then the second tokens of each.
    fn new(vocab_size: usize, pairs: &[(u32, u32)]) -> Self {
        let (mut before, mut token) = (vec![0_u64; vocab_size], vec![0_u64; vocab_size]);
        for &(a, b) in pairs {
            before[a as usize] += 1;
            token[b as usize] += 1;
        }
        let mut ends = Vec::with_capacity(vocab_size);
        let mut sum = 0;
        for &count in &before {
            ends.push(sum);
            sum += count as usize;
        }
        let mut sorted = vec![0; pairs.len()];
        for &(a, b) in pairs {
            sorted[ends[a as usize]] = b;
            ends[a as usize] += 1;
        }
        let mut counts = Self {
            row_starts: vec![0],
            followers: Vec::new(),
            follower_counts: Vec::new(),
            before,
            token,
            total: pairs.len() as u64,
        };
        let mut start = 0;
        for end in ends {
            counts.push_row(&mut sorted[start..end]);
            start = end;
        }
        counts
    }

    fn push_row(&mut self, followers: &mut [u32]) {
        followers.sort_unstable();
        for run in followers.chunk_by(|a, b| a == b) {
            self.followers.push(run[0]);
            self.follower_counts.push(run.len() as u32);
        }
        self.row_starts.push(self.followers.len());
    }

    /// Relative frequencies: of the pair among those with its first token (`None` where there are
    /// none), of the second token, and of one among all tokens.
    fn estimates(&self, a: u32, b: u32) -> (Option<f64>, f64, f64) {
        let uniform = 1.0 / self.token.len() as f64;
        let unigram = self.token.get(b as usize).map_or(0.0, |&n| n as f64 / self.total as f64);
        let bigram = self.before.get(a as usize).filter(|&&n| n > 0).map(|&n| {
            let row = self.row_starts[a as usize]..self.row_starts[a as usize + 1];
            let found = self.followers[row.clone()].binary_search(&b);
            found.map_or(0.0, |at| f64::from(self.follower_counts[row.start + at]) / n as f64)
        });
        (bigram, unigram, uniform)
    }

    /// The weights that make pairs outside of the counts most likely. Pairs whose first token was
    /// never seen say nothing about the bigram weight and are passed over.
    fn fit_weights(&self, held_out: &[(u32, u32)]) -> [f64; 3] {
        let estimates: Vec<[f64; 3]> = held_out
            .iter()
            .filter_map(|&(a, b)| match self.estimates(a, b) {
                (Some(p2), p1, p0) => Some([p2, p1, p0]),
                (None, _, _) => None,
            })
            .collect();
        let mut weights = [1.0 / 3.0; 3];
        if estimates.is_empty() {
            return weights;
        }
        for _ in 0..ITERATIONS_MAX {
            let next = expected_shares(&estimates, weights);
            let moved = (0..3).map(|k| (next[k] - weights[k]).abs()).fold(0.0, f64::max);
            weights = next;
            if moved < TOLERANCE {
                break;
            }
        }
        weights
    }
}

/// One step of expectation-maximisation: the share of the pairs that each distribution explains.
fn expected_shares(estimates: &[[f64; 3]], weights: [f64; 3]) -> [f64; 3] {
    let mut shares = [0.0; 3];
    for p in estimates {
        let parts = [weights[0] * p[0], weights[1] * p[1], weights[2] * p[2]];
        let scale = 1.0 / (parts[0] + parts[1] + parts[2]);
        (0..3).for_each(|k| shares[k] += parts[k] * scale);
    }
    let shares = shares.map(|share| (share / estimates.len() as f64).max(WEIGHT_MIN));
    let sum: f64 = shares.iter().sum();
    shares.map(|share| share / sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_rng::Stream;

    /// Pairs drawn from p(b | a) = ½ [b = a + 1] + ½ uniform over 16 tokens.
    fn drawn(count: u64, seed: u64) -> Vec<(u32, u32)> {
        let stream = Stream::new(seed, "test.bigram");
        let mut before = 0;
        (0..count)
            .map(|i| {
                let even = (stream.uniform(2 * i) * 16.0) as u32;
                let token = if stream.uniform(2 * i + 1) < 0.5 { (before + 1) % 16 } else { even };
                (std::mem::replace(&mut before, token), token)
            })
            .collect()
    }

    #[test]
    fn reaches_the_entropy_of_a_known_source() {
        let model = Bigram::fit(16, drawn(100_000, 1)).unwrap();
        let test = drawn(50_000, 2);
        let bits = model.bits(test.iter().copied()) / test.len() as f64;
        let (hit, miss) = (17.0 / 32.0, 1.0 / 32.0_f64);
        let entropy = -hit * f64::log2(hit) - 15.0 * miss * miss.log2();
        assert!((bits - entropy).abs() < 0.03, "{bits} bits, entropy {entropy}");
        assert!(model.weights()[0] > 0.9);
    }

    #[test]
    fn probabilities_add_up_to_one() {
        let pairs = [(0, 1), (1, 2), (2, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 0), (0, 1)];
        let model = Bigram::fit(5, pairs).unwrap();
        let mut contexts = 0;
        for before in 0..7 {
            let sum: f64 = (0..5).map(|token| model.probability(before, token)).sum();
            assert!((sum - 1.0).abs() < 1e-12, "after {before}: {sum}");
            contexts += 1;
        }
        assert_eq!(contexts, 7);
        assert!(model.bits([(4, 4), (6, 9)]).is_finite());
    }

    /// Against the definition, computed the slow way.
    #[test]
    fn counts_equal_direct_counting() {
        let pairs = drawn(2000, 3);
        let counts = Counts::new(16, &pairs);
        for a in 0..16 {
            for b in 0..16 {
                let first = pairs.iter().filter(|pair| pair.0 == a).count() as f64;
                let both = pairs.iter().filter(|pair| **pair == (a, b)).count() as f64;
                let second = pairs.iter().filter(|pair| pair.1 == b).count() as f64;
                let expected = (Some(both / first), second / 2000.0, 1.0 / 16.0);
                assert_eq!(counts.estimates(a, b), expected);
            }
        }
    }

    #[test]
    fn weights_maximise_the_held_out_likelihood() {
        let pairs = drawn(3000, 4);
        let (counted, held_out) = pairs.split_at(2700);
        let counts = Counts::new(16, counted);
        let best = counts.fit_weights(held_out);
        let bits =
            |weights| Bigram { counts: counts.clone(), weights }.bits(held_out.iter().copied());
        let mut compared = 0;
        for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
            let mut moved = best;
            let step = 0.01_f64.min(moved[from] * 0.5);
            moved[from] -= step;
            moved[to] += step;
            // Uniform and unigram weights trade off along a flat ridge here.
            assert!(bits(moved) >= bits(best) * (1.0 - 1e-4), "{best:?} is worse than {moved:?}");
            compared += 1;
        }
        assert_eq!(compared, 6);
    }

    #[test]
    fn bad_input() {
        assert!(Bigram::fit(4, [(0, 1)]).unwrap_err().to_string().contains("nearest"));
        let error = Bigram::fit(4, [(0, 1), (1, 7)]).unwrap_err().to_string();
        assert!(error.contains("token 7 at position 1"), "{error}");
    }
}
