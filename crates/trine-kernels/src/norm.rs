//! Layer norm and RMS norm over rows.

use crate::check::{typed, typed_mut, with_num};
use crate::isa::vectorised;
use crate::num::{LANES, Num, Real, sum_lanes, sum_row};
use crate::scratch::Split;
use crate::{CpuOps, KernelError, NormShape};
use trine_buffer::{Element, Float, Slice, SliceMut};

type Done = Result<(), KernelError>;

/// Columns whose gradients of gain and bias are summed together over the rows.
const COLUMNS: usize = 64;

/// Runs `$body` with `$t` for the type of gain, bias and outputs, and `$s` for that of the stream:
/// the same, or that of its sums.
macro_rules! with_stream {
    ($op:expr, $gamma:expr, $x:expr, $t:ident, $s:ident => $body:expr) => {
        with_num!($op, "gamma", $gamma.dtype(), $t => {
            if $x.dtype() == <$t as Element>::DTYPE {
                type $s = $t;
                $body
            } else {
                type $s = <$t as Num>::Acc;
                $body
            }
        })
    };
}

/// The same with `$t` for the type of outputs and `$g` for that of the gain: the same, or that of its sums.
macro_rules! with_gain {
    ($op:expr, $y:expr, $gamma:expr, $x:expr, $t:ident, $g:ident, $s:ident => $body:expr) => {
        with_stream!($op, $y, $x, $t, $s => {
            if $gamma.dtype() == <$t as Element>::DTYPE {
                type $g = $t;
                $body
            } else {
                type $g = <$t as Num>::Acc;
                $body
            }
        })
    };
}

/// Σ g and Σ g·(x − mean) with g = dy·gamma, in the lane order of [`sum_row`].
#[inline(always)]
fn backward_sums<T: Num, G: Num<Acc = T::Acc>, S: Num<Acc = T::Acc>>(
    x: &[S],
    mean: T::Acc,
    gamma: &[G],
    dy: &[T],
) -> (T::Acc, T::Acc) {
    let mut sum = [T::Acc::ZERO; LANES];
    let mut dot = [T::Acc::ZERO; LANES];
    let mut add = |x: &[S], gamma: &[G], dy: &[T]| {
        let lanes = sum.iter_mut().zip(&mut dot);
        for ((((sum, dot), x), gamma), dy) in lanes.zip(x).zip(gamma).zip(dy) {
            let g = dy.widen() * gamma.widen();
            *sum += g;
            *dot += g * (x.widen() - mean);
        }
    };
    let whole = x.len() / LANES * LANES;
    let chunks = x.chunks_exact(LANES).zip(gamma.chunks_exact(LANES)).zip(dy.chunks_exact(LANES));
    for ((x, gamma), dy) in chunks {
        add(x, gamma, dy);
    }
    add(&x[whole..], &gamma[whole..], &dy[whole..]);
    (sum_lanes(sum), sum_lanes(dot))
}

