//! Matrix products.

use crate::support::*;
use half::bf16;
use trine_buffer::{Buf, DType, Float};
use trine_kernels::{CpuOps, Isa, KernelError, MatMut, MatRef, Ops, Product, Team};

const FORMS: [Product; 3] = [Product::Nt, Product::Nn, Product::Tn];

/// A matrix inside wider rows.
struct Strided {
    data: Buf,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Strided {
    fn new<T: Float>(seed: u64, rows: usize, cols: usize, gap: usize) -> Self {
        let stride = cols + gap;
        Self { data: buf::<T>(seed, rows * stride), rows, cols, stride }
    }

    fn view(&self) -> MatRef<'_> {
        let Self { data, rows, cols, stride } = self;
        MatRef { data: data.slice(), rows: *rows, cols: *cols, stride: *stride }
    }

    fn at(&self, wide: &[f64], row: usize, col: usize) -> f64 {
        wide[row * self.stride + col]
    }
}

/// The factors of a product in the layout of its form.
fn factors<T: Float>(
    form: Product,
    m: usize,
    n: usize,
    k: usize,
    gap: usize,
) -> (Strided, Strided) {
    let (a, b) = match form {
        Product::Nt => ((m, k), (n, k)),
        Product::Nn => ((m, k), (k, n)),
        Product::Tn => ((k, m), (k, n)),
    };
    (Strided::new::<T>(1, a.0, a.1, gap), Strided::new::<T>(2, b.0, b.1, gap))
}

fn reference(form: Product, a: &Strided, b: &Strided, m: usize, n: usize, k: usize) -> Vec<f64> {
    let (wide_a, wide_b) = (a.data.to_f64_vec().unwrap(), b.data.to_f64_vec().unwrap());
    let at = |i: usize, j: usize, p: usize| match form {
        Product::Nt => a.at(&wide_a, i, p) * b.at(&wide_b, j, p),
        Product::Nn => a.at(&wide_a, i, p) * b.at(&wide_b, p, j),
        Product::Tn => a.at(&wide_a, p, i) * b.at(&wide_b, p, j),
    };
    (0..m * n).map(|ij| (0..k).map(|p| at(ij / n, ij % n, p)).sum()).collect()
}

fn run<T: Float>(form: Product, m: usize, n: usize, k: usize, gap: usize, c_dtype: DType) {
    let (a, b) = factors::<T>(form, m, n, k, gap);
    let expected = reference(form, &a, &b, m, n, k);
    for accumulate in [false, true] {
        let stride = n + gap;
        let old = values::<f64>(3, m * stride);
        let results = everywhere(Some(T::DTYPE), |ops| {
            let mut c = Buf::zeros(c_dtype, m * stride);
            ops.cast(c.slice_mut(), Buf::from_vec(old.clone()).slice()).unwrap();
            let c_view = MatMut { data: c.slice_mut(), rows: m, cols: n, stride };
            ops.matmul(form, accumulate, a.view(), b.view(), c_view).unwrap();
            vec![c]
        });
        // The longer a sum, the more often it is rounded, and the larger it is then.
        let roundings = (4.0 * (k as f64).sqrt()).max(k as f64 / 8.0);
        let rounding = c_dtype.epsilon() + T::DTYPE.accumulator().epsilon() * roundings;
        for result in results {
            for i in 0..m {
                let row = &result[0][i * stride..][..stride];
                let mut want = expected[i * n..(i + 1) * n].to_vec();
                for (want, old) in want.iter_mut().zip(&old[i * stride..]) {
                    *want += if accumulate { *old } else { 0.0 };
                }
                let tolerance = 2.0 * rounding;
                close(&row[..n], &want, tolerance, &format!("{form:?} {m} {n} {k} row {i}"));
                // What lies between the rows is left alone.
                let mut gaps = Buf::zeros(c_dtype, gap);
                let old = Buf::from_vec(old[i * stride + n..][..gap].to_vec());
                one().cast(gaps.slice_mut(), old.slice()).unwrap();
                same_bits(&row[n..], &gaps.to_f64_vec().unwrap(), "gap");
            }
        }
    }
}

