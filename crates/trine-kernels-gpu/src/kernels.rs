//! Compiled kernels by name.

use std::collections::HashMap;
use trine_gpu::{Arg, GpuError, Grid, Kernel, Stream};

/// The kernels of a device, from one image or several.
#[derive(Debug, Clone)]
pub struct Kernels(HashMap<String, Kernel>);

impl Kernels {
    /// Loads what is compiled of [`crate::SOURCES`] onto the device of a stream.
    ///
    /// # Errors
    /// If an image is none, or the driver refuses it.
    pub fn load<'a>(
        stream: &Stream,
        images: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, GpuError> {
        let mut kernels = HashMap::new();
        for image in images {
            let module = stream.device().module(image)?;
            for name in module.kernels() {
                kernels.insert(name.to_owned(), module.kernel(name)?);
            }
        }
        Ok(Self(kernels))
    }

    /// The names of all kernels.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Runs one.
    ///
    /// # Safety
    /// As [`Stream::launch`]: the arguments hold what the kernel's comment asks for.
    ///
    /// # Errors
    /// If there is no such kernel, or it cannot be launched so.
    pub(crate) unsafe fn launch(
        &self,
        stream: &Stream,
        name: &str,
        grid: Grid,
        args: &[Arg<'_>],
    ) -> Result<(), GpuError> {
        let Some(kernel) = self.0.get(name) else {
            let mut has: Vec<_> = self.names().map(str::to_owned).collect();
            has.sort();
            return Err(GpuError::NoKernel { name: name.into(), has });
        };
        // SAFETY: the caller's promise.
        unsafe { stream.launch(kernel, grid, args) }
    }
}
