//! Products of matrices by cuBLASLt. What a shape needs is made once and kept.

use crate::error::GpuError;
use crate::ledger::Touch;
use crate::memory::{Memory, Span, SpanMut};
use crate::stream::Stream;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::Arc;
use trine_buffer::DType;
use trine_gpu_sys::cublaslt::{self, element, epilogue, product_attribute};
use trine_gpu_sys::{CallError, CublasLt};

/// What the library takes for the alignment of memory if nothing is said, and the most that it makes use of.
const ALIGNMENT_MAX: u64 = 256;

/// How the factors lie, by rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// `C[m,n] = A[m,k] · B[n,k]ᵀ`
    Nt,
    /// `C[m,n] = A[m,k] · B[k,n]`
    Nn,
    /// `C[m,n] = A[k,m]ᵀ · B[k,n]`
    Tn,
}

/// A matrix by rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// Its elements: f32 or bf16.
    pub dtype: DType,
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Elements from one row's start to the next one's; at least `cols`.
    pub stride: usize,
}

impl Matrix {
    /// One without gaps between its rows.
    pub fn new(dtype: DType, rows: usize, cols: usize) -> Self {
        Self { dtype, rows, cols, stride: cols }
    }

    /// The bytes from its first element to its last.
    pub fn bytes(&self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return 0;
        }
        ((self.rows - 1) * self.stride + self.cols) * self.dtype.bytes()
    }

    fn element(&self) -> Result<c_int, GpuError> {
        match self.dtype {
            DType::F32 => Ok(element::F32),
            DType::Bf16 => Ok(element::BF16),
            other => Err(GpuError::Element(other)),
        }
    }

    /// Refuses a matrix of other rows and columns, or one that does not lie in `held` bytes.
    fn check(&self, what: &'static str, dims: (usize, usize), held: usize) -> Result<(), GpuError> {
        let Self { rows, cols, stride, .. } = *self;
        let why = if (rows, cols) != dims {
            format!("the others ask for {} × {}", dims.0, dims.1)
        } else if rows == 0 || cols == 0 {
            "it is empty".into()
        } else if stride < cols {
            "rows overlap".into()
        } else if self.bytes() > held {
            format!("it takes {} bytes and has {held}", self.bytes())
        } else {
            return Ok(());
        };
        Err(GpuError::Matrix { what, rows, cols, stride, why })
    }
}

/// A factor: where it lies, and how.
#[derive(Debug, Clone, Copy)]
pub struct Factor<'a> {
    /// Its bytes; what lies between the rows is not read.
    pub span: Span<'a>,
    /// Its shape.
    pub matrix: Matrix,
}

/// What the sums of a product start at.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// Nothing.
    Zero,
    /// The old values of the result.
    Old,
    /// An element for each column, of the result's type.
    Bias(Span<'a>),
}

/// What a plan is for. The alignments are those of the memory, as an algorithm may count on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    form: Form,
    a: Matrix,
    b: Matrix,
    c: Matrix,
    has_bias: bool,
    alignments: [u32; 3],
}

/// Handles that are closed together.
struct Handles {
    lt: Arc<CublasLt>,
    product: cublaslt::Product,
    /// Of B, A and C: what lies by rows is the transpose of what lies by columns, so the factors change places.
    layouts: Vec<cublaslt::Layout>,
}

impl Drop for Handles {
    fn drop(&mut self) {
        // SAFETY: nobody else has these handles, and work that is queued has its own copy. A failure can be told to
        // nobody.
        unsafe {
            for layout in &self.layouts {
                let _ = self.lt.layout_destroy(*layout);
            }
            let _ = self.lt.product_destroy(self.product);
        }
    }
}

struct Plan {
    handles: Handles,
    algorithm: cublaslt::Algorithm,
}

/// Products on a stream. Their workspace is the stream's, so two streams have two of these.
pub struct Products {
    lt: Arc<CublasLt>,
    handle: cublaslt::Handle,
    stream: Stream,
    workspace: Memory,
    plans: HashMap<Key, Plan>,
}

// SAFETY: the library takes its handles from any thread, one at a time.
unsafe impl Send for Products {}

impl fmt::Debug for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "products on {:?} with {} plans", self.stream, self.plans.len())
    }
}

