//! Memory of the host that devices copy from and to without a stop.

use crate::device::Device;
use crate::error::GpuError;
use crate::memory::{Span, SpanMut};
use crate::stream::{Event, Stream};
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::null_mut;
use trine_gpu_sys::driver::HOST_FOR_ALL;

/// Pinned memory of the host, of zeros at first. While a copy from or to it is on its way, the host cannot get at it:
/// [`Pinned::bytes`] and the like wait for all of them.
#[derive(Debug)]
pub struct Pinned {
    device: Device,
    address: *mut u8,
    bytes: usize,
    /// Behind the copies that may not be done.
    pending: Vec<Event>,
}

// SAFETY: the memory is this value's alone, and the driver takes its address from any thread.
unsafe impl Send for Pinned {}
// SAFETY: as above; a shared value gives nothing away.
unsafe impl Sync for Pinned {}

impl Device {
    /// Memory of the host for copies, also of other devices.
    ///
    /// # Errors
    /// If the system does not give it.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, GpuError> {
        let mut address: *mut c_void = null_mut();
        if bytes > 0 {
            let doing = || format!("pin {bytes} bytes of the host's memory");
            // SAFETY: writes one address.
            self.call(doing, |driver| unsafe {
                driver.host_alloc(&mut address, bytes, HOST_FOR_ALL)
            })?;
            // SAFETY: the address is of so many bytes that nobody else has.
            unsafe { address.cast::<u8>().write_bytes(0, bytes) };
        }
        Ok(Pinned { device: self.clone(), address: address.cast(), bytes, pending: Vec::new() })
    }
}

impl Pinned {
    /// Its size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether all copies on their way are done; waits for none.
    pub(crate) fn is_idle(&mut self) -> Result<bool, GpuError> {
        while let Some(event) = self.pending.last() {
            if !event.is_done()? {
                return Ok(false);
            }
            self.pending.pop();
        }
        Ok(true)
    }

    /// Waits for the copies on their way, then gives the bytes.
    ///
    /// # Errors
    /// If such a copy, or work before it, has failed.
    pub fn bytes(&mut self) -> Result<&mut [u8], GpuError> {
        for event in std::mem::take(&mut self.pending) {
            event.synchronize()?;
        }
        if self.bytes == 0 {
            return Ok(&mut []);
        }
        // SAFETY: so many bytes that have values, of this value alone, and no copy is on its way.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) })
    }

    /// The same as elements. Pinned memory begins at a page, so every type is aligned.
    ///
    /// # Errors
    /// As [`Pinned::bytes`]; or if the size is no multiple of an element's.
    pub fn elements<T: bytemuck::Pod>(&mut self) -> Result<&mut [T], GpuError> {
        let (bytes, element) = (self.bytes, size_of::<T>());
        if element == 0 || !bytes.is_multiple_of(element) {
            return Err(GpuError::Length { from: bytes, to: element });
        }
        if bytes == 0 {
            return Ok(&mut []);
        }
        Ok(bytemuck::cast_slice_mut(self.bytes()?))
    }

    fn part(&self, range: Range<usize>, bytes: usize) -> Result<*mut u8, GpuError> {
        let Range { start, end } = range;
        if start > end || end > self.bytes {
            let name = "pinned memory".into();
            return Err(GpuError::Range { name, start, end, bytes: self.bytes });
        }
        if end - start != bytes {
            return Err(GpuError::Length { from: end - start, to: bytes });
        }
        Ok(self.address.wrapping_add(start))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What has failed is told by the stream; the memory must outlive the copies in any case.
        let _ = self.bytes();
        let address = self.address.cast();
        if self.bytes > 0 {
            // SAFETY: the address of this value alone, and no copy is on its way.
            let _ = self.device.call(String::new, |driver| unsafe { driver.host_free(address) });
        }
    }
}

impl Stream {
    /// Copies bytes of the host to a device.
    ///
    /// # Errors
    /// If the range lies outside or has another length, the memory is another device's or not free yet, or the device
    /// does not take it.
    pub fn upload(
        &self,
        to: SpanMut<'_>,
        from: &mut Pinned,
        range: Range<usize>,
    ) -> Result<(), GpuError> {
        let address = from.part(range, to.bytes())?;
        self.holds(to.as_span())?;
        if to.bytes() == 0 {
            return Ok(());
        }
        self.account("upload", &[to.touch()])?;
        let doing = || format!("copy to `{}`", to.name());
        let (to, bytes, stream) = (to.address(), to.bytes(), self.0.handle);
        // SAFETY: both ranges have so many bytes; the pinned ones stay as they are until the event below.
        self.device().call(doing, |driver| unsafe {
            driver.copy_to_device(to, address.cast(), bytes, stream)
        })?;
        from.pending.push(self.record()?);
        Ok(())
    }

    /// Copies bytes of a device to the host.
    ///
    /// # Errors
    /// As [`Stream::upload`].
    pub fn download(
        &self,
        to: &mut Pinned,
        range: Range<usize>,
        from: Span<'_>,
    ) -> Result<(), GpuError> {
        let address = to.part(range, from.bytes())?;
        self.holds(from)?;
        if from.bytes() == 0 {
            return Ok(());
        }
        self.account("download", &[from.touch()])?;
        let doing = || format!("copy from `{}`", from.name());
        let (from, bytes, stream) = (from.address(), from.bytes(), self.0.handle);
        // SAFETY: both ranges have so many bytes; nobody gets at the pinned ones until the event below.
        self.device().call(doing, |driver| unsafe {
            driver.copy_to_host(address.cast(), from, bytes, stream)
        })?;
        to.pending.push(self.record()?);
        Ok(())
    }
}