fn awkward_shapes<T: Float>() {
    let shapes = [
        (1, 1, 1, 0),
        (1, 33, 7, 3),
        (13, 1, 5, 0),
        (5, 31, 0, 2),
        (12, 32, 64, 0),
        (13, 37, 41, 5),
        (97, 101, 3, 1),
        (7, 130, 257, 0),
        (100, 67, 33, 7),
    ];
    let mut cases = 0;
    for form in FORMS {
        for (m, n, k, gap) in shapes {
            run::<T>(form, m, n, k, gap, T::DTYPE);
            run::<T>(form, m, n, k, gap, T::DTYPE.accumulator());
            cases += 2;
        }
    }
    assert_eq!(cases, 54);
}

/// Long sums go through several blocks, wide products through several strips and threads.
fn blocks_and_threads<T: Float>() {
    let mut cases = 0;
    for (form, m, n, k) in [
        (Product::Nt, 110, 203, 1100),
        (Product::Nn, 97, 33, 2061),
        (Product::Tn, 205, 98, 1031),
        (Product::Nt, 25, 1601, 67),
        (Product::Tn, 2101, 17, 19),
    ] {
        run::<T>(form, m, n, k, 1, T::DTYPE);
        run::<T>(form, m, n, k, 1, T::DTYPE.accumulator());
        cases += 2;
    }
    assert_eq!(cases, 10);
}

/// `linear` is a product that is added to rows of its bias, for which the product itself is held to f64.
fn linear_in<T: Float, Y: Float>() {
    let mut cases = 0;
    for (m, n, k, gap) in [
        (1, 1, 1, 0),
        (5, 31, 0, 2),
        (12, 32, 64, 0),
        (13, 37, 41, 5),
        (110, 203, 1100, 1),
        (25, 1601, 67, 0),
        (2101, 17, 19, 3),
        (40, 35, 4200, 0),
    ] {
        let (x, w) = factors::<T>(Product::Nt, m, n, k, gap);
        let (bias, stride) = (buf::<T>(7, n), n + gap);
        let old = values::<Y>(3, m * stride);
        let mut rows = old.clone();
        for row in rows.chunks_mut(stride) {
            let bias = bias.to_f64_vec().unwrap().into_iter().map(Y::from_f64);
            row.iter_mut().zip(bias).for_each(|(row, bias)| *row = bias);
        }
        let results = everywhere(Some(T::DTYPE), |ops| {
            let (mut y, mut sum) = (Buf::from_vec(old.clone()), Buf::from_vec(rows.clone()));
            let y_view = MatMut { data: y.slice_mut(), rows: m, cols: n, stride };
            ops.linear(y_view, x.view(), w.view(), bias.slice()).unwrap();
            let sum_view = MatMut { data: sum.slice_mut(), rows: m, cols: n, stride };
            ops.matmul(Product::Nt, true, x.view(), w.view(), sum_view).unwrap();
            vec![y, sum]
        });
        for result in results {
            for i in 0..m {
                let row = i * stride..i * stride + n;
                same_bits(
                    &result[0][row.clone()],
                    &result[1][row],
                    &format!("{m} {n} {k} row {i}"),
                );
            }
            // What lies between the rows is left alone.
            let wide = Buf::from_vec(old.clone()).to_f64_vec().unwrap();
            for i in 0..m {
                let gap = i * stride + n..(i + 1) * stride;
                same_bits(&result[0][gap.clone()], &wide[gap], "gap");
            }
        }
        cases += 1;
    }
    assert_eq!(cases, 8);
}

/// Tiles cut k behind 4096 only (in f32, whose sums lie in C, behind 1024), and keep packed rows until their memory is
/// full.
#[test]
fn tiles_go_on_behind_their_longest_part_and_their_kept_rows() {
    let mut cases = 0;
    for (form, m, n, k) in
        [(Product::Nt, 40, 35, 4200), (Product::Nn, 550, 33, 4201), (Product::Tn, 700, 200, 3072)]
    {
        run::<bf16>(form, m, n, k, 1, DType::Bf16);
        run::<bf16>(form, m, n, k, 0, DType::F32);
        run::<f32>(form, m, n, k, 1, DType::F32);
        cases += 3;
    }
    assert_eq!(cases, 9);
}

