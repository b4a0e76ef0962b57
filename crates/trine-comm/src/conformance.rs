//! The suite that every backend runs: each operation, type, length and delivery, blocking and
//! pending, in the whole world and in parts of it, against a serial computation, bit for bit.
//!
//! A backend's test hands [`check`] a way to run a function on every rank, and asserts how many
//! cases ran:
//!
//! ```
//! use trine_comm::{Delivery, conformance, threads};
//!
//! let launch = |ranks, delivery, body: conformance::Body<'_>| {
//!     let options = threads::WorldOptions { delivery, ..Default::default() };
//!     threads::run(ranks, &options, |comm| body(comm)).map(drop).map_err(|e| e.to_string())
//! };
//! let scope = conformance::Scope { sizes: &[2], deliveries: &[Delivery::Rendezvous] };
//! assert_eq!(conformance::check(&launch, scope)?, conformance::cases(scope));
//! # Ok::<(), String>(())
//! ```

mod cases;
mod elsewhere;
mod serial;

pub use elsewhere::Elsewhere;

use crate::{Communicator, Delivery};
use std::sync::Arc;

/// What runs on every rank. The message says which case failed and how.
pub type Body<'a> = &'a (dyn Fn(Arc<dyn Communicator>) -> Result<(), String> + Sync);

/// Runs a [`Body`] on every rank of a world of the given size and delivery, and returns the first
/// failure. A backend of processes runs it on its own rank only.
pub type Launch<'a> = &'a dyn Fn(usize, Delivery, Body<'_>) -> Result<(), String>;

/// Which worlds to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope<'a> {
    /// Numbers of ranks.
    pub sizes: &'a [usize],
    /// Deliveries that the backend has.
    pub deliveries: &'a [Delivery],
}

impl Scope<'static> {
    /// Everything.
    pub const FULL: Self =
        Self { sizes: &[1, 2, 3, 4, 8], deliveries: &[Delivery::Buffered, Delivery::Rendezvous] };
}

/// How many cases a complete run of `scope` has.
pub fn cases(scope: Scope<'_>) -> usize {
    scope.sizes.iter().map(|ranks| cases::count(*ranks)).sum::<usize>() * scope.deliveries.len()
}

/// Runs the suite; the number of cases that passed.
///
/// # Errors
/// The first failure: the world, the case, and what came instead of what.
pub fn check(launch: Launch<'_>, scope: Scope<'_>) -> Result<usize, String> {
    let mut passed = 0;
    for ranks in scope.sizes {
        for delivery in scope.deliveries {
            launch(*ranks, *delivery, &|comm| cases::run(&comm))
                .map_err(|error| format!("{ranks} ranks, {delivery:?}: {error}"))?;
            passed += cases::count(*ranks);
        }
    }
    Ok(passed)
}
