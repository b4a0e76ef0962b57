//! The sampler: greedy, top-k, top-p, the distribution, and what it refuses.

use trine_generate::{GenerateError, Sampling, sample};
use trine_rng::Stream;

/// The model's own distribution.
const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0 };

/// The largest number below 1.
const LAST: f64 = 1.0 - f64::EPSILON / 2.0;

/// Every token that some number draws, in ascending order.
fn support(logits: &[f32], sampling: &Sampling) -> Vec<u32> {
    let uniforms = (0..1000).map(|i| f64::from(i) / 1000.0).chain([LAST]);
    let mut drawn: Vec<u32> = uniforms.map(|u| sample(logits, sampling, u).unwrap()).collect();
    drawn.sort_unstable();
    drawn.dedup();
    drawn
}

#[test]
fn temperature_zero_takes_the_likeliest_and_of_equals_the_first() {
    let logits = [1.0, 5.0, -2.0, 5.0, 4.999];
    for (top_k, top_p) in [(0, 1.0), (2, 1.0), (0, 0.1), (1, 0.5)] {
        let sampling = Sampling { temperature: 0.0, top_k, top_p, ..PLAIN };
        assert_eq!(support(&logits, &sampling), [1], "{sampling:?}");
    }
    // The limit of small temperatures; equal logits stay equally likely there.
    for temperature in [1e-5, f64::MIN_POSITIVE] {
        assert_eq!(support(&logits, &Sampling { temperature, ..PLAIN }), [1, 3]);
    }
    let negative_zero = [-0.0, 0.0];
    assert_eq!(support(&negative_zero, &Sampling { temperature: 0.0, ..PLAIN }), [0]);
    assert_eq!(support(&negative_zero, &Sampling { top_k: 1, ..PLAIN }), [0]);
}

#[test]
fn equal_logits_share_the_unit_interval_equally() {
    let logits = [f32::MAX; 8];
    let mut drawn = 0;
    for eighth in 0..8u32 {
        let first = f64::from(eighth) / 8.0;
        for uniform in [first, first + 1e-9, first + 0.0625, first + 0.125 - 1e-9] {
            assert_eq!(sample(&logits, &PLAIN, uniform).unwrap(), eighth, "{uniform}");
            drawn += 1;
        }
    }
    assert_eq!(sample(&logits, &PLAIN, LAST).unwrap(), 7);
    assert_eq!(drawn, 32);
}

#[test]
fn top_k_leaves_the_k_likeliest() {
    let logits = [0.1, 0.5, 0.3, 0.5, 0.2, 0.3];
    let of = |top_k| support(&logits, &Sampling { top_k, ..PLAIN });
    assert_eq!(of(1), [1], "of equals the first");
    assert_eq!(of(2), [1, 3]);
    assert_eq!(of(3), [1, 2, 3], "2 and not 5");
    assert_eq!(of(4), [1, 2, 3, 5]);
    assert_eq!(of(5), [1, 2, 3, 4, 5]);
    for all in [0, 6, 7, usize::MAX] {
        assert_eq!(of(all), [0, 1, 2, 3, 4, 5]);
    }
    // A temperature at which all weights round to the same number leaves their order.
    let hot = Sampling { temperature: 1e300, top_k: 1, ..PLAIN };
    assert_eq!(support(&[0.0, 1.0, 2.0], &hot), [2]);
}

#[test]
fn top_p_leaves_the_shortest_run_that_reaches_it() {
    // Weights 1, 1, 1, 1: sums are exact.
    let of = |top_p| support(&[0.0; 4], &Sampling { top_p, ..PLAIN });
    assert_eq!(of(f64::MIN_POSITIVE), [0]);
    assert_eq!(of(0.25), [0]);
    assert_eq!(of(0.25 + f64::EPSILON), [0, 1]);
    assert_eq!(of(0.5), [0, 1]);
    assert_eq!(of(0.75), [0, 1, 2]);
    assert_eq!(of(0.75 + f64::EPSILON), [0, 1, 2, 3]);
    // Probabilities 1/8, 1/2, 1/8, 1/4.
    let logits = [0.0f32, 4f32.ln(), 0.0, 2f32.ln()];
    let of = |top_p| support(&logits, &Sampling { top_p, ..PLAIN });
    assert_eq!(of(0.4999), [1]);
    assert_eq!(of(0.5001), [1, 3]);
    assert_eq!(of(0.7499), [1, 3]);
    assert_eq!(of(0.7501), [0, 1, 3]);
    assert_eq!(of(0.8751), [0, 1, 2, 3]);
    // After top-k the rest is a whole again: 1/2 and 1/4 become 2/3 and 1/3.
    let of = |top_p| support(&logits, &Sampling { top_k: 2, top_p, ..PLAIN });
    assert_eq!(of(0.66), [1]);
    assert_eq!(of(0.67), [1, 3]);
    // At 1 nothing goes, however small.
    let tail = [0.0, -40.0];
    assert_eq!(sample(&tail, &PLAIN, LAST).unwrap(), 0, "beyond the reach of one number");
    let tails: Vec<f32> = (0..1000).map(|i| if i == 0 { 0.0 } else { -36.0 }).collect();
    assert_eq!(sample(&tails, &PLAIN, LAST).unwrap(), 999);
}

