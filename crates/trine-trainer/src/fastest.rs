//! The fastest layout of a run on this machine, of those that fit its memory.

use crate::config::Config;
use crate::memory::{MemoryLimit, MemoryPlan};
use crate::outlook::Time;
use crate::plan::RunPlan;
use crate::planned::{Machine, planned_step};
use crate::run::MachineSource;
use crate::splits::{divisors, splits};
use std::fmt::{self, Display, Formatter};
use std::iter;
use trine_mesh::Degrees;
use trine_spec::Recompute;

/// Sequences of the largest micro-batch that is tried.
const MICRO_MAX: usize = 32;

/// More ranks are worth it from this share of the step on: they need more memory, and plans are no better than that.
const WORTH: f64 = 0.02;

/// What there is to choose from.
#[derive(Debug, Clone, Copy)]
pub struct Choices<'a> {
    /// Cores that the ranks share.
    pub cores: usize,
    /// How many ranks there are, if that is not to be chosen.
    pub ranks: Option<usize>,
    /// Whether the sequences of a micro-batch may be chosen too.
    pub micro: bool,
    /// Memory that may be used.
    pub limits: &'a [MemoryLimit],
    /// What the ranks compute on, if not on the cores: each has one of its own.
    pub gpus: Option<OwnGpus>,
}

/// GPUs of which each rank has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnGpus {
    /// How many there are.
    pub count: usize,
    /// Bytes that each has for what is planned of a rank.
    pub free_bytes: u64,
}

/// The layout that was chosen, and why.
#[derive(Debug, Clone)]
pub struct Fastest {
    /// The configuration with its degrees, its micro-batch and what it computes again.
    pub config: Config,
    /// The machine that it was chosen for, if that was needed and is known.
    pub machine: Option<Machine>,
    reason: Reason,
}

#[derive(Debug, Clone)]
enum Reason {
    /// So many fit, and it takes so many seconds a step.
    Time { of: usize, step_s: f64 },
    /// Time is not planned; it has the fewest ranks.
    Ranks { of: usize, why: String },
    /// No other fits.
    Memory,
    /// None fits: it is that of the configuration, or the leanest where that one breaks a rule.
    Nothing { leanest: Option<MemoryPlan> },
}

impl Fastest {
    /// Chooses the degrees of a run, and where that is free the micro-batch. Where nothing fits, activations are
    /// computed again, no more of them than it takes ([`Recompute::ladder`]). The numbers of a step stay, but for the
    /// rounding of sums in another order.
    pub fn find(config: &Config, choices: Choices<'_>, machine: MachineSource<'_>) -> Self {
        let leaner = |recompute: Recompute| {
            let mut lean = config.clone();
            lean.train.recompute = recompute.within(config.model.layers);
            lean
        };
        let mut leanest = None;
        for config in iter::once(config.clone()).chain(Recompute::ladder().map(leaner)) {
            let mut all = candidates(&config, choices);
            all.retain(|one| is_enough(one, choices, &mut leanest));
            match all.len() {
                0 => {}
                1 => return Self::of(all.swap_remove(0), None, Reason::Memory),
                _ => return Self::timed(all, choices, machine),
            }
        }
        let (lean, leanest) = leanest.unzip();
        // Whether its own fits is for the run to say; where there can be none of its own, the leanest.
        let is_its_own = choices.ranks.is_none() && config.check().is_ok();
        let config = lean.filter(|_| !is_its_own).unwrap_or_else(|| config.clone());
        Self::of(config, None, Reason::Nothing { leanest })
    }

    fn of(config: Config, machine: Option<Machine>, reason: Reason) -> Self {
        Self { config, machine, reason }
    }

