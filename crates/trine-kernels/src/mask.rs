//! Dropout: masks that are functions of global coordinates.

use crate::check::{Mat, MatSplit, dims, same_shape, with_num};
use crate::isa::vectorised;
use crate::num::{Num, Real};
use crate::{CpuOps, Dropout, DropoutPlace, KernelError, MatMut, MatRef};

/// Bits of a position in the element index of attention probabilities; heads take the rest.
const POSITION_BITS: u32 = 24;

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
        let threshold = (p * 4_294_967_296.0).round() as u64;
        Ok(Self { dropout, threshold, kept_factor: 1.0 / (1.0 - p) })
    }

    /// The factors, 0 or `1 / (1 − p)`, of elements `first`, `first + 1`, … of a sample, counted
    /// from the call's first one.
    fn factors<A: Real>(&self, sample: usize, first: u64, out: &mut [A]) {
        let sample = self.dropout.first_sample.wrapping_add(sample as u32);
        let kept = A::from_f64(self.kept_factor);
        let factor = |word: u32| if u64::from(word) < self.threshold { A::ZERO } else { kept };
        let mut element = first;
        let mut out = out.iter_mut();
        while out.len() > 0 {
            let words = words(self.dropout.key, self.dropout.step, sample, element / 4);
            let skip = (element % 4) as usize;
            // The words come first: `zip` must not take an element that no word is left for.
            for (word, out) in words[skip..].iter().zip(out.by_ref()) {
                *out = factor(*word);
            }
            element += (4 - skip) as u64;
        }
    }

    /// The factors of the probabilities of one (sample, global head, query) for keys from `key` on.
    pub(crate) fn attention_row<A: Real>(
        &self,
        sample: usize,
        head: usize,
        query: usize,
        key: usize,
        out: &mut [A],
    ) {
        let (head, query) = (head as u64, query as u64);
        let row = head << (2 * POSITION_BITS) | query << POSITION_BITS;
        self.factors(sample, row | key as u64, out);
    }
}

/// Words of the generator at an element's counter.
fn words(key: u64, step: u32, sample: u32, quarter: u64) -> [u32; 4] {
    let mut counter = [quarter as u32, (quarter >> 32) as u32, sample, step];
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ k0,
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ k1,
            a as u32,
        ];
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    counter
}

vectorised! {
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
    /// Features whose factors are drawn at a time.
    const CHUNK: usize = 256;
    with_num!(OP, "x", x.data.dtype(), T => {
        let mask = Mask::new(OP, dropout)?;
        let x = Mat::<T>::new(OP, "x", x)?;
        let y = MatSplit::<T>::new(OP, "y", y)?;
        same_shape(OP, "y", y.shape(), x.shape())?;
        let DropoutPlace { tokens, first_token, first_feature } = place;
        dims(OP, tokens > 0 && x.rows.is_multiple_of(tokens), || {
            format!("{} rows are not whole samples of {tokens} tokens", x.rows)
        })?;
        cpu.parallel(x.rows, 8 * x.cols, |rows| {
            let mut factors = [<T as Num>::Acc::ZERO; CHUNK];
            for row in rows {
                let token = (first_token + row % tokens) as u64;
                for col in (0..x.cols).step_by(CHUNK) {
                    let cols = col..x.cols.min(col + CHUNK);
                    let factors = &mut factors[..cols.len()];
                    let first = token << 32 | (first_feature + col) as u64;
                    mask.factors(row / tokens, first, factors);
                    // SAFETY: each row is written by one thread.
                    let y = unsafe { y.part(row, cols.clone()) };
                    masked(cpu.isa, y, &x.row(row)[cols], factors);
                }
            }
        });
        Ok(())
    })
}
