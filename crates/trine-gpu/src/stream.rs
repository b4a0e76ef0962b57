//! Streams and events.

use crate::device::{Device, Inner as DeviceInner};
use crate::error::GpuError;
use crate::ledger::{Clock, Touch};
use std::ffi::{c_int, c_uint};
use std::fmt;
use std::ptr::null_mut;
use std::sync::{Arc, MutexGuard, PoisonError};
use trine_gpu_sys::driver::{self, EVENT_WITHOUT_TIME, NOT_READY, STREAM_NON_BLOCKING};

/// Which of two streams a device prefers when both have work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// As any other.
    Normal,
    /// Before any other: communication, which others wait for.
    First,
}

pub(crate) struct Inner {
    pub(crate) device: Device,
    pub(crate) handle: driver::Stream,
    pub(crate) name: String,
    /// Its number in the ledger.
    pub(crate) number: usize,
}

// SAFETY: the driver takes its handles from any thread.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing is changed after the start.
unsafe impl Sync for Inner {}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream `{}` of {:?}", self.name, self.device.0)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: nobody holds the stream; what it has queued is still done. A failure can be told to nobody.
        let _ =
            self.device.call(String::new, |driver| unsafe { driver.stream_destroy(self.handle) });
    }
}

/// Work of a device in order. Copies are the same one.
#[derive(Debug, Clone)]
pub struct Stream(pub(crate) Arc<Inner>);

impl Device {
    /// A new stream, which errors call `name`.
    ///
    /// # Errors
    /// If the device does not give one.
    pub fn stream(&self, name: &str, priority: Priority) -> Result<Stream, GpuError> {
        let mut handle = driver::Stream(null_mut());
        let doing = || format!("make the stream `{name}` on GPU {}", self.index());
        self.call(doing, |driver| {
            let (mut least, mut greatest): (c_int, c_int) = (0, 0);
            // SAFETY: writes two numbers, then one handle.
            unsafe {
                driver.context_priorities(&mut least, &mut greatest)?;
                let priority = match priority {
                    Priority::Normal => least,
                    Priority::First => greatest,
                };
                driver.stream_create(&mut handle, STREAM_NON_BLOCKING, priority)
            }
        })?;
        let number = self.0.host.ledger().map_or(0, |mut ledger| ledger.add_stream(name));
        Ok(Stream(Arc::new(Inner { device: self.clone(), handle, name: name.into(), number })))
    }
}

impl Stream {
    /// Its device.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// What errors call it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether the other one is the same.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A point behind all work so far.
    ///
    /// # Errors
    /// If the device does not take it.
    pub fn record(&self) -> Result<Event, GpuError> {
        self.record_by(Clocked::No)
    }

    /// The same, for the time from one to another.
    ///
    /// # Errors
    /// If the device does not take it.
    pub fn timestamp(&self) -> Result<Timestamp, GpuError> {
        Ok(Timestamp(self.record_by(Clocked::Yes)?))
    }

    fn record_by(&self, clocked: Clocked) -> Result<Event, GpuError> {
        let device = self.device();
        let doing = || format!("record an event on the stream `{}`", self.name());
        let idle = clocked.idle(device).pop();
        let mut handle = idle.unwrap_or(driver::Event(null_mut()));
        device.call(doing, |driver| {
            // SAFETY: writes one handle, and records it; the stream is open.
            unsafe {
                if idle.is_none() {
                    driver.event_create(&mut handle, clocked.flags())?;
                }
                driver.event_record(handle, self.0.handle)
            }
        })?;
        let recorded = device
            .0
            .host
            .ledger()
            .map(|mut ledger| ledger.record(self.0.number))
            .unwrap_or_default();
        Ok(Event { device: device.clone(), handle, clocked, recorded })
    }

