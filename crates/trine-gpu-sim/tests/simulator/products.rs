//! Products by cuBLASLt: the bits of the CPU's kernels, and what is refused or reported.

use crate::gpu::{Gpu, one};
use half::bf16;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use trine_buffer::{Buf, DType};
use trine_gpu_sys::cublaslt::{self, Algorithm, Handle, Layout, Preference, element, epilogue};
use trine_gpu_sys::cublaslt::{layout_attribute, product_attribute};
use trine_gpu_sys::driver::{DevicePtr, Stream};
use trine_gpu_sys::{CallError, CublasLt, Search, load};
use trine_kernels::{CpuOps, Isa, MatMut, MatRef, Ops, Product, Team};

/// A product by columns: `D = op(A)·op(B) (+ C) (+ bias)`, A and B of one element.
#[derive(Clone)]
struct Case {
    form: Product,
    dims: [usize; 3],
    factors: c_int,
    result: c_int,
    accumulates: bool,
    bias: Option<DevicePtr>,
    batch: (i32, i64),
}

impl Case {
    fn new(form: Product, dims: [usize; 3], factors: c_int, result: c_int) -> Self {
        Self { form, dims, factors, result, accumulates: false, bias: None, batch: (1, 0) }
    }

    /// Rows and columns as they lie, and whether they are transposed. What lies by rows is taken as its transpose by
    /// columns, so the factors change places.
    fn matrices(&self) -> [(usize, usize, bool); 3] {
        let [m, n, k] = self.dims;
        let (b, a) = match self.form {
            Product::Nt => ((k, n, true), (k, m, false)),
            Product::Nn => ((n, k, false), (k, m, false)),
            Product::Tn => ((n, k, false), (m, k, true)),
        };
        [b, a, (n, m, false)]
    }
}

struct Lt {
    lt: CublasLt,
    handle: Handle,
}

/// The handles of a product, with an algorithm for it.
struct Plan {
    product: cublaslt::Product,
    layouts: [Layout; 3],
    algorithm: Algorithm,
    workspace_bytes: usize,
}

impl Lt {
    fn new(gpu: &Gpu) -> Self {
        let search = Search::only(vec![gpu.sim.folder().to_owned()]);
        let lt = load::<CublasLt>(&cublaslt::CUDA, &search).unwrap().functions;
        let mut handle = Handle(null_mut());
        // SAFETY: writes one handle.
        unsafe { lt.create(&mut handle) }.unwrap();
        Self { lt, handle }
    }

    fn plan(&self, case: &Case) -> Result<Plan, CallError> {
        let lt = &self.lt;
        let mut product = cublaslt::Product(null_mut());
        // SAFETY: every address is of a value of the size that is said, and every handle is open.
        unsafe {
            lt.product_create(&mut product, cublaslt::COMPUTE_F32, element::F32)?;
            let [a, b, _] = case.matrices().map(|(_, _, transposed)| c_int::from(transposed));
            lt.product_set(product, product_attribute::TRANSPOSE_A, (&raw const a).cast(), 4)?;
            lt.product_set(product, product_attribute::TRANSPOSE_B, (&raw const b).cast(), 4)?;
            if let Some(bias) = case.bias {
                let kind = epilogue::BIAS;
                lt.product_set(product, product_attribute::EPILOGUE, (&raw const kind).cast(), 4)?;
                lt.product_set(product, product_attribute::BIAS, (&raw const bias).cast(), 8)?;
            }
            let mut layouts = [Layout(null_mut()); 3];
            let elements = [case.factors, case.factors, case.result];
            for ((layout, (rows, columns, _)), element) in
                layouts.iter_mut().zip(case.matrices()).zip(elements)
            {
                lt.layout_create(layout, element, rows as u64, columns as u64, rows as i64)?;
                let (count, stride) = case.batch;
                lt.layout_set(
                    *layout,
                    layout_attribute::BATCH_COUNT,
                    (&raw const count).cast(),
                    4,
                )?;
                lt.layout_set(
                    *layout,
                    layout_attribute::BATCH_STRIDE,
                    (&raw const stride).cast(),
                    8,
                )?;
            }
            let (mut preference, bytes) = (Preference(null_mut()), 1u64 << 20);
            lt.preference_create(&mut preference)?;
            let most = cublaslt::PREFERENCE_WORKSPACE_BYTES_MAX;
            lt.preference_set(preference, most, (&raw const bytes).cast(), 8)?;
            let (mut found, mut count) = (std::mem::MaybeUninit::<cublaslt::Found>::uninit(), 0);
            let [a, b, c] = layouts;
            lt.search(
                self.handle,
                product,
                a,
                b,
                c,
                c,
                preference,
                1,
                found.as_mut_ptr(),
                &mut count,
            )?;
            assert_eq!(count, 1);
            let found = found.assume_init();
            let (algorithm, workspace_bytes) = (found.algorithm, found.workspace_bytes);
            Ok(Plan { product, layouts, algorithm, workspace_bytes })
        }
    }

