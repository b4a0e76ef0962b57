//! Files as others read and write them.

use crate::world::{Expected, Options, World, bucket, model, save_step, tiny_gpt, tokenizer};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use trine_checkpoint::{WEIGHTS, model_from_config, open_hf};
use trine_spec::{Family, ModelSpec};

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Every parameter of a model whole, by trine's name, without padding.
fn whole(model: &ModelSpec, quantity: &str) -> BTreeMap<String, Vec<f32>> {
    let world = World::new(model, 1, 1, 1);
    let layout = &world.ranks[0][0];
    let mut found = BTreeMap::new();
    for index in 0..layout.buckets.len() {
        let values = bucket::<f32>(layout, quantity, index, 0.0);
        for param in layout.buckets[index].params.iter().map(|index| &layout.params[*index]) {
            let real = &values[param.span()][..param.spec.unpadded_len()];
            found.insert(param.spec.name.clone(), real.to_vec());
        }
    }
    found
}

fn transposed(matrix: &[f32], rows: usize) -> Vec<f32> {
    let columns = matrix.len() / rows;
    (0..matrix.len()).map(|at| matrix[at % rows * columns + at / rows]).collect()
}

#[test]
fn gpt_files_have_the_names_shapes_and_values_of_gpt2() {
    let model = tiny_gpt();
    let dir = tempfile::tempdir().unwrap();
    save_step(&World::new(&model, 1, 2, 2), dir.path(), &Options::step(4));
    for (file, quantity) in
        [("model", WEIGHTS), ("optimizer", "exp_avg"), ("optimizer", "exp_avg_sq")]
    {
        let bytes = fs::read(dir.path().join(format!("step-4/{file}.safetensors"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let suffix = if quantity == WEIGHTS { String::new() } else { format!(".{quantity}") };
        let own = whole(&model, quantity);
        // [in, out], q, k and v beside one another.
        let qkv =
            ["q", "k", "v"].map(|part| own[&format!("block.1.attention.{part}.weight")].clone());
        let bias =
            ["q", "k", "v"].map(|part| own[&format!("block.1.attention.{part}.bias")].clone());
        let up = transposed(&own["block.1.mlp.up.weight"], 12);
        let down = transposed(&own["block.1.mlp.down.weight"], 8);
        let cases = [
            ("transformer.wte.weight", vec![37, 8], own["embedding.token"].clone()),
            ("transformer.wpe.weight", vec![8, 8], own["embedding.position"].clone()),
            ("transformer.h.1.attn.c_attn.weight", vec![8, 24], transposed(&qkv.concat(), 24)),
            ("transformer.h.1.attn.c_attn.bias", vec![24], bias.concat()),
            ("transformer.h.1.mlp.c_fc.weight", vec![8, 12], up),
            ("transformer.h.1.mlp.c_proj.weight", vec![12, 8], down),
            ("transformer.ln_f.bias", vec![8], own["head.norm.bias"].clone()),
        ];
        for (name, shape, values) in cases {
            let tensor = tensors.tensor(&format!("{name}{suffix}")).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &shape[..]), "{name}");
            assert_eq!(floats(tensor.data()), values, "{name}");
        }
        // Two embeddings, 12 tensors a block, the last norm; the tied output layer is not there.
        assert_eq!(tensors.len(), (2 + 2 * 12 + 2) * if file == "model" { 1 } else { 2 });
        assert!(tensors.tensor("lm_head.weight").is_err());
    }
}

#[test]
fn llama_files_have_the_names_shapes_and_values_of_llama() {
    let model = model(Family::Llama);
    let dir = tempfile::tempdir().unwrap();
    save_step(&World::new(&model, 1, 1, 4), dir.path(), &Options::step(4));
    let bytes = fs::read(dir.path().join("step-4/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let own = whole(&model, WEIGHTS);
    let cases: [(&str, &[usize], &str); 6] = [
        ("model.embed_tokens.weight", &[1009, 8], "embedding.token"),
        ("model.layers.4.self_attn.k_proj.weight", &[4, 8], "block.4.attention.k.weight"),
        ("model.layers.4.self_attn.o_proj.weight", &[8, 8], "block.4.attention.output.weight"),
        ("model.layers.4.mlp.down_proj.weight", &[8, 12], "block.4.mlp.down.weight"),
        ("model.norm.weight", &[8], "head.norm.weight"),
        ("lm_head.weight", &[1009, 8], "head.output.weight"),
    ];
    for (name, shape, part) in cases {
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.shape(), shape, "{name}");
        assert_eq!(floats(tensor.data()), own[part], "{name}");
    }
    assert_eq!(tensors.len(), 1 + 5 * 9 + 2);
}

#[test]
fn a_checkpoint_of_ours_is_one_of_hugging_face_too() {
    let families = Family::ALL.iter().map(|family| model(*family));
    for model in families.chain([tiny_gpt()]) {
        let dir = tempfile::tempdir().unwrap();
        save_step(&World::new(&model, 1, 2, 1), dir.path(), &Options::step(1));
        let opened = open_hf(&dir.path().join("step-1")).unwrap();
        // Models without rotary positions have no base to write down.
        let ours = ModelSpec { rope_theta: opened.model().rope_theta, ..model.clone() };
        assert_eq!(*opened.model(), ours);
        let expected = Expected::<f32>::new(&World::new(&model, 1, 1, 2), &[]);
        expected.compare(&|_, layout, bucket, out| {
            opened.load_bucket(layout, bucket, out).unwrap();
        });
    }
}

fn described(step: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(step.join(name)).unwrap()).unwrap()
}

#[test]
fn others_learn_where_a_text_ends_and_what_the_numbers_are() {
    for model in [tiny_gpt(), model(Family::Llama)] {
        let dir = tempfile::tempdir().unwrap();
        let world = World::new(&model, 1, 1, 1);
        save_step(
            &world,
            dir.path(),
            &Options { tokenizer: Some(tokenizer("{}")), ..Options::step(1) },
        );
        save_step(&world, dir.path(), &Options::step(2));
        let step = dir.path().join("step-1");
        for file in ["config.json", "generation_config.json"] {
            let config = described(&step, file);
            assert_eq!((&config["bos_token_id"], &config["eos_token_id"]), (&json!(3), &json!(3)));
            // Without a tokenizer there is no such token, not the default of the architecture.
            let config = described(&dir.path().join("step-2"), file);
            let ids = config.as_object().unwrap();
            assert!(ids["bos_token_id"].is_null() && ids["eos_token_id"].is_null(), "{config}");
        }
        let config = described(&step, "config.json");
        assert_eq!(
            (&config["dtype"], &config["torch_dtype"]),
            (&json!("float32"), &json!("float32"))
        );
        let config = described(&step, "tokenizer_config.json");
        assert_eq!(config["eos_token"], "<|endoftext|>");
        assert_eq!(config["model_max_length"], 8);
        assert!(!dir.path().join("step-2/tokenizer_config.json").exists());
    }
}

#[test]
fn a_shape_that_gpt2_cannot_express_has_a_name_of_its_own() {
    let grouped = model(Family::Gpt);
    let narrow = ModelSpec { head_dim: 4, ..tiny_gpt() };
    for model in [grouped, narrow] {
        let dir = tempfile::tempdir().unwrap();
        save_step(&World::new(&model, 1, 1, 1), dir.path(), &Options::step(1));
        let step = dir.path().join("step-1");
        let config = described(&step, "config.json");
        assert_eq!(config["model_type"], "trine");
        assert_eq!(config["architectures"], json!(["TrineForCausalLM"]));
        assert_eq!(model_from_config(&step.join("config.json")).unwrap(), model);
        // As releases before had it.
        let mut old = config;
        old["model_type"] = "trine-gpt".into();
        old["architectures"] = json!(["TrineGptForCausalLM"]);
        old["n_kv_head"] = model.kv_heads.into();
        old["head_dim"] = model.head_dim.into();
        old["trine"] = Value::Null;
        fs::write(step.join("config.json"), old.to_string()).unwrap();
        let opened = model_from_config(&step.join("config.json")).unwrap();
        assert_eq!(opened, ModelSpec { rope_theta: opened.rope_theta, ..model });
    }
}

/// Rewrites a file of ours as others might: another element type, names without prefix, tensors
/// that nobody needs.
fn rewrite(from: &Path, to: &Path, prefix: &str, dtype: Dtype) {
    let bytes = fs::read(from).unwrap();
    let encode = |value: f32| match dtype {
        Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let name = name.strip_prefix(prefix).unwrap_or(&name).to_owned();
        let data = floats(tensor.data()).into_iter().flat_map(encode).collect();
        tensors.push((name, tensor.shape().to_vec(), data));
    }
    tensors.push((
        "h.0.attn.bias".into(),
        vec![1, 2],
        [1.0, 2.0].into_iter().flat_map(encode).collect(),
    ));
    let views = tensors
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(dtype, shape.clone(), data).unwrap()));
    fs::write(to, serialize(views, None).unwrap()).unwrap();
}

