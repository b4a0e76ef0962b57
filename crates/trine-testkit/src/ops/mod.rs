//! Calls of every method of `Ops`, for a device to be held against the CPU: small and odd sizes, strides, both types.
//!
//! ```
//! use trine_kernels::{CpuOps, Isa, Team};
//! use trine_testkit::ops;
//!
//! let (portable, fast) = (CpuOps::with_isa(Team::new(1), Isa::Portable)?, CpuOps::new(Team::new(1)));
//! let sums = ops::cases().into_iter().filter(|case| case.method() == "add");
//! for case in sums {
//!     case.compare(&case.on(&fast)?, &case.on(&portable)?)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod attention;
mod elementwise;
mod loss;
mod norm;
mod optim;
mod positions;
mod products;

use half::bf16;
use trine_buffer::{Buf, BufferError, DType, Place};
use trine_kernels::{KernelError, MatMut, MatRef, Ops};

/// Half a unit in the last place of 1 in f32.
const ROUNDING: f64 = 6e-8;
/// A unit in the last place of bf16, relative: two results on both sides of a border differ by so much.
const BF16_UNIT: f64 = 1.0 / 128.0;

/// How near a result is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    /// Each operation is rounded as on the CPU.
    Bits,
    /// The longest chain of roundings that both may have in different orders.
    Chain(usize),
}

type Run = Box<dyn Fn(&dyn Ops, &mut [Buf]) -> Result<(), KernelError>>;

/// A call.
pub struct Case {
    method: &'static str,
    what: String,
    /// What is written, then what is read.
    bufs: Vec<Buf>,
    /// Of what is written; the rest stays as it is.
    bounds: Vec<Bound>,
    run: Run,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

fn case<const O: usize, const I: usize, const N: usize>(
    method: &'static str,
    what: impl Into<String>,
    outputs: [(Buf, Bound); O],
    inputs: [Buf; I],
    run: impl Fn(&dyn Ops, &mut [Buf; N]) -> Result<(), KernelError> + 'static,
) -> Case {
    const { assert!(O + I == N, "a call takes other buffers than it is given") };
    let (written, bounds): (Vec<_>, Vec<_>) = outputs.into_iter().unzip();
    let bufs = written.into_iter().chain(inputs).collect();
    let run = move |ops: &dyn Ops, bufs: &mut [Buf]| {
        run(ops, bufs.try_into().expect("invariant: a call's buffers are counted above"))
    };
    Case { method, what: what.into(), bufs, bounds, run: Box::new(run) }
}

/// The types that kernels on a device compute in.
const TYPES: [DType; 2] = [DType::F32, DType::Bf16];

/// Rows with a gap behind each.
#[derive(Debug, Clone, Copy)]
struct Rows {
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Rows {
    fn new(rows: usize, cols: usize, gap: usize) -> Self {
        Self { rows, cols, stride: cols + gap }
    }

    fn len(self) -> usize {
        self.rows * self.stride
    }

    fn of(self, buf: &Buf) -> MatRef<'_> {
        MatRef { data: buf.slice(), rows: self.rows, cols: self.cols, stride: self.stride }
    }

    fn of_mut(self, buf: &mut Buf) -> MatMut<'_> {
        MatMut { data: buf.slice_mut(), rows: self.rows, cols: self.cols, stride: self.stride }
    }
}

/// Calls of every method but those of attention, which are in [`attention`].
pub fn cases() -> Vec<Case> {
    let lists: [fn() -> Vec<Case>; 6] = [
        elementwise::cases,
        norm::cases,
        positions::cases,
        loss::cases,
        optim::cases,
        products::cases,
    ];
    lists.into_iter().flat_map(|list| list()).collect()
}

/// Products: those of [`cases`] and larger ones.
pub fn all_products() -> Vec<Case> {
    products::cases().into_iter().chain(products::large()).collect()
}

