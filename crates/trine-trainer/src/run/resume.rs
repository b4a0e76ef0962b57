//! Going on with a run: what must be as it was, and what is told of the rest.

use crate::TrainError;
use crate::config::{Config, File, Optimizer, OptimizerKind, Typed};
use crate::run::data::RunData;
use crate::run::directory::CONFIG;
use std::path::Path;
use trine_checkpoint::{Checkpoint, Manifest, RunState};
use trine_mesh::plural;

/// The configuration that a checkpoint was made with, in its manifest.
pub(super) const CONFIGURATION: &str = "config";
/// Steps that the configuration asked for.
pub(super) const STEPS_CONFIGURED: &str = "configured_steps";
/// Steps of the whole run: as many, or fewer where they were cut to fit its time.
pub(super) const STEPS_TOTAL: &str = "total_steps";
/// Whether the number of steps has been fitted to the time limit.
pub(super) const FITTED: &str = "fitted";
/// The last step's loss.
pub(super) const LOSS: &str = "loss";
/// What identifies the tokens of a text that is one file.
pub(super) const TOKENS_HASH: &str = "tokens_hash";
/// The step with the lowest validation loss so far, where `checkpoint.keep_best` asks for it.
pub(super) const BEST_STEP: &str = "best_step";
/// That loss.
pub(super) const BEST_LOSS: &str = "best_val_loss";

/// Steps of the whole run that goes on, and whether they have been fitted to its time. A run whose steps
/// were cut goes on with as many, unless it is asked for another number.
pub(super) fn steps_total(config: &Config, run: &RunState) -> (u64, bool) {
    let (asked, unlimited) = (config.train.steps as u64, config.train.minutes_max <= 0.0);
    if number(run, STEPS_CONFIGURED) != Some(asked) {
        return (asked, unlimited);
    }
    let is_fitted = run.trainer.get(FITTED) == Some(&serde_json::Value::Bool(true));
    (number(run, STEPS_TOTAL).unwrap_or(asked), unlimited || is_fitted)
}

/// A whole number that a checkpoint holds for the trainer.
pub(super) fn number(run: &RunState, name: &str) -> Option<u64> {
    run.trainer.get(name)?.as_u64()
}

/// The configuration that a checkpoint of the run in `dir` was made with. Older releases did not put it
/// into the checkpoint: there it is the run's.
pub(super) fn configuration(manifest: &Manifest, dir: &Path) -> Result<Config, TrainError> {
    let kept = manifest.run.trainer.get(CONFIGURATION).and_then(|text| text.as_str());
    let file = match kept {
        Some(text) => File { name: "the checkpoint's configuration".into(), text: text.into() },
        None => File::read(&dir.join(CONFIG))?,
    };
    let (file, file_dir) = (Some(file), dir.to_path_buf());
    let typed = Typed { file, file_dir, is_stored: true, ..Typed::default() };
    Ok(Config::load(&typed)?.stored()?)
}

/// Refuses what would give the run's numbers another meaning, before the data are made ready; says every
/// other difference from the configuration `before` of the checkpoint, a line each.
pub(super) fn check(
    config: &Config,
    before: &Config,
    checkpoint: &Checkpoint,
) -> Result<Vec<String>, TrainError> {
    let run = &checkpoint.manifest().run;
    checkpoint.check_model(&config.model.parts(1)?)?;
    check_optimizer(config, checkpoint.manifest())?;
    if config.data.seq != before.data.seq {
        let (ours, theirs) = (config.data.seq.to_string(), before.data.seq.to_string());
        return Err(TrainError::OtherSetting { key: "data.seq", ours, theirs, step: run.step });
    }
    let now = config.stored()?;
    let (total, _) = steps_total(&now, run);
    let mut then = before.clone();
    if number(run, STEPS_TOTAL) == Some(total) && before.train.steps as u64 != total {
        // It was cut to fit its time, and its configuration says so since.
        then.train.steps = now.train.steps;
        then.train.minutes_max = now.train.minutes_max;
    }
    let rows = now.differences(&then)?;
    let mut lines: Vec<String> =
        rows.iter().map(|(key, before, after)| format!("{key} {before} → {after}")).collect();
    if run.step >= total {
        let (steps, more) = (run.step, "a larger --steps adds more");
        let noun = plural(total, "step");
        lines.push(format!("all {total} {noun} are done, the run is at step {steps}; {more}"));
    } else {
        lines.extend(rate_jump(&now, before, run, total));
    }
    Ok(lines.into_iter().map(|line| format!("resume: {line}")).collect())
}

/// The learning rate of the next step, where it is another than it would have been.
fn rate_jump(now: &Config, before: &Config, run: &RunState, total: u64) -> Option<String> {
    let next = run.step + 1;
    let total_before = number(run, STEPS_TOTAL).unwrap_or(before.train.steps as u64);
    let rate = |config: &Config, total| config.lr_schedule().rate(config.optimizer.lr, next, total);
    let (then, now) = (rate(before, total_before), rate(now, total));
    (then != now).then(|| format!("lr at step {next}: {then:.2e} → {now:.2e}"))
}

/// Refuses an optimizer that the checkpoint has no moments of.
fn check_optimizer(config: &Config, manifest: &Manifest) -> Result<(), TrainError> {
    let held = manifest.quantities.get(1..).unwrap_or_default();
    let has = |moments: &[&str]| moments.iter().all(|name| held.iter().any(|held| held == name));
    let adamw = Optimizer { kind: OptimizerKind::AdamW, ..config.optimizer.clone() };
    let adamw = Config { optimizer: adamw, ..config.clone() }.optimizer_config();
    let is_adamw = has(adamw.moments());
    let theirs = if is_adamw { OptimizerKind::AdamW } else { OptimizerKind::Sgd };
    let (kind, step) = (config.optimizer.kind, manifest.run.step);
    let refused = |key, ours, theirs| Err(TrainError::OtherSetting { key, ours, theirs, step });
    if kind != theirs {
        return refused("optimizer.kind", format!("\"{kind}\""), format!("\"{theirs}\""));
    }
    if !has(config.optimizer_config().moments()) {
        return refused("optimizer.momentum", config.optimizer.momentum.to_string(), "0".into());
    }
    Ok(())
}

/// Whether the text is that of the run, and only its one file is called something else.
fn is_renamed(data: &RunData, run: &RunState) -> bool {
    let theirs = run.trainer.get(TOKENS_HASH).and_then(|hash| hash.as_str());
    theirs.is_some_and(|theirs| data.tokens_hash().is_some_and(|ours| ours == theirs))
}

/// Refuses other text, and the same text in other tokens.
pub(super) fn check_data(
    config: &Config,
    before: &Config,
    data: &RunData,
    run: &RunState,
) -> Result<(), TrainError> {
    let (ours, theirs) = (&data.report().corpus_hash, &run.data_hash);
    if ours != theirs && !is_renamed(data, run) {
        return Err(TrainError::OtherData { ours: ours.clone(), theirs: theirs.clone() });
    }
    let ours = data.tokenizer().hash()?;
    match &run.tokenizer_hash {
        Some(theirs) if *theirs != ours => {
            let vocab = before.data.vocab;
            let way = if config.data.vocab == vocab {
                "give back the tokenizer it had".to_owned()
            } else {
                format!("go on with data.vocab = {vocab}")
            };
            Err(TrainError::OtherTokenizer { ours, theirs: theirs.clone(), way })
        }
        Some(_) | None => Ok(()),
    }
}
