//! Modules of kernels.

use crate::device::Device;
use crate::error::GpuError;
use crate::ptx::{Parameter, entries};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::ptr::null_mut;
use std::sync::Arc;
use trine_gpu_sys::driver::{self, MODULE_ERROR_LOG, MODULE_ERROR_LOG_BYTES};

/// What is kept of the words of the driver's compiler.
const LOG_BYTES: usize = 4096;

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
        let mut log = [0u8; LOG_BYTES];
        let mut options = [MODULE_ERROR_LOG, MODULE_ERROR_LOG_BYTES];
        let mut values: [*mut c_void; 2] =
            [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let (names, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        let text = image.as_ptr().cast();
        // SAFETY: writes one handle, and at most as many bytes of the log as the second option says; the text ends with
        // a zero byte.
        let loaded = self.call(String::new, |driver| unsafe {
            driver.module_load(&mut handle, text, 2, names, values)
        });
        loaded.map_err(|error| refused(error, self.index(), entries.len(), &log))?;
        Ok(Module(Arc::new(Inner { device: self.clone(), handle, entries })))
    }
}

/// The compiler's words beside the code of the call.
fn refused(error: GpuError, device: usize, kernels: usize, log: &[u8]) -> GpuError {
    let GpuError::Call { source, .. } = error else { return error };
    let log = CStr::from_bytes_until_nul(log).unwrap_or_default().to_string_lossy();
    let log = if log.is_empty() { "it says no more".into() } else { log.trim_end().to_owned() };
    GpuError::Compile { device, kernels, source, log }
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
