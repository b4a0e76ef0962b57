//! The configuration of a run: typed, complete, checked.
//!
//! A configuration is made in two stages. [`Typed`] is what a user typed: a preset's name, a file,
//! options. [`Config::load`] lays the file over the preset and the options over the file, and
//! checks every key, every type and every rule between values; what it returns is complete:
//! [`Config::to_toml`] writes a file that gives the identical configuration again. Nothing here
//! reads the environment (contract C9), and nothing unknown is skipped (contract C8).
//!
//! ```
//! use trine_trainer::config::{Config, File, Setting, Typed};
//!
//! let text = "[train]\nstepz = 10\n";
//! let file = File { name: "run.toml".into(), text: text.into() };
//! let mut typed = Typed { file: Some(file), ..Typed::default() };
//! let error = Config::load(&typed).unwrap_err().to_string();
//! assert_eq!(error, "run.toml:2:1: unknown key train.stepz; nearest: train.steps");
//!
//! typed.file = None;
//! typed.settings = vec![Setting::set("train.steps=10"), Setting::option("--tp", "layout.tp", "6")];
//! let error = Config::load(&typed).unwrap_err().to_string();
//! assert!(error.starts_with("--tp 6: layout.tp = 6: every rank needs a query head"), "{error}");
//! ```

mod check;
mod error;
mod groups;
mod keys;
mod load;
mod nearest;
mod presets;
mod resolved;
mod schema;
mod sections;
#[cfg(test)]
mod tests;
mod typed;

pub use error::{ConfigError, Origin, Violation};
pub use keys::keys;
pub use schema::{Key, Kind};
pub use sections::{
    Batch, Checkpoint, Comm, Data, Device, Eval, Layout, Log, Lr, Optimizer, OptimizerKind, Output,
    Pin, Precision, Sample, Source, Threads, Times, Train,
};
pub use typed::{File, Setting, Typed};

// The enums of the crates that act on them, so that a configuration can be built with this module alone.
pub use trine_nn::Numerics;
pub use trine_optim::LrKind;
pub use trine_schedule::{Order, ScheduleKind};

use serde::{Deserialize, Serialize};
use toml::Value;
use trine_spec::ModelSpec;

/// The preset of a run that asks for none.
pub const DEFAULT_PRESET: &str = "rust-default";

/// The complete configuration of a run.
///
/// Its fields are public for reading; [`Config::load`] is the way to make one, and
/// [`Config::check`] says whether one that was changed by hand still holds together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the run and of its directory.
    pub name: String,
    /// Seed of initial weights, dropout and data order.
    pub seed: u64,
    /// `[model]`: the model.
    pub model: ModelSpec,
    /// `[data]`: the text and its tokens.
    pub data: Data,
    /// `[layout]`: which rank holds what.
    pub layout: Layout,
    /// `[threads]`: where ranks compute.
    pub threads: Threads,
    /// `[batch]`: how many sequences make a step.
    pub batch: Batch,
    /// `[train]`: how a step is computed, and how many there are.
    pub train: Train,
    /// `[optimizer]`: the update.
    pub optimizer: Optimizer,
    /// `[lr]`: the learning rate over the run.
    pub lr: Lr,
    /// `[eval]`: validation.
    pub eval: Eval,
    /// `[checkpoint]`: saving.
    pub checkpoint: Checkpoint,
    /// `[comm]`: how ranks wait for each other.
    pub comm: Comm,
    /// `[log]`: progress.
    pub log: Log,
    /// `[output]`: the run directory.
    pub output: Output,
    /// `[sample]`: completions.
    pub sample: Sample,
}

/// Who decides how many ranks there are, and along which axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayoutBy {
    /// The configuration: its degrees are given, or the preset's are wanted.
    Configuration,
    /// The machine that the run is on; the degrees are the preset's until then.
    Machine,
}

/// A configuration, and what the one who runs it may decide.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Who decides its degrees.
    pub layout_by: LayoutBy,
    /// Whether one of its degrees was given.
    pub degrees_are_given: bool,
    /// Whether `batch.micro` or its shorthand was given.
    pub micro_is_given: bool,
}

impl Loaded {
    /// Resolves what was typed, and checks it, as [`Config::load`].
    ///
    /// # Errors
    /// Everything that is wrong, each with its place and the nearest valid value.
    pub fn load(typed: &Typed) -> Result<Self, ConfigError> {
        load::load(typed)
    }
}

