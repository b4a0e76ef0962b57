//! Each mutant is noticed by the checks that it names.

use super::*;

/// Mutants of what ranks do for one another.
fn all() -> Vec<Mutant> {
    let mut mutants = parallel::in_tensor_parallelism();
    mutants.extend(parallel::in_the_pipeline());
    mutants.extend(parallel::in_data_parallelism());
    mutants.extend(parallel::in_the_placement());
    mutants.extend(parallel::in_unequal_shares());
    mutants.extend(parallel::in_the_schedule());
    mutants
}

/// The serial run and the bound that layouts keep, for the configurations met so far.
#[derive(Default)]
struct Exact(HashMap<String, (Outcome, f64)>);

impl Exact {
    /// The serial run beside a mutant, once the layout itself has passed the comparison.
    fn of(&mut self, Mutant { config, packed, .. }: &Mutant) -> &(Outcome, f64) {
        self.0.entry(format!("{packed} {config:?}")).or_insert_with(|| {
            let serial = EngineConfig {
                degrees: Degrees::SERIAL,
                schedule: ScheduleKind::GPipe.into(),
                virtual_stages: 1,
                sequence_parallel: false,
                zero: ZeroStage::Zero0,
                recompute: false.into(),
                ..config.clone()
            };
            let (compute, bound) = beside(config.compute, &config.model, config.degrees.tp);
            let serial = EngineConfig { compute, ..serial };
            let exact = step(&serial, *packed, &Mutation::NONE).unwrap();
            let healthy = findings(&step(config, *packed, &Mutation::NONE), &exact, bound);
            assert!(healthy.is_empty(), "{healthy:?}");
            (exact, bound)
        })
    }
}

/// A step over sequences of one document or of several.
fn step(config: &EngineConfig, packed: bool, mutation: &Mutation<'_>) -> Result<Outcome, String> {
    let plan = RunPlan::new(config).map_err(|error| error.to_string())?;
    let samples = |dp_index| match packed {
        true => packed::batch(config, dp_index).unwrap(),
        false => batch(config, dp_index),
    };
    step_on(plan, &zoo, &samples, mutation)
}

/// The checks that a mutant fails, with or without the comparison of copies on several ranks.
fn run(mutant: &Mutant, copies_agree: bool, (exact, bound): &(Outcome, f64)) -> Vec<Finding> {
    let none = Mutation { copies_agree, ..Mutation::NONE };
    let Mutant { config, packed, .. } = mutant;
    let got = match &mutant.injection {
        Injection::Operation(meddle) => {
            let wrap = |comm: Arc<dyn Communicator>| {
                let meddle = meddle.clone();
                Tap::around(comm, move |group, request| meddle(group, request))
            };
            step(config, *packed, &Mutation { wrap: &wrap, ..none })
        }
        Injection::Plan(edit) => step(config, *packed, &Mutation { edit: &**edit, ..none }),
        Injection::Samples(samples) => {
            step(config, *packed, &Mutation { samples: &**samples, ..none })
        }
    };
    findings(&got, exact, *bound)
}

/// Mutants of which ranks that compare their copies say so first: their numbers are wrong by themselves.
#[test]
fn mutants_that_copies_betray_have_wrong_numbers_too() {
    let (mut by_numbers, mut exact) = (Vec::new(), Exact::default());
    let betrayed = |mutant: &Mutant| {
        mutant.noticed == [Run]
            && ["replicas of", "ranks disagree"].iter().any(|s| mutant.says.contains(s))
    };
    for mutant in all().into_iter().filter(betrayed) {
        let found = run(&mutant, false, exact.of(&mutant));
        let checks: Vec<Check> = found.iter().map(|finding| finding.check).collect();
        println!("{}: {checks:?} {:?}", mutant.name, found.first());
        if !checks.is_empty() && !checks.contains(&Run) {
            by_numbers.push(mutant.name);
        }
    }
    assert_eq!(by_numbers.len(), 12, "{by_numbers:?}");
}

#[test]
fn every_mutant_is_noticed() {
    let (mut noticed, mut exact) = (0, Exact::default());
    for mutant in all() {
        let found = run(&mutant, true, exact.of(&mutant));
        let checks: Vec<Check> = found.iter().map(|finding| finding.check).collect();
        assert_eq!(checks, mutant.noticed, "{}: {found:?}", mutant.name);
        let first = found.first().expect("a mutant has survived");
        assert!(first.message.contains(mutant.says), "{}: {first}", mutant.name);
        noticed += 1;
    }
    assert_eq!(noticed, 29);
}

/// Each exceeds the bound in a number: the run itself ends well.
#[test]
fn every_mutant_in_bf16_exceeds_the_bound() {
    let (mut noticed, mut exact) = (0, Exact::default());
    for mutant in bf16::in_bf16().into_iter().chain(bf16::in_bf16_between_tensor_ranks()) {
        let found = run(&mutant, true, exact.of(&mutant));
        let checks: Vec<Check> = found.iter().map(|finding| finding.check).collect();
        let all = mutant.noticed.iter().all(|check| checks.contains(check));
        assert!(all && !checks.contains(&Run), "{}: {found:?}", mutant.name);
        assert!(found[0].message.contains(mutant.says), "{}: {}", mutant.name, found[0]);
        noticed += 1;
    }
    assert_eq!(noticed, 8);
}

/// Traits, updates and other orders of work: each is wrong in a number.
#[test]
fn every_mutant_of_traits_updates_and_orders_is_noticed() {
    let (mut noticed, mut exact) = (0, Exact::default());
    let traits = traits::in_attention().into_iter().chain(traits::in_other_traits());
    let rest = traits::in_updates_and_masks().into_iter().chain(traits::in_other_orders());
    for mutant in traits.chain(rest).chain(data::in_the_documents()).chain(data::in_the_data()) {
        let found = run(&mutant, false, exact.of(&mutant));
        let checks: Vec<Check> = found.iter().map(|finding| finding.check).collect();
        println!("{}: {checks:?} {:?}", mutant.name, found.first());
        let all = mutant.noticed.iter().all(|check| checks.contains(check));
        assert!(all && !checks.contains(&Run), "{}: {found:?}", mutant.name);
        let first = found.first().expect("a mutant has survived");
        assert!(first.message.contains(mutant.says), "{}: {first}", mutant.name);
        noticed += 1;
    }
    assert_eq!(noticed, 25);
}

#[test]
fn data_parallel_ranks_have_unequal_numbers_of_valid_tokens() {
    for dp in [2, 4] {
        let degrees = Degrees { dp, ..Degrees::SERIAL };
        let config = EngineConfig { degrees, ..serial(toy::gpt()) };
        let tokens: Vec<u64> = (0..dp).map(|rank| batch(&config, rank).valid_tokens()).collect();
        assert!(tokens.iter().any(|count| *count != tokens[0]), "{tokens:?}");
    }
}