    /// All work from now on comes after the event.
    ///
    /// # Errors
    /// If the device does not take it.
    pub fn wait(&self, event: &Event) -> Result<(), GpuError> {
        let doing = || format!("make the stream `{}` wait for an event", self.name());
        self.device().call(doing, |driver| {
            // SAFETY: the stream is open and the event recorded.
            unsafe { driver.stream_wait(self.0.handle, event.handle, 0) }
        })?;
        if let Some(mut ledger) = self.device().0.host.ledger() {
            ledger.wait(self.0.number, &event.recorded);
        }
        Ok(())
    }

    /// Waits until all work so far is done. The device may then stand still: a step has one such wait.
    ///
    /// # Errors
    /// If work so far has failed.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        self.record()?.synchronize()
    }

    /// Asks the ledger whether an operation may touch these bytes now.
    pub(crate) fn account(&self, operation: &str, touches: &[Touch]) -> Result<(), GpuError> {
        let Some(mut ledger) = self.device().0.host.ledger() else { return Ok(()) };
        Ok(ledger.operation(self.0.number, operation, touches)?)
    }
}

/// Whether an event tells the time, which costs more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clocked {
    No,
    Yes,
}

impl Clocked {
    fn flags(self) -> c_uint {
        if self == Self::Yes { 0 } else { EVENT_WITHOUT_TIME }
    }

    /// Events of this kind that nobody holds.
    fn idle(self, device: &Device) -> MutexGuard<'_, Vec<driver::Event>> {
        let DeviceInner { events, timed_events, .. } = &*device.0;
        let idle = if self == Self::Yes { timed_events } else { events };
        idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A point in a stream.
pub struct Event {
    device: Device,
    handle: driver::Event,
    clocked: Clocked,
    recorded: Clock,
}

// SAFETY: the driver takes its handles from any thread.
unsafe impl Send for Event {}
// SAFETY: as above; nothing is changed after the start.
unsafe impl Sync for Event {}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event of {:?}", self.device.0)
    }
}

impl Event {
    /// Waits until the work before it is done.
    ///
    /// # Errors
    /// If that work has failed.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        let doing = || format!("finish work on GPU {}", self.device.index());
        // SAFETY: the event is recorded.
        self.device.call(doing, |driver| unsafe { driver.event_synchronize(self.handle) })?;
        self.known();
        Ok(())
    }
}

impl Event {
    /// Whether the work before it is done; waits for nothing.
    ///
    /// # Errors
    /// If that work has failed.
    pub fn is_done(&self) -> Result<bool, GpuError> {
        let doing = || format!("ask for work on GPU {}", self.device.index());
        // SAFETY: the event is recorded.
        let asked = self.device.call(doing, |driver| unsafe { driver.event_query(self.handle) });
        match asked {
            Err(GpuError::Call { source, .. }) if source.code == NOT_READY => Ok(false),
            Err(error) => Err(error),
            Ok(()) => {
                self.known();
                Ok(true)
            }
        }
    }

    /// The host knows that the work before it is done.
    fn known(&self) {
        if let Some(mut ledger) = self.device.0.host.ledger() {
            ledger.wait_on_host(&self.recorded);
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // Whoever waits for it has taken the point when it began to wait.
        self.clocked.idle(&self.device).push(self.handle);
    }
}

/// A point in a stream that is known by the clock of its device.
#[derive(Debug)]
pub struct Timestamp(Event);

impl Timestamp {
    /// Waits until the work before it is done.
    ///
    /// # Errors
    /// If that work has failed.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        self.0.synchronize()
    }

    /// Seconds from an earlier point to here, to half a microsecond; waits for the two where they are still to come.
    ///
    /// # Errors
    /// If work before them has failed, or they are of two devices.
    pub fn seconds_since(&self, earlier: &Self) -> Result<f64, GpuError> {
        for point in [earlier, self] {
            if !point.0.is_done()? {
                point.synchronize()?;
            }
        }
        let mut milliseconds = 0.0;
        let doing = || format!("tell the time between two events on GPU {}", self.0.device.index());
        self.0.device.call(doing, |driver| {
            // SAFETY: writes one number; both events are recorded.
            unsafe { driver.event_elapsed(&mut milliseconds, earlier.0.handle, self.0.handle) }
        })?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}
