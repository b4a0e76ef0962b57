//! Runs whose ranks are processes: the losses of threads, launchers, ranks that are killed or
//! stopped, two hosts. Needs `mpirun`; the two hosts need namespaces, and so root. Eight processes on
//! few cores are enough at a time: `cargo test … mpi -- --test-threads=1`.

use crate::common::{ALL_AXES, Run, SERIAL, Scratch, small, text, wait_for};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TRINE: &str = env!("CARGO_BIN_EXE_trine");
const MPIRUN: [&str; 4] = ["--allow-run-as-root", "--oversubscribe", "--quiet", "-n"];

/// Steps of the short runs, and what is the same in all of them.
const STEPS: u64 = 40;
const COMMON: &[&str] = &["--steps=40", "--numerics=reference", "--set=checkpoint.every=10"];
/// Two ranks.
const ONE_GROUP: &[&str] = &["--tp=2", "--pp=1", "--dp=1"];
/// A run that a test ends long before it would end by itself.
const LONG: &[&str] = &["--steps=100000", "--set=checkpoint.every=10", "--set=comm.deadline_s=5"];

fn threads(scratch: &Scratch) -> Run {
    scratch.train("threads", &[ALL_AXES, COMMON].concat())
}

/// The arguments of `trine launch` for the small model.
fn launch<'a>(options: &[&'a str], out: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let train = small(out, args);
    [&["launch"], options, &["--"], &train[1..]].concat()
}

#[track_caller]
fn assert_same(run: &Run, reference: &Run) {
    assert_eq!(reference.loss_texts().len(), STEPS as usize);
    assert_eq!(run.loss_texts(), reference.loss_texts());
    assert_eq!(run.numbers("grad_norm"), reference.numbers("grad_norm"));
    let [ours, theirs] =
        [run, reference].map(|run| run.checkpoint_file(STEPS, "model.safetensors"));
    assert!(ours == theirs, "the weights");
}

/// A supervisor with its run, and what it says.
struct Supervised {
    child: Child,
    log: PathBuf,
    folder: PathBuf,
}

impl Supervised {
    fn start(scratch: &Scratch, program: &str, args: &[&str]) -> Self {
        let log = scratch.path("log.txt");
        let file = fs::File::create(&log).unwrap();
        let mut command = scratch.program(program);
        command.args(args).stdout(Stdio::null()).stderr(file);
        Self { child: command.spawn().unwrap(), log, folder: scratch.path("") }
    }

