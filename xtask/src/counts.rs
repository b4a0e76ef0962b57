//! `cargo xtask counts`: the instructions of kernel calls against counts.toml.
//!
//! A slower kernel shows in its time only beyond what the neighbours on the machine take; the number of its
//! instructions is the same in every run. valgrind's callgrind counts those of one function of the example `counted` of
//! trine-kernels. gungraun (formerly iai-callgrind) would do the same and needs a runner of its own to be installed, of
//! the version of its library; called directly, valgrind is all that is needed.
//!
//! Instructions are not time: caches, ports and other instruction sets than AVX2 are for `cargo xtask bench kernels`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::workspace::{Workspace, executable, output, rustc_version};

const PATH: &str = "crates/trine-kernels/counts.toml";
const BLESS: &str = "cargo xtask counts --bless";

/// What is counted: all inside this function of the example.
const COUNTED: &str = "*counted_call*";

/// How far a number may be from the one of the file, in percent.
const TOLERANCE_PERCENT: u64 = 3;

/// Instructions of each case.
type Counts = BTreeMap<String, u64>;

/// All of counts.toml.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The compiler that the numbers are of.
    rustc: String,
    instructions: Counts,
}

/// How a case compares with the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Same,
    More {
        bound: u64,
    },
    Less,
    /// Counted, but not in the file.
    New,
    /// In the file, but no longer a case.
    Gone,
}

/// Counts all cases; compares them with the file, or with `bless` writes it.
pub(crate) fn run(workspace: &Workspace, bless: bool) -> anyhow::Result<ExitCode> {
    if let Some(why) = unsupported() {
        println!("counts: NOT COUNTED: {why}");
        return Ok(ExitCode::SUCCESS);
    }
    find_valgrind()?;
    let counted = count_all(workspace)?;
    if bless {
        std::fs::write(workspace.root.join(PATH), text_of(&rustc_version()?, &counted))
            .with_context(|| format!("cannot write {PATH}"))?;
        println!("counts: wrote {} numbers to {PATH}", counted.len());
        return Ok(ExitCode::SUCCESS);
    }
    let file = read(&workspace.root)?;
    let verdicts = judge(&file.instructions, &counted);
    print!("{}", table(&file.instructions, &counted));
    if let Some(why) = not_judged(workspace)? {
        println!("counts: NOT JUDGED: {why}");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(report(&file.instructions, &counted, &verdicts))
}

/// Why the numbers of this machine are not compared with those of the file, if they are not.
pub(crate) fn not_judged(workspace: &Workspace) -> anyhow::Result<Option<String>> {
    if let Some(why) = unsupported() {
        return Ok(Some(why));
    }
    let (theirs, ours) = (read(&workspace.root)?.rustc, rustc_version()?);
    let why = format!("{PATH} is of rustc {theirs}, this is {ours}; to judge by it: {BLESS}");
    Ok((theirs != ours).then_some(why))
}

/// Why nothing can be counted here, if so.
fn unsupported() -> Option<String> {
    let (arch, os) = (std::env::consts::ARCH, std::env::consts::OS);
    let why = format!("the numbers are of AVX2 on Linux, this is {arch} on {os}");
    ((arch, os) != ("x86_64", "linux")).then_some(why)
}

fn find_valgrind() -> anyhow::Result<()> {
    let found = Command::new("valgrind").arg("--version").output();
    ensure!(
        found.is_ok_and(|found| found.status.success()),
        "no valgrind, which counts the instructions; install it with \
         `apt-get install --no-install-recommends valgrind`"
    );
    Ok(())
}

fn read(root: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(root.join(PATH))
        .with_context(|| format!("cannot read {PATH}; write it with `{BLESS}`"))?;
    toml::from_str(&text).with_context(|| format!("{PATH} is not what `{BLESS}` writes"))
}

/// The file with these numbers.
fn text_of(rustc: &str, counts: &Counts) -> String {
    let mut text = format!(
        "# Instructions of one call of each case in examples/counted.rs. Written by `{BLESS}`.\n\n\
         rustc = \"{rustc}\"\n\n[instructions]\n"
    );
    for (case, count) in counts {
        _ = writeln!(text, "{case} = {}", grouped(*count));
    }
    text
}

/// The instructions of all cases that the example lists.
fn count_all(workspace: &Workspace) -> anyhow::Result<Counts> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release", "--locked", "--package", "trine-kernels"]);
    cargo.args(["--example", "counted"]);
    // Flags of the user would give other instructions, with `target-cpu=native` such as valgrind does not know.
    cargo.env("RUSTFLAGS", "").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let example = executable(cargo, "counted")?;
    let folder = workspace.target.join("trine").join("counts");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let cases = output(&mut Command::new(&example))?;
    let count = |case: &str| Ok((case.to_owned(), count(&example, case, &folder)?));
    cases.lines().map(count).collect()
}