vectorised! {
    fn layer_norm_row<T: Num, S: Num<Acc = T::Acc>>(
        y: &mut [T],
        x: &[S],
        gamma: &[T],
        beta: &[T],
        eps: T::Acc,
    ) -> (T::Acc, T::Acc) {
        let n = T::Acc::from_f64(x.len() as f64);
        let mean = sum_row(x, |x| x) / n;
        let square = |x: T::Acc| {
            let centred = x - mean;
            centred * centred
        };
        let rstd = T::Acc::ONE / (sum_row(x, square) / n + eps).sqrt();
        for (((y, x), gamma), beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
            *y = T::narrow((x.widen() - mean) * rstd * gamma.widen() + beta.widen());
        }
        (mean, rstd)
    }

    fn rms_norm_row<T: Num, G: Num<Acc = T::Acc>, S: Num<Acc = T::Acc>>(
        y: &mut [T],
        x: &[S],
        gamma: &[G],
        eps: T::Acc,
    ) -> T::Acc {
        let n = T::Acc::from_f64(x.len() as f64);
        let rstd = T::Acc::ONE / (sum_row(x, |x| x * x) / n + eps).sqrt();
        for ((y, x), gamma) in y.iter_mut().zip(x).zip(gamma) {
            *y = T::narrow(x.widen() * rstd * gamma.widen());
        }
        rstd
    }

    // With c = x − mean: dx = rstd·(g − mean(g) − c·rstd²·mean(g·c)); RMS norm has no mean(g).
    fn norm_backward_row<T: Num, G: Num<Acc = T::Acc>, S: Num<Acc = T::Acc>>(
        dx: &mut [S],
        add_to_dx: bool,
        x: &[S],
        mean: Option<T::Acc>,
        rstd: T::Acc,
        gamma: &[G],
        dy: &[T],
    ) {
        let n = T::Acc::from_f64(x.len() as f64);
        let centre = mean.unwrap_or(T::Acc::ZERO);
        let (sum, dot) = backward_sums(x, centre, gamma, dy);
        let mean_g = if mean.is_some() { sum / n } else { T::Acc::ZERO };
        let slope = dot / n * rstd * rstd;
        for (((dx, x), gamma), dy) in dx.iter_mut().zip(x).zip(gamma).zip(dy) {
            let g = dy.widen() * gamma.widen();
            let own = (g - mean_g - (x.widen() - centre) * slope) * rstd;
            let old = if add_to_dx { dx.widen() } else { T::Acc::ZERO };
            *dx = S::narrow(old + own);
        }
    }

    /// `dgamma[c] += Σ dy · (x − mean) · rstd` and `dbeta[c] += Σ dy` over the rows, for the columns
    /// from the first of `x` and `dy` on. `stats` holds a row's mean, if norms have one, and rstd.
    fn add_gain_and_bias<T: Num, S: Num<Acc = T::Acc>>(
        dgamma: &mut [T::Acc],
        dbeta: Option<&mut [T::Acc]>,
        x: &[S],
        dy: &[T],
        cols: usize,
        stats: &[T::Acc],
        each: usize,
    ) {
        let mut nothing = [T::Acc::ZERO; COLUMNS];
        let mut dbeta = dbeta;
        for (run, dgamma) in dgamma.chunks_mut(COLUMNS).enumerate() {
            // A run of columns at a time, whose sums stay in registers from row to row.
            let len = dgamma.len();
            let dbeta = match &mut dbeta {
                Some(dbeta) => &mut dbeta[run * COLUMNS..][..len],
                None => &mut nothing[..len],
            };
            let (mut gain, mut bias) = ([T::Acc::ZERO; COLUMNS], [T::Acc::ZERO; COLUMNS]);
            gain[..len].copy_from_slice(dgamma);
            bias[..len].copy_from_slice(dbeta);
            for (row, stats) in stats.chunks_exact(each).enumerate() {
                let (mean, rstd) = match *stats {
                    [rstd] => (T::Acc::ZERO, rstd),
                    [mean, rstd, ..] => (mean, rstd),
                    [] => break,
                };
                let at = row * cols + run * COLUMNS;
                let (x, dy) = (&x[at..][..len], &dy[at..][..len]);
                let sums = gain.iter_mut().zip(&mut bias);
                for (((gain, bias), x), dy) in sums.zip(x).zip(dy) {
                    *gain += dy.widen() * ((x.widen() - mean) * rstd);
                    *bias += dy.widen();
                }
            }
            dgamma.copy_from_slice(&gain[..len]);
            dbeta.copy_from_slice(&bias[..len]);
        }
    }
}

