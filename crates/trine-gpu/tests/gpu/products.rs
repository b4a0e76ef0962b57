//! Products: the bits of the CPU's portable kernels, one plan for each shape, and what is refused.

use crate::machine::{Machine, downloaded, uploaded};
use half::bf16;
use std::sync::Arc;
use trine_buffer::{Buf, DType};
use trine_gpu::{Factor, Form, Matrix, Memory, Products, Start, Stream};
use trine_gpu_sys::{CublasLt, Search, cublaslt, load};
use trine_kernels::{CpuOps, Isa, MatMut, MatRef, Ops, Product, Team};

const WORKSPACE_BYTES: usize = 1 << 16;

fn products(machine: &Machine, stream: &Stream) -> Products {
    let search = Search::only(vec![machine.sim.folder().to_owned()]);
    let lt = Arc::new(load::<CublasLt>(&cublaslt::CUDA, &search).unwrap().functions);
    Products::new(stream, lt, WORKSPACE_BYTES).unwrap()
}

/// Numbers between -1 and 1, as a buffer of the CPU.
fn numbers(dtype: DType, seed: u32, len: usize) -> Buf {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    match dtype {
        DType::F32 => Buf::from_vec((0..len).map(|_| next()).collect::<Vec<_>>()),
        _ => Buf::from_vec((0..len).map(|_| bf16::from_f32(next())).collect::<Vec<_>>()),
    }
}

fn on_gpu(stream: &Stream, name: &str, buf: &Buf) -> Memory {
    uploaded(stream, name, buf.slice().bytes().unwrap())
}

const DIMS: [usize; 3] = [6, 10, 33];

/// Rows and columns of A and B.
fn dims(form: Form) -> [(usize, usize); 2] {
    let [m, n, k] = DIMS;
    match form {
        Form::Nt => [(m, k), (n, k)],
        Form::Nn => [(m, k), (k, n)],
        Form::Tn => [(k, m), (k, n)],
    }
}

#[test]
fn products_have_the_bits_of_the_cpu_and_a_plan_for_each_shape() {
    let cpu = CpuOps::with_isa(Team::new(1), Isa::Portable).unwrap();
    let forms = [(Form::Nt, Product::Nt), (Form::Nn, Product::Nn), (Form::Tn, Product::Tn)];
    let types = [(DType::F32, DType::F32), (DType::Bf16, DType::Bf16), (DType::Bf16, DType::F32)];
    let [m, n, _] = DIMS;
    for seed in 0..3 {
        let machine = Machine::new(seed);
        let stream = machine.stream("compute");
        let mut products = products(&machine, &stream);
        for (form, product) in forms {
            for (factor, result) in types {
                let [(ar, ac), (br, bc)] = dims(form);
                let (a, b) = (numbers(factor, 1, ar * ac), numbers(factor, 2, br * bc));
                let mut c = numbers(result, 3, m * n);
                let (on_a, on_b) = (on_gpu(&stream, "a", &a), on_gpu(&stream, "b", &b));
                let mut on_c = on_gpu(&stream, "c", &c);
                for (start, accumulate) in [(Start::Old, true), (Start::Zero, false)] {
                    let (left, right) =
                        (MatRef::new(a.slice(), ar, ac), MatRef::new(b.slice(), br, bc));
                    let to = MatMut::new(c.slice_mut(), m, n);
                    cpu.matmul(product, accumulate, left, right, to).unwrap();
                    let a = Factor { span: on_a.span(), matrix: Matrix::new(factor, ar, ac) };
                    let b = Factor { span: on_b.span(), matrix: Matrix::new(factor, br, bc) };
                    let to = (on_c.span_mut(), Matrix::new(result, m, n));
                    products.multiply(form, a, b, to, start).unwrap();
                    let found = downloaded::<u8>(&stream, &on_c);
                    assert_eq!(
                        found,
                        c.slice().bytes().unwrap(),
                        "{form:?} of {factor} to {result}, {start:?}"
                    );
                }
            }
        }
        assert_eq!(products.plans(), 9);
        machine.is_clean();
    }
}

#[test]
fn a_linear_layer_starts_at_its_bias() {
    let cpu = CpuOps::with_isa(Team::new(1), Isa::Portable).unwrap();
    let [m, n, k] = DIMS;
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let mut products = products(&machine, &stream);
    for dtype in [DType::F32, DType::Bf16] {
        let (x, w, bias) =
            (numbers(dtype, 1, m * k), numbers(dtype, 2, n * k), numbers(dtype, 3, n));
        let mut y = numbers(dtype, 4, m * n);
        let (left, right) = (MatRef::new(x.slice(), m, k), MatRef::new(w.slice(), n, k));
        cpu.linear(MatMut::new(y.slice_mut(), m, n), left, right, bias.slice()).unwrap();
        let (on_x, on_w) = (on_gpu(&stream, "x", &x), on_gpu(&stream, "w", &w));
        let on_bias = on_gpu(&stream, "bias", &bias);
        let mut on_y = stream.alloc("y", y.size_bytes()).unwrap();
        let a = Factor { span: on_x.span(), matrix: Matrix::new(dtype, m, k) };
        let b = Factor { span: on_w.span(), matrix: Matrix::new(dtype, n, k) };
        let to = (on_y.span_mut(), Matrix::new(dtype, m, n));
        products.multiply(Form::Nt, a, b, to, Start::Bias(on_bias.span())).unwrap();
        assert_eq!(downloaded::<u8>(&stream, &on_y), y.slice().bytes().unwrap(), "{dtype}");
    }
    machine.is_clean();
}