/// The instructions of one case.
fn count(example: &Path, case: &str, folder: &Path) -> anyhow::Result<u64> {
    let profile: PathBuf = folder.join(case).with_extension("callgrind");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind", "--collect-atstart=no"]);
    valgrind.arg(format!("--toggle-collect={COUNTED}"));
    valgrind.arg(format!("--callgrind-out-file={}", profile.display()));
    let done = valgrind.arg(example).arg(case).output().context("cannot run valgrind")?;
    if !done.status.success() {
        let printed = [done.stdout, done.stderr].concat();
        bail!(
            "{case} failed under valgrind ({}):\n{}",
            done.status,
            String::from_utf8_lossy(&printed)
        );
    }
    let text = std::fs::read_to_string(&profile)
        .with_context(|| format!("callgrind left no {}", profile.display()))?;
    match total(&text) {
        Some(0) => bail!("{case}: nothing was counted; is there still a function `{COUNTED}`?"),
        Some(total) => Ok(total),
        None => bail!("{} has no line `totals: NUMBER`", profile.display()),
    }
}

/// The number of the line `totals:` of a profile.
fn total(profile: &str) -> Option<u64> {
    profile.lines().find_map(|line| line.strip_prefix("totals:")?.trim().parse().ok())
}

/// How each case compares, in the order of names.
fn judge(expected: &Counts, counted: &Counts) -> BTreeMap<String, Verdict> {
    let gone = expected.keys().filter(|case| !counted.contains_key(*case));
    let gone = gone.map(|case| (case.clone(), Verdict::Gone));
    let verdict = |(case, count): (&String, &u64)| {
        let verdict = expected.get(case).map_or(Verdict::New, |at| compare(*at, *count));
        (case.clone(), verdict)
    };
    counted.iter().map(verdict).chain(gone).collect()
}

fn compare(expected: u64, count: u64) -> Verdict {
    let tolerance = expected * TOLERANCE_PERCENT / 100;
    let bound = expected + tolerance;
    if count > bound {
        Verdict::More { bound }
    } else if count < expected - tolerance {
        Verdict::Less
    } else {
        Verdict::Same
    }
}

/// A line for each case that was counted.
fn table(expected: &Counts, counted: &Counts) -> String {
    let mut text = format!("{:<26} {:>12} {:>12} {:>8}\n", "case", "counted", "expected", "change");
    for (case, &count) in counted {
        let expected = expected.get(case);
        let change = expected
            .map_or("new".to_owned(), |&expected| format!("{:+.1} %", change(expected, count)));
        let expected = expected.map_or("–".to_owned(), |&expected| grouped(expected));
        _ = writeln!(text, "{case:<26} {:>12} {expected:>12} {change:>8}", grouped(count));
    }
    text
}

fn change(expected: u64, count: u64) -> f64 {
    100.0 * (count as f64 / expected as f64 - 1.0)
}

