//! The CUDA driver, as `cuda.h` of CUDA 12.0 declares it.

use crate::error::{CallError, UNKNOWN, Version, text_at};
use crate::library::Library;
use std::ffi::{c_char, c_int, c_uchar, c_uint, c_void};
use std::ptr::null;

/// The driver of NVIDIA. The oldest is 525's: its compiler takes PTX 8.0.
pub static CUDA: Library<DriverSymbols> = Library {
    name: "the CUDA driver",
    files: &["libcuda.so.1", "libcuda.so"],
    companions: None,
    version_min: Version::new(12, 0),
    symbols: DriverSymbols::CUDA,
};

/// The number of a device, as [`Driver::device_get`] gives it.
pub type Device = c_int;

/// An address in the memory of a device.
pub type DevicePtr = u64;

handles! {
    /// The state of a device for this process.
    Context;
    /// Work in order.
    Stream;
    /// A point in a stream.
    Event;
    /// The memory that a device hands out in stream order.
    MemoryPool;
    /// Loaded kernels.
    Module;
    /// A kernel.
    Function;
}

/// [`CallError::code`] of [`Driver::init`] where there is no GPU.
pub const NO_DEVICE: c_int = 100;
/// [`CallError::code`] of [`Driver::stream_query`] and [`Driver::event_query`] where work is left.
pub const NOT_READY: c_int = 600;

/// What a device is asked for ([`Driver::device_attribute`]).
pub mod device_attribute {
    use std::ffi::c_int;

    /// The number of its multiprocessors.
    pub const MULTIPROCESSORS: c_int = 16;
    /// The first number of its compute capability.
    pub const CAPABILITY_MAJOR: c_int = 75;
    /// The second.
    pub const CAPABILITY_MINOR: c_int = 76;
    /// The bytes of shared memory that a block may have, if its kernel says so.
    pub const SHARED_BYTES_MAX: c_int = 97;
}

/// A stream that does not wait for the default stream ([`Driver::stream_create`]).
pub const STREAM_NON_BLOCKING: c_uint = 1;
/// An event that measures no time, and costs less ([`Driver::event_create`]).
pub const EVENT_WITHOUT_TIME: c_uint = 2;
/// Pinned memory that every device copies from and to ([`Driver::host_alloc`]).
pub const HOST_FOR_ALL: c_uint = 1;
/// The bytes that a pool keeps when it is empty ([`Driver::pool_set_attribute`]).
pub const POOL_KEPT_BYTES: c_int = 4;
/// Options of [`Driver::module_load`]: where the compiler writes what it refuses, and how many bytes it may.
pub const MODULE_ERROR_LOG: c_int = 5;
/// The second of them: a number in place of an address.
pub const MODULE_ERROR_LOG_BYTES: c_int = 6;
/// The bytes of shared memory that a launch may ask for ([`Driver::function_set_attribute`]).
pub const FUNCTION_SHARED_BYTES_MAX: c_int = 8;

