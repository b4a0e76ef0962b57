//! From options to a configuration: which key each option sets, as data.

use crate::args::{ConfigArgs, GenerateArgs, TrainArgs};
use crate::failure::Failure;
use crate::parse;
use crate::terminal::quoted_path;
use std::path::Path;
use trine_trainer::config::{Config, ConfigError, File, Loaded, Setting, Times, Typed};

/// The configuration of `trine train`.
pub(crate) fn of_train(args: &TrainArgs) -> Result<Loaded, Failure> {
    let mut typed = typed(&args.config)?;
    let resumed = match &args.resume {
        Some(dir) => {
            let Some(text) = dir.to_str() else {
                let dir = parse::shown(dir.as_os_str());
                return Err(Failure::usage(format!("--resume {dir}: {}", parse::NOT_UTF8)));
            };
            refuse_other_directory(args, &typed, dir)?;
            typed.file = Some(run_config(dir)?);
            typed.file_dir = dir.clone();
            typed.is_stored = true;
            Some(text.to_owned())
        }
        None => None,
    };
    typed.settings.extend(settings(&[
        ("--resume", "output.dir", &resumed),
        ("--out", "output.dir", &args.out),
        ("--layout", "layout.degrees", &args.layout),
        ("--device", "train.device", &args.device),
        ("--corpus-manifest", "data.manifest", &args.corpus_manifest),
        ("--cache", "data.cache", &args.cache),
    ]));
    Loaded::load(&typed).map_err(|error| refused(error, typed.file.as_ref()))
}

/// Refuses another directory for a run that goes on: it would write into that of another run.
fn refuse_other_directory(args: &TrainArgs, typed: &Typed, run: &Path) -> Result<(), Failure> {
    let set = typed.settings.iter().find(|setting| setting.key() == Some("output.dir"));
    let out = args.out.as_ref().map(|out| format!("--out {out}"));
    let Some(other) = out.or_else(|| set.map(|setting| setting.typed.clone())) else {
        return Ok(());
    };
    let (shown, run) = (run.display(), quoted_path(run));
    Err(Failure::usage(format!(
        "--resume {shown} {other}: a run goes on in its own directory; leave {other}, or go on with a copy \
         (cp -r {run} COPY, trine train --resume COPY), or begin anew: trine train {run}/config.toml --out NEW"
    )))
}

/// The configuration of a run, its sampling changed by the options of `trine generate`.
pub(crate) fn of_generate(args: &GenerateArgs) -> Result<Config, Failure> {
    let settings = settings(&[
        ("--tokens", "sample.tokens", &args.tokens),
        ("--temperature", "sample.temperature", &args.temperature),
        ("--top-k", "sample.top_k", &args.top_k),
        ("--top-p", "sample.top_p", &args.top_p),
        ("--seed", "seed", &args.seed),
    ]);
    let file = Some(run_config(&args.run)?);
    Ok(Config::load(&Typed { file, is_stored: true, settings, ..Typed::default() })?)
}

