//! A layer on some ranks, and its results put together to global tensors.

use std::ops::Range;
use std::sync::Arc;
use trine_buffer::{Act, Buf, DType, Pool, Slice};
use trine_comm::{SelfComm, threads};
use trine_kernels::{CpuOps, Ops, Team};
use trine_nn::{
    Context, GradStore, NnError, Numerics, ParamId, ParamStore, Rows, SampleTree, TakenGrads,
    WeightWork, initial_weights,
};
use trine_rng::Stream as Random;
use trine_shard::{Split, Stream, TensorGroup};
use trine_spec::{Init, LocalParam, ParamSpec, RankLayout};
use trine_testkit::assemble::{Shards, Tensors, assemble};

/// Three samples of four tokens: four ranks with three rows each cut through the samples.
pub(crate) const SAMPLES: Range<usize> = 5..8;
pub(crate) const SEQ: usize = 4;
pub(crate) const TOKENS: usize = 12;

/// A global parameter, and the dimension that is split: its number and its units.
#[derive(Debug, Clone)]
pub(crate) struct Param {
    pub(crate) name: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) split: Option<(usize, usize)>,
    pub(crate) valid_rows: usize,
}

pub(crate) fn param(
    name: &'static str,
    shape: impl Into<Vec<usize>>,
    split: Option<(usize, usize)>,
) -> Param {
    let shape = shape.into();
    let valid_rows = shape[0];
    Param { name, shape, split, valid_rows }
}

/// How a layer is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) tp: usize,
    pub(crate) sequence_parallel: bool,
    pub(crate) numerics: Numerics,
    pub(crate) compute: DType,
}

/// Part of a global matrix: some rows, some columns.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) values: Vec<f64>,
    pub(crate) rows: Range<usize>,
    pub(crate) cols: Vec<usize>,
    pub(crate) width: usize,
}

/// One rank of a run.
pub(crate) struct Rank {
    pub(crate) group: TensorGroup,
    pub(crate) setup: Setup,
    pub(crate) layout: Arc<RankLayout>,
    pub(crate) weights: ParamStore,
    pub(crate) grads: GradStore,
}

/// Output, input gradient and parameter gradients as global tensors.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) y: Vec<f64>,
    pub(crate) dx: Vec<f64>,
    pub(crate) grads: Tensors,
}

/// What a rank does: one forward and backward pass. Returns its parts of output and input gradient.
pub(crate) type Body<'a> =
    &'a (dyn Fn(&mut Rank, &Context<'_>) -> Result<(Part, Part), NnError> + Sync);

fn layout(params: &[Param], tp: usize, index: usize) -> RankLayout {
    let spec = |param: &Param| {
        let spec = ParamSpec::new(param.name, &param.shape, Init::Normal { std: 0.4 });
        let spec = ParamSpec { valid_rows: param.valid_rows, ..spec };
        match param.split {
            Some((dim, units)) => spec.split(dim, units),
            None => spec,
        }
    };
    RankLayout::of(params.iter().map(spec).collect(), tp, index).unwrap()
}

/// Normal numbers that are exact in f32.
pub(crate) fn values(name: &str, len: usize) -> Vec<f64> {
    let mut values = vec![0.0f32; len];
    Random::new(3, name).fill_normal(0, 1.0, &mut values);
    values.into_iter().map(f64::from).collect()
}

pub(crate) fn cast(values: &[f64], dtype: DType) -> Buf {
    let mut buf = Buf::zeros(dtype, values.len());
    CpuOps::new(Team::new(1)).cast(buf.slice_mut(), Slice::new(values)).unwrap();
    buf
}

impl Rank {
    pub(crate) fn find(&self, names: &[&str]) -> ParamId {
        ParamId::find(&self.layout, names).unwrap()
    }

    pub(crate) fn local(&self, name: &str) -> &LocalParam {
        &self.layout.params[self.layout.find(name).unwrap()]
    }

