//! The rules that values must keep, by themselves and with each other.

mod groups;
mod idle;
mod own;

use super::error::{Origin, Violation};
use super::load::{Origins, lookup};
use super::schema::{Key, Kind};
use super::{Config, Precision, Source, keys};
use trine_nn::Numerics;
use trine_schedule::{Order, ScheduleError, ScheduleKind, Shape};
use trine_spec::{SpecError, split_layers};

/// Entries that a byte-level tokenizer cannot do without: the bytes and the end of a text.
const VOCAB_MIN: usize = 257;

/// Seconds of a year.
const DEADLINE_S_MAX: f64 = 31_536_000.0;

/// Bytes of the longest name of a file.
const NAME_BYTES_MAX: usize = 255;

/// Minutes that no run outlasts, and that a clock can still be set to.
const MINUTES_MAX: f64 = 1e9;

/// Sequences of the largest batch.
pub(super) const BATCH_MAX: usize = 1 << 19;

/// Numbers that a step may keep for its backward pass, over all ranks: bytes of them are counted in 64 bits.
const KEPT_MAX: u128 = 1 << 52;

/// Everything that is wrong with a configuration.
pub(super) fn violations(config: &Config, origins: &Origins) -> Vec<Violation> {
    let mut check = Check { config, origins, found: Vec::new() };
    check.sizes();
    if !check.found.is_empty() {
        // What follows multiplies sizes.
        return check.found;
    }
    check.texts();
    check.numbers();
    check.model();
    check.data();
    check.batch();
    check.reference();
    check.found
}

/// The nearest name that a run may have.
pub(super) fn nearest_name(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let plain = name.chars().map(|c| if is_plain(c) { c } else { '-' });
    let plain: String = plain.take(NAME_BYTES_MAX).collect();
    // "." and ".." are folders that exist.
    let plain = plain.trim_start_matches('.');
    if plain.is_empty() { "run".into() } else { plain.into() }
}

struct Check<'a> {
    config: &'a Config,
    origins: &'a Origins,
    found: Vec<Violation>,
}

