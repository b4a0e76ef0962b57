//! Memory that a run is planned to take, held against what it may use.

use crate::TrainError;
use crate::config::Config;
use crate::plan::RunPlan;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use trine_mesh::plural;

/// How much memory may be taken, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes that are left.
    pub bytes: u64,
    /// Who sets the limit, such as `cgroup`.
    pub by: String,
    /// Whether it is this process's own. The others hold for all processes of the machine together.
    pub own: bool,
}

/// What ranks are planned to take, and the limit that leaves least beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// How many ranks are meant.
    pub ranks: u64,
    /// Bytes that they hold at most: weights, gradients, optimizer state, buffers, activations.
    pub bytes: u64,
    /// Whether more comes on top: reference numerics have no plan of activations.
    pub is_least: bool,
    /// `None` where the system does not tell.
    pub limit: Option<MemoryLimit>,
}

/// How many ranks there are at each (pipeline, tensor) coordinate.
type Holders = BTreeMap<(usize, usize), u64>;

impl MemoryPlan {
    /// The plan of ranks that are threads of one process.
    pub fn of_threads(plan: &RunPlan, limits: &[MemoryLimit]) -> Self {
        let replicas = plan.config.degrees.dp as u64;
        let all = Self::planned(plan, &places(plan).map(|place| (place, replicas)).collect());
        Self::of_machine(all.ranks, all.bytes, all.is_least, limits)
    }

    /// The plan of ranks that are known to take so many bytes, all in one process.
    pub fn of_machine(ranks: u64, bytes: u64, is_least: bool, limits: &[MemoryLimit]) -> Self {
        let all = Self { ranks, bytes, is_least, limit: None };
        all.clone().tightest(&all, limits)
    }

    /// The plan of this process's ranks, `own`, and of those of all processes of its machine, `here`: the one whose
    /// limit is tighter.
    pub(crate) fn of_processes(
        plan: &RunPlan,
        own: &[usize],
        here: &[usize],
        limits: &[MemoryLimit],
    ) -> Self {
        let holders = |ranks: &[usize]| {
            let mut all = Holders::new();
            for at in ranks.iter().map(|rank| plan.mesh.coordinate(*rank)) {
                *all.entry((at.pp, at.tp)).or_default() += 1;
            }
            all
        };
        let own = Self::planned(plan, &holders(own));
        Self::planned(plan, &holders(here)).tightest(&own, limits)
    }

    /// The plan of so many ranks in one process of their own each, all like the fullest.
    pub(crate) fn of_fullest(plan: &RunPlan, count: u64, limits: &[MemoryLimit]) -> Self {
        let one = |place: (usize, usize)| Self::planned(plan, &Holders::from([(place, 1)]));
        let fullest = places(plan).map(one).max_by_key(|one| one.bytes);
        let own = fullest.expect("invariant: a plan has ranks");
        let here = Self { ranks: count, bytes: own.bytes.saturating_mul(count), ..own.clone() };
        here.tightest(&own, limits)
    }

    /// The plan of a rank alone on a device, which is the fullest one; as [`MemoryPlan::of_device`].
    pub(crate) fn of_fullest_device(plan: &RunPlan, beside_bytes: u64, limit: MemoryLimit) -> Self {
        Self::of_fullest(plan, 1, &[limit]).on_device(plan, beside_bytes)
    }

    /// The plan of ranks that compute on one device, with what its kernels take of it for each, and `beside_bytes`.
    pub(crate) fn of_device(
        plan: &RunPlan,
        ranks: &[usize],
        beside_bytes: u64,
        limit: MemoryLimit,
    ) -> Self {
        Self::of_processes(plan, ranks, ranks, &[limit]).on_device(plan, beside_bytes)
    }

    fn on_device(self, plan: &RunPlan, beside_bytes: u64) -> Self {
        let each = attention_scratch(plan).saturating_add(beside_bytes);
        Self { bytes: self.bytes.saturating_add(each.saturating_mul(self.ranks)), ..self }
    }

    /// Held against what may be used, before anything of it is allocated. `nearest` looks for a change with which it
    /// fits.
    ///
    /// # Errors
    /// [`TrainError::Memory`] if it does not fit and the configuration does not say to go on.
    pub(crate) fn checked(
        self,
        config: &Config,
        nearest: impl FnOnce() -> Option<String>,
    ) -> Result<Self, TrainError> {
        if self.fits() || !config.train.memory_check {
            return Ok(self);
        }
        Err(TrainError::Memory { memory: self, nearest: nearest() })
    }

    fn planned(plan: &RunPlan, holders: &Holders) -> Self {
        let mut sum = Self { ranks: 0, bytes: 0, is_least: false, limit: None };
        for (&(pp, tp), &count) in holders {
            let memory = plan.memory(pp, tp);
            sum.ranks += count;
            sum.bytes = sum.bytes.saturating_add(memory.planned_bytes().saturating_mul(count));
            sum.is_least |= memory.activations.is_none();
        }
        sum
    }

