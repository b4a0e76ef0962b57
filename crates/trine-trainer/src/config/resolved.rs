//! What follows from a configuration: sizes and shapes that several parts need, computed once.

use super::groups::{self, Refused};
use super::{Config, ConfigError, Lr, Optimizer, OptimizerKind, Times};
use crate::engine::{EngineConfig, ZeroStage};
use std::path::PathBuf;
use std::time::Duration;
use trine_mesh::{Degrees, Mesh, MeshError, plural};
use trine_optim::{Group, LrSchedule, OptimizerConfig};
use trine_schedule::{Order, ScheduleError, UniformStage};
use trine_spec::{BUCKET_ELEMENTS, Pattern};

impl Config {
    /// The degrees of the mesh.
    pub fn degrees(&self) -> Degrees {
        let layout = &self.layout;
        Degrees { dp: layout.dp, pp: layout.pp, tp: layout.tp, ..Degrees::SERIAL }
    }

    /// Number of ranks.
    pub fn world(&self) -> usize {
        self.degrees().world()
    }

    /// Whether tensor-parallel ranks split the tokens between sharded layers: there are several of them, the
    /// configuration asks for it, and a micro-batch has as many tokens for each.
    pub fn splits_tokens(&self) -> bool {
        let tp = self.layout.tp;
        self.layout.sequence_parallel && tp > 1 && self.tokens_per_micro_batch().is_multiple_of(tp)
    }

    /// Why tensor-parallel ranks do not split the tokens, where the configuration asks for it and they could.
    pub fn tokens_not_split(&self) -> Option<String> {
        let (tp, tokens) = (self.layout.tp, self.tokens_per_micro_batch());
        let asked = self.layout.sequence_parallel && tp > 1;
        (asked && !self.splits_tokens()).then(|| {
            format!(
                "tokens are not split over the shards (layout.sequence_parallel): layout.tp = {tp} does not \
                 divide the {tokens} {} of a micro-batch",
                plural(tokens as u64, "token")
            )
        })
    }

    /// The mesh of all ranks.
    ///
    /// # Errors
    /// A degree of zero, which a checked configuration does not have.
    pub fn mesh(&self) -> Result<Mesh, MeshError> {
        Mesh::new(self.degrees(), self.world())
    }

    /// Stages on each pipeline rank: `layout.virtual`, or as many as the schedule usually has; of a schedule of one's
    /// own those of the rank with the most.
    pub fn virtual_stages(&self) -> usize {
        match self.layout.virtual_stages {
            0 => self.layout.schedule.chunks_usual(),
            given => given,
        }
    }

    /// Times of a stage and a message for which the schedule is made, if some are given. None are as long as they
    /// have not been measured.
    ///
    /// # Errors
    /// Not four of them, or such as there cannot be.
    pub(crate) fn stage_times(&self) -> Result<Option<UniformStage>, ScheduleError> {
        match &self.layout.times {
            Times::Given(times) if !times.is_empty() => {
                let four = <[f64; 4]>::try_from(&times[..]);
                let four = four.map_err(|_| ScheduleError::TimesCount(times.len()))?;
                UniformStage::new(four).map(Some)
            }
            Times::Given(_) | Times::Measured => Ok(None),
        }
    }

    /// The order of work in words: `1f1b`, `zb-v with 2 stages on each rank`, or `mine, a schedule of one's own`.
    pub fn order_of_work(&self) -> String {
        let order = match (&self.layout.schedule, self.virtual_stages()) {
            (Order::Own(own), _) => format!("{}, a schedule of one's own", own.name),
            (Order::Named(kind), 1) => kind.to_string(),
            (Order::Named(kind), several) => format!("{kind} with {several} stages on each rank"),
        };
        match (&self.layout.times, self.stage_times()) {
            (Times::Measured, _) => {
                format!("{order}, made for times that are measured when the run starts")
            }
            (Times::Given(_), Ok(Some(times))) => format!("{order}, made for {times}"),
            (Times::Given(_), Ok(None) | Err(_)) => order,
        }
    }

