//! Damaged and foreign checkpoints are noticed, and named.

use crate::world::{MOMENTS, Options, World, model, save_step, tiny_gpt, tokenizer};
use std::fs::{self, File};
use std::path::Path;
use trine_checkpoint::{Check, Checkpoint, CheckpointError, latest};
use trine_spec::{Family, ModelSpec};

const FILES: [&str; 7] = [
    "model.safetensors",
    "optimizer.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "manifest.json",
];

pub(crate) fn saved(dir: &Path, steps: &[u64]) {
    let world = World::new(&tiny_gpt(), 1, 1, 2);
    for &step in steps {
        let options =
            Options { tokenizer: Some(tokenizer("{\"model\": \"bpe\"}\n")), ..Options::step(step) };
        save_step(&world, dir, &options);
    }
}

/// Numbers that are the same in every run.
fn seeded() -> impl FnMut(usize) -> usize {
    let mut state = 42u64;
    move |below| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    }
}

fn inspect(path: &Path) -> Result<(), CheckpointError> {
    Checkpoint::open(path)?.verify()
}

#[test]
fn truncation_and_flipped_bits_are_found_in_every_file() {
    let dir = tempfile::tempdir().unwrap();
    saved(dir.path(), &[3]);
    let step = dir.path().join("step-3");
    inspect(&step).unwrap();
    let (mut random, mut cases) = (seeded(), 0);
    for name in FILES {
        let path = step.join(name);
        let whole = fs::read(&path).unwrap();
        for _ in 0..40 {
            let cut = random(whole.len());
            fs::write(&path, &whole[..cut]).unwrap();
            // Sizes are compared when the checkpoint is opened; contents when it is verified.
            let error = Checkpoint::open(&step).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            let mut flipped = whole.clone();
            flipped[random(whole.len())] ^= 1 << random(8);
            fs::write(&path, &flipped).unwrap();
            let error = inspect(&step).unwrap_err();
            assert!(error.to_string().contains(&*step.to_string_lossy()), "{error}");
            cases += 2;
        }
        fs::remove_file(&path).unwrap();
        assert!(inspect(&step).is_err(), "{name} is gone");
        fs::write(&path, &whole).unwrap();
        inspect(&step).unwrap();
    }
    assert_eq!(cases, 7 * 80);
}

#[test]
fn the_newest_whole_checkpoint_is_found_and_damaged_ones_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let found = latest(dir.path(), Check::Checksums).unwrap();
    assert!(found.checkpoint.is_none() && found.damaged.is_empty());
    saved(dir.path(), &[1, 2, 3, 10]);
    let step = |found: &trine_checkpoint::Latest| {
        found.checkpoint.as_ref().map(|found| found.manifest().run.step)
    };
    // Not 3: numbers are compared, not names.
    assert_eq!(step(&latest(dir.path(), Check::Checksums).unwrap()), Some(10));
    fs::create_dir(dir.path().join(".tmp-step-11")).unwrap();
    let cut = File::options().write(true).open(dir.path().join("step-10/model.safetensors"));
    cut.unwrap().set_len(100).unwrap();
    let altered = dir.path().join("step-3/config.json");
    let text = fs::read_to_string(&altered).unwrap();
    fs::write(&altered, text.replace("gelu_new", "gelu_old")).unwrap();
    let found = latest(dir.path(), Check::Sizes).unwrap();
    assert_eq!((step(&found), found.damaged.len()), (Some(3), 1));
    assert!(matches!(found.damaged[0], CheckpointError::Size { found: 100, .. }));
    let found = latest(dir.path(), Check::Checksums).unwrap();
    assert_eq!((step(&found), found.damaged.len()), (Some(2), 2));
    assert!(matches!(found.damaged[1], CheckpointError::Altered { .. }));
}

#[test]
fn a_checkpoint_of_another_model_names_the_field() {
    type Change = fn(&mut ModelSpec);
    let changes: [(&str, Change); 10] = [
        ("hidden", |m| m.hidden = 16),
        ("layers", |m| m.layers = 6),
        ("heads", |m| m.heads = 2),
        ("kv_heads", |m| m.kv_heads = 1),
        ("head_dim", |m| m.head_dim = 8),
        ("ffn", |m| m.ffn = 32),
        ("vocab", |m| m.vocab = 1010),
        ("tied", |m| m.tied = !m.tied),
        ("norm_eps", |m| m.norm_eps *= 2.0),
        ("family", |m| m.family = Family::Gpt),
    ];
    let llama = model(Family::Llama);
    let dir = tempfile::tempdir().unwrap();
    save_step(&World::new(&llama, 1, 1, 1), dir.path(), &Options::step(1));
    let checkpoint = Checkpoint::open(&dir.path().join("step-1")).unwrap();
    assert_eq!(checkpoint.manifest().quantities[1..], *MOMENTS);
    for (name, change) in changes {
        let mut ours = llama.clone();
        change(&mut ours);
        let error = checkpoint.check_model(&ours.parts(1).unwrap()).unwrap_err();
        let named = matches!(error, CheckpointError::OtherModel { field, .. } if field == name);
        assert!(named, "{name}: {error}");
    }
    let mut ours = llama.clone();
    ours.rope_theta = 1e4;
    let text = checkpoint.check_model(&ours.parts(1).unwrap()).unwrap_err().to_string();
    assert!(text.contains("model.rope_theta is 500000 there and 10000 here"), "{text}");
    // What only training sees may change.
    let ours = ModelSpec { dropout: 0.1.into(), init_std: 0.5, seq_max: 99, ..llama };
    checkpoint.check_model(&ours.parts(1).unwrap()).unwrap();
}
