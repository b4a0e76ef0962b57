//! Keys of a `config.json` as data: one row reads and writes each.

use crate::{Activation, Each, ModelSpec, OrNone, RopeScaling};
use serde_json::{Value, json};

/// A key, and what of a model it says.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// The field of the model that it says.
    pub(crate) field: &'static str,
    /// What its value must be: `a number`, `true or false`.
    pub(crate) what: &'static str,
    /// What it says of a model; null is not written.
    pub(crate) get: fn(&ModelSpec) -> Value,
    pub(crate) set: fn(&mut ModelSpec, &Value) -> Result<(), Fault>,
    /// What a file without it means.
    pub(crate) absent: Absent,
}

/// What a missing or null key means.
#[derive(Debug)]
pub(crate) enum Absent {
    /// The file describes no model.
    Refused,
    /// This value: the default of `transformers`.
    Is(fn(&ModelSpec) -> Value),
    /// This value where the key is missing; null is a value of its own.
    Missing(fn(&ModelSpec) -> Value),
    /// What the family has.
    Nothing,
}

/// Why a value is none of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not what the key must be.
    Type,
    /// It asks for what trine does not have; trine has this.
    Unsupported(&'static str),
    /// The same, of a key within the value.
    Within(String, &'static str),
}

/// What a key may say where it says anything, and how trine calls that. Every other value belongs to another model.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    /// Whether a value, in a file of these keys, is the one that trine has.
    pub(crate) allows: fn(&Value, &Value) -> bool,
    pub(crate) has: &'static str,
}

/// A key that nothing of ours has.
pub(crate) const fn absent(name: &'static str, has: &'static str) -> Rule {
    Rule { name, allows: |_, _| false, has }
}

/// A whole number that is a field of the model.
macro_rules! size {
    ($name:literal, $field:ident) => {
        $crate::families::keys::size!($name, $field, $crate::families::keys::Absent::Refused)
    };
    ($name:literal, $field:ident, $absent:expr) => {
        $crate::families::keys::Key {
            name: $name,
            field: stringify!($field),
            what: "a whole number, at least 1",
            get: |model| model.$field.into(),
            set: |model, value| {
                model.$field = $crate::families::keys::whole(value)?;
                Ok(())
            },
            absent: $absent,
        }
    };
}

/// A number that is a field of the model, with the default of `transformers`.
macro_rules! number {
    ($name:literal, $field:ident, $default:literal) => {
        $crate::families::keys::Key {
            name: $name,
            field: stringify!($field),
            what: "a number",
            get: |model| model.$field.into(),
            set: |model, value| {
                model.$field = value.as_f64().ok_or($crate::families::keys::Fault::Type)?;
                Ok(())
            },
            absent: $crate::families::keys::Absent::Is(|_| $default.into()),
        }
    };
}

/// A flag that is a field of the model, with the default of `transformers`.
macro_rules! flag {
    ($name:literal, $field:ident, $default:literal) => {
        $crate::families::keys::flag!(
            $name,
            stringify!($field),
            $default,
            |model| model.$field,
            |model, flag| model.$field = flag
        )
    };
    ($name:literal, $field:expr, $default:literal, $get:expr, $set:expr) => {
        $crate::families::keys::Key {
            name: $name,
            field: $field,
            what: "true or false",
            get: |model| {
                let get: fn(&$crate::ModelSpec) -> bool = $get;
                get(model).into()
            },
            set: |model, value| {
                let set: fn(&mut $crate::ModelSpec, bool) = $set;
                set(model, value.as_bool().ok_or($crate::families::keys::Fault::Type)?);
                Ok(())
            },
            absent: $crate::families::keys::Absent::Is(|_| $default.into()),
        }
    };
}

/// A dropout rate of its own, with the default of `transformers`.
macro_rules! dropout {
    ($name:literal, $which:ident, $default:literal) => {
        $crate::families::keys::Key {
            name: $name,
            field: "dropout",
            what: "a number",
            get: |model| model.dropout.$which.into(),
            set: |model, value| {
                model.dropout.$which = value.as_f64().ok_or($crate::families::keys::Fault::Type)?;
                Ok(())
            },
            absent: $crate::families::keys::Absent::Is(|_| $default.into()),
        }
    };
}

/// A bound that is null where there is none, which is what a file without the key means.
macro_rules! cap {
    ($name:literal, $field:ident, $get:expr, $set:expr) => {
        $crate::families::keys::Key {
            name: $name,
            field: stringify!($field),
            what: "a number or null",
            get: |model| {
                let get: fn(&$crate::ModelSpec) -> $crate::OrNone<f64> = $get;
                serde_json::json!(get(model).get())
            },
            set: |model, value| {
                let set: fn(&mut $crate::ModelSpec, $crate::OrNone<f64>) = $set;
                let cap = value.as_f64();
                if cap.is_none() && !value.is_null() {
                    return Err($crate::families::keys::Fault::Type);
                }
                set(model, cap.into());
                Ok(())
            },
            absent: $crate::families::keys::Absent::Missing(|_| serde_json::Value::Null),
        }
    };
}

