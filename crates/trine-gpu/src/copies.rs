//! Work that needs no kernel: fills and copies.

use crate::error::GpuError;
use crate::memory::{Span, SpanMut};
use crate::stream::Stream;

impl Stream {
    /// Sets every byte.
    ///
    /// # Errors
    /// If the memory is another device's, is not free yet, or the device does not take it.
    pub fn fill(&self, to: SpanMut<'_>, byte: u8) -> Result<(), GpuError> {
        self.holds(to.as_span())?;
        if to.bytes() == 0 {
            return Ok(());
        }
        self.account("fill", &[to.touch()])?;
        let doing = || format!("fill `{}`", to.name());
        self.device().call(doing, |driver| {
            // SAFETY: the range lies in memory that is allocated, in the order of streams.
            unsafe { driver.memory_set(to.address(), byte, to.bytes(), self.0.handle) }
        })
    }

    /// Copies all bytes of `from`, also between devices.
    ///
    /// # Errors
    /// If the lengths differ, `to` is another device's, one of the two is not free yet, or the device does not take it.
    pub fn copy(&self, to: SpanMut<'_>, from: Span<'_>) -> Result<(), GpuError> {
        if to.bytes() != from.bytes() {
            return Err(GpuError::Length { from: from.bytes(), to: to.bytes() });
        }
        self.holds(to.as_span())?;
        if to.bytes() == 0 {
            return Ok(());
        }
        self.account("copy", &[from.touch(), to.touch()])?;
        let (here, there) = (self.device(), from.device());
        let doing = || format!("copy `{}` to `{}`", from.name(), to.name());
        let (to, from, bytes, stream) = (to.address(), from.address(), to.bytes(), self.0.handle);
        here.call(doing, |driver| {
            // SAFETY: both ranges lie in memory that is allocated, in the order of streams, each with its context.
            unsafe {
                if here.index() == there.index() {
                    driver.copy(to, from, bytes, stream)
                } else {
                    driver.copy_between(to, here.0.context, from, there.0.context, bytes, stream)
                }
            }
        })
    }
}
