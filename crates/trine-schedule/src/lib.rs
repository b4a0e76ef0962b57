//! Pipeline schedules as data: generators, lowering, verifier, simulator, text form, drawings.
//!
//! A [`Schedule`] is a list of [`Action`]s for each pipeline rank: forward F, input gradient B, weight
//! gradient W, the messages between stages, the reductions of gradients. It is made by a pure function,
//! completed by small passes, proven by one verifier, and then the *same* value is simulated, drawn,
//! planned with and executed. No tensors, no communicator, no clock.
//!
//! ```
//! use trine_schedule::{Delivery, ScheduleKind, SyncPlan, UniformCosts, draw, lower, simulate, verify};
//!
//! // Four stages, eight micro-batches; each stage's gradients in two buckets.
//! let compute = "1f1b".parse::<ScheduleKind>()?.generate(4, 8)?;
//! let plan = SyncPlan { segments: vec![2; 4], tied: vec![] };
//! let schedule = lower(&compute, Some(&plan))?;
//!
//! // Proven: complete, in order, free of deadlock, no more activations than declared.
//! let report = verify(&schedule)?;
//! assert_eq!(report.in_flight_peak, [4, 3, 2, 1]);
//!
//! // Simulated: a forward costs 1, a backward 2.
//! let timeline = simulate(&schedule, Delivery::Buffered, &UniformCosts::new(&schedule))?;
//! assert_eq!(timeline.makespan, (8.0 + 4.0 - 1.0) * 3.0);
//! assert!((timeline.bubble_fraction() - 3.0 / 11.0).abs() < 1e-12);
//! println!("{}", draw::ascii(&timeline, 120));
//!
//! // A text that users can write and change.
//! assert_eq!(schedule.to_string().parse::<trine_schedule::Schedule>()?, schedule);
//! # Ok::<(), trine_schedule::ScheduleError>(())
//! ```
//!
//! A rank may hold several stages ([`Schedule::placement`]), B and W may stand apart, and lists may be
//! written by hand ([`Schedule::compute`]). [`lower()`] finds the places of the messages for any of them.

mod action;
mod closed_form;
pub mod draw;
mod engine;
mod error;
mod flow;
pub mod generate;
mod grid;
mod kind;
mod lower;
mod nearest;
mod order;
mod own;
mod parse;
mod schedule;
mod simulate;
mod text;
mod verify;
mod waits;

pub use action::{Action, Compute, Message, Payload, Reduction, Transfer};
pub use closed_form::ClosedForm;
pub use engine::{Costs, Delivery, Span};
pub use error::ScheduleError;
pub use flow::{StageCosts, StepTimes, UniformStage, step_times};
pub use generate::Shape;
pub use kind::{KindInfo, Placement, ScheduleKind};
pub use lower::{add_grad_sync, add_transfers, fuse_exchanges, lower};
pub use nearest::nearest;
pub use order::Order;
pub use parse::ParseError;
pub use schedule::{Purpose, Schedule, SyncPlan, TiedSegment};
pub use simulate::{Timeline, UniformCosts, simulate};
pub use verify::{Report, VerifyError, VerifyErrorKind, verify};
