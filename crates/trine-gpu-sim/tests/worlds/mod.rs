//! The cases, and how a process of a world lives.

use crate::gpu::{Gpu, one};
use std::ffi::{c_char, c_int, c_void};
use std::process::{Child, Command, Stdio};
use std::ptr::null_mut;
use std::time::{Duration, Instant};
use trine_gpu_sim::{Checks, Settings};
use trine_gpu_sys::driver::{DevicePtr, Stream};
use trine_gpu_sys::nccl::{self, Comm, Config, IN_PROGRESS, UniqueId, element, reduction};
use trine_gpu_sys::{CallError, Nccl, Search, load};

/// What a rank does in a case.
struct Case {
    name: &'static str,
    /// How many ranks each process has.
    processes: &'static [usize],
    body: fn(&Rank<'_>),
    /// What the simulator of each process finds.
    reports: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case { name: "apart", processes: &[1, 1], body: operations, reports: &[] },
    Case { name: "mixed", processes: &[2, 1, 1], body: operations, reports: &[] },
    Case { name: "parts", processes: &[2, 2], body: parts, reports: &[] },
    Case { name: "busy", processes: &[1, 1], body: busy, reports: &[] },
    Case { name: "slow", processes: &[1, 1], body: slow, reports: &[] },
    Case {
        name: "death",
        processes: &[1, 1],
        body: death,
        reports: &["nccl: the process of rank 1 has ended"],
    },
    Case { name: "disagree", processes: &[1, 1], body: disagree, reports: &[] },
    Case { name: "one-device", processes: &[1, 1], body: |_| {}, reports: &[] },
];

const SEEDS: [u64; 3] = [1, 2, 3];

/// How long a process may take.
const PATIENCE: Duration = Duration::from_secs(120);

const LINK_DELAY_SECONDS: f64 = 0.2;

/// A rank: a thread with a device and a stream of its own.
struct Rank<'a> {
    gpu: &'a Gpu,
    nccl: &'a Nccl,
    rank: usize,
    size: usize,
    comm: Comm,
    stream: Stream,
}

fn at(address: DevicePtr) -> *mut c_void {
    address as *mut c_void
}

pub(crate) fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, name, seed, first, id] = args.as_slice()
        && word == "process"
    {
        let case = CASES.iter().find(|case| case.name == name).unwrap();
        return live(case, seed.parse().unwrap(), first.parse().unwrap(), decode(id));
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    let wanted = |case: &&Case| {
        filters.is_empty() || filters.iter().any(|filter| case.name.contains(filter.as_str()))
    };
    let mut worlds = 0;
    for case in CASES.iter().filter(wanted) {
        for seed in SEEDS {
            launch(case, seed);
            worlds += 1;
        }
    }
    println!("{worlds} worlds of processes passed");
    assert!(worlds > 0, "no case has such a name");
}