#[test]
fn published_weights_load_with_or_without_prefix_in_any_float_type() {
    let mut cases = 0;
    for (model, prefix) in [(tiny_gpt(), "transformer."), (model(Family::Llama), "model.")] {
        let dir = tempfile::tempdir().unwrap();
        save_step(&World::new(&model, 1, 1, 1), dir.path(), &Options::step(1));
        let ours = dir.path().join("step-1");
        let theirs = dir.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::copy(ours.join("config.json"), theirs.join("config.json")).unwrap();
        let layouts = World::new(&model, 1, 2, 2);
        for prefix in [prefix, "nothing"] {
            for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
                let file = theirs.join("model.safetensors");
                rewrite(&ours.join("model.safetensors"), &file, prefix, dtype);
                let opened = open_hf(&theirs).unwrap();
                for layout in layouts.ranks.iter().flatten() {
                    for index in 0..layout.buckets.len() {
                        let mut out = vec![9.0f32; layout.buckets[index].len];
                        let slice = trine_buffer::SliceMut::F32(&mut out);
                        opened.load_bucket(layout, index, slice).unwrap();
                        let expected = bucket::<f32>(layout, WEIGHTS, index, 0.0);
                        let rounded = expected.into_iter().map(|value| match dtype {
                            Dtype::BF16 => bf16::from_f32(value).to_f32(),
                            Dtype::F16 => f16::from_f32(value).to_f32(),
                            _ => value,
                        });
                        assert!(out.into_iter().eq(rounded), "{dtype:?} {prefix}");
                    }
                }
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 12);
}

/// As GPT-2 small was published, without what does not describe the model.
fn gpt2() -> Value {
    json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 1024,
        "n_embd": 768, "n_layer": 12, "n_head": 12, "n_ctx": 1024, "n_inner": null, "attn_pdrop": 0.1,
    })
}

