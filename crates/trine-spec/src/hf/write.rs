//! A model as `transformers` describes it.

use super::{OUR_CLASS, OURS, OWN_PIECES, is_expressible};
use crate::families::keys::Absent;
use crate::{ModelParts, ModelSpec};
use serde_json::{Value, json};

/// The model as `transformers` describes it, with weights of type `dtype` in their words. Ids are written even where
/// there are none: those left out have a default of the architecture, which is another tokenizer's.
pub fn config(parts: &ModelParts, dtype: &str, end_of_text: Option<u32>) -> Value {
    let model = &parts.spec;
    let mut config = of_family(model);
    if !is_expressible(model) {
        config["architectures"] = json!([OUR_CLASS]);
        config["model_type"] = OURS.into();
        config[OURS] = json!(model);
    }
    if parts.own().next().is_some() {
        config["architectures"] = json!([OWN_PIECES]);
        config["model_type"] = OWN_PIECES.into();
    }
    // Releases of transformers before 4.56 know the second name of the type only.
    for (key, value) in [
        ("bos_token_id", json!(end_of_text)),
        ("eos_token_id", json!(end_of_text)),
        ("dtype", dtype.into()),
        ("torch_dtype", dtype.into()),
    ] {
        config[key] = value;
    }
    config
}

/// The model as its family's architecture, as far as that can say it.
pub(super) fn of_family(model: &ModelSpec) -> Value {
    let row = model.family.row();
    let mut config = json!({ "architectures": [row.class], "model_type": row.kind });
    for key in row.keys.iter().copied().flatten() {
        let value = (key.get)(model);
        if !value.is_null() || matches!(key.absent, Absent::Missing(_)) {
            config[key.name] = value;
        }
    }
    config
}