/// Prints what is to be done, and whether it has to be.
fn report(expected: &Counts, counted: &Counts, verdicts: &BTreeMap<String, Verdict>) -> ExitCode {
    let number = |counts: &Counts, case: &str| grouped(counts.get(case).copied().unwrap_or(0));
    let (mut failures, mut gains) = (0, 0);
    for (case, verdict) in verdicts {
        let (is, was) = (number(counted, case), number(expected, case));
        let text = match verdict {
            Verdict::Same => continue,
            Verdict::More { bound } => {
                let bound = grouped(*bound);
                format!(
                    "{is} instructions, at most {bound} allowed ({was} and {TOLERANCE_PERCENT} %)"
                )
            }
            Verdict::Less => format!("{is} instructions instead of {was}: a gain to keep"),
            Verdict::New => format!("{is} instructions, not yet in {PATH}"),
            Verdict::Gone => format!("in {PATH}, but no longer a case"),
        };
        let is_gain = *verdict == Verdict::Less;
        (failures, gains) = (failures + usize::from(!is_gain), gains + usize::from(is_gain));
        println!("counts: {case}: {text}");
    }
    match (failures, gains) {
        (0, 0) => println!("counts: {} cases as expected", counted.len()),
        (0, _) => println!("counts: passed; write the gains down with `{BLESS}`"),
        (_, _) => println!("counts: failed; if this is the price of something better: `{BLESS}`"),
    }
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `1234567` as `1_234_567`, which TOML reads as well.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('_');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> Counts {
        counts.iter().map(|(case, count)| ((*case).to_owned(), *count)).collect()
    }

    #[test]
    fn the_total_is_read_from_a_profile() {
        let profile = "version: 1\nevents: Ir\nfn=(1) f\n12 7\n\nsummary: 71\ntotals: 72\n";
        assert_eq!(total(profile), Some(72));
        assert_eq!(total("events: Ir\n"), None);
    }

    #[test]
    fn three_percent_are_let_pass() {
        for (count, verdict) in [
            (969, Verdict::Less),
            (970, Verdict::Same),
            (1030, Verdict::Same),
            (1031, Verdict::More { bound: 1030 }),
        ] {
            assert_eq!(compare(1000, count), verdict, "{count}");
        }
    }

    #[test]
    fn only_gains_pass_without_a_new_file() {
        let expected = counts(&[("a", 1000), ("b", 1000)]);
        for (counted, passes) in [
            (counts(&[("a", 1000), ("b", 1000)]), true),
            (counts(&[("a", 500), ("b", 1000)]), true),
            (counts(&[("a", 500), ("b", 1100)]), false),
            (counts(&[("a", 1000)]), false),
            (counts(&[("a", 1000), ("b", 1000), ("c", 1)]), false),
        ] {
            let code = report(&expected, &counted, &judge(&expected, &counted));
            assert_eq!(code == ExitCode::SUCCESS, passes, "{counted:?}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let counted = counts(&[("matmul-nt-f32", 1_234_567), ("sum-squares", 12)]);
        let text = text_of("1.95.0 (59807616e 2026-04-14)", &counted);
        assert!(text.contains("matmul-nt-f32 = 1_234_567\n"), "{text}");
        let file: File = toml::from_str(&text).unwrap();
        assert_eq!(
            (file.rustc.as_str(), file.instructions),
            ("1.95.0 (59807616e 2026-04-14)", counted)
        );
    }

    #[test]
    fn the_file_of_this_repository_is_read() {
        let file = read(&Workspace::load().unwrap().root).unwrap();
        assert!(file.instructions.len() >= 28, "{file:?}");
    }

    #[test]
    fn the_table_has_a_line_for_each_case() {
        let expected = counts(&[("a", 1000)]);
        let table = table(&expected, &counts(&[("a", 1100), ("b", 5)]));
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("a ") && lines[1].ends_with("1_100        1_000  +10.0 %"));
        assert!(lines[2].ends_with("new"));
    }
}