impl Check<'_> {
    /// Reports `key = value`.
    fn report(
        &mut self,
        key: &str,
        value: impl ToString,
        rule: impl Into<String>,
        nearest: impl ToString,
    ) {
        self.found.push(Violation::Rule {
            at: self.origins.of(key),
            what: format!("{key} = {}", value.to_string()),
            rule: rule.into(),
            nearest: nearest.to_string(),
        });
    }

    /// Where another value that a rule speaks of was given, such as ` (--dp 3)`.
    fn given(&self, key: &str) -> String {
        match self.origins.of(key) {
            Origin::Program => String::new(),
            at => format!(" ({at})"),
        }
    }

    /// Whole numbers are neither so large that a product of them could overflow, nor zero where
    /// that means nothing.
    fn sizes(&mut self) {
        let Ok(table) = self.config.to_table() else {
            let rule = "must be at most 2⁶³ − 1, the largest number of TOML";
            return self.report("seed", self.config.seed, rule, i64::MAX);
        };
        for key in keys::keys() {
            let Some(value) = lookup(&table, key.path) else { continue };
            self.found.extend(too_large(key, value, &self.origins.of(key.path)));
        }
        let positive = [
            ("layout.dp", self.config.layout.dp),
            ("layout.pp", self.config.layout.pp),
            ("layout.tp", self.config.layout.tp),
            ("batch.global", self.config.batch.global),
            ("batch.micro", self.config.batch.micro),
            ("data.seq", self.config.data.seq),
            ("data.vocab", self.config.data.vocab),
            ("train.steps", self.config.train.steps),
            ("checkpoint.keep_last", self.config.checkpoint.keep_last),
            ("sample.tokens", self.config.sample.tokens),
        ];
        for (key, value) in positive {
            if value == 0 {
                self.report(key, value, "must be at least 1", 1);
            }
        }
    }

    fn texts(&mut self) {
        let name = &self.config.name;
        let nearest = nearest_name(name);
        if nearest != *name {
            let rule = "the name of a directory: letters, digits, `.`, `_`, `-`, not beginning with `.`, \
                 at most 255 of them";
            self.report("name", format!("{name:?}"), rule, format!("{nearest:?}"));
        }
        if self.config.data.source == Source::Path("".into()) {
            self.report("data.source", "\"\"", "must be \"crates\" or a path", "\"crates\"");
        }
        if self.config.data.cache.as_os_str().is_empty() {
            self.report("data.cache", "\"\"", "must be a folder", "\"target/trine\"");
        }
    }

    fn numbers(&mut self) {
        let Config { train, optimizer, lr, checkpoint, comm, log, sample, .. } = self.config;
        let rows = [
            ("train.minutes_max", train.minutes_max, Range::NotNegative),
            ("train.clip_norm", train.clip_norm, Range::NotNegative),
            ("optimizer.lr", optimizer.lr, Range::Positive { nearest: 1e-3 }),
            ("optimizer.beta1", optimizer.beta1, Range::BelowOne),
            ("optimizer.beta2", optimizer.beta2, Range::BelowOne),
            ("optimizer.eps", optimizer.eps, Range::Positive { nearest: 1e-8 }),
            ("optimizer.weight_decay", optimizer.weight_decay, Range::NotNegative),
            ("optimizer.momentum", optimizer.momentum, Range::BelowOne),
            ("lr.min_ratio", lr.min_ratio, Range::UpToOne),
            ("lr.decay_fraction", lr.decay_fraction, Range::UpToOne),
            ("checkpoint.minutes", checkpoint.minutes, Range::NotNegative),
            ("comm.deadline_s", comm.deadline_s, Range::Positive { nearest: 60.0 }),
            ("comm.long_deadline_s", comm.long_deadline_s, Range::Positive { nearest: 600.0 }),
            ("log.every_seconds", log.every_seconds, Range::Positive { nearest: 5.0 }),
            ("sample.temperature", sample.temperature, Range::NotNegative),
            ("sample.top_p", sample.top_p, Range::PositiveUpToOne),
        ];
        for (key, value, range) in rows {
            if let Some((rule, nearest)) = range.broken_by(value) {
                self.report(key, Shown(value), rule, Shown(nearest));
            }
        }
        if train.minutes_max.is_finite() && train.minutes_max > MINUTES_MAX {
            self.report("train.minutes_max", train.minutes_max, "must be at most 1e9", MINUTES_MAX);
        }
        for (key, seconds) in [
            ("comm.deadline_s", comm.deadline_s),
            ("comm.long_deadline_s", comm.long_deadline_s),
            ("log.every_seconds", log.every_seconds),
        ] {
            if seconds.is_finite() && seconds > DEADLINE_S_MAX {
                self.report(key, seconds, "must be at most a year", DEADLINE_S_MAX);
            }
        }
        let is_deadline = |seconds: f64| seconds > 0.0 && seconds <= DEADLINE_S_MAX;
        if is_deadline(comm.deadline_s)
            && is_deadline(comm.long_deadline_s)
            && comm.long_deadline_s < comm.deadline_s
        {
            let rule = format!("must be at least comm.deadline_s = {}", comm.deadline_s);
            self.report("comm.long_deadline_s", comm.long_deadline_s, rule, comm.deadline_s);
        }
    }

    /// The model by itself, and split over tensor and pipeline ranks.
    fn model(&mut self) {
        if let Err(error) = self.config.model.check() {
            return self.spec(error);
        }
        let (model, layout) = (&self.config.model, &self.config.layout);
        for (tp, pp) in [(layout.tp, 1), (1, layout.pp)] {
            if let Err(error) = model.check_layout(tp, pp) {
                self.spec(error);
            }
        }
        if layout.pp <= model.layers {
            self.stages();
        }
        self.times();
        self.rotation();
        self.groups();
        self.frozen();
        self.recompute();
    }

    /// The stages of a pipeline that has a layer for each rank.
    fn stages(&mut self) {
        match &self.config.layout.schedule {
            Order::Named(kind) => self.named_stages(*kind),
            Order::Own(own) => self.own_stages(own),
        }
    }

    fn named_stages(&mut self, kind: ScheduleKind) {
        let (layout, layers) = (&self.config.layout, self.config.model.layers);
        let (pp, chunks) = (layout.pp, self.config.virtual_stages());
        let (fewest, most) = kind.info().chunks;
        if chunks.clamp(fewest, most) != chunks {
            let range =
                if fewest == most { fewest.to_string() } else { format!("{fewest}..={most}") };
            let rule = format!("with layout.schedule = \"{kind}\" must be 0 or {range}");
            self.report("layout.virtual", chunks, rule, chunks.clamp(fewest, most));
        } else if pp * chunks > layers {
            let rule = format!(
                "layout.pp = {pp}{} × {chunks} on each rank gives {} stages, and model.layers = {layers}{}; every \
                 stage needs a layer",
                self.given("layout.pp"),
                pp * chunks,
                self.given("model.layers")
            );
            let other = "another layout.schedule".to_owned();
            let nearest = if layers / pp < fewest { other } else { (layers / pp).to_string() };
            self.report("layout.virtual", layout.virtual_stages, rule, nearest);
        } else if !layout.layers.is_empty() {
            let each =
                if chunks == 1 { String::new() } else { format!(" × {chunks} on each rank") };
            let of = format!("layout.pp = {pp}{}{each}", self.given("layout.pp"));
            self.layers(&layout.layers, pp * chunks, of);
        }
    }

    /// The blocks of each stage: as many numbers as there are stages, which `of` says.
    fn layers(&mut self, given: &[usize], stages: usize, of: String) {
        let layers = self.config.model.layers;
        let parts = self.config.model.parts(1);
        let split = parts.and_then(|parts| split_layers(&parts, stages, Some(given)));
        let Err(SpecError::Layout { nearest, .. }) = split else { return };
        let rule = format!(
            "must be {of} positive numbers that add up to model.layers = {layers}{}",
            self.given("model.layers")
        );
        self.report(
            "layout.layers",
            format!("{given:?}"),
            rule,
            format!("{nearest}, or [] for that"),
        );
    }

    fn spec(&mut self, error: SpecError) {
        match error {
            SpecError::Field { field, value, rule, nearest } => {
                // What would do for the model must do for the data too.
                let nearest = match field {
                    "vocab" if value == "0" => self.config.data.vocab.to_string(),
                    "seq_max" if value == "0" => self.config.data.seq.to_string(),
                    _ => nearest,
                };
                self.report(&format!("model.{field}"), value, rule, nearest);
            }
            SpecError::Layout { axis, degree, rule, nearest } => {
                self.report(&format!("layout.{axis}"), degree, rule, nearest);
            }
            other => self.report("model", "", other.to_string(), "a preset of `trine presets`"),
        }
    }

    fn data(&mut self) {
        let Config { data, model, .. } = self.config;
        if model.check().is_err() {
            // What is compared with its sizes may be right.
            return;
        }
        if data.seq > model.seq_max {
            let rule = format!(
                "a sequence must fit model.seq_max = {}{}",
                model.seq_max,
                self.given("model.seq_max")
            );
            self.report("data.seq", data.seq, rule, model.seq_max);
        }
        if !data.tokenizer.as_os_str().is_empty() {
            // It has its own size, which is compared when it has been read.
        } else if data.vocab > model.vocab {
            let rule = format!(
                "the tokenizer is larger than the model's vocabulary, model.vocab = {}{}",
                model.vocab,
                self.given("model.vocab")
            );
            let nearest = format!("data.vocab = {} or model.vocab = {}", model.vocab, data.vocab);
            self.report("data.vocab", data.vocab, rule, nearest);
        } else if data.source == Source::Crates && data.vocab < VOCAB_MIN {
            let rule = "a tokenizer needs the 256 bytes and an end of text";
            self.report("data.vocab", data.vocab, rule, VOCAB_MIN);
        }
    }

    fn batch(&mut self) {
        let (global, micro) = (self.config.batch.global, self.config.batch.micro);
        let dp = self.config.layout.dp;
        let unit = dp * micro;
        if !global.is_multiple_of(unit) {
            let rule = format!(
                "must be a multiple of layout.dp × batch.micro = {dp}{} × {micro}{}",
                self.given("layout.dp"),
                self.given("batch.micro")
            );
            self.report("batch.global", global, rule, self.batch_nearest());
            return;
        }
        let (layout, chunks) = (&self.config.layout, self.config.virtual_stages());
        let shape = Shape { ranks: layout.pp, chunks, micro_batches: global / unit };
        if shape.is_too_long() {
            return self.step_too_long(&shape);
        }
        self.kept();
        if let Order::Own(own) = &layout.schedule {
            return self.own_micro_batches(own, shape.micro_batches);
        }
        let (takes, asked, nearest) = match layout.schedule.check_shape(&shape) {
            Err(ScheduleError::Groups { asked, nearest, .. }) => {
                ("in multiples of", asked, nearest)
            }
            Err(ScheduleError::Few { asked, nearest, .. }) => ("at least 2 ×", asked, nearest),
            _ => return,
        };
        let rule = format!(
            "layout.schedule = \"{}\" takes micro-batches {takes} layout.pp = {}{}, not {asked}",
            layout.schedule,
            layout.pp,
            self.given("layout.pp")
        );
        self.report("batch.global", global, rule, nearest * unit);
    }

    /// A step whose list of actions would take too long to make.
    fn step_too_long(&mut self, shape: &Shape) {
        let Config { batch, layout, .. } = self.config;
        let (stages, max) = (shape.stages(), Shape::STEP_PAIRS_MAX);
        let rule = format!(
            "gives {} micro-batches × {stages} stages, layout.pp = {}{}; a step has at most {max} pairs of both",
            shape.micro_batches,
            layout.pp,
            self.given("layout.pp")
        );
        let (unit, each) = (layout.dp * batch.micro, batch.global / layout.dp);
        let least = each.div_ceil(max / stages);
        let mut nearest = vec![format!("batch.global = {}", max / stages * unit)];
        let larger = (least..=each).find(|micro| each.is_multiple_of(*micro));
        nearest.extend(larger.map(|micro| format!("batch.micro = {micro}")));
        self.report("batch.global", batch.global, rule, nearest.join(" or "));
    }

    /// What a step keeps for backward must be countable.
    fn kept(&mut self) {
        let Config { batch, data, model, .. } = self.config;
        if model.check().is_err() {
            return;
        }
        let sequence = data.seq as u128 * model.numbers_per_token();
        if batch.global as u128 * sequence <= KEPT_MAX {
            return;
        }
        let rule = format!(
            "keeps about {:.1e} numbers of sequences of data.seq = {}{} for backward; at most 2⁵² in a step",
            batch.global as f64 * sequence as f64,
            data.seq,
            self.given("data.seq")
        );
        let unit = self.config.layout.dp * batch.micro;
        match (KEPT_MAX / sequence) as usize / unit * unit {
            0 => self.report("batch.global", batch.global, rule, "a shorter data.seq"),
            most => self.report("batch.global", batch.global, rule, most),
        }
    }

    /// A batch that does not divide can be mended at each of its three ends.
    fn batch_nearest(&self) -> String {
        let (global, micro) = (self.config.batch.global, self.config.batch.micro);
        let dp = self.config.layout.dp;
        let unit = dp * micro;
        let mut nearest = Vec::new();
        if global > unit {
            nearest.push(format!("batch.global = {}", global / unit * unit));
        }
        nearest.push(format!("batch.global = {}", global.next_multiple_of(unit)));
        if global.is_multiple_of(dp) {
            nearest.extend(or("batch.micro", &nearest_divisors(global / dp, micro)));
        }
        if global.is_multiple_of(micro) {
            nearest.extend(or("layout.dp", &nearest_divisors(global / micro, dp)));
        }
        nearest.join(" or ")
    }

    /// What bit-equality in every layout needs.
    fn reference(&mut self) {
        if self.config.train.numerics != Numerics::Reference {
            return;
        }
        if self.config.train.precision == Precision::Bf16 {
            let rule = format!(
                "reference numerics{} are defined for f32 and f64",
                self.given("train.numerics")
            );
            self.report("train.precision", "\"bf16\"", rule, "\"f32\"");
        }
        let tp = self.config.layout.tp;
        if self.config.model.check_layout(tp, 1).is_ok()
            && let Err(error) = self.config.model.check_reference(tp)
        {
            self.spec(error);
        }
    }
}