    /// The fastest by the plan for the machine.
    fn timed(mut all: Vec<Config>, choices: Choices<'_>, machine: MachineSource<'_>) -> Self {
        let of = all.len();
        let machine = match (machine.0)() {
            Ok(machine) => machine,
            Err(why) => return Self::of(all.swap_remove(0), None, Reason::Ranks { of, why }),
        };
        let mut unplanned = String::new();
        let mut best: Option<(f64, Config)> = None;
        for config in all {
            let step_s = step_s(&config, choices, &machine).unwrap_or_else(|why| {
                unplanned = why;
                f64::INFINITY
            });
            let is_better = best.as_ref().is_none_or(|(least, other)| {
                // Those with the fewest ranks come first.
                let worth = if config.world() > other.world() { 1.0 - WORTH } else { 1.0 };
                step_s < least * worth
            });
            if is_better {
                best = Some((step_s, config));
            }
        }
        let (step_s, config) = best.expect("invariant: there are candidates");
        let reason = match step_s.is_finite() {
            true => Reason::Time { of, step_s },
            false => Reason::Ranks { of, why: unplanned },
        };
        Self::of(config, Some(machine), reason)
    }
}

/// Seconds of a step, or why they are not planned.
fn step_s(config: &Config, choices: Choices<'_>, machine: &Machine) -> Result<f64, String> {
    let engine = config.engine(choices.cores).map_err(|error| error.to_string())?;
    let step = planned_step(&engine, machine).map_err(|error| error.to_string())?;
    step.map(|step| step.step)
}

impl Display for Fastest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (degrees, micro) = (self.config.degrees(), self.config.batch.micro);
        let again = match &self.config.train.recompute {
            Recompute::None => String::new(),
            Recompute::Blocks { every: 1 } => ", blocks computed again".into(),
            Recompute::Blocks { every } => format!(", one block in {every} computed again"),
            names @ Recompute::Tensors(_) => format!(", {names} computed again"),
        };
        write!(f, "{degrees}, micro-batches of {micro}{again}: ")?;
        match &self.reason {
            Reason::Time { of, step_s } => {
                let time = Time(*step_s);
                write!(f, "the fastest of {of} that fit this machine, planned {time} a step")
            }
            Reason::Ranks { of, why } => {
                write!(f, "the fewest ranks of {of} that fit this machine ({why})")
            }
            Reason::Memory => write!(f, "the only one that fits this machine"),
            Reason::Nothing { leanest: Some(leanest) } => {
                write!(f, "no layout fits this machine; the leanest {leanest}")
            }
            Reason::Nothing { leanest: None } => write!(f, "no layout has so many ranks"),
        }
    }
}

/// Every layout of so many ranks, or of as many as divide the cores, those with the fewest first.
fn candidates(config: &Config, choices: Choices<'_>) -> Vec<Config> {
    let ranks = match choices.ranks {
        Some(given) => vec![given],
        None => divisors(choices.gpus.map_or(choices.cores, |gpus| gpus.count)).collect(),
    };
    let degrees = ranks.into_iter().flat_map(splits);
    degrees.flat_map(|degrees| micro_batches(config, degrees, choices)).collect()
}

/// The run with these degrees and each micro-batch that may be chosen, as far as the rules allow.
fn micro_batches(config: &Config, degrees: Degrees, choices: Choices<'_>) -> Vec<Config> {
    let own = config.batch.micro;
    let each = config.batch.global / degrees.dp;
    let others = (1..=each.min(MICRO_MAX)).filter(|micro| choices.micro && *micro != own);
    let with = |micro: usize| {
        let mut config = config.clone();
        (config.layout.dp, config.layout.pp, config.layout.tp) =
            (degrees.dp, degrees.pp, degrees.tp);
        config.batch.micro = micro;
        let threads = config.engine(choices.cores).ok()?.threads;
        // Processes may be on several machines.
        let shares = config.world() == 1 || config.world() * threads <= choices.cores;
        (shares || choices.ranks.is_some() || choices.gpus.is_some()).then_some(config)
    };
    let divides = |micro: &usize| each.is_multiple_of(*micro);
    std::iter::once(own).chain(others).filter(divides).filter_map(with).collect()
}

