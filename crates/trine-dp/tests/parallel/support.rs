//! A rank of a small tied GPT whose gradients are a known function of global coordinates.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;
use trine_buffer::{DType, Place};
use trine_comm::{CommError, Communicator, Groups, threads};
use trine_dp::{GradNorm, GradSync, GradSyncOptions, own_ranges};
use trine_kernels::{CpuOps, Team};
use trine_mesh::{AxisSet, Coordinate, Degrees, Mesh, part};
use trine_nn::{GradStore, Numerics, ParamId, Rows};
use trine_spec::{
    LocalParam, ModelSpec, Pattern, RankLayout, RankRequest, Shares, presets, split_layers,
};

pub(crate) const EMBEDDING: &str = "embedding.token";
pub(crate) const HEAD: &str = "head.output.weight";

/// Two blocks, tied, a vocabulary that needs padding.
pub(crate) fn model() -> ModelSpec {
    let mut model = presets::find("gpt2-124m").unwrap().model;
    (model.hidden, model.layers, model.ffn, model.vocab) = (16, 2, 24, 70);
    (model.heads, model.kv_heads, model.head_dim, model.seq_max) = (4, 4, 4, 5);
    model
}

/// Untied, with two key heads: four tensor-parallel ranks share each in pairs.
pub(crate) fn model_with_shared_heads() -> ModelSpec {
    let mut model = presets::find("llama3-8b").unwrap().model;
    (model.hidden, model.layers, model.ffn, model.vocab) = (16, 2, 24, 70);
    (model.heads, model.kv_heads, model.head_dim) = (4, 2, 4);
    model
}

pub(crate) fn degrees(dp: usize, pp: usize, tp: usize) -> Degrees {
    Degrees { dp, pp, tp, ..Degrees::SERIAL }
}

/// Which buckets divide their optimizer state over data parallelism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Divided {
    /// ZeRO-0.
    None,
    /// ZeRO-1.
    All,
    /// Every second one.
    Mixed,
}

impl Divided {
    fn edit(self, layout: &mut RankLayout) {
        let trained = layout.buckets.iter_mut().filter(|bucket| bucket.trainable);
        for (number, bucket) in trained.enumerate() {
            let divided = match self {
                Self::None => false,
                Self::All => true,
                Self::Mixed => number % 2 == 0,
            };
            bucket.shared = Shares::zero(u8::from(divided), AxisSet::DP);
        }
    }
}

/// What a test varies.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) model: ModelSpec,
    pub(crate) degrees: Degrees,
    pub(crate) divided: Divided,
    pub(crate) numerics: Numerics,
    pub(crate) batch: usize,
    /// Patterns of the parameters that are not trained.
    pub(crate) frozen: &'static [&'static str],
}

impl Case {
    pub(crate) fn serial(&self) -> Self {
        Self { degrees: Degrees::SERIAL, divided: Divided::None, ..self.clone() }
    }
}

/// One rank of a case.
#[derive(Debug)]
pub(crate) struct Rank {
    pub(crate) case: Case,
    pub(crate) at: Coordinate,
    pub(crate) layout: Arc<RankLayout>,
    /// Its elements of each bucket.
    pub(crate) own: Vec<Range<usize>>,
    pub(crate) world: Arc<dyn Communicator>,
    pub(crate) groups: Groups,
    pub(crate) tied: Option<Arc<dyn Communicator>>,
    pub(crate) ops: CpuOps,
}