impl Products {
    /// With so many bytes of workspace: algorithms that need more are not considered.
    ///
    /// # Errors
    /// If the library does not start on the stream's device, or the workspace cannot be allocated.
    pub fn new(
        stream: &Stream,
        lt: Arc<CublasLt>,
        workspace_bytes: usize,
    ) -> Result<Self, GpuError> {
        let mut handle = cublaslt::Handle(null_mut());
        let device = stream.device();
        let doing = || format!("start products on GPU {}", device.index());
        // SAFETY: writes one handle.
        device.call(doing, |_| unsafe { lt.create(&mut handle) })?;
        let stream = stream.clone();
        let workspace = stream.alloc("the workspace of products", workspace_bytes);
        match workspace {
            Ok(workspace) => Ok(Self { lt, handle, stream, workspace, plans: HashMap::new() }),
            Err(error) => {
                // SAFETY: the handle is used by nothing. A second failure would hide the first.
                let _ = unsafe { lt.destroy(handle) };
                Err(error)
            }
        }
    }

    /// The plans that were made: one for each shape, element, start and alignment so far.
    pub fn plans(&self) -> usize {
        self.plans.len()
    }

    /// `C = start + A · B` in the form `form`, with sums in f32.
    ///
    /// # Errors
    /// If the shapes do not fit each other or their memory, an element is not f32 or bf16, memory is another device's
    /// or not free yet, or the library has no way to compute it.
    pub fn multiply(
        &mut self,
        form: Form,
        a: Factor<'_>,
        b: Factor<'_>,
        (to, c): (SpanMut<'_>, Matrix),
        start: Start<'_>,
    ) -> Result<(), GpuError> {
        check(form, &a, &b, (to.bytes(), c), &start)?;
        let to = to.range(0..c.bytes())?;
        let bias = match start {
            Start::Bias(bias) => Some(bias),
            Start::Zero | Start::Old => None,
        };
        let factors = [a.span.range(0..a.matrix.bytes())?, b.span.range(0..b.matrix.bytes())?];
        let read = factors.into_iter().chain(bias);
        read.clone().chain([to.as_span()]).try_for_each(|span| self.stream.holds(span))?;
        let places = [b.span.address(), a.span.address(), to.address()];
        let alignments = places.map(alignment);
        let has_bias = bias.is_some();
        let key = Key { form, a: a.matrix, b: b.matrix, c, has_bias, alignments };
        if !self.plans.contains_key(&key) {
            let plan = self.plan(&key)?;
            self.plans.insert(key, plan);
        }
        let mut touches: Vec<Touch> = read.map(|span| span.touch()).collect();
        touches.extend([to.touch(), self.workspace.span_mut().touch()]);
        self.stream.account("product", &touches)?;
        let beta = if matches!(start, Start::Old) { 1.0 } else { 0.0 };
        self.run(&self.plans[&key], places, beta, bias.map(|bias| bias.address()))
    }

    fn run(
        &self,
        plan: &Plan,
        [a, b, c]: [u64; 3],
        beta: f32,
        bias: Option<u64>,
    ) -> Result<(), GpuError> {
        let alpha = 1.0f32;
        let at = |address: u64| address as *mut c_void;
        let Handles { product, layouts, .. } = &plan.handles;
        let (of_a, of_b, of_c) = (layouts[0], layouts[1], layouts[2]);
        let (scale, add) = ((&raw const alpha).cast(), (&raw const beta).cast());
        let (workspace, bytes) = (self.workspace.span().address(), self.workspace.bytes());
        let (lt, stream) = (&self.lt, self.stream.0.handle);
        let doing = || format!("compute a product on the stream `{}`", self.stream.name());
        self.stream.device().call(doing, |_| {
            // SAFETY: the handles are open, and shapes and addresses were held against each other and their memory.
            unsafe {
                if let Some(bias) = bias {
                    let value = (&raw const bias).cast();
                    lt.product_set(*product, product_attribute::BIAS, value, size_of_val(&bias))?;
                }
                lt.multiply(
                    self.handle,
                    *product,
                    scale,
                    at(a),
                    of_a,
                    at(b),
                    of_b,
                    add,
                    at(c),
                    of_c,
                    at(c),
                    of_c,
                    &plan.algorithm,
                    at(workspace),
                    bytes,
                    stream,
                )
            }
        })
    }

    fn plan(&self, key: &Key) -> Result<Plan, GpuError> {
        let Key { form, a, b, c, .. } = key;
        let elements = (b.element()?, a.element()?, c.element()?);
        let doing = || format!("plan a product {form:?} of {a:?} and {b:?} to {c:?}");
        let mut plan = None;
        let make = |_: &_| {
            plan = Some(self.search(key, elements)?);
            Ok(())
        };
        self.stream.device().call(doing, make)?;
        Ok(plan.expect("invariant: a call without an error has made it"))
    }

    fn search(&self, key: &Key, elements: (c_int, c_int, c_int)) -> Result<Plan, CallError> {
        let lt = &self.lt;
        let Key { form, a, b, c, has_bias, alignments } = key;
        let transposed = match form {
            Form::Nt => [cublaslt::TRANSPOSED, 0],
            Form::Nn => [0, 0],
            Form::Tn => [0, cublaslt::TRANSPOSED],
        };
        let kind = if *has_bias { epilogue::BIAS } else { epilogue::NONE };
        let set = |product, attribute, value: &c_int| {
            let value = std::ptr::from_ref(value);
            // SAFETY: the handle is open; these attributes are numbers of 32 bits.
            unsafe { lt.product_set(product, attribute, value.cast(), size_of::<c_int>()) }
        };
        let mut product = cublaslt::Product(null_mut());
        // SAFETY: writes one handle.
        unsafe { lt.product_create(&mut product, cublaslt::COMPUTE_F32, element::F32) }?;
        let mut handles = Handles { lt: lt.clone(), product, layouts: Vec::new() };
        set(product, product_attribute::TRANSPOSE_A, &transposed[0])?;
        set(product, product_attribute::TRANSPOSE_B, &transposed[1])?;
        set(product, product_attribute::EPILOGUE, &kind)?;
        for (matrix, element) in [(b, elements.0), (a, elements.1), (c, elements.2)] {
            let mut layout = cublaslt::Layout(null_mut());
            let (rows, columns) = (matrix.cols as u64, matrix.rows as u64);
            // SAFETY: writes one handle.
            unsafe { lt.layout_create(&mut layout, element, rows, columns, matrix.stride as i64) }?;
            handles.layouts.push(layout);
        }
        let algorithm = self.algorithm(&handles, *alignments)?;
        Ok(Plan { handles, algorithm })
    }

    /// The fastest algorithm, as the library sees it.
    fn algorithm(
        &self,
        handles: &Handles,
        [of_a, of_b, of_c]: [u32; 3],
    ) -> Result<cublaslt::Algorithm, CallError> {
        let (lt, bytes) = (&self.lt, self.workspace.bytes() as u64);
        let (product, layouts) = (handles.product, &handles.layouts);
        let (a, b, c) = (layouts[0], layouts[1], layouts[2]);
        let (mut preference, mut count) = (cublaslt::Preference(null_mut()), 0);
        let mut found = MaybeUninit::<cublaslt::Found>::zeroed();
        let most = cublaslt::PREFERENCE_WORKSPACE_BYTES_MAX;
        // SAFETY: every address is of a value of the size that is said, and the handles are open. A search that
        // succeeds has written a result, and zeros are one too.
        unsafe {
            lt.preference_create(&mut preference)?;
            let searched = || {
                lt.preference_set(
                    preference,
                    most,
                    (&raw const bytes).cast(),
                    size_of_val(&bytes),
                )?;
                for (attribute, value) in
                    cublaslt::PREFERENCE_ALIGNMENTS.into_iter().zip([of_a, of_b, of_c, of_c])
                {
                    let size = size_of_val(&value);
                    lt.preference_set(preference, attribute, (&raw const value).cast(), size)?;
                }
                let to = found.as_mut_ptr();
                lt.search(self.handle, product, a, b, c, c, preference, 1, to, &mut count)
            };
            let result = { searched }();
            lt.preference_destroy(preference)?;
            result.map(|()| found.assume_init().algorithm)
        }
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: nobody else has the handle; work that is queued does not need it. A failure can be told to nobody.
        let _ = self.stream.device().call(String::new, |_| unsafe { self.lt.destroy(self.handle) });
    }
}

/// The largest power of two, up to what the library makes use of, that divides an address.
fn alignment(address: u64) -> u32 {
    let largest = 1u64 << address.trailing_zeros().min(ALIGNMENT_MAX.trailing_zeros());
    largest as u32
}

fn check(
    form: Form,
    a: &Factor<'_>,
    b: &Factor<'_>,
    (to_bytes, c): (usize, Matrix),
    start: &Start<'_>,
) -> Result<(), GpuError> {
    let (m, n) = (c.rows, c.cols);
    let k = if form == Form::Tn { a.matrix.rows } else { a.matrix.cols };
    let (of_a, of_b) = match form {
        Form::Nt => ((m, k), (n, k)),
        Form::Nn => ((m, k), (k, n)),
        Form::Tn => ((k, m), (k, n)),
    };
    a.matrix.check("A", of_a, a.span.bytes())?;
    b.matrix.check("B", of_b, b.span.bytes())?;
    c.check("C", (m, n), to_bytes)?;
    if let Start::Bias(bias) = start {
        Matrix::new(c.dtype, 1, n).check("the bias", (1, n), bias.bytes())?;
    }
    let Matrix { dtype, rows, cols, stride } = b.matrix;
    if dtype == a.matrix.dtype {
        return Ok(());
    }
    let why = format!("it holds {dtype}, and A {}", a.matrix.dtype);
    Err(GpuError::Matrix { what: "B", rows, cols, stride, why })
}
