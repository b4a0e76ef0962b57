//! Numbers: the element types kernels compute in, and the types their sums are kept in.

use half::bf16;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};
use trine_buffer::Float;

/// An element type of weights and activations.
pub(crate) trait Num: Float {
    /// The type of sums, gradients and statistics.
    type Acc: Real;
    /// Exact conversion to the accumulator.
    fn widen(self) -> Self::Acc;
    /// Rounds to nearest even.
    fn narrow(acc: Self::Acc) -> Self;
}

/// A number that arithmetic is done in.
pub(crate) trait Real:
    Num<Acc = Self>
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;
    /// The smallest finite number.
    const LOWEST: Self;
    /// `self * a + b`, rounded once.
    fn fma(self, a: Self, b: Self) -> Self;
    /// Of a number below about 80; vectorises for f32.
    fn exp(self) -> Self;
    /// Two to a power below 127, exactly 1 of 0; vectorises for f32, in fewer operations than
    /// [`Real::exp`].
    fn exp2(self) -> Self;
    fn ln(self) -> Self;
    /// Vectorises for f32.
    fn tanh(self) -> Self;
    fn sqrt(self) -> Self;
    fn abs(self) -> Self;
    fn is_finite(self) -> bool;
    /// The error function's complement at `self ≥ 0`.
    fn erfc_positive(self) -> Self;
    /// The larger; `other` if `self` is not a number.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

impl Num for f64 {
    type Acc = Self;
    #[inline(always)]
    fn widen(self) -> Self {
        self
    }
    #[inline(always)]
    fn narrow(acc: Self) -> Self {
        acc
    }
}

impl Num for f32 {
    type Acc = Self;
    #[inline(always)]
    fn widen(self) -> Self {
        self
    }
    #[inline(always)]
    fn narrow(acc: Self) -> Self {
        acc
    }
}

