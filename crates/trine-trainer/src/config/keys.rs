//! All keys, in the order of the documentation.

use super::schema::{Field, Key, Kind};
use super::sections::{
    Batch, Checkpoint, Comm, Data, Eval, Layout, Log, Lr, Optimizer, Output, Sample, Threads, Train,
};
use trine_spec::ModelSpec;

/// Stands for a whole run's configuration.
pub(super) const PRESET: &str = "preset";
/// Stands for a whole model.
pub(super) const MODEL_PRESET: &str = "model.preset";
/// Says who decides `layout.dp`, `layout.pp` and `layout.tp`.
pub(super) const DEGREES: &str = "layout.degrees";
/// What it decides.
pub(super) const DEGREES_EACH: [&str; 3] = ["layout.dp", "layout.pp", "layout.tp"];
/// Stands for `batch.micro`.
pub(super) const MICRO_BATCHES: &str = "batch.micro_batches";

const fn key(path: &'static str, kind: Kind, rule: &'static str, about: &'static str) -> Key {
    Key { path, kind, rule, about, shorthand: false }
}

const fn shorthand(path: &'static str, kind: Kind, rule: &'static str, about: &'static str) -> Key {
    Key { path, kind, rule, about, shorthand: true }
}

/// A trait of the model's blocks.
macro_rules! each {
    ($name:literal, $kind:expr, $rule:literal, $about:literal $(,)?) => {
        key(concat!("model.", $name), Kind::Each($kind), $rule, $about)
    };
}

const ROOT: &[Key] = &[
    shorthand(
        PRESET,
        Kind::Text,
        "a name of `trine presets`",
        "where everything not given comes from",
    ),
    key(
        "name",
        Kind::Text,
        "letters, digits, `.`, `_`, `-`",
        "name of the run and of its directory",
    ),
    key("seed", Kind::Count, "any", "seed of initial weights, dropout and data order"),
];

// The model's struct lives in trine-spec; a test compares its fields with these rows.
const MODEL: &[Key] = &[
    shorthand(MODEL_PRESET, Kind::Text, "a name of `trine presets`", "the model of that preset"),
    key(
        "model.family",
        Kind::Choice(ModelSpec::FAMILIES),
        "any",
        "the family: names of tensors for others, and all traits that are not given",
    ),
    key("model.hidden", usize::KIND, "at least 1", "width of the residual stream"),
    key("model.layers", usize::KIND, "at least 1", "number of blocks"),
    key("model.heads", usize::KIND, "at least 1", "query heads"),
    key(
        "model.kv_heads",
        usize::KIND,
        "divides model.heads",
        "key and value heads; follows model.heads where the preset's do",
    ),
    key(
        "model.head_dim",
        usize::KIND,
        "even with rotary positions",
        "elements of a head; follows model.hidden / model.heads where the preset's does",
    ),
    key(
        "model.ffn",
        usize::KIND,
        "at least 1",
        "width inside the MLP; follows 4 × model.hidden where the preset's does",
    ),
    key(
        "model.vocab",
        usize::KIND,
        "at least data.vocab",
        "entries of the vocabulary, before padding",
    ),
    key("model.seq_max", usize::KIND, "at least data.seq", "longest sequence"),
    key("model.tied", bool::KIND, "any", "the output layer is the token embedding"),
    key("model.norm_eps", f64::KIND, "above 0", "added to the variance in norms"),
    key("model.rope_theta", f64::KIND, "above 0", "base of the rotary frequencies"),
    key(
        "model.dropout",
        Kind::Rates,
        "each 0 or more, below 1",
        "dropout probability, or those of the embedding, of attention and of the branches",
    ),
    key("model.init_std", f64::KIND, "above 0", "standard deviation of the initial weights"),
    each!("norm", &Kind::Choice(&["layer", "rms", "rms-one"]), "any", "kind of the norms"),
    each!(
        "norm_at",
        &Kind::Choice(&["before", "after", "both"]),
        "any",
        "where a branch has norms: of what it reads, or of what it gives",
    ),
    each!(
        "positions",
        &Kind::Choice(&["learned", "rotary", "none"]),
        "learned in all blocks or in none",
        "how attention knows of positions",
    ),
    each!(
        "rope_fraction",
        &f64::KIND,
        "above 0, at most 1, turns pairs",
        "part of a head that is turned"
    ),
    key(
        "model.rope_scaling",
        Kind::Scaling,
        "none, linear FACTOR, llama3 FACTOR LOW HIGH ORIGINAL or yarn FACTOR FAST SLOW ORIGINAL",
        "how rotary frequencies are stretched",
    ),
    each!("qkv_bias", &bool::KIND, "any", "biases of queries, keys and values"),
    each!("output_bias", &bool::KIND, "any", "a bias of attention's output"),
    each!("mlp_bias", &bool::KIND, "any", "biases of the MLP"),
    each!(
        "qk_norm",
        &Kind::Choice(&["none", "head", "all"]),
        "any",
        "norms of queries and keys: of each head, or of all together",
    ),
    each!(
        "activation",
        &Kind::Choice(&["gelu-tanh", "gelu", "silu", "relu"]),
        "any",
        "function of the MLP",
    ),
    each!("gated", &bool::KIND, "any", "the MLP's function is that of a gate"),
    each!("parallel", &bool::KIND, "any", "attention and MLP read the same"),
    each!("window", &COUNT_OR_NONE, "at least 1", "tokens that each one attends to"),
    each!(
        "score_dim",
        &COUNT_OR_NONE,
        "at least 1",
        "scores are divided by its root; none: head_dim"
    ),
    each!("score_cap", &NUMBER_OR_NONE, "above 0", "bound of attention's scores"),
    key("model.logit_cap", NUMBER_OR_NONE, "above 0", "bound of the logits"),
    key("model.embedding_scale", NUMBER_OR_NONE, "above 0", "factor of the embedded tokens"),
];