    /// This rank's rows of the global stream `name`.
    pub(crate) fn stream(&self, name: &str, cols: usize) -> Stream {
        let rows = self.group.stream_rows(TOKENS);
        let all = values(name, TOKENS * cols);
        let own = &all[rows.start * cols..rows.end * cols];
        Stream::assume(Act::new(cast(own, self.setup.compute)))
    }

    /// Some columns of the global matrix `name`.
    pub(crate) fn split(&self, name: &str, width: usize, cols: &[usize]) -> Split {
        let all = values(name, TOKENS * width);
        let row = |row: usize| cols.iter().map(move |col| row * width + col);
        let own: Vec<f64> = (0..TOKENS).flat_map(row).map(|at| all[at]).collect();
        Split::assume(Act::new(cast(&own, self.setup.compute)))
    }

    /// A stream as part of the global one.
    pub(crate) fn of_stream(&self, stream: &Stream, width: usize) -> Part {
        let rows = self.group.stream_rows(TOKENS);
        assert_eq!(stream.len(), rows.len() * width);
        Part { values: stream.to_f64_vec().unwrap(), rows, cols: (0..width).collect(), width }
    }

    pub(crate) fn of_split(&self, split: &Split, width: usize, cols: Vec<usize>) -> Part {
        assert_eq!(split.len(), TOKENS * cols.len());
        Part { values: split.to_f64_vec().unwrap(), rows: 0..TOKENS, cols, width }
    }

    pub(crate) fn run(&mut self, work: WeightWork, ctx: &Context<'_>) -> Result<(), NnError> {
        work.run(ctx, &mut self.grads)
    }

    /// This rank's gradients as one bucket.
    fn shards(&mut self, ops: &dyn Ops) -> Result<Shards, NnError> {
        let layout = (*self.layout).clone();
        if layout.buckets.is_empty() {
            return Ok(Shards { layout, buckets: vec![], valid: vec![] });
        }
        let sum = match self.grads.take(0, ops)? {
            TakenGrads::Sum(sum) => sum,
            TakenGrads::Nodes(nodes) => {
                let mut tree = SampleTree::default();
                for (node, sum) in nodes {
                    tree.insert(node, sum, ops)?;
                }
                tree.finish(ops)?.expect("there are gradients")
            }
        };
        let all = 0..sum.len();
        Ok(Shards { layout, buckets: vec![sum.to_f64_vec().unwrap()], valid: vec![all] })
    }
}

/// A part of nothing: a layer without an input gradient.
pub(crate) fn nothing() -> Part {
    Part { values: vec![], rows: 0..0, cols: vec![], width: 0 }
}

/// The global matrix. Ranks that hold the same element must agree to the bit.
fn whole(parts: Vec<Part>) -> Vec<f64> {
    let width = parts[0].width;
    let mut all: Vec<Option<f64>> = vec![None; TOKENS * width];
    for part in parts {
        let places = part.rows.flat_map(|row| part.cols.iter().map(move |col| row * width + col));
        for (at, value) in places.zip(part.values) {
            let held = all[at].replace(value);
            assert!(held.is_none_or(|held| held.to_bits() == value.to_bits()), "ranks differ");
        }
    }
    all.into_iter().map(|value| value.expect("some rank has every element")).collect()
}