impl Num for bf16 {
    type Acc = f32;
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    // Integer arithmetic without a branch, so that loops vectorise. NaN stays NaN.
    #[inline(always)]
    fn narrow(acc: f32) -> Self {
        let bits = acc.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        Self::from_bits(if acc.is_nan() { quiet } else { rounded } as u16)
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    const LOWEST: Self = Self::MIN;
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
    #[inline(always)]
    fn exp(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn exp2(self) -> Self {
        self.exp2()
    }
    #[inline(always)]
    fn ln(self) -> Self {
        self.ln()
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        self.tanh()
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.abs()
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        self.is_finite()
    }
    fn erfc_positive(self) -> Self {
        let gauss = (-self * self).exp() / std::f64::consts::PI.sqrt();
        if self < 2.5 {
            // erf(x) = 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!!: all terms positive.
            let (mut term, mut sum, mut n) = (self, self, 0.0);
            while term > sum * Self::EPSILON * 0.1 {
                n += 1.0;
                term *= 2.0 * self * self / (2.0 * n + 1.0);
                sum += term;
            }
            return 1.0 - 2.0 * gauss * sum;
        }
        // The continued fraction x + (1/2)/(x + 1/(x + (3/2)/(x + …))), from its far end.
        let tail = (1..=80).rev().fold(self, |rest, n| self + 0.5 * Self::from(n) / rest);
        gauss / tail
    }
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = Self::NEG_INFINITY;
    const LOWEST: Self = Self::MIN;
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
    // e^x = 2ⁿ · e^r with |r| ≤ ln2/2, e^r by its Taylor polynomial of degree 7 (error below one
    // ulp). Results below the smallest normal number become 0; −∞ gives 0, NaN gives NaN.
    #[inline(always)]
    fn exp(self) -> Self {
        const LN2_HIGH: f32 = 0.693_145_75;
        const LN2_LOW: f32 = 1.428_606_8e-6;
        const MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer
        let x = if self > 88.7 { 88.7 } else { self };
        let x = if x < -87.3 { -87.3 } else { x };
        let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
        let n = shifted - MAGIC;
        let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
        let p = r.mul_add(1.0 / 5040.0, 1.0 / 720.0);
        let p = r.mul_add(p, 1.0 / 120.0);
        let p = r.mul_add(p, 1.0 / 24.0);
        let p = r.mul_add(p, 1.0 / 6.0);
        let p = r.mul_add(p, 0.5);
        let p = r.mul_add(p, 1.0);
        let p = r.mul_add(p, 1.0);
        // n lies in −126..=128; 2^128 overflows the exponent, so scale in two steps.
        let low = shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_sub(1);
        let scale = Self::from_bits(low.wrapping_add(127) << 23);
        let y = p * scale * 2.0;
        if self < -87.3 { 0.0 } else { y }
    }
    // 2^x = 2ⁿ · 2^r with |r| ≤ 1/2, 2^r by a polynomial of degree 6 (error about one ulp). Results
    // below the smallest normal number become 0; −∞ gives 0, NaN gives NaN.
    #[inline(always)]
    fn exp2(self) -> Self {
        // 1.5 · 2²³ + 127: adding it rounds to an integer, whose biased exponent is in the low bits.
        const MAGIC: f32 = 12_583_039.0;
        let shifted = self + MAGIC;
        let r = self - (shifted - MAGIC);
        let p = r.mul_add(0.000_155_946_78, 0.001_340_664_3);
        let p = r.mul_add(p, 0.009_617_693);
        let p = r.mul_add(p, 0.055_503_104);
        let p = r.mul_add(p, 0.240_226_52);
        let p = r.mul_add(p, 0.693_147_24);
        let p = r.mul_add(p, 1.0);
        let y = p * Self::from_bits(shifted.to_bits() << 23);
        if self < -126.0 { 0.0 } else { y }
    }
    #[inline(always)]
    fn ln(self) -> Self {
        self.ln()
    }
    // 1 − 2 / (e^2x + 1), near 0 the polynomial of Cephes, which keeps the digits that the difference
    // loses: error about two ulps.
    #[inline(always)]
    fn tanh(self) -> Self {
        let size = self.abs();
        // From there on the result is 1.
        let bounded = if size > 10.0 { 10.0 } else { size };
        let far = 1.0 - 2.0 / (Real::exp2(bounded * (2.0 * std::f32::consts::LOG2_E)) + 1.0);
        let square = self * self;
        let p = square.mul_add(-5.704_988_7e-3, 2.063_908_8e-2);
        let p = square.mul_add(p, -5.373_971_6e-2);
        let p = square.mul_add(p, 1.333_144_2e-1);
        let p = square.mul_add(p, -3.333_328e-1);
        let near = (p * square).mul_add(self, self);
        let far = if self < 0.0 { -far } else { far };
        if size < 0.625 { near } else { far }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.abs()
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        self.is_finite()
    }
    // Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7.
    #[inline(always)]
    fn erfc_positive(self) -> Self {
        let t = 1.0 / 0.327_591_1f32.mul_add(self, 1.0);
        let p = t.mul_add(1.061_405_4, -1.453_152_1);
        let p = t.mul_add(p, 1.421_413_8);
        let p = t.mul_add(p, -0.284_496_72);
        let p = t.mul_add(p, 0.254_829_6);
        t * p * Real::exp(-self * self)
    }
}

/// Lanes of a row reduction: part of the numbers, not of the hardware, so the same on every
/// instruction set.
pub(crate) const LANES: usize = 16;

/// Adds the lanes in a fixed tree.
#[inline(always)]
pub(crate) fn sum_lanes<A: Real>(mut lanes: [A; LANES]) -> A {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The most blocks that a sum may be cut into; the canonical number is 8 over all ranks.
pub(crate) const SUMMANDS_MAX: usize = 64;

/// The sum over a balanced tree that halves the range.
pub(crate) fn sum_tree<A: Real>(sums: &[A]) -> A {
    match sums {
        [] => A::ZERO,
        [one] => *one,
        _ => {
            let (left, right) = sums.split_at(sums.len() / 2);
            sum_tree(left) + sum_tree(right)
        }
    }
}

/// Σ f(element) over a row; element `i` goes to lane `i % LANES`. The order depends on the row's
/// length only.
#[inline(always)]
pub(crate) fn sum_row<T: Num, A: Real>(row: &[T], f: impl Fn(T::Acc) -> A) -> A {
    let mut lanes = [A::ZERO; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x.widen());
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x.widen());
    }
    sum_lanes(lanes)
}

/// The largest element of a row as an accumulator; −∞ for an empty row.
#[inline(always)]
pub(crate) fn max_row<T: Num>(row: &[T]) -> T::Acc {
    let mut lanes = [T::Acc::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = x.widen().larger(*lane);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = x.widen().larger(*lane);
    }
    lanes.into_iter().fold(T::Acc::NEG_INFINITY, Real::larger)
}
