//! The nearest configuration that fits the memory, where one does not.

use crate::config::Config;
use crate::plan::RunPlan;
use crate::splits::{divisors, splits};
use std::iter;
use trine_mesh::Degrees;
use trine_spec::Recompute;

/// Plans that are made at most: those of a large model take a while.
const PLANS_MAX: usize = 200;

/// Looks for the cheapest change with which a configuration fits, for ranks that share `cores` cores; `worlds` are the
/// numbers of ranks that there may be. In order: with the same degrees, then with others, the fewer of them change the
/// sooner; each with less of everything, as far as it must be: optimizer state that replicas share, smaller
/// micro-batches, more that is computed again. None of these changes what is learned, but for the rounding of sums in
/// another order.
pub(crate) fn nearest_fit(
    config: &Config,
    cores: usize,
    worlds: impl Iterator<Item = usize>,
    fits: impl Fn(&RunPlan) -> bool,
) -> Option<String> {
    let mut left = PLANS_MAX;
    let mut fits = |other: &Config| {
        let engine = other.engine(cores).ok().filter(|_| left > 0)?;
        left -= 1;
        Some(fits(&RunPlan::new(&engine).ok()?))
    };
    let own = config.degrees();
    let mut all: Vec<Degrees> = worlds.flat_map(splits).filter(|other| *other != own).collect();
    all.sort_by_key(|other| {
        let pairs = [(own.dp, other.dp), (own.pp, other.pp), (own.tp, other.tp)];
        let changed = pairs.iter().filter(|(own, other)| own != other).count();
        (other.world() != own.world(), changed, other.world())
    });
    iter::once(own).chain(all).find_map(|degrees| {
        let mut base = config.clone();
        (base.layout.dp, base.layout.pp, base.layout.tp) = (degrees.dp, degrees.pp, degrees.tp);
        let ways = ways(&base);
        // Where the leanest does not fit, none of the others does.
        let leanest = ways.iter().rev().find_map(&mut fits)?;
        let found = if leanest { ways.iter().find(|way| fits(way) == Some(true)) } else { None };
        found.map(|found| changes(config, found))
    })
}

/// What a configuration can have less of, the cheapest first, the leanest last.
fn ways(base: &Config) -> Vec<Config> {
    let again = iter::once(base.train.recompute.clone())
        .chain(Recompute::ladder().map(|again| again.within(base.model.layers)));
    let micro: Vec<usize> = divisors(base.batch.micro).collect();
    let zero = if base.train.zero == 0 && base.layout.dp > 1 { &[0, 1][..] } else { &[0][..] };
    let mut all = Vec::new();
    for again in again {
        for micro in micro.iter().rev() {
            for more in zero {
                let mut way = base.clone();
                way.train.recompute = again.clone();
                way.batch.micro = *micro;
                way.train.zero = base.train.zero.max(*more);
                all.push(way);
            }
        }
    }
    all
}

/// What of a configuration is another value in the other one, as it is typed.
fn changes(config: &Config, other: &Config) -> String {
    let (own, new) = (&config.layout, &other.layout);
    let numbers = [
        ("layout.dp", own.dp, new.dp),
        ("layout.pp", own.pp, new.pp),
        ("layout.tp", own.tp, new.tp),
        ("train.zero", config.train.zero, other.train.zero),
        ("batch.micro", config.batch.micro, other.batch.micro),
    ];
    let numbers = numbers.into_iter().filter(|(_, own, new)| own != new);
    let mut all: Vec<String> = numbers.map(|(key, _, new)| format!("{key} = {new}")).collect();
    let again = &other.train.recompute;
    if *again != config.train.recompute {
        all.push(format!("train.recompute = {again}"));
    }
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Setting, Typed};
    use crate::memory::MemoryPlan;

    fn config(settings: &[&str]) -> Config {
        let settings = settings.iter().map(|text| Setting::set(text)).collect();
        Config::load(&Typed { settings, ..Typed::default() }).unwrap()
    }

    /// Bytes of the fullest rank.
    fn fullest(plan: &RunPlan) -> u64 {
        MemoryPlan::of_fullest(plan, 1, &[]).bytes
    }

    fn needs(config: &Config) -> u64 {
        fullest(&RunPlan::new(&config.engine(4).unwrap()).unwrap())
    }

    fn nearest(config: &Config, ranks_max: usize, bytes: u64) -> Option<String> {
        nearest_fit(config, 4, 1..=ranks_max, |plan| fullest(plan) <= bytes)
    }

    #[test]
    fn the_cheapest_change_that_is_enough_is_named() {
        let serial = ["layout.dp=1", "layout.pp=1", "layout.tp=1", "batch.micro=4"];
        let base = config(&serial);
        let with = |more: &[&str]| needs(&config(&[&serial[..], more].concat()));
        let changes = |bytes| nearest(&base, 1, bytes).unwrap();
        assert!(with(&["batch.micro=2"]) < needs(&base));
        assert_eq!(changes(with(&["batch.micro=2"])), "batch.micro = 2");
        let leanest = with(&["batch.micro=1", "train.recompute=true"]);
        assert_eq!(changes(leanest), "batch.micro = 1, train.recompute = true");
        // What no rank alone fits needs several.
        assert_eq!(nearest(&base, 1, leanest - 1), None);
        let several = nearest(&base, 2, leanest - 1).unwrap();
        assert!(several.starts_with("layout."), "{several}");
        assert_eq!(nearest(&base, 4, 1000), None);
    }

    #[test]
    fn replicas_share_their_state_before_anything_is_computed_again() {
        let two = ["layout.dp=2", "layout.pp=1", "layout.tp=1", "batch.micro=1"];
        let base = config(&[&two[..], &["train.zero=0"]].concat());
        let shared = needs(&config(&[&two[..], &["train.zero=1"]].concat()));
        assert_eq!(nearest(&base, 2, shared).unwrap(), "train.zero = 1");
    }
}
