//! Models with a block that the zoo does not have.

use crate::hostile::rewrite;
use crate::world::{Expected, MOMENTS, Options, World, model, save_step, zoo};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;
use trine_checkpoint::{Checkpoint, model_from_config, open_hf};
use trine_spec::{Family, Init, ModelParts, ModelSpec, OwnBody, OwnPiece, ParamSpec, split_layers};

/// The block that is its own.
const OWN: usize = 2;

/// Rows that are real. Ranks pad them: four hold more of them than one.
const ROWS: usize = 37;

/// A vector, a matrix with padded rows that ranks split by rows, and one that they split by columns.
fn piece(tp: usize) -> OwnPiece {
    let stored = ROWS.next_multiple_of(4 * tp);
    let table = ParamSpec::new("own.table", &[stored, 8], Init::Ones).split(0, stored);
    let body = OwnBody { name: "table".into(), ..OwnBody::default() };
    let params = vec![
        ParamSpec::new("own.gain", &[8], Init::Ones),
        ParamSpec { valid_rows: ROWS, ..table },
        ParamSpec::new("own.row", &[8, 12], Init::Ones).split(1, 12),
    ];
    OwnPiece { params, body, flops_per_token: 1.0 }
}

fn parts(model: &ModelSpec, tp: usize) -> ModelParts {
    let mut parts = model.parts(tp).unwrap();
    parts.replace(OWN, piece(tp)).unwrap();
    parts
}

fn world(model: &ModelSpec, pp: usize, tp: usize) -> World {
    let stages = split_layers(&parts(model, 1), pp, None).unwrap();
    World::of_parts((model, parts), (1, tp), &stages, pp > 1, 1 << 9)
}

/// A checkpoint of a world in a folder that goes away.
fn saved(world: &World) -> (TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    save_step(world, dir.path(), &Options::step(3));
    let checkpoint = Checkpoint::open(&dir.path().join("step-3")).unwrap();
    checkpoint.verify().unwrap();
    (dir, checkpoint)
}

#[test]
fn every_layout_loads_an_own_block_and_files_are_the_same_bytes() {
    let (mut buckets, mut own) = (0, 0);
    for family in [Family::Gpt, Family::Llama] {
        let model = model(family);
        let worlds = [(2, 2), (1, 1), (1, 4)].map(|(pp, tp)| world(&model, pp, tp));
        let (_first, exact) = saved(&worlds[0]);
        for from in &worlds {
            let (_dir, checkpoint) = saved(from);
            let read = |of: &Checkpoint, name| fs::read(of.dir().join(name)).unwrap();
            for name in ["model.safetensors", "optimizer.safetensors", "config.json"] {
                assert!(read(&checkpoint, name) == read(&exact, name), "{name}");
            }
            checkpoint.check_model(&parts(&model, 4)).unwrap();
            let ours = parts(&model, 1);
            assert_eq!(checkpoint.parts().names(), ours.names());
            assert_eq!(checkpoint.parts().own().count(), 1);
            for to in &worlds {
                let load = |quantity: &str, layout: &_, bucket, out: trine_buffer::SliceMut<'_>| {
                    checkpoint.load_bucket(quantity, layout, bucket, out).unwrap();
                };
                buckets += Expected::<f32>::new(to, MOMENTS).compare(&load);
            }
        }
        let held = worlds.iter().flat_map(|world| world.ranks.iter().flatten());
        own += held.flat_map(|rank| &rank.params).filter(|p| p.spec.name == "own.table").count();
    }
    // Two ranks, one and four hold a part of the table, whatever stage it is on.
    assert_eq!(own, 2 * (2 + 1 + 4));
    assert!(buckets > 400, "{buckets}");
}

/// What is said of a checkpoint of `there`, for a run of `here`.
fn said(there: fn(&ModelSpec, usize) -> ModelParts, here: &ModelParts) -> String {
    let model = &here.spec;
    let stages = split_layers(&there(model, 1), 1, None).unwrap();
    let (_dir, checkpoint) =
        saved(&World::of_parts((model, there), (1, 1), &stages, false, 1 << 20));
    checkpoint.check_model(here).unwrap_err().to_string()
}

