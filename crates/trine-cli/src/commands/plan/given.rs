//! The options of a plan that keep a value: as typed, and a request without each.

use crate::failure::Failure;
use crate::plan_args::TaskArgs;
use trine_plan::{Fixed, Precision, Recompute, Request};
use trine_schedule::{Purpose, ScheduleKind};

/// An option that was given.
#[derive(Debug)]
pub(crate) struct Given {
    /// As typed.
    pub(crate) typed: String,
    /// What trine's trainer runs where it does not run every value.
    pub(crate) runs: &'static str,
    /// Leaves what it keeps to the search.
    clear: Clear,
}

type Clear = fn(&mut Request);

impl Given {
    /// The request without it.
    pub(crate) fn without(&self, request: &Request) -> Request {
        let mut rest = *request;
        (self.clear)(&mut rest);
        rest
    }
}

/// What the options keep.
pub(crate) fn fixed(args: &TaskArgs) -> Result<Fixed, Failure> {
    let recompute = [
        ("none", Recompute::None),
        ("selective", Recompute::Selective),
        ("elementwise", Recompute::ELEMENTWISE),
        ("half", Recompute::Full { every: 2 }),
        ("full", Recompute::Full { every: 1 }),
    ];
    let recompute =
        args.recompute.as_ref().map(|word| choose("--recompute", word, &recompute)).transpose()?;
    Ok(Fixed {
        tp: args.tp,
        pp: args.pp,
        cp: args.cp,
        virtual_stages: args.r#virtual,
        pipeline: args.schedule.as_deref().map(schedule).transpose()?,
        micro_batch: args.micro_batch,
        zero: args.zero,
        recompute,
        sequence_parallel: args.sequence_parallel,
        runnable: args.runnable,
    })
}

fn schedule(name: &str) -> Result<ScheduleKind, Failure> {
    if name.starts_with("file:") {
        return Err(Failure::usage(format!(
            "--schedule {name}: a plan makes its schedules by name; `trine train` and `trine schedule` take a file"
        )));
    }
    let kind: ScheduleKind = name.parse().map_err(Failure::usage)?;
    if kind.info().purpose != Purpose::Train {
        return Err(Failure::usage(format!("--schedule {name}: does not train")));
    }
    Ok(kind)
}

/// Every option that keeps a value, in the order of `--help`.
pub(crate) fn all(args: &TaskArgs) -> Vec<Given> {
    fn typed(flag: &str, value: Option<impl ToString>) -> Option<String> {
        value.map(|value| format!("{flag} {}", value.to_string()))
    }
    const ANY: &str = "";
    let rows: [(Option<String>, &'static str, Clear); 10] = [
        (typed("--precision", args.precision.as_ref()), "computes in bf16 and f32", |all| {
            all.precision = Precision::Bf16;
        }),
        (typed("--tp", args.tp), ANY, |all| all.fixed.tp = None),
        (typed("--pp", args.pp), ANY, |all| all.fixed.pp = None),
        (typed("--cp", args.cp), "splits no sequence over ranks", |all| all.fixed.cp = None),
        (typed("--virtual", args.r#virtual), ANY, |all| all.fixed.virtual_stages = None),
        (typed("--schedule", args.schedule.as_ref()), ANY, |all| all.fixed.pipeline = None),
        (typed("--micro-batch", args.micro_batch), ANY, |all| all.fixed.micro_batch = None),
        (typed("--zero", args.zero), "has ZeRO stages 0 and 1", |all| all.fixed.zero = None),
        (
            typed("--recompute", args.recompute.as_ref()),
            "computes again none, elementwise, half or full",
            |all| {
                all.fixed.recompute = None;
            },
        ),
        (typed("--sequence-parallel", args.sequence_parallel), ANY, |all| {
            all.fixed.sequence_parallel = None;
        }),
    ];
    let given = |(typed, runs, clear): (Option<String>, _, _)| {
        typed.map(|typed| Given { typed, runs, clear })
    };
    rows.into_iter().filter_map(given).collect()
}

/// Those that ask for what trine's trainer never runs, given the request that they are part of.
pub(crate) fn beyond_trine<'a>(
    given: &'a [Given],
    request: &'a Request,
) -> impl Iterator<Item = &'a Given> {
    let near = request.for_trine();
    let is_beyond =
        move |one: &&Given| one.without(&near) == near && one.without(request) != *request;
    given.iter().filter(is_beyond)
}

/// The value of a word.
pub(crate) fn choose<T: Copy>(option: &str, word: &str, all: &[(&str, T)]) -> Result<T, Failure> {
    all.iter().find(|(name, _)| *name == word).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        Failure::usage(format!("{option} {word}: must be one of {}", names.join(", ")))
    })
}