/// Pearson's statistic of many draws against expected probabilities.
fn chi_squared(logits: &[f32], sampling: &Sampling, expected: &[f64]) -> f64 {
    const DRAWS: u64 = 100_000;
    let stream = Stream::new(11, "distribution");
    let mut counts = vec![0.0; logits.len()];
    for index in 0..DRAWS {
        let uniform = f64::from(stream.uniform(index));
        counts[sample(logits, sampling, uniform).unwrap() as usize] += 1.0;
    }
    assert_eq!(counts.iter().sum::<f64>(), DRAWS as f64);
    let term = |(count, probability): (&f64, &f64)| {
        let expected = probability * DRAWS as f64;
        if expected == 0.0 && *count == 0.0 { 0.0 } else { (count - expected).powi(2) / expected }
    };
    counts.iter().zip(expected).map(term).sum()
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.3f32, -1.0, 2.0, 0.0, 1.1, -0.4, 0.9, 1.8];
    let softmax = |temperature: f64, kept: &[usize]| {
        let weight = |token: usize| {
            let weight = (f64::from(logits[token]) / temperature).exp();
            if kept.contains(&token) { weight } else { 0.0 }
        };
        let weights: Vec<f64> = (0..logits.len()).map(weight).collect();
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / total).collect::<Vec<_>>()
    };
    let all: Vec<usize> = (0..logits.len()).collect();
    let likeliest = [2, 7, 4];
    let cases = [
        (PLAIN, softmax(1.0, &all)),
        (Sampling { temperature: 0.7, ..PLAIN }, softmax(0.7, &all)),
        (Sampling { temperature: 2.0, ..PLAIN }, softmax(2.0, &all)),
        (Sampling { top_k: 3, ..PLAIN }, softmax(1.0, &likeliest)),
        // 0.354 + 0.290 < 0.7 ≤ 0.354 + 0.290 + 0.144
        (Sampling { top_p: 0.7, ..PLAIN }, softmax(1.0, &likeliest)),
        (Sampling { temperature: 0.5, top_k: 3, top_p: 0.99, ..PLAIN }, softmax(0.5, &likeliest)),
    ];
    let mut checked = 0;
    for (sampling, expected) in &cases {
        // 7 degrees of freedom at most: 1 in 10⁵ is beyond 35.
        let own = chi_squared(&logits, sampling, expected);
        assert!(own < 35.0, "{sampling:?}: {own}");
        let other = chi_squared(&logits, &Sampling { temperature: 0.9, ..PLAIN }, expected);
        assert!(other > 100.0, "the control passes for {sampling:?}: {other}");
        checked += 1;
    }
    assert_eq!(checked, 6);
}

#[test]
fn logits_without_a_distribution_are_errors() {
    let greedy = Sampling { temperature: 0.0, ..PLAIN };
    for sampling in [PLAIN, greedy] {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
            let error = sample(&[0.0, 9.0, bad, 1.0], &sampling, 0.5).unwrap_err();
            assert!(matches!(error, GenerateError::Logit { token: 2, .. }), "{error}");
            assert!(error.to_string().contains("the logit of token 2"), "{error}");
        }
        for none in [&[][..], &[f32::NEG_INFINITY; 3]] {
            let error = sample(none, &sampling, 0.5).unwrap_err();
            assert!(matches!(error, GenerateError::NoToken(n) if n == none.len()), "{error}");
        }
        let masked = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        assert_eq!(support(&masked, &sampling), [1]);
    }
}

#[test]
fn values_out_of_range_name_the_nearest_valid_one() {
    let cases = [
        (Sampling { temperature: -0.5, ..PLAIN }, 0.5, "temperature = -0.5", "value: 0"),
        (Sampling { temperature: f64::NAN, ..PLAIN }, 0.5, "temperature = NaN", "value: 1"),
        (Sampling { temperature: f64::INFINITY, ..PLAIN }, 0.5, "temperature = inf", "value: 1"),
        (Sampling { top_p: 0.0, ..PLAIN }, 0.5, "top_p = 0", "value: 1"),
        (Sampling { top_p: 1.5, ..PLAIN }, 0.5, "top_p = 1.5", "value: 1"),
        (Sampling { top_p: f64::NAN, ..PLAIN }, 0.5, "top_p = NaN", "value: 1"),
        (PLAIN, 1.0, "uniform = 1", "value: 0.999"),
        (PLAIN, -0.1, "uniform = -0.1", "value: 0"),
        (PLAIN, f64::NAN, "uniform = NaN", "value: 0"),
    ];
    for (sampling, uniform, what, nearest) in &cases {
        let text = sample(&[0.0, 1.0], sampling, *uniform).unwrap_err().to_string();
        assert!(text.contains(what) && text.contains(nearest), "{text}");
    }
    assert_eq!(cases.len(), 9);
}
