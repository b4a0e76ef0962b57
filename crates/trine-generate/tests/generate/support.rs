//! The serial model built by hand: what the generator is compared with.

use std::sync::Arc;
use trine_buffer::{Act, Buf, DType, Pool};
use trine_comm::SelfComm;
use trine_kernels::{CpuOps, Team};
use trine_models::{RankParts, StageModel, zoo};
use trine_nn::{Context, DecodeCache, Mode, NnError, Numerics, ParamStore, Rows, initial_weights};
use trine_spec::{ModelSpec, RankLayout, RankRequest, StagePieces};

/// The seed of all initial weights.
pub(crate) const SEED: u64 = 3;

/// A serial model with initial weights.
pub(crate) struct Bench {
    pub(crate) spec: ModelSpec,
    pub(crate) model: StageModel,
    pub(crate) weights: ParamStore,
    ops: CpuOps,
    pool: Pool,
    compute: DType,
    numerics: Numerics,
}

impl Bench {
    pub(crate) fn new(spec: &ModelSpec, compute: DType, numerics: Numerics) -> Self {
        let parts = spec.parts(1).unwrap();
        let stages = [StagePieces::whole(&parts)];
        let layout = Arc::new(
            RankLayout::new(&RankRequest {
                bucket_elements: 1 << 12,
                ..RankRequest::serial(&parts, &stages)
            })
            .unwrap(),
        );
        let ops = CpuOps::new(Team::new(2));
        let mut weights = ParamStore::zeros(layout.clone(), compute);
        for bucket in 0..layout.buckets.len() {
            let initial = initial_weights(&layout, bucket, SEED, compute.accumulator()).unwrap();
            weights.load(bucket, initial.slice(), &ops).unwrap();
        }
        let rank = RankParts {
            model: &parts,
            layout: &layout,
            comm: SelfComm::new(),
            sequence_parallel: false,
            numerics,
            compute,
            seed: 1,
            place: &trine_buffer::Place::Host,
        };
        let model = StageModel::of_rank(&rank, &zoo).unwrap().remove(0);
        Self { spec: spec.clone(), model, weights, ops, pool: Pool::new(), compute, numerics }
    }

    pub(crate) fn cache(&self, capacity: usize) -> DecodeCache {
        DecodeCache::new(self.spec.layers, self.spec.kv_dim(), capacity, self.compute)
    }

    pub(crate) fn context<'a>(
        &'a self,
        seq: usize,
        decode: Option<&'a DecodeCache>,
    ) -> Context<'a> {
        Context {
            numerics: self.numerics,
            mode: Mode::Eval,
            decode,
            ..Context::train(&self.ops, &self.pool, self.compute, Rows { samples: 0..1, seq })
        }
    }

    /// The logits of every token, `[tokens, stored vocabulary]`.
    pub(crate) fn logits(
        &self,
        ids: &[u32],
        decode: Option<&DecodeCache>,
    ) -> Result<Vec<f64>, NnError> {
        let x = Act::new(Buf::from_vec(ids.to_vec()));
        let logits = self.model.logits(&self.weights, x, &self.context(ids.len(), decode))?;
        Ok(logits.to_f64_vec().unwrap())
    }
}
