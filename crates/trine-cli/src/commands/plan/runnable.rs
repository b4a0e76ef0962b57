//! The best layout that trine itself runs, and its configuration.

use super::again::Again;
use super::given::{Given, beyond_trine};
use super::task::{Task, describe};
use crate::failure::Failure;
use trine_plan::{Choice, Found, Model, Planner, Precision, SearchError, search};
use trine_trainer::config::{self, Config};

/// What trine itself runs of a request.
pub(crate) enum Runnable {
    /// The best layout.
    Best(Choice, Box<Config>),
    /// Nothing, but the best without some options, in words.
    Without(String, Choice, Box<Config>),
    /// Nothing, and why.
    Nothing(String),
}

impl Runnable {
    /// Looks for it among what the request's options leave.
    pub(crate) fn find(task: &Task, planner: &Planner<'_>, tokens: f64) -> Result<Self, Failure> {
        let mut request = task.request;
        request.fixed.runnable = true;
        match search(planner, &request) {
            Ok(found) => Self::checked(task, planner, tokens, None, &found),
            Err(SearchError::Plan(error)) => Err(Failure::usage(error)),
            Err(error @ SearchError::Impossible(_)) => {
                let beyond: Vec<&Given> = beyond_trine(&task.given, &task.request).collect();
                match search(planner, &task.request.for_trine()) {
                    Ok(found) if !beyond.is_empty() => {
                        let said = none_of_these(&beyond, &found.best[0]);
                        Self::checked(task, planner, tokens, Some(said), &found)
                    }
                    _ => Ok(Self::Nothing(task.failure(error).to_string())),
                }
            }
        }
    }

    /// The first of what was found, if `trine train` takes it.
    fn checked(
        task: &Task,
        planner: &Planner<'_>,
        tokens: f64,
        without: Option<String>,
        found: &Found,
    ) -> Result<Self, Failure> {
        let choice = found.best[0];
        let config = Box::new(config(&task.base, planner.model, &choice, tokens));
        Ok(match (config.check(), without) {
            (Err(error), _) => Self::Nothing(error.to_string()),
            (Ok(()), None) => Self::Best(choice, config),
            (Ok(()), Some(without)) => Self::Without(without, choice, config),
        })
    }

    /// The layout, if there is one.
    pub(crate) fn choice(&self) -> Option<&Choice> {
        match self {
            Self::Best(choice, _) | Self::Without(_, choice, _) => Some(choice),
            Self::Nothing(_) => None,
        }
    }

    /// The configuration of what was asked for, as a file.
    pub(crate) fn file(&self, task: &Task) -> Result<String, Failure> {
        match self {
            Self::Best(choice, config) => text(task, choice, config),
            Self::Without(said, ..) => Err(Failure::usage(said)),
            Self::Nothing(why) => Err(Failure::usage(format!("no layout that trine runs: {why}"))),
        }
    }

    /// What it is beside the best of all layouts, which takes `best_s`.
    pub(crate) fn report(
        &self,
        task: &Task,
        planner: &Planner<'_>,
        best_s: f64,
    ) -> Result<String, Failure> {
        let slower = |choice: &Choice| 100.0 * (choice.step() / best_s - 1.0);
        let again = |choice: &Choice| {
            let again = Again::of(planner, choice, task.request.headroom);
            again.map_or_else(String::new, |again| again.line())
        };
        Ok(match self {
            Self::Best(choice, config) => format!(
                "\nThe best that trine itself runs ({:+.1} % time): {}{}\n{}\n{}",
                slower(choice),
                describe(choice),
                task.not_here(),
                again(choice),
                text(task, choice, config)?
            ),
            Self::Without(said, choice, config) => format!(
                "\n{said} ({:+.1} % time){}\n{}\n{}",
                slower(choice),
                task.not_here(),
                again(choice),
                text(task, choice, config)?
            ),
            Self::Nothing(why) => format!("\nNo layout that trine itself runs: {why}\n"),
        })
    }
}

