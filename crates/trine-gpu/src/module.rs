//! Modules of kernels.

use crate::device::Device;
use crate::error::GpuError;
use crate::ptx::{Parameter, entries};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::ptr::null_mut;
use std::sync::Arc;
use trine_gpu_sys::driver;

pub(crate) struct Inner {
    device: Device,
    handle: driver::Module,
    entries: BTreeMap<String, Vec<Parameter>>,
}

// SAFETY: the driver takes its handles from any thread.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing is changed after the start.
unsafe impl Sync for Inner {}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "module of {:?} on {:?}", self.entries.keys(), self.device.0)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: no kernel of it is left. A failure can be told to nobody.
        let _ =
            self.device.call(String::new, |driver| unsafe { driver.module_unload(self.handle) });
    }
}

/// Kernels that a device has loaded. Copies are the same one.
#[derive(Debug, Clone)]
pub struct Module(Arc<Inner>);

/// A kernel and the arguments that it takes.
#[derive(Debug, Clone)]
pub struct Kernel {
    module: Module,
    pub(crate) handle: driver::Function,
    name: String,
}

// SAFETY: the driver takes its handles from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above; nothing is changed after the start.
unsafe impl Sync for Kernel {}

impl Device {
    /// Loads kernels from a text in PTX, which the driver compiles for this device.
    ///
    /// # Errors
    /// If the text is none, or the driver refuses it.
    pub fn module(&self, ptx: &str) -> Result<Module, GpuError> {
        let entries = entries(ptx).map_err(GpuError::Image)?;
        let image = CString::new(ptx).map_err(|_| GpuError::Image("has a zero byte"))?;
        let mut handle = driver::Module(null_mut());
        let doing = || format!("load {} kernels on GPU {}", entries.len(), self.index());
        let text = image.as_ptr().cast();
        // SAFETY: writes one handle; the text ends with a zero byte and no option is given.
        self.call(doing, |driver| unsafe {
            driver.module_load(&mut handle, text, 0, null_mut(), null_mut())
        })?;
        Ok(Module(Arc::new(Inner { device: self.clone(), handle, entries })))
    }
}

impl Module {
    /// The names of its kernels.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.0.entries.keys().map(String::as_str)
    }

    /// One of them.
    ///
    /// # Errors
    /// If it has none of this name, or the driver does not give it.
    pub fn kernel(&self, name: &str) -> Result<Kernel, GpuError> {
        let symbol = CString::new(name).ok().filter(|_| self.0.entries.contains_key(name));
        let Some(symbol) = symbol else {
            let has = self.kernels().map(str::to_owned).collect();
            return Err(GpuError::NoKernel { name: name.into(), has });
        };
        let mut handle = driver::Function(null_mut());
        let doing = || format!("find the kernel `{name}` on GPU {}", self.0.device.index());
        // SAFETY: writes one handle; the module is loaded and the name ends with a zero byte.
        self.0.device.call(doing, |driver| unsafe {
            driver.module_function(&mut handle, self.0.handle, symbol.as_ptr())
        })?;
        Ok(Kernel { module: self.clone(), handle, name: name.into() })
    }
}

impl Kernel {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it takes.
    pub fn parameters(&self) -> &[Parameter] {
        &self.module.0.entries[&self.name]
    }

    pub(crate) fn device(&self) -> &Device {
        &self.module.0.device
    }
}
