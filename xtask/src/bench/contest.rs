//! Contestants that take turns, process after process, and the table of how fast each was.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::process::{Program, Runner, Running, last_line};
use super::stats::{Quartiles, ratios};

/// Somebody who trains the same step.
#[derive(Debug, Clone)]
pub(super) struct Contestant {
    pub(super) name: &'static str,
    pub(super) program: Program,
    /// Threads that it was told to compute with.
    pub(super) threads: usize,
    /// Reads what the program printed, in a turn.
    pub(super) parse: fn(&str) -> anyhow::Result<Measurement>,
}

/// What a process measured in a turn.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Measurement {
    pub(super) tokens_per_s: f64,
    /// Threads that it says it has computed with.
    pub(super) threads: Option<usize>,
    /// The instruction set, if it says so.
    pub(super) isa: Option<String>,
    /// Of the last step. It is no number if the training went wrong, and then its speed means nothing.
    pub(super) loss: f64,
}

/// All that a contestant measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Score {
    pub(super) name: &'static str,
    pub(super) isa: Option<String>,
    /// One value a round.
    pub(super) tokens_per_s: Vec<f64>,
    /// Why it was not run again, if it failed.
    pub(super) failed: Option<String>,
}

impl Score {
    fn new(name: &'static str) -> Self {
        Self { name, isa: None, tokens_per_s: Vec::new(), failed: None }
    }

    fn add(&mut self, result: anyhow::Result<Measurement>) {
        match result {
            Ok(measured) => {
                self.tokens_per_s.push(measured.tokens_per_s);
                self.isa = measured.isa;
            }
            Err(error) => self.failed = Some(format!("{error:#}")),
        }
    }

    /// Tokens per second, unless it failed.
    pub(super) fn speed(&self) -> Option<Quartiles> {
        if self.failed.is_some() { None } else { Quartiles::of(&self.tokens_per_s) }
    }

    /// How many times as fast `self` is, unless one of them failed.
    pub(super) fn ratio_to(&self, other: &Self) -> Option<Quartiles> {
        self.speed().and(other.speed())?;
        Quartiles::of(&ratios(&self.tokens_per_s, &other.tokens_per_s))
    }
}

/// How often contestants take turns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rounds {
    pub(super) all: usize,
    /// Rounds until all programs are started anew. Memory lies otherwise in every process, which may make it faster or
    /// slower. Programs that run for more than one take a turn for each line of their input, and print a line then.
    pub(super) of_a_process: usize,
}

/// Gives each contestant a turn a round. The first is the one the others are compared with.
///
/// Only the one whose turn it is computes. Who begins changes from round to round, so that nobody always runs on the
/// machine as the same neighbour left it. One that fails is not run again; it ends when there is nobody left to
/// compare.
pub(super) fn alternate(
    title: &str,
    contestants: &[Contestant],
    rounds: Rounds,
    runner: &Runner,
) -> Vec<Score> {
    let mut scores: Vec<_> = contestants.iter().map(|each| Score::new(each.name)).collect();
    let mut running: Vec<Option<Running>> = contestants.iter().map(|_| None).collect();
    for round in 0..rounds.all {
        let is_last_turn = (round + 1).is_multiple_of(rounds.of_a_process);
        for turn in 0..contestants.len() {
            let at = (round + turn) % contestants.len();
            if scores[at].failed.is_some() || !is_open(&scores) {
                continue;
            }
            let name = contestants[at].name;
            let text = take_turn(&contestants[at], &mut running[at], at, is_last_turn, runner);
            scores[at].add(text.and_then(|text| check(&contestants[at], &text)));
            let outcome = match &scores[at].failed {
                Some(reason) => format!("failed: {reason}"),
                None => format!("{:.0} tokens/s", scores[at].tokens_per_s[round]),
            };
            eprintln!("{title}, round {} of {}: {name}: {outcome}", round + 1, rounds.all);
        }
    }
    scores
}

/// Starts a contestant's program, or lets it go on; what it printed then.
fn take_turn(
    contestant: &Contestant,
    running: &mut Option<Running>,
    at: usize,
    is_last: bool,
    runner: &Runner,
) -> anyhow::Result<String> {
    let mut program = match running.take() {
        Some(mut waiting) => {
            waiting.go_on()?;
            waiting
        }
        // Its only turn: it may print lines that look like a whole one before its end.
        None if is_last => return runner.stdout(&contestant.program),
        None => runner.start(&contestant.program, &at.to_string())?,
    };
    let text = program.turn(|text| (contestant.parse)(text).is_ok())?;
    if is_last {
        program.end()?;
    } else {
        *running = Some(program);
    }
    Ok(text)
}

/// True while the first contestant and one other still run.
pub(super) fn is_open(scores: &[Score]) -> bool {
    let runs = |score: &Score| score.failed.is_none();
    scores.first().is_some_and(runs) && scores.iter().skip(1).any(runs)
}

