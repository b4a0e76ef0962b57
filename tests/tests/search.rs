//! The search for a layout that is not the serial run, and the search for what it overlooks.

use std::collections::BTreeSet;
use std::sync::Arc;
use trine_comm::Communicator;
use trine_comm::wrap::{Action, Tap};
use trine_kernels::{CpuOps, Ops, Team};
use trine_spec::{Family, ModelSpec};
use trine_tests::Mutation;
use trine_tests::compare::Check;
use trine_tests::search::{Case, Promise, Space, table};
use trine_trainer::RunPlan;

/// The seed of the cases of `cargo test`; `cargo xtask parity` tries others.
const SEED: u64 = 1;

#[test]
fn drawn_cases_agree_with_the_serial_run() {
    let space = Space::default();
    let report = space.search(SEED, 40, &Mutation::NONE, &mut |_, _, _| {});
    assert_eq!(report.failures, []);
    assert_eq!((report.compared, space.never_drawn(&report)), (40, vec![]));
    assert!(report.refused.len() > 10, "{:?}", report.refused);
}

#[test]
fn cases_are_a_function_of_the_seed_and_can_be_written() {
    let space = Space::default();
    let cases = |seed| space.cases(seed).take(4).map(|drawn| drawn.case).collect::<Vec<_>>();
    assert_eq!(cases(3), cases(3));
    assert_ne!(cases(3), cases(4));
    for case in cases(3) {
        assert!(case.names().len() > 10, "{case}");
        assert_eq!(case.to_string().parse::<Case>().unwrap(), case);
        space.setup(&case).unwrap().plan().unwrap();
    }
    let wrong = |text: &str| space.setup(&text.parse().unwrap()).unwrap_err();
    assert!(wrong(r#"{"tensor": 2}"#).contains("no option is called \"tensor\"; there are family"));
    assert!(wrong(r#"{"tp": "two"}"#).contains("tp = \"two\": invalid type"));
}

/// Drops the operations of a group with a label, in front of every rank.
fn without(
    group: &'static str,
    label: &'static str,
) -> impl Fn(Arc<dyn Communicator>) -> Arc<dyn Communicator> {
    move |comm| {
        Tap::around(comm, move |of, request| {
            let meant = of.name() == group && request.name.label() == label;
            if meant { Action::Skip } else { Action::Forward }
        })
    }
}

/// What the first case of some draws that a mutant fails is made smaller to, and what that fails.
fn found(space: &Space, name: &str, mutation: &Mutation<'_>, draws: usize) -> (String, Vec<Check>) {
    let fails = |case: &Case| !space.compare(case, mutation).is_empty();
    let mut cases = space.cases(SEED).take(draws).map(|drawn| drawn.case);
    let found = cases.find(fails).unwrap_or_else(|| panic!("{name}: not in {draws} draws"));
    assert!(found.names().len() > 10, "{found}");
    let shrunk = space.shrink(&found, &fails);
    let checks = space.compare(&shrunk, mutation).into_iter().map(|finding| finding.check);
    (shrunk.to_string(), checks.collect())
}

#[test]
fn a_mutant_is_found_and_its_case_shrinks_to_the_options_that_matter() {
    let space = Space::default();
    for (group, label, draws, smallest) in [
        ("dp", "gradient", 10, r#"{"dp":2}"#),
        ("tied", "tied gradient", 20, r#"{"pp":2,"tied":true}"#),
        ("tp", "norm1", 20, r#"{"sequence_parallel":true,"tp":2}"#),
    ] {
        let wrap = without(group, label);
        let mutation = Mutation { wrap: &wrap, ..Mutation::NONE };
        assert_eq!(found(&space, group, &mutation, draws), (smallest.to_owned(), vec![Check::Run]));
    }
}

/// Ranks that update all parameters alike.
#[test]
fn a_mutant_of_groups_is_found() {
    let space = Space::default();
    let groups = |plan: &mut RunPlan| plan.config.groups.clear();
    let smallest = r#"{"groups":[{"decay":0.0,"lr":0.5,"pattern":"block.*"}]}"#;
    let mutation = Mutation { edit: &groups, ..Mutation::NONE };
    let after = vec![Check::LossAfter];
    assert_eq!(found(&space, "groups", &mutation, 10), (smallest.to_owned(), after));
}

/// The bound of bf16 hides no part that matters, also where ranks have unequal heads.
#[test]
fn a_twentieth_of_a_gradient_is_noticed_in_bf16() {
    let space = Space::default();
    let wrap = |comm: Arc<dyn Communicator>| {
        Tap::around(comm, |of, request| {
            if of.name() == "dp" && request.name.label() == "gradient" {
                let ops = CpuOps::new(Team::new(1));
                let sum = request.send.as_mut().unwrap().slice_mut();
                ops.scale(sum, 0.95).unwrap();
            }
            Action::Forward
        })
    };
    let mutation = Mutation { wrap: &wrap, ..Mutation::NONE };
    for case in [
        r#"{"compute":"bf16","dp":2}"#,
        r#"{"compute":"bf16","dp":2,"tp":2}"#,
        r#"{"compute":"bf16","dp":2,"tp":2,"heads_left":1,"ffn":65}"#,
    ] {
        let case: Case = case.parse().unwrap();
        assert_eq!(space.compare(&case, &Mutation::NONE), [], "{case}");
        let found = space.compare(&case, &mutation);
        assert_eq!(found.first().map(|finding| finding.check), Some(Check::Gradients), "{case}");
    }
}

#[test]
fn every_trait_of_a_model_is_an_option() {
    let options: BTreeSet<&str> = Space::default().rows.iter().map(|row| row.name).collect();
    let traits = ModelSpec::smallest(Family::Llama).traits();
    assert!(traits.len() > 15);
    for (name, _) in traits {
        assert!(options.contains(name), "{name}");
    }
}

/// What has the bits of the same layout without it in fast numerics has them alone, and all of it together.
#[test]
fn options_that_promise_bits_keep_them_in_fast_numerics() {
    let space = Space::default();
    let base: Case = r#"{"tp":2,"pp":2,"dp":2,"tied":true,"vocab":1009}"#.parse().unwrap();
    let exact = space.gradients(&base).unwrap();
    let mut compared = 0;
    for row in space.rows.iter().filter(|row| row.promise == Promise::Bits) {
        for value in &row.values[1..] {
            let case = base.with(row, value);
            assert!(space.gradients(&case).unwrap() == exact, "{case}");
            compared += 1;
        }
    }
    assert_eq!(compared, 13);
}

#[test]
fn the_document_has_the_table_of_options() {
    let document = include_str!("../../docs/numerics.md");
    let wanted = table::promised(&Space::default());
    assert!(document.contains(&wanted), "`cargo xtask parity --table` prints:\n{wanted}");
}
