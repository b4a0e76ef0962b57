//! Layer norm and RMS norm.

use crate::support::*;
use trine_buffer::{Buf, DType, Float};
use trine_kernels::{NormShape, Ops};

const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 5), (7, 16), (5, 67), (131, 257), (2, 1024)];

/// A norm's arguments; `x` may be of the accumulator type, as a residual stream is.
struct Case {
    shape: NormShape,
    x: Buf,
    gamma: Buf,
    beta: Buf,
    dy: Buf,
}

impl Case {
    fn new<T: Float>(rows: usize, cols: usize) -> Self {
        Self {
            shape: NormShape { rows, cols, eps: 1e-5 },
            x: buf::<T>(1, rows * cols),
            gamma: buf::<T>(2, cols),
            beta: buf::<T>(3, cols),
            dy: buf::<T>(4, rows * cols),
        }
    }

    /// The same with an `x` of type `stream`, which it fills.
    fn on_stream(self, stream: DType) -> Self {
        let x = buf::<f64>(1, self.x.len());
        Self { x: cast(&x, stream), ..self }
    }

    fn wide(&self) -> Self {
        let wide = |b: &Buf| Buf::from_vec(b.to_f64_vec().unwrap());
        let (x, gamma, beta) = (wide(&self.x), wide(&self.gamma), wide(&self.beta));
        Self { shape: self.shape, x, gamma, beta, dy: wide(&self.dy) }
    }

    fn layer(&self, ops: &dyn Ops, x: &Buf, gamma: &Buf, beta: &Buf) -> [Buf; 2] {
        let mut y = Buf::zeros(gamma.dtype(), x.len());
        let mut stats = Buf::zeros(x.dtype().accumulator(), 2 * self.shape.rows);
        let (x, gamma, beta) = (x.slice(), gamma.slice(), beta.slice());
        ops.layer_norm(self.shape, y.slice_mut(), stats.slice_mut(), x, gamma, beta).unwrap();
        [y, stats]
    }

    fn rms(&self, ops: &dyn Ops, x: &Buf, gamma: &Buf) -> [Buf; 2] {
        let mut y = Buf::zeros(gamma.dtype(), x.len());
        let mut rstd = Buf::zeros(x.dtype().accumulator(), self.shape.rows);
        let (x, gamma) = (x.slice(), gamma.slice());
        ops.rms_norm(self.shape, y.slice_mut(), rstd.slice_mut(), x, gamma).unwrap();
        [y, rstd]
    }

    /// dx (added to `dy` if asked), dgamma and dbeta (added to ones).
    fn layer_backward<T: Float>(&self, ops: &dyn Ops, add: bool) -> [Buf; 3] {
        let [_, stats] = self.layer(ops, &self.x, &self.gamma, &self.beta);
        let mut dx = cast(&self.dy, self.x.dtype());
        let (mut dgamma, mut dbeta) = (self.ones::<T>(), self.ones::<T>());
        ops.layer_norm_backward(
            self.shape,
            dx.slice_mut(),
            add,
            dgamma.slice_mut(),
            dbeta.slice_mut(),
            self.x.slice(),
            stats.slice(),
            self.gamma.slice(),
            self.dy.slice(),
        )
        .unwrap();
        [dx, dgamma, dbeta]
    }

    fn rms_backward<T: Float>(&self, ops: &dyn Ops, add: bool) -> [Buf; 2] {
        let [_, rstd] = self.rms(ops, &self.x, &self.gamma);
        let mut dx = cast(&self.dy, self.x.dtype());
        let mut dgamma = self.ones::<T>();
        ops.rms_norm_backward(
            self.shape,
            dx.slice_mut(),
            add,
            dgamma.slice_mut(),
            self.x.slice(),
            rstd.slice(),
            self.gamma.slice(),
            self.dy.slice(),
        )
        .unwrap();
        [dx, dgamma]
    }

    fn ones<T: Float>(&self) -> Buf {
        cast(&Buf::from_vec(vec![1.0f64; self.shape.cols]), T::DTYPE.accumulator())
    }
}

fn cast(x: &Buf, dtype: DType) -> Buf {
    let mut y = Buf::zeros(dtype, x.len());
    one().cast(y.slice_mut(), x.slice()).unwrap();
    y
}

fn forward_reference(case: &Case, centred: bool) -> Vec<f64> {
    let NormShape { rows, cols, eps } = case.shape;
    let (x, gamma, beta) = (
        case.x.to_f64_vec().unwrap(),
        case.gamma.to_f64_vec().unwrap(),
        case.beta.to_f64_vec().unwrap(),
    );
    let mut y = Vec::new();
    for row in x.chunks_exact(cols) {
        let mean = if centred { row.iter().sum::<f64>() / cols as f64 } else { 0.0 };
        let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / cols as f64;
        let rstd = 1.0 / (square + eps).sqrt();
        for (c, x) in row.iter().enumerate() {
            y.push((x - mean) * rstd * gamma[c] + if centred { beta[c] } else { 0.0 });
        }
    }
    assert_eq!(y.len(), rows * cols);
    y
}

fn forward_and_backward<T: Float>() {
    let mut cases = 0;
    for (rows, cols) in SHAPES {
        for stream in [T::DTYPE, T::DTYPE.accumulator()] {
            against_f64::<T>(&Case::new::<T>(rows, cols).on_stream(stream));
            cases += 1;
        }
    }
    assert_eq!(cases, 2 * SHAPES.len());
}