const COUNT_OR_NONE: Kind = Kind::OrNone(&usize::KIND);
const NUMBER_OR_NONE: Kind = Kind::OrNone(&f64::KIND);

const LAYOUT: &[Key] = &[shorthand(
    DEGREES,
    Kind::Choice(&["auto", "preset"]),
    "auto: no degree is given beside it",
    "who decides dp, pp and tp: the fastest layout that fits this machine (auto; what presets other than rust-default \
     do where no degree is given), or the preset",
)];

const BATCH: &[Key] = &[shorthand(
    MICRO_BATCHES,
    Kind::Count,
    "divides batch.global / layout.dp",
    "micro-batches of a rank in a step: sets batch.micro",
)];

/// All keys that a file or an option may set.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    let sections = [
        ROOT,
        MODEL,
        Data::KEYS,
        Layout::KEYS,
        LAYOUT,
        Threads::KEYS,
        Batch::KEYS,
        BATCH,
        Train::KEYS,
        Optimizer::KEYS,
        Lr::KEYS,
        Eval::KEYS,
        Checkpoint::KEYS,
        Comm::KEYS,
        Log::KEYS,
        Output::KEYS,
        Sample::KEYS,
    ];
    sections.into_iter().flatten()
}

/// The key of this path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    keys().find(|key| key.path == path)
}

/// Whether a path is that of a section.
pub(super) fn is_section(path: &str) -> bool {
    sections().contains(&path)
}

/// The sections' names.
pub(super) fn sections() -> Vec<&'static str> {
    let mut names: Vec<_> = keys().filter_map(|key| Some(key.path.split_once('.')?.0)).collect();
    names.dedup();
    names
}

/// The known path most similar to an unknown one, as a whole and by its name alone: a key is more
/// often put into the wrong section than misspelled beyond recognition.
pub(super) fn nearest(unknown: &str) -> &'static str {
    let name = leaf(unknown);
    let likeness = |key: &&Key| {
        let whole = strsim::normalized_damerau_levenshtein(key.path, unknown);
        let names = strsim::jaro_winkler(leaf(key.path), name);
        whole + names
    };
    keys()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .expect("invariant: there are keys")
        .path
}

fn leaf(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(_, leaf)| leaf)
}

/// The most similar word.
pub(super) fn nearest_word<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> &'a str {
    let likeness = |candidate: &&str| strsim::normalized_damerau_levenshtein(candidate, word);
    words.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).unwrap_or_default()
}
