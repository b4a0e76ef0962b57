//! What one layout saves, every layout loads.

use crate::world::{Expected, MOMENTS, Options, World, model, save_each, save_step};
use std::fs;
use trine_buffer::{Buf, DType, SliceMut};
use trine_checkpoint::{Checkpoint, CheckpointError, WEIGHTS};
use trine_comm::Delivery;
use trine_spec::{Family, ModelSpec, Piece, RankLayout, StagePieces, split_layers};

/// (dp, pp, tp) in {1, 2}³, more tensor ranks than KV heads, uneven stages, one bucket for
/// everything, and two copies of a tied embedding on one stage.
fn worlds(model: &ModelSpec) -> Vec<World> {
    let mut worlds = Vec::new();
    for dp in [1, 2] {
        for pp in [1, 2] {
            worlds.extend([1, 2].map(|tp| World::new(model, dp, pp, tp)));
        }
    }
    let parts = model.parts(1).unwrap();
    let uneven = split_layers(&parts, 3, Some(&[1, 3, 1])).unwrap();
    worlds.push(World::new(model, 1, 1, 4));
    worlds.push(World::of_stages(model, (2, 4), &split_layers(&parts, 1, None).unwrap(), true, 1));
    worlds.push(World::of_stages(model, (1, 2), &uneven, true, 1 << 20));
    worlds
}

#[test]
fn every_layout_loads_what_any_other_has_saved_and_files_are_the_same_bytes() {
    let (mut pairs, mut buckets) = (0, 0);
    for family in Family::ALL.iter().copied() {
        let model = model(family);
        let mut files: Vec<Vec<u8>> = Vec::new();
        let expected: Vec<Expected<f32>> =
            worlds(&model).iter().map(|to| Expected::new(to, MOMENTS)).collect();
        for (case, from) in worlds(&model).into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let delivery = [Delivery::Buffered, Delivery::Rendezvous][case % 2];
            save_step(&from, dir.path(), &Options { delivery, ..Options::step(5) });
            let path = dir.path().join("step-5");
            let checkpoint = Checkpoint::open(&path).unwrap();
            checkpoint.verify().unwrap();
            checkpoint.check_model(&model.parts(1).unwrap()).unwrap();
            assert_eq!(checkpoint.manifest().written_by, from.mesh.degrees());
            let read = |name: &str| fs::read(path.join(name)).unwrap();
            let written = vec![read("model.safetensors"), read("optimizer.safetensors")];
            if files.is_empty() {
                files = written;
            } else {
                assert!(files == written, "{:?} writes the same bytes", from.mesh.degrees());
            }
            for to in &expected {
                buckets += to.compare(&|quantity, layout, bucket, out| {
                    checkpoint.load_bucket(quantity, layout, bucket, out).unwrap();
                });
                pairs += 1;
            }
        }
    }
    assert_eq!(pairs, Family::ALL.len() * 11 * 11);
    assert!(buckets > 5_000, "{buckets}");
}

#[test]
fn tensor_ranks_of_unequal_shares_save_and_load_the_same_bytes() {
    let mut buckets = 0;
    for (heads, kv_heads) in [(5, 5), (6, 3), (5, 1)] {
        let model = ModelSpec { heads, kv_heads, head_dim: 4, ffn: 65, ..model(Family::Llama) };
        let worlds = [(1, 1, 2), (1, 1, 1), (1, 1, 3), (2, 2, 2), (1, 2, 3)]
            .map(|(dp, pp, tp)| World::new(&model, dp, pp, tp));
        let mut files = None;
        for from in &worlds {
            let dir = tempfile::tempdir().unwrap();
            save_step(from, dir.path(), &Options::step(3));
            let checkpoint = Checkpoint::open(&dir.path().join("step-3")).unwrap();
            checkpoint.verify().unwrap();
            let written = checkpoint.manifest().files.clone();
            assert_eq!(*files.get_or_insert(written.clone()), written, "{:?}", from.mesh);
            for to in &worlds {
                buckets +=
                    Expected::<f32>::new(to, MOMENTS).compare(&|quantity, layout, bucket, out| {
                        checkpoint.load_bucket(quantity, layout, bucket, out).unwrap();
                    });
            }
        }
    }
    assert!(buckets > 500, "{buckets}");
}

