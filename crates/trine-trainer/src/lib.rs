//! The trainer: what turns a configuration into a trained model.
//!
//! [`config`] holds the typed configuration of a run: presets, files and options become one
//! [`config::Config`], and everything contradictory is refused before anything is allocated.
//!
//! ```
//! use trine_trainer::config::{Config, Setting, Typed};
//!
//! let typed = Typed {
//!     preset: Some("gpt2-124m".into()),
//!     settings: vec![Setting::option("--dp", "layout.dp", "4")],
//!     ..Typed::default()
//! };
//! let config = Config::load(&typed)?;
//! assert_eq!(config.world(), 16);
//! assert_eq!(config.tokens_per_step(), config.batch.global * 1024);
//! # Ok::<(), trine_trainer::config::ConfigError>(())
//! ```

pub mod bench;
pub mod config;
mod cores;
pub mod engine;
mod error;
mod fastest;
mod memory;
mod nearest_fit;
mod outlook;
pub mod parity;
mod plan;
mod planned;
pub mod run;
mod settings;
mod splits;

pub use error::TrainError;
pub use fastest::{Choices, Fastest, OwnGpus};
pub use memory::{MemoryLimit, MemoryPlan};
pub use outlook::{Outlook, Time};
pub use plan::RunPlan;
pub use planned::{Machine, PlanCheck, RankCheck, RankMemory, planned_step};
pub use run::{Process, Ranks, TrainRequest, train};
