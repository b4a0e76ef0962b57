//! The plan of a run: all decisions about its ranks as data, made once before any of them starts.

use crate::TrainError;
use crate::planned::RankMemory;
use crate::settings::EngineConfig;
use std::collections::BTreeSet;
use trine_mesh::{AxisSet, Coordinate, Mesh};
use trine_nn::Numerics;
use trine_optim::Group;
use trine_schedule::{Schedule, SyncPlan, TiedSegment, generate, lower, verify};
use trine_spec::{ModelParts, RankLayout, RankRequest, SpecError, StagePieces, split_layers};

/// What every rank of a run holds and does. It is made purely, without memory, threads or files, so that it can be
/// looked at, and, in tests, tampered with. All ranks read the same one.
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// What it was made from.
    pub config: EngineConfig,
    /// The model's pieces.
    pub parts: ModelParts,
    /// Where each rank stands.
    pub mesh: Mesh,
    /// What ranks hold, by pipeline and tensor coordinate: `ranks[pp][tp]`. Data-parallel replicas hold the same.
    pub ranks: Vec<Vec<RankLayout>>,
    /// What the pipeline ranks do in a training step: lowered and verified.
    pub training: Schedule,
    /// What they do in an evaluation.
    pub evaluation: Schedule,
}

impl RunPlan {
    /// Plans a run.
    ///
    /// # Errors
    /// As [`EngineConfig::check`], or a schedule that fails its proof.
    pub fn new(config: &EngineConfig) -> Result<Self, TrainError> {
        config.model.check()?;
        Self::of_parts(config, config.model.parts(config.degrees.tp)?)
    }

    /// [`RunPlan::new`] for a model with pieces of one's own: those of `config.model`, some of them replaced
    /// ([`ModelParts::replace`]).
    ///
    /// # Errors
    /// As [`RunPlan::new`], or parts of another model or tensor-parallel degree, or a
    /// group that names no parameter; what cannot be frozen ([`ModelParts::freeze`]) or computed
    /// again ([`ModelParts::recompute`]).
    pub fn of_parts(config: &EngineConfig, mut parts: ModelParts) -> Result<Self, TrainError> {
        config.check()?;
        if (&parts.spec, parts.tp) != (&config.model, config.degrees.tp) {
            return Err(TrainError::OtherParts { tp: parts.tp, expected: config.degrees.tp });
        }
        parts.freeze(&config.frozen)?;
        parts.recompute(&config.recompute)?;
        let named = |group: &&Group| {
            parts.pieces.iter().flat_map(|part| &part.params).any(|spec| group.names(spec))
        };
        if let Some(group) = config.groups.iter().find(|group| !named(group)) {
            return Err(TrainError::NoSuchParameter { pattern: group.pattern.clone() });
        }
        let order = config.schedule.generate(config.shape(), config.times.as_ref())?;
        let stages = config.stages(&parts)?;
        let ranks: Vec<Vec<RankLayout>> = (0..order.ranks())
            .map(|pp| {
                let held: Vec<StagePieces> =
                    order.stages_of(pp).map(|stage| stages[stage].clone()).collect();
                (0..config.degrees.tp).map(|tp| rank_layout(config, &parts, &held, tp)).collect()
            })
            .collect::<Result<_, SpecError>>()?;
        let training = lower(&order, Some(&reductions(&order, &ranks)))?;
        let evaluation =
            lower(&generate::forward_only_on(&order.placement, config.micro_batches())?, None)?;
        verify(&training)?;
        verify(&evaluation)?;
        let mesh = Mesh::new(config.degrees, config.degrees.world())?;
        Ok(Self { config: config.clone(), parts, mesh, ranks, training, evaluation })
    }

    /// What the rank at a coordinate holds.
    pub fn layout(&self, at: Coordinate) -> &RankLayout {
        &self.ranks[at.pp][at.tp]
    }

    /// What a rank at (pipeline, tensor) coordinates will take.
    pub fn memory(&self, pp: usize, tp: usize) -> RankMemory {
        let layout = &self.ranks[pp][tp];
        RankMemory::planned(&self.config, &self.parts, (pp, tp), layout, &self.training)
    }

    /// The axes along which ranks talk, for [`trine_comm::Groups`]: pipeline, data and tensor parallelism, and those
    /// of every bucket of any rank.
    pub fn axis_sets(&self) -> Vec<AxisSet> {
        let buckets = self.ranks.iter().flatten().flat_map(|layout| &layout.buckets);
        let of_buckets: BTreeSet<AxisSet> = buckets
            .flat_map(|bucket| [bucket.summed, bucket.shared.states, bucket.repeated()])
            .collect();
        [AxisSet::PP, AxisSet::DP, AxisSet::TP].into_iter().chain(of_buckets).collect()
    }

