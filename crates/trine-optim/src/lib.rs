//! AdamW and SGD over the flat ranges that a rank owns, and learning-rate schedules.
//!
//! An optimizer sees ranges of bucket elements, never layers. A list of ranges says whether a rank
//! owns whole buckets (ZeRO-0) or one part of each (ZeRO-1). The same elements get the same bits
//! either way.
//!
//! * [`OptimizerConfig`]: which algorithm, with its constants.
//! * [`Optimizer`]: the state of the owned ranges (f32 master weights beside bf16 ones, moments),
//!   one fused pass a step, and the state by name for checkpoints.
//! * [`Group`]: parameters with a rate, a decay or a schedule of their own.
//! * [`LrSchedule`]: the learning rate as a pure function of the step.
//!
//! ```
//! use std::sync::Arc;
//! use trine_buffer::DType;
//! use trine_kernels::{CpuOps, Team};
//! use trine_nn::{GradStore, Numerics, ParamStore, initial_weights};
//! use trine_optim::{LrKind, LrSchedule, Optimizer, OptimizerConfig, Update};
//! use trine_spec::{Piece, RankLayout, RankRequest, StagePieces, presets};
//!
//! let model = presets::find("rust-default")?.model.parts(1)?;
//! let stages = [StagePieces { stage: 0, pieces: vec![Piece::Block(0)] }];
//! let layout = Arc::new(RankLayout::new(&RankRequest::serial(&model, &stages))?);
//! let ops = CpuOps::new(Team::new(1));
//! let mut params = ParamStore::zeros(layout.clone(), DType::Bf16);
//! let grads = GradStore::new(layout.clone(), DType::Bf16, Numerics::Fast);
//!
//! let config = OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
//! let own: Vec<_> = layout.buckets.iter().map(|bucket| 0..bucket.len).collect();
//! let mut optimizer = Optimizer::new(&layout, own, DType::Bf16, config, |bucket| {
//!     let master = initial_weights(&layout, bucket, 1, DType::F32)?;
//!     params.load(bucket, master.slice(), &ops)?;
//!     Ok(master)
//! })?;
//!
//! let schedule =
//!     LrSchedule { kind: LrKind::Cosine, warmup_steps: 10, min_ratio: 0.1, decay_fraction: 0.2 };
//! for step in 1..=3 {
//!     let update = Update { lr: schedule.rates(3e-3, step, 100), grad_scale: 1.0, step };
//!     optimizer.step(&mut params, &grads, update, &ops)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod groups;
mod optimizer;
mod schedule;
mod segments;

pub use config::OptimizerConfig;
pub use groups::Group;
pub use optimizer::{MASTER, Optimizer, Update};
pub use schedule::{LrKind, LrSchedule, Rates};

use std::ops::Range;
use trine_buffer::BufferError;
use trine_kernels::KernelError;
use trine_nn::NnError;

/// What can go wrong in an optimizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptimError {
    /// A constant is out of its range.
    #[error("{field} = {value}: {rule}; nearest valid value: {nearest}")]
    Field {
        /// The field's name in the configuration.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What must hold.
        rule: &'static str,
        /// A value that would do.
        nearest: f64,
    },
    /// The owned ranges are not one for each bucket.
    #[error("{ranges} owned ranges for {buckets} buckets; there must be one a bucket")]
    Ranges {
        /// Ranges given.
        ranges: usize,
        /// Buckets of the layout.
        buckets: usize,
    },
    /// An owned range ends beyond its bucket.
    #[error("bucket {bucket} has {len} elements, the owned range is {own:?}")]
    Own {
        /// The bucket.
        bucket: usize,
        /// Its length in elements.
        len: usize,
        /// The range given.
        own: Range<usize>,
    },
    /// The initial weights of a bucket have another length than the bucket.
    #[error("bucket {bucket} has {len} elements, its initial weights have {held}")]
    Initial {
        /// The bucket.
        bucket: usize,
        /// Its length in elements.
        len: usize,
        /// What was given.
        held: usize,
    },
    /// Steps count from 1, because of the bias correction.
    #[error("optimizer steps count from 1, got step 0")]
    StepZero,
    /// This optimizer keeps no such quantity.
    #[error("the optimizer keeps no \"{name}\"; it keeps {kept:?}")]
    Quantity {
        /// The name asked for.
        name: String,
        /// The names there are.
        kept: Vec<&'static str>,
    },
    /// A store refused.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// A kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A buffer has the wrong type or length.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}
