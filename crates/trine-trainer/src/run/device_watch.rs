//! When the actions of a step were at work on a device.

use crate::TrainError;
use std::time::{Duration, Instant};
use trine_buffer::{BufferError, Place, Stamp};
use trine_pipeline::Moment;
use trine_schedule::Action;

/// Points in the queue of a rank's device around each action of a step. They are read when the step's losses are known,
/// which come behind all of them: the host has waited for those anyway.
#[derive(Debug)]
pub(super) struct DeviceWatch {
    place: Place,
    /// A point of the queue, and the moment of the host that it stands for: where the last step began.
    base: (Stamp, Instant),
    /// Where this step begins.
    step: Option<Stamp>,
    /// Where the action under way begins.
    begun: Option<Stamp>,
    /// The actions of this step: position, begin and end.
    actions: Vec<(usize, Action, [Stamp; 2])>,
    /// Why a point could not be set, first of all.
    failed: Option<BufferError>,
}

/// An action of a step, by the clock of a device.
#[derive(Debug)]
pub(super) struct Timed {
    pub(super) position: usize,
    pub(super) action: Action,
    /// The moment of the host when the device began it.
    pub(super) began: Instant,
    pub(super) seconds: f64,
}

impl DeviceWatch {
    /// Waits for the device once, to know which moment of the host a point of its queue stands for.
    pub(super) fn new(place: &Place) -> Result<Self, TrainError> {
        let base = place.stamp()?;
        base.wait()?;
        Ok(Self {
            place: place.clone(),
            base: (base, Instant::now()),
            step: None,
            begun: None,
            actions: Vec::new(),
            failed: None,
        })
    }

    /// A step that failed has left its actions.
    pub(super) fn begin_step(&mut self) -> Result<(), TrainError> {
        self.actions.clear();
        self.step = Some(self.place.stamp()?);
        Ok(())
    }

    pub(super) fn observe(&mut self, position: usize, action: &Action, moment: Moment) {
        let here = match self.place.stamp() {
            Ok(here) => here,
            Err(error) => {
                self.failed.get_or_insert(error);
                return;
            }
        };
        match moment {
            Moment::Begin => self.begun = Some(here),
            Moment::End => {
                let begun = self.begun.take();
                self.actions.extend(begun.map(|begun| (position, *action, [begun, here])));
            }
        }
    }

    /// The actions of the step. Its first point is the next base, so that no time is told over more than a step: a
    /// device tells it in few digits.
    pub(super) fn end_step(&mut self) -> Result<Vec<Timed>, TrainError> {
        if let Some(failed) = self.failed.take() {
            return Err(failed.into());
        }
        let Some(step) = self.step.take() else { return Ok(Vec::new()) };
        let (base, moment) = &self.base;
        let began = *moment + seconds(step.seconds_since(base)?);
        let timed = self.actions.drain(..).map(|(position, action, [begin, end])| {
            let began = began + seconds(begin.seconds_since(&step)?);
            Ok(Timed { position, action, began, seconds: end.seconds_since(&begin)?.max(0.0) })
        });
        let timed = timed.collect::<Result<_, TrainError>>()?;
        self.base = (step, began);
        Ok(timed)
    }
}

fn seconds(count: f64) -> Duration {
    Duration::try_from_secs_f64(count).unwrap_or_default()
}
