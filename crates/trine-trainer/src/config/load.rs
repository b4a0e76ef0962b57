//! From what was typed to a checked configuration.

use super::error::{ConfigError, Origin, Violation};
use super::keys::{self, DEGREES, DEGREES_EACH, MICRO_BATCHES, MODEL_PRESET, PRESET};
use super::typed::{Assignment, Typed, read_file, read_setting};
use super::{Config, DEFAULT_PRESET, LayoutBy, Loaded, Source, check, presets};
use std::collections::{BTreeMap, BTreeSet};
use toml::Value;
use trine_schedule::Order;
use trine_spec::ModelSpec;

/// Beginnings of validation documents that are completed where the text has no prompts.
const DOCUMENTS_COMPLETED: usize = 3;

/// What rotary positions are set by.
pub(super) const ROTATION: [&str; 3] =
    ["model.rope_theta", "model.rope_fraction", "model.rope_scaling"];

/// Its values where no block has such positions, with all others of a model.
pub(super) fn plain_rotation() -> Option<toml::Table> {
    toml::Table::try_from(ModelSpec::usual(false)).ok()
}

/// Where each key's value was given.
#[derive(Debug, Default)]
pub(super) struct Origins {
    of: BTreeMap<&'static str, Origin>,
    /// The keys that somebody has typed.
    typed: BTreeSet<&'static str>,
    /// Whether the file is one that a run has stored.
    is_stored: bool,
}

impl Origins {
    pub(super) fn of(&self, path: &str) -> Origin {
        self.of.get(path).cloned().unwrap_or(Origin::Program)
    }

    /// Whether somebody has typed it just now, and not for a run that goes on.
    pub(super) fn is_asked(&self, path: &str) -> bool {
        let is_of_run = self.is_stored && matches!(self.of(path), Origin::File { .. });
        self.typed.contains(path) && !is_of_run
    }
}

/// Keys with their values: a preset, then what was typed on top of it.
struct Draft {
    /// The preset's name.
    preset: String,
    /// The preset's model.
    base: ModelSpec,
    values: BTreeMap<&'static str, Value>,
    origins: Origins,
}

/// Resolves and checks.
pub(super) fn load(typed: &Typed) -> Result<Loaded, ConfigError> {
    let mut violations = Vec::new();
    let assignments = assignments(typed, &mut violations)?;
    let Some(mut draft) = Draft::from_preset(typed, &assignments, &mut violations)? else {
        return Err(ConfigError::Invalid(violations));
    };
    draft.origins.is_stored = typed.is_stored;
    for assignment in assignments {
        draft.origins.typed.insert(assignment.key.path);
        draft.put(assignment.key.path, assignment.value, assignment.at);
    }
    let mut broken = Vec::new();
    draft.follow(&mut broken);
    draft.follow_family()?;
    draft.follow_layers();
    draft.follow_positions();
    draft.suit_prompts();
    draft.count_steps();
    let micro_is_given =
        !draft.untouched("batch.micro") || draft.values.contains_key(MICRO_BATCHES);
    let layout_by = draft.layout_by(&mut broken);
    let degrees_are_given = !DEGREES_EACH.into_iter().all(|path| draft.untouched(path));
    draft.divide_batch(layout_by, &mut broken);
    let config = draft.typed()?;
    if broken.is_empty() {
        broken = match layout_by {
            LayoutBy::Configuration => check::violations(&config, &draft.origins),
            // Rules about degrees are for the machine to keep; one rank must do at least.
            LayoutBy::Machine => {
                check::violations(&of_one_rank(&config, micro_is_given), &draft.origins)
            }
        };
    }
    // A rule says nothing of a key whose value was not understood.
    broken.retain(|rule| !violations.iter().any(|unread| unread.may_explain(rule)));
    violations.extend(broken);
    if violations.is_empty() {
        Ok(Loaded { config, layout_by, degrees_are_given, micro_is_given })
    } else {
        Err(ConfigError::Invalid(violations))
    }
}