/// Tiles whose k is longer than 384 take it in parts where seven panels of B and more pass.
#[test]
fn tiles_go_on_along_k_while_many_columns_pass() {
    let mut cases = 0;
    for form in FORMS {
        for (m, n, k) in [(40, 300, 800), (33, 224, 416), (70, 257, 1001)] {
            run::<bf16>(form, m, n, k, 1, DType::Bf16);
            run::<bf16>(form, m, n, k, 0, DType::F32);
            run::<f32>(form, m, n, k, 1, DType::F32);
            cases += 3;
        }
    }
    assert_eq!(cases, 27);
}

/// Any rectangle of the result has the bits it has in the whole.
fn parts_have_the_bits_of_the_whole<T: Float>() {
    let (m, n, k) = (61, 77, 1301);
    let ops = one();
    let mut cases = 0;
    for form in FORMS {
        let (a, b) = factors::<T>(form, m, n, k, 0);
        let mut whole = Buf::zeros(T::DTYPE, m * n);
        let c = MatMut::new(whole.slice_mut(), m, n);
        ops.matmul(form, false, a.view(), b.view(), c).unwrap();
        let whole = whole.to_f64_vec().unwrap();
        for (rows, cols) in [(0..1, 0..n), (13..14, 5..6), (3..40, 32..77), (60..61, 76..77)] {
            let a = match form {
                Product::Nt | Product::Nn => a.view().rows(rows.clone()).unwrap(),
                Product::Tn => a.view().columns(rows.clone()).unwrap(),
            };
            let b = match form {
                Product::Nt => b.view().rows(cols.clone()).unwrap(),
                Product::Nn | Product::Tn => b.view().columns(cols.clone()).unwrap(),
            };
            let mut part = Buf::zeros(T::DTYPE, rows.len() * cols.len());
            let c = MatMut::new(part.slice_mut(), rows.len(), cols.len());
            ops.matmul(form, false, a, b, c).unwrap();
            let expected: Vec<f64> =
                rows.clone().flat_map(|i| whole[i * n..][cols.clone()].to_vec()).collect();
            same_bits(
                &part.to_f64_vec().unwrap(),
                &expected,
                &format!("{form:?} {rows:?} {cols:?}"),
            );
            cases += 1;
        }
    }
    assert_eq!(cases, 12);
}

/// Accumulating over consecutive token ranges gives the bits of one product over all tokens.
fn accumulation_continues_the_chain<T: Float>() {
    let (m, n, k) = (29, 45, 1300);
    let (a, b) = factors::<T>(Product::Tn, m, n, k, 0);
    let ops = one();
    let product = |ranges: &[std::ops::Range<usize>]| {
        let mut c = Buf::zeros(T::DTYPE.accumulator(), m * n);
        for range in ranges {
            let c = MatMut::new(c.slice_mut(), m, n);
            let (a, b) = (a.view().rows(range.clone()), b.view().rows(range.clone()));
            ops.matmul(Product::Tn, true, a.unwrap(), b.unwrap(), c).unwrap();
        }
        c.to_f64_vec().unwrap()
    };
    let whole = product(std::slice::from_ref(&(0..k)));
    same_bits(&product(&[0..96, 96..128, 128..k]), &whole, "three ranges");
}

mod all {
    use crate::support::for_types;
    for_types! {
        awkward_shapes;
        blocks_and_threads;
        parts_have_the_bits_of_the_whole;
        accumulation_continues_the_chain;
        linear_starts_at_its_bias;
    }
}

/// In y's own type and in that of its sums.
fn linear_starts_at_its_bias<T: Float>() {
    linear_in::<T, T>();
    match T::DTYPE.accumulator() {
        DType::F64 => linear_in::<T, f64>(),
        DType::F32 => linear_in::<T, f32>(),
        other => panic!("sums are not kept in {other}"),
    }
}