pub(crate) use {cap, dropout, flag, number, size};

/// What all of Llama's descendants say of their sizes.
pub(crate) const SIZES: &[Key] = &[
    size!("vocab_size", vocab),
    size!("max_position_embeddings", seq_max),
    size!("hidden_size", hidden),
    size!("intermediate_size", ffn),
    size!("num_hidden_layers", layers),
    size!("num_attention_heads", heads),
];

/// Their heads.
pub(crate) const HEADS: &[Key] =
    &[size!("num_key_value_heads", kv_heads, Absent::Is(|model| model.heads.into())), HEAD_DIM];

/// The size of a head: given, or the width shared out over the heads.
pub(crate) const HEAD_DIM: Key = size!("head_dim", head_dim, Absent::Is(head_dim_of_width));

/// Their dropout: `transformers` drops attention's probabilities only, and computes the same model without.
pub(crate) const ATTENTION_DROPOUT: Key = dropout!("attention_dropout", attention, 0.0);

/// Whether attention's layers have biases, all or none.
pub(crate) const ATTENTION_BIAS: Key =
    flag!("attention_bias", "qkv_bias", false, |model| *model.qkv_bias.of(0), |model, has| {
        (model.qkv_bias, model.output_bias) = (has.into(), has.into());
    });

/// The standard deviation of initial weights.
pub(crate) const INIT: Key = number!("initializer_range", init_std, 0.02);

/// The window of attention, null where there is none; without the key, that of the first models.
pub(crate) const WINDOW: Key = Key {
    name: "sliding_window",
    field: "window",
    what: "a whole number, at least 1, or null",
    get: |model| json!(widest(model)),
    set: |model, value| {
        let window = if value.is_null() { None } else { Some(whole(value)?) };
        model.window = OrNone::from(window).into();
        Ok(())
    },
    absent: Absent::Missing(|_| 4096.into()),
};

/// Which blocks have that window.
pub(crate) const LAYER_TYPES: Key = Key {
    name: "layer_types",
    field: "window",
    what: "a list with \"full_attention\" or \"sliding_attention\" for each block",
    get: |model| {
        let kind = |block| match model.window.of(block).get() {
            Some(_) => "sliding_attention",
            None => "full_attention",
        };
        (0..model.layers).map(kind).collect::<Vec<_>>().into()
    },
    set: |model, value| {
        let kinds = value.as_array().filter(|kinds| kinds.len() == model.layers);
        let window = widest(model);
        let of_kind = |kind: &Value| match (kind.as_str(), window) {
            (Some("full_attention"), _) => Ok(OrNone::NONE),
            (Some("sliding_attention"), Some(window)) => Ok(OrNone::Some(window)),
            (Some("sliding_attention"), None) => {
                Err(Fault::Unsupported("such blocks where \"sliding_window\" says how wide"))
            }
            (Some(_), _) => Err(Fault::Unsupported("full_attention and sliding_attention")),
            (None, _) => Err(Fault::Type),
        };
        let windows = kinds.ok_or(Fault::Type)?.iter().map(of_kind).collect::<Result<_, _>>()?;
        model.window = Each::listed(windows).ok_or(Fault::Type)?;
        Ok(())
    },
    absent: Absent::Nothing,
};

/// Whether `sliding_window` counts at all.
const USES_WINDOW: Key =
    flag!("use_sliding_window", "window", false, |model| widest(model).is_some(), |model, uses| {
        if !uses {
            model.window = OrNone::NONE.into();
        }
    });

/// The first block with a window.
const WINDOW_FROM: Key = Key {
    name: "max_window_layers",
    field: "window",
    what: "a whole number",
    get: |model| {
        let has_none = |block: &usize| model.window.of(*block).get().is_none();
        (0..model.layers).take_while(has_none).count().into()
    },
    set: |model, value| {
        let (first, window) = (whole(value)?, OrNone::from(widest(model)));
        let of_block = |block| if block < first { OrNone::NONE } else { window };
        model.window =
            Each::listed((0..model.layers).map(of_block).collect()).unwrap_or(OrNone::NONE.into());
        Ok(())
    },
    absent: Absent::Is(|_| 28.into()),
};

/// A window that is switched on, from some block on or by kinds of blocks.
pub(crate) const WINDOWS: &[Key] = &[WINDOW, USES_WINDOW, WINDOW_FROM, LAYER_TYPES];

/// The widest window of a model's blocks.
fn widest(model: &ModelSpec) -> Option<usize> {
    (0..model.layers).filter_map(|block| model.window.of(block).get()).max()
}

/// Rotary positions of whole heads.
pub(crate) const ROPE: &[Key] =
    &[number!("rope_theta", rope_theta, 1e4), ROPE_SCALING, ROPE_PARAMETERS];

