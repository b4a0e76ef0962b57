//! RMS norms of heads and of parts of rows, against those of whole rows.

use crate::support::*;
use std::ops::Range;
use trine_buffer::{Buf, Float};
use trine_kernels::{MatMut, MatRef, NormShape, Ops, RmsShape};

const EPS: f64 = 1e-5;
const ROWS: usize = 13;

/// A norm of the first columns of wider rows.
struct Case<T> {
    shape: RmsShape,
    cols: usize,
    stride: usize,
    x: Vec<T>,
    dy: Vec<T>,
    gamma: Vec<T>,
}

impl<T: Float> Case<T> {
    fn new(groups: usize, group: usize, blocks: usize) -> Self {
        let cols = groups * group;
        let stride = cols + 3;
        let shape = RmsShape { groups, blocks, elements: group, eps: EPS };
        let (x, dy) = (values(1, ROWS * stride), values(2, ROWS * stride));
        Self { shape, cols, stride, x, dy, gamma: values(3, group) }
    }

    fn view<'a>(&self, data: &'a Buf) -> MatRef<'a> {
        MatRef { data: data.slice(), rows: ROWS, cols: self.cols, stride: self.stride }
    }

    fn view_mut<'a>(&self, data: &'a mut Buf) -> MatMut<'a> {
        MatMut { data: data.slice_mut(), rows: ROWS, cols: self.cols, stride: self.stride }
    }

    /// Output, reciprocal deviations, input gradient and gain gradient.
    fn run(&self, ops: &dyn Ops) -> Vec<Buf> {
        let acc = T::DTYPE.accumulator();
        let [x, dy, gamma] = [&self.x, &self.dy, &self.gamma].map(|v| Buf::from_vec(v.clone()));
        let numbers = || Buf::zeros(acc, ROWS * self.shape.groups);
        let (mut y, mut stats) = (Buf::from_vec(self.x.clone()), numbers());
        ops.rms_squares(self.shape, stats.slice_mut(), self.view(&x)).unwrap();
        let into = self.view_mut(&mut y);
        ops.rms_scale(self.shape, into, stats.slice_mut(), self.view(&x), gamma.slice()).unwrap();
        let mut products = numbers();
        let sums = products.slice_mut();
        ops.rms_products(self.shape, sums, self.view(&x), gamma.slice(), self.view(&dy)).unwrap();
        let mut dgamma = Buf::zeros(acc, self.gamma.len());
        let into = dgamma.slice_mut();
        ops.rms_gain(self.shape, into, self.view(&x), stats.slice(), self.view(&dy)).unwrap();
        let mut d = Buf::from_vec(self.dy.clone());
        let (rstd, products, gamma) = (stats.slice(), products.slice(), gamma.slice());
        ops.rms_backward(self.shape, self.view_mut(&mut d), self.view(&x), rstd, products, gamma)
            .unwrap();
        vec![y, stats, d, dgamma]
    }

    /// The rows without gaps, each group a row of its own.
    fn contiguous(&self, data: &[T]) -> Buf {
        let rows = data.chunks(self.stride).flat_map(|row| row[..self.cols].to_vec());
        Buf::from_vec(rows.collect::<Vec<T>>())
    }

    /// The same from the norm of whole rows.
    fn by_rows(&self, ops: &dyn Ops) -> Vec<Buf> {
        let (acc, cols) = (T::DTYPE.accumulator(), self.gamma.len());
        let rows = ROWS * self.shape.groups;
        let shape = NormShape { rows, cols, eps: EPS };
        let (x, dy) = (self.contiguous(&self.x), self.contiguous(&self.dy));
        let gamma = Buf::from_vec(self.gamma.clone());
        let (mut y, mut rstd) = (Buf::zeros(T::DTYPE, x.len()), Buf::zeros(acc, rows));
        ops.rms_norm(shape, y.slice_mut(), rstd.slice_mut(), x.slice(), gamma.slice()).unwrap();
        let (mut dx, mut dgamma) = (Buf::zeros(T::DTYPE, x.len()), Buf::zeros(acc, cols));
        let (into, gain) = (dx.slice_mut(), dgamma.slice_mut());
        let (x, rstd_in, gamma, dy) = (x.slice(), rstd.slice(), gamma.slice(), dy.slice());
        ops.rms_norm_backward(shape, into, false, gain, x, rstd_in, gamma, dy).unwrap();
        vec![y, rstd, dx, dgamma]
    }

    /// The columns that are normalised, without the gaps.
    fn dense(&self, values: &[f64]) -> Vec<f64> {
        values.chunks(self.stride).flat_map(|row| row[..self.cols].to_vec()).collect()
    }
}

