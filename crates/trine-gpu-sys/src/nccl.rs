//! Collectives between GPUs: NCCL, as `nccl.h` of 2.18 declares it.

use crate::driver::Stream;
use crate::error::{CallError, UNKNOWN, Version, text_at};
use crate::library::Library;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::null;

/// NVIDIA's. The oldest is the first that divides a communicator.
pub static CUDA: Library<NcclSymbols> = Library {
    name: "NCCL",
    files: &["libnccl.so.2"],
    companions: None,
    version_min: Version::new(2, 18),
    symbols: NcclSymbols::CUDA,
};

/// Versions before 2.9 are smaller numbers: 2804 is 2.8.4, 21803 is 2.18.3.
const NUMBER_MIN: u32 = 10_000;

handles! {
    /// A rank's place in a group.
    Comm;
}

/// What makes the ranks of a group find each other; one makes it, all have it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct UniqueId(pub [c_char; 128]);

/// How a communicator behaves. NCCL takes one of an older version, as its beginning says the version.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Config {
    bytes: usize,
    magic: c_uint,
    version: c_uint,
    /// 1 if calls wait until they are done.
    pub blocking: c_int,
    cluster_size: c_int,
    blocks_min: c_int,
    blocks_max: c_int,
    network: *const c_char,
    /// 1 if a part of a group shares its resources.
    pub split_share: c_int,
}

impl Config {
    /// What the header calls undefined: the library chooses.
    const UNDEFINED: c_int = c_int::MIN;

    /// A communicator whose calls return at once, with [`IN_PROGRESS`] if they are not done.
    pub const fn non_blocking() -> Self {
        Self {
            bytes: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21_800,
            blocking: 0,
            cluster_size: Self::UNDEFINED,
            blocks_min: Self::UNDEFINED,
            blocks_max: Self::UNDEFINED,
            network: null(),
            split_share: Self::UNDEFINED,
        }
    }
}

/// The code of a call on a communicator that does not block, where it is not done yet.
pub const IN_PROGRESS: c_int = 7;

/// What codes are called; their text is the library's.
const CODES: [&str; 8] = [
    "ncclSuccess",
    "ncclUnhandledCudaError",
    "ncclSystemError",
    "ncclInternalError",
    "ncclInvalidArgument",
    "ncclInvalidUsage",
    "ncclRemoteError",
    "ncclInProgress",
];

/// Elements of messages.
pub mod element {
    use std::ffi::c_int;

    /// `u8`.
    pub const U8: c_int = 1;
    /// `u32`.
    pub const U32: c_int = 3;
    /// `u64`.
    pub const U64: c_int = 5;
    /// `f16`.
    pub const F16: c_int = 6;
    /// `f32`.
    pub const F32: c_int = 7;
    /// `f64`.
    pub const F64: c_int = 8;
    /// `bf16`.
    pub const BF16: c_int = 9;
}

/// Reductions.
pub mod reduction {
    use std::ffi::c_int;

    /// The sum.
    pub const SUM: c_int = 0;
    /// The largest.
    pub const MAX: c_int = 2;
    /// The sum, divided by the number of ranks.
    pub const AVERAGE: c_int = 4;
}

table! {
    /// The functions of NCCL. Counts are of elements.
    pub struct Nccl named by NcclSymbols, as cudarc::nccl::sys;
    code {
        library_version = ncclGetVersion(version: *mut c_int);
        unique_id = ncclGetUniqueId(id: *mut UniqueId);
        comm_init = ncclCommInitRankConfig(
            comm: *mut Comm, ranks: c_int, id: UniqueId, rank: c_int, config: *mut Config,
        );
        comm_split = ncclCommSplit(
            comm: Comm, color: c_int, key: c_int, part: *mut Comm, config: *mut Config,
        );
        comm_finalize = ncclCommFinalize(comm: Comm);
        comm_destroy = ncclCommDestroy(comm: Comm);
        comm_abort = ncclCommAbort(comm: Comm);
        /// The code of what goes on by itself: [`IN_PROGRESS`], 0, or what has gone wrong.
        comm_state = ncclCommGetAsyncError(comm: Comm, code: *mut c_int);
        group_start = ncclGroupStart();
        group_end = ncclGroupEnd();
        all_reduce = ncclAllReduce(
            from: *const c_void, to: *mut c_void, count: usize, element: c_int, reduction: c_int,
            comm: Comm, stream: Stream,
        );
        reduce = ncclReduce(
            from: *const c_void, to: *mut c_void, count: usize, element: c_int, reduction: c_int,
            root: c_int, comm: Comm, stream: Stream,
        );
        broadcast = ncclBroadcast(
            from: *const c_void, to: *mut c_void, count: usize, element: c_int, root: c_int, comm:
            Comm, stream: Stream,
        );
        /// The count is what each rank has.
        all_gather = ncclAllGather(
            from: *const c_void, to: *mut c_void, count: usize, element: c_int, comm: Comm, stream:
            Stream,
        );
        /// The count is what each rank gets.
        reduce_scatter = ncclReduceScatter(
            from: *const c_void, to: *mut c_void, count: usize, element: c_int, reduction: c_int,
            comm: Comm, stream: Stream,
        );
        send = ncclSend(
            from: *const c_void, count: usize, element: c_int, peer: c_int, comm: Comm, stream:
            Stream,
        );
        receive = ncclRecv(
            to: *mut c_void, count: usize, element: c_int, peer: c_int, comm: Comm, stream: Stream,
        );
    }
    value {
        code_text = ncclGetErrorString(code: c_int) -> *const c_char;
        last_error = ncclGetLastError(comm: Comm) -> *const c_char;
    }
}

