//! The GPUs of a host, in safe code.

use crate::driver::{Device, Driver, NO_DEVICE, device_attribute};
use crate::error::CallError;
use std::ffi::{CStr, c_char, c_int};

/// The bytes of the name of a device, with the zero byte at its end.
const NAME_BYTES_MAX: c_int = 256;

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// What its maker calls it.
    pub name: String,
    /// Its memory, in use or not.
    pub memory_bytes: u64,
    /// What its kernels may use: 9.0 is `sm_90`.
    pub capability: (u32, u32),
}

impl Driver {
    /// The GPUs that this process may use, in the driver's order; none is no error.
    ///
    /// # Errors
    /// If the driver cannot start, or does not answer for one of them.
    pub fn gpus(&self) -> Result<Vec<Gpu>, CallError> {
        // SAFETY: takes no memory.
        match unsafe { self.init(0) } {
            Err(error) if error.code == NO_DEVICE => return Ok(Vec::new()),
            started => started?,
        }
        let mut count = 0;
        // SAFETY: writes one number.
        unsafe { self.device_count(&mut count) }?;
        (0..count).map(|index| self.gpu(index)).collect()
    }

    fn gpu(&self, index: c_int) -> Result<Gpu, CallError> {
        let (mut device, mut bytes): (Device, usize) = (0, 0);
        let mut name = [0u8; NAME_BYTES_MAX as usize];
        // SAFETY: each writes what its type says; the name at most the bytes that are given.
        unsafe {
            self.device_get(&mut device, index)?;
            self.device_name(name.as_mut_ptr().cast::<c_char>(), NAME_BYTES_MAX, device)?;
            self.device_memory(&mut bytes, device)?;
        }
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
        let major = self.attribute(device_attribute::CAPABILITY_MAJOR, device)?;
        let minor = self.attribute(device_attribute::CAPABILITY_MINOR, device)?;
        Ok(Gpu {
            name: name.to_string_lossy().into_owned(),
            memory_bytes: bytes as u64,
            capability: (major, minor),
        })
    }

    fn attribute(&self, attribute: c_int, device: Device) -> Result<u32, CallError> {
        let mut value = 0;
        // SAFETY: writes one number.
        unsafe { self.device_attribute(&mut value, attribute, device) }?;
        Ok(u32::try_from(value).unwrap_or(0))
    }
}
