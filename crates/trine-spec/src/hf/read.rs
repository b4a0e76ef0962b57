//! The model that a Hugging Face `config.json` describes. What the file asks for and the zoo does not have is refused
//! by its key.

use super::{HfError, OLD_GPT, OURS};
use crate::families::keys::{Absent, Fault, HEAD_DIM, Key, Rule, absent, size};
use crate::{Family, ModelSpec, SpecError};
use serde_json::{Value, json};

/// Of a value in a message, so many characters.
const SHOWN_CHARS_MAX: usize = 60;

/// Of every family.
const RULES: &[Rule] = &[
    absent("auto_map", "architectures without code of their own"),
    Rule { name: "is_encoder_decoder", allows: |value, _| *value == json!(false), has: "decoders" },
    Rule {
        name: "add_cross_attention",
        allows: |value, _| *value == json!(false),
        has: "attention to the own sequence",
    },
    absent("quantization_config", "weights that are not quantised"),
    Rule {
        name: "pruned_heads",
        allows: |value, _| *value == json!({}),
        has: "the same heads in every block",
    },
    absent("num_local_experts", "one MLP in each block"),
    absent("num_experts", "one MLP in each block"),
];

/// What a GPT of an older release has beside GPT-2's keys.
const OLD_GPT_KEYS: &[Key] =
    &[size!("n_kv_head", kv_heads, Absent::Is(|model| model.heads.into())), HEAD_DIM];

/// A `config.json` being read.
struct Config<'a> {
    keys: &'a Value,
}

impl Config<'_> {
    /// Refuses a key by its name.
    fn refused(&self, key: &str, has: &str) -> HfError {
        HfError::Unsupported(format!("\"{key}\" is {}; trine has {has}", shown(&self.keys[key])))
    }

    fn malformed(&self, key: &str, what: &str) -> HfError {
        HfError::Malformed(format!("\"{key}\" is {}; it must be {what}", shown(&self.keys[key])))
    }

    /// Refuses a model that computes something else than ours.
    fn keep(&self, rules: &[Rule]) -> Result<(), HfError> {
        let is_broken = |rule: &&Rule| {
            let value = &self.keys[rule.name];
            !value.is_null() && !(rule.allows)(value, self.keys)
        };
        match rules.iter().find(is_broken) {
            None => Ok(()),
            Some(rule) => Err(self.refused(rule.name, rule.has)),
        }
    }

    /// Reads a key into the model.
    fn read(&self, key: &Key, model: &mut ModelSpec) -> Result<(), HfError> {
        let name = key.name;
        let value = match (&self.keys[name], &key.absent) {
            (Value::Null, Absent::Missing(_)) if self.keys.get(name).is_some() => Value::Null,
            (Value::Null, Absent::Missing(default)) => default(model),
            (Value::Null, Absent::Nothing) => return Ok(()),
            (Value::Null, Absent::Refused) => {
                return Err(HfError::Malformed(format!("\"{name}\" is missing")));
            }
            (Value::Null, Absent::Is(default)) => default(model),
            (value, _) => value.clone(),
        };
        if value.is_null() && !matches!(key.absent, Absent::Missing(_)) {
            let (width, heads) = (model.hidden, model.heads);
            let why = format!("is missing, and the width {width} is no multiple of {heads} heads");
            return Err(HfError::Malformed(format!("\"{name}\" {why}")));
        }
        (key.set)(model, &value).map_err(|fault| match fault {
            Fault::Type => self.malformed(name, key.what),
            Fault::Unsupported(has) => self.refused(name, has),
            Fault::Within(inner, has) => Config { keys: &self.keys[name] }.refused(&inner, has),
        })
    }

    fn model(&self) -> Result<ModelSpec, HfError> {
        let known = || {
            let kinds = Family::ALL.iter().map(|family| family.row().kind);
            kinds.collect::<Vec<_>>().join(", ")
        };
        let kind = match &self.keys["model_type"] {
            Value::Null => {
                let why = format!("\"model_type\" is missing; trine has {}", known());
                return Err(HfError::Malformed(why));
            }
            kind => kind.as_str().ok_or_else(|| self.malformed("model_type", "a text"))?,
        };
        if kind == OURS {
            let model = serde_json::from_value(self.keys[OURS].clone());
            return model.map_err(|error| HfError::Malformed(format!("\"{OURS}\": {error}")));
        }
        let named = if kind == OLD_GPT { Family::Gpt.row().kind } else { kind };
        let family = Family::ALL.iter().find(|family| family.row().kind == named);
        let family = *family.ok_or_else(|| self.refused("model_type", &known()))?;
        let row = family.row();
        self.keep(RULES)?;
        let mut model = ModelSpec::smallest(family);
        if kind != OLD_GPT {
            self.keep(row.rules)?;
            self.architecture(row.class)?;
        }
        let is_old =
            |key: &&Key| kind == OLD_GPT && OLD_GPT_KEYS.iter().any(|old| old.name == key.name);
        for key in row.keys.iter().copied().flatten().filter(|key| !is_old(key)) {
            self.read(key, &mut model)?;
        }
        for key in OLD_GPT_KEYS.iter().filter(|_| kind == OLD_GPT) {
            self.read(key, &mut model)?;
        }
        Ok(model)
    }

    /// Refuses another class of the same kind of model.
    fn architecture(&self, class: &'static str) -> Result<(), HfError> {
        let classes = &self.keys["architectures"];
        match classes.is_null() || *classes == json!([class]) {
            true => Ok(()),
            false => Err(self.refused("architectures", class)),
        }
    }
}

/// A value as JSON, its beginning if it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What a model may not be, by the file's key.
fn in_their_words(model: &ModelSpec, error: SpecError) -> HfError {
    let SpecError::Field { field, value, rule, nearest } = error else {
        return HfError::Unsupported(error.to_string());
    };
    let mut keys = model.family.row().keys.iter().copied().flatten();
    let key = keys.find(|key| key.field == field).map_or(field, |key| key.name);
    HfError::Unsupported(format!("\"{key}\" is {value}: {rule}; nearest valid value: {nearest}"))
}

/// The model that a `config.json` describes.
///
/// # Errors
/// No object, a size that is missing, another kind of model, or one with an option that trine lacks.
pub fn model_from_config(config: &Value) -> Result<ModelSpec, HfError> {
    if !config.is_object() {
        return Err(HfError::Malformed("it holds no JSON object".into()));
    }
    let model = Config { keys: config }.model()?;
    model.check().map_err(|error| in_their_words(&model, error))?;
    Ok(model)
}