    /// The process of a rank, found by its variables and where it runs.
    fn rank(&self, rank: usize) -> String {
        let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
        let is_it = |process: &Path| {
            let environment = fs::read(process.join("environ")).unwrap_or_default();
            let here = fs::read_link(process.join("cwd"))
                .is_ok_and(|cwd| cwd == fs::canonicalize(&self.folder).unwrap());
            here && environment.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes())
        };
        let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let mut found = processes.filter(|process| is_it(process));
        let process = found.next().expect("the rank runs");
        process.file_name().unwrap().to_string_lossy().into_owned()
    }

    /// Processes that run in the scratch folder.
    fn left(&self) -> usize {
        let here = fs::canonicalize(&self.folder).unwrap();
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        processes.filter(|p| fs::read_link(p.join("cwd")).is_ok_and(|cwd| cwd == here)).count()
    }

    /// Its exit code, the time until it came, and what it said.
    fn end(&mut self, within: Duration) -> (Option<i32>, Duration, String) {
        let began = Instant::now();
        let mut code = None;
        while code.is_none() {
            if let Some(status) = self.child.try_wait().unwrap() {
                code = Some(status.code());
            }
            let log = fs::read_to_string(&self.log).unwrap();
            assert!(began.elapsed() < within, "it does not end:\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
        (code.flatten(), began.elapsed(), fs::read_to_string(&self.log).unwrap())
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Prints how long an end took beside what is asked for. A shared machine can stand still for seconds,
/// so only an end that takes several times as long fails.
#[track_caller]
#[expect(clippy::print_stdout, reason = "the time is what a reader of the test wants to know")]
fn in_time(what: &str, took: Duration, asked: Duration) {
    println!("{what}: over after {took:.1?} of {asked:.0?}");
    assert!(took < 3 * asked, "{what}: {took:?}");
}

fn signal(process: &str, name: &str) {
    assert!(Command::new("kill").args([name, process]).status().unwrap().success());
}

#[test]
fn processes_have_the_losses_of_threads() {
    let scratch = Scratch::new();
    let reference = threads(&scratch);
    let (out, said) = scratch.ok(&launch(&[], "mpi", &[ALL_AXES, COMMON].concat()));
    assert!(said.contains("8 ranks on ") && said.contains("OMPI_COMM_WORLD_SIZE=8"), "{said}");
    assert!(out.contains("resume:   ") && out.contains("trine launch -- --resume mpi"), "{out}");
    let run = scratch.at("mpi");
    assert_same(&run, &reference);
    let summary = run.summary();
    assert_eq!(summary["ranks"].as_array().unwrap().len(), 8);
    assert!(!summary["ranks"][7]["host"].as_str().unwrap().is_empty());
    let seals = [ALL_AXES, COMMON, &["--set=comm.checksum=true"]].concat();
    scratch.ok(&launch(&[], "sealed", &seals));
    assert_same(&scratch.at("sealed"), &reference);
}

/// Under somebody else's mpirun: the binary finds its rank, and says so; mistakes name both sides.
#[test]
fn other_launchers_are_understood() {
    let scratch = Scratch::new();
    let mpirun = |ranks: &str, args: &[&str]| {
        let mut command = scratch.program("mpirun");
        command.args(MPIRUN).arg(ranks).arg(TRINE).args(args);
        let output = command.output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let reference = threads(&scratch);
    let (code, _, said) = mpirun("8", &small("direct", &[ALL_AXES, COMMON].concat()));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("mpirun of Open MPI (OMPI_COMM_WORLD_RANK=0"), "{said}");
    assert_same(&scratch.at("direct"), &reference);
    // The world against the layout: one message, and nothing is written.
    let (code, _, said) = mpirun("3", &small("none", &[ALL_AXES, COMMON].concat()));
    assert_eq!(code, Some(2), "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert!(said.contains("needs 8 ranks") && said.contains("OMPI_COMM_WORLD_SIZE=3"), "{said}");
    assert!(!scratch.path("none").exists());
    // A configuration that is refused is refused once.
    let (code, _, said) = mpirun("2", &small("none", &["--tp=2", "--steps=-1"]));
    assert_eq!((code, said.matches("error:").count()), (Some(2), 1), "{said}");
    // What only rank 0 finds out is known to all: nobody waits for the others.
    let (code, _, said) =
        mpirun("2", &small("none", &[ONE_GROUP, &["--trace=no/such/folder"]].concat()));
    assert_eq!((code, said.matches("error:").count()), (Some(2), 1), "{said}");
    assert!(said.contains("--trace no/such/folder: cannot create it"), "{said}");
    assert!(!scratch.path("none").exists());
    // The placement, without a run.
    let (code, out, said) =
        mpirun("8", &small("none", &[ALL_AXES, COMMON, &["--dry-run"]].concat()));
    assert_eq!(code, Some(0), "{said}");
    assert!(out.contains(": ranks 0–7, pp 0–1"), "{out}");
    let (code, _, said) = mpirun("2", &small("none", &["--tp=2", "--backend=threads"]));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("OMPI_COMM_WORLD_SIZE=2"), "{said}");
    assert!(!scratch.path("none").exists());
}

/// Also where rank 0, which has the store, is the one that stands still.
#[test]
fn a_failure_under_another_launcher_says_how_to_go_on() {
    let cases = [
        (5, "error: rank 5 on ", "no heartbeat for"),
        (0, "error: rank 0: nothing is heard of it, on ", "no answer for"),
    ];
    for (rank, first, what) in cases {
        let scratch = Scratch::new();
        let train = small("run", &[ALL_AXES, LONG].concat());
        let args = [&MPIRUN[..], &["8", TRINE], &train].concat();
        let mut run = Supervised::start(&scratch, "mpirun", &args);
        wait_for("step 12", || scratch.at("run").lines().len() >= 12);
        signal(&run.rank(rank), "-STOP");
        let (code, took, said) = run.end(Duration::from_secs(60));
        assert_eq!(code, Some(75), "{said}");
        in_time(&format!("rank {rank} stopped, another launcher"), took, Duration::from_secs(10));
        // When the others have given a rank up, mpirun wakes it: what it says then blames nobody else.
        assert!(!said.contains("its process is gone"), "{said}");
        let told = &said[said.find("error:").unwrap_or(said.len())..];
        assert!(told.starts_with(first) && told.contains(what), "{said}");
        assert!(told.contains("trine train --resume run"), "{said}");
    }
}

#[test]
fn a_killed_rank_is_named_and_the_run_goes_on() {
    let scratch = Scratch::new();
    let reference = threads(&scratch);
    let mut killed = 0;
    for rank in 0..8 {
        let out = format!("killed-{rank}");
        let args = launch(&["--restarts=1"], &out, &[ALL_AXES, COMMON].concat());
        let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut run = Supervised::start(&scratch, TRINE, &args);
        wait_for("step 12", || scratch.at(&out).lines().len() >= 12);
        let process = run.rank(rank);
        signal(&process, "-KILL");
        let began = Instant::now();
        let log = scratch.path("log.txt");
        wait_for("the restart", || fs::read_to_string(&log).unwrap().contains("restart 1 of 1"));
        in_time(&format!("rank {rank} killed"), began.elapsed(), Duration::from_secs(5));
        assert!(run.left() <= 1, "the supervisor is left, and nobody else");
        let (code, _, said) = run.end(Duration::from_secs(60));
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains(&format!("error: rank {rank} on ")), "{said}");
        assert!(said.contains("its process is gone"), "{said}");
        assert_eq!(run.left(), 0, "no process stays");
        assert_same(&scratch.at(&out), &reference);
        let folder = scratch.path(&out).join("flight");
        assert!(folder.join("diagnosis.txt").is_file());
        killed += 1;
    }
    assert_eq!(killed, 8);
}

/// Processes agree on the times that they measure: they have the numbers of threads that are given them, and go on.
#[test]
fn processes_measure_one_set_of_times() {
    let scratch = Scratch::new();
    let layout = ["--tp=1", "--pp=2", "--dp=1", "--schedule=zb-h1"];
    let args = [&layout[..], COMMON].concat();
    let measuring = [&args[..], &["--times=measured"]].concat();
    let (_, said) = scratch.ok(&launch(&[], "measured", &measuring));
    assert_eq!(said.matches("times measured: F 1, B ").count(), 1, "{said}");
    let config = fs::read_to_string(scratch.path("measured/config.toml")).unwrap();
    let times = config.lines().find_map(|line| line.strip_prefix("times = ")).expect(&config);
    let set = format!("--set=layout.times={times}");
    let reference = scratch.train("threads", &[&args[..], &[&set]].concat());
    assert_same(&scratch.at("measured"), &reference);
}

/// A stand-in for mpirun; the real one is `mpirun "$@"` in it.
fn stand_in(scratch: &Scratch, script: &str) -> String {
    let path = scratch.path("stand-in.sh");
    let version = "[ \"$1\" = --version ] && exec mpirun --version";
    fs::write(&path, format!("#!/bin/sh\n{version}\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    format!("--mpirun={}", path.display())
}

/// The processes that a process has started.
fn children(process: u32) -> Vec<String> {
    let path = format!("/proc/{process}/task/{process}/children");
    let list = fs::read_to_string(path).unwrap_or_default();
    list.split_whitespace().map(str::to_owned).collect()
}

/// Before the first step there is nothing to save: whatever mpirun and the ranks are at, it ends at once.
#[test]
fn an_interrupt_before_the_first_step_ends_at_once() {
    let scratch = Scratch::new();
    let late = stand_in(&scratch, "sleep 30; exec mpirun \"$@\"");
    let args = [ONE_GROUP, LONG].concat();
    for (options, name) in [(&[&*late][..], "-TERM"), (&[][..], "-HUP")] {
        let mut run = Supervised::start(&scratch, TRINE, &launch(options, "run", &args));
        wait_for("mpirun", || !children(run.child.id()).is_empty());
        signal(&run.child.id().to_string(), name);
        let (code, took, said) = run.end(Duration::from_secs(30));
        assert_eq!(code, Some(130), "{said}");
        in_time("interrupted before the first step", took, Duration::from_secs(2));
        assert!(said.contains("ended before the first step; there was nothing to save"), "{said}");
        assert!(!said.contains("error:"), "{said}");
        assert_eq!(run.left(), 0, "no process stays");
    }
}

#[test]
fn a_signal_to_any_rank_saves() {
    let scratch = Scratch::new();
    let args = [ONE_GROUP, LONG, &["--trace=t.json"]].concat();
    let mut run = Supervised::start(&scratch, TRINE, &launch(&[], "run", &args));
    wait_for("step 3", || scratch.at("run").lines().len() >= 3);
    signal(&run.rank(1), "-TERM");
    let (code, _, said) = run.end(Duration::from_secs(30));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("rank 1 on ") && said.contains(": SIGTERM: "), "{said}");
    let steps = scratch.at("run").lines().len() as u64;
    assert!(!scratch.at("run").checkpoint_file(steps, "manifest.json").is_empty());
    // The processes' traces have come together.
    let trace = fs::read_to_string(scratch.path("t.json")).unwrap();
    let events: Vec<serde_json::Value> = serde_json::from_str(&trace).unwrap();
    let of = |rank: u64| {
        events.iter().filter(move |event| event["tid"] == rank && event["ph"] == "X").count()
    };
    assert!(of(0) > 4 && of(0) == of(1), "{} and {}", of(0), of(1));
    assert!(!scratch.path("t.json.rank-1").exists());
}

/// Its ranks end with it, and are not to blame.
#[test]
fn an_mpirun_that_is_killed_is_named() {
    let scratch = Scratch::new();
    let args = [ONE_GROUP, LONG].concat();
    let mut run = Supervised::start(&scratch, TRINE, &launch(&[], "run", &args));
    wait_for("step 3", || scratch.at("run").lines().len() >= 3);
    signal(&children(run.child.id())[0], "-KILL");
    let (code, _, said) = run.end(Duration::from_secs(30));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("error: mpirun was killed by signal 9"), "{said}");
    assert!(!said.contains("its process is gone"), "{said}");
    assert_eq!(run.left(), 0, "no process stays");
}

/// A run that died before it could say where it is is started again as it was typed.
#[test]
fn a_run_that_did_not_begin_is_started_again() {
    let scratch = Scratch::new();
    let args = [ONE_GROUP, COMMON].concat();
    let first = "echo x >>tries; [ $(wc -l <tries) = 1 ] && exit 137; exec mpirun \"$@\"";
    let mpirun = stand_in(&scratch, first);
    let launched = launch(&["--restarts=1", &mpirun], "run", &args);
    let mut run = Supervised::start(&scratch, TRINE, &launched);
    let (code, _, said) = run.end(Duration::from_secs(60));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ended with code 137, that of signal 9 before any rank"), "{said}");
    assert!(said.contains("restart 1 of 1 in 1 s, as it was typed"), "{said}");
    assert_eq!(scratch.at("run").lines().len(), STEPS as usize);
}

/// An attempt that ends before its ranks have said where the run is does not use up those that are left.
#[test]
fn an_attempt_that_does_not_begin_is_followed_by_the_next() {
    let scratch = Scratch::new();
    let args = [ONE_GROUP, COMMON].concat();
    let reference = scratch.train("threads", &args);
    let second = "echo x >>tries; [ $(wc -l <tries) = 2 ] && exit 1; exec mpirun \"$@\"";
    let mpirun = stand_in(&scratch, second);
    let launched = launch(&["--restarts=2", &mpirun], "run", &args);
    let mut run = Supervised::start(&scratch, TRINE, &launched);
    wait_for("step 12", || scratch.at("run").lines().len() >= 12);
    signal(&run.rank(1), "-KILL");
    let (code, _, said) = run.end(Duration::from_secs(60));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("restart 2 of 2"), "{said}");
    assert_same(&scratch.at("run"), &reference);
}

/// An interrupt between two attempts ends the run; it does not wait to meet the ranks of the next one.
#[test]
fn an_interrupt_between_attempts_ends_the_run() {
    let scratch = Scratch::new();
    let args = [ONE_GROUP, LONG].concat();
    let mut run = Supervised::start(&scratch, TRINE, &launch(&["--restarts=9"], "run", &args));
    wait_for("step 3", || scratch.at("run").lines().len() >= 3);
    signal(&run.rank(1), "-KILL");
    let log = run.log.clone();
    wait_for("the restart", || fs::read_to_string(&log).unwrap().contains("restart 1 of 9"));
    signal(&run.child.id().to_string(), "-INT");
    let (code, _, said) = run.end(Duration::from_secs(30));
    assert_eq!(code, Some(130), "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert_eq!(run.left(), 0, "no process stays");
}

/// When all ranks have said farewell nobody is left to fail; what hangs then is ended too.
#[test]
fn a_launcher_that_does_not_end_is_ended() {
    let scratch = Scratch::new();
    let mpirun = stand_in(&scratch, "mpirun \"$@\"; sleep 1000");
    let args = [ONE_GROUP, &["--steps=3", "--set=comm.deadline_s=5"]].concat();
    let launched = launch(&[&mpirun], "run", &args);
    let mut run = Supervised::start(&scratch, TRINE, &launched);
    let (code, _, said) = run.end(Duration::from_secs(60));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("all ranks have done their work, but mpirun has not ended"), "{said}");
    assert!(scratch.at("run").summary()["ranks"].is_array());
    assert_eq!(run.left(), 0, "no process stays");
}

/// With one rank less, tp 2 × pp 2 has room for one replica: the samples and the losses stay.
#[test]
fn an_elastic_run_goes_on_with_fewer_replicas() {
    let scratch = Scratch::new();
    let reference = threads(&scratch);
    let args = [ALL_AXES, COMMON, &["--set=layout.elastic=true"]].concat();
    let mut run = Supervised::start(&scratch, TRINE, &launch(&["--restarts=1"], "run", &args));
    wait_for("step 12", || scratch.at("run").lines().len() >= 12);
    signal(&run.rank(3), "-KILL");
    let (code, _, said) = run.end(Duration::from_secs(60));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("dp shrinks from 2 to 1"), "{said}");
    assert_eq!(scratch.at("run").summary()["ranks"].as_array().unwrap().len(), 4);
    assert_same(&scratch.at("run"), &reference);
}

