//! RMS norms of heads, and of rows of which each rank holds a part: sums first, so that ranks can add them.

use crate::check::{Mat, MatSplit, typed, typed_mut, with_num};
use crate::checks::group_cols;
use crate::isa::vectorised;
use crate::num::{LANES, Num, Real, SUMMANDS_MAX, sum_lanes, sum_row, sum_tree};
use crate::scratch::Split;
use crate::{CpuOps, KernelError, MatMut, MatRef, RmsShape};
use std::ops::Range;
use trine_buffer::{Float, Slice, SliceMut};

type Done = Result<(), KernelError>;

/// Columns whose gradients of the gain are summed together over the rows.
const COLUMNS: usize = 64;

vectorised! {
    fn squares<T: Num>(x: &[T]) -> T::Acc {
        sum_row(x, |x| x * x)
    }

    /// Σ dy·gamma·x, in the lane order of [`sum_row`].
    fn products<T: Num>(x: &[T], gamma: &[T], dy: &[T]) -> T::Acc {
        let mut dot = [T::Acc::ZERO; LANES];
        let mut add = |x: &[T], gamma: &[T], dy: &[T]| {
            for (((dot, x), gamma), dy) in dot.iter_mut().zip(x).zip(gamma).zip(dy) {
                *dot += dy.widen() * gamma.widen() * x.widen();
            }
        };
        let whole = x.len() / LANES * LANES;
        let pairs = x.chunks_exact(LANES).zip(gamma.chunks_exact(LANES));
        for ((x, gamma), dy) in pairs.zip(dy.chunks_exact(LANES)) {
            add(x, gamma, dy);
        }
        add(&x[whole..], &gamma[whole..], &dy[whole..]);
        sum_lanes(dot)
    }

    fn scale_row<T: Num>(y: &mut [T], x: &[T], rstd: T::Acc, gamma: &[T]) {
        for ((y, x), gamma) in y.iter_mut().zip(x).zip(gamma) {
            *y = T::narrow(x.widen() * rstd * gamma.widen());
        }
    }

    // With g = dy·gamma: dx = rstd·(g − x·slope), slope = rstd²·mean(g·x).
    fn backward_row<T: Num>(d: &mut [T], x: &[T], rstd: T::Acc, slope: T::Acc, gamma: &[T]) {
        for ((d, x), gamma) in d.iter_mut().zip(x).zip(gamma) {
            *d = T::narrow((d.widen() * gamma.widen() - x.widen() * slope) * rstd);
        }
    }

    /// Adds `dy · x · rstd` over the rows, for the columns from `first` on; `rstd` has the group's
    /// numbers, one of `groups` in each row.
    fn add_gain<T: Num>(
        sums: &mut [T::Acc],
        x: Mat<'_, T>,
        dy: Mat<'_, T>,
        first: usize,
        rstd: &[T::Acc],
        groups: usize,
    ) {
        for (row, rstd) in rstd.iter().step_by(groups).enumerate() {
            let (x, dy) = (&x.row(row)[first..], &dy.row(row)[first..]);
            for ((sum, x), dy) in sums.iter_mut().zip(x).zip(dy) {
                *sum += dy.widen() * (x.widen() * *rstd);
            }
        }
    }
}

/// The checked form of a shape: columns of a group and of a block.
#[derive(Debug, Clone, Copy)]
struct Widths {
    groups: usize,
    group: usize,
    blocks: usize,
}

impl Widths {
    fn new(op: &'static str, shape: RmsShape, cols: usize) -> Result<Self, KernelError> {
        let RmsShape { groups, blocks, .. } = shape;
        Ok(Self { groups, group: group_cols(op, &shape, cols)?, blocks })
    }

    /// The columns of a group.
    fn of(self, group: usize) -> Range<usize> {
        group * self.group..(group + 1) * self.group
    }

    /// The sum of what `f` gives for the columns of each block of a group: a tree over the blocks.
    fn sum<A: Real>(self, group: usize, f: impl Fn(Range<usize>) -> A) -> A {
        let (start, width) = (self.of(group).start, self.group / self.blocks);
        let mut sums = [A::ZERO; SUMMANDS_MAX];
        for (block, sum) in sums[..self.blocks].iter_mut().enumerate() {
            let first = start + block * width;
            *sum = f(first..first + width);
        }
        sum_tree(&sums[..self.blocks])
    }
}

