//! The cases, and how a process lives.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use trine_buffer::Place;
use trine_comm::{Buf, CommError, Communicator, Recorder, ReduceOp};
use trine_comm_nccl::{NcclOptions, join, open};
use trine_gpu::{Checks, Gpus, Priority};
use trine_gpu_sim::{self as sim, Settings, Simulator, compile};
use trine_gpu_sys::Search;
use trine_rendezvous::{Client, Store, StoreComm, StoreOptions, Token};

/// What a rank does, with buffers at its GPU's place.
type Body = fn(&dyn Communicator, &Place) -> Result<(), CommError>;

struct Case {
    name: &'static str,
    ranks: &'static [usize],
    body: Body,
    /// What the error of every rank that lives on must say; none: there is no error.
    error: &'static [&'static str],
    /// The rank that ends without a word.
    dies: Option<usize>,
}

const CASES: &[Case] = &[
    Case { name: "operations", ranks: &[2, 4], body: operations, error: &[], dies: None },
    Case {
        name: "death",
        ranks: &[2, 3],
        body: death,
        error: &["rank 1", "process"],
        dies: Some(1),
    },
    Case {
        name: "disagree",
        ranks: &[2],
        body: disagree,
        error: &["all_reduce(sum) \"a\" #0, f32 × 4", "all_reduce(sum) \"b\" #0, f32 × 4"],
        dies: None,
    },
];

const SEEDS: [u64; 3] = [1, 2, 3];

/// How long a process may take.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, name, ranks, rank, seed, store] = args.as_slice()
        && word == "rank"
    {
        let case = CASES.iter().find(|case| case.name == name).unwrap();
        let number = |text: &String| text.parse::<usize>().unwrap();
        return live(case, number(ranks), number(rank), number(seed) as u64, store);
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    let wanted = |case: &&Case| {
        filters.is_empty() || filters.iter().any(|filter| case.name.contains(filter.as_str()))
    };
    let mut worlds = 0;
    for case in CASES.iter().filter(wanted) {
        for (ranks, seed) in case.ranks.iter().flat_map(|ranks| SEEDS.map(|seed| (*ranks, seed))) {
            launch(case, ranks, seed);
            worlds += 1;
        }
    }
    println!("{worlds} worlds of processes passed");
    assert!(worlds > 0, "no case has such a name");
}

/// Starts a case's processes and waits for them.
fn launch(case: &Case, ranks: usize, seed: u64) {
    let token = Token::generate().unwrap();
    let bind = "127.0.0.1:0".parse().unwrap();
    let store = Store::bind(StoreOptions::new(bind, ranks, token.clone())).unwrap();
    let start = |rank: usize| {
        let mut process = Command::new(std::env::current_exe().unwrap());
        let numbers = [ranks, rank, seed as usize].map(|number| number.to_string());
        process.args(["rank", case.name]).args(numbers).arg(store.address().to_string());
        process.env("TRINE_TEST_TOKEN", token.reveal());
        process.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..ranks).map(start).collect();
    for (rank, mut child) in children.into_iter().enumerate() {
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if started.elapsed() > PATIENCE {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let output = child.wait_with_output().unwrap();
        let expected = if case.dies == Some(rank) { "" } else { "passed\n" };
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, expected, "rank {rank} of {ranks} in `{}`, seed {seed}", case.name);
    }
}

/// One rank.
fn live(case: &Case, ranks: usize, rank: usize, seed: u64, store: &str) {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trine-gpu-sim");
    let library = compile(&kept, &[], sim::Checks::On).unwrap();
    let settings =
        Settings { devices: ranks as u32, seed, patience_seconds: 30.0, ..Settings::default() };
    let sim = Simulator::start(&library, &settings).unwrap();
    let search = Search::only(vec![sim.folder().to_owned()]);
    let device = Gpus::open(&search, Checks::On).unwrap().device(rank).unwrap();
    let stream = device.stream("compute", Priority::Normal).unwrap();
    let nccl = open(&search).unwrap();

    let token: Token = std::env::var("TRINE_TEST_TOKEN").unwrap().parse().unwrap();
    let client = Client::connect(store.parse().unwrap(), &token, rank, "here", PATIENCE).unwrap();
    let recorder = Recorder::new(rank, "here");
    let watch = client.watch(&recorder, |_| {}).unwrap();
    let host = StoreComm::world(Arc::new(client), ranks, recorder, PATIENCE / 2);
    let options = NcclOptions { message_groups: &["world"], ..NcclOptions::default() };
    let place = stream.place();
    let ended = join(&nccl, &device, host, options).and_then(|comm| {
        (case.body)(&*comm, &place)?;
        comm.barrier("leave")
    });
    match (ended, case.error) {
        (Ok(()), []) => assert_eq!(sim.reports(), Vec::<String>::new()),
        (Err(error), words) => {
            let text = error.to_string();
            assert!(!words.is_empty() && words.iter().all(|word| text.contains(word)), "{text}");
        }
        (Ok(()), words) => panic!("no error that says {words:?}"),
    }
    watch.farewell();
    println!("passed");
}

