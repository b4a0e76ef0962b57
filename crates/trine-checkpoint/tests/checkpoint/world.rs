//! Small models, laid out in many ways, with values that tell every element from every other.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;
use trine_buffer::{Buf, Float, SliceMut};
use trine_checkpoint::{
    CheckpointError, Disk, Keep, RunState, SaveRequest, Storage, StorageFile, TokenizerFile,
    WEIGHTS, prune, save,
};
use trine_comm::{Delivery, threads};
use trine_mesh::{AxisSet, Degrees, Mesh};
use trine_spec::{
    Family, ModelParts, ModelSpec, RankLayout, RankRequest, StagePieces, presets, split_layers,
};

pub(crate) const MOMENTS: &[&str] = &["exp_avg", "exp_avg_sq"];

/// 5 layers, a vocabulary that nothing divides, fewer KV heads than tensor ranks.
pub(crate) fn model(family: Family) -> ModelSpec {
    let name = match family {
        Family::Gpt => "gpt2-124m",
        Family::Llama => "llama3-8b",
        Family::Mistral => "mistral-7b",
        Family::Qwen2 => "qwen2.5-7b",
        Family::Qwen3 => "qwen3-8b",
        Family::GptNeoX => "pythia-160m",
        Family::Olmo2 => "olmo2-7b",
        Family::Gemma2 => "gemma2-9b",
    };
    let mut model = ModelSpec {
        hidden: 8,
        layers: 5,
        heads: 4,
        kv_heads: 2,
        head_dim: 2,
        ffn: 12,
        vocab: 1009,
        seq_max: 8,
        ..presets::find(name).unwrap().model
    };
    if family == Family::GptNeoX {
        // As many KV heads as heads, and a half of each head turned.
        (model.kv_heads, model.rope_fraction) = (4, 0.5.into());
        model.head_dim = 4;
    }
    model
}

/// A GPT that Hugging Face can express, too.
pub(crate) fn tiny_gpt() -> ModelSpec {
    ModelSpec { layers: 2, kv_heads: 4, vocab: 37, ..model(Family::Gpt) }
}

/// A model's pieces, as so many tensor-parallel ranks share them.
pub(crate) type Parts = fn(&ModelSpec, usize) -> ModelParts;

/// Those of the zoo.
pub(crate) fn zoo(model: &ModelSpec, tp: usize) -> ModelParts {
    model.parts(tp).unwrap()
}

/// A model in one layout.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) model: ModelSpec,
    pub(crate) parts: Parts,
    pub(crate) mesh: Mesh,
    /// What the ranks at (pipeline, tensor) coordinates hold.
    pub(crate) ranks: Vec<Vec<RankLayout>>,
}

impl World {
    pub(crate) fn of_stages(
        model: &ModelSpec,
        ranks: (usize, usize),
        stages: &[StagePieces],
        tied_apart: bool,
        bucket_elements: usize,
    ) -> Self {
        Self::of_parts((model, zoo), ranks, stages, tied_apart, bucket_elements)
    }

    pub(crate) fn of_parts(
        (model, parts): (&ModelSpec, Parts),
        (dp, tp): (usize, usize),
        stages: &[StagePieces],
        tied_apart: bool,
        bucket_elements: usize,
    ) -> Self {
        let degrees = Degrees { dp, pp: stages.len(), tp, ..Degrees::SERIAL };
        let shared = parts(model, tp);
        let layout = |stages: &[StagePieces], tp_index| {
            RankLayout::new(&RankRequest {
                degrees,
                tp_index,
                summed: AxisSet::DP,
                tied_apart,
                bucket_elements,
                ..RankRequest::serial(&shared, stages)
            })
            .unwrap()
        };
        let ranks = |stages: &[StagePieces]| -> Vec<RankLayout> {
            (0..tp).map(|tp_index| layout(stages, tp_index)).collect()
        };
        Self {
            model: model.clone(),
            parts,
            mesh: Mesh::new(degrees, degrees.world()).unwrap(),
            ranks: stages.chunks(1).map(ranks).collect(),
        }
    }

    /// Stages as even as possible; two copies of tied embeddings where there are two stages.
    pub(crate) fn new(model: &ModelSpec, dp: usize, pp: usize, tp: usize) -> Self {
        let stages = split_layers(&model.parts(1).unwrap(), pp, None).unwrap();
        Self::of_stages(model, (dp, tp), &stages, pp > 1, 1 << 9)
    }

    pub(crate) fn layout(&self, rank: usize) -> &RankLayout {
        let at = self.mesh.coordinate(rank);
        &self.ranks[at.pp][at.tp]
    }
}