impl Rank {
    fn new(case: &Case, world: Arc<dyn Communicator>) -> Result<Self, CommError> {
        let Degrees { dp, pp, tp, .. } = case.degrees;
        let mesh = Mesh::new(case.degrees, dp * pp * tp).unwrap();
        let at = mesh.coordinate(world.rank());
        let mut parts = case.model.parts(tp).unwrap();
        let patterns: Vec<Pattern> = case.frozen.iter().map(|text| Pattern::new(*text)).collect();
        parts.freeze(&patterns).unwrap();
        let stages = split_layers(&parts, pp, None).unwrap();
        let mut layout = RankLayout::new(&RankRequest {
            degrees: case.degrees,
            tp_index: at.tp,
            summed: AxisSet::DP,
            tied_apart: pp > 1 || case.numerics == Numerics::Reference,
            bucket_elements: 1500,
            ..RankRequest::serial(&parts, &stages[at.pp..=at.pp])
        })
        .unwrap();
        case.divided.edit(&mut layout);
        let groups = Groups::new(&mesh, &world, [AxisSet::DP, AxisSet::TP])?;
        let outer = at.pp == 0 || at.pp == pp - 1;
        let colour = if outer { at.dp * tp + at.tp } else { 1000 + world.rank() };
        let tied = world.split(colour as u64, "tied")?;
        Ok(Self {
            at,
            own: own_ranges(&layout, &groups).unwrap(),
            layout: Arc::new(layout),
            groups,
            tied: Some(tied).filter(|peer| peer.size() == 2 && case.model.tied),
            world,
            ops: CpuOps::new(Team::new(1)),
            case: case.clone(),
        })
    }

    pub(crate) fn grads(&self) -> GradStore {
        GradStore::new(self.layout.clone(), DType::F32, self.case.numerics)
    }

    pub(crate) fn sync(&self) -> GradSync {
        let options = GradSyncOptions {
            numerics: self.case.numerics,
            global_batch: self.case.batch,
            tied_peer: self.tied.clone(),
            place: Place::Host,
        };
        GradSync::new(&self.layout, options, &self.groups).unwrap()
    }

    pub(crate) fn norm(&self) -> GradNorm {
        let (case, world) = (&self.case, self.world.clone());
        let names = case.model.parts(1).unwrap().names();
        GradNorm::new(names, &self.layout, &self.groups, case.numerics, world).unwrap()
    }

    /// Adds this rank's samples to every gradient, in micro-batches of 2.
    pub(crate) fn accumulate(&self, grads: &mut GradStore) {
        let samples = part(self.case.batch, self.case.degrees.dp, self.at.dp);
        for start in samples.clone().step_by(2) {
            let rows = Rows { samples: start..samples.end.min(start + 2), seq: 1 };
            for param in &self.layout.params {
                let name = param.spec.name.as_str();
                self.add(grads, param, name, &rows);
                if name == EMBEDDING && self.case.model.tied && self.serves_both_uses() {
                    self.add(grads, param, HEAD, &rows);
                }
            }
            for bucket in 0..self.layout.buckets.len() {
                grads.close(bucket, rows.samples.clone(), &self.ops).unwrap();
            }
        }
    }

    fn serves_both_uses(&self) -> bool {
        self.case.degrees.pp == 1 && self.layout.find(HEAD).is_none()
    }

    fn add(&self, grads: &mut GradStore, param: &LocalParam, stream: &str, rows: &Rows) {
        let id = ParamId::find(&self.layout, &[&param.spec.name]).unwrap();
        let (indices, seed) = (global_indices(param), seed(stream));
        let add = |local: std::ops::Range<usize>, sum: trine_buffer::SliceMut<'_>| {
            let sum = sum.typed::<f32>()?;
            for row in local {
                let sample = rows.samples.start + row;
                for (sum, index) in sum.iter_mut().zip(&indices) {
                    *sum += if valid(param, *index) { leaf(seed, *index, sample) } else { 0.0 };
                }
            }
            Ok(())
        };
        grads.add(&id, rows, add).unwrap();
    }

    /// One whole step: what the schedule's actions become.
    pub(crate) fn reduce(&self, sync: &mut GradSync, grads: &mut GradStore) {
        self.accumulate(grads);
        let buckets = self.layout.buckets.len();
        for bucket in (0..buckets).rev().filter(|bucket| !self.layout.buckets[*bucket].tied) {
            sync.post(grads, bucket, &self.ops).unwrap();
        }
        sync.tied(grads, &self.ops).unwrap();
        for bucket in (0..buckets).filter(|bucket| self.layout.buckets[*bucket].tied) {
            sync.post(grads, bucket, &self.ops).unwrap();
        }
        for bucket in 0..buckets {
            sync.wait(grads, bucket, &self.ops).unwrap();
        }
    }

    /// Sets everything that is not this rank's part to NaN where the reduction left it stale.
    pub(crate) fn poison_stale(&self, grads: &mut GradStore) {
        if self.case.numerics == Numerics::Reference {
            return;
        }
        for (bucket, own) in self.own.iter().enumerate() {
            let values = grads.bucket_mut(bucket).unwrap().typed_mut::<f32>().unwrap();
            let stale = values.iter_mut().enumerate().filter(|(at, _)| !own.contains(at));
            stale.for_each(|(_, value)| *value = f32::NAN);
        }
    }

    /// The owned elements of a bucket store as (parameter, global index, value).
    pub(crate) fn owned(&self, values: impl Fn(usize) -> Vec<f64>) -> Vec<(String, usize, f64)> {
        let mut owned = Vec::new();
        for (bucket, held) in self.layout.buckets.iter().enumerate() {
            let (values, own) = (values(bucket), &self.own[bucket]);
            for param in held.params.iter().map(|index| &self.layout.params[*index]) {
                for (at, index) in param.span().zip(global_indices(param)) {
                    if own.contains(&at) {
                        owned.push((param.spec.name.clone(), index, values[at]));
                    }
                }
            }
        }
        owned
    }
}