/// As Llama 2 7B was published.
fn llama2() -> Value {
    json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096, "rope_scaling": null, "pretraining_tp": 1,
    })
}

/// A configuration with other values of some keys; a null is as good as none.
fn with(base: Value, changed: Value) -> Value {
    let mut config = base;
    for (key, value) in changed.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn configurations_have_the_defaults_of_transformers_and_other_models_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let read = |config: &Value| {
        fs::write(&path, config.to_string()).unwrap();
        model_from_config(&path)
    };
    let preset = |name: &str| trine_spec::presets::find(name).unwrap().model;
    assert_eq!(read(&gpt2()).unwrap(), ModelSpec { dropout: 0.1.into(), ..preset("gpt2-124m") });
    assert_eq!(read(&llama2()).unwrap(), preset("llama2-7b"));
    let same = [
        json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 10000.0 } }),
        json!({ "rope_scaling": { "rope_type": "default" }, "partial_rotary_factor": 1.0 }),
        json!({ "sliding_window": 4096, "use_sliding_window": false }),
        json!({ "layer_types": ["full_attention", "full_attention"], "mlp_bias": false }),
        json!({ "head_dim": 128, "num_key_value_heads": 32 }),
    ];
    for changed in same {
        assert_eq!(read(&with(llama2(), changed)).unwrap(), preset("llama2-7b"));
    }
    let wide = read(&with(llama2(), json!({ "head_dim": 256, "num_key_value_heads": 4 }))).unwrap();
    assert_eq!((wide.head_dim, wide.kv_heads, wide.hidden), (256, 4, 4096));
    for (base, changed, part) in refused() {
        let text = read(&with(base, changed)).unwrap_err().to_string();
        assert!(text.contains(part) && text.contains("config.json"), "{text}\n  expected: {part}");
    }
    assert!(read(&json!([])).unwrap_err().to_string().contains("it holds no JSON object"));
}