impl Nccl {
    fn read_version(&self) -> Result<Version, CallError> {
        let mut number = 0;
        // SAFETY: writes one number.
        unsafe { self.library_version(&mut number) }?;
        let number = u32::try_from(number).unwrap_or(0);
        Ok(Version::from_number(number, if number < NUMBER_MIN { 10 } else { 100 }))
    }

    /// What a code means that is the state of a communicator, and what was found last.
    pub fn state_text(&self, code: c_int, comm: Comm) -> String {
        let (name, text) = self.describe(code);
        format!("{name} ({code}): {}", self.found(comm).unwrap_or(text))
    }

    /// A failed call with what was found, which says more than its code.
    pub fn explained(&self, error: CallError, comm: Comm) -> CallError {
        let text = self.found(comm).unwrap_or_else(|| error.text.clone());
        CallError { text, ..error }
    }

    /// What was found last; the handle may be null.
    fn found(&self, comm: Comm) -> Option<String> {
        // SAFETY: gives a text that the library keeps and that ends with a zero byte, or null.
        let found = unsafe { text_at(self.last_error(comm)) };
        found.filter(|found| !found.is_empty())
    }

    fn describe(&self, code: c_int) -> (String, String) {
        // SAFETY: gives a constant text that ends with a zero byte, or null.
        let text = unsafe { text_at(self.code_text(code)) };
        let name = usize::try_from(code).ok().and_then(|code| CODES.get(code));
        ((*name.unwrap_or(&UNKNOWN)).into(), text.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cudarc::nccl::sys;

    #[test]
    fn signatures_are_those_of_the_header() {
        let shapes = Nccl::shapes();
        assert_eq!(shapes.len(), 19);
        for (symbol, ours, theirs) in shapes {
            assert_eq!(ours, theirs, "{symbol}");
        }
        assert_eq!(size_of::<Config>(), size_of::<sys::ncclConfig_t>());
    }

    #[test]
    fn numbers_are_those_of_the_header() {
        use sys::ncclResult_t as Code;
        let codes = [
            Code::ncclSuccess,
            Code::ncclUnhandledCudaError,
            Code::ncclSystemError,
            Code::ncclInternalError,
            Code::ncclInvalidArgument,
            Code::ncclInvalidUsage,
            Code::ncclRemoteError,
            Code::ncclInProgress,
        ];
        for (index, code) in codes.into_iter().enumerate() {
            assert_eq!((code as usize, format!("{code:?}")), (index, CODES[index].to_owned()));
        }
        assert_eq!(IN_PROGRESS, Code::ncclInProgress as c_int);
        let pairs = [
            (element::U8, sys::ncclDataType_t::ncclUint8 as c_int),
            (element::U32, sys::ncclDataType_t::ncclUint32 as c_int),
            (element::U64, sys::ncclDataType_t::ncclUint64 as c_int),
            (element::F16, sys::ncclDataType_t::ncclFloat16 as c_int),
            (element::F32, sys::ncclDataType_t::ncclFloat32 as c_int),
            (element::F64, sys::ncclDataType_t::ncclFloat64 as c_int),
            (element::BF16, sys::ncclDataType_t::ncclBfloat16 as c_int),
            (reduction::SUM, sys::ncclRedOp_t::ncclSum as c_int),
            (reduction::MAX, sys::ncclRedOp_t::ncclMax as c_int),
            (reduction::AVERAGE, sys::ncclRedOp_t::ncclAvg as c_int),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs);
        }
    }
}