/// Whether a layout fits; of those that do not, the one that needs least is kept.
fn is_enough(
    config: &Config,
    choices: Choices<'_>,
    leanest: &mut Option<(Config, MemoryPlan)>,
) -> bool {
    // Weights alone, first: to look at each rank of a model that is a thousand times too large takes a while.
    let weights = config.model.param_count() * config.train.precision.dtype().bytes() as u64;
    let limit = choices.gpus.map(|gpus| MemoryLimit {
        bytes: gpus.free_bytes,
        by: "free memory of each GPU".into(),
        own: true,
    });
    let mut plan = match &limit {
        Some(limit) => {
            let parts = (config.layout.tp * config.layout.pp) as u64;
            MemoryPlan::of_machine(1, weights / parts, true, std::slice::from_ref(limit))
        }
        None => MemoryPlan::of_machine(config.world() as u64, weights, true, choices.limits),
    };
    if plan.fits() {
        let engine = config.engine(choices.cores).ok();
        let Some(run) = engine.and_then(|engine| RunPlan::new(&engine).ok()) else { return false };
        plan = match limit {
            Some(limit) => MemoryPlan::of_fullest_device(&run, 0, limit),
            None => MemoryPlan::of_threads(&run, choices.limits),
        };
    }
    let fits = plan.fits();
    let needs = |config: &Config, plan: &MemoryPlan| {
        (plan.bytes, config.train.recompute == Recompute::None, config.batch.micro)
    };
    let least = leanest.as_ref().map(|(config, plan)| needs(config, plan));
    if !fits && least.is_none_or(|least| needs(config, &plan) < least) {
        *leanest = Some((config.clone(), plan));
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Setting, Typed};
    use trine_plan::{clusters, find_cluster};

    fn config(settings: &[&str]) -> Config {
        let settings = settings.iter().map(|text| Setting::set(text)).collect();
        Config::load(&Typed { settings, ..Typed::default() }).unwrap()
    }

    fn machine() -> Result<Machine, String> {
        let all = clusters(&[]).map_err(|error| error.to_string())?;
        let cluster = find_cluster(&all, "h100").map_err(|error| error.to_string())?.clone();
        Ok(Machine { cluster, source: "a test".into() })
    }

    fn choices(limits: &[MemoryLimit]) -> Choices<'_> {
        Choices { cores: 4, ranks: None, micro: true, limits, gpus: None }
    }

    fn limit(bytes: u64) -> [MemoryLimit; 1] {
        [MemoryLimit { bytes, by: "a test".into(), own: false }]
    }

    #[test]
    fn the_cores_are_shared_and_the_step_stays_the_same() {
        let base = config(&[]);
        let all = candidates(&base, choices(&[]));
        let mut worlds: Vec<usize> = all.iter().map(Config::world).collect();
        assert!(all.iter().all(|one| one.world() * one.engine(4).unwrap().threads == 4));
        assert!(all.iter().all(|one| one.tokens_per_step() == base.tokens_per_step()));
        assert!(worlds.is_sorted());
        worlds.dedup();
        assert_eq!(worlds, [1, 2, 4]);
        let found = Fastest::find(&base, choices(&[]), MachineSource(&machine));
        assert!(found.to_string().contains("the fastest of "), "{found}");
        assert!(found.machine.is_some() && found.config.check().is_ok());
        // What is given is kept.
        let kept = Choices { micro: false, ..choices(&[]) };
        assert!(candidates(&base, kept).iter().all(|one| one.batch.micro == 4));
        let threads = config(&["layout.threads_per_rank=2", "layout.dp=1", "layout.pp=1"]);
        assert!(candidates(&threads, choices(&[])).iter().all(|one| one.world() <= 2));
    }

    /// Ranks have a GPU each: as many as there are, however few cores, and what the fullest holds must fit one.
    #[test]
    fn gpus_are_shared_out_and_their_memory_is_that_of_one() {
        let base = config(&["batch.global=32"]);
        let on =
            |free_bytes| Choices { gpus: Some(OwnGpus { count: 8, free_bytes }), ..choices(&[]) };
        let worlds: Vec<usize> = candidates(&base, on(0)).iter().map(Config::world).collect();
        assert!(worlds.is_sorted() && worlds[0] == 1 && worlds.ends_with(&[8]), "{worlds:?}");
        let fullest = |config: &Config| {
            let run = RunPlan::new(&config.engine(4).unwrap()).unwrap();
            MemoryPlan::of_fullest(&run, 1, &[]).bytes
        };
        let alone =
            candidates(&base, on(0)).iter().filter(|one| one.world() == 1).map(fullest).min();
        // Less than any single rank takes: the model is split.
        let found = Fastest::find(&base, on(alone.unwrap() - 1), MachineSource(&machine));
        assert!(found.config.world() > 1, "{found}");
        assert!(fullest(&found.config) < alone.unwrap(), "{found}");
        let found = Fastest::find(&base, on(1000), MachineSource(&machine)).to_string();
        assert!(found.contains("may be used (free memory of each GPU)"), "{found}");
    }

    #[test]
    fn a_given_number_of_ranks_is_split() {
        let six = Choices { ranks: Some(6), ..choices(&[]) };
        let all = candidates(&config(&["batch.global=48"]), six);
        assert!(all.iter().all(|one| one.world() == 6) && all.len() > 3);
    }

    #[test]
    fn what_does_not_fit_is_not_chosen() {
        let base = config(&[]);
        let needs = |one: &Config| {
            let engine = one.engine(4).unwrap();
            MemoryPlan::of_threads(&RunPlan::new(&engine).unwrap(), &[]).bytes
        };
        let mut all: Vec<u64> = candidates(&base, choices(&[])).iter().map(needs).collect();
        all.sort_unstable();
        let some = limit(all[all.len() / 2]);
        let found = Fastest::find(&base, choices(&some), MachineSource(&machine));
        let engine = found.config.engine(4).unwrap();
        assert!(MemoryPlan::of_threads(&RunPlan::new(&engine).unwrap(), &some).fits(), "{found}");
        // Less than any needs as it is: something is computed again, and no more than it takes.
        let recompute = |config: &Config, choices: Choices<'_>| {
            Fastest::find(config, choices, MachineSource(&machine)).config.train.recompute
        };
        let elementwise = Recompute::tensors(Recompute::ELEMENTWISE);
        assert_eq!(recompute(&base, choices(&limit(all[0] - 1))), elementwise);
        let deep = |again: &Recompute| {
            let again = format!("train.recompute={again}");
            config(&["model.layers=24", "batch.micro=8", &again])
        };
        for again in [Recompute::Blocks { every: 2 }, Recompute::FULL] {
            let four = |limits| Choices { ranks: Some(4), micro: false, ..choices(limits) };
            let least = candidates(&deep(&again), four(&[])).iter().map(needs).min().unwrap();
            assert_eq!(recompute(&deep(&Recompute::None), four(&limit(least))), again);
        }
        let none = limit(1000);
        let found = Fastest::find(&base, choices(&none), MachineSource(&machine));
        assert_eq!(found.config, base);
        let two = Choices { ranks: Some(2), ..choices(&none) };
        let lean = Fastest::find(&base, two, MachineSource(&machine)).config;
        assert!(
            lean.world() == 2 && lean.train.recompute != Recompute::None && lean.batch.micro == 1
        );
        assert!(
            found.to_string().contains("no layout fits this machine; the leanest needs"),
            "{found}"
        );
    }

    #[test]
    fn without_a_machine_the_fewest_ranks_are_chosen() {
        let unknown = || Err("nobody knows it".to_owned());
        let found = Fastest::find(&config(&[]), choices(&[]), MachineSource(&unknown));
        assert_eq!((found.config.world(), found.config.batch.micro), (1, 4));
        assert!(found.to_string().contains("the fewest ranks of "), "{found}");
        let exact = config(&["train.numerics=reference", "train.precision=f32"]);
        let found = Fastest::find(&exact, choices(&[]), MachineSource(&machine));
        assert_eq!(found.config.world(), 1);
        assert!(found.to_string().contains("no times for reference numerics"), "{found}");
    }
}