/// How frequencies are stretched.
pub(crate) const ROPE_SCALING: Key = Key {
    name: "rope_scaling",
    field: "rope_scaling",
    what: "an object with all numbers of its kind",
    get: |model| match model.rope_scaling {
        RopeScaling::None => Value::Null,
        scaling => described(scaling),
    },
    set: read_rope_of_heads,
    absent: Absent::Nothing,
};

/// All that belongs to rotary positions, in one object since version 5 of `transformers`.
pub(crate) const ROPE_PARAMETERS: Key = Key {
    name: "rope_parameters",
    get: |model| {
        let mut object = described(model.rope_scaling);
        object["rope_theta"] = model.rope_theta.into();
        object
    },
    ..ROPE_SCALING
};

/// The function of an MLP under `name`, and `default` where nothing is said.
macro_rules! activation {
    ($name:literal, $default:literal) => {
        $crate::families::keys::Key {
            name: $name,
            field: "activation",
            what: "a text",
            get: |model| $crate::families::keys::activation_name(*model.activation.of(0)).into(),
            set: |model, value| {
                model.activation = $crate::families::keys::activation_called(value)?.into();
                Ok(())
            },
            absent: $crate::families::keys::Absent::Is(|_| $default.into()),
        }
    };
}

pub(crate) use activation;

/// What the function of an MLP is called.
pub(crate) fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::GeluTanh => "gelu_pytorch_tanh",
        Activation::Gelu => "gelu",
        Activation::Silu => "silu",
        Activation::Relu => "relu",
    }
}

/// The function of an MLP of this name.
pub(crate) fn activation_called(value: &Value) -> Result<Activation, Fault> {
    match value.as_str().ok_or(Fault::Type)? {
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::Gelu),
        "silu" | "swish" => Ok(Activation::Silu),
        "relu" => Ok(Activation::Relu),
        _ => Err(Fault::Unsupported("silu, gelu, gelu_pytorch_tanh, relu")),
    }
}

/// A size.
pub(crate) fn whole(value: &Value) -> Result<usize, Fault> {
    value.as_u64().and_then(|size| usize::try_from(size).ok()).ok_or(Fault::Type)
}

/// The width shared out over the heads; nothing where it cannot be.
fn head_dim_of_width(model: &ModelSpec) -> Value {
    match model.heads {
        // Which is refused by its own name.
        0 => 1.into(),
        heads if !model.hidden.is_multiple_of(heads) => Value::Null,
        heads => (model.hidden / heads).into(),
    }
}

/// A stretching of rotary frequencies as `transformers` describes it.
fn described(scaling: RopeScaling) -> Value {
    match scaling {
        RopeScaling::None => json!({ "rope_type": "default" }),
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low, high, original } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original as u64,
        }),
        RopeScaling::Yarn { factor, fast, slow, original } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": fast,
            "beta_slow": slow,
            "original_max_position_embeddings": original as u64,
        }),
    }
}

/// Reads one of a family that turns whole heads: of parts the files speak, and nobody there turns them.
fn read_rope_of_heads(model: &mut ModelSpec, value: &Value) -> Result<(), Fault> {
    read_rope(model, value)?;
    match *model.rope_fraction.of(0) == 1.0 {
        true => Ok(()),
        false => Err(Fault::Within(
            "partial_rotary_factor".into(),
            "rotary positions of whole heads in this family",
        )),
    }
}

/// Reads one; it may also say the base and the part of a head that is turned.
pub(crate) fn read_rope(model: &mut ModelSpec, value: &Value) -> Result<(), Fault> {
    const KEYS: [&str; 10] = [
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
    ];
    let object = value.as_object().ok_or(Fault::Type)?;
    let unknown = object.iter().find(|(key, value)| !value.is_null() && !KEYS.contains(&&***key));
    if let Some((key, _)) = unknown {
        return Err(Fault::Within(key.clone(), RopeScaling::FORMS));
    }
    let number = |key: &str, default: Option<f64>| match &value[key] {
        Value::Null => default.ok_or(Fault::Type),
        number => number.as_f64().ok_or(Fault::Type),
    };
    model.rope_theta = number("rope_theta", Some(model.rope_theta))?;
    model.rope_fraction = number("partial_rotary_factor", Some(*model.rope_fraction.of(0)))?.into();
    let kind = if value["rope_type"].is_null() { &value["type"] } else { &value["rope_type"] };
    let (factor, long) = ("factor", "original_max_position_embeddings");
    model.rope_scaling = match kind.as_str() {
        None if value[factor].is_null() => RopeScaling::None,
        Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: number(factor, None)? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: number(factor, None)?,
            low: number("low_freq_factor", None)?,
            high: number("high_freq_factor", None)?,
            original: number(long, None)?,
        },
        Some("yarn") => RopeScaling::Yarn {
            factor: number(factor, None)?,
            fast: number("beta_fast", Some(32.0))?,
            slow: number("beta_slow", Some(1.0))?,
            original: number(long, Some(model.seq_max as f64))?,
        },
        Some(_) | None => return Err(Fault::Within("rope_type".into(), RopeScaling::FORMS)),
    };
    Ok(())
}