/// A number as people write it: very small and very large ones with an exponent.
pub(super) struct Shown(pub(super) f64);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = self.0;
        match number == 0.0 || !number.is_finite() || (1e-9..1e16).contains(&number.abs()) {
            true => write!(f, "{number}"),
            false => write!(f, "{number:e}"),
        }
    }
}

/// What a number must be.
enum Range {
    NotNegative,
    Positive { nearest: f64 },
    BelowOne,
    UpToOne,
    PositiveUpToOne,
}

impl Range {
    /// The rule and the nearest number that keeps it, if `value` does not.
    fn broken_by(&self, value: f64) -> Option<(&'static str, f64)> {
        let (holds, rule, nearest) = match *self {
            Self::NotNegative => (value >= 0.0, "must be 0 or more", 0.0),
            // Below the smallest f32 it would count as 0.
            Self::Positive { nearest } => (value as f32 > 0.0, "must be above 0 in f32", nearest),
            Self::BelowOne => {
                let nearest = if value >= 1.0 { 0.999 } else { 0.0 };
                ((0.0..1.0).contains(&value), "must be 0 or more and below 1", nearest)
            }
            Self::UpToOne => {
                let nearest = if value > 1.0 { 1.0 } else { 0.0 };
                ((0.0..=1.0).contains(&value), "must lie in 0..=1", nearest)
            }
            Self::PositiveUpToOne => {
                (value > 0.0 && value <= 1.0, "must be above 0 and at most 1", 1.0)
            }
        };
        (!holds || !value.is_finite()).then_some((rule, nearest))
    }
}

