//! Parameters that are not trained.

use crate::common::{ALL_AXES, Run, SERIAL, Scratch, copy};
use safetensors::SafeTensors;
use std::collections::BTreeMap;

/// In a pipeline of two, all of the first stage; the tied output layer with it.
const FROZEN: &str = "--set=train.frozen=[\"embedding.*\", \"block.0.*\"]";
const REFERENCE: &str = "--set=train.numerics=reference";

/// The tensors of a checkpoint's file.
fn tensors(run: &Run, step: u64, file: &str) -> BTreeMap<String, Vec<u8>> {
    let bytes = run.checkpoint_file(step, file);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors.iter().map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec())).collect()
}

/// Whether a tensor is of what [`FROZEN`] names.
fn is_frozen(name: &str) -> bool {
    ["wte.", "wpe.", "h.0."].iter().any(|part| name.contains(part))
}

#[test]
fn what_is_frozen_keeps_its_bits_and_the_rest_gets_the_gradients_of_a_whole_run() {
    let scratch = Scratch::new();
    // One step of plain descent: what changes is the gradient.
    let plain = ["--steps=1", "--set=optimizer.kind=sgd", "--set=train.clip_norm=0", REFERENCE];
    let mut compared = [0; 2];
    for (name, layout) in [("serial", SERIAL), ("parallel", ALL_AXES)] {
        let whole = scratch.train(&format!("{name}-whole"), &[layout, &plain].concat());
        let one = scratch.train(&format!("{name}-one"), &[layout, &plain, &[FROZEN]].concat());
        let adamw = [layout, &["--steps=3", REFERENCE, FROZEN]].concat();
        let three = scratch.train(&format!("{name}-three"), &adamw);
        let weights = |run, step| tensors(run, step, "model.safetensors");
        let (whole, one, three) = (weights(&whole, 1), weights(&one, 1), weights(&three, 3));
        for (tensor, values) in &one {
            let frozen = is_frozen(tensor);
            assert_eq!(values == &whole[tensor], !frozen, "{name} {tensor}");
            assert_eq!(values == &three[tensor], frozen, "{name} {tensor}");
            compared[usize::from(frozen)] += 1;
        }
    }
    assert!(compared.iter().all(|count| *count > 10), "{compared:?}");
}

#[test]
fn layouts_and_resumed_runs_agree_and_plans_hold_to_the_byte() {
    let scratch = Scratch::new();
    let numbers = ["--steps=4", REFERENCE, FROZEN];
    let serial = scratch.train("serial", &[SERIAL, &numbers].concat());
    let parallel = scratch.train("parallel", &[ALL_AXES, &numbers].concat());
    let early = [ALL_AXES, &["--steps=2", "--set=train.steps=2", REFERENCE, FROZEN]].concat();
    scratch.train("resumed", &early);
    assert_eq!(serial.loss_texts(), parallel.loss_texts());
    assert_eq!(serial.numbers("grad_norm"), parallel.numbers("grad_norm"));
    for file in ["model.safetensors", "optimizer.safetensors"] {
        assert_eq!(tensors(&serial, 4, file), tensors(&parallel, 4, file), "{file}");
    }
    copy(&scratch.path("resumed"), &scratch.path("thawed"));
    let resumed = scratch.resume("resumed", &[SERIAL, &["--steps=4"]].concat());
    assert_eq!(resumed.loss_texts()[..2], serial.loss_texts()[..2]);
    let thaw = ["train", "--resume", "thawed", "--steps=4", "--set=train.frozen=[]"];
    let (_, told) = scratch.ok(&thaw);
    assert!(told.contains("resume: train.frozen [\"embedding.*\", \"block.0.*\"] → []"), "{told}");
    let (thawed, still) = (scratch.at("thawed"), tensors(&serial, 4, "model.safetensors"));
    for (tensor, values) in tensors(&thawed, 4, "model.safetensors") {
        assert_ne!(values, still[&tensor], "{tensor}");
    }
}

#[test]
fn what_is_frozen_takes_no_gradient_and_no_moments() {
    let scratch = Scratch::new();
    let held = |out: &str, args: &[&str]| {
        let run = scratch.train(out, &[args, &["--steps=2"]].concat());
        let ranks = run.summary()["ranks"].as_array().unwrap().clone();
        let state = |rank: &serde_json::Value| {
            assert_eq!(rank["bytes_planned"], rank["bytes_measured"], "{rank}");
            let bytes = |name: &str| rank["bytes_measured"][name].as_u64().unwrap();
            ["weights", "gradients", "moments"].map(bytes)
        };
        ranks.iter().map(state).collect::<Vec<_>>()
    };
    let embedding = "--set=train.frozen=[\"embedding.token\"]";
    let (whole, frozen) = (held("whole", SERIAL), held("frozen", &[SERIAL, &[embedding]].concat()));
    let table = 4 * 320 * 32;
    let [weights, gradients, moments] = whole[0];
    assert_eq!(frozen, [[weights, gradients - table, moments - 2 * table]]);
    let all_axes = held("parallel", &[ALL_AXES, &[FROZEN, "--precision=bf16"]].concat());
    assert_eq!(all_axes.iter().filter(|[_, gradients, _]| *gradients == 0).count(), 4);
}