/// What the options that every configured command shares say.
pub(crate) fn typed(args: &ConfigArgs) -> Result<Typed, Failure> {
    let file = args.config.as_deref().map(config_file).transpose()?;
    let mut all: Vec<Setting> = args.set.iter().map(|text| Setting::set(text)).collect();
    all.extend(settings(&[
        ("--data", "data.source", &args.data),
        ("--tp", "layout.tp", &args.tp),
        ("--pp", "layout.pp", &args.pp),
        ("--dp", "layout.dp", &args.dp),
        ("--schedule", "layout.schedule", &args.schedule),
        ("--virtual", "layout.virtual", &args.r#virtual),
        ("--micro-batches", "batch.micro_batches", &args.micro_batches),
        ("--precision", "train.precision", &args.precision),
        ("--numerics", "train.numerics", &args.numerics),
        ("--steps", "train.steps", &args.steps),
        ("--seed", "seed", &args.seed),
    ]));
    all.extend(args.times.as_deref().map(|times| match times {
        Times::MEASURED => Setting::option("--times", "layout.times", times),
        _ => Setting::list("--times", "layout.times", times),
    }));
    let folder = args.config.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    let file_dir = folder.unwrap_or_default();
    Ok(Typed { preset: args.preset.clone(), file, file_dir, is_stored: false, settings: all })
}

/// One setting for each option that was given: (option, key, value).
fn settings(table: &[(&str, &str, &Option<String>)]) -> Vec<Setting> {
    let given = |(flag, key, value): &(&str, &str, &Option<String>)| {
        value.as_ref().map(|value| Setting::option(flag, key, value))
    };
    table.iter().filter_map(given).collect()
}

/// Reads a configuration file; a preset's name, a run or a folder of texts in its place is a likely
/// mistake.
fn config_file(path: &Path) -> Result<File, Failure> {
    File::read(path).map_err(|error| {
        let name = path.to_string_lossy();
        let shell = quoted_path(path);
        if trine_spec::presets::find(&name).is_ok() {
            return Failure::usage(format!("{name} is a preset, not a file: --preset {name}"));
        }
        if path.join("config.toml").is_file() {
            return Failure::usage(format!(
                "{name}: cannot read a configuration: it is a run directory; to go on with the run: \
                 trine train --resume {shell}"
            ));
        }
        if path.is_dir() {
            return Failure::usage(format!(
                "{name}: cannot read a configuration: it is a folder; to train on its texts: \
                 trine train --data {shell}"
            ));
        }
        error.into()
    })
}

/// Why there is no configuration; a file that is no TOML may be meant otherwise.
fn refused(error: ConfigError, file: Option<&File>) -> Failure {
    let (ConfigError::Syntax { .. }, Some(file)) = (&error, file) else { return error.into() };
    let about = "a configuration is TOML (`trine train --help-config` shows one)";
    let advice = match format_of(file) {
        Format::Toml => return error.into(),
        Format::Json => format!("the file is JSON, and {about}"),
        Format::Yaml => format!("the file is YAML, and {about}"),
        Format::Text => format!(
            "{about}; to train on a text: trine train --data {}",
            quoted_path(file.name.as_ref())
        ),
    };
    Failure::usage(format!("{error}; {advice}"))
}

/// What a file that was handed in as a configuration seems to be.
enum Format {
    Toml,
    Json,
    Yaml,
    Text,
}

/// By its name, or else by its text.
fn format_of(file: &File) -> Format {
    let extension = Path::new(&file.name).extension().map(|text| text.to_ascii_lowercase());
    match extension.as_ref().and_then(|text| text.to_str()) {
        Some("toml") => Format::Toml,
        Some("json") => Format::Json,
        Some("yaml" | "yml") => Format::Yaml,
        _ if file.text.trim_start().starts_with('{') => Format::Json,
        _ => Format::Text,
    }
}

/// Reads the configuration of a run directory. Its paths are absolute. Others start at the run directory, or,
/// as in those that older releases stored, at the working directory.
pub(crate) fn run_config(run: &Path) -> Result<File, Failure> {
    File::read(&run.join("config.toml")).map_err(|error| {
        let ConfigError::Read { cause, .. } = error else { return error.into() };
        Failure::usage(match run_above(run) {
            Some(above) => {
                format!("{}: not a run directory, but in one: {}", run.display(), above.display())
            }
            None => format!(
                "{}: not a run directory: cannot read its config.toml: {cause}; `trine train` makes runs/NAME",
                run.display()
            ),
        })
    })
}

/// The run directory that a checkpoint of it, or their folder, lies in.
fn run_above(path: &Path) -> Option<&Path> {
    let mut above = path.ancestors().skip(1).take(2);
    above.find(|above| !above.as_os_str().is_empty() && trine_files::is_run(above))
}