/// Every kind of operation, with values of which each rank can tell the result.
fn operations(comm: &dyn Communicator, place: &Place) -> Result<(), CommError> {
    let (rank, size) = (comm.rank(), comm.size());
    let hold = |values: Vec<f32>| place.hold(Buf::from_vec(values));
    let own = |from: usize| (0..2 * size).map(|i| (100 * from + i) as f32).collect::<Vec<_>>();
    let sums: Vec<f32> = (0..2 * size).map(|i| (0..size).map(|from| own(from)[i]).sum()).collect();
    let read = |buf: Buf| -> Result<Vec<f32>, CommError> { Ok(buf.slice().to_host()?.into_vec()?) };

    assert_eq!(read(comm.all_reduce(hold(own(rank))?, ReduceOp::Sum, "sum")?)?, sums);
    let (_, part) =
        comm.reduce_scatter(hold(own(rank))?, hold(vec![0.0; 2])?, ReduceOp::Sum, "part")?;
    let (_, all) = comm.all_gather(part, hold(vec![0.0; 2 * size])?, "all")?;
    assert_eq!(read(all)?, sums);
    assert_eq!(read(comm.broadcast(hold(own(rank))?, size - 1, "last")?)?, own(size - 1));
    let (_, turned) = comm.all_to_all(hold(own(rank))?, hold(own(rank))?, "turned")?;
    let expected: Vec<f32> =
        (0..size).flat_map(|from| own(from)[2 * rank..2 * rank + 2].to_vec()).collect();
    assert_eq!(read(turned)?, expected);

    // Both neighbours of a ring send before they receive.
    let (next, last) = ((rank + 1) % size, (rank + size - 1) % size);
    let send = comm.post_send(hold(own(rank))?, next, "ring")?;
    let recv = comm.post_recv(hold(own(rank))?, last, "ring")?;
    assert_eq!(read(recv.wait()?.into_recv(std::panic::Location::caller())?)?, own(last));
    send.wait()?;

    // Words of the host, and a part of the group.
    let words = comm.all_reduce(Buf::from_vec(vec![rank as u64]), ReduceOp::Max, "words")?;
    assert_eq!(words.typed::<u64>()?, [size as u64 - 1]);
    let pair = comm.split(rank as u64 / 2, "pair")?;
    let sum = read(pair.all_reduce(hold(vec![rank as f32])?, ReduceOp::Sum, "pair")?)?;
    assert_eq!(sum, [(4 * (rank / 2) + 1) as f32]);
    Ok(())
}

/// Rank 1 ends behind the first operation; the others wait for their GPUs in the second.
fn death(comm: &dyn Communicator, place: &Place) -> Result<(), CommError> {
    let ones = || place.hold(Buf::from_vec(vec![1.0f32; 4]));
    let sum = comm.all_reduce(ones()?, ReduceOp::Sum, "first")?;
    sum.slice().to_host()?;
    comm.barrier("one ends")?;
    if comm.rank() == 1 {
        std::process::abort();
    }
    let sum = comm.all_reduce(sum, ReduceOp::Sum, "second")?;
    sum.slice().to_host()?;
    comm.check()
}

fn disagree(comm: &dyn Communicator, place: &Place) -> Result<(), CommError> {
    let ones = place.hold(Buf::from_vec(vec![1.0f32; 4]))?;
    let sum = comm.all_reduce(ones, ReduceOp::Sum, ["a", "b"][comm.rank()])?;
    sum.slice().to_host()?;
    comm.barrier("end")
}