/// Everything that was typed, in the order in which it is applied.
fn assignments(
    typed: &Typed,
    violations: &mut Vec<Violation>,
) -> Result<Vec<Assignment>, ConfigError> {
    let mut all = match &typed.file {
        Some(file) => read_file(file, &typed.file_dir, violations)?,
        None => Vec::new(),
    };
    let in_file = |path: &str| all.iter().find(|assignment| assignment.key.path == path);
    if let (Some(both), Some(_)) = (in_file(MICRO_BATCHES), in_file("batch.micro")) {
        violations.push(Violation::Rule {
            at: both.at.clone(),
            what: format!("{MICRO_BATCHES} = {}", both.value),
            rule: "the file sets batch.micro too, and one follows from the other".into(),
            nearest: "either of them alone".into(),
        });
    }
    for setting in &typed.settings {
        match read_setting(setting) {
            Ok(assignment) => all.push(assignment),
            Err(violation) => violations.push(*violation),
        }
    }
    Ok(all)
}

impl Draft {
    /// The values of the preset, with the model of `model.preset` if one is asked for.
    fn from_preset(
        typed: &Typed,
        assignments: &[Assignment],
        violations: &mut Vec<Violation>,
    ) -> Result<Option<Self>, ConfigError> {
        let asked = |path: &str| {
            let last = assignments.iter().rfind(|assignment| assignment.key.path == path)?;
            Some((last.value.as_str()?.to_owned(), last.at.clone()))
        };
        let by_option = typed
            .preset
            .as_ref()
            .map(|name| (name.clone(), Origin::Option(format!("--preset {name}"))));
        let default = || (DEFAULT_PRESET.to_owned(), Origin::Program);
        let (name, at) = by_option.or_else(|| asked(PRESET)).unwrap_or_else(default);
        let mut config = named(PRESET, &name, at, violations);
        let mut model_preset = name.clone();
        if let (Some((name, at)), Some(config)) = (asked(MODEL_PRESET), &mut config)
            && let Some(found) = named(MODEL_PRESET, &name, at, violations)
        {
            config.model = found.model;
            model_preset = name;
        }
        let Some(config) = config else { return Ok(None) };
        let table = config.to_table()?;
        let (values, origins) = (BTreeMap::new(), Origins::default());
        let mut draft = Self { preset: name.clone(), base: config.model, values, origins };
        for key in keys::keys().filter(|key| !key.shorthand) {
            let preset = if key.path.starts_with("model.") { &model_preset } else { &name };
            let value = lookup(&table, key.path).expect("invariant: every key has a value").clone();
            draft.put(key.path, value, Origin::Preset(preset.clone()));
        }
        Ok(Some(draft))
    }

    fn put(&mut self, path: &'static str, value: Value, at: Origin) {
        // The later of a key and its shorthand counts.
        if path == "batch.micro" {
            self.values.remove(MICRO_BATCHES);
        }
        self.values.insert(path, value);
        self.origins.of.insert(path, at);
    }

    fn count(&self, path: &str) -> usize {
        let number = self.values.get(path).and_then(Value::as_integer);
        number.and_then(|number| usize::try_from(number).ok()).unwrap_or(0)
    }

    /// Whether a value still is the preset's.
    fn untouched(&self, path: &str) -> bool {
        matches!(self.origins.of(path), Origin::Preset(_))
    }

    /// A smaller or larger model keeps the proportions of its preset: head size, KV heads and MLP
    /// width follow hidden and heads where they did so in the preset and are not given themselves.
    fn follow(&mut self, violations: &mut Vec<Violation>) {
        let base = &self.base;
        let (hidden, heads) = (self.count("model.hidden"), self.count("model.heads"));
        let at = if self.untouched("model.hidden") { "model.heads" } else { "model.hidden" };
        if self.untouched(at) {
            return;
        }
        let at = self.origins.of(at);
        let mut follows = Vec::new();
        if base.kv_heads == base.heads {
            follows.push(("model.kv_heads", heads));
        }
        if base.ffn == 4 * base.hidden {
            follows.push(("model.ffn", 4 * hidden));
        }
        if base.head_dim * base.heads == base.hidden && heads > 0 {
            follows.push(("model.head_dim", hidden / heads));
            if !hidden.is_multiple_of(heads) && self.untouched("model.head_dim") {
                let below = (hidden / heads * heads).max(heads);
                violations.push(Violation::Rule {
                    at: at.clone(),
                    what: format!("model.hidden = {hidden}"),
                    rule: format!(
                        "must be a multiple of model.heads = {heads} unless model.head_dim is given"
                    ),
                    nearest: format!("model.hidden = {below} or {}", below + heads),
                });
            }
        }
        for (path, value) in follows {
            if self.untouched(path) {
                self.put(path, integer(value), at.clone());
            }
        }
    }