#[test]
fn stages_that_take_turns_give_the_same_files() {
    let model = model(Family::Gpt);
    let block = Piece::Block;
    let pieces = [
        StagePieces { stage: 0, pieces: vec![Piece::Embedding, block(0), block(2), block(4)] },
        StagePieces { stage: 1, pieces: vec![block(1), block(3), Piece::Head] },
    ];
    let turns = World::of_stages(&model, (1, 2), &pieces, true, 1 << 20);
    let serial = World::new(&model, 1, 1, 1);
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save_step(&turns, a.path(), &Options::step(1));
    save_step(&serial, b.path(), &Options::step(1));
    let read = |dir: &tempfile::TempDir| Checkpoint::open(&dir.path().join("step-1")).unwrap();
    read(&a).verify().unwrap();
    assert_eq!(read(&a).manifest().files, read(&b).manifest().files);
}

#[test]
fn f64_stays_f64_and_sgd_needs_no_second_file() {
    let world = World::new(&model(Family::Llama), 1, 2, 2);
    let dir = tempfile::tempdir().unwrap();
    let options = Options { moments: &[], ..Options::step(2) };
    for outcome in save_each::<f64>(&world, dir.path(), &options) {
        outcome.unwrap();
    }
    let checkpoint = Checkpoint::open(&dir.path().join("step-2")).unwrap();
    assert_eq!(checkpoint.manifest().dtype, DType::F64);
    let names: Vec<&str> =
        checkpoint.manifest().files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["model.safetensors", "config.json", "generation_config.json"]);
    let load = |quantity: &str, layout: &RankLayout, bucket, out: SliceMut<'_>| {
        checkpoint.load_bucket(quantity, layout, bucket, out).unwrap();
    };
    let serial = World::new(&world.model, 1, 1, 1);
    assert!(Expected::<f64>::new(&serial, &[]).compare(&load) > 3);
    assert!(Expected::<f32>::new(&serial, &[]).compare(&load) > 3);
}

#[test]
fn buckets_and_layouts_that_do_not_fit_are_refused() {
    let world = World::new(&model(Family::Llama), 1, 1, 1);
    let dir = tempfile::tempdir().unwrap();
    save_step(&world, dir.path(), &Options::step(1));
    let checkpoint = Checkpoint::open(&dir.path().join("step-1")).unwrap();
    let layout = &world.ranks[0][0];
    let load = |quantity: &str, layout, dtype, len| {
        let mut out = Buf::zeros(dtype, len);
        checkpoint.load_bucket(quantity, layout, 0, out.slice_mut()).unwrap_err()
    };
    let len = layout.buckets[0].len;
    let error = load("exp_max", layout, DType::F32, len);
    assert!(matches!(error, CheckpointError::Quantity { .. }), "{error}");
    assert!(error.to_string().contains("weights, exp_avg, exp_avg_sq"), "{error}");
    let error = load(WEIGHTS, layout, DType::F32, len - 1);
    assert!(matches!(error, CheckpointError::Bucket { .. }), "{error}");
    let error = load(WEIGHTS, layout, DType::Bf16, len);
    assert!(matches!(error, CheckpointError::Bucket { .. }), "{error}");
    let wider = ModelSpec { hidden: 16, ..world.model.clone() };
    let other = World::new(&wider, 1, 1, 1);
    let error = load(WEIGHTS, &other.ranks[0][0], DType::F32, other.ranks[0][0].buckets[0].len);
    assert!(matches!(error, CheckpointError::Layout(_)), "{error}");

    // A world that lacks a stage, or whose model is another one, saves nothing.
    let half = split_layers(&world.model.parts(1).unwrap(), 2, None).unwrap();
    let mut wrong = vec![World::of_stages(&world.model, (1, 1), &half[..1], true, 1 << 11)];
    wrong.push(World { model: wider, ..world });
    for world in wrong {
        let dir = tempfile::tempdir().unwrap();
        let error = save_each::<f32>(&world, dir.path(), &Options::step(1)).remove(0).unwrap_err();
        assert!(matches!(error, CheckpointError::Layout(_)), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