fn against_f64<T: Float>(case: &Case) {
    let wide = case.wide();
    let results = everywhere(None, |ops| {
        let mut all: Vec<Buf> = Vec::new();
        all.extend(case.layer(ops, &case.x, &case.gamma, &case.beta));
        all.extend(case.rms(ops, &case.x, &case.gamma));
        for add in [false, true] {
            all.extend(case.layer_backward::<T>(ops, add));
            all.extend(case.rms_backward::<T>(ops, add));
        }
        all
    });
    assert_eq!(results.len(), 1);
    let result = &results[0];
    let (eps, stream) = (T::DTYPE.epsilon(), case.x.dtype().epsilon());
    close(&result[0], &forward_reference(&wide, true), 8.0 * eps, "layer norm");
    close(&result[2], &forward_reference(&wide, false), 8.0 * eps, "rms norm");
    let ops = one();
    let acc = T::DTYPE.accumulator().epsilon() * (case.shape.rows as f64).sqrt();
    for (i, add) in [(4, false), (9, true)] {
        let [dx, dgamma, dbeta] = wide.layer_backward::<f64>(&ops, add);
        // A row of one or few equal elements has a huge rstd; scale by it.
        let spread = 1.0 + result[1].iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        close(&result[i], &dx.to_f64_vec().unwrap(), 8.0 * stream * spread, "layer dx");
        close(&result[i + 1], &dgamma.to_f64_vec().unwrap(), 16.0 * acc * spread, "layer dgamma");
        close(&result[i + 2], &dbeta.to_f64_vec().unwrap(), 16.0 * acc, "layer dbeta");
        let [dx, dgamma] = wide.rms_backward::<f64>(&ops, add);
        close(&result[i + 3], &dx.to_f64_vec().unwrap(), 8.0 * stream * spread, "rms dx");
        close(&result[i + 4], &dgamma.to_f64_vec().unwrap(), 16.0 * acc * spread, "rms dgamma");
    }
}

/// A row alone, and any number of rows, have the bits they have among others.
fn rows_are_independent<T: Float>() {
    let case = Case::new::<T>(9, 83);
    let ops = one();
    let whole = case.layer(&ops, &case.x, &case.gamma, &case.beta)[0].to_f64_vec().unwrap();
    let [dx, ..] = case.layer_backward::<T>(&ops, true);
    let dx = dx.to_f64_vec().unwrap();
    for row in 0..9 {
        let part = |b: &Buf| Buf::from_vec(b.typed::<T>().unwrap()[row * 83..][..83].to_vec());
        let mut alone = Case::new::<T>(1, 83);
        (alone.x, alone.dy) = (part(&case.x), part(&case.dy));
        let y = alone.layer(&ops, &alone.x, &case.gamma, &case.beta)[0].to_f64_vec().unwrap();
        same_bits(&y, &whole[row * 83..][..83], "y");
        let [dx_alone, ..] = alone.layer_backward::<T>(&ops, true);
        same_bits(&dx_alone.to_f64_vec().unwrap(), &dx[row * 83..][..83], "dx");
    }
}

mod all {
    use crate::support::for_types;
    for_types! {
        forward_and_backward;
        rows_are_independent;
    }
}

#[test]
fn gradients_are_those_of_differences() {
    let case = Case::new::<f64>(3, 21);
    let ops = one();
    let dy = case.dy.to_f64_vec().unwrap();
    let minus_one = |b: &Buf| b.to_f64_vec().unwrap().iter().map(|g| g - 1.0).collect::<Vec<_>>();
    let of = |x: &[f64]| Buf::from_vec(x.to_vec());

    let [dx, dgamma, dbeta] = case.layer_backward::<f64>(&ops, false);
    let loss = |x: &Buf, gamma: &Buf, beta: &Buf| {
        weigh(&case.layer(&ops, x, gamma, beta)[0].to_f64_vec().unwrap(), &dy)
    };
    let (x, gamma, beta) = (
        case.x.to_f64_vec().unwrap(),
        case.gamma.to_f64_vec().unwrap(),
        case.beta.to_f64_vec().unwrap(),
    );
    check_gradient("x", &x, &dx.to_f64_vec().unwrap(), 1, |x| {
        loss(&of(x), &case.gamma, &case.beta)
    });
    check_gradient("gamma", &gamma, &minus_one(&dgamma), 1, |g| loss(&case.x, &of(g), &case.beta));
    check_gradient("beta", &beta, &minus_one(&dbeta), 1, |b| loss(&case.x, &case.gamma, &of(b)));

    let [dx, dgamma] = case.rms_backward::<f64>(&ops, false);
    let loss =
        |x: &Buf, gamma: &Buf| weigh(&case.rms(&ops, x, gamma)[0].to_f64_vec().unwrap(), &dy);
    check_gradient("rms x", &x, &dx.to_f64_vec().unwrap(), 1, |x| loss(&of(x), &case.gamma));
    check_gradient("rms gamma", &gamma, &minus_one(&dgamma), 1, |g| loss(&case.x, &of(g)));
}

#[test]
fn lengths_that_do_not_fit_are_errors() {
    let case = Case::new::<f32>(3, 4);
    let mut y = Buf::zeros(DType::F32, 12);
    let mut stats = Buf::zeros(DType::F32, 3);
    let (x, gamma, beta) = (case.x.slice(), case.gamma.slice(), case.beta.slice());
    let error = one().layer_norm(case.shape, y.slice_mut(), stats.slice_mut(), x, gamma, beta);
    let text = error.unwrap_err().to_string();
    assert_eq!(text, "layer_norm: `stats` has 3 elements, [3, 4] needs 6");
}
