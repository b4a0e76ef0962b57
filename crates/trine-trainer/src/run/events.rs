//! What a run tells the world while it runs. How it is shown is the business of the command line.

use crate::config::Config;
use crate::engine::EngineConfig;
use crate::memory::MemoryPlan;
use crate::outlook::Outlook;
use crate::planned::PlanCheck;
use crate::run::{Completion, MetricsLine, Summary};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use trine_data::CorpusReport;
use trine_schedule::UniformStage;

/// Something happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// What this process's ranks will take: told before anything of it is allocated.
    Planned(&'a MemoryPlan),
    /// The ranks have measured the times for which their schedule is made.
    Measured(UniformStage),
    /// The data is being made ready.
    Data(trine_data::Progress<'a>),
    /// The ranks are about to start.
    Started {
        /// The configuration.
        config: &'a Config,
        /// What the ranks are made of.
        engine: &'a EngineConfig,
        /// What the text is.
        data: &'a CorpusReport,
        /// The run directory.
        directory: &'a Path,
        /// The step that the run goes on from.
        first_step: u64,
        /// When a time limit ends it, if there is one.
        ends_by: Option<Instant>,
    },
    /// What the ranks compute on, and why ([`TrainRequest::devices_said`](crate::TrainRequest::devices_said)).
    Devices(&'a str),
    /// What the steps that are left will take.
    Outlook(&'a Outlook),
    /// What the ranks of this process are at: told when it begins, and now and then while it lasts.
    Work(Work),
    /// A step is done.
    Step {
        /// Its numbers.
        line: &'a MetricsLine,
        /// Steps in all.
        steps: u64,
        /// Memory of the process in bytes, where the system tells.
        rss_bytes: Option<u64>,
    },
    /// The plan has been held against the first steps.
    PlanChecked(&'a PlanCheck),
    /// Something that the user should know.
    Note(String),
    /// A checkpoint is complete.
    Saved {
        /// Its folder.
        path: &'a Path,
    },
    /// The run is over.
    Finished {
        /// What it came to.
        summary: &'a Summary,
        /// The run directory.
        directory: &'a Path,
    },
    /// A completion by the trained model.
    Sample(&'a Completion),
}

/// What the first rank of a process is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It measures the times for which the schedule is made.
    Measuring,
    /// It builds its part of the model, and restores it if there is a checkpoint.
    Building,
    /// It is in a training step.
    Step {
        /// The step, from 1.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Actions of its schedule that are done.
        actions_done: usize,
        /// Actions of its schedule.
        actions: usize,
        /// Time since the step began.
        elapsed: Duration,
    },
    /// It evaluates.
    Evaluating {
        /// Global batches that are done.
        batches_done: u64,
        /// Global batches in all.
        batches: u64,
    },
    /// It writes a checkpoint.
    Saving {
        /// After so many steps.
        step: u64,
    },
}

/// Shows events.
pub trait Reporter: Send {
    /// Shows one.
    fn event(&mut self, event: &Event<'_>);
}

/// Tells the reporter. A reporter that panicked is not told any more.
pub(crate) fn report(reporter: &Mutex<dyn Reporter + '_>, event: &Event<'_>) {
    reporter.lock().unwrap_or_else(PoisonError::into_inner).event(event);
}