/// The largest whole number of a key: no product that a run or a plan forms overflows below.
fn limit(path: &str) -> i64 {
    match path {
        "seed" | "data.file_bytes_max" => i64::MAX,
        "model.layers" | "train.recompute" => 1 << 14,
        "layout.threads_per_rank" => 4096,
        "layout.virtual" => 1 << 10,
        "layout.pp" => Shape::STEP_RANKS_MAX as i64,
        "layout.dp" | "layout.tp" => 1 << 16,
        "batch.global" | "batch.micro" => BATCH_MAX as i64,
        "train.zero" => 1,
        path if path.starts_with("model.") || path == "data.seq" || path == "data.vocab" => 1 << 22,
        _ => 1 << 32,
    }
}

/// Reports a whole number, or one of a list, above the limit of its key, and a number beyond f32,
/// where most are used.
pub(super) fn too_large(key: &Key, value: &toml::Value, at: &Origin) -> Option<Violation> {
    let max = limit(key.path);
    let single = std::slice::from_ref(value);
    let items = match key.kind {
        Kind::Count | Kind::Recompute => single,
        Kind::Counts => value.as_array().map_or(single, Vec::as_slice),
        Kind::Number => return beyond_f32(key, value, at),
        Kind::Flag
        | Kind::Text
        | Kind::Path
        | Kind::Choice(_)
        | Kind::Order(_)
        | Kind::NumbersOr(_)
        | Kind::Each(_)
        | Kind::OrNone(_)
        | Kind::Rates
        | Kind::Scaling
        | Kind::Texts => {
            return None;
        }
    };
    let largest = items.iter().filter_map(toml::Value::as_integer).max()?;
    (largest > max).then(|| above_limit(key, value, at))
}