/// The promise without tiles: one chain of fused multiply-adds for each element, whatever the shape.
fn chain(form: Product, m: usize, n: usize, k: usize, gap: usize, threads: usize) {
    let (a, b) = factors::<f32>(form, m, n, k, gap);
    let old = values::<f32>(3, m * n);
    let mut c = Buf::from_vec(old.clone());
    let c_view = MatMut::new(c.slice_mut(), m, n);
    of_chains(threads).matmul(form, true, a.view(), b.view(), c_view).unwrap();
    let (wide_a, wide_b) = (a.data.typed::<f32>().unwrap(), b.data.typed::<f32>().unwrap());
    for (ij, &got) in c.typed::<f32>().unwrap().iter().enumerate() {
        let (i, j) = (ij / n, ij % n);
        let expected = (0..k).fold(old[ij], |sum, p| {
            let (a_at, b_at) = match form {
                Product::Nt => (i * a.stride + p, j * b.stride + p),
                Product::Nn => (i * a.stride + p, p * b.stride + j),
                Product::Tn => (p * a.stride + i, p * b.stride + j),
            };
            wide_a[a_at].mul_add(wide_b[b_at], sum)
        });
        assert_eq!(got.to_bits(), expected.to_bits(), "{form:?} [{i}, {j}]");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
    #[test]
    fn every_element_is_one_chain(
        form in 0usize..3,
        m in 1usize..140,
        n in 1usize..140,
        k in 0usize..700,
        gap in 0usize..5,
        threads in 1usize..4,
    ) {
        chain(FORMS[form], m, n, k, gap, threads);
    }
}

#[test]
fn chains_go_on_through_blocks_and_strips() {
    chain(Product::Nn, 2, 1570, 1100, 0, 2);
    chain(Product::Tn, 2060, 2, 600, 0, 2);
}

/// ‖c − c₆₄‖ / ‖c₆₄‖ of a product of f32, whose factors lie over 2^±`spread`, the left one times `scale`, the right one
/// divided by it.
fn error_of_f32(
    ops: &CpuOps,
    form: Product,
    [m, n, k]: [usize; 3],
    spread: f64,
    scale: f64,
) -> f64 {
    let spread_out = |seed: u64, len: usize, scale: f64| {
        let exponents = values::<f64>(seed + 100, len);
        let x = values::<f64>(seed, len);
        let x = x.iter().zip(exponents).map(|(x, e)| (x * (spread * e).exp2() * scale) as f32);
        Buf::from_vec(x.collect::<Vec<_>>())
    };
    let ((a_rows, a_cols), (b_rows, b_cols)) = match form {
        Product::Nt => ((m, k), (n, k)),
        Product::Nn => ((m, k), (k, n)),
        Product::Tn => ((k, m), (k, n)),
    };
    let a =
        Strided { data: spread_out(1, m * k, scale), rows: a_rows, cols: a_cols, stride: a_cols };
    let b = spread_out(2, n * k, 1.0 / scale);
    let b = Strided { data: b, rows: b_rows, cols: b_cols, stride: b_cols };
    let expected = reference(form, &a, &b, m, n, k);
    let mut c = Buf::zeros(DType::F32, m * n);
    ops.matmul(form, false, a.view(), b.view(), MatMut::new(c.slice_mut(), m, n)).unwrap();
    let errors = c.to_f64_vec().unwrap().into_iter().zip(&expected).map(|(c, e)| (c - e).powi(2));
    (errors.sum::<f64>() / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
}

/// Products of f32 in parts of bf16 are as good as chains of multiply-adds of f32: for sums of every length, for
/// factors over many powers of two, for small factors of large ones.
#[test]
fn products_of_f32_are_no_worse_than_chains_of_multiply_adds() {
    let mut cases = 0;
    for form in FORMS {
        for shape in [[40, 35, 1], [33, 40, 8], [64, 64, 32], [47, 65, 333], [32, 33, 3001]] {
            for (spread, scale) in [(0.0, 1.0), (12.0, 1.0), (0.0, 60.0f64.exp2())] {
                let chains = error_of_f32(&of_chains(1), form, shape, spread, scale);
                let best = error_of_f32(&one(), form, shape, spread, scale);
                // In a sum of few terms a multiply-add rounds hardly more than the result.
                let bound = if shape[2] < 32 { 2.0 } else { 1.1 };
                let what = format!("{form:?} {shape:?} {spread} {scale}");
                assert!(best <= bound * chains, "{what}: {best:e} against {chains:e}");
                assert!(chains > 1e-9, "{what}: {chains:e}");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 45);
}

/// What is not finite in a factor is not finite in the sums that it goes into, and in no other.
#[test]
fn products_keep_what_is_not_finite() {
    fn holds<T: Float>() {
        let (m, n, k) = (37, 41, 70);
        let mut cases = 0;
        for special in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for ops in configurations() {
                let (mut a, b) = (values::<T>(1, m * k), buf::<T>(2, n * k));
                a[5 * k + 66] = T::from_f64(special);
                let (a, mut c) = (Buf::from_vec(a), Buf::zeros(T::DTYPE, m * n));
                let (a, b) = (MatRef::new(a.slice(), m, k), MatRef::new(b.slice(), n, k));
                let c_view = MatMut::new(c.slice_mut(), m, n);
                ops.matmul(Product::Nt, false, a, b, c_view).unwrap();
                for (i, c) in c.to_f64_vec().unwrap().into_iter().enumerate() {
                    assert_eq!(c.is_finite(), i / n != 5, "{special} {:?} {i}: {c}", ops.isa());
                }
                cases += 1;
            }
        }
        assert_eq!(cases, 3 * configurations().len());
    }
    holds::<f64>();
    holds::<f32>();
    holds::<bf16>();
}

#[test]
fn contradictions_are_errors_with_the_dimensions() {
    let ops = one();
    let (a, b) = (Buf::zeros(DType::F32, 6), Buf::zeros(DType::F32, 8));
    let mut c = Buf::zeros(DType::F32, 6);
    let call = |a: MatRef<'_>, b: MatRef<'_>, c: MatMut<'_>| {
        ops.matmul(Product::Nt, false, a, b, c).unwrap_err().to_string()
    };
    let text = call(
        MatRef::new(a.slice(), 2, 3),
        MatRef::new(b.slice(), 2, 4),
        MatMut::new(c.slice_mut(), 2, 2),
    );
    assert_eq!(text, "matmul: Nt of a [2, 3] and b [2, 4] does not give c [2, 2]");
    let text = call(
        MatRef::new(a.slice(), 2, 4),
        MatRef::new(b.slice(), 2, 4),
        MatMut::new(c.slice_mut(), 2, 2),
    );
    assert!(text.contains("`a` has 6 elements") && text.contains("needs 8"), "{text}");
    let mut half = Buf::zeros(DType::Bf16, 4);
    let text = call(
        MatRef::new(a.slice(), 2, 3),
        MatRef::new(a.slice(), 2, 3),
        MatMut::new(half.slice_mut(), 2, 2),
    );
    assert!(text.contains("`c` holds bf16"), "{text}");
    let ids = Buf::zeros(DType::U32, 6);
    let error = ops.matmul(
        Product::Nt,
        false,
        MatRef::new(ids.slice(), 2, 3),
        MatRef::new(ids.slice(), 2, 3),
        MatMut::new(c.slice_mut(), 2, 2),
    );
    assert!(matches!(error, Err(KernelError::NotComputable { held: DType::U32, .. })));
}

#[test]
fn a_missing_instruction_set_is_an_error() {
    let best = Isa::detect();
    let mut refused = 0;
    for isa in Isa::ALL {
        let ops = CpuOps::with_isa(Team::new(1), isa);
        assert_eq!(ops.is_ok(), isa.is_within(best));
        refused += usize::from(ops.is_err());
    }
    assert_eq!(refused, Isa::ALL.iter().filter(|isa| !isa.is_within(best)).count());
    // No processor has the sets of two families.
    assert!(refused > 0);
}
