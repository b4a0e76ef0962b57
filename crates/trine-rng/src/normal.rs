//! Normal deviates by Box–Muller (Annals of Mathematical Statistics 29, 1958), in f64 and with
//! operations that round the same everywhere.
//!
//! The standard library's `ln`, `sin` and `cos` come from the platform's libm, and two of those may
//! differ in the last bit; a checkpoint's initial weights would then depend on the machine. The
//! series below use +, −, ×, ÷ and √ only, which IEEE 754 defines to the bit.

use std::f64::consts::{FRAC_PI_2, LN_2, SQRT_2};

/// 2⁻³².
const WORD: f64 = 1.0 / 4_294_967_296.0;

/// Two independent standard normal deviates from two random words. The largest possible size is
/// √(2 · 32 · ln 2) ≈ 6.66.
#[inline]
pub(crate) fn normal_pair(radius_word: u32, angle_word: u32) -> [f64; 2] {
    // In (0, 1]: the logarithm is finite.
    let u = (f64::from(radius_word) + 1.0) * WORD;
    let radius = (-2.0 * ln(u)).sqrt();
    let [sin, cos] = sin_cos_turn(angle_word);
    [radius * cos, radius * sin]
}

/// 1/1, 1/3, 1/5, …: the series of artanh(s)/s in s². |s| ≤ 0.172, so the next term would be below
/// 2⁻⁵³ of the sum.
const ARTANH: [f64; 12] = {
    let mut terms = [0.0; 12];
    let mut k = 0;
    while k < terms.len() {
        terms[k] = 1.0 / (2 * k + 1) as f64;
        k += 1;
    }
    terms
};

/// 1, −1/3!, 1/5!, …: the series of sin(x)/x in x², for |x| ≤ π/4.
const SIN: [f64; 9] = alternating_factorials(1);
/// 1, −1/2!, 1/4!, …: the series of cos x in x², for |x| ≤ π/4.
const COS: [f64; 9] = alternating_factorials(0);

const fn alternating_factorials(first: usize) -> [f64; 9] {
    let mut terms = [1.0; 9];
    let mut k = 1;
    while k < terms.len() {
        let n = 2 * k + first;
        terms[k] = -terms[k - 1] / (n * (n - 1)) as f64;
        k += 1;
    }
    terms
}

/// ln u for normal positive u: u = m · 2ᵉ with m in [√½, √2), ln m = 2 artanh((m − 1)/(m + 1)).
#[inline]
fn ln(u: f64) -> f64 {
    let bits = u.to_bits();
    let mut mantissa = f64::from_bits(bits & 0x000f_ffff_ffff_ffff | 0x3ff0_0000_0000_0000);
    let mut exponent = (bits >> 52) as i32 - 1023;
    if mantissa >= SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    2.0 * s * polynomial(&ARTANH, s * s) + f64::from(exponent) * LN_2
}

/// [sin, cos] of `word` · 2⁻³² turns.
#[inline]
fn sin_cos_turn(word: u32) -> [f64; 2] {
    // The nearest quarter turn, exactly; the rest is within ±π/4.
    let quarter = word.wrapping_add(1 << 29) >> 30;
    let rest = word.wrapping_sub(quarter << 30) as i32;
    let x = f64::from(rest) * (4.0 * WORD * FRAC_PI_2);
    let sin = x * polynomial(&SIN, x * x);
    let cos = polynomial(&COS, x * x);
    match quarter {
        0 => [sin, cos],
        1 => [cos, -sin],
        2 => [-sin, -cos],
        _ => [-cos, sin],
    }
}

/// Σ terms[k] · xᵏ by Horner's rule.
#[inline]
fn polynomial<const N: usize>(terms: &[f64; N], x: f64) -> f64 {
    terms.iter().rev().fold(0.0, |sum, &term| sum * x + term)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the platform's functions are the oracle here")]
mod tests {
    use super::*;

    #[test]
    fn functions_agree_with_the_platform() {
        let mut compared = 0;
        for i in 0..20_000_u32 {
            let word = i.wrapping_mul(0x9E37_79B9) ^ (i >> 3);
            let u = (f64::from(word) + 1.0) * WORD;
            assert!((ln(u) - u.ln()).abs() <= 4e-16 * u.ln().abs().max(0.1), "ln {u}");
            let (sin, cos) = (f64::from(word) * WORD * 4.0 * FRAC_PI_2).sin_cos();
            let ours = sin_cos_turn(word);
            assert!((ours[0] - sin).abs() < 1e-15, "sin of {word:#x} / 2³² turns");
            assert!((ours[1] - cos).abs() < 1e-15, "cos of {word:#x} / 2³² turns");
            compared += 1;
        }
        assert_eq!(compared, 20_000);
    }

    #[test]
    fn extremes_are_finite() {
        for radius in [0, 1, u32::MAX - 1, u32::MAX] {
            for angle in [0, 1 << 29, 1 << 30, 3 << 30, u32::MAX] {
                for z in normal_pair(radius, angle) {
                    assert!(z.is_finite() && z.abs() < 6.7, "{radius:#x} {angle:#x}: {z}");
                }
            }
        }
        assert_eq!(normal_pair(u32::MAX, 5), [0.0, 0.0]);
    }
}
