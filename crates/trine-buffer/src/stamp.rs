//! Points in the work of a place, and the time between them.

use crate::{BufferError, Place};
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

/// A point in the queue of a device. Its backend finds its own type in another one again, through [`Any`].
pub trait DeviceStamp: Any + Debug + Send + Sync {
    /// Waits until the queue has come here.
    ///
    /// # Errors
    /// If work before it has failed.
    fn wait(&self) -> Result<(), BufferError>;

    /// Seconds of the device from `earlier`, a point of the same queue, to here. Waits for the queue where it has not
    /// come so far.
    ///
    /// # Errors
    /// If `earlier` is of another backend, or work before one of them has failed.
    fn seconds_since(&self, earlier: &dyn DeviceStamp) -> Result<f64, BufferError>;
}

/// A point in the work of a [`Place`]. Calls that compute return before a device has done anything, so that a clock of
/// the host would time how they are queued.
#[derive(Debug, Clone)]
pub enum Stamp {
    /// On the host, where every call is done when it returns.
    Host(Instant),
    /// In the queue of a device.
    Device(Arc<dyn DeviceStamp>),
}

impl Place {
    /// A point behind all work of this place so far. Nobody waits for it.
    ///
    /// # Errors
    /// If the device does not take it.
    pub fn stamp(&self) -> Result<Stamp, BufferError> {
        match self {
            Self::Host => Ok(Stamp::Host(Instant::now())),
            Self::Device(allocator) => Ok(Stamp::Device(allocator.stamp()?)),
        }
    }
}

impl Stamp {
    /// Waits until all work before it is done.
    ///
    /// # Errors
    /// If that work has failed.
    pub fn wait(&self) -> Result<(), BufferError> {
        match self {
            Self::Host(_) => Ok(()),
            Self::Device(stamp) => stamp.wait(),
        }
    }

    /// Seconds from `earlier`, a point of the same place, to here; waits until the place has come so far.
    ///
    /// # Errors
    /// If the two are not of one place, or work before them has failed.
    pub fn seconds_since(&self, earlier: &Self) -> Result<f64, BufferError> {
        match (self, earlier) {
            (Self::Host(now), Self::Host(then)) => {
                Ok(now.saturating_duration_since(*then).as_secs_f64())
            }
            (Self::Device(now), Self::Device(then)) => now.seconds_since(&**then),
            (Self::Host(_), Self::Device(_)) | (Self::Device(_), Self::Host(_)) => {
                let why = "no time lies between a point of the host and one of a device";
                Err(BufferError::Device(why.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;
    use std::time::Duration;

    #[test]
    fn the_host_tells_the_time_between_two_points() {
        let first = Place::Host.stamp().unwrap();
        sleep(Duration::from_millis(2));
        let last = Place::Host.stamp().unwrap();
        last.wait().unwrap();
        let seconds = last.seconds_since(&first).unwrap();
        assert!((0.002..2.0).contains(&seconds), "{seconds}");
        assert_eq!(first.seconds_since(&last).unwrap(), 0.0);
    }
}
