//! Stores with irregular weights, and one forward and backward pass of a layer.

use std::sync::Arc;
use trine_buffer::{Act, Buf, DType, Pool, Slice};
use trine_kernels::{CpuOps, Team};
use trine_mesh::DimPlacement;
use trine_nn::{Context, GradStore, Layer, Numerics, ParamStore, Rows, SampleTree, TakenGrads};
use trine_nn::{gradcheck, initial_weights};
use trine_rng::Stream;
use trine_spec::{BucketLayout, Init, LocalParam, ParamSpec, Piece, StageLayout};

/// Tokens of a sample.
pub(crate) const SEQ: usize = 5;
/// The step of all passes: a coordinate of dropout masks.
pub(crate) const STEP: u64 = 7;

/// One bucket of parameters that lie directly behind one another.
pub(crate) fn layout(params: &[(&str, &[usize])]) -> Arc<StageLayout> {
    let mut layout = StageLayout { params: vec![], buckets: vec![], pieces: vec![] };
    if params.is_empty() {
        return Arc::new(layout);
    }
    let mut offset = 0;
    for (name, shape) in params {
        let spec = ParamSpec {
            name: (*name).into(),
            shape: shape.to_vec(),
            placement: vec![DimPlacement::REPLICATED; shape.len()],
            init: Init::Normal { std: 0.7 },
            decay: true,
            valid_rows: shape[0],
            fused: offset > 0,
            tied_to: None,
        };
        let ranges = shape.iter().map(|len| 0..*len).collect();
        let (piece, bucket) = (Piece::Block(0), 0);
        layout.params.push(LocalParam {
            spec,
            piece,
            ranges,
            owner: true,
            replicas: 1,
            replica: 0,
            bucket,
            offset,
        });
        offset += shape.iter().product::<usize>();
    }
    let params = (0..layout.params.len()).collect();
    layout.buckets.push(BucketLayout { params, len: offset, pieces: vec![], tied: false });
    Arc::new(layout)
}

/// Normal numbers that are exact in f32, so that both types start from the same.
pub(crate) fn values(name: &str, len: usize) -> Vec<f64> {
    let mut values = vec![0.0f32; len];
    Stream::new(3, name).fill_normal(0, 1.0, &mut values);
    values.into_iter().map(f64::from).collect()
}

pub(crate) fn buf(dtype: DType, values: &[f64]) -> Buf {
    let mut buf = Buf::zeros(dtype, values.len());
    let ops = CpuOps::new(Team::new(1));
    trine_kernels::Ops::cast(&ops, buf.slice_mut(), Slice::new(values)).unwrap();
    buf
}

/// What a call needs beside weights and input.
pub(crate) struct Bench {
    pub(crate) ops: CpuOps,
    pub(crate) pool: Pool,
    pub(crate) compute: DType,
    pub(crate) numerics: Numerics,
}

impl Bench {
    pub(crate) fn new(compute: DType, numerics: Numerics) -> Self {
        Self { ops: CpuOps::new(Team::new(1)), pool: Pool::new(), compute, numerics }
    }

    pub(crate) fn weights(&self, layout: &Arc<StageLayout>) -> ParamStore {
        let mut weights = ParamStore::zeros(layout.clone(), self.compute);
        for bucket in 0..layout.buckets.len() {
            let initial = initial_weights(layout, bucket, 5, DType::F64).unwrap();
            weights.load(bucket, initial.slice(), &self.ops).unwrap();
        }
        weights
    }

    /// A training context for these samples; `starts` come from [`document_starts`].
    pub(crate) fn context<'a>(&'a self, rows: Rows, starts: Option<&'a [u32]>) -> Context<'a> {
        Context {
            compute: self.compute,
            numerics: self.numerics,
            step: STEP,
            document_start: starts.map(Slice::new),
            ..gradcheck::context(&self.ops, &self.pool, rows)
        }
    }
}

/// Samples cut into documents of unequal length, differently in each sample.
pub(crate) fn document_starts(rows: &Rows) -> Vec<u32> {
    let of = |sample: usize| (0..rows.seq).map(move |t| (t - t % (2 + sample % 3)) as u32);
    rows.samples.clone().flat_map(of).collect()
}

/// Output, input gradient and parameter gradients, in the order of the parameters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pass {
    pub(crate) y: Vec<f64>,
    pub(crate) dx: Vec<f64>,
    pub(crate) grads: Vec<f64>,
}

/// One pass, with the weight gradients computed at once.
pub(crate) fn pass(
    layer: &dyn Layer,
    weights: &ParamStore,
    x: &[f64],
    dy: &[f64],
    ctx: &Context<'_>,
) -> Pass {
    let mut grads = GradStore::new(weights.layout().clone(), ctx.compute, ctx.numerics);
    let (y, dx) = accumulate(layer, weights, x, dy, ctx, &mut grads);
    Pass { y, dx, grads: total(&mut grads, ctx) }
}

/// One pass whose gradients are added to `grads`. Returns the output and the input gradient.
pub(crate) fn accumulate(
    layer: &dyn Layer,
    weights: &ParamStore,
    x: &[f64],
    dy: &[f64],
    ctx: &Context<'_>,
    grads: &mut GradStore,
) -> (Vec<f64>, Vec<f64>) {
    let x = Act::new(buf(ctx.compute, x));
    let (y, saved) = layer.forward(weights, x, ctx).unwrap();
    let dy = Act::new(buf(ctx.compute, dy));
    let (dx, work) = layer.backward_input(weights, saved, dy, ctx, grads).unwrap();
    work.run(ctx, grads).unwrap();
    (y.to_f64_vec(), dx.to_f64_vec())
}

/// The sum of a store of at most one bucket.
pub(crate) fn total(grads: &mut GradStore, ctx: &Context<'_>) -> Vec<f64> {
    if grads.layout().buckets.is_empty() {
        return vec![];
    }
    match grads.take(0, ctx.ops).unwrap() {
        TakenGrads::Sum(sum) => sum.to_f64_vec(),
        TakenGrads::Nodes(nodes) => {
            let mut tree = SampleTree::default();
            for (node, sum) in nodes {
                tree.insert(node, sum, ctx.ops).unwrap();
            }
            tree.finish(ctx.ops).unwrap().unwrap().to_f64_vec()
        }
    }
}

/// The largest difference, relative to the largest exact value.
pub(crate) fn error(values: &[f64], exact: &[f64]) -> f64 {
    assert_eq!(values.len(), exact.len());
    let scale = exact.iter().fold(f64::MIN_POSITIVE, |max, v| max.max(v.abs()));
    let worst = values.iter().zip(exact).map(|(v, e)| (v - e).abs());
    worst.fold(0.0f64, f64::max) / scale
}
