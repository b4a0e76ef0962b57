//! What can go wrong with a GPU.

use crate::ledger::Unordered;
use crate::ptx::Parameter;
use trine_buffer::DType;
use trine_gpu_sys::{CallError, LoadError};

/// A GPU that cannot do what it is asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// The driver cannot be had.
    #[error(transparent)]
    Library(#[from] LoadError),
    /// A function of the driver has failed.
    #[error("cannot {doing}: {source}")]
    Call {
        /// What for.
        doing: String,
        /// Which, and how.
        source: CallError,
    },
    /// There are fewer GPUs.
    #[error("there is no GPU {index}: {}", counted(*count))]
    NoDevice {
        /// Which was asked for, from 0 on.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A buffer lies on the host where a device's is needed.
    #[error("a buffer of {len} {dtype} lies on the host, and this work needs it on the GPU")]
    OnHost {
        /// Its elements' type.
        dtype: DType,
        /// How many.
        len: usize,
    },
    /// A buffer lies on a device of another backend.
    #[error("`{name}` lies on a device of another backend")]
    Foreign {
        /// What its memory is for.
        name: String,
    },
    /// A device has too little memory left.
    #[error(
        "GPU {device} has {free_bytes} bytes free of {total_bytes}, and `{name}` needs {bytes}"
    )]
    OutOfMemory {
        /// The device.
        device: usize,
        /// What the memory is for.
        name: String,
        /// How many bytes it needs.
        bytes: usize,
        /// How many are free.
        free_bytes: usize,
        /// How many the device has.
        total_bytes: usize,
    },
    /// A range ends beyond its memory, or begins behind its end.
    #[error("bytes {start}..{end} lie outside `{name}`, which has {bytes}")]
    Range {
        /// What the memory is for.
        name: String,
        /// The first byte.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// The bytes that there are.
        bytes: usize,
    },
    /// A copy between ranges of different lengths.
    #[error("a copy of {from} bytes to {to}")]
    Length {
        /// The bytes to copy.
        from: usize,
        /// The bytes to copy them to.
        to: usize,
    },
    /// Memory of one device in work of another.
    #[error("`{name}` is on GPU {held}, and the stream `{stream}` on GPU {asked}")]
    OtherDevice {
        /// What the memory is for.
        name: String,
        /// Its device.
        held: usize,
        /// The stream.
        stream: String,
        /// The stream's device.
        asked: usize,
    },
    /// Elements that products on a device do not have.
    #[error("products on a GPU take f32 and bf16, not {0}")]
    Element(DType),
    /// A matrix that its memory does not hold, or that does not fit the others.
    #[error("{what} of a product is {rows} × {cols} with a stride of {stride}: {why}")]
    Matrix {
        /// Which one.
        what: &'static str,
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
        /// The elements from a row to the next.
        stride: usize,
        /// What is wrong.
        why: String,
    },
    /// A text that is no image of kernels.
    #[error("an image of kernels {0}")]
    Image(&'static str),
    /// The driver's compiler refuses kernels.
    #[error("the driver does not compile {kernels} kernels for GPU {device}: {source}; {log}")]
    Compile {
        /// The device.
        device: usize,
        /// How many kernels the text has.
        kernels: usize,
        /// How the call has failed.
        source: CallError,
        /// What the compiler says.
        log: String,
    },
    /// A source of kernels that does not compile.
    #[error("`{name}` does not compile: {source}; {log}")]
    Source {
        /// The file.
        name: String,
        /// How the call has failed.
        source: CallError,
        /// What the compiler says.
        log: String,
    },
    /// A module has no such kernel.
    #[error("the module has no kernel `{name}`; it has {}", listed(has))]
    NoKernel {
        /// What was asked for.
        name: String,
        /// What there is.
        has: Vec<String>,
    },
    /// A kernel takes another number of arguments.
    #[error("`{kernel}` takes {takes} arguments, not {given}")]
    ArgumentCount {
        /// The kernel.
        kernel: String,
        /// The number that it takes.
        takes: usize,
        /// The number that it was given.
        given: usize,
    },
    /// A kernel takes an argument of another size or kind.
    #[error("argument {index} of `{kernel}` is {takes}, not {given}")]
    Argument {
        /// The kernel.
        kernel: String,
        /// Which argument, from 0 on.
        index: usize,
        /// What it takes.
        takes: Parameter,
        /// What it was given.
        given: Parameter,
    },
    /// A grid that no device runs.
    #[error("`{kernel}` on {blocks:?} blocks of {threads:?} threads: {why}")]
    Grid {
        /// The kernel.
        kernel: String,
        /// Blocks in each direction.
        blocks: [u32; 3],
        /// Threads of a block in each direction.
        threads: [u32; 3],
        /// What is wrong.
        why: &'static str,
    },
    /// The ledger has found an access that no event orders.
    #[error(transparent)]
    Unordered(#[from] Box<Unordered>),
}

impl GpuError {
    /// A failed call, with what it was for.
    pub(crate) fn call(doing: impl FnOnce() -> String) -> impl FnOnce(CallError) -> Self {
        |source| Self::Call { doing: doing(), source }
    }
}

fn counted(count: usize) -> String {
    match count {
        0 => "this machine has none".into(),
        1 => "this machine has GPU 0 only".into(),
        _ => format!("this machine has GPUs 0 to {}", count - 1),
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
