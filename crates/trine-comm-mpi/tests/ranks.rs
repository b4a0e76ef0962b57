//! The conformance suite and the failures of worlds of processes. Called by `cargo test`, it runs
//! itself under `mpirun`, with 2, 3, 4 and 8 ranks, and counts what the ranks say they have passed.
//! With `--ignored`, a message of more than 2 GiB.
#![expect(clippy::unwrap_used, reason = "a failing call fails the test")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its own harness says what it ran")]

use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use trine_buffer::{Buf, DType, Pool};
use trine_comm::conformance::{self, Body, Scope};
use trine_comm::wrap::{Action, Sealed, Tap};
use trine_comm::{CommError, Communicator, Delivery, Name, Operation, ReduceOp};
use trine_comm_mpi::{MpiOptions, World};

/// What every rank of a world does, and what must come of it.
type Scenario = fn(&World) -> Result<usize, String>;

struct Case {
    name: &'static str,
    ranks: &'static [usize],
    options: MpiOptions,
    body: Scenario,
    /// What each rank passes, by the number of ranks.
    passes: fn(usize) -> usize,
    end: End,
}

/// How the world of a case ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// All leave.
    Well,
    /// Leaving says that something was left, by rank 0 for rank 1.
    Left,
    /// It has failed: nobody leaves, and mpirun complains.
    Failed,
}

const OPTIONS: MpiOptions = MpiOptions {
    delivery: Delivery::Buffered,
    deadline: Duration::from_secs(120),
    chunk_bytes_max: 1 << 30,
};
/// For the news of a failure to get out.
const FLUSH_MAX: Duration = Duration::from_secs(2);
const SHORT: MpiOptions = MpiOptions { deadline: Duration::from_secs(3), ..OPTIONS };
/// Every message is a rendezvous, and not only very long ones go in pieces.
const PIECES: MpiOptions =
    MpiOptions { delivery: Delivery::Rendezvous, chunk_bytes_max: 4096, ..OPTIONS };

/// Longer than any case takes, also when eight ranks share two busy cores.
const HANGS_AFTER: Duration = Duration::from_secs(240);

const SIZES: &[usize] = &[2, 3, 4, 8];

const CASES: &[Case] = &[
    case("buffered", SIZES, OPTIONS, buffered, suite_len, End::Well),
    case("rendezvous", SIZES, PIECES, rendezvous, suite_len, End::Well),
    case("arranged", &[4], OPTIONS, arranged, |_| 2, End::Well),
    case("sealed", &[3], OPTIONS, sealed, suite_len, End::Well),
    case("altered", &[2], OPTIONS, altered, |_| 1, End::Failed),
    case("dropped", &[2], OPTIONS, dropped, |_| 2, End::Well),
    case("long-mixture", &[4], OPTIONS, long_mixture, |_| 40, End::Well),
    case("mismatch", &[3], OPTIONS, mismatch, |_| 1, End::Failed),
    case("wrong-name", &[2], OPTIONS, wrong_name, |_| 1, End::Failed),
    case("wrong-length", &[2], OPTIONS, wrong_length, |_| 1, End::Failed),
    case("split-names", &[2], OPTIONS, split_names, |_| 1, End::Failed),
    case("deadline", &[3], SHORT, deadline, |_| 1, End::Failed),
    case("aborted", &[3], OPTIONS, aborted, |_| 1, End::Failed),
    case("unmatched", &[2], OPTIONS, unmatched, |_| 1, End::Left),
    case("thread", &[2], OPTIONS, other_thread, |_| 1, End::Failed),
];

/// Needs 5 GiB of memory.
const LARGE: Case = case("large", &[2], OPTIONS, large, |_| 2, End::Well);

const fn case(
    name: &'static str,
    ranks: &'static [usize],
    options: MpiOptions,
    body: Scenario,
    passes: fn(usize) -> usize,
    end: End,
) -> Case {
    Case { name, ranks, options, body, passes, end }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, name] = args.as_slice()
        && word == "rank"
    {
        return live(CASES.iter().chain([&LARGE]).find(|case| case.name == name).unwrap());
    }
    let mut worlds = 0;
    let wanted = |case: &&Case| {
        let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
        filters.is_empty() || filters.iter().any(|filter| case.name.contains(filter.as_str()))
    };
    let large = args.iter().any(|arg| arg == "--ignored");
    let cases: Vec<&Case> = if large { vec![&LARGE] } else { CASES.iter().collect() };
    for case in cases.into_iter().filter(wanted) {
        for ranks in case.ranks {
            launch(case, *ranks);
            worlds += 1;
        }
    }
    println!("{worlds} worlds passed, on {}", trine_comm_mpi::library());
    assert!(worlds > 0, "no case has such a name");
    ExitCode::SUCCESS
}