pub(crate) fn layer_norm(
    cpu: &CpuOps,
    shape: NormShape,
    y: SliceMut<'_>,
    stats: SliceMut<'_>,
    x: Slice<'_>,
    gamma: Slice<'_>,
    beta: Slice<'_>,
) -> Done {
    const OP: &str = "layer_norm";
    fn run<T: Num, S: Num<Acc = T::Acc>>(
        cpu: &CpuOps,
        shape: NormShape,
        y: SliceMut<'_>,
        stats: SliceMut<'_>,
        x: Slice<'_>,
        gamma: Slice<'_>,
        beta: Slice<'_>,
    ) -> Done {
        let (x, gamma) = (typed::<S>(OP, "x", x)?, typed::<T>(OP, "gamma", gamma)?);
        let (beta, y) = (typed::<T>(OP, "beta", beta)?, typed_mut::<T>(OP, "y", y)?);
        let stats = typed_mut::<T::Acc>(OP, "stats", stats)?;
        let NormShape { rows, cols, eps } = shape;
        let (y, stats) = (Split::new(y), Split::new(stats));
        cpu.parallel(rows, 2 * cols, |rows| {
            for row in rows {
                let at = row * cols..(row + 1) * cols;
                // SAFETY: each row is written by one thread.
                let (y, stats) =
                    unsafe { (y.range(at.clone()), stats.range(2 * row..2 * row + 2)) };
                let eps = T::Acc::from_f64(eps);
                let (mean, rstd) = layer_norm_row(cpu.isa, y, &x[at], gamma, beta, eps);
                stats.copy_from_slice(&[mean, rstd]);
            }
        });
        Ok(())
    }
    with_stream!(OP, gamma, x, T, S => run::<T, S>(cpu, shape, y, stats, x, gamma, beta))
}

pub(crate) fn rms_norm(
    cpu: &CpuOps,
    shape: NormShape,
    y: SliceMut<'_>,
    rstd: SliceMut<'_>,
    x: Slice<'_>,
    gamma: Slice<'_>,
) -> Done {
    const OP: &str = "rms_norm";
    fn run<T: Num, G: Num<Acc = T::Acc>, S: Num<Acc = T::Acc>>(
        cpu: &CpuOps,
        shape: NormShape,
        y: SliceMut<'_>,
        rstd: SliceMut<'_>,
        x: Slice<'_>,
        gamma: Slice<'_>,
    ) -> Done {
        let (x, gamma) = (typed::<S>(OP, "x", x)?, typed::<G>(OP, "gamma", gamma)?);
        let (y, rstd) = (typed_mut::<T>(OP, "y", y)?, typed_mut::<T::Acc>(OP, "rstd", rstd)?);
        let NormShape { rows, cols, eps } = shape;
        let (y, rstd) = (Split::new(y), Split::new(rstd));
        cpu.parallel(rows, 2 * cols, |rows| {
            for row in rows {
                let at = row * cols..(row + 1) * cols;
                // SAFETY: each row is written by one thread.
                let (y, rstd) = unsafe { (y.range(at.clone()), rstd.range(row..row + 1)) };
                rstd[0] = rms_norm_row(cpu.isa, y, &x[at], gamma, T::Acc::from_f64(eps));
            }
        });
        Ok(())
    }
    with_gain!(OP, y, gamma, x, T, G, S => run::<T, G, S>(cpu, shape, y, rstd, x, gamma))
}

/// The typed arguments that both backward passes share.
struct Backward<'a, T: Num, G: Num<Acc = T::Acc>, S: Num<Acc = T::Acc>> {
    shape: NormShape,
    x: &'a [S],
    /// `each` numbers a row: mean, if the norm has one, and reciprocal deviation.
    stats: &'a [T::Acc],
    each: usize,
    gamma: &'a [G],
    dy: &'a [T],
}