pub(crate) fn rms_squares(
    cpu: &CpuOps,
    shape: RmsShape,
    sums: SliceMut<'_>,
    x: MatRef<'_>,
) -> Done {
    const OP: &str = "rms_squares";
    fn run<T: Num>(cpu: &CpuOps, shape: RmsShape, sums: SliceMut<'_>, x: MatRef<'_>) -> Done {
        let x = Mat::<T>::new(OP, "x", x)?;
        let sums = typed_mut::<T::Acc>(OP, "sums", sums)?;
        let widths = Widths::new(OP, shape, x.cols)?;
        let sums = Split::new(sums);
        cpu.parallel(x.rows, x.cols, |rows| {
            for row in rows {
                // SAFETY: each row is written by one thread.
                let sums = unsafe { sums.range(row * widths.groups..(row + 1) * widths.groups) };
                for (group, sum) in sums.iter_mut().enumerate() {
                    *sum = widths.sum(group, |cols| squares(cpu.isa, &x.row(row)[cols]));
                }
            }
        });
        Ok(())
    }
    with_num!(OP, "x", x.data.dtype(), T => run::<T>(cpu, shape, sums, x))
}

pub(crate) fn rms_scale(
    cpu: &CpuOps,
    shape: RmsShape,
    y: MatMut<'_>,
    stats: SliceMut<'_>,
    x: MatRef<'_>,
    gamma: Slice<'_>,
) -> Done {
    const OP: &str = "rms_scale";
    fn run<T: Num>(
        cpu: &CpuOps,
        shape: RmsShape,
        y: MatMut<'_>,
        stats: SliceMut<'_>,
        x: MatRef<'_>,
        gamma: Slice<'_>,
    ) -> Done {
        let (x, y) = (Mat::<T>::new(OP, "x", x)?, MatSplit::<T>::new(OP, "y", y)?);
        let stats = typed_mut::<T::Acc>(OP, "stats", stats)?;
        let gamma = typed::<T>(OP, "gamma", gamma)?;
        let widths = Widths::new(OP, shape, x.cols)?;
        let (n, eps) = (T::Acc::from_f64(shape.elements as f64), T::Acc::from_f64(shape.eps));
        let stats = Split::new(stats);
        cpu.parallel(x.rows, 2 * x.cols, |rows| {
            for row in rows {
                // SAFETY: each row is written by one thread.
                let stats = unsafe { stats.range(row * widths.groups..(row + 1) * widths.groups) };
                for (group, stat) in stats.iter_mut().enumerate() {
                    *stat = T::Acc::ONE / (*stat / n + eps).sqrt();
                    let cols = widths.of(group);
                    // SAFETY: as above.
                    let y = unsafe { y.part(row, cols.clone()) };
                    scale_row(cpu.isa, y, &x.row(row)[cols], *stat, gamma);
                }
            }
        });
        Ok(())
    }
    with_num!(OP, "x", x.data.dtype(), T => run::<T>(cpu, shape, y, stats, x, gamma))
}

pub(crate) fn rms_products(
    cpu: &CpuOps,
    shape: RmsShape,
    sums: SliceMut<'_>,
    x: MatRef<'_>,
    gamma: Slice<'_>,
    dy: MatRef<'_>,
) -> Done {
    const OP: &str = "rms_products";
    fn run<T: Num>(
        cpu: &CpuOps,
        shape: RmsShape,
        sums: SliceMut<'_>,
        x: MatRef<'_>,
        gamma: Slice<'_>,
        dy: MatRef<'_>,
    ) -> Done {
        let (x, dy) = (Mat::<T>::new(OP, "x", x)?, Mat::<T>::new(OP, "dy", dy)?);
        let sums = typed_mut::<T::Acc>(OP, "sums", sums)?;
        let gamma = typed::<T>(OP, "gamma", gamma)?;
        let widths = Widths::new(OP, shape, x.cols)?;
        let sums = Split::new(sums);
        cpu.parallel(x.rows, 2 * x.cols, |rows| {
            for row in rows {
                // SAFETY: each row is written by one thread.
                let sums = unsafe { sums.range(row * widths.groups..(row + 1) * widths.groups) };
                let (x, dy) = (x.row(row), dy.row(row));
                for (group, sum) in sums.iter_mut().enumerate() {
                    let start = widths.of(group).start;
                    *sum = widths.sum(group, |cols| {
                        let gamma = &gamma[cols.start - start..cols.end - start];
                        products(cpu.isa, &x[cols.clone()], gamma, &dy[cols])
                    });
                }
            }
        });
        Ok(())
    }
    with_num!(OP, "x", x.data.dtype(), T => run::<T>(cpu, shape, sums, x, gamma, dy))
}

