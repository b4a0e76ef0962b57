//! `trine bench gradients`: what it writes, and what it refuses.

use crate::common::{fails, ok};
use safetensors::{Dtype, SafeTensors};
use std::fs;
use std::path::Path;

/// A vocabulary that is stored with padding, and fused and transposed matrices.
const MODEL: &[&str] = &[
    "--preset",
    "gpt2-124m",
    "--set",
    "model.layers=2",
    "--set",
    "model.hidden=24",
    "--set",
    "model.heads=2",
    "--set",
    "model.vocab=271",
    "--set",
    "model.seq_max=16",
    "--set",
    "data.vocab=271",
    "--set",
    "data.seq=8",
    "--set",
    "batch.global=3",
    "--set",
    "batch.micro=1",
    "--tp",
    "1",
    "--pp",
    "1",
];

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["bench", "gradients"], MODEL, more].concat()
}

/// The elements of a tensor, which must have this type and shape.
fn values(file: &[u8], name: &str, dtype: Dtype, shape: &[usize]) -> Vec<f64> {
    let file = SafeTensors::deserialize(file).expect("a safetensors file");
    let tensor = file.tensor(name).expect("the tensor");
    assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape), "{name}");
    let bytes = tensor.data();
    match dtype {
        Dtype::F64 => bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
        _ => {
            let (values, rest) = bytes.as_chunks();
            assert!(rest.is_empty());
            values.iter().map(|bytes| f32::from_le_bytes(*bytes).into()).collect()
        }
    }
}

#[test]
fn both_types_have_the_same_weights_and_nearly_the_same_gradients() {
    let scratch = tempfile::tempdir().unwrap();
    let asked = args(&["--dp", "1", "--precision", "bf16", "--write", "out"]);
    let text = ok(scratch.path(), &asked);
    // What trine wrote there is replaced.
    assert_eq!(ok(scratch.path(), &asked), text);
    assert!(text.starts_with("bf16: loss 5.") && text.contains("\nf64: loss 5."), "{text}");

    let read = |path: &str| fs::read(scratch.path().join("out").join(path)).unwrap();
    let step: serde_json::Value = serde_json::from_slice(&read("step.json")).unwrap();
    assert_eq!((&step["sequences"], &step["seq"]), (&3.into(), &8.into()));
    let (inputs, targets) = (step["inputs"].as_array().unwrap(), &step["targets"]);
    assert_eq!(inputs.len(), 24);
    assert_eq!(targets[0], inputs[1]);
    assert!(inputs.iter().all(|id| id.as_u64().unwrap() < 271));
    assert_eq!(step["steps"][0]["compute"], "bf16");
    let loss = |at: usize| step["steps"][at]["loss"].as_f64().unwrap();
    assert!(loss(0) != loss(1) && (loss(0) - loss(1)).abs() < 0.01, "{text}");

    let file = |at: usize, name: &str| {
        read(&format!("{}/{name}", step["steps"][at]["checkpoint"].as_str().unwrap()))
    };
    let weights = [0, 1].map(|at| file(at, "model.safetensors"));
    let gradients = [0, 1].map(|at| file(at, "optimizer.safetensors"));
    let shapes: [(&str, &[usize]); 4] = [
        ("transformer.wte.weight", &[271, 24]),
        ("transformer.h.1.attn.c_attn.weight", &[24, 72]),
        ("transformer.h.0.mlp.c_fc.bias", &[96]),
        ("transformer.ln_f.weight", &[24]),
    ];
    for (name, shape) in shapes {
        let both = |files: &[Vec<u8>; 2], name: &str| {
            [(0, Dtype::F32), (1, Dtype::F64)].map(|(at, t)| values(&files[at], name, t, shape))
        };
        let [rough, exact] = both(&weights, name);
        assert_eq!(rough, exact, "{name}");
        let [rough, exact] = both(&gradients, &format!("{name}.gradient"));
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let error = norm(&mut rough.iter().zip(&exact).map(|(a, b)| a - b));
        let error = error / norm(&mut exact.iter().copied());
        assert!(error > 1e-5 && error < 0.05, "{name}: {error}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let here = Path::new(".");
    fails(here, &args(&["--write", "no", "--dp", "3"]), 2, &["one rank", "--dp 1"]);
    fails(
        here,
        &args(&["--write", "no", "--dp", "1", "--precision", "f64"]),
        2,
        &["precision", "nearest valid"],
    );
    let dropout = args(&["--write", "no", "--dp", "1", "--set", "model.dropout=0.1"]);
    fails(here, &dropout, 2, &["model.dropout = 0.1", "nearest valid: 0"]);
    assert!(!here.join("no").exists());
    // Nothing is computed before somebody's file is found.
    let scratch = tempfile::tempdir().unwrap();
    let step = scratch.path().join("step.json");
    fs::write(&step, "{\"name\":\"mine\"}").unwrap();
    let parts = ["--write ./step.json: it is there, and not a step that trine wrote"];
    fails(scratch.path(), &args(&["--write", ".", "--dp", "1"]), 2, &parts);
    assert_eq!(fs::read(&step).unwrap(), b"{\"name\":\"mine\"}");
}