impl<T: Num, G: Num<Acc = T::Acc>, S: Num<Acc = T::Acc>> Backward<'_, T, G, S> {
    fn run(
        &self,
        cpu: &CpuOps,
        dx: &mut [S],
        add_to_dx: bool,
        dgamma: &mut [T::Acc],
        dbeta: Option<&mut [T::Acc]>,
    ) {
        let NormShape { rows, cols, .. } = self.shape;
        let (dx, dgamma, dbeta) = (Split::new(dx), Split::new(dgamma), dbeta.map(Split::new));
        cpu.parallel(rows, 3 * cols, |rows| {
            for row in rows {
                let at = row * cols..(row + 1) * cols;
                let (mean, rstd) = match self.stats[row * self.each..][..self.each] {
                    [mean, rstd] => (Some(mean), rstd),
                    ref rest => (None, rest[0]),
                };
                // SAFETY: each row is written by one thread.
                let dx = unsafe { dx.range(at.clone()) };
                let (x, dy) = (&self.x[at.clone()], &self.dy[at]);
                norm_backward_row(cpu.isa, dx, add_to_dx, x, mean, rstd, self.gamma, dy);
            }
        });
        if rows == 0 {
            return;
        }
        // Rows in ascending order for each column, so columns are what threads split.
        cpu.parallel(cols, 2 * rows, |cols_here| {
            // SAFETY: each column is written by one thread.
            let dgamma = unsafe { dgamma.range(cols_here.clone()) };
            // SAFETY: as above.
            let dbeta = dbeta.as_ref().map(|d| unsafe { d.range(cols_here.clone()) });
            let (x, dy) = (&self.x[cols_here.start..], &self.dy[cols_here.start..]);
            add_gain_and_bias(cpu.isa, dgamma, dbeta, x, dy, cols, self.stats, self.each);
        });
    }
}

pub(crate) fn layer_norm_backward(
    cpu: &CpuOps,
    shape: NormShape,
    dx: SliceMut<'_>,
    add_to_dx: bool,
    dgamma: SliceMut<'_>,
    dbeta: SliceMut<'_>,
    x: Slice<'_>,
    stats: Slice<'_>,
    gamma: Slice<'_>,
    dy: Slice<'_>,
) -> Done {
    const OP: &str = "layer_norm_backward";
    with_stream!(OP, gamma, x, T, S => {
        type A = <T as Num>::Acc;
        let stats = typed::<A>(OP, "stats", stats)?;
        let args = Backward {
            shape,
            x: typed::<S>(OP, "x", x)?,
            stats,
            each: 2,
            gamma: typed::<T>(OP, "gamma", gamma)?,
            dy: typed::<T>(OP, "dy", dy)?,
        };
        let dx = typed_mut::<S>(OP, "dx", dx)?;
        let dgamma = typed_mut::<A>(OP, "dgamma", dgamma)?;
        let dbeta = typed_mut::<A>(OP, "dbeta", dbeta)?;
        args.run(cpu, dx, add_to_dx, dgamma, Some(dbeta));
        Ok(())
    })
}

pub(crate) fn rms_norm_backward(
    cpu: &CpuOps,
    shape: NormShape,
    dx: SliceMut<'_>,
    add_to_dx: bool,
    dgamma: SliceMut<'_>,
    x: Slice<'_>,
    rstd: Slice<'_>,
    gamma: Slice<'_>,
    dy: Slice<'_>,
) -> Done {
    const OP: &str = "rms_norm_backward";
    with_gain!(OP, dy, gamma, x, T, G, S => {
        type A = <T as Num>::Acc;
        let rstd = typed::<A>(OP, "rstd", rstd)?;
        let args = Backward {
            shape,
            x: typed::<S>(OP, "x", x)?,
            stats: rstd,
            each: 1,
            gamma: typed::<G>(OP, "gamma", gamma)?,
            dy: typed::<T>(OP, "dy", dy)?,
        };
        let dx = typed_mut::<S>(OP, "dx", dx)?;
        let dgamma = typed_mut::<A>(OP, "dgamma", dgamma)?;
        args.run(cpu, dx, add_to_dx, dgamma, None);
        Ok(())
    })
}