fn global_indices(param: &LocalParam) -> Vec<usize> {
    let width: usize = param.spec.shape[1..].iter().product();
    let columns = param.ranges.get(1).cloned().unwrap_or(0..1);
    let row = |row: usize| columns.clone().map(move |column| row * width + column);
    param.ranges[0].clone().flat_map(row).collect()
}

pub(crate) fn valid(param: &LocalParam, index: usize) -> bool {
    index < param.spec.unpadded_len()
}

/// What tells one parameter's numbers from another's.
fn seed(stream: &str) -> u64 {
    stream.bytes().fold(7u64, |hash, byte| hash.wrapping_mul(31) + u64::from(byte))
}

/// One sample's gradient of one element: any number that mixes magnitudes, so that the order of a
/// sum shows in f32.
fn leaf(seed: u64, index: usize, sample: usize) -> f32 {
    let mut bits =
        seed ^ ((index as u64) << 20) ^ (sample as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..3 {
        bits = (bits ^ (bits >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    let unit = (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    unit * [1.0, 1e-3, 30.0][(bits % 3) as usize]
}

/// The exact gradient of an element and the sum of its terms' magnitudes.
pub(crate) fn exact(model: &ModelSpec, name: &str, index: usize, batch: usize) -> (f64, f64) {
    let tied = model.tied && (name == EMBEDDING || name == HEAD);
    let streams = if tied { vec![EMBEDDING, HEAD] } else { vec![name] };
    let seeds = streams.into_iter().map(seed);
    let leaves = seeds.flat_map(|s| (0..batch).map(move |n| f64::from(leaf(s, index, n))));
    leaves.fold((0.0, 0.0), |(sum, size), value| (sum + value, size + value.abs()))
}

/// Runs a case on one thread a rank.
pub(crate) fn run<T: Send>(case: &Case, body: impl Fn(Rank) -> T + Sync) -> Vec<T> {
    try_run(case, |rank| Ok::<_, String>(body(rank))).unwrap()
}

/// As [`run`]; the first error ends it.
pub(crate) fn try_run<T: Send, E: Display>(
    case: &Case,
    body: impl Fn(Rank) -> Result<T, E> + Sync,
) -> Result<Vec<T>, String> {
    let world = case.degrees.world();
    threads::run(world, &threads::WorldOptions::default(), |comm| {
        let rank = Rank::new(case, comm).map_err(|error| error.to_string())?;
        body(rank).map_err(|error| error.to_string())
    })
    .map_err(|error| error.to_string())
}

/// Values of a serial run by parameter and global index.
pub(crate) type Named = BTreeMap<(String, usize), f64>;

pub(crate) fn named(ranks: Vec<Vec<(String, usize, f64)>>) -> Named {
    ranks.into_iter().flatten().map(|(name, index, value)| ((name, index), value)).collect()
}
