//! The driver of a machine and its devices.

use crate::error::GpuError;
use crate::ledger::{Checks, Ledger};
use std::fmt;
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use trine_gpu_sys::driver::{self, Context, MemoryPool};
use trine_gpu_sys::{CallError, Driver, Gpu, Loaded, Search, Version, load};

/// What all devices of a process share.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) driver: Driver,
    ledger: Option<Mutex<Ledger>>,
    buffers: AtomicU64,
}

impl Host {
    /// The ledger, if it is kept.
    pub(crate) fn ledger(&self) -> Option<MutexGuard<'_, Ledger>> {
        // A panic elsewhere leaves the ledger as it was before an operation, or after it.
        self.ledger.as_ref().map(|ledger| ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A number that no other memory has.
    pub(crate) fn next_buffer(&self) -> u64 {
        self.buffers.fetch_add(1, Ordering::Relaxed)
    }
}

/// The GPUs of a machine. Copies are the same ones.
#[derive(Debug, Clone)]
pub struct Gpus {
    host: Arc<Host>,
    list: Vec<Gpu>,
    path: PathBuf,
    version: Version,
}

impl Gpus {
    /// Opens the driver and asks for its GPUs; none is no error.
    ///
    /// # Errors
    /// If there is no driver that can be used, or it does not start.
    pub fn open(search: &Search, checks: Checks) -> Result<Self, GpuError> {
        let Loaded { functions: driver, path, version } = load::<Driver>(&driver::CUDA, search)?;
        let list = driver.gpus().map_err(GpuError::call(|| "list the GPUs".into()))?;
        let ledger = (checks == Checks::On).then(Mutex::default);
        let host = Arc::new(Host { driver, ledger, buffers: AtomicU64::new(0) });
        Ok(Self { host, list, path, version })
    }

    /// What they are, in the driver's order.
    pub fn list(&self) -> &[Gpu] {
        &self.list
    }

    /// The driver's file and the newest CUDA that it runs.
    pub fn driver(&self) -> (&PathBuf, Version) {
        (&self.path, self.version)
    }

    /// One of them, from 0 on, ready for work.
    ///
    /// # Errors
    /// If there are fewer, or the driver does not give it.
    pub fn device(&self, index: usize) -> Result<Device, GpuError> {
        let count = self.list.len();
        if index >= count {
            return Err(GpuError::NoDevice { index, count });
        }
        let driver = &self.host.driver;
        let doing = || format!("use GPU {index}");
        let (mut number, mut context) = (0, Context(null_mut()));
        // SAFETY: each writes one value; the number is one that the driver has given.
        unsafe {
            driver.device_get(&mut number, index as i32).map_err(GpuError::call(doing))?;
            driver.context_retain(&mut context, number).map_err(GpuError::call(doing))?;
        }
        let device = Device(Arc::new(Inner {
            host: self.host.clone(),
            index,
            number,
            context,
            events: Mutex::default(),
            timed_events: Mutex::default(),
        }));
        device.keep_memory()?;
        Ok(device)
    }
}

pub(crate) struct Inner {
    pub(crate) host: Arc<Host>,
    pub(crate) index: usize,
    number: driver::Device,
    pub(crate) context: Context,
    /// Events that nobody holds, to be used again.
    pub(crate) events: Mutex<Vec<driver::Event>>,
    /// The same of those that tell the time.
    pub(crate) timed_events: Mutex<Vec<driver::Event>>,
}

// SAFETY: the driver takes its handles from any thread, and each call makes the context current in its own.
unsafe impl Send for Inner {}
// SAFETY: as above; what is changed here is behind a lock.
unsafe impl Sync for Inner {}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {}", self.index)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let idle = [&self.events, &self.timed_events];
        let idle = idle
            .map(|all| std::mem::take(&mut *all.lock().unwrap_or_else(PoisonError::into_inner)));
        let driver = &self.host.driver;
        // SAFETY: nobody holds these events, nor the device. A failure can be told to nobody.
        unsafe {
            let _ = driver.context_set_current(self.context);
            for event in idle.into_iter().flatten() {
                let _ = driver.event_destroy(event);
            }
            let _ = driver.context_release(self.number);
        }
    }
}

/// A GPU that is ready for work. Copies are the same one.
#[derive(Debug, Clone)]
pub struct Device(pub(crate) Arc<Inner>);

impl Device {
    /// Its place in the driver's order.
    pub fn index(&self) -> usize {
        self.0.index
    }

    /// The bytes of its memory that are free, and all.
    ///
    /// # Errors
    /// If the device does not answer.
    pub fn memory_bytes(&self) -> Result<(usize, usize), GpuError> {
        let (mut free, mut total) = (0, 0);
        let doing = || format!("ask GPU {} for its memory", self.index());
        // SAFETY: writes two numbers.
        self.call(doing, |driver| unsafe { driver.memory_info(&mut free, &mut total) })?;
        Ok((free, total))
    }

    /// Whether kernels here may touch memory of `peer`, from now on.
    ///
    /// # Errors
    /// If the devices have no way to each other, or the driver refuses.
    pub fn reach(&self, peer: &Self) -> Result<(), GpuError> {
        let doing = || format!("reach GPU {} from GPU {}", peer.index(), self.index());
        // SAFETY: both contexts are retained.
        self.call(doing, |driver| unsafe { driver.context_reach(peer.0.context, 0) })
    }

    /// Calls the driver with this device's context current.
    pub(crate) fn call(
        &self,
        doing: impl FnOnce() -> String,
        f: impl FnOnce(&Driver) -> Result<(), CallError>,
    ) -> Result<(), GpuError> {
        let driver = &self.0.host.driver;
        // SAFETY: the context is retained until the device is dropped.
        let current = unsafe { driver.context_set_current(self.0.context) };
        current.and_then(|()| f(driver)).map_err(GpuError::call(doing))
    }

    /// Memory that is freed stays with the process: to get it from the system again would stop the device.
    fn keep_memory(&self) -> Result<(), GpuError> {
        let (mut pool, mut all) = (MemoryPool(null_mut()), u64::MAX);
        let doing = || format!("keep the freed memory of GPU {}", self.index());
        self.call(doing, |driver| {
            let value = (&raw mut all).cast();
            // SAFETY: writes one handle, then reads a number of 64 bits, which this attribute is.
            unsafe {
                driver.pool_default(&mut pool, self.0.number)?;
                driver.pool_set_attribute(pool, driver::POOL_KEPT_BYTES, value)
            }
        })
    }
}