#[test]
fn a_stopped_rank_is_named_within_the_deadline() {
    let scratch = Scratch::new();
    let mut run =
        Supervised::start(&scratch, TRINE, &launch(&[], "run", &[ALL_AXES, LONG].concat()));
    wait_for("step 12", || scratch.at("run").lines().len() >= 12);
    signal(&run.rank(6), "-STOP");
    let (code, took, said) = run.end(Duration::from_secs(30));
    assert_eq!(code, Some(1), "{said}");
    in_time("rank 6 stopped", took, Duration::from_secs(10));
    assert!(said.contains("error: rank 6 on ") && said.contains("no heartbeat for"), "{said}");
    assert_eq!(run.left(), 0, "no process stays");
}

/// An interrupt of the supervisor finishes the step and saves, as with threads.
#[test]
fn an_interrupt_saves_and_ends_well() {
    let scratch = Scratch::new();
    let args = [ONE_GROUP, LONG].concat();
    let mut run = Supervised::start(&scratch, TRINE, &launch(&[], "run", &args));
    wait_for("step 3", || scratch.at("run").lines().len() >= 3);
    signal(&run.child.id().to_string(), "-INT");
    let (code, _, said) = run.end(Duration::from_secs(30));
    assert_eq!(code, Some(0), "{said}");
    let steps = scratch.at("run").lines().len() as u64;
    assert!(!scratch.at("run").checkpoint_file(steps, "manifest.json").is_empty());
    assert_eq!(run.left(), 0, "no process stays");
}