table! {
    /// The functions of a driver. [`Driver::gpus`] needs no unsafe code.
    pub struct Driver named by DriverSymbols, as cudarc::driver::sys;
    code {
        /// Comes before all others but the version.
        init = cuInit(flags: c_uint);
        driver_version = cuDriverGetVersion(version: *mut c_int);

        device_count = cuDeviceGetCount(count: *mut c_int);
        device_get = cuDeviceGet(device: *mut Device, index: c_int);
        device_name = cuDeviceGetName(name: *mut c_char, len: c_int, device: Device);
        device_memory = cuDeviceTotalMem_v2(bytes: *mut usize, device: Device);
        device_attribute = cuDeviceGetAttribute(
            value: *mut c_int, attribute: c_int, device: Device,
        );
        /// Where the device is in this host; two processes see the same text.
        device_address = cuDeviceGetPCIBusId(text: *mut c_char, len: c_int, device: Device);
        device_reaches = cuDeviceCanAccessPeer(can: *mut c_int, device: Device, peer: Device);

        context_retain = cuDevicePrimaryCtxRetain(context: *mut Context, device: Device);
        context_release = cuDevicePrimaryCtxRelease_v2(device: Device);
        context_set_current = cuCtxSetCurrent(context: Context);
        context_reach = cuCtxEnablePeerAccess(peer: Context, flags: c_uint);
        context_priorities = cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int);

        stream_create = cuStreamCreateWithPriority(
            stream: *mut Stream, flags: c_uint, priority: c_int,
        );
        stream_destroy = cuStreamDestroy_v2(stream: Stream);
        stream_synchronize = cuStreamSynchronize(stream: Stream);
        /// Fails with [`NOT_READY`] where work is left.
        stream_query = cuStreamQuery(stream: Stream);
        stream_wait = cuStreamWaitEvent(stream: Stream, event: Event, flags: c_uint);

        event_create = cuEventCreate(event: *mut Event, flags: c_uint);
        event_destroy = cuEventDestroy_v2(event: Event);
        event_record = cuEventRecord(event: Event, stream: Stream);
        /// Fails with [`NOT_READY`] where work is left.
        event_query = cuEventQuery(event: Event);
        event_synchronize = cuEventSynchronize(event: Event);
        event_elapsed = cuEventElapsedTime(milliseconds: *mut f32, from: Event, to: Event);

        memory_info = cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
        memory_alloc = cuMemAllocAsync(address: *mut DevicePtr, bytes: usize, stream: Stream);
        memory_free = cuMemFreeAsync(address: DevicePtr, stream: Stream);
        memory_set = cuMemsetD8Async(
            address: DevicePtr, value: c_uchar, bytes: usize, stream: Stream,
        );
        copy_to_device = cuMemcpyHtoDAsync_v2(
            to: DevicePtr, from: *const c_void, bytes: usize, stream: Stream,
        );
        copy_to_host = cuMemcpyDtoHAsync_v2(
            to: *mut c_void, from: DevicePtr, bytes: usize, stream: Stream,
        );
        copy = cuMemcpyDtoDAsync_v2(to: DevicePtr, from: DevicePtr, bytes: usize, stream: Stream);
        copy_between = cuMemcpyPeerAsync(
            to: DevicePtr, to_context: Context, from: DevicePtr, from_context: Context, bytes:
            usize, stream: Stream,
        );
        /// Memory of the host that devices copy from and to without a stop.
        host_alloc = cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint);
        host_free = cuMemFreeHost(address: *mut c_void);
        pool_default = cuDeviceGetDefaultMemPool(pool: *mut MemoryPool, device: Device);
        pool_set_attribute = cuMemPoolSetAttribute(
            pool: MemoryPool, attribute: c_int, value: *mut c_void,
        );

        module_load = cuModuleLoadDataEx(
            module: *mut Module, image: *const c_void, options: c_uint, names: *mut c_int, values:
            *mut *mut c_void,
        );
        module_unload = cuModuleUnload(module: Module);
        module_function = cuModuleGetFunction(
            function: *mut Function, module: Module, name: *const c_char,
        );
        function_attribute = cuFuncGetAttribute(
            value: *mut c_int, attribute: c_int, function: Function,
        );
        function_set_attribute = cuFuncSetAttribute(
            function: Function, attribute: c_int, value: c_int,
        );
        launch = cuLaunchKernel(
            function: Function, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint,
            block_y: c_uint, block_z: c_uint, shared_bytes: c_uint, stream: Stream, arguments: *mut
            *mut c_void, extra: *mut *mut c_void,
        );
    }
    value {
        error_name = cuGetErrorName(code: c_int, name: *mut *const c_char) -> c_int;
        error_text = cuGetErrorString(code: c_int, text: *mut *const c_char) -> c_int;
    }
}

impl Driver {
    /// The newest CUDA that this driver runs: 12040 is 12.4.
    fn read_version(&self) -> Result<Version, CallError> {
        let mut number = 0;
        // SAFETY: writes one number.
        unsafe { self.driver_version(&mut number) }?;
        let number = u32::try_from(number).unwrap_or(0);
        Ok(Version::new(number / 1000, number % 1000 / 10))
    }

    /// A code's name and meaning.
    fn describe(&self, code: c_int) -> (String, String) {
        let (mut name, mut text): (*const c_char, *const c_char) = (null(), null());
        // SAFETY: each writes the address of a constant text that ends with a zero byte, or null.
        let (name, text) = unsafe {
            self.error_name(code, &mut name);
            self.error_text(code, &mut text);
            (text_at(name), text_at(text))
        };
        (name.unwrap_or_else(|| UNKNOWN.into()), text.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cudarc::driver::sys;

    #[test]
    fn signatures_are_those_of_the_header() {
        let shapes = Driver::shapes();
        assert_eq!(shapes.len(), 45);
        for (symbol, ours, theirs) in shapes {
            assert_eq!(ours, theirs, "{symbol}");
        }
    }

    #[test]
    fn numbers_are_those_of_the_header() {
        use sys::CUdevice_attribute_enum as Device;
        let pairs = [
            (NO_DEVICE, sys::CUresult::CUDA_ERROR_NO_DEVICE as c_int),
            (NOT_READY, sys::CUresult::CUDA_ERROR_NOT_READY as c_int),
            (
                device_attribute::MULTIPROCESSORS,
                Device::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as c_int,
            ),
            (
                device_attribute::CAPABILITY_MAJOR,
                Device::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as c_int,
            ),
            (
                device_attribute::CAPABILITY_MINOR,
                Device::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as c_int,
            ),
            (
                device_attribute::SHARED_BYTES_MAX,
                Device::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as c_int,
            ),
            (
                POOL_KEPT_BYTES,
                sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD as c_int,
            ),
            (
                FUNCTION_SHARED_BYTES_MAX,
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                    as c_int,
            ),
            (MODULE_ERROR_LOG, sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER as c_int),
            (
                MODULE_ERROR_LOG_BYTES,
                sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES as c_int,
            ),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs);
        }
        assert_eq!(STREAM_NON_BLOCKING, sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as c_uint);
        assert_eq!(HOST_FOR_ALL, sys::CU_MEMHOSTALLOC_PORTABLE);
        assert_eq!(EVENT_WITHOUT_TIME, sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as c_uint);
    }
}
