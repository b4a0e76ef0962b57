//! Which token follows, given the logits: temperature, top-k and nucleus sampling.

use crate::GenerateError;

/// How tokens are drawn. The filters are applied in this order: temperature, then `top_k`, then
/// `top_p` of what is left.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this: 1 draws from the model's distribution, less sharpens it, 0 takes
    /// the likeliest token.
    pub temperature: f64,
    /// Only this many of the likeliest tokens are drawn from (Fan et al., 1805.04833); 0: from all.
    pub top_k: usize,
    /// Only the fewest likeliest tokens that together have at least this probability are drawn from
    /// (nucleus sampling, Holtzman et al., 1904.09751); above 0, and 1 for all.
    pub top_p: f64,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Sampling {
    /// Checks the ranges. [`sample`] and [`Generator::generate`](crate::Generator::generate) do so
    /// themselves.
    ///
    /// # Errors
    /// A temperature that is negative, infinite or not a number; a `top_p` outside of (0, 1].
    pub fn check(&self) -> Result<(), GenerateError> {
        let Self { temperature, top_k: _, top_p, seed: _ } = *self;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            let nearest = if temperature < 0.0 { 0.0 } else { 1.0 };
            return Err(value_error("temperature", temperature, "must be 0 or more", nearest));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            let rule = "must be above 0 and at most 1";
            return Err(value_error("top_p", top_p, rule, 1.0));
        }
        Ok(())
    }
}

fn value_error(field: &'static str, value: f64, rule: &'static str, nearest: f64) -> GenerateError {
    GenerateError::Value { field, value: value.to_string(), rule, nearest: nearest.to_string() }
}

/// A token that may be drawn, with its unnormalised probability.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    logit: f32,
    weight: f64,
}

/// The token that the number `uniform` of [0, 1) draws: the inverse of the cumulative distribution
/// over the candidates, likeliest first. Of equal logits the lower token counts as the likelier one.
/// A logit of −∞ is never drawn.
///
/// ```
/// use trine_generate::{Sampling, sample};
///
/// let sampling = Sampling { temperature: 1.0, top_k: 2, top_p: 1.0, seed: 0 };
/// let logits = [0.0, 3f32.ln(), 0.0]; // the filter leaves token 1 with 3/4 and token 0 with 1/4
/// assert_eq!(sample(&logits, &sampling, 0.74)?, 1);
/// assert_eq!(sample(&logits, &sampling, 0.76)?, 0);
/// # Ok::<(), trine_generate::GenerateError>(())
/// ```
///
/// # Errors
/// As [`Sampling::check`]; a `uniform` outside of [0, 1); a logit that is +∞ or not a number; no
/// logit above −∞.
pub fn sample(logits: &[f32], sampling: &Sampling, uniform: f64) -> Result<u32, GenerateError> {
    sampling.check()?;
    if !(0.0..1.0).contains(&uniform) {
        let rule = "must be at least 0 and below 1";
        let nearest = if uniform >= 1.0 { 1.0 - f64::EPSILON } else { 0.0 };
        return Err(value_error("uniform", uniform, rule, nearest));
    }
    let likeliest = likeliest(logits)?;
    if sampling.temperature == 0.0 {
        return Ok(likeliest as u32);
    }
    let mut candidates = weighted(logits, logits[likeliest], sampling.temperature);
    keep_top_k(&mut candidates, sampling.top_k);
    candidates.sort_unstable_by(by_likelihood);
    keep_top_p(&mut candidates, sampling.top_p);
    Ok(draw(&candidates, uniform))
}

/// The token with the largest logit; the lowest of equal ones.
fn likeliest(logits: &[f32]) -> Result<usize, GenerateError> {
    let mut best: Option<(usize, f32)> = None;
    for (token, &logit) in logits.iter().enumerate() {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(GenerateError::Logit { token, logit });
        }
        if logit > best.map_or(f32::NEG_INFINITY, |(_, largest)| largest) {
            best = Some((token, logit));
        }
    }
    best.map(|(token, _)| token).ok_or(GenerateError::NoToken(logits.len()))
}

/// Every token with a weight above zero; the likeliest one has weight 1, so nothing overflows.
fn weighted(logits: &[f32], largest: f32, temperature: f64) -> Vec<Candidate> {
    let weight = |logit: f32| ((f64::from(logit) - f64::from(largest)) / temperature).exp();
    let all = (0..).zip(logits);
    let all = all.map(|(token, &logit)| Candidate { token, logit, weight: weight(logit) });
    all.filter(|candidate| candidate.weight > 0.0).collect()
}

/// Likeliest first, of equal ones the lower token.
fn by_likelihood(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    let logits = b.logit.partial_cmp(&a.logit).expect("invariant: NaN is refused before");
    logits.then(a.token.cmp(&b.token))
}

/// Leaves the `top_k` likeliest, in any order.
fn keep_top_k(candidates: &mut Vec<Candidate>, top_k: usize) {
    if (1..candidates.len()).contains(&top_k) {
        candidates.select_nth_unstable_by(top_k - 1, by_likelihood);
        candidates.truncate(top_k);
    }
}

/// Leaves the shortest run of the likeliest that has `top_p` of the weight. Expects them sorted.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    let wanted = top_p * total(candidates);
    let mut sum = 0.0;
    let last = candidates.iter().position(|candidate| {
        sum += candidate.weight;
        sum >= wanted
    });
    candidates.truncate(last.map_or(candidates.len(), |last| last + 1));
}

/// The candidate in whose share of the total weight `uniform` lies.
fn draw(candidates: &[Candidate], uniform: f64) -> u32 {
    let place = uniform * total(candidates);
    let mut sum = 0.0;
    let hit = candidates.iter().find(|candidate| {
        sum += candidate.weight;
        place < sum
    });
    // The product may round up to the total, which lies behind the last share.
    let drawn = hit.or(candidates.last()).expect("invariant: the likeliest token is a candidate");
    drawn.token
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| candidate.weight).sum()
}