/// Runs `body` on all ranks.
pub(crate) fn outcome(setup: Setup, params: &[Param], body: Body<'_>) -> Outcome {
    let one = |comm: Arc<dyn trine_comm::Communicator>| {
        let layout = Arc::new(layout(params, setup.tp, comm.rank()));
        let (ops, pool) = (CpuOps::new(Team::new(1)), Pool::new());
        let mut weights = ParamStore::zeros(layout.clone(), setup.compute);
        for bucket in 0..layout.buckets.len() {
            let initial = initial_weights(&layout, bucket, 5, DType::F64)?;
            weights.load(bucket, initial.slice(), &ops)?;
        }
        let grads = GradStore::new(layout.clone(), setup.compute, setup.numerics);
        let group = TensorGroup::new(comm, setup.sequence_parallel);
        let mut rank = Rank { group, setup, layout, weights, grads };
        let rows = Rows { samples: SAMPLES, seq: SEQ };
        let ctx = Context {
            numerics: setup.numerics,
            step: 7,
            ..Context::train(&ops, &pool, setup.compute, rows)
        };
        let (y, dx) = body(&mut rank, &ctx)?;
        let shards = rank.shards(&ops)?;
        assert_eq!(pool.stats().bytes_in_use, 0, "all activations are given back");
        Ok::<_, NnError>((y, dx, shards))
    };
    let ranks = match setup.tp {
        // A group of one is a communicator of its own kind.
        1 => vec![one(SelfComm::new()).unwrap()],
        tp => threads::run(tp, &Default::default(), one).unwrap(),
    };
    let (mut y, mut dx, mut shards) = (vec![], vec![], vec![]);
    for rank in ranks {
        y.push(rank.0);
        dx.push(rank.1);
        shards.push(rank.2);
    }
    Outcome { y: whole(y), dx: whole(dx), grads: assemble(&shards).unwrap() }
}

/// The largest difference, relative to the largest exact value.
fn error(values: &[f64], exact: &[f64]) -> f64 {
    assert_eq!(values.len(), exact.len());
    let scale = exact.iter().fold(f64::MIN_POSITIVE, |max, v| max.max(v.abs()));
    let worst = values.iter().zip(exact).map(|(v, e)| (v - e).abs());
    worst.fold(0.0f64, f64::max) / scale
}

/// The degrees that layers are compared on.
const DEGREES: [usize; 2] = [2, 4];

/// Degrees × sequence parallelism × numerics.
pub(crate) const COMPARED: usize = DEGREES.len() * 2 * 2;

/// Compares a layer on two and four ranks with itself on one, with and without sequence parallelism:
/// within rounding in fast numerics, to the bit in reference numerics. Returns the number of
/// comparisons.
pub(crate) fn compare(name: &str, params: &[Param], body: Body<'_>) -> usize {
    compare_on(&DEGREES, name, params, body)
}

/// The same on other numbers of ranks.
pub(crate) fn compare_on(degrees: &[usize], name: &str, params: &[Param], body: Body<'_>) -> usize {
    let mut compared = 0;
    for (numerics, compute) in [(Numerics::Fast, DType::F64), (Numerics::Reference, DType::F32)] {
        let serial = Setup { tp: 1, sequence_parallel: false, numerics, compute };
        let exact = outcome(serial, params, body);
        let all = exact.grads.values().chain([&exact.y, &exact.dx]);
        for values in all.filter(|values| !values.is_empty()) {
            assert!(values.iter().any(|v| v.abs() > 1e-4), "{name}: zeros prove nothing");
        }
        for &tp in degrees {
            for sequence_parallel in [false, true] {
                let setup = Setup { tp, sequence_parallel, ..serial };
                let got = outcome(setup, params, body);
                match numerics {
                    Numerics::Reference => assert!(got == exact, "{name} {setup:?}"),
                    Numerics::Fast => check_rounding(&format!("{name} {setup:?}"), &got, &exact),
                }
                compared += 1;
            }
        }
    }
    compared
}

fn check_rounding(name: &str, got: &Outcome, exact: &Outcome) {
    let bound = 1e-13;
    for (what, got, exact) in [("y", &got.y, &exact.y), ("dx", &got.dx, &exact.dx)] {
        let error = error(got, exact);
        assert!(error < bound, "{name}: {what} is off by {error:e}");
    }
    assert!(got.grads.keys().eq(exact.grads.keys()));
    for (param, exact) in &exact.grads {
        let error = error(&got.grads[param], exact);
        assert!(error < bound, "{name}: gradient of {param} is off by {error:e}");
    }
}
