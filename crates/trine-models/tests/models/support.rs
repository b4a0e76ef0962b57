//! A stage on one rank, with weights that are nowhere zero or one.

use std::collections::BTreeMap;
use std::sync::Arc;
use trine_buffer::{Act, Buf, DType, Pool, Slice};
use trine_comm::{Communicator, SelfComm};
use trine_kernels::{CpuOps, Ops, Team};
use trine_models::{BuildPiece, RankParts, StageModel, zoo};
use trine_nn::initial_weights;
use trine_nn::{Context, GradStore, NnError, Numerics, ParamStore, Rows, stream_type};
use trine_rng::Stream;
use trine_spec::{
    Degrees, Init, ModelSpec, Piece, RankLayout, RankRequest, Recompute, StagePieces,
};
use trine_testkit::toy;

pub(crate) const SEQ: usize = 8;
pub(crate) const SAMPLES: std::ops::Range<usize> = 3..5;
pub(crate) const TOKENS: usize = 16;

/// How a stage is run.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) model: ModelSpec,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) compute: DType,
    pub(crate) sequence_parallel: bool,
    pub(crate) recompute: Recompute,
    pub(crate) tied_apart: bool,
    pub(crate) bucket_elements: usize,
}

impl Setup {
    /// A whole model.
    pub(crate) fn whole(model: ModelSpec, compute: DType) -> Self {
        let pieces = model.pieces().collect();
        Self {
            model,
            pieces,
            compute,
            sequence_parallel: false,
            recompute: Recompute::None,
            tied_apart: false,
            bucket_elements: 10_000,
        }
    }
}

/// One rank.
pub(crate) struct Rank {
    pub(crate) setup: Setup,
    pub(crate) layout: Arc<RankLayout>,
    pub(crate) stage: StageModel,
    pub(crate) weights: ParamStore,
    pub(crate) ops: CpuOps,
    pub(crate) pool: Pool,
}

/// The inputs of a micro-batch, cut into documents.
pub(crate) struct Batch {
    pub(crate) ids: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) starts: Vec<u32>,
}

impl Batch {
    pub(crate) fn new(model: &ModelSpec) -> Self {
        let (ids, targets) = toy::tokens(model, SAMPLES.len(), SEQ);
        // The first sample is one document, the second two.
        let start = |token: usize| if token < SEQ + 3 { 0 } else { 3 };
        Self { ids, targets, starts: (0..TOKENS).map(start).collect() }
    }
}

impl Rank {
    pub(crate) fn new(setup: &Setup, comm: Arc<dyn Communicator>) -> Result<Self, NnError> {
        Self::built(setup, comm, &zoo)
    }

    /// A rank whose pieces `build` builds.
    pub(crate) fn built(
        setup: &Setup,
        comm: Arc<dyn Communicator>,
        build: BuildPiece<'_>,
    ) -> Result<Self, NnError> {
        let stages = [StagePieces { stage: 0, pieces: setup.pieces.clone() }];
        let mut parts = setup.model.parts(comm.size()).unwrap();
        parts.recompute(&setup.recompute).unwrap();
        let layout = RankLayout::new(&RankRequest {
            degrees: Degrees { tp: comm.size(), ..Degrees::SERIAL },
            tp_index: comm.rank(),
            tied_apart: setup.tied_apart,
            bucket_elements: setup.bucket_elements,
            ..RankRequest::serial(&parts, &stages)
        })
        .unwrap();
        let layout = Arc::new(layout);
        let rank = RankParts {
            model: &parts,
            layout: &layout,
            comm,
            sequence_parallel: setup.sequence_parallel,
            numerics: Numerics::Fast,
            compute: setup.compute,
            seed: 11,
            place: &trine_buffer::Place::Host,
        };
        let stages = StageModel::of_rank(&rank, build)?;
        let (ops, pool) = (CpuOps::new(Team::new(1)), Pool::new());
        let mut weights = ParamStore::zeros(layout.clone(), setup.compute);
        for bucket in 0..layout.buckets.len() {
            let mut initial = initial_weights(&layout, bucket, 11, DType::F64)?;
            for &index in &layout.buckets[bucket].params {
                let param = &layout.params[index];
                if matches!(param.spec.init, Init::Zeros | Init::Ones) {
                    let mut noise = vec![0.0f32; param.len()];
                    Stream::new(2, &param.spec.name).fill_normal(0, 0.2, &mut noise);
                    let values = &mut initial.typed_mut::<f64>()?[param.span()];
                    values.iter_mut().zip(noise).for_each(|(v, noise)| *v += f64::from(noise));
                }
            }
            weights.load(bucket, initial.slice(), &ops)?;
        }
        let stage = stages.into_iter().next().expect("one stage");
        Ok(Self { setup: setup.clone(), layout, stage, weights, ops, pool })
    }

    /// The only rank.
    pub(crate) fn serial(setup: &Setup) -> Self {
        Self::new(setup, SelfComm::new()).unwrap()
    }

    pub(crate) fn context<'a>(&'a self, batch: &'a Batch) -> Context<'a> {
        let rows = Rows { samples: SAMPLES, seq: SEQ };
        Context {
            step: 7,
            document_start: Some(Slice::new(&batch.starts)),
            targets: Some(Slice::new(&batch.targets)),
            loss_scale: 0.125,
            ..Context::train(&self.ops, &self.pool, self.setup.compute, rows)
        }
    }

    /// A stage's input of random numbers, from the pool.
    pub(crate) fn noise(&self, name: &str, len: usize) -> Act {
        let mut values = vec![0.0f32; len];
        Stream::new(4, name).fill_normal(0, 1.0, &mut values);
        let mut buf = self.pool.alloc(stream_type(self.setup.compute), len).unwrap();
        self.ops.cast(buf.slice_mut(), Slice::new(&values)).unwrap();
        Act::new(buf)
    }

    pub(crate) fn grads(&self) -> GradStore {
        GradStore::new(self.layout.clone(), self.setup.compute, Numerics::Fast)
    }

    /// Every parameter by name.
    pub(crate) fn named_weights(&self) -> BTreeMap<String, Vec<f64>> {
        let value = |bucket: usize| self.weights.bucket(bucket).unwrap().to_f64_vec().unwrap();
        let named = |param: &trine_spec::LocalParam| {
            (param.spec.name.clone(), value(param.bucket)[param.span()].to_vec())
        };
        self.layout.params.iter().map(named).collect()
    }
}

/// Token ids as a stage's input.
pub(crate) fn ids(batch: &Batch) -> Act {
    Act::new(Buf::from_vec(batch.ids.clone()))
}
