//! One thing goes wrong in a run: it ends with the numbers of an undisturbed one, or stops with a
//! diagnosis of what happened and can be gone on with to these numbers. It never hangs, and never
//! differs in silence.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers outside #[test] included"
)]
#![expect(clippy::print_stdout, reason = "the table of faults and outcomes is to be seen")]

use std::collections::BTreeMap;
use trine_comm::wrap::Fault;
use trine_tests::faults::{Bench, Ended, What};

/// Whether a run that was struck ended as it must for its kind of fault, and says what happened.
fn check(seed: u64, ended: &Ended) {
    let Ended { what, struck, diagnosis } = ended;
    let at = format!("seed {seed}, {what:?}, struck {struck:?}");
    let Some(diagnosis) = diagnosis else {
        // Harmless, or later than the last operation that it suits.
        let is_harmless = match what {
            What::Operation(injection) => {
                matches!(injection.fault, Fault::Delay(_) | Fault::Reorder)
            }
            What::Disk { .. } => false,
        };
        assert!(is_harmless || struck.is_none(), "{at}: unnoticed");
        return;
    };
    let text = diagnosis.to_string();
    let says = |part: &str| assert!(text.contains(part), "{at}: {part} not in {text}");
    match what {
        What::Disk { .. } => {
            assert_eq!(diagnosis.rank, 0, "{at}: {text}");
            says("injected");
            says("in saving");
        }
        What::Operation(injection) => {
            let struck = struck.as_ref().unwrap();
            let rank = format!("rank {}", injection.rank);
            says(&rank);
            match injection.fault {
                Fault::Delay(_) | Fault::Reorder => panic!("{at}: {text}"),
                Fault::Corrupt { .. } => {
                    assert_eq!(diagnosis.rank, injection.rank, "{at}: {text}");
                    says("altered on the way");
                    says(&struck.name.to_string());
                }
                Fault::KillBefore | Fault::KillAfter => {
                    assert_eq!(diagnosis.rank, injection.rank, "{at}: {text}");
                    says("was killed");
                    says(&struck.name.to_string());
                    says(&struck.place.to_string());
                }
                // Others notice it, at the latest when somebody has finished.
                Fault::Drop | Fault::Duplicate => says("#"),
            }
        }
    }
    // Where everybody was: no rank is left out.
    assert!(diagnosis.beats.iter().all(|beat| !beat.place.is_empty()), "{at}: {text}");
}

/// How the runs of one kind of fault ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Row {
    /// As if nothing had happened.
    equal: u64,
    /// Stopped with the right diagnosis, gone on with, equal then.
    resumed: u64,
    hung: u64,
    /// Other numbers, or no way to go on.
    broken: u64,
}

type Table = BTreeMap<&'static str, Row>;

/// Runs the seeds, shows the table of faults and outcomes, and fails if a run hung or broke.
fn run(seeds: std::ops::Range<u64>) -> Table {
    let bench = Bench::new().unwrap();
    let (mut table, mut failures) = (Table::new(), Vec::new());
    for seed in seeds {
        let row = table.entry(bench.of_seed(seed).1.label()).or_default();
        match bench.disturb(seed) {
            Ok(ended) => {
                check(seed, &ended);
                row.equal += u64::from(ended.diagnosis.is_none());
                row.resumed += u64::from(ended.diagnosis.is_some());
            }
            Err(failure) => {
                row.hung += u64::from(failure.contains("it hangs"));
                row.broken += u64::from(!failure.contains("it hangs"));
                failures.push(failure);
            }
        }
    }
    print(&table);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    table
}

fn print(table: &Table) {
    println!("fault        bit-equal  diagnosed, then resumed bit-equal  hung  differed");
    for (kind, Row { equal, resumed, hung, broken }) in table {
        println!("{kind:<12} {equal:>9} {resumed:>34} {hung:>5} {broken:>9}");
    }
}

fn total(table: &Table) -> u64 {
    table.values().map(|row| row.equal + row.resumed).sum()
}

#[test]
fn twenty_seeds() {
    let table = run(0..20);
    assert_eq!((table.len(), total(&table)), (8, 20));
    let noticed = |kind| table[kind].resumed;
    assert!(noticed("corrupt") > 0 && noticed("kill after") > 0, "{table:?}");
}

#[test]
#[ignore = "minutes; a step of `cargo xtask ci --full` runs it and shows the table"]
fn two_hundred_seeds() {
    let table = run(0..200);
    assert_eq!((table.len(), total(&table)), (8, 200));
}

#[test]
fn a_run_that_loses_a_rank_goes_on_with_fewer_replicas() {
    let diagnosis = Bench::new().unwrap().shrink().unwrap();
    assert_eq!(diagnosis.rank, 3);
    assert!(diagnosis.to_string().contains("was killed before it"), "{diagnosis}");
}

#[test]
fn a_run_that_loses_a_rank_while_it_measures_can_be_begun_again() {
    let diagnosis = Bench::new().unwrap().lose_while_measuring().unwrap();
    assert_eq!(diagnosis.rank, 2);
    let text = diagnosis.to_string();
    assert!(text.contains("was killed before it") && text.contains("measuring times"), "{text}");
}

#[test]
fn the_same_seed_is_the_same_failure() {
    let bench = Bench::new().unwrap();
    let mut compared = 0;
    // One of each kind.
    for seed in 0..8 {
        let (one, two) = (bench.disturb(seed).unwrap(), bench.disturb(seed).unwrap());
        assert_eq!((one.what, &one.struck), (two.what, &two.struck), "seed {seed}");
        assert_eq!(one.diagnosis.is_some(), two.diagnosis.is_some(), "seed {seed}");
        compared += 1;
    }
    assert_eq!(compared, 8);
    // Another bench makes the same choices.
    assert_eq!(bench.of_seed(17), Bench::new().unwrap().of_seed(17));
    assert_ne!(bench.of_seed(17), bench.of_seed(25));
}
