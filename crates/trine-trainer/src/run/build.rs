//! Building a rank of a run: its threads, what it talks through, its engine.

use crate::TrainError;
use crate::config::Pin;
use crate::cores::rank_team;
use crate::engine::Engine;
use crate::plan::RunPlan;
use crate::run::TrainRequest;
use std::sync::Arc;
use trine_comm::Communicator;
use trine_comm::wrap::Sealed;
use trine_kernels::{CpuOps, Ops, Pinned};

/// Builds the rank that `world` says it is, with initial weights, and what keeps its thread on its core. A collective
/// call.
pub(super) fn build(
    request: &TrainRequest<'_>,
    plan: &Arc<RunPlan>,
    world: Arc<dyn Communicator>,
    is_process: bool,
) -> Result<(Option<Pinned>, Engine), TrainError> {
    let config = &plan.config;
    // What launchers start, they bind; several processes could not agree here on who has which core.
    let pin = if is_process { Pin::Off } else { request.config.threads.pin };
    let (team, pinned) = rank_team(pin, world.size(), world.rank(), config.threads);
    let (ops, world): (Arc<dyn Ops>, _) = match request.devices {
        None => (Arc::new(CpuOps::with_isa(team, config.numerics.isa())?), world),
        Some(devices) => {
            (devices.ops(world.rank(), config.numerics)?, devices.communicator(world)?)
        }
    };
    let engine = Engine::with_ops(plan.clone(), communicator(request, world), ops)?;
    Ok((pinned, engine))
}

/// What a rank talks through: the communicator, and what the run puts in front of it.
fn communicator(request: &TrainRequest<'_>, world: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
    let wrapped = (request.seams.wrap)(world);
    if request.config.comm.checksum { Sealed::around(wrapped) } else { wrapped }
}