/// For a search that had `--runnable` and found nothing: what it would have found without what trine never runs.
pub(crate) fn failure(
    task: &Task,
    planner: &Planner<'_>,
    tokens: f64,
    error: SearchError,
) -> Failure {
    if !task.request.fixed.runnable {
        return task.failure(error);
    }
    match Runnable::find(task, planner, tokens) {
        Ok(Runnable::Without(said, ..)) => Failure::usage(said),
        Ok(Runnable::Best(..) | Runnable::Nothing(_)) | Err(_) => task.failure(error),
    }
}

/// What trine never runs, what it runs instead, and the best of that.
fn none_of_these(beyond: &[&Given], choice: &Choice) -> String {
    let words = |of: fn(&Given) -> &str, between: &str| {
        beyond.iter().map(|one| of(one)).collect::<Vec<_>>().join(between)
    };
    format!(
        "trine {} and runs none of these; without {} the best is {}",
        words(|one| one.runs, ", "),
        words(|one| &one.typed, " "),
        describe(choice)
    )
}

/// The configuration of a layout: that of the model, with what the layout decides and the steps that so many tokens
/// take.
fn config(base: &Config, model: &Model, choice: &Choice, tokens: f64) -> Config {
    let layout = &choice.layout;
    let mut config = base.clone();
    config.data.seq = layout.seq;
    config.model.seq_max = config.model.seq_max.max(layout.seq);
    config.layout = config::Layout {
        tp: layout.degrees.tp,
        pp: layout.degrees.pp,
        dp: layout.degrees.dp,
        sequence_parallel: layout.sequence_parallel,
        schedule: layout.pipeline.into(),
        virtual_stages: match layout.virtual_stages {
            usual if usual == layout.pipeline.info().chunks_usual => 0,
            given => given,
        },
        layers: Vec::new(),
        ..config.layout
    };
    config.batch = config::Batch { global: layout.global_batch, micro: layout.micro_batch };
    config.train.precision = trained(layout.precision).expect("invariant: the layout is runnable");
    let recompute = model.dropped(layout.recompute);
    config.train.recompute = recompute.expect("invariant: the layout is runnable");
    config.train.zero = usize::from(layout.zero);
    config.train.steps = (tokens / config.tokens_per_step() as f64).ceil() as usize;
    config
}

/// How a configuration calls a precision that trine computes in.
fn trained(precision: Precision) -> Option<config::Precision> {
    match precision {
        Precision::F32 => Some(config::Precision::F32),
        Precision::Bf16 => Some(config::Precision::Bf16),
        Precision::F16 | Precision::Fp8 | Precision::Fp8Rows => None,
    }
}

/// A configuration as a file, which may be in any folder: of a preset what differs from it, of another model all.
fn text(task: &Task, choice: &Choice, config: &Config) -> Result<String, Failure> {
    let about = describe(choice);
    if !task.is_preset {
        return Ok(format!("# {about}\n{}", config.placed()?.to_toml()?));
    }
    let Config { name: preset, data, layout, batch, train, model, .. } = config;
    let longer = match model.seq_max == task.base.model.seq_max {
        true => String::new(),
        false => format!("[model]\nseq_max = {}\n\n", model.seq_max),
    };
    Ok(format!(
        "# {about}\npreset = \"{preset}\"\n\n{longer}[data]\nseq = {}\n\n[layout]\ntp = {}\npp = {}\ndp = {}\n\
         sequence_parallel = {}\nschedule = \"{}\"\nvirtual = {}\n\n[batch]\nglobal = {}\nmicro = {}\n\n[train]\n\
         steps = {}\nprecision = \"{}\"\nrecompute = {}\nzero = {}\n",
        data.seq,
        layout.tp,
        layout.pp,
        layout.dp,
        layout.sequence_parallel,
        layout.schedule,
        layout.virtual_stages,
        batch.global,
        batch.micro,
        train.steps,
        train.precision,
        train.recompute,
        train.zero,
    ))
}
