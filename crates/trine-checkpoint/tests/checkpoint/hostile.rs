//! Checkpoints that somebody has made on purpose: their checksums are right, what they say is not.

use crate::damage::saved;
use crate::world::Unsynced;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use trine_checkpoint::{Checkpoint, Storage};
use trine_spec::{Init, OwnBody, OwnPiece, ParamSpec};
use xxhash_rust::xxh3::xxh3_128;

/// A whole checkpoint, and the folder that goes away with it.
fn whole() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    saved(dir.path(), &[3]);
    let step = dir.path().join("step-3");
    Checkpoint::open(&step).unwrap().verify().unwrap();
    (dir, step)
}

/// Changes a manifest, and makes its checksum right again.
pub(crate) fn rewrite(step: &Path, change: impl FnOnce(&mut Value)) {
    let path = step.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest.as_object_mut().unwrap().remove("checksum");
    change(&mut manifest);
    let text = format!("{manifest:#}");
    let body = text.strip_suffix("\n}").unwrap();
    let checksum = format!("{:032x}", xxh3_128(body.as_bytes()));
    fs::write(&path, format!("{body},\n  \"checksum\": \"{checksum}\"\n}}\n")).unwrap();
}

/// What is said of a checkpoint with another manifest.
#[track_caller]
fn refused(change: impl FnOnce(&mut Value)) -> String {
    let (_dir, step) = whole();
    rewrite(&step, change);
    Checkpoint::open(&step).unwrap_err().to_string()
}

#[test]
fn a_manifest_that_is_only_written_anew_is_as_good_as_before() {
    let (_dir, step) = whole();
    rewrite(&step, |_| {});
    Checkpoint::open(&step).unwrap().verify().unwrap();
}

#[test]
fn a_model_is_held_against_the_tensors_before_anything_is_made_of_it() {
    let cases = [
        ("layers", 16_384u64, "has no tensor \"transformer.h.2.ln_1.weight\""),
        ("layers", 1_000_000, "model.layers = 1000000"),
        ("hidden", u64::MAX, "model.hidden"),
        ("vocab", 4_000_000, "wte.weight\" is F32 [37, 8]"),
        ("ffn", 1 << 22, "c_fc.weight"),
        ("heads", 0, "model.heads = 0"),
        ("seq_max", 1 << 22, "wpe.weight"),
    ];
    for (field, value, part) in cases {
        let text = refused(|manifest| manifest["model"][field] = value.into());
        assert!(text.contains(part), "{field} = {value}: {text}");
    }
    let text = refused(|manifest| manifest["model"]["norm_eps"] = (-1.0).into());
    assert!(text.contains("model.norm_eps = -1"), "{text}");
}

#[test]
fn a_manifest_vouches_for_everything_that_is_read() {
    let text = refused(|manifest| manifest["files"] = json!([]));
    assert!(text.contains("no checksum of model.safetensors"), "{text}");
    for name in ["model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json"] {
        let text = refused(|manifest| {
            manifest["files"].as_array_mut().unwrap().retain(|file| file["name"] != name);
        });
        assert!(text.contains(&format!("no checksum of {name}")), "{text}");
    }
    let text = refused(|manifest| {
        let first = manifest["files"][0].clone();
        manifest["files"].as_array_mut().unwrap().push(first);
    });
    assert!(text.contains("lists \"model.safetensors\" twice"), "{text}");
    for quantities in [json!([]), json!(["exp_avg"]), json!(["exp_avg", "weights"])] {
        let text = refused(|manifest| manifest["quantities"] = quantities);
        assert!(text.contains("its first quantity is not \"weights\""), "{text}");
    }
    let text = refused(|manifest| manifest["quantities"] = json!(["weights", "weights"]));
    assert!(text.contains("lists the quantity \"weights\" twice"), "{text}");
}

