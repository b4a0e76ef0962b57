//! All keys, in the order of the documentation.

use super::schema::{Field, Key, Kind};
use super::sections::{
    Batch, Checkpoint, Comm, Data, Eval, Layout, Log, Lr, Optimizer, Output, Sample, Threads, Train,
};

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
        Kind::Choice(&["gpt", "llama"]),
        "any",
        "norms, activation, positions, biases",
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
        "even for llama",
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
    key("model.rope_theta", f64::KIND, "above 0", "base of the rotary frequencies (llama)"),
    key("model.dropout", f64::KIND, "0 or more, below 1", "dropout probability"),
    key("model.init_std", f64::KIND, "above 0", "standard deviation of the initial weights"),
];

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