/// Columns of wider matrices, at addresses that are aligned to an element only.
#[test]
fn parts_of_matrices_are_read_and_written_alone() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let mut products = products(&machine, &stream);
    let wide = uploaded(&stream, "wide", &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let mut out = uploaded(&stream, "out", &[-1.0f32; 8]);
    let columns = Matrix { stride: 4, ..Matrix::new(DType::F32, 2, 2) };
    let part = Factor { span: wide.span().range(4..32).unwrap(), matrix: columns };
    let to = (out.span_mut().range(8..32).unwrap(), columns);
    // [2 3; 6 7] · [2 3; 6 7]
    products.multiply(Form::Nn, part, part, to, Start::Zero).unwrap();
    let expected = [-1.0, -1.0, 22.0, 27.0, -1.0, -1.0, 54.0, 67.0];
    assert_eq!(downloaded::<f32>(&stream, &out), expected);
    let at_start = Factor { span: wide.span(), matrix: columns };
    let to = (out.span_mut(), columns);
    products.multiply(Form::Nn, at_start, at_start, to, Start::Zero).unwrap();
    assert_eq!(products.plans(), 2, "an algorithm may count on what an address is a multiple of");
    stream.synchronize().unwrap();
    machine.is_clean();
}

#[test]
fn a_product_waits_for_its_factors() {
    let machine = Machine::new(1);
    let (stream, copies) = (machine.stream("compute"), machine.stream("copies"));
    let mut products = products(&machine, &stream);
    let (mut x, mut y) = (copies.alloc("x", 16).unwrap(), stream.alloc("y", 16).unwrap());
    copies.fill(x.span_mut(), 0).unwrap();
    let matrix = Matrix::new(DType::F32, 2, 2);
    let mut multiply = || {
        let factor = Factor { span: x.span(), matrix };
        products.multiply(Form::Nn, factor, factor, (y.span_mut(), matrix), Start::Zero)
    };
    let text = multiply().unwrap_err().to_string();
    let start = "`product` on stream `compute` reads bytes 0..16 of `x`, which `fill` on stream `copies` writes";
    assert!(text.starts_with(start), "{text}");
    stream.wait(&copies.record().unwrap()).unwrap();
    multiply().unwrap();
    stream.synchronize().unwrap();
    machine.is_clean();
}

#[test]
fn what_does_not_fit_is_refused() {
    let machine = Machine::new(1);
    let stream = machine.stream("compute");
    let mut products = products(&machine, &stream);
    let (x, mut y) = (stream.alloc("x", 64).unwrap(), stream.alloc("y", 64).unwrap());
    let square = Matrix::new(DType::F32, 4, 4);
    let mut refused = |a: Matrix, b: Matrix, c: Matrix| {
        let of = |matrix| Factor { span: x.span(), matrix };
        let to = (y.span_mut(), c);
        products.multiply(Form::Nn, of(a), of(b), to, Start::Zero).unwrap_err().to_string()
    };
    let with = |rows, cols, stride| Matrix { dtype: DType::F32, rows, cols, stride };
    let cases = [
        (
            square,
            with(3, 4, 4),
            square,
            "B of a product is 3 × 4 with a stride of 4: the others ask for 4 × 4",
        ),
        (
            square,
            square,
            with(4, 5, 5),
            "B of a product is 4 × 4 with a stride of 4: the others ask for 4 × 5",
        ),
        (
            with(4, 4, 5),
            square,
            square,
            "A of a product is 4 × 4 with a stride of 5: it takes 76 bytes and has 64",
        ),
        (square, with(4, 4, 3), square, "B of a product is 4 × 4 with a stride of 3: rows overlap"),
        (
            with(4, 0, 0),
            with(0, 4, 4),
            square,
            "A of a product is 4 × 0 with a stride of 0: it is empty",
        ),
        (
            square,
            Matrix::new(DType::Bf16, 4, 4),
            square,
            "B of a product is 4 × 4 with a stride of 4: it holds bf16, and A f32",
        ),
    ];
    for (a, b, c, text) in cases {
        assert_eq!(refused(a, b, c), text);
    }
    let wide = Matrix::new(DType::F64, 2, 2);
    assert_eq!(refused(wide, wide, wide), "products on a GPU take f32 and bf16, not f64");
    // The library itself has no such product.
    let text = refused(square, square, Matrix::new(DType::Bf16, 4, 4));
    assert!(text.starts_with("cannot plan a product Nn of Matrix"), "{text}");
    assert!(text.contains("CUBLAS_STATUS_NOT_SUPPORTED"), "{text}");
    assert_eq!(products.plans(), 0);
}
