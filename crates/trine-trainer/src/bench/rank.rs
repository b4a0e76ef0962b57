//! One rank's part of the measurement of steps.

use super::core_time::{RankTime, RankWatch};
use super::{StepRequest, synthetic};
use crate::TrainError;
use crate::config::Config;
use crate::engine::{Batch, Engine};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use trine_buffer::Buf;
use trine_comm::Name;
use trine_kernels::ceiling::MultiplyAdds;
use trine_kernels::{KernelTime, Profiled};

/// Steps that are not timed: memory is first touched there.
const WARM_UP_STEPS: u64 = 3;

/// The part of a step's time in which the ceiling is looked at after it.
const CEILING_SHARE: u32 = 10;

/// A rank that makes steps on synthetic tokens.
#[derive(Debug)]
pub(super) struct RankBench<'a> {
    request: StepRequest,
    rank: Engine,
    batch: Batch,
    lr: f64,
    steps_done: u64,
    watch: RankWatch,
    profiled: Option<Arc<Profiled>>,
    /// Where the rank has a part in finding the ceiling.
    adds: Option<MultiplyAdds<'a>>,
}

/// What a rank has measured in a turn.
#[derive(Debug, Clone)]
pub(super) struct Timed {
    pub(super) loss: f64,
    pub(super) steps: Vec<Duration>,
    /// Operations of a step.
    pub(super) operations: f64,
    /// What the rank's thread did in all steps.
    pub(super) time: RankTime,
    pub(super) kernels: BTreeMap<&'static str, KernelTime>,
    /// FLOP/s of multiply-adds between the steps.
    pub(super) ceiling: Option<f64>,
}

impl<'a> RankBench<'a> {
    pub(super) fn new(
        config: &Config,
        request: StepRequest,
        rank: Engine,
        watch: RankWatch,
        profiled: Option<Arc<Profiled>>,
        adds: Option<MultiplyAdds<'a>>,
    ) -> Self {
        let samples = config.batch.global / config.degrees().dp;
        let batch = synthetic(samples * config.data.seq, config.model.vocab, config.seed);
        let lr = config.optimizer.lr;
        Self { request, rank, batch, lr, steps_done: 0, watch, profiled, adds }
    }

    /// Warms up, then times turns as long as rank 0 says that there is another one; the last turn.
    pub(super) fn turns(&mut self, is_next: &dyn Fn(&Timed) -> bool) -> Result<Timed, TrainError> {
        for _ in 0..WARM_UP_STEPS {
            self.step()?;
        }
        loop {
            let timed = self.turn()?;
            let is_first = self.rank.world().rank() == 0;
            if !self.agreed(is_first && is_next(&timed))? {
                return Ok(timed);
            }
        }
    }

    /// Repeats steps until there are enough of them; rank 0's clock decides for all.
    fn turn(&mut self) -> Result<Timed, TrainError> {
        let (mut steps, mut total) = (Vec::new(), Duration::ZERO);
        let mut bursts = (0.0, Duration::ZERO);
        self.rank.world().barrier("bench")?;
        let operations = self.rank.world().recorder().operations();
        self.watch.take();
        self.profile();
        loop {
            let started = Instant::now();
            let loss = self.step()?;
            let done = steps.len() as u64 + 1;
            let StepRequest { steps_min, time_min, .. } = self.request;
            let enough = done >= steps_min && total + started.elapsed() >= time_min;
            // The ranks meet here, so that a step is over when the last of them is through with it.
            let enough = self.agreed(enough)?;
            let took = started.elapsed();
            steps.push(took);
            total += took;
            if let Some(adds) = &self.adds {
                let (flops, time) = adds.burst(took / CEILING_SHARE);
                bursts = (bursts.0 + flops, bursts.1 + time);
            }
            if self.request.ceiling {
                self.rank.world().barrier("bench")?;
            }
            if enough {
                let all = self.rank.world().recorder().operations() - operations;
                let operations = all as f64 / done as f64;
                let (time, kernels) = (self.watch.take(), self.profile());
                let ceiling = self.adds.as_ref().map(|_| bursts.0 / bursts.1.as_secs_f64());
                return Ok(Timed { loss, steps, operations, time, kernels, ceiling });
            }
        }
    }

    fn step(&mut self) -> Result<f64, TrainError> {
        let Self { rank, batch, lr, watch, .. } = self;
        let (loss, _) = rank.train(self.steps_done, *lr, batch, &mut |_, action, moment| {
            watch.observe(action, moment);
        })?;
        self.steps_done += 1;
        Ok(loss.mean())
    }

    /// What the kernels took since it was last asked for.
    fn profile(&self) -> BTreeMap<&'static str, KernelTime> {
        self.profiled.as_ref().map(|ops| ops.take()).unwrap_or_default()
    }

    /// Rank 0's word, on all ranks.
    fn agreed(&self, word: bool) -> Result<bool, TrainError> {
        let word = Buf::from_vec(vec![u64::from(word)]);
        let word = self.rank.world().broadcast(word, 0, Name::new("bench"))?;
        Ok(word.typed::<u64>()?[0] == 1)
    }
}
