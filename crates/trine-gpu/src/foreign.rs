//! Work that other libraries queue, such as collectives.

use crate::device::Device;
use crate::error::GpuError;
use crate::launch::Arg;
use crate::stream::Stream;
use trine_gpu_sys::{CallError, driver};

impl Device {
    /// Calls another library in the name of this device.
    ///
    /// # Errors
    /// If the device cannot be used, or the call fails.
    pub fn enter(
        &self,
        doing: impl FnOnce() -> String,
        call: impl FnOnce() -> Result<(), CallError>,
    ) -> Result<(), GpuError> {
        self.call(doing, |_| call())
    }
}

impl Stream {
    /// Lets another library queue work here that touches this memory; errors call it `name`.
    ///
    /// # Safety
    /// The work is queued on this stream, touches no memory but this, and writes none that it is given to read.
    ///
    /// # Errors
    /// If memory is another device's or not free yet, or the call fails.
    pub unsafe fn queue(
        &self,
        name: &str,
        memory: &[Arg<'_>],
        call: impl FnOnce(driver::Stream) -> Result<(), CallError>,
    ) -> Result<(), GpuError> {
        let touched = || memory.iter().filter_map(Arg::memory);
        touched().try_for_each(|(span, _)| self.holds(span))?;
        let touches: Vec<_> = touched().map(|(_, touch)| touch).collect();
        self.account(name, &touches)?;
        let doing = || format!("queue `{name}` on the stream `{}`", self.name());
        self.device().call(doing, |_| call(self.0.handle))
    }
}