/// Runs a case under mpirun.
fn launch(case: &Case, ranks: usize) {
    let started = Instant::now();
    let mut mpirun = Command::new("mpirun");
    mpirun.args(["--allow-run-as-root", "--oversubscribe", "-n", &ranks.to_string()]);
    mpirun.arg(std::env::current_exe().unwrap()).args(["rank", case.name]);
    mpirun.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = mpirun.spawn().expect("mpirun must be installed");
    let pid = child.id().to_string();
    // Nothing hangs, not even a test: mpirun ends its ranks when it is told to end.
    let (over, ended) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if ended.recv_timeout(HANGS_AFTER) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").arg(pid).status();
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(over);
    watchdog.join().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    let each = (case.passes)(ranks);
    let line = format!("passed {each}");
    let passed = out.lines().filter(|said| *said == line).count();
    assert!(each > 0, "a case that passes nothing proves nothing");
    assert_eq!(passed, ranks, "{} with {ranks} ranks:\n{out}\n{error}", case.name);
    if case.end == End::Well {
        assert!(output.status.success(), "{} with {ranks} ranks:\n{out}\n{error}", case.name);
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{} with {ranks} ranks: {each} cases each in {seconds:.1} s", case.name);
}

/// One rank.
fn live(case: &Case) -> ExitCode {
    let world = World::join(case.options).unwrap();
    let passed = match (case.body)(&world) {
        Ok(passed) => passed,
        Err(error) => {
            eprintln!("{}: rank {}: {error}", case.name, world.rank());
            return ExitCode::FAILURE;
        }
    };
    match case.end {
        End::Well => world.leave().unwrap(),
        End::Left => {
            let what = ["other ranks know what", "rank 0 in send(to rank 1) \"lost\" #0"];
            let what = what[world.rank()];
            let left = world.leave().unwrap_err().to_string();
            assert!(left.contains("nobody matched") && left.contains(what), "{left}");
        }
        // The news gets out before the process ends.
        End::Failed => world.flush(FLUSH_MAX),
    }
    println!("passed {passed}");
    if case.end != End::Well {
        // mpirun ends all when the first one ends without MPI_Finalize: the others, which may still be
        // flushing, say theirs first.
        std::io::stdout().flush().unwrap();
        std::thread::sleep(2 * FLUSH_MAX);
    }
    ExitCode::SUCCESS
}

fn suite(world: &World, delivery: Delivery) -> Result<usize, String> {
    let sizes = [world.size()];
    let scope = Scope { sizes: &sizes, deliveries: &[delivery] };
    let launch = |_, _, body: Body<'_>| body(world.comm());
    conformance::check(&launch, scope)
}

fn suite_len(ranks: usize) -> usize {
    conformance::cases(Scope { sizes: &[ranks], deliveries: &[Delivery::Buffered] })
}

fn buffered(world: &World) -> Result<usize, String> {
    suite(world, Delivery::Buffered)
}

fn rendezvous(world: &World) -> Result<usize, String> {
    suite(world, Delivery::Rendezvous)
}

/// The suite with numbers and checksums on every operation.
fn sealed(world: &World) -> Result<usize, String> {
    let sizes = [world.size()];
    let scope = Scope { sizes: &sizes, deliveries: &[Delivery::Buffered] };
    let launch = |_, _, body: Body<'_>| body(Sealed::around(world.comm()));
    conformance::check(&launch, scope)
}

/// A bit that flips between the seal and the wire.
fn altered(world: &World) -> Result<usize, String> {
    let rank = world.rank();
    let comm = Sealed::around(Tap::around(world.comm(), move |_, request| {
        if let (1, Some(send)) = (rank, &mut request.send) {
            send.slice_mut().bytes().unwrap()[2] ^= 4;
        }
        Action::Forward
    }));
    let result = comm.all_reduce(Buf::from_vec(vec![1.0f32; 8]), ReduceOp::Sum, "grad");
    says(result, &["rank 1 in all_reduce(sum) \"grad\" #0", "altered on the way"])
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Fails the case unless the error contains all of `words`.
fn says<T: std::fmt::Debug>(result: Result<T, CommError>, words: &[&str]) -> Result<usize, String> {
    let error = result.map_or_else(|error| Ok(error.to_string()), |v| Err(format!("{v:?}")))?;
    match words.iter().find(|word| !error.contains(**word)) {
        None => Ok(1),
        Some(word) => Err(format!("{word:?} is not in: {error}")),
    }
}

fn expect(what: bool, otherwise: &str) -> Result<(), String> {
    if what { Ok(()) } else { Err(otherwise.to_owned()) }
}

/// Ranks of a layout in another order than MPI's.
fn arranged(world: &World) -> Result<usize, String> {
    let comm = world.arranged(&[2, 3, 0, 1]);
    expect(comm.rank() == (world.rank() + 2) % 4, "the rank of the order")?;
    let own = Buf::from_vec(vec![world.rank() as u32]);
    let all = comm.all_gather(own, Buf::zeros(DType::U32, 4), "order").map_err(text)?.1;
    expect(all.typed::<u32>().map_err(text)? == [2, 3, 0, 1], "the processes in order")?;
    let pair = comm.split(comm.rank() as u64 / 2, "pair").map_err(text)?;
    let sum = Buf::from_vec(vec![comm.rank() as f64]);
    let sum = pair.all_reduce(sum, ReduceOp::Sum, "pair").map_err(text)?;
    let wanted = if comm.rank() < 2 { 1.0 } else { 5.0 };
    expect(sum.typed::<f64>().map_err(text)? == [wanted], "the sum of a pair")?;
    Ok(2)
}

/// Memory of operations that nobody waits for comes back when they are over, and not before.
fn dropped(world: &World) -> Result<usize, String> {
    let (comm, pool) = (world.comm(), Pool::new());
    for len in [4usize, 1 << 20] {
        let mut mine = pool.alloc(DType::F32, len).map_err(text)?;
        mine.typed_mut::<f32>().map_err(text)?.fill(1.0);
        let pending = comm.post_all_reduce(mine, ReduceOp::Sum, "dropped").map_err(text)?;
        if world.rank() == 0 {
            drop(pending);
            // Rank 1 has not come yet: it waits for this.
            expect(pool.stats().bytes_in_use == len * 4, "the buffer is still under way")?;
            comm.send(Buf::from_vec(vec![0u8]), 1, "go").map_err(text)?;
        } else {
            comm.recv(Buf::zeros(DType::U8, 1), 0, "go").map_err(text)?;
            let sum = pending.wait().map_err(text)?.send.unwrap();
            expect(sum.typed::<f32>().map_err(text)? == vec![2.0; len], "the sum")?;
        }
        comm.barrier("after").map_err(text)?;
        let started = Instant::now();
        while pool.stats().bytes_in_use != 0 && started.elapsed() < Duration::from_secs(30) {
            // Polls.
            comm.barrier("until it is over").map_err(text)?;
            if world.rank() == 1 {
                break;
            }
        }
        comm.barrier("settled").map_err(text)?;
        expect(pool.stats().bytes_in_use == 0, "the buffer is back in its pool")?;
    }
    Ok(2)
}

/// Large and small operations of all kinds under way at once, in the world and in parts of it.
fn long_mixture(world: &World) -> Result<usize, String> {
    let comm = world.comm();
    let part = comm.split(world.rank() as u64 % 2, "part").map_err(text)?;
    let mut passed = 0;
    for round in 0..20u64 {
        let len = 1usize << (round % 20);
        let fill = |value: f32| Buf::from_vec(vec![value; len]);
        let name = |label| Name::new(label).with("round", round);
        let large = comm
            .post_all_reduce(fill(world.rank() as f32 + 1.0), ReduceOp::Sum, name("sum"))
            .map_err(text)?;
        let next = (comm.rank() + 1) % 4;
        let previous = (comm.rank() + 3) % 4;
        let ring = comm
            .post_exchange(fill(comm.rank() as f32), next, fill(-1.0), previous, name("ring"))
            .map_err(text)?;
        let gathered = part
            .all_gather(fill(comm.rank() as f32), Buf::zeros(DType::F32, 2 * len), name("part"))
            .map_err(text)?
            .1;
        let first = (comm.rank() % 2) as f32;
        let wanted = [vec![first; len], vec![first + 2.0; len]].concat();
        expect(gathered.typed::<f32>().map_err(text)? == wanted, "gathered in parts")?;
        let ring = ring.wait().map_err(text)?.recv.unwrap();
        expect(ring.typed::<f32>().map_err(text)? == vec![previous as f32; len], "the ring")?;
        let large = large.wait().map_err(text)?.send.unwrap();
        expect(large.typed::<f32>().map_err(text)? == vec![10.0; len], "the sum")?;
        passed += 2;
    }
    Ok(passed)
}

fn mismatch(world: &World) -> Result<usize, String> {
    let comm = world.comm();
    let buf = || Buf::from_vec(vec![1.0f32; 8]);
    let result = match world.rank() {
        0 => comm.all_reduce(buf(), ReduceOp::Sum, "x").map(drop),
        1 => comm.all_reduce(buf(), ReduceOp::Max, "x").map(drop),
        _ => comm.broadcast(buf(), 0, "x").map(drop),
    };
    says(result, &["ranks disagree on operation #0", "rank 0 in all_reduce(sum)", "ranks.rs:"])
}

fn wrong_name(world: &World) -> Result<usize, String> {
    let comm = world.comm();
    let name = Name::new("grad").with("bucket", world.rank() as u64);
    let result = comm.all_reduce(Buf::zeros(DType::F32, 1 << 20), ReduceOp::Sum, name);
    says(result, &["\"grad bucket 0\" #0", "\"grad bucket 1\" #0", "group world[0,1]"])
}

fn wrong_length(world: &World) -> Result<usize, String> {
    let comm = world.comm();
    let result = if world.rank() == 0 {
        let sent = comm.send(Buf::zeros(DType::F32, 3), 1, "act");
        sent.and_then(|_| comm.barrier("after"))
    } else {
        comm.recv(Buf::zeros(DType::F32, 4), 0, "act").map(drop)
    };
    says(result, &["f32 × 3", "f32 × 4", "rank 1 in recv(from rank 0) \"act\" #0"])
}

fn split_names(world: &World) -> Result<usize, String> {
    let name = ["tp", "dp"][world.rank()];
    says(world.comm().split(0, name).map(drop), &["disagree on the name of their part"])
}

fn deadline(world: &World) -> Result<usize, String> {
    let comm = world.comm();
    let started = Instant::now();
    if world.rank() == 2 {
        // Hangs, and says nothing any more.
        std::thread::sleep(Duration::from_secs(6));
        return Ok(1);
    }
    let result = comm.all_reduce(Buf::from_vec(vec![1.0f64]), ReduceOp::Sum, "loss");
    let seconds = started.elapsed().as_secs_f64();
    // mpirun would end the rank that hangs with the first that ends.
    std::thread::sleep(Duration::from_secs(4));
    expect((2.9..6.0).contains(&seconds), &format!("the deadline took {seconds} s"))?;
    says(result, &["all_reduce(sum) \"loss\" #0", "rank 2 has not been heard of yet"]).or_else(
        |first| {
            // The first rank reports rank 2; the others learn it from there, or miss the first.
            let second = comm.barrier("after");
            says(second, &["loss"]).map_err(|second| format!("{first}; {second}"))
        },
    )
}

fn aborted(world: &World) -> Result<usize, String> {
    let comm = world.comm();
    if world.rank() == 1 {
        comm.abort("disk full");
        return says(comm.barrier("x"), &["stopped by rank 1: disk full"]);
    }
    let started = Instant::now();
    let part = comm.barrier("x");
    expect(started.elapsed() < Duration::from_secs(5), "the news took too long")?;
    says(part, &["stopped by rank 1: disk full"])
}

fn unmatched(world: &World) -> Result<usize, String> {
    let comm: Arc<dyn Communicator> = world.comm();
    if world.rank() == 0 {
        drop(comm.post_send(Buf::from_vec(vec![1u8]), 1, "lost").map_err(text)?);
    }
    comm.barrier("end").map_err(text)?;
    Ok(1)
}

fn other_thread(world: &World) -> Result<usize, String> {
    let comm = world.comm();
    let elsewhere = std::thread::scope(|scope| {
        scope.spawn(|| comm.post_barrier("elsewhere").map(drop)).join().unwrap()
    });
    says(elsewhere, &["only the thread that initialised MPI may communicate"])
}

/// More bytes than MPI can count.
fn large(world: &World) -> Result<usize, String> {
    let (comm, len) = (world.comm(), (2usize << 30) + 4097);
    // Page by page, so that it does not take minutes without optimisation.
    let page = |index: usize| [(index * 31 + index / 251) as u8; 4096];
    let operations = [Operation::Send { to: 1 }, Operation::Broadcast { root: 1 }];
    for operation in operations {
        let root = usize::from(operation != Operation::Send { to: 1 });
        let own = world.rank() == root;
        let mut fill = vec![0u8; len];
        if own {
            let pages = fill.chunks_mut(4096).enumerate();
            pages.for_each(|(index, bytes)| bytes.copy_from_slice(&page(index)[..bytes.len()]));
        }
        let buf = Buf::from_vec(fill);
        let got = match operation {
            Operation::Broadcast { root } => comm.broadcast(buf, root, "large"),
            _ if own => comm.send(buf, 1, "large"),
            _ => comm.recv(buf, 0, "large"),
        };
        let got = got.map_err(text)?;
        let got = got.typed::<u8>().map_err(text)?;
        let mut pages = got.chunks(4096).enumerate();
        expect(pages.all(|(index, bytes)| *bytes == page(index)[..bytes.len()]), "every byte")?;
    }
    Ok(operations.len())
}