pub(crate) fn rms_backward(
    cpu: &CpuOps,
    shape: RmsShape,
    d: MatMut<'_>,
    x: MatRef<'_>,
    rstd: Slice<'_>,
    products: Slice<'_>,
    gamma: Slice<'_>,
) -> Done {
    const OP: &str = "rms_backward";
    fn run<T: Num>(
        cpu: &CpuOps,
        shape: RmsShape,
        d: MatMut<'_>,
        x: MatRef<'_>,
        rstd: Slice<'_>,
        products: Slice<'_>,
        gamma: Slice<'_>,
    ) -> Done {
        let (x, d) = (Mat::<T>::new(OP, "x", x)?, MatSplit::<T>::new(OP, "d", d)?);
        let rstd = typed::<T::Acc>(OP, "rstd", rstd)?;
        let products = typed::<T::Acc>(OP, "products", products)?;
        let gamma = typed::<T>(OP, "gamma", gamma)?;
        let widths = Widths::new(OP, shape, x.cols)?;
        let n = T::Acc::from_f64(shape.elements as f64);
        cpu.parallel(x.rows, 2 * x.cols, |rows| {
            for row in rows {
                for group in 0..widths.groups {
                    let (at, cols) = (row * widths.groups + group, widths.of(group));
                    let slope = products[at] / n * rstd[at] * rstd[at];
                    // SAFETY: each row is written by one thread.
                    let d = unsafe { d.part(row, cols.clone()) };
                    backward_row(cpu.isa, d, &x.row(row)[cols], rstd[at], slope, gamma);
                }
            }
        });
        Ok(())
    }
    with_num!(OP, "x", x.data.dtype(), T => run::<T>(cpu, shape, d, x, rstd, products, gamma))
}

/// What the gradient of a gain is summed from.
struct Gain<'a, T: Num> {
    x: Mat<'a, T>,
    dy: Mat<'a, T>,
    rstd: &'a [T::Acc],
    widths: Widths,
}

impl<T: Num> Gain<'_, T> {
    /// The sums of some columns of each of these groups, added in a tree that halves the groups.
    fn tree(&self, cpu: &CpuOps, groups: Range<usize>, cols: &Range<usize>) -> [T::Acc; COLUMNS] {
        let mut sums = [T::Acc::ZERO; COLUMNS];
        if groups.len() == 1 {
            let first = self.widths.of(groups.start).start + cols.start;
            let rstd = self.rstd.get(groups.start..).unwrap_or_default();
            let into = &mut sums[..cols.len()];
            add_gain(cpu.isa, into, self.x, self.dy, first, rstd, self.widths.groups);
            return sums;
        }
        let middle = groups.start + groups.len() / 2;
        sums = self.tree(cpu, groups.start..middle, cols);
        for (sum, right) in sums.iter_mut().zip(self.tree(cpu, middle..groups.end, cols)) {
            *sum += right;
        }
        sums
    }
}

pub(crate) fn rms_gain(
    cpu: &CpuOps,
    shape: RmsShape,
    dgamma: SliceMut<'_>,
    x: MatRef<'_>,
    rstd: Slice<'_>,
    dy: MatRef<'_>,
) -> Done {
    const OP: &str = "rms_gain";
    fn run<T: Num>(
        cpu: &CpuOps,
        shape: RmsShape,
        dgamma: SliceMut<'_>,
        x: MatRef<'_>,
        rstd: Slice<'_>,
        dy: MatRef<'_>,
    ) -> Done {
        let (x, dy) = (Mat::<T>::new(OP, "x", x)?, Mat::<T>::new(OP, "dy", dy)?);
        let rstd = typed::<T::Acc>(OP, "rstd", rstd)?;
        let dgamma = typed_mut::<T::Acc>(OP, "dgamma", dgamma)?;
        let widths = Widths::new(OP, shape, x.cols)?;
        let (gain, dgamma) = (Gain { x, dy, rstd, widths }, Split::new(dgamma));
        // Rows in ascending order for each column, so columns are what threads split.
        cpu.parallel(widths.group, 2 * x.rows * widths.groups, |here| {
            for start in here.clone().step_by(COLUMNS) {
                let cols = start..here.end.min(start + COLUMNS);
                let sums = gain.tree(cpu, 0..widths.groups, &cols);
                // SAFETY: each column is written by one thread.
                let dgamma = unsafe { dgamma.range(cols) };
                dgamma.iter_mut().zip(sums).for_each(|(d, sum)| *d += sum);
            }
        });
        Ok(())
    }
    with_num!(OP, "x", x.data.dtype(), T => run::<T>(cpu, shape, dgamma, x, rstd, dy))
}