    /// With the limit that leaves least: of the machine beside this, of the process beside `own`.
    fn tightest(self, own: &Self, limits: &[MemoryLimit]) -> Self {
        let plan = |limit: &MemoryLimit| {
            let plan = if limit.own { own } else { &self };
            Self { limit: Some(limit.clone()), ..plan.clone() }
        };
        limits.iter().map(plan).min_by_key(Self::left).unwrap_or(self)
    }

    /// Bytes that the limit leaves; below zero where it does not fit.
    pub(crate) fn left(&self) -> i128 {
        let allowed = self.limit.as_ref().map_or(0, |limit| limit.bytes);
        i128::from(allowed) - i128::from(self.bytes)
    }

    /// Whether it may be used, as far as is known.
    pub fn fits(&self) -> bool {
        self.limit.as_ref().is_none_or(|limit| self.bytes <= limit.bytes)
    }
}

impl Display for MemoryPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let least = if self.is_least { "at least " } else { "" };
        let (bytes, ranks) = (gigabytes(self.bytes), self.ranks);
        write!(f, "needs {least}{bytes} of memory for {ranks} {}, ", plural(ranks, "rank"))?;
        match &self.limit {
            Some(limit) => write!(f, "{} may be used ({})", gigabytes(limit.bytes), limit.by),
            None => write!(f, "this system does not tell how much may be used"),
        }
    }
}

/// Every (pipeline, tensor) coordinate.
fn places(plan: &RunPlan) -> impl Iterator<Item = (usize, usize)> {
    let degrees = plan.config.degrees;
    (0..degrees.pp).flat_map(move |pp| (0..degrees.tp).map(move |tp| (pp, tp)))
}

/// Bytes that attention's backward pass takes on a device where heads share keys: what each head gives to the gradients
/// of keys and values, in f32, until it is summed. Of the rank with most heads.
fn attention_scratch(plan: &RunPlan) -> u64 {
    let (model, config) = (&plan.config.model, &plan.config);
    if model.heads == model.kv_heads {
        return 0;
    }
    let heads = model.heads.div_ceil(config.degrees.tp);
    let elements = 2 * config.micro_batch * config.seq * heads * model.head_dim;
    (elements * size_of::<f32>()) as u64
}

/// Bytes as memory is sold: `2.4 GB`, `61.3 MB`.
fn gigabytes(bytes: u64) -> String {
    match bytes as f64 / 1e9 {
        large if large >= 0.1 => format!("{large:.1} GB"),
        small => format!("{:.1} MB", 1e3 * small),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Setting, Typed};

    fn run(settings: &[&str]) -> RunPlan {
        let settings = settings.iter().map(|text| Setting::set(text)).collect();
        let config = Config::load(&Typed { settings, ..Typed::default() }).unwrap();
        RunPlan::new(&config.engine(2).unwrap()).unwrap()
    }

    fn limit(bytes: u64, by: &str, own: bool) -> MemoryLimit {
        MemoryLimit { bytes, by: by.into(), own }
    }

    #[test]
    fn ranks_of_a_process_and_of_a_machine_add_up() {
        let run = run(&["layout.dp=2", "layout.tp=2", "layout.pp=2"]);
        let all = MemoryPlan::of_threads(&run, &[]);
        assert_eq!((all.ranks, all.is_least, all.fits()), (8, false, true));
        let each: Vec<MemoryPlan> =
            (0..8).map(|rank| MemoryPlan::of_processes(&run, &[rank], &[rank], &[])).collect();
        assert_eq!(each.iter().map(|plan| plan.bytes).sum::<u64>(), all.bytes);
        assert!(each.iter().all(|plan| plan.ranks == 1 && plan.bytes > 1_000_000));
    }

    #[test]
    fn the_limit_that_leaves_least_is_held_against_whom_it_is_for() {
        let run = run(&["layout.dp=2", "layout.tp=1", "layout.pp=1"]);
        let one = MemoryPlan::of_processes(&run, &[0], &[0], &[]).bytes;
        let of = |limits: &[MemoryLimit]| MemoryPlan::of_processes(&run, &[0], &[0, 1], limits);
        let (cgroup, own) = (limit(3 * one, "cgroup", false), limit(one, "ulimit -v", true));
        let plan = of(&[cgroup.clone(), own.clone()]);
        assert_eq!((plan.ranks, plan.limit.clone(), plan.fits()), (1, Some(own), true));
        let plan = of(&[limit(2 * one - 1, "cgroup", false), limit(2 * one, "ulimit -v", true)]);
        assert_eq!((plan.ranks, plan.fits()), (2, false));
        assert_eq!(of(&[cgroup]).bytes, 2 * one);
    }

    #[test]
    fn a_plan_says_what_is_needed_and_what_there_is() {
        let (ranks, limit) = (2, Some(limit(600_000_000, "cgroup", false)));
        let plan = MemoryPlan { ranks, bytes: 2_400_000_000, is_least: false, limit };
        let text = "needs 2.4 GB of memory for 2 ranks, 0.6 GB may be used (cgroup)";
        assert_eq!(plan.to_string(), text);
        let reference = run(&["train.numerics=reference", "train.precision=f32"]);
        let plan = MemoryPlan::of_threads(&reference, &[]);
        assert!(plan.to_string().starts_with("needs at least "), "{plan}");
    }
}