/// Numbers in ±½ that hardly any two elements share: a function of the quantity, the
/// parameter and the element's global index.
fn numbers(quantity: &str, name: &str) -> impl Fn(usize) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in quantity.bytes().chain([0]).chain(name.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    move |index| {
        let mixed = (hash ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bits = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 11;
        (bits | 1) as f64 / (1u64 << 53) as f64 - 0.5
    }
}

/// A rank's bucket, filled from the elements' global places. Whatever is no element is `padding`.
pub(crate) fn bucket<T: Float>(
    layout: &RankLayout,
    quantity: &str,
    bucket: usize,
    padding: f64,
) -> Vec<T> {
    let mut values = vec![T::from_f64(padding); layout.buckets[bucket].len];
    for &index in &layout.buckets[bucket].params {
        let param = &layout.params[index];
        let name = param.spec.tied_to.as_ref().unwrap_or(&param.spec.name);
        let number = numbers(quantity, name);
        let width = param.spec.shape.get(1).copied().unwrap_or(1);
        let columns = param.ranges.get(1).cloned().unwrap_or(0..1);
        let mut elements = values[param.span()].iter_mut();
        for row in param.ranges[0].clone() {
            for column in columns.clone() {
                let element = elements.next().unwrap();
                if row < param.spec.valid_rows {
                    *element = T::from_f64(number(row * width + column));
                }
            }
        }
    }
    values
}

pub(crate) fn run_state(step: u64) -> RunState {
    RunState {
        step,
        consumed_samples: 8 * step,
        seed: 3,
        data_hash: "data".into(),
        tokenizer_hash: None,
        trainer: serde_json::Value::from(vec![0.1 + 0.2]),
    }
}

/// The file system without waiting for the medium: a test looks at files, not at power cuts, and a
/// busy disk would make it wait for everybody else's writes.
#[derive(Debug)]
pub(crate) struct Unsynced;

impl Storage for Unsynced {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Disk.create_dir(path)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        Disk.free_bytes(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let options = File::options().read(true).write(true).create_new(true).open(path)?;
        Ok(Box::new(UnsyncedFile(options)))
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        Disk.remove_dir(path)
    }
}

struct UnsyncedFile(File);

impl Read for UnsyncedFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Write for UnsyncedFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Seek for UnsyncedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl StorageFile for UnsyncedFile {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A tokenizer file whose texts end with id 3.
pub(crate) fn tokenizer(text: &str) -> TokenizerFile<'_> {
    TokenizerFile { text, end_of_text: 3, end_of_text_name: "<|endoftext|>" }
}

/// What a test varies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options<'a> {
    pub(crate) step: u64,
    pub(crate) keep_last: usize,
    pub(crate) moments: &'a [&'a str],
    pub(crate) tokenizer: Option<TokenizerFile<'a>>,
    pub(crate) storage: &'a dyn Storage,
    pub(crate) delivery: Delivery,
}

impl Options<'_> {
    pub(crate) fn step(step: u64) -> Self {
        Self {
            step,
            keep_last: 9,
            moments: MOMENTS,
            tokenizer: None,
            storage: &Unsynced,
            delivery: Delivery::Buffered,
        }
    }
}

/// Saves from threads; padding is NaN, so that it would show wherever it got. Gives every rank's
/// outcome; the world still works afterwards.
pub(crate) fn save_each<T: Float>(
    world: &World,
    dir: &Path,
    options: &Options<'_>,
) -> Vec<Result<(), CheckpointError>> {
    let run = run_state(options.step);
    // A busy disk may keep rank 0 for long.
    let deadline = Duration::from_secs(900);
    let delivery = options.delivery;
    let threads = threads::WorldOptions { delivery, deadline, ..Default::default() };
    threads::run(world.mesh.world(), &threads, |comm| {
        let request = SaveRequest {
            dir,
            model: &(world.parts)(&world.model, 1),
            mesh: &world.mesh,
            ranks: &world.ranks,
            dtype: T::DTYPE,
            moments: options.moments,
            run: &run,
            tokenizer: options.tokenizer,
            storage: options.storage,
        };
        let layout = world.layout(comm.rank());
        let mut source = |quantity: &str, index| {
            Ok(Buf::from_vec(bucket::<T>(layout, quantity, index, f64::NAN)))
        };
        let saved = save(&request, &*comm, &mut source).map(|path| assert!(path.is_dir()));
        comm.barrier("after the save")?;
        Ok::<_, CheckpointError>(saved)
    })
    .unwrap()
}

/// Saves in f32 and prunes; everything must go well.
pub(crate) fn save_step(world: &World, dir: &Path, options: &Options<'_>) {
    for outcome in save_each::<f32>(world, dir, options) {
        outcome.unwrap();
    }
    let keep = Keep { last: options.keep_last, step: options.step, best: None };
    prune(options.storage, dir, keep).unwrap();
}

/// What every bucket of every rank should hold, by rank, bucket and quantity.
pub(crate) struct Expected<T>(Vec<(RankLayout, usize, String, Vec<T>)>);

impl<T: Float> Expected<T> {
    pub(crate) fn new(world: &World, moments: &[&str]) -> Self {
        let mut all = Vec::new();
        for layout in world.ranks.iter().flatten() {
            for index in 0..layout.buckets.len() {
                for quantity in [WEIGHTS].iter().chain(moments) {
                    let values = bucket::<T>(layout, quantity, index, 0.0);
                    all.push((layout.clone(), index, (*quantity).into(), values));
                }
            }
        }
        Self(all)
    }

    /// Loads everything and compares all elements; returns how many buckets there were.
    pub(crate) fn compare(&self, load: &dyn Fn(&str, &RankLayout, usize, SliceMut<'_>)) -> usize {
        for (layout, index, quantity, expected) in &self.0 {
            let mut loaded = Buf::from_vec(vec![T::from_f64(7.0); expected.len()]);
            load(quantity, layout, *index, loaded.slice_mut());
            assert!(loaded.typed::<T>().unwrap() == expected, "{quantity} of bucket {index}");
        }
        self.0.len()
    }
}
