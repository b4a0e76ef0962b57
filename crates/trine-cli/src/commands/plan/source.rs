//! Where the model to plan comes from.

use crate::failure::Failure;
use crate::plan_args::TaskArgs;
use std::fs;
use std::path::{Path, PathBuf};
use trine_checkpoint::model_from_config;
use trine_spec::presets;
use trine_trainer::config::{Config, File, Typed};

/// What a name or a path stands for.
#[derive(Debug, PartialEq)]
pub(super) enum Source<'a> {
    /// A preset's name, or no name at all.
    Preset(&'a str),
    /// A configuration of trine: its batch, sequence and precision count too.
    Configuration(&'a Path),
    /// A `config.json` of Hugging Face.
    HuggingFace(PathBuf),
}

impl<'a> Source<'a> {
    /// What is asked for, or the preset that is usual.
    pub(super) fn new(args: &'a TaskArgs, usual: &'static str) -> Self {
        if let Some(path) = &args.config {
            return Self::Configuration(path);
        }
        let name = args.model.as_deref().unwrap_or(usual);
        let path = Path::new(name);
        match path.extension().and_then(|ending| ending.to_str()) {
            _ if presets::find(name).is_ok() => Self::Preset(name),
            _ if path.is_dir() => Self::HuggingFace(path.join("config.json")),
            Some("toml") => Self::Configuration(path),
            Some("json") => Self::HuggingFace(path.into()),
            // Whatever else is there is read as one, or refused for what it is.
            _ if path.exists() => Self::HuggingFace(path.into()),
            // No preset is called like a path.
            _ if name.contains('/') => Self::HuggingFace(path.join("config.json")),
            _ => Self::Preset(name),
        }
    }

    /// The configuration that has the model: what a layout does not decide is as it is there.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        match self {
            Self::Preset(name) => {
                let preset = presets::find(name).map_err(Failure::usage)?;
                Ok(Config::preset(preset.name)?)
            }
            Self::Configuration(path) => {
                let file = Some(File::read(path)?);
                let file_dir = path.parent().map(Path::to_path_buf).unwrap_or_default();
                Ok(Config::load(&Typed { file, file_dir, ..Typed::default() })?)
            }
            Self::HuggingFace(path) => hugging_face(path),
        }
    }
}

/// A run with a model that others have described; it is called after the folder.
fn hugging_face(path: &Path) -> Result<Config, Failure> {
    let model = model_from_config(path).map_err(|error| {
        let own = path.with_file_name("config.toml");
        let hint = match !path.exists() && own.is_file() {
            true => format!("; a configuration of trine is there: --model {}", own.display()),
            false => String::new(),
        };
        Failure::usage(format!("{error}{hint}"))
    })?;
    let whole = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let folder = whole.parent().and_then(Path::file_name).unwrap_or_default();
    Ok(Config::of_model(&folder.to_string_lossy(), &model))
}