#[test]
fn what_cannot_be_launched_is_refused_before_anything_starts() {
    let scratch = Scratch::new();
    let no_mpirun = launch(&["--mpirun=no-such-program"], "none", &[SERIAL, COMMON].concat());
    scratch.fails(&no_mpirun, 2, &["no-such-program", "openmpi-bin"]);
    let ranks = launch(&["-n", "3"], "none", &[ALL_AXES, COMMON].concat());
    scratch.fails(&ranks, 2, &["-n 3", "needs 8 ranks"]);
    let interface = launch(&["--interface=192.0.2.1"], "none", &[SERIAL, COMMON].concat());
    scratch.fails(&interface, 2, &["192.0.2.1"]);
}

/// The script that makes two hosts of one machine.
fn two_hosts(options: &[&str], out: &str, args: &[&str]) -> Vec<String> {
    let train = small(out, args);
    let all = [&[TRINE, "4"], options, &["--", "--"], &train[1..]].concat();
    all.iter().map(|word| word.to_string()).collect()
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/two-hosts.sh");

#[test]
#[ignore = "needs namespaces: root, util-linux, iproute2"]
fn two_hosts_have_the_losses_of_threads() {
    let scratch = Scratch::new();
    let reference = threads(&scratch);
    let mut script = scratch.program(SCRIPT);
    let output =
        script.args(two_hosts(&[], "hosts", &[ALL_AXES, COMMON].concat())).output().unwrap();
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("ranks: 4 on nodea, 4 on nodeb"), "{said}");
    assert!(out.contains("rank 4 (dp 0 pp 1 tp 0) on nodeb"), "the pipeline crosses hosts: {out}");
    assert_same(&scratch.at("hosts"), &reference);
}