#[test]
fn what_differs_is_named_whichever_of_both_has_it() {
    let model = model(Family::Llama);
    let text = said(parts, &zoo(&model, 1));
    assert!(text.contains("block 2 is \"table\" there and of the zoo here"), "{text}");
    let text = said(zoo, &parts(&model, 1));
    assert!(text.contains("block 2 is of the zoo there and \"table\" here"), "{text}");
    let mut other = parts(&model, 1);
    let body = OwnBody { name: "of the zoo".into(), ..OwnBody::default() };
    other.replace(OWN, OwnPiece { body, ..piece(1) }).unwrap();
    let text = said(parts, &other);
    assert!(text.contains("block 2 is \"table\" there and \"of the zoo\" here"), "{text}");
    // A kind whose name is what a block of the zoo is called is still none.
    let text = said(zoo, &other);
    assert!(text.contains("is of the zoo there and \"of the zoo\" here"), "{text}");
    let mut moved = zoo(&model, 1);
    moved.replace(0, piece(1)).unwrap();
    let text = said(parts, &moved);
    assert!(text.contains("block 0 is of the zoo there and \"table\" here; block 2"), "{text}");
    let mut changed = piece(1);
    changed.params[0] = ParamSpec::new("own.bias", &[8], Init::Zeros);
    changed.params[1].valid_rows = 36;
    let mut other = zoo(&model, 1);
    other.replace(OWN, changed).unwrap();
    let text = said(parts, &other);
    let part = r#"block 2 has ["own.gain [8]", "own.table [37, 8]"] there and ["own.bias [8]", "own.table [36, 8]"] here"#;
    assert!(text.contains(part), "{text}");
}

#[test]
fn nobody_else_takes_it_for_a_model_of_theirs() {
    for (family, theirs) in [(Family::Gpt, "gpt2"), (Family::Llama, "llama")] {
        let (_dir, checkpoint) = saved(&world(&model(family), 1, 2));
        let path = checkpoint.dir().join("config.json");
        let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(config["model_type"], "trine-own-pieces", "not {theirs}");
        assert_eq!(config["architectures"], json!(["trine-own-pieces"]));
        for refused in [
            model_from_config(&path).unwrap_err().to_string(),
            open_hf(checkpoint.dir()).unwrap_err().to_string(),
        ] {
            assert!(refused.contains("trine-own-pieces"), "{refused}");
        }
    }
}

#[test]
fn a_damaged_list_of_own_blocks_is_refused() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 7] = [
        (|own| own[0]["block"] = 5.into(), "block 5 is not one more of its own"),
        (|own| own[0]["params"][1]["name"] = "own.gain".into(), "\"own.gain\" twice"),
        (|own| own[0]["params"][0]["shape"] = json!([]), "block 2 has a parameter of no known"),
        (|own| own[0]["params"][1]["shape"] = json!([1, 37, 8]), "block 2 has a parameter of no"),
        // What is no nonsense by itself is held against the tensors.
        (|own| own[0]["params"][1]["shape"] = json!([37, 0]), "own.table"),
        (|own| own[0]["params"][1]["shape"] = json!([36, 8]), "own.table"),
        (|own| *own = json!([]), "has no tensor"),
    ];
    let (_dir, checkpoint) = saved(&world(&model(Family::Llama), 1, 1));
    let step: &Path = checkpoint.dir();
    let whole = fs::read(step.join("manifest.json")).unwrap();
    for (change, part) in cases {
        rewrite(step, |manifest| change(&mut manifest["own"]));
        let text = Checkpoint::open(step).unwrap_err().to_string();
        assert!(text.contains(part), "{part}: {text}");
        fs::write(step.join("manifest.json"), &whole).unwrap();
    }
    Checkpoint::open(step).unwrap().check_model(&parts(&model(Family::Llama), 1)).unwrap();
}