    /// A trait that was its family's own in the preset is the family's for another width, or another family's.
    fn follow_family(&mut self) -> Result<(), ConfigError> {
        let changed =
            ["model.family", "model.hidden"].into_iter().find(|path| !self.untouched(path));
        let (Some(at), Ok(family)) = (changed, self.values["model.family"].clone().try_into())
        else {
            return Ok(());
        };
        let at = self.origins.of(at);
        let table = |model: &ModelSpec| {
            toml::Table::try_from(model).map_err(|error| ConfigError::Syntax {
                at: Origin::Program,
                cause: error.to_string(),
            })
        };
        let base = self.base.clone();
        let wider = ModelSpec { hidden: self.count("model.hidden"), ..base.clone() };
        let (was, usual) = (table(&base)?, table(&base.clone().of_family(base.family))?);
        let now = table(&wider.of_family(family))?;
        for (name, _) in base.traits() {
            let key = keys::find(&format!("model.{name}")).expect("invariant: traits are keys");
            if self.untouched(key.path) && was[name] == usual[name] {
                self.put(key.path, now[name].clone(), at.clone());
            }
        }
        Ok(())
    }

    /// A family's list has no more values than there are blocks.
    fn follow_layers(&mut self) {
        let layers = self.count("model.layers").max(1);
        for (name, _) in self.base.clone().traits() {
            let key = keys::find(&format!("model.{name}")).expect("invariant: traits are keys");
            if self.origins.typed.contains(key.path) {
                continue;
            }
            let Some(Value::Array(values)) = self.values.get_mut(key.path) else { continue };
            values.truncate(layers);
            if let [one] = &values[..] {
                let one = one.clone();
                self.values.insert(key.path, one);
            }
        }
    }

    /// What turns queries and keys goes with their positions.
    fn follow_positions(&mut self) {
        let is_rotary = |value: &Value| value.as_str() == Some("rotary");
        let positions = &self.values["model.positions"];
        let mut each =
            positions.as_array().map_or(std::slice::from_ref(positions), Vec::as_slice).iter();
        let (false, Some(plain)) = (each.any(is_rotary), plain_rotation()) else { return };
        let at = self.origins.of("model.positions");
        for path in ROTATION {
            let value = &plain[path.trim_start_matches("model.")];
            if !self.origins.typed.contains(path) && self.values[path] != *value {
                self.put(path, value.clone(), at.clone());
            }
        }
    }

    /// Prompts of the preset are Rust: another text is completed from beginnings of its own.
    fn suit_prompts(&mut self) {
        let source = self.values.get("data.source").and_then(Value::as_str);
        let is_own = source.is_some_and(|source| Source::from(source.to_owned()) != Source::Crates);
        if is_own && self.untouched("sample.prompts") {
            let at = self.origins.of("data.source");
            self.put("sample.prompts", Value::Array(Vec::new()), at.clone());
            if self.untouched("sample.documents") {
                self.put("sample.documents", integer(DOCUMENTS_COMPLETED), at);
            }
        }
    }

    /// The time limit of a preset goes with its steps: where others are given, they decide.
    fn count_steps(&mut self) {
        if !self.untouched("train.steps") && self.untouched("train.minutes_max") {
            self.put("train.minutes_max", Value::Float(0.0), self.origins.of("train.steps"));
        }
    }

    /// Replaces `batch.micro_batches` by the `batch.micro` that gives so many.
    fn divide_batch(&mut self, layout_by: LayoutBy, violations: &mut Vec<Violation>) {
        if !self.values.contains_key(MICRO_BATCHES) {
            return;
        }
        let asked = self.count(MICRO_BATCHES);
        let dp = match layout_by {
            LayoutBy::Configuration => self.count("layout.dp").max(1),
            LayoutBy::Machine => 1,
        };
        let global = self.count("batch.global");
        let at = self.origins.of(MICRO_BATCHES);
        let each = global / dp;
        if asked > 0 && global.is_multiple_of(dp) && each.is_multiple_of(asked) {
            return self.put("batch.micro", integer(each / asked), at);
        }
        let unit = dp * asked.max(1);
        let divisors =
            if global.is_multiple_of(dp) { check::nearest_divisors(each, asked) } else { vec![] };
        let mut nearest = check::or(MICRO_BATCHES, &divisors);
        let more = global.next_multiple_of(unit).max(unit);
        if more <= check::BATCH_MAX {
            nearest.push(format!("batch.global = {more}"));
        }
        violations.push(Violation::Rule {
            at,
            what: format!("{MICRO_BATCHES} = {asked}"),
            rule: format!(
                "must divide the sequences of a replica, batch.global / layout.dp = {global} / {dp}"
            ),
            nearest: nearest.join(" or "),
        });
    }