/// Starts a case's processes and waits for them.
fn launch(case: &Case, seed: u64) {
    let gpu = Gpu::with(&Settings { devices: 1, ..Settings::default() }, Checks::On);
    let id = unique_id(&nccl_of(&gpu));
    let mut first = 0;
    let children: Vec<Child> = case
        .processes
        .iter()
        .map(|ranks| {
            let mut process = Command::new(std::env::current_exe().unwrap());
            process.args([
                "process",
                case.name,
                &seed.to_string(),
                &first.to_string(),
                &encode(id),
            ]);
            first += ranks;
            process.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (index, mut child) in children.into_iter().enumerate() {
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if started.elapsed() > PATIENCE {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        // The one that dies says nothing.
        let expected = if case.name == "death" && index == 1 { "" } else { "passed\n" };
        assert_eq!(said, expected, "process {index} of `{}`, seed {seed}: {output:?}", case.name);
    }
}

/// A process of a world, with the ranks from `first` on.
fn live(case: &Case, seed: u64, first: usize, id: UniqueId) {
    let size = case.processes.iter().sum();
    let before = |index: &usize| case.processes[..*index].iter().sum::<usize>() == first;
    let here = case.processes[(0..case.processes.len()).find(before).unwrap()];
    let settings = Settings { devices: size as u32, seed, ..Settings::default() };
    let gpu = Gpu::with(&settings, Checks::On);
    let nccl = nccl_of(&gpu);
    if case.name == "slow" {
        gpu.sim.slow_link(LINK_DELAY_SECONDS);
    }
    std::thread::scope(|scope| {
        for rank in first..first + here {
            let (gpu, nccl) = (&gpu, &nccl);
            scope.spawn(move || {
                let is_alone = case.name == "one-device";
                gpu.on(if is_alone { 0 } else { rank });
                let (mut comm, mut config) = (Comm(null_mut()), Config::non_blocking());
                // SAFETY: writes one handle; the id is one that the library has made.
                let begun = unsafe {
                    nccl.comm_init(&mut comm, size as c_int, id, rank as c_int, &mut config)
                };
                assert!(begun.is_ok() || is_alone || begun.unwrap_err().code == IN_PROGRESS);
                let rank = Rank { gpu, nccl, rank, size, comm, stream: gpu.stream() };
                assert_eq!(rank.settled(comm), if is_alone { 5 } else { 0 });
                (case.body)(&rank);
                // SAFETY: the communicator is open, and not used again.
                let _ = unsafe { nccl.comm_destroy(comm) }; // one that was aborted is closed already
            });
        }
    });
    let reports = gpu.sim.reports();
    match (case.name, case.reports) {
        // Whoever has come second reports it.
        ("one-device", _) => {
            assert!(reports.iter().all(|text| text.contains("are on GPU 0")), "{reports:?}");
        }
        ("disagree", _) => {
            assert!(reports.iter().all(|text| text.contains("rank 1 calls")), "{reports:?}");
        }
        (_, []) => assert_eq!(reports, Vec::<String>::new()),
        (_, words) => one(&reports, words),
    }
    println!("passed");
}

impl Rank<'_> {
    fn buffer(&self, values: &[f32]) -> DevicePtr {
        self.gpu.buffer(values, self.stream)
    }

    fn read(&self, address: DevicePtr, len: usize) -> Vec<f32> {
        let out = self.gpu.download(address, len, self.stream);
        self.gpu.sync(self.stream).unwrap();
        self.gpu.read(out, len)
    }

    fn all_reduce(&self, x: DevicePtr, count: usize) -> Result<(), CallError> {
        let (from, to) = (at(x), at(x));
        // SAFETY: the simulator holds the addresses against its buffers.
        unsafe {
            self.nccl.all_reduce(
                from,
                to,
                count,
                element::F32,
                reduction::SUM,
                self.comm,
                self.stream,
            )
        }
    }

    /// The code that the communicator is in, once it goes on no more by itself.
    fn settled(&self, comm: Comm) -> c_int {
        self.state_until(comm, |code| code != IN_PROGRESS)
    }

    fn state_until(&self, comm: Comm, is_awaited: impl Fn(c_int) -> bool) -> c_int {
        let (mut code, started) = (0, Instant::now());
        loop {
            // SAFETY: writes one number.
            unsafe { self.nccl.comm_state(comm, &mut code) }.unwrap();
            if is_awaited(code) || started.elapsed() > PATIENCE / 2 {
                return code;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Every operation once, with values of which each rank can tell the result.
fn operations(rank: &Rank<'_>) {
    let (r, n) = (rank.rank as f32, rank.size as f32);
    let (nccl, comm, stream, size) = (rank.nccl, rank.comm, rank.stream, rank.size);
    let own: Vec<f32> = (0..2 * size).map(|i| 100.0 * r + i as f32).collect();
    let sums: Vec<f32> =
        (0..2 * size).map(|i| 100.0 * n * (n - 1.0) / 2.0 + n * i as f32).collect();
    let x = rank.buffer(&own);
    rank.all_reduce(x, 2 * size).unwrap();
    assert_eq!(rank.read(x, 2 * size), sums);

    let (from, part, all) = (rank.buffer(&own), rank.buffer(&[0.0; 2]), rank.buffer(&own));
    let (next, before) = ((rank.rank + 1) % size, (rank.rank + size - 1) % size);
    let got = rank.buffer(&[0.0; 2]);
    // SAFETY: the simulator holds the addresses against its buffers.
    unsafe {
        let f32s = element::F32;
        nccl.reduce_scatter(at(from), at(part), 2, f32s, reduction::SUM, comm, stream).unwrap();
        nccl.all_gather(at(part), at(all), 2, f32s, comm, stream).unwrap();
        nccl.group_start().unwrap();
        nccl.send(at(from), 2, f32s, next as c_int, comm, stream).unwrap();
        nccl.receive(at(got), 2, f32s, before as c_int, comm, stream).unwrap();
        nccl.group_end().unwrap();
    }
    assert_eq!(rank.read(all, 2 * size), sums);
    assert_eq!(rank.read(got, 2), [100.0 * before as f32, 100.0 * before as f32 + 1.0]);
    // SAFETY: as above.
    unsafe { nccl.broadcast(at(from), at(all), 2 * size, element::F32, 1, comm, stream) }.unwrap();
    assert_eq!(rank.read(all, 2), [100.0, 101.0]);
}

/// Parts within and across processes.
fn parts(rank: &Rank<'_>) {
    for (colour, partner) in [(rank.rank / 2, rank.rank ^ 1), (rank.rank % 2, rank.rank ^ 2)] {
        let (mut part, mut config) = (Comm(null_mut()), Config::non_blocking());
        let colour = colour as c_int;
        // SAFETY: writes one handle.
        let _ = unsafe { rank.nccl.comm_split(rank.comm, colour, 0, &mut part, &mut config) };
        assert_eq!(rank.settled(part), 0);
        let own = Rank { comm: part, ..*rank };
        let x = own.buffer(&[rank.rank as f32 + 1.0]);
        own.all_reduce(x, 1).unwrap();
        assert_eq!(own.read(x, 1), [(rank.rank + partner + 2) as f32]);
        // SAFETY: the communicator is open, and not used again.
        unsafe { rank.nccl.comm_destroy(part) }.unwrap();
    }
}

/// A rank that does something else does not keep the other from going on.
fn busy(rank: &Rank<'_>) {
    let x = rank.buffer(&[1.0; 4]);
    rank.all_reduce(x, 4).unwrap();
    if rank.rank == 1 {
        std::thread::sleep(Duration::from_millis(300));
    }
    let started = Instant::now();
    assert_eq!(rank.read(x, 4), [2.0; 4]);
    assert!(started.elapsed() < Duration::from_millis(250), "the device waited for its host");
}

fn slow(rank: &Rank<'_>) {
    let x = rank.buffer(&[1.0; 4]);
    let started = Instant::now();
    rank.all_reduce(x, 4).unwrap();
    assert_eq!(rank.read(x, 4), [2.0; 4]);
    let took = started.elapsed().as_secs_f64();
    assert!(took >= LINK_DELAY_SECONDS, "{took}");
}

/// Rank 1 ends without a word, behind an operation: rank 0 is told, and its stream goes on when it aborts.
fn death(rank: &Rank<'_>) {
    let x = rank.buffer(&[1.0; 4]);
    rank.all_reduce(x, 4).unwrap();
    assert_eq!(rank.read(x, 4), [2.0; 4]);
    if rank.rank == 1 {
        // The other one has its result when its stream has come so far.
        std::thread::sleep(Duration::from_millis(100));
        std::process::abort();
    }
    rank.all_reduce(x, 4).unwrap();
    assert_eq!(rank.state_until(rank.comm, |code| code != 0), 6);
    let again = rank.all_reduce(x, 4).unwrap_err();
    assert_eq!(again.name, "ncclRemoteError");
    abort(rank);
}

fn disagree(rank: &Rank<'_>) {
    let x = rank.buffer(&[1.0; 8]);
    rank.all_reduce(x, 8 - 4 * rank.rank).unwrap();
    assert_eq!(rank.state_until(rank.comm, |code| code != 0), 5);
    // Not before the other one knows as well.
    std::thread::sleep(Duration::from_millis(200));
    abort(rank);
}

fn abort(rank: &Rank<'_>) {
    // SAFETY: the communicator is open.
    unsafe { rank.nccl.comm_abort(rank.comm) }.unwrap();
    rank.gpu.sync(rank.stream).unwrap();
}

fn nccl_of(gpu: &Gpu) -> Nccl {
    let search = Search::only(vec![gpu.sim.folder().to_owned()]);
    load::<Nccl>(&nccl::CUDA, &search).unwrap().functions
}

fn unique_id(nccl: &Nccl) -> UniqueId {
    let mut id = UniqueId([0; 128]);
    // SAFETY: writes one id.
    unsafe { nccl.unique_id(&mut id) }.unwrap();
    id
}

fn encode(id: UniqueId) -> String {
    id.0.iter().map(|byte| format!("{:02x}", byte.cast_unsigned())).collect()
}

fn decode(text: &str) -> UniqueId {
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    UniqueId(std::array::from_fn(|at| byte(at).cast_signed() as c_char))
}