/// One block: the bits of the norm of whole rows, but for the gain's gradient, which is summed by
/// groups. What lies between the rows stays.
fn groups_are_rows_of_their_own<T: Float>() {
    let mut cases = 0;
    for (groups, group) in [(1, 1), (1, 150), (3, 16), (5, 67), (8, 64)] {
        let case = Case::<T>::new(groups, group, 1);
        let results = everywhere(None, |ops| case.run(ops));
        let expected = case.by_rows(&one());
        let [y, rstd, dx, dgamma] = &results[0][..] else { panic!("four results") };
        same_bits(&case.dense(y), &expected[0].to_f64_vec().unwrap(), "y");
        same_bits(rstd, &expected[1].to_f64_vec().unwrap(), "rstd");
        same_bits(&case.dense(dx), &expected[2].to_f64_vec().unwrap(), "dx");
        let tolerance = 32.0 * T::DTYPE.accumulator().epsilon();
        close(dgamma, &expected[3].to_f64_vec().unwrap(), tolerance, "dgamma");
        for row in 0..ROWS {
            let gap = row * case.stride + case.cols..(row + 1) * case.stride;
            let untouched = |v: &[T]| v[gap.clone()].iter().map(|x| x.to_f64()).collect::<Vec<_>>();
            same_bits(&y[gap.clone()], &untouched(&case.x), "between rows");
            same_bits(&dx[gap.clone()], &untouched(&case.dy), "between rows");
        }
        cases += 1;
    }
    assert_eq!(cases, 5);
}

/// Ranks with their parts of the columns, or of the groups, have the bits of one with all: 8 blocks
/// in all, ranks adding in a tree.
fn parts_have_the_bits_of_the_whole<T: Float>() {
    let (group, acc) = (8 * 20, T::DTYPE.accumulator());
    let ops = one();
    let whole = Case::<T>::new(1, group, 8);
    let (x, dy) = (Buf::from_vec(whole.x.clone()), Buf::from_vec(whole.dy.clone()));
    let gamma = Buf::from_vec(whole.gamma.clone());
    let sums = |shape: RmsShape, cols: Range<usize>| {
        let (mut squares, mut products) = (Buf::zeros(acc, ROWS), Buf::zeros(acc, ROWS));
        let of = |buf| whole.view(buf).columns(cols.clone()).unwrap();
        ops.rms_squares(shape, squares.slice_mut(), of(&x)).unwrap();
        let gamma = gamma.slice().range(cols.clone()).unwrap();
        ops.rms_products(shape, products.slice_mut(), of(&x), gamma, of(&dy)).unwrap();
        [squares, products]
    };
    let expected = sums(whole.shape, 0..group);
    let mut cases = 0;
    for ranks in [2, 4, 8] {
        let shape = RmsShape { blocks: 8 / ranks, ..whole.shape };
        let width = group / ranks;
        let parts = (0..ranks).map(|rank| sums(shape, rank * width..(rank + 1) * width));
        let [squares, products]: [Vec<Buf>; 2] = {
            let (squares, products) = parts.map(|[s, p]| (s, p)).unzip();
            [squares, products]
        };
        for (parts, expected) in [squares, products].into_iter().zip(&expected) {
            let total = tree(&ops, parts);
            same_bits(
                &total.to_f64_vec().unwrap(),
                &expected.to_f64_vec().unwrap(),
                &format!("{ranks} ranks"),
            );
        }
        cases += 1;
    }
    // A gain that 12 heads share, by ranks of 6 and of 3.
    let heads = Case::<T>::new(12, 70, 1);
    let stats = &heads.run(&ops)[1];
    let gain = |groups: Range<usize>| {
        let shape = RmsShape { groups: groups.len(), ..heads.shape };
        let mut dgamma = Buf::zeros(acc, 70);
        let of = |values: &[T]| Buf::from_vec(values.to_vec());
        let (x, dy) = (of(&heads.x), of(&heads.dy));
        let cols = groups.start * 70..groups.end * 70;
        let own = |buf| heads.view(buf).columns(cols.clone()).unwrap();
        let rstd = stats.to_f64_vec().unwrap();
        let rstd: Vec<f64> = rstd.chunks(12).flat_map(|row| row[groups.clone()].to_vec()).collect();
        let mut narrow = Buf::zeros(acc, rstd.len());
        ops.cast(narrow.slice_mut(), Buf::from_vec(rstd).slice()).unwrap();
        ops.rms_gain(shape, dgamma.slice_mut(), own(&x), narrow.slice(), own(&dy)).unwrap();
        dgamma
    };
    let expected = gain(0..12).to_f64_vec().unwrap();
    assert!(expected.iter().all(|g| *g != 0.0));
    for ranks in [2, 4] {
        let each = 12 / ranks;
        let parts = (0..ranks).map(|rank| gain(rank * each..(rank + 1) * each)).collect();
        same_bits(&tree(&ops, parts).to_f64_vec().unwrap(), &expected, "a gain that heads share");
        cases += 1;
    }
    assert_eq!(cases, 5);
}

