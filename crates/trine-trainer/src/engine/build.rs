//! The engine of a rank is built from the plan of its run.

use super::{Engine, EngineConfig, messages};
use crate::TrainError;
use crate::plan::RunPlan;
use std::sync::Arc;
use trine_buffer::Pool;
use trine_comm::{Communicator, Groups};
use trine_dp::{GradNorm, GradSync, GradSyncOptions, WeightSync, own_ranges};
use trine_kernels::Ops;
use trine_mesh::AxisSet;
use trine_models::{BuildPiece, RankParts, StageModel, zoo};
use trine_nn::{GradStore, ParamStore, initial_weights};
use trine_optim::Optimizer;

impl Engine {
    /// Builds the rank that `world` says it is, with initial weights. A collective call.
    ///
    /// # Errors
    /// What does not fit, or a failed collective.
    pub fn new(config: &EngineConfig, world: Arc<dyn Communicator>) -> Result<Self, TrainError> {
        Self::from_plan(Arc::new(RunPlan::new(config)?), world)
    }

    /// [`Engine::new`] with a plan made before, for all ranks.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn from_plan(plan: Arc<RunPlan>, world: Arc<dyn Communicator>) -> Result<Self, TrainError> {
        let ops = plan.config.cpu_ops()?;
        Self::with_ops(plan, world, ops)
    }

    /// [`Engine::from_plan`] with kernels made elsewhere: another instruction set, a profile.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn with_ops(
        plan: Arc<RunPlan>,
        world: Arc<dyn Communicator>,
        ops: Arc<dyn Ops>,
    ) -> Result<Self, TrainError> {
        Self::with_pieces(plan, world, ops, &zoo)
    }

    /// [`Engine::with_ops`] with layers of one's own: `build` builds those of the pieces that it knows, and leaves the
    /// others to [`zoo`].
    ///
    /// # Errors
    /// As [`Engine::new`], or what `build` returns.
    pub fn with_pieces(
        plan: Arc<RunPlan>,
        world: Arc<dyn Communicator>,
        ops: Arc<dyn Ops>,
        build: BuildPiece<'_>,
    ) -> Result<Self, TrainError> {
        let groups = Groups::new(&plan.mesh, &world, plan.axis_sets())?;
        let along = |axes| groups.of(axes).cloned();
        let (pp, dp, tp) = (along(AxisSet::PP)?, along(AxisSet::DP)?, along(AxisSet::TP)?);
        let tied = tied_link(&plan, &pp)?;
        messages::make_room(&plan, &*pp)?;
        let (config, coordinate) = (&plan.config, plan.mesh.coordinate(world.rank()));
        let layout = Arc::new(plan.layout(coordinate).clone());
        // Before any memory: it refuses what is not built.
        let own = own_ranges(&layout, &groups)?;
        let (numerics, place) = (config.numerics, ops.place());
        let parts = RankParts {
            model: &plan.parts,
            layout: &layout,
            comm: tp,
            sequence_parallel: config.sequence_parallel,
            numerics,
            compute: config.compute,
            seed: config.seed,
            place,
        };
        let stages = StageModel::of_rank(&parts, build)?;
        let mut weights = ParamStore::zeros_at(place, layout.clone(), config.compute)?;
        let update = (config.optimizer, &config.groups[..]);
        let initial = |bucket| {
            let dtype = config.compute.accumulator();
            let initial = place.hold(initial_weights(&layout, bucket, config.seed, dtype)?)?;
            weights.load(bucket, initial.slice(), &*ops)?;
            Ok(initial)
        };
        let optimizer =
            Optimizer::with_groups(&layout, own, config.compute, update, place, initial)?;
        // Copies that are frozen have no gradients to add.
        let sums = layout.buckets.iter().any(|bucket| bucket.tied);
        let tied_peer = tied.clone().filter(|_| sums);
        let options = GradSyncOptions {
            numerics,
            global_batch: config.global_batch,
            tied_peer,
            place: place.clone(),
        };
        let names = plan.parts.names();
        Ok(Self {
            sync: GradSync::new(&layout, options, &groups)?,
            weight_sync: WeightSync::new(&layout, &groups, place)?,
            norm: GradNorm::new(names, &layout, &groups, numerics, world.clone())?,
            measured: None,
            splits_backward: false,
            grads: GradStore::at(place, layout.clone(), config.compute, numerics)?,
            pool: Pool::on(place.clone()),
            exchanged: Pool::on(place.clone()),
            coordinate,
            plan,
            layout,
            world,
            groups,
            pp,
            dp,
            tied,
            ops,
            stages,
            weights,
            optimizer,
        })
    }
}

/// The two ranks that hold the copies of a tied embedding, on those two. All pipeline ranks call it.
fn tied_link(
    plan: &RunPlan,
    pp: &Arc<dyn Communicator>,
) -> Result<Option<Arc<dyn Communicator>>, TrainError> {
    let holders = plan.tied_ranks();
    if holders.len() < 2 {
        return Ok(None);
    }
    let holds = holders.contains(&pp.rank());
    let link = pp.split(u64::from(!holds), if holds { "tied" } else { "not tied" })?;
    Ok(holds.then_some(link))
}