    /// What the engine needs, for ranks that share `cores` cores, unless
    /// `layout.threads_per_rank` says how many threads each has. Times that are still to be measured count as equal.
    ///
    /// # Errors
    /// A rule that is broken: this configuration was changed after it was loaded.
    pub fn engine(&self, cores: usize) -> Result<EngineConfig, ConfigError> {
        self.check()?;
        let layers = &self.layout.layers;
        let threads = match self.layout.threads_per_rank {
            0 => (cores / self.world()).max(1),
            given => given,
        };
        Ok(EngineConfig {
            model: self.model.clone(),
            degrees: self.degrees(),
            virtual_stages: self.virtual_stages(),
            layers: (!layers.is_empty()).then(|| layers.clone()),
            sequence_parallel: self.splits_tokens(),
            schedule: self.layout.schedule.clone(),
            times: self.stage_times().expect("invariant: checked"),
            numerics: self.train.numerics,
            compute: self.train.precision.dtype(),
            recompute: self.train.recompute.clone(),
            zero: if self.train.zero == 0 { ZeroStage::Zero0 } else { ZeroStage::Zero1 },
            global_batch: self.batch.global,
            micro_batch: self.batch.micro,
            seq: self.data.seq,
            seed: self.seed,
            optimizer: self.optimizer_config(),
            frozen: self.frozen(),
            groups: self.groups().expect("invariant: checked"),
            clip_norm: self.train.clip_norm,
            threads,
            bucket_elements: BUCKET_ELEMENTS,
        })
    }

    /// The update.
    pub fn optimizer_config(&self) -> OptimizerConfig {
        let Optimizer { kind, lr: _, beta1, beta2, eps, weight_decay, momentum, groups: _ } =
            self.optimizer;
        match kind {
            OptimizerKind::AdamW => OptimizerConfig::AdamW { beta1, beta2, eps, weight_decay },
            OptimizerKind::Sgd => OptimizerConfig::Sgd { momentum, weight_decay },
        }
    }

    /// The parameters that are not trained.
    pub fn frozen(&self) -> Vec<Pattern> {
        self.train.frozen.iter().map(|line| Pattern::new(line.trim())).collect()
    }

    /// The parameters that are updated in another way.
    fn groups(&self) -> Result<Vec<Group>, Refused> {
        self.optimizer.groups.iter().map(|line| groups::parse(line)).collect()
    }

    /// The learning rate as a function of the step; its peak is `optimizer.lr`.
    pub fn lr_schedule(&self) -> LrSchedule {
        let Lr { kind, warmup_steps, min_ratio, decay_fraction } = self.lr;
        LrSchedule { kind, warmup_steps: warmup_steps as u64, min_ratio, decay_fraction }
    }

    /// How long a rank without progress is waited for.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs_f64(self.comm.deadline_s)
    }

    /// The same in phases that are long by nature.
    pub fn long_deadline(&self) -> Duration {
        Duration::from_secs_f64(self.comm.long_deadline_s)
    }

    /// The run with as many replicas as `ranks` ranks can be, at most as many as it has: what an
    /// elastic run goes on with from its last checkpoint when ranks are lost. `None` if it is not
    /// elastic, or if not even one replica is left.
    ///
    /// Samples are numbered over the whole run and a step has as many as before, so the order in which
    /// they are trained on is the same; in reference numerics, so is every number. The replicas' number
    /// must divide the micro-batches of a step, so some ranks may have nothing to do.
    pub fn with_ranks_left(&self, ranks: usize) -> Option<Self> {
        let replica = self.layout.pp * self.layout.tp;
        let most = (ranks / replica).min(self.layout.dp);
        let divides = |dp: &usize| self.batch.global.is_multiple_of(dp * self.batch.micro);
        let dp = (1..=most).rev().find(divides).filter(|_| self.layout.elastic)?;
        let mut config = self.clone();
        config.layout.dp = dp;
        config.check().is_ok().then_some(config)
    }

    /// Sequences of one data-parallel replica in a step.
    pub fn sequences_per_replica(&self) -> usize {
        self.batch.global / self.layout.dp
    }

    /// Micro-batches of one rank in a step.
    pub fn micro_batches(&self) -> usize {
        self.sequences_per_replica() / self.batch.micro
    }

    /// Tokens of one micro-batch.
    pub fn tokens_per_micro_batch(&self) -> usize {
        self.batch.micro * self.data.seq
    }

    /// Tokens of an optimizer step, over all ranks.
    pub fn tokens_per_step(&self) -> usize {
        self.batch.global * self.data.seq
    }

    /// The run directory.
    pub fn run_dir(&self) -> PathBuf {
        if self.output.dir.as_os_str().is_empty() {
            PathBuf::from("runs").join(&self.name)
        } else {
            self.output.dir.clone()
        }
    }
}