/// A configuration, what is changed in it, and what is then said.
fn refused() -> Vec<(Value, Value, &'static str)> {
    let gpt2 = [
        (json!({ "model_type": "mamba" }), "\"model_type\" is \"mamba\"; trine has gpt2"),
        (json!({ "model_type": null }), "\"model_type\" is missing"),
        (json!({ "architectures": ["GPT2ForSequenceClassification"] }), "has GPT2LMHeadModel"),
        (json!({ "activation_function": "mish" }), "\"mish\"; trine has silu, gelu"),
        (json!({ "scale_attn_weights": false }), "\"scale_attn_weights\" is false"),
        (json!({ "add_cross_attention": true }), "\"add_cross_attention\" is true"),
        (json!({ "head_dim": 32 }), "\"head_dim\" is 32; trine has what follows from the width"),
        (json!({ "n_kv_head": 4 }), "\"n_kv_head\" is 4; trine has what follows from the width"),
        (json!({ "n_embd": "wide" }), "\"n_embd\" is \"wide\"; it must be a whole number"),
        (json!({ "n_layer": -3 }), "\"n_layer\" is -3; it must be a whole number"),
        (json!({ "n_layer": null }), "\"n_layer\" is missing"),
        (json!({ "n_head": 0, "head_dim": 64 }), "\"n_head\" is 0"),
        (
            json!({ "n_head": 7 }),
            "\"head_dim\" is missing, and the width 768 is no multiple of 7 heads",
        ),
        (json!({ "n_layer": 0 }), "\"n_layer\" is 0: must be at least 1; nearest valid value: 1"),
        (json!({ "n_layer": u64::MAX }), "\"n_layer\" is 18446744073709551615: must be at most"),
        (json!({ "n_embd": 1048560, "n_layer": 9999 }), "a model has at most 2⁴²"),
    ];
    let llama2s = [
        (json!({ "hidden_act": 3 }), "\"hidden_act\" is 3; it must be a text"),
        (
            json!({ "rope_scaling": { "factor": 8.0 } }),
            "\"rope_type\" is null; trine has none, linear",
        ),
        (json!({ "rope_scaling": { "type": "dynamic", "factor": 2 } }), "\"rope_type\" is"),
        (
            json!({ "rope_parameters": { "rope_type": "yarn" } }),
            "must be an object with all numbers",
        ),
        (json!({ "rope_parameters": { "full_attention": {} } }), "\"full_attention\" is {}"),
        (json!({ "rope_parameters": 8 }), "\"rope_parameters\" is 8"),
        (json!({ "sliding_window": 4096 }), "\"sliding_window\" is 4096; trine has attention"),
        (json!({ "layer_types": ["sliding_attention"] }), "\"layer_types\" is"),
        (json!({ "num_local_experts": 8 }), "\"num_local_experts\" is 8; trine has one MLP"),
        (json!({ "quantization_config": { "bits": 4 } }), "\"quantization_config\" is"),
        (json!({ "auto_map": { "AutoModel": "x".repeat(999) } }), "xxx…; trine has"),
        (json!({ "tie_word_embeddings": 1 }), "1; it must be true or false"),
        (
            json!({ "num_key_value_heads": 5 }),
            "\"num_key_value_heads\" is 5: must divide heads = 32; nearest valid value: 4",
        ),
    ];
    let gpt2s = gpt2.into_iter().map(|(changed, part)| (self::gpt2(), changed, part));
    gpt2s.chain(llama2s.into_iter().map(|(changed, part)| (llama2(), changed, part))).collect()
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let dir = tempfile::tempdir().unwrap();
    save_step(&World::new(&tiny_gpt(), 1, 1, 1), dir.path(), &Options::step(1));
    let step = dir.path().join("step-1");
    let config = fs::read(step.join("config.json")).unwrap();
    let alter = |key: &str, value: Value| {
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        config[key] = value;
        fs::write(step.join("config.json"), config.to_string()).unwrap();
        open_hf(&step).unwrap_err().to_string()
    };
    let text = alter("vocab_size", json!(38));
    assert!(text.contains("wte.weight\" is F32 [37, 8]") && text.contains("[38, 8]"), "{text}");
    let text = alter("n_layer", json!(3));
    assert!(text.contains("no tensor \"transformer.h.2.ln_1.weight\""), "{text}");
    fs::remove_file(step.join("model.safetensors")).unwrap();
    fs::write(step.join("model.safetensors.index.json"), "{}").unwrap();
    let text = open_hf(&step).unwrap_err().to_string();
    assert!(text.contains("its weights are in several files"), "{text}");
}