    /// The pipeline ranks that hold a copy of a tied embedding, trained or frozen: none, one that has both copies, or
    /// two.
    pub fn tied_ranks(&self) -> Vec<usize> {
        let params = || self.ranks.iter().flat_map(|ranks| &ranks[0].params);
        let holds = |pp: &usize| self.ranks[*pp][0].tied_copies().next().is_some();
        match params().any(|param| param.spec.tied_to.is_some()) {
            true => (0..self.ranks.len()).filter(holds).collect(),
            false => Vec::new(),
        }
    }
}

/// What one rank of the given stages holds.
fn rank_layout(
    config: &EngineConfig,
    model: &ModelParts,
    stages: &[StagePieces],
    tp_index: usize,
) -> Result<RankLayout, SpecError> {
    // Ranks that see other samples.
    let summed = AxisSet::DP;
    RankLayout::new(&RankRequest {
        model,
        stages,
        degrees: config.degrees,
        tp_index,
        summed,
        shared: config.zero.shares(summed),
        tied_apart: config.stage_count() > 1 || config.numerics == Numerics::Reference,
        bucket_elements: config.bucket_elements,
    })
}

/// The buckets that a step reduces: those of each stage, which are the same on all of its tensor-parallel ranks.
fn reductions(order: &Schedule, ranks: &[Vec<RankLayout>]) -> SyncPlan {
    let mut plan = SyncPlan::default();
    for (stage, &pp) in order.placement.iter().enumerate() {
        let layout = &ranks[pp][0];
        plan.segments.push(layout.segments_of(stage).count());
        let tied = layout.segments_of(stage).filter(|bucket| bucket.tied);
        plan.tied.extend(tied.map(|bucket| TiedSegment { stage, segment: bucket.segment }));
    }
    plan
}

impl EngineConfig {
    /// The pieces of each stage of the pipeline.
    pub(crate) fn stages(&self, parts: &ModelParts) -> Result<Vec<StagePieces>, SpecError> {
        split_layers(parts, self.stage_count(), self.layers.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_mesh::Degrees;
    use trine_schedule::ScheduleKind;
    use trine_spec::{Pattern, Piece, presets};

    fn config(schedule: ScheduleKind, virtual_stages: usize) -> EngineConfig {
        let model = presets::find("gpt2-124m").unwrap().model;
        let degrees = Degrees { pp: 2, tp: 2, ..Degrees::SERIAL };
        let batch = EngineConfig { global_batch: 4, ..EngineConfig::serial(model) };
        EngineConfig { degrees, schedule: schedule.into(), virtual_stages, ..batch }
    }

    #[test]
    fn the_stages_of_a_rank_are_those_of_the_schedule() {
        for (schedule, virtual_stages, first, tied) in [
            (ScheduleKind::OneFOneB, 1, vec![0], vec![0, 1]),
            (ScheduleKind::Interleaved, 3, vec![0, 2, 4], vec![0, 1]),
            (ScheduleKind::BreadthFirst, 2, vec![0, 2], vec![0, 1]),
            (ScheduleKind::ZbV, 2, vec![0, 3], vec![0]),
        ] {
            let plan = RunPlan::new(&config(schedule, virtual_stages)).unwrap();
            let held = |pp: usize| plan.ranks[pp][0].stages.iter().map(|held| held.stage);
            assert_eq!(held(0).collect::<Vec<_>>(), first, "{schedule}");
            assert_eq!(plan.tied_ranks(), tied, "{schedule}");
            // Frozen copies are on the same ranks, and their gradients are not summed.
            let frozen = vec![Pattern::new("embedding.token")];
            let config = EngineConfig { frozen, ..config(schedule, virtual_stages) };
            let frozen = RunPlan::new(&config).unwrap();
            let sums = |plan: &RunPlan| plan.training.sync.as_ref().unwrap().tied.len();
            assert_eq!((frozen.tied_ranks(), sums(&frozen), sums(&plan)), (tied, 0, 2));
            let last = plan.training.placement[2 * virtual_stages - 1];
            let mut held = plan.ranks[last][1].stages.iter();
            assert!(held.any(|stage| stage.pieces.contains(&Piece::Head)), "{schedule}");
            assert_eq!(plan.evaluation.placement, plan.training.placement, "{schedule}");
            // Every bucket of every rank is reduced once a step.
            let buckets: usize = plan.ranks.iter().map(|ranks| ranks[0].buckets.len()).sum();
            assert_eq!(verify(&plan.training).unwrap().buckets, buckets, "{schedule}");
        }
    }
}