/// A whole number above the limit of its key.
pub(super) fn above_limit(key: &Key, value: impl ToString, at: &Origin) -> Violation {
    let max = limit(key.path);
    let nearest = match key.kind {
        Kind::Counts => "[]".to_owned(),
        Kind::Count
        | Kind::Number
        | Kind::Flag
        | Kind::Text
        | Kind::Path
        | Kind::Choice(_)
        | Kind::Order(_)
        | Kind::NumbersOr(_)
        | Kind::Each(_)
        | Kind::OrNone(_)
        | Kind::Rates
        | Kind::Scaling
        | Kind::Recompute
        | Kind::Texts => max.to_string(),
    };
    Violation::Rule {
        at: at.clone(),
        what: format!("{} = {}", key.path, value.to_string()),
        rule: format!("must be at most {max}"),
        nearest,
    }
}

/// Reports a number that is infinite in f32 only. Ranges refuse what is so in every type.
fn beyond_f32(key: &Key, value: &toml::Value, at: &Origin) -> Option<Violation> {
    let number = value.as_float()?;
    (number.is_finite() && !(number as f32).is_finite()).then(|| Violation::Rule {
        at: at.clone(),
        what: format!("{} = {number:e}", key.path),
        rule: format!("must be a number between -{0:e} and {0:e}, as f32 has them", f32::MAX),
        nearest: super::default_value(key.path).map_or_else(String::new, |value| value.to_string()),
    })
}

/// The divisors of `of` next below and next above `to`.
pub(super) fn nearest_divisors(of: usize, to: usize) -> Vec<usize> {
    let below = (1..to.min(of + 1)).rev().find(|d| of.is_multiple_of(*d));
    let above = (to + 1..=of).find(|d| of.is_multiple_of(*d));
    below.into_iter().chain(above).collect()
}

/// `key = 2`, `key = 4`.
pub(super) fn or(key: &str, values: &[usize]) -> Vec<String> {
    values.iter().map(|value| format!("{key} = {value}")).collect()
}