/// As collectives add ranks.
fn tree(ops: &dyn Ops, parts: Vec<Buf>) -> Buf {
    let mut level = parts;
    while level.len() > 1 {
        let add = |pair: &[Buf]| {
            let mut sum = Buf::zeros(pair[0].dtype(), pair[0].len());
            ops.add(sum.slice_mut(), pair[0].slice(), pair[1].slice()).unwrap();
            sum
        };
        level = level.chunks(2).map(add).collect();
    }
    level.remove(0)
}

mod all {
    use crate::support::for_types;
    for_types! {
        groups_are_rows_of_their_own;
        parts_have_the_bits_of_the_whole;
    }
}

#[test]
fn the_gradient_of_a_group_that_ranks_share_is_that_of_differences() {
    // Two parts of a group of 24 columns: each scales with the sums of both.
    let (width, group) = (12, 24);
    let ops = one();
    let (dy, gamma) = (values::<f64>(2, ROWS * group), values::<f64>(3, group));
    let (dy, gamma) = (Buf::from_vec(dy), Buf::from_vec(gamma));
    let shape = RmsShape { groups: 1, blocks: 1, elements: group, eps: EPS };
    let parts = [0..width, width..group];
    fn halves(buf: &Buf) -> [MatRef<'_>; 2] {
        let all = MatRef::new(buf.slice(), ROWS, 24);
        [all.columns(0..12).unwrap(), all.columns(12..24).unwrap()]
    }
    let total = |sum: &dyn Fn(usize, &mut Buf)| {
        let parts = (0..2).map(|part| {
            let mut sums = Buf::from_vec(vec![0.0f64; ROWS]);
            sum(part, &mut sums);
            sums
        });
        tree(&ops, parts.collect())
    };
    let gains = parts.clone().map(|cols| gamma.slice().range(cols).unwrap());
    let forward = |x: &Buf| {
        let squares = total(&|part, sums| {
            ops.rms_squares(shape, sums.slice_mut(), halves(x)[part]).unwrap();
        });
        let mut y = Buf::from_vec(vec![0.0f64; ROWS * group]);
        let mut stats = vec![];
        for part in 0..2 {
            let mut rstd = Buf::from_vec(squares.to_f64_vec().unwrap());
            let into = MatMut::new(y.slice_mut(), ROWS, group).columns(parts[part].clone());
            let (into, x) = (into.unwrap(), halves(x)[part]);
            ops.rms_scale(shape, into, rstd.slice_mut(), x, gains[part]).unwrap();
            stats.push(rstd);
        }
        same_bits(&stats[0].to_f64_vec().unwrap(), &stats[1].to_f64_vec().unwrap(), "rstd");
        (y.to_f64_vec().unwrap(), stats.remove(0))
    };
    let x = values::<f64>(1, ROWS * group);
    let of_x = Buf::from_vec(x.clone());
    let (_, rstd) = forward(&of_x);
    let products = total(&|part, sums| {
        let (x, dy) = (halves(&of_x)[part], halves(&dy)[part]);
        ops.rms_products(shape, sums.slice_mut(), x, gains[part], dy).unwrap();
    });
    let mut d = Buf::from_vec(dy.to_f64_vec().unwrap());
    for part in 0..2 {
        let d = MatMut::new(d.slice_mut(), ROWS, group).columns(parts[part].clone()).unwrap();
        let (x, rstd, products) = (halves(&of_x)[part], rstd.slice(), products.slice());
        ops.rms_backward(shape, d, x, rstd, products, gains[part]).unwrap();
    }
    check_gradient("x", &x, &d.to_f64_vec().unwrap(), 1, |x| {
        weigh(&forward(&Buf::from_vec(x.to_vec())).0, &dy.to_f64_vec().unwrap())
    });
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let (x, mut sums) = (Buf::from_vec(vec![1.0f32; 24]), Buf::from_vec(vec![0.0f32; 6]));
    let view = MatRef::new(x.slice(), 2, 12);
    let mut squares = |groups, blocks| {
        let shape = RmsShape { groups, blocks, elements: 12, eps: EPS };
        one().rms_squares(shape, sums.slice_mut(), view).map_err(|e| e.to_string())
    };
    squares(3, 2).unwrap();
    let split = "rms_squares: 12 columns do not split into";
    assert_eq!(squares(3, 8).unwrap_err(), format!("{split} 3 groups of 8 blocks (1 to 64)"));
    assert_eq!(squares(0, 1).unwrap_err(), format!("{split} 0 groups of 1 blocks (1 to 64)"));
    let text = squares(2, 1).unwrap_err();
    assert!(text.starts_with("rms_squares: `sums` has 6 elements"), "{text}");
    let shape = RmsShape { groups: 3, blocks: 1, elements: 4, eps: EPS };
    let (gamma, mut y) = (Buf::from_vec(vec![1.0f32; 5]), Buf::from_vec(vec![0.0f32; 24]));
    let into = MatMut::new(y.slice_mut(), 2, 12);
    let error = one().rms_scale(shape, into, sums.slice_mut(), view, gamma.slice()).unwrap_err();
    assert!(error.to_string().starts_with("rms_scale: `gamma` has 5 elements"), "{error}");
}