fn check(contestant: &Contestant, text: &str) -> anyhow::Result<Measurement> {
    let measured = (contestant.parse)(text)?;
    let (speed, loss, told) = (measured.tokens_per_s, measured.loss, contestant.threads);
    anyhow::ensure!(speed.is_finite() && speed > 0.0, "it says {speed} tokens/s");
    anyhow::ensure!(loss.is_finite(), "its loss is {loss}");
    if let Some(threads) = measured.threads {
        anyhow::ensure!(threads == told, "it computed with {threads} threads instead of {told}");
    }
    Ok(measured)
}

/// The last line as a JSON object: trine and the PyTorch script print one; libraries may print warnings before it.
pub(super) fn parse_json(stdout: &str) -> anyhow::Result<Measurement> {
    let line = last_line(stdout).unwrap_or("");
    serde_json::from_str(line).map_err(|error| {
        anyhow::anyhow!("it printed `{line}` instead of a JSON object with tokens_per_s ({error})")
    })
}

/// One line a contestant, with how many times as fast the first was in the same rounds.
pub(super) fn table(scores: &[Score]) -> String {
    let names: Vec<_> = scores
        .iter()
        .map(|score| match &score.isa {
            Some(isa) => format!("{} ({isa})", score.name),
            None => score.name.to_owned(),
        })
        .collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(10);
    let first = scores.first();
    let mut text = format!(
        "{:width$}  {:>9}  {:>15}  {:>10}  {:>11}\n",
        "contestant",
        "tokens/s",
        "quartiles",
        first.map_or(String::new(), |first| format!("{} / it", first.name)),
        "quartiles"
    );
    for (at, (name, score)) in names.iter().zip(scores).enumerate() {
        let ratio = first.filter(|_| at > 0).and_then(|first| first.ratio_to(score));
        let line = line(score, ratio);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:width$}  {line}");
    }
    text
}