impl Config {
    /// Resolves what was typed, and checks it.
    ///
    /// # Errors
    /// Everything that is wrong, each with its place and the nearest valid value.
    pub fn load(typed: &Typed) -> Result<Self, ConfigError> {
        load::load(typed).map(|loaded| loaded.config)
    }

    /// The configuration of a preset, with the largest of its layouts.
    ///
    /// # Errors
    /// No such preset; the nearest name.
    pub fn preset(name: &str) -> Result<Self, ConfigError> {
        Self::load(&Typed { preset: Some(name.into()), ..Typed::default() })
    }

    /// What suits a model that is no preset, on one rank: what the presets have in common. Its name is the nearest to
    /// `name` that a run may have. A tiny vocabulary may need another `data.vocab` or text; [`Config::check`] says so.
    pub fn of_model(name: &str, model: &ModelSpec) -> Self {
        presets::of_model(name, model)
    }

    /// Checks every rule again, for a configuration that was changed by a program.
    ///
    /// # Errors
    /// All rules that are broken.
    pub fn check(&self) -> Result<(), ConfigError> {
        let violations = check::violations(self, &load::Origins::default());
        if violations.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(violations)) }
    }

    /// The whole configuration as TOML; loading it gives the identical configuration.
    ///
    /// # Errors
    /// A number that TOML cannot hold (a seed above 2⁶³ − 1).
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        // The writer accepts numbers that no reader does; a table does not.
        self.to_table()?;
        toml::to_string(self).map_err(|error| ConfigError::Write { cause: error.to_string() })
    }

    /// The configuration as a run stores it: [`Config::placed`], and without the run directory, which a new run must
    /// not claim.
    ///
    /// # Errors
    /// As [`Config::placed`].
    pub fn stored(&self) -> Result<Self, ConfigError> {
        Ok(Self { output: Output { dir: Default::default() }, ..self.placed()? })
    }

    /// The same with absolute paths, so that a file means the same in any folder.
    ///
    /// # Errors
    /// As [`Config::to_toml`], or a working directory that is gone.
    pub fn placed(&self) -> Result<Self, ConfigError> {
        let write = |cause: String| ConfigError::Write { cause };
        let mut table = self.to_table()?;
        for key in keys::keys().filter(|key| !key.shorthand) {
            let value = load::lookup(&table, key.path).expect("invariant: every key has a value");
            let Some(path) = typed::path_of(key, value) else { continue };
            let path = std::path::absolute(path).map_err(|error| write(error.to_string()))?;
            let path = path.to_string_lossy().into_owned();
            load::replace(&mut table, key.path, path.into());
        }
        table.try_into().map_err(|error: toml::de::Error| write(error.to_string()))
    }

    /// The keys whose values differ, each with the value in `before` and here, as TOML.
    pub(crate) fn differences(
        &self,
        before: &Self,
    ) -> Result<Vec<(&'static str, String, String)>, ConfigError> {
        let (before, after) = (before.to_table()?, self.to_table()?);
        let text =
            |table, path| load::lookup(table, path).map_or_else(String::new, Value::to_string);
        let rows = keys::keys().filter(|key| !key.shorthand).map(|key| key.path);
        let rows = rows.map(|path| (path, text(&before, path), text(&after, path)));
        let differing = rows.filter(|(_, before, after)| before != after);
        Ok(differing
            .map(|(path, before, after)| (path, first_line(&before), first_line(&after)))
            .collect())
    }

    fn to_table(&self) -> Result<toml::Table, ConfigError> {
        toml::Table::try_from(self).map_err(|error| ConfigError::Write { cause: error.to_string() })
    }
}

/// The first line of a value that has several, as a schedule of one's own.
fn first_line(value: &str) -> String {
    let shown = value.trim_start_matches(['"', '\'', '\n']);
    match shown.split_once('\n') {
        Some((first, _)) => format!("\"{first} …\""),
        None => value.to_owned(),
    }
}

/// What the default preset gives a key, as TOML; `None` for shorthands.
pub fn default_value(path: &str) -> Option<toml::Value> {
    let table = presets::find(DEFAULT_PRESET)?.to_table().ok()?;
    load::lookup(&table, path).cloned()
}