    /// `a` and `b` in the order of the CPU's kernels; the result is `c`.
    fn multiply(
        &self,
        plan: &Plan,
        [a, b, c]: [DevicePtr; 3],
        accumulates: bool,
        (workspace, bytes): (DevicePtr, usize),
        stream: Stream,
    ) -> Result<(), CallError> {
        let at = |address: DevicePtr| address as *mut c_void;
        let (alpha, beta) = (1.0f32, f32::from(u8::from(accumulates)));
        let [la, lb, lc] = plan.layouts;
        // SAFETY: the handles are open; the simulator holds the addresses against its buffers.
        unsafe {
            self.lt.multiply(
                self.handle,
                plan.product,
                (&raw const alpha).cast(),
                at(b),
                la,
                at(a),
                lb,
                (&raw const beta).cast(),
                at(c),
                lc,
                at(c),
                lc,
                &plan.algorithm,
                at(workspace),
                bytes,
                stream,
            )
        }
    }
}

fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn element_of(dtype: DType) -> c_int {
    if dtype == DType::F32 { element::F32 } else { element::BF16 }
}

/// Values of an element, as a buffer of the CPU and as bytes that stand in floats.
fn values(dtype: DType, seed: u32, len: usize) -> (Buf, Vec<f32>) {
    let wide = numbers(seed, len);
    if dtype == DType::F32 {
        return (Buf::from_vec(wide.clone()), wide);
    }
    let narrow: Vec<bf16> = wide.into_iter().map(bf16::from_f32).collect();
    let pair = |pair: &[bf16]| {
        let high = pair.get(1).map_or(0, |high| u32::from(high.to_bits()));
        f32::from_bits(u32::from(pair[0].to_bits()) | high << 16)
    };
    let floats = narrow.chunks(2).map(pair).collect();
    (Buf::from_vec(narrow), floats)
}

#[test]
fn products_have_the_bits_of_the_cpu() {
    let cpu = CpuOps::with_isa(Team::new(1), Isa::Portable).unwrap();
    let types = [(DType::F32, DType::F32), (DType::Bf16, DType::Bf16), (DType::Bf16, DType::F32)];
    let mut count = 0;
    for [m, n, k] in [[5, 7, 33], [16, 8, 64], [1, 3, 1]] {
        for form in [Product::Nt, Product::Nn, Product::Tn] {
            for ((factors, result), accumulates) in
                types.into_iter().flat_map(|t| [(t, false), (t, true)])
            {
                let gpu = Gpu::new(count);
                let (lt, stream) = (Lt::new(&gpu), gpu.stream());
                let (a, on_a) = values(factors, 1, m * k);
                let (b, on_b) = values(factors, 2, n * k);
                let (mut c, on_c) = values(result, 3, m * n);
                let (a_dims, b_dims) = match form {
                    Product::Nt => ([m, k], [n, k]),
                    Product::Nn => ([m, k], [k, n]),
                    Product::Tn => ([k, m], [k, n]),
                };
                let (a, b) = (
                    MatRef::new(a.slice(), a_dims[0], a_dims[1]),
                    MatRef::new(b.slice(), b_dims[0], b_dims[1]),
                );
                cpu.matmul(form, accumulates, a, b, MatMut::new(c.slice_mut(), m, n)).unwrap();
                let case = Case {
                    accumulates,
                    ..Case::new(form, [m, n, k], element_of(factors), element_of(result))
                };
                let plan = lt.plan(&case).unwrap();
                let places = [&on_a, &on_b, &on_c].map(|values| gpu.buffer(values, stream));
                let work = gpu.alloc(plan.workspace_bytes, stream).unwrap();
                lt.multiply(&plan, places, case.accumulates, (work, plan.workspace_bytes), stream)
                    .unwrap();
                let out = gpu.download(places[2], on_c.len(), stream);
                gpu.sync(stream).unwrap();
                let bytes: Vec<u8> = gpu
                    .read(out, on_c.len())
                    .iter()
                    .flat_map(|value| value.to_ne_bytes())
                    .collect();
                let expected = c.slice().bytes().unwrap();
                assert_eq!(
                    &bytes[..expected.len()],
                    expected,
                    "{form:?} [{m}, {n}, {k}] in {factors} to {result}"
                );
                assert_eq!(gpu.sim.reports(), Vec::<String>::new());
                count += 1;
            }
        }
    }
    assert_eq!(count, 54);
}