#[test]
#[ignore = "needs namespaces: root, util-linux, iproute2"]
fn a_cut_link_stops_both_hosts() {
    let scratch = Scratch::new();
    let cut = ["--cut", "hosts/metrics.jsonl", "\"step\":12,"];
    let args = two_hosts(&cut, "hosts", &[ALL_AXES, LONG].concat());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut run = Supervised::start(&scratch, SCRIPT, &args);
    let when = scratch.path("hosts/metrics.jsonl.cut");
    wait_for("the cut", || when.exists());
    let (code, took, said) = run.end(Duration::from_secs(60));
    assert_eq!(code, Some(1), "{said}");
    in_time("link cut", took, Duration::from_secs(10));
    assert!(said.contains(" on nodeb: no heartbeat for"), "{said}");
    assert!(said.contains("the link to it is gone"), "{said}");
    assert_eq!(run.left(), 0, "no process stays on either side");
}

/// Of every way in which processes start, the layout is chosen for as many as there are.
#[test]
fn a_layout_is_chosen_for_the_ranks_that_there_are() {
    let scratch = Scratch::new();
    let auto = ["--layout=auto", "--steps=2"];
    let ranks = |out: &str| -> usize {
        let config = fs::read_to_string(scratch.path(out).join("config.toml")).unwrap();
        let degree = |key: &str| -> usize {
            config.lines().find_map(|line| line.strip_prefix(key)).unwrap().parse().unwrap()
        };
        degree("dp = ") * degree("pp = ") * degree("tp = ")
    };
    let (_, said) = scratch.ok(&launch(&["-n", "2"], "two", &auto));
    assert_eq!((ranks("two"), said.matches("chosen  dp ").count()), (2, 1), "{said}");
    // Without a number of processes, this host's cores decide it.
    let (_, said) = scratch.ok(&launch(&[], "any", &auto));
    let cores = std::thread::available_parallelism().unwrap().get();
    assert!(cores.is_multiple_of(ranks("any")), "{said}");
    // Ranks that no supervisor has told: the first one tells the others.
    let alone = [&MPIRUN[..], &["2", TRINE], &small("alone", &auto)].concat();
    let output = scratch.program("mpirun").args(alone).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!((ranks("alone"), said.matches("chosen  dp ").count()), (2, 1), "{said}");
}

#[test]
fn a_launch_that_no_rank_joined_has_failed() {
    let scratch = Scratch::new();
    let args = launch(&["--mpirun", "/bin/true"], "run", ONE_GROUP);
    scratch.fails(&args, 1, &["none of 2 ranks has joined: nothing was trained"]);
}