/// Blocks of one's own are described by the manifest alone, and by the names of tensors.
#[test]
fn blocks_of_ones_own_are_held_against_the_tensors() {
    let own =
        |block: u64, params: Value| json!({ "block": block, "kind": "mine", "params": params });
    let gain = |shape: Value| json!({ "name": "transformer.h.1.ln_1.weight", "shape": shape });
    let whole = own(1, json!([gain(json!([8]))]));
    for (blocks, part) in [
        (json!([own(2, json!([]))]), "block 2 is not one more of its own"),
        (json!([own(u64::MAX, json!([]))]), "is not one more of its own"),
        (json!([own(1, json!([])), own(1, json!([]))]), "block 1 is not one more of its own"),
        (json!([own(1, json!([gain(json!([8])), gain(json!([8]))]))]), "ln_1.weight\" twice"),
        (json!([own(0, json!([gain(json!([8]))])), whole]), "ln_1.weight\" twice"),
        (json!([own(1, json!([gain(json!([]))]))]), "block 1 has a parameter of no known shape"),
        (json!([own(1, json!([gain(json!([2, 2, 2]))]))]), "of no known shape"),
        (json!([own(1, json!([gain(json!([u64::MAX, u64::MAX]))]))]), "ln_1.weight\" is F32 [8]"),
        (json!([own(1, json!([gain(json!([0]))]))]), "ln_1.weight\" is F32 [8]"),
        (json!([own(1, json!([{ "name": "lost", "shape": [8] }]))]), "has no tensor \"lost\""),
    ] {
        let text = refused(|manifest| manifest["own"] = blocks);
        assert!(text.contains(part), "{part}: {text}");
    }
    let (_dir, step) = self::whole();
    rewrite(&step, |manifest| manifest["own"] = json!([whole]));
    let checkpoint = Checkpoint::open(&step).unwrap();
    let theirs = checkpoint.parts();
    checkpoint.check_model(&theirs).unwrap();
    let piece = |kind: &str, params: &[(&str, usize)]| {
        let param = |&(name, len): &(&str, usize)| ParamSpec::new(name, &[len], Init::Zeros);
        let body = OwnBody { name: kind.into(), ..OwnBody::default() };
        OwnPiece { params: params.iter().map(param).collect(), body, flops_per_token: 0.0 }
    };
    let name = "transformer.h.1.ln_1.weight";
    for (own, part) in [
        (piece("other", &[(name, 8)]), "block 1 is \"mine\" there and \"other\" here"),
        (piece("of the zoo", &[]), "block 1 is \"mine\" there and \"of the zoo\" here"),
        (piece("mine", &[(name, 4)]), "ln_1.weight [8]\"] there and"),
        (piece("mine", &[]), "ln_1.weight [8]\"] there and [] here"),
        (piece("mine", &[(name, 8), ("more", 3)]), "there and [\"more [3]\"] here"),
    ] {
        let mut ours = theirs.clone();
        ours.replace(1, own).unwrap();
        let text = checkpoint.check_model(&ours).unwrap_err().to_string();
        assert!(text.contains(part), "{part}: {text}");
    }
    let text = checkpoint.check_model(&theirs.spec.parts(1).unwrap()).unwrap_err().to_string();
    assert!(text.contains("block 1 is \"mine\" there and of the zoo here"), "{text}");
}

#[test]
fn names_lead_nowhere_else() {
    for name in ["../../secret", "/etc/passwd", "..", ".", "", "a/b"] {
        let text = refused(|manifest| manifest["files"][2]["name"] = name.into());
        // The name is refused before the file is looked at: the message has nothing of it.
        let expected = format!("{name:?} is not the name of a file in this folder");
        assert!(text.contains("no checksum of config.json") || text.contains(&expected), "{text}");
        let text = refused(|manifest| {
            let more = json!({ "name": name, "bytes": 1, "xxh3_128": "0" });
            manifest["files"].as_array_mut().unwrap().push(more);
        });
        assert!(text.contains(&expected), "{text}");
    }
    let (dir, step) = whole();
    fs::rename(step.join("config.json"), dir.path().join("config.json")).unwrap();
    symlink("../config.json", step.join("config.json")).unwrap();
    let text = Checkpoint::open(&step).unwrap_err().to_string();
    assert!(text.contains("\"config.json\" is a link out of its folder"), "{text}");
}

#[test]
fn what_is_no_file_is_never_waited_for() {
    for name in ["manifest.json", "model.safetensors", "optimizer.safetensors", "tokenizer.json"] {
        let (_dir, step) = whole();
        let path = step.join(name);
        fs::remove_file(&path).unwrap();
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let text = Checkpoint::open(&step).unwrap_err().to_string();
        assert!(text.contains(name) && text.contains("it is a pipe"), "{text}");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let text = Checkpoint::open(&step).unwrap_err().to_string();
        assert!(text.contains(name) && text.contains("it is a folder"), "{text}");
        Unsynced.remove_dir(&step).unwrap();
    }
}
