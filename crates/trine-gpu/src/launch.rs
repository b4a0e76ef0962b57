//! Launches whose arguments and sizes are checked.

use crate::error::GpuError;
use crate::ledger::Touch;
use crate::memory::{Span, SpanMut};
use crate::module::Kernel;
use crate::ptx::{Kind, Parameter};
use crate::stream::Stream;
use std::ffi::c_void;
use std::ptr::null_mut;

/// The most threads that a block has on every device.
const THREADS_MAX: u64 = 1024;
/// The most blocks in the second and third direction.
const BLOCKS_MAX: u32 = 65_535;

/// An argument of a kernel.
#[derive(Debug)]
pub enum Arg<'a> {
    /// Memory that the kernel reads.
    Read(Span<'a>),
    /// Memory that the kernel writes, and may read.
    Write(SpanMut<'a>),
    /// A number.
    U32(u32),
    /// A number.
    U64(u64),
    /// A number.
    F32(f32),
    /// A struct as the kernel lays it out. It holds no addresses: memory is an argument of its own.
    Bytes(&'a [u8]),
}

impl Arg<'_> {
    fn parameter(&self) -> Parameter {
        let of = |bytes, kind| Parameter { bytes, kind };
        match self {
            Self::Read(_) | Self::Write(_) | Self::U64(_) => of(8, Kind::Integer),
            Self::U32(_) => of(4, Kind::Integer),
            Self::F32(_) => of(4, Kind::Float),
            Self::Bytes(bytes) => of(bytes.len(), Kind::Bits),
        }
    }

    /// Its bytes as the kernel takes them, if there are at most eight; what is shorter stands first.
    fn value(&self) -> u64 {
        let first = |bytes: [u8; 4]| {
            let mut all = [0; 8];
            all[..4].copy_from_slice(&bytes);
            u64::from_ne_bytes(all)
        };
        match self {
            Self::Read(span) => span.address(),
            Self::Write(span) => span.address(),
            Self::U64(value) => *value,
            Self::U32(value) => first(value.to_ne_bytes()),
            Self::F32(value) => first(value.to_ne_bytes()),
            Self::Bytes(_) => 0,
        }
    }

    /// Where its bytes lie; `value` is where those of [`Arg::value`] do.
    fn place(&self, value: &mut u64) -> *mut c_void {
        match self {
            Self::Bytes(bytes) => bytes.as_ptr().cast_mut().cast(),
            Self::Read(_) | Self::Write(_) | Self::U32(_) | Self::U64(_) | Self::F32(_) => {
                std::ptr::from_mut(value).cast()
            }
        }
    }

    pub(crate) fn memory(&self) -> Option<(Span<'_>, Touch)> {
        match self {
            Self::Read(span) => Some((*span, span.touch())),
            Self::Write(span) => Some((span.as_span(), span.touch())),
            Self::U32(_) | Self::U64(_) | Self::F32(_) | Self::Bytes(_) => None,
        }
    }
}

/// How many threads run a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Blocks in each direction.
    pub blocks: [u32; 3],
    /// Threads of a block in each direction.
    pub threads: [u32; 3],
    /// Bytes that the threads of a block share, beside those that the kernel declares.
    pub shared_bytes: u32,
}

impl Grid {
    /// So many blocks of so many threads, in one direction.
    pub fn line(blocks: u32, threads: u32) -> Self {
        Self { blocks: [blocks, 1, 1], threads: [threads, 1, 1], shared_bytes: 0 }
    }

    fn fault(&self) -> Option<&'static str> {
        let threads = self.threads.iter().map(|&threads| u64::from(threads)).product::<u64>();
        let [_, y, z] = self.blocks;
        if self.blocks.contains(&0) || threads == 0 {
            Some("a direction has none")
        } else if threads > THREADS_MAX || self.threads[2] > 64 {
            Some("a block has at most 1024 threads, and 64 in the third direction")
        } else if self.blocks[0] > i32::MAX as u32 || y > BLOCKS_MAX || z > BLOCKS_MAX {
            Some("a grid has at most 2147483647 × 65535 × 65535 blocks")
        } else {
            None
        }
    }
}

impl Stream {
    /// Runs a kernel.
    ///
    /// # Safety
    /// The kernel touches no memory but that of its arguments, and writes none that it is given to read.
    ///
    /// # Errors
    /// If the arguments are not those that the kernel takes, the grid is impossible, memory is another device's or not
    /// free yet, or the device does not take it.
    pub unsafe fn launch(
        &self,
        kernel: &Kernel,
        grid: Grid,
        args: &[Arg<'_>],
    ) -> Result<(), GpuError> {
        check(kernel, args)?;
        let Grid { blocks, threads, shared_bytes } = grid;
        if let Some(why) = grid.fault() {
            return Err(GpuError::Grid { kernel: kernel.name().into(), blocks, threads, why });
        }
        let (held, asked) = (kernel.device().index(), self.device().index());
        if held != asked {
            let (name, stream) = (kernel.name().into(), self.name().into());
            return Err(GpuError::OtherDevice { name, held, stream, asked });
        }
        let memory = || args.iter().filter_map(Arg::memory);
        memory().try_for_each(|(span, _)| self.holds(span))?;
        let touches: Vec<_> = memory().map(|(_, touch)| touch).collect();
        self.account(kernel.name(), &touches)?;
        let mut values: Vec<u64> = args.iter().map(Arg::value).collect();
        let mut addresses: Vec<*mut c_void> =
            args.iter().zip(&mut values).map(|(arg, value)| arg.place(value)).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (blocks, threads);
        let doing = || format!("launch `{}` on the stream `{}`", kernel.name(), self.name());
        self.device().call(doing, |driver| {
            let (arguments, stream) = (addresses.as_mut_ptr(), self.0.handle);
            // SAFETY: number and sizes of the arguments are the kernel's, and are copied at once; the caller promises
            // what the kernel does.
            unsafe {
                driver.launch(
                    kernel.handle,
                    gx,
                    gy,
                    gz,
                    bx,
                    by,
                    bz,
                    shared_bytes,
                    stream,
                    arguments,
                    null_mut(),
                )
            }
        })
    }
}

fn check(kernel: &Kernel, args: &[Arg<'_>]) -> Result<(), GpuError> {
    let (takes, given) = (kernel.parameters(), args.len());
    let name = || kernel.name().to_owned();
    if takes.len() != given {
        return Err(GpuError::ArgumentCount { kernel: name(), takes: takes.len(), given });
    }
    let given = args.iter().map(Arg::parameter);
    let mut pairs = takes.iter().copied().zip(given).enumerate();
    match pairs.find(|(_, (takes, given))| !takes.takes(*given)) {
        Some((index, (takes, given))) => {
            Err(GpuError::Argument { kernel: name(), index, takes, given })
        }
        None => Ok(()),
    }
}