#[test]
fn a_bias_is_where_a_sum_starts_and_batches_lie_apart() {
    let gpu = Gpu::new(1);
    let (lt, stream) = (Lt::new(&gpu), gpu.stream());
    let (m, n, k) = (3, 2, 2);
    let bias = gpu.buffer(&[10.0, 20.0], stream);
    let case = Case {
        bias: Some(bias),
        batch: (2, 6),
        ..Case::new(Product::Nt, [m, n, k], element::F32, element::F32)
    };
    let plan = lt.plan(&case).unwrap();
    let a: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let places =
        [a.clone(), vec![1.0; 12], vec![0.0; 12]].map(|values| gpu.buffer(&values, stream));
    let work = gpu.alloc(plan.workspace_bytes, stream).unwrap();
    lt.multiply(&plan, places, false, (work, plan.workspace_bytes), stream).unwrap();
    let out = gpu.download(places[2], 12, stream);
    gpu.sync(stream).unwrap();
    // All of B is ones; A's rows of two stand one behind the other.
    let sums = [1.0, 5.0, 9.0, 13.0, 17.0, 21.0];
    let expected: Vec<f32> = sums.into_iter().flat_map(|sum| [10.0 + sum, 20.0 + sum]).collect();
    assert_eq!(gpu.read(out, 12), expected);
    assert_eq!(gpu.sim.reports(), Vec::<String>::new());
}

#[test]
fn products_are_held_against_streams_and_buffers() {
    let gpu = Gpu::new(1);
    let (lt, first, second) = (Lt::new(&gpu), gpu.stream(), gpu.stream());
    let plan = lt.plan(&Case::new(Product::Nt, [4, 4, 4], element::F32, element::F32)).unwrap();
    let buffer = |len: usize| gpu.buffer(&vec![1.0; len], first);
    let (a, b, c, d) = (buffer(16), buffer(16), buffer(16), buffer(16));
    let (small, work) = (buffer(15), buffer(plan.workspace_bytes / 4));
    let ready = gpu.record(first);
    gpu.wait(second, ready);
    let space = (work, plan.workspace_bytes);

    lt.multiply(&plan, [a, small, c], false, space, first).unwrap();
    gpu.sync(first).unwrap();
    one(
        &gpu.sim.reports(),
        &["`product 4x4x4` (stream 0) reads bytes 48..64 of buffer ", "(60 bytes): it ends before"],
    );

    // One workspace for two streams.
    lt.multiply(&plan, [a, b, c], false, space, first).unwrap();
    lt.multiply(&plan, [a, b, d], false, space, second).unwrap();
    gpu.sync(first).unwrap();
    gpu.sync(second).unwrap();
    one(
        &gpu.sim.reports(),
        &["(1024 bytes): it is also written by `product 4x4x4`", "no event orders the two"],
    );
}

#[test]
fn products_that_cannot_be_are_refused() {
    let gpu = Gpu::new(1);
    let (lt, stream) = (Lt::new(&gpu), gpu.stream());
    let case = Case::new(Product::Nt, [4, 4, 4], element::F32, element::F32);
    let plan = lt.plan(&case).unwrap();
    let place = gpu.buffer(&[1.0; 16], stream);
    let error = lt.multiply(&plan, [place; 3], false, (place, 8), stream).unwrap_err();
    assert_eq!(error.name, "CUBLAS_STATUS_INVALID_VALUE");
    one(&gpu.sim.reports(), &["cublasLtMatmul: the workspace is smaller than the algorithm needs"]);

    lt.multiply(&plan, [place, place + 4, place], false, (place, 1024), stream).unwrap_err();
    one(&gpu.sim.reports(), &["cublasLtMatmul: a matrix is less aligned than the search was told"]);

    let other = lt.plan(&Case { dims: [4, 4, 5], ..case.clone() }).unwrap();
    let wrong = Plan { algorithm: other.algorithm, ..plan };
    lt.multiply(&wrong, [place; 3], false, (place, 1024), stream).unwrap_err();
    one(&gpu.sim.reports(), &["cublasLtMatmul: the algorithm is of another product"]);

    let halves = 2; // f16
    let error = lt.plan(&Case { factors: halves, ..case.clone() }).err().unwrap();
    assert_eq!(error.name, "CUBLAS_STATUS_NOT_SUPPORTED");

    gpu.on(1);
    let there = gpu.stream();
    lt.multiply(&wrong, [place; 3], false, (place, 1024), there).unwrap_err();
    one(&gpu.sim.reports(), &["cublasLtMatmul: the handle is of another device"]);
}