impl Case {
    /// The method that is called.
    pub fn method(&self) -> &'static str {
        self.method
    }

    /// What is called with what, for people.
    pub fn name(&self) -> String {
        format!("{} of {}", self.method, self.what)
    }

    /// Its buffers, in a place.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn held(&self, place: &Place) -> Result<Vec<Buf>, BufferError> {
        self.bufs.iter().map(|buf| place.hold(buf.slice().to_host()?)).collect()
    }

    /// The call itself, on [`Case::held`] buffers.
    ///
    /// # Errors
    /// What the method returns, or a wrong answer of one that answers the host.
    pub fn run(&self, ops: &dyn Ops, bufs: &mut [Buf]) -> Result<(), KernelError> {
        (self.run)(ops, bufs)
    }

    /// All buffers after the call, on the host.
    ///
    /// # Errors
    /// As [`Case::held`] and [`Case::run`].
    pub fn on(&self, ops: &dyn Ops) -> Result<Vec<Buf>, KernelError> {
        let mut bufs = self.held(ops.place())?;
        self.run(ops, &mut bufs)?;
        Ok(bufs.iter().map(|buf| buf.slice().to_host()).collect::<Result<_, _>>()?)
    }

    /// Holds the buffers of a device against those of the CPU: bits where nothing is summed along a row, bounds else.
    ///
    /// # Errors
    /// The first element that is too far off.
    pub fn compare(&self, found: &[Buf], expected: &[Buf]) -> Result<(), String> {
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            let result = match self.bounds.get(at).copied().unwrap_or(Bound::Bits) {
                Bound::Bits => same(found, expected),
                Bound::Chain(chain) => near(found, expected, chain),
            };
            result.map_err(|what| format!("{}, buffer {at}: {what}", self.name()))?;
        }
        Ok(())
    }
}

/// The numbers of a buffer anywhere.
fn values(buf: &Buf) -> Result<Vec<f64>, BufferError> {
    buf.slice().to_host()?.to_f64_vec()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Asserts the same bits; what is no number has no certain sign.
///
/// # Errors
/// The first element that differs.
pub fn same(found: &Buf, expected: &Buf) -> Result<(), String> {
    let bits = |buf: &Buf| -> Result<Vec<u64>, String> {
        let values = values(buf).map_err(text)?.into_iter();
        Ok(values.map(|x| if x.is_nan() { f64::NAN } else { x }.to_bits()).collect())
    };
    let (found, expected) = (bits(found)?, bits(expected)?);
    if found.len() != expected.len() {
        return Err(format!("{} elements, not {}", found.len(), expected.len()));
    }
    let Some(at) = found.iter().zip(&expected).position(|(found, expected)| found != expected)
    else {
        return Ok(());
    };
    let (found, expected) = (f64::from_bits(found[at]), f64::from_bits(expected[at]));
    Err(format!("element {at} is {found:e}, not {expected:e}"))
}

fn near(found: &Buf, expected: &Buf, chain: usize) -> Result<(), String> {
    let unit = if expected.dtype() == DType::Bf16 { BF16_UNIT } else { 0.0 };
    let (found, expected) = (values(found).map_err(text)?, values(expected).map_err(text)?);
    let size = expected
        .iter()
        .fold(0.0f64, |size, x| if x.is_finite() { size.max(x.abs()) } else { size });
    close(&found, &expected, |i| chain as f64 * ROUNDING * size + unit * expected[i].abs())
}

/// Asserts that each element is at most `bound` off.
///
/// # Errors
/// The first element that is not.
pub fn close(found: &[f64], expected: &[f64], bound: impl Fn(usize) -> f64) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{} elements, not {}", found.len(), expected.len()));
    }
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let is_close = found == expected || (found - expected).abs() <= bound(i);
        if !is_close {
            return Err(format!("element {i} is {found}, not {expected} ± {:.1e}", bound(i)));
        }
    }
    Ok(())
}

/// Numbers between -1 and 1, the same for everybody who asks.
fn floats(seed: u32, len: usize) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len)
}

fn of_floats(dtype: DType, values: Vec<f32>) -> Buf {
    match dtype {
        DType::Bf16 => Buf::from_vec(values.into_iter().map(bf16::from_f32).collect::<Vec<_>>()),
        _ => Buf::from_vec(values),
    }
}

/// Numbers between -1 and 1 in bf16, or else in f32.
pub fn numbers(dtype: DType, seed: u32, len: usize) -> Buf {
    of_floats(dtype, floats(seed, len).collect())
}
