//! Memory that is allocated and freed in the order of a stream.

use crate::device::Device;
use crate::error::GpuError;
use crate::stream::Stream;
use trine_gpu_sys::driver::DevicePtr;

/// [`CallError::code`](trine_gpu_sys::CallError::code) of an allocation that finds too little memory.
const OUT_OF_MEMORY: i32 = 2;

/// Memory that is allocated and freed in the order of a stream.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) stream: Stream,
    pub(crate) address: DevicePtr,
    pub(crate) bytes: usize,
    /// Its number in the ledger.
    pub(crate) buffer: u64,
}

impl Block {
    pub(crate) fn new(stream: &Stream, name: &str, bytes: usize) -> Result<Self, GpuError> {
        let device = stream.device();
        let mut address = 0;
        if bytes > 0 {
            let doing = || format!("allocate {bytes} bytes for `{name}` on GPU {}", device.index());
            let handle = stream.0.handle;
            // SAFETY: writes one address; the stream is open.
            let done = device
                .call(doing, |driver| unsafe { driver.memory_alloc(&mut address, bytes, handle) });
            done.map_err(|error| too_little(error, device, name, bytes))?;
        }
        let buffer = device.0.host.next_buffer();
        if let Some(mut ledger) = device.0.host.ledger() {
            ledger.allocate(stream.0.number, buffer, name, bytes);
        }
        Ok(Self { stream: stream.clone(), address, bytes, buffer })
    }

    pub(crate) fn rename(&self, name: &str) {
        if let Some(mut ledger) = self.stream.device().0.host.ledger() {
            ledger.rename(self.buffer, name);
        }
    }
}

fn too_little(error: GpuError, device: &Device, name: &str, bytes: usize) -> GpuError {
    match &error {
        GpuError::Call { source, .. } if source.code == OUT_OF_MEMORY => {
            let Ok((free_bytes, total_bytes)) = device.memory_bytes() else { return error };
            let (device, name) = (device.index(), name.into());
            GpuError::OutOfMemory { device, name, bytes, free_bytes, total_bytes }
        }
        _ => error,
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let device = self.stream.device();
        if let Some(mut ledger) = device.0.host.ledger() {
            ledger.free(self.stream.0.number, self.buffer);
        }
        if self.bytes > 0 {
            let (address, handle) = (self.address, self.stream.0.handle);
            // SAFETY: nobody else has the address; the stream is open. A failure can be told to nobody.
            let _ =
                device.call(String::new, |driver| unsafe { driver.memory_free(address, handle) });
        }
    }
}
