//! Dropout: masks that are functions of global coordinates.

use crate::check::{Mat, MatSplit, dims, with_num};
use crate::isa::vectorised;
use crate::num::{Num, Real};
use crate::{CpuOps, Dropout, DropoutPlace, Isa, KernelError, MatMut, MatRef};
use trine_rng::Stream;

/// Bits of a position in the element index of attention probabilities; heads take the rest.
const POSITION_BITS: u32 = 24;
/// Positions that have coordinates of their own in masks of attention probabilities.
pub(crate) const POSITIONS: u64 = 1 << POSITION_BITS;

impl Dropout {
    /// Random words below it drop their element.
    pub fn threshold(&self) -> u64 {
        (self.probability * 4_294_967_296.0).round() as u64
    }

    /// What the others are multiplied with.
    pub fn kept_factor(&self) -> f64 {
        1.0 / (1.0 - self.probability)
    }
}

/// A checked [`Dropout`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mask {
    dropout: Dropout,
    /// Words below it drop their element.
    threshold: u64,
    kept_factor: f64,
}

impl Mask {
    pub(crate) fn new(op: &'static str, dropout: Dropout) -> Result<Self, KernelError> {
        let p = dropout.probability;
        dims(op, (0.0..1.0).contains(&p), || format!("a dropout probability of {p}"))?;
        let (threshold, kept_factor) = (dropout.threshold(), dropout.kept_factor());
        Ok(Self { dropout, threshold, kept_factor })
    }

    /// The factors, 0 or `1 / (1 − p)`, of elements `first`, `first + 1`, … of a sample, counted
    /// from the call's first one.
    fn factors<A: Real>(&self, isa: Isa, sample: usize, first: u64, out: &mut [A]) {
        let sample = self.dropout.first_sample.wrapping_add(sample as u32);
        let kept = A::from_f64(self.kept_factor);
        draw(isa, self.dropout, sample, first, self.threshold, kept, out);
    }

    /// The factors of the probabilities of one (sample, global head, query) for keys from `key` on;
    /// both are positions in the sequence.
    pub(crate) fn attention_row<A: Real>(
        &self,
        isa: Isa,
        sample: usize,
        head: usize,
        query: usize,
        key: usize,
        out: &mut [A],
    ) {
        let (head, query) = (head as u64, query as u64);
        let row = head << (2 * POSITION_BITS) | query << POSITION_BITS;
        self.factors(isa, sample, row | key as u64, out);
    }
}

/// Words drawn at a time.
const CHUNK: usize = 256;

vectorised! {
    fn draw<A: Real>(
        dropout: Dropout,
        sample: u32,
        first: u64,
        threshold: u64,
        kept: A,
        out: &mut [A],
    ) {
        let stream = Stream::from_key(dropout.key);
        let mut words = [0; CHUNK];
        for (chunk, out) in out.chunks_mut(CHUNK).enumerate() {
            let words = &mut words[..out.len()];
            stream.fill_bits(dropout.step, sample, first + (chunk * CHUNK) as u64, words);
            for (out, &word) in out.iter_mut().zip(&*words) {
                *out = if u64::from(word) < threshold { A::ZERO } else { kept };
            }
        }
    }

    fn masked<T: Num>(y: &mut [T], x: &[T], factors: &[T::Acc]) {
        for ((y, x), factor) in y.iter_mut().zip(x).zip(factors) {
            *y = T::narrow(x.widen() * *factor);
        }
    }
}

pub(crate) fn dropout(
    cpu: &CpuOps,
    dropout: Dropout,
    place: DropoutPlace,
    y: MatMut<'_>,
    x: MatRef<'_>,
) -> Result<(), KernelError> {
    const OP: &str = "dropout";
    with_num!(OP, "x", x.data.dtype(), T => {
        let mask = Mask::new(OP, dropout)?;
        let x = Mat::<T>::new(OP, "x", x)?;
        let y = MatSplit::<T>::new(OP, "y", y)?;
        let DropoutPlace { tokens, first_token, first_feature } = place;
        cpu.parallel(x.rows, 8 * x.cols, |rows| {
            let mut factors = [<T as Num>::Acc::ZERO; CHUNK];
            for row in rows {
                let token = (first_token + row % tokens) as u64;
                for col in (0..x.cols).step_by(CHUNK) {
                    let cols = col..x.cols.min(col + CHUNK);
                    let factors = &mut factors[..cols.len()];
                    let first = token << 32 | (first_feature + col) as u64;
                    mask.factors(cpu.isa, row / tokens, first, factors);
                    // SAFETY: each row is written by one thread.
                    let y = unsafe { y.part(row, cols.clone()) };
                    masked(cpu.isa, y, &x.row(row)[cols], factors);
                }
            }
        });
        Ok(())
    })
}
