//! Executes a lowered schedule: one loop over one rank's list of actions.
//!
//! The decisions are all in the schedule ([`trine_schedule`]): what to run when, which message to
//! post with which, when a gradient bucket is complete. [`execute`] reads it action by action. What
//! an action *means* is the business of a [`StageOps`], which the trainer implements with its layers
//! and its gradient synchronisation; this crate knows neither.
//!
//! ```
//! use trine_buffer::{Act, Buf, DType, Pool};
//! use trine_pipeline::{Execution, StageError, StageOps, execute};
//! use trine_schedule::{Payload, Reduction, ScheduleKind, lower};
//!
//! /// A stage that doubles its input; its gradient doubles on the way back.
//! struct Double(Vec<f32>);
//!
//! impl StageOps for Double {
//!     fn forward(&mut self, _: usize, mb: usize, x: Option<Act>) -> Result<Act, StageError> {
//!         let x = x.map_or(mb as f32, |x| x.to_f64_vec().unwrap()[0] as f32);
//!         self.0.push(2.0 * x);
//!         Ok(Act::new(Buf::from_vec(vec![2.0 * x])))
//!     }
//!     fn backward_input(
//!         &mut self, _: usize, _: usize, _: Option<usize>, dy: Option<Act>,
//!     ) -> Result<Option<Act>, StageError> {
//!         let dy = dy.map_or(1.0, |dy| dy.to_f64_vec().unwrap()[0] as f32);
//!         Ok(Some(Act::new(Buf::from_vec(vec![2.0 * dy]))))
//!     }
//!     fn backward_weight(
//!         &mut self, _: usize, _: usize, _: Option<usize>,
//!     ) -> Result<(), StageError> {
//!         Ok(())
//!     }
//!     fn transfer_len(&self, _: Payload) -> (DType, usize) {
//!         (DType::F32, 1)
//!     }
//!     fn sync(&mut self, _: Reduction) -> Result<(), StageError> {
//!         Ok(())
//!     }
//! }
//!
//! let schedule = lower(&ScheduleKind::OneFOneB.generate(2, 3)?, None)?;
//! let outputs = trine_comm::threads::run(2, &Default::default(), |comm| {
//!     let (pool, mut stage) = (Pool::new(), Double(vec![]));
//!     execute(&Execution { schedule: &schedule, comm: &*comm, pool: &pool }, &mut stage, &mut |_, _, _| {})?;
//!     Ok::<_, trine_pipeline::PipelineError>(stage.0)
//! })?;
//! assert_eq!(outputs, [[0.0, 2.0, 4.0], [0.0, 4.0, 8.0]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod execute;

pub use execute::{Execution, Moment, StageOps, execute};

use trine_schedule::Action;

/// Whatever a stage runs into.
pub type StageError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong while a schedule runs: where, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A stage or its gradient synchronisation failed.
    #[error("pipeline rank {rank}, action {position} ({action}): {cause}")]
    Stage {
        /// The pipeline rank.
        rank: usize,
        /// Position in the rank's list.
        position: usize,
        /// The action.
        action: Action,
        /// Why.
        cause: StageError,
    },
    /// An action needs an activation or a gradient that nobody has produced.
    #[error(
        "pipeline rank {rank}, action {position} ({action}): its {what} is not there; \
         the schedule has not been verified"
    )]
    Input {
        /// The pipeline rank.
        rank: usize,
        /// Position in the rank's list.
        position: usize,
        /// The action.
        action: Action,
        /// What is missing.
        what: &'static str,
    },
    /// The schedule is for another number of ranks.
    #[error("the schedule is for another pipeline: ranks in it: {ranks}, in the group: {size}")]
    Ranks {
        /// Ranks in the schedule.
        ranks: usize,
        /// Ranks in the group.
        size: usize,
    },
}