    /// Who decides the degrees. A preset for other machines than this leaves them to this one; the default is for any.
    fn layout_by(&self, violations: &mut Vec<Violation>) -> LayoutBy {
        let given = DEGREES_EACH.into_iter().find(|path| !self.untouched(path));
        match (self.values.get(DEGREES).and_then(Value::as_str), given) {
            (Some("auto"), Some(path)) => violations.push(Violation::Rule {
                at: self.origins.of(DEGREES),
                what: format!("{DEGREES} = \"auto\""),
                rule: format!(
                    "decides all degrees, and {path} is given ({})",
                    self.origins.of(path)
                ),
                nearest: "either of them alone".into(),
            }),
            (Some("auto"), None) => return LayoutBy::Machine,
            (None, None) if self.preset != DEFAULT_PRESET => return LayoutBy::Machine,
            (Some(_) | None, _) => {}
        }
        LayoutBy::Configuration
    }

    /// The typed configuration.
    fn typed(&self) -> Result<Config, ConfigError> {
        let mut root = toml::Table::new();
        for key in keys::keys().filter(|key| !key.shorthand) {
            let value = self.values[key.path].clone();
            match key.path.split_once('.') {
                None => {
                    root.insert(key.path.into(), value);
                }
                Some((section, name)) => {
                    let section =
                        root.entry(section).or_insert_with(|| Value::Table(toml::Table::new()));
                    let section = section.as_table_mut().expect("invariant: sections are tables");
                    section.insert(name.into(), value);
                }
            }
        }
        root.try_into().map_err(|error: toml::de::Error| ConfigError::Syntax {
            at: Origin::Program,
            cause: error.message().to_owned(),
        })
    }
}

/// The run on as few ranks as its rules allow, with a micro-batch that divides if that is free.
fn of_one_rank(config: &Config, micro_is_given: bool) -> Config {
    let mut least = config.clone();
    let (layout, batch) = (&mut least.layout, &mut least.batch);
    (layout.dp, layout.tp) = (1, 1);
    if let Order::Own(own) = &layout.schedule {
        // It says how many ranks and micro-batches there are.
        layout.pp = own.ranks();
        match micro_is_given {
            true => layout.dp = (batch.global / batch.micro.max(1) / own.micro_batches).max(1),
            false => batch.micro = (batch.global / own.micro_batches).max(1),
        }
        return least;
    }
    // A list of blocks has one number for each stage.
    layout.pp = (layout.layers.len() / config.virtual_stages().max(1)).max(1);
    if !micro_is_given {
        let divides = |micro: &usize| batch.global.is_multiple_of(*micro);
        batch.micro = (1..=batch.micro).rev().find(divides).unwrap_or(1);
    }
    least
}

fn integer(number: usize) -> Value {
    Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

/// The run preset of this name; an unknown one goes to `violations`.
fn named(key: &str, name: &str, at: Origin, violations: &mut Vec<Violation>) -> Option<Config> {
    let found = presets::find(name);
    if found.is_none() {
        let names = presets::names();
        violations.push(Violation::Choice {
            at,
            key: key.to_owned(),
            found: name.to_owned(),
            choices: super::schema::quoted(&names),
            nearest: keys::nearest_word(name, names.iter().copied()).to_owned(),
        });
    }
    found
}

/// The value at a dotted path.
pub(super) fn lookup<'a>(table: &'a toml::Table, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        None => table.get(path),
        Some((section, name)) => table.get(section)?.as_table()?.get(name),
    }
}

/// Puts another value at a dotted path.
pub(super) fn replace(table: &mut toml::Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.into(), value);
        }
        Some((section, name)) => {
            if let Some(section) = table.get_mut(section).and_then(Value::as_table_mut) {
                section.insert(name.into(), value);
            }
        }
    }
}