fn line(score: &Score, ratio: Option<Quartiles>) -> String {
    let Some(speed) = score.speed() else {
        return match &score.failed {
            Some(reason) => format!("failed: {reason}"),
            None => "did not run".to_owned(),
        };
    };
    let around = format!("{:.0} – {:.0}", speed.low, speed.high);
    let mut line = format!("{:>9.0}  {around:>15}", speed.median);
    if let Some(ratio) = ratio {
        let around = format!("{:.2} – {:.2}", ratio.low, ratio.high);
        line += &format!("  {:>10.2}  {around:>11}", ratio.median);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Duration;

    fn score(name: &'static str, tokens_per_s: &[f64], failed: Option<&str>) -> Score {
        let failed = failed.map(str::to_owned);
        Score { name, isa: None, tokens_per_s: tokens_per_s.to_vec(), failed }
    }

    #[test]
    fn the_line_of_trine_is_read() {
        let line = concat!(
            r#"{"isa":"avx512-bf16","loss":10.8,"model_gflops_per_s":52.3,"step_ms":395.6,"#,
            r#""steps":3,"threads":2,"tokens_per_s":776.6}"#,
            "\n"
        );
        let isa = Some("avx512-bf16".to_owned());
        let expected = Measurement { tokens_per_s: 776.6, threads: Some(2), isa, loss: 10.8 };
        assert_eq!(parse_json(line).unwrap(), expected);
    }

    #[test]
    fn the_line_of_pytorch_is_read_after_warnings() {
        let text = concat!(
            "a library says hello\n",
            r#"{"torch": "2.9.0+cpu", "threads": 2, "steps": 7, "step_ms": 640.0, "#,
            r#""tokens_per_s": 800.0, "loss": 10.9}"#,
            "\n"
        );
        let expected = Measurement { tokens_per_s: 800.0, threads: Some(2), isa: None, loss: 10.9 };
        assert_eq!(parse_json(text).unwrap(), expected);
    }

    #[test]
    fn a_line_that_is_no_measurement_is_shown() {
        for text in ["", "done\n", "{\"threads\": 2, \"loss\": 1.0}", "{\"tokens_per_s\": 1.0}"] {
            let error = parse_json(text).unwrap_err().to_string();
            assert!(error.contains(&format!("`{}`", text.trim())), "{error}");
        }
    }

    #[test]
    fn the_table_has_ratios_and_failures() {
        let scores = [
            score("trine", &[300.0, 200.0, 400.0], None),
            score("eager", &[200.0, 100.0, 200.0], None),
            score("compiled", &[250.0], Some("exit status: 1: no C++ compiler")),
        ];
        let table = table(&scores);
        let lines: Vec<_> = table.lines().map(str::trim_end).collect();
        assert_eq!(
            lines,
            [
                "contestant   tokens/s        quartiles  trine / it    quartiles",
                "trine             300        250 – 350",
                "eager             200        150 – 200        2.00  1.75 – 2.00",
                "compiled    failed: exit status: 1: no C++ compiler",
            ]
        );
    }

    #[test]
    fn a_ratio_needs_both() {
        let (ours, theirs) = (score("a", &[2.0], None), score("b", &[1.0], Some("hung")));
        assert_eq!(ours.ratio_to(&theirs), None);
        assert_eq!(theirs.ratio_to(&ours), None);
        assert_eq!(ours.ratio_to(&ours).map(|ratio| ratio.median), Some(1.0));
    }

    #[cfg(unix)]
    fn contestant(name: &'static str, script: &str) -> Contestant {
        let program = Program::new("sh").args(["-c", script]);
        Contestant { name, program, threads: 2, parse: parse_json }
    }

    #[cfg(unix)]
    fn run(folder: &str, contestants: &[Contestant], rounds: Rounds) -> Vec<Score> {
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xtask-contest-test");
        let runner = Runner { time_max: Duration::from_secs(60), scratch: target.join(folder) };
        alternate("test", contestants, rounds, &runner)
    }

    /// Three rounds, a process for each turn.
    #[cfg(unix)]
    const ONE_EACH: Rounds = Rounds { all: 3, of_a_process: 1 };

    #[cfg(unix)]
    const PRINTS: &str = r#"echo '{"tokens_per_s": 5, "threads": 2, "loss": 1}'"#;

    #[cfg(unix)]
    #[test]
    fn everyone_runs_once_a_round_and_a_failure_stops_only_itself() {
        let scores = run(
            "rounds",
            &[
                contestant("trine", PRINTS),
                contestant("eager", PRINTS),
                contestant("compiled", "echo 'no compiler' >&2; exit 1"),
            ],
            ONE_EACH,
        );
        assert_eq!(scores[0], score("trine", &[5.0; 3], None));
        assert_eq!(scores[1], score("eager", &[5.0; 3], None));
        assert_eq!(scores[2], score("compiled", &[], Some("exit status: 1: no compiler")));
        assert!(is_open(&scores));
    }

    #[cfg(unix)]
    #[test]
    fn a_process_takes_its_turns_and_then_another_one_does() {
        // Its speed is the number of its turn.
        let turn = PRINTS.replace('5', "'$n'");
        let script = format!("n=1; {turn}; while read a; do n=$((n+1)); {turn}; done");
        let both = [contestant("trine", &script), contestant("eager", &script)];
        let scores = run("turns", &both, Rounds { all: 5, of_a_process: 2 });
        for (at, name) in ["trine", "eager"].into_iter().enumerate() {
            assert_eq!(scores[at], score(name, &[1.0, 2.0, 1.0, 2.0, 1.0], None));
        }
    }

    #[cfg(unix)]
    #[test]
    fn one_that_fails_in_a_later_turn_keeps_what_it_had() {
        let once = format!("{PRINTS}; read a; echo 'out of memory' >&2; exit 1");
        let again = format!("{PRINTS}; while read a; do {PRINTS}; done");
        let contestants =
            [contestant("trine", &again), contestant("a", &once), contestant("b", &again)];
        let scores = run("later", &contestants, Rounds { all: 3, of_a_process: 3 });
        assert_eq!(scores[0], score("trine", &[5.0; 3], None));
        assert_eq!(scores[1], score("a", &[5.0], Some("exit status: 1: out of memory")));
        assert_eq!(scores[2], score("b", &[5.0; 3], None));
    }

    #[cfg(unix)]
    #[test]
    fn it_ends_when_there_is_nobody_to_compare() {
        let scores =
            run("alone", &[contestant("eager", "exit 1"), contestant("trine", PRINTS)], ONE_EACH);
        assert!(scores[0].failed.is_some());
        assert_eq!(scores[1].tokens_per_s.len(), 0);
        assert!(!is_open(&scores));
    }

    #[cfg(unix)]
    #[test]
    fn other_threads_or_a_loss_that_is_no_number_are_failures() {
        let threads = PRINTS.replace("\"threads\": 2", "\"threads\": 1");
        let endless = PRINTS.replace("\"loss\": 1", "\"loss\": 1e400");
        let stopped = PRINTS.replace(": 5", ": 0");
        let first = contestant("trine", PRINTS);
        for (script, reason) in [
            (threads, "it computed with 1 threads instead of 2"),
            (endless, "number out of range"),
            (stopped, "it says 0 tokens/s"),
        ] {
            let scores = run("checks", &[first.clone(), contestant("eager", &script)], ONE_EACH);
            let failed = scores[1].failed.as_deref().unwrap_or("");
            assert!(failed.contains(reason), "{failed}");
        }
    }
}
