//! NCCL among threads: what it computes, in any order, and what happens when ranks disagree or fail.

use crate::gpu::{Gpu, one};
use half::bf16;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Barrier;
use trine_gpu_sim::{Checks, Settings};
use trine_gpu_sys::driver::{DevicePtr, Stream};
use trine_gpu_sys::nccl::{self, Comm, Config, IN_PROGRESS, UniqueId, element, reduction};
use trine_gpu_sys::{CallError, Nccl, Search, load};

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

impl Rank<'_> {
    /// Floats of this rank in its device's memory.
    fn buffer(&self, values: &[f32]) -> DevicePtr {
        self.gpu.buffer(values, self.stream)
    }

    fn read(&self, address: DevicePtr, len: usize) -> Vec<f32> {
        let out = self.gpu.download(address, len, self.stream);
        self.gpu.sync(self.stream).unwrap();
        self.gpu.read(out, len)
    }

    fn all_reduce(
        &self,
        from: DevicePtr,
        to: DevicePtr,
        count: usize,
        stream: Stream,
    ) -> Result<(), CallError> {
        // SAFETY: the simulator holds the addresses against its buffers.
        unsafe {
            self.nccl.all_reduce(
                at(from),
                at(to),
                count,
                element::F32,
                reduction::SUM,
                self.comm,
                stream,
            )
        }
    }

    /// The code that the communicator is in.
    fn state(&self, comm: Comm) -> c_int {
        let mut code = 0;
        // SAFETY: writes one number.
        unsafe { self.nccl.comm_state(comm, &mut code) }.unwrap();
        code
    }
}

fn machine(devices: u32, seed: u64, patience_seconds: f64) -> Gpu {
    Gpu::with(&Settings { devices, seed, patience_seconds, ..Settings::default() }, Checks::On)
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

/// A call of a communicator that does not block: begun is no failure.
fn begun(result: Result<(), CallError>) {
    assert!(result.as_ref().err().is_none_or(|error| error.code == IN_PROGRESS), "{result:?}");
}

/// Runs `work` on each rank, when all of them are ready, and returns what they return.
fn ranks<T: Send>(gpu: &Gpu, size: usize, work: impl Fn(Rank<'_>) -> T + Sync) -> Vec<T> {
    let nccl = nccl_of(gpu);
    let (id, ready) = (unique_id(&nccl), Barrier::new(size));
    let (nccl, ready, work) = (&nccl, &ready, &work);
    let run = |rank: usize| {
        gpu.on(rank);
        let (mut comm, mut config) = (Comm(null_mut()), Config::non_blocking());
        // SAFETY: writes one handle; the id is one that the library has made.
        begun(unsafe { nccl.comm_init(&mut comm, size as c_int, id, rank as c_int, &mut config) });
        let rank = Rank { gpu, nccl, rank, size, comm, stream: gpu.stream() };
        while rank.state(comm) == IN_PROGRESS {
            std::thread::yield_now();
        }
        ready.wait();
        work(rank)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn collectives_and_messages_compute_in_any_order() {
    let mut worlds = 0;
    for size in [1, 2, 3, 4, 8] {
        for seed in 0..3 {
            let gpu = machine(size as u32, seed, 5.0);
            ranks(&gpu, size, |rank| check(&rank));
            assert_eq!(gpu.sim.reports(), Vec::<String>::new(), "{size} ranks, seed {seed}");
            worlds += 1;
        }
    }
    assert_eq!(worlds, 15);
}

/// Every operation once, with values of which each rank can tell the result.
fn check(rank: &Rank<'_>) {
    let (r, n) = (rank.rank as f32, rank.size as f32);
    let (nccl, comm, stream) = (rank.nccl, rank.comm, rank.stream);
    let (size, last) = (rank.size, rank.size - 1);
    let own: Vec<f32> = (0..2 * size).map(|i| 100.0 * r + i as f32).collect();
    let from = rank.buffer(&own);
    let sum = |i: usize| 100.0 * n * (n - 1.0) / 2.0 + n * i as f32;
    let empty = |len: usize| rank.gpu.alloc(4 * len, stream).unwrap();

    let to = empty(2 * size);
    rank.all_reduce(from, to, 2 * size, stream).unwrap();
    assert_eq!(rank.read(to, 2 * size), (0..2 * size).map(sum).collect::<Vec<_>>());

    let to = empty(2);
    let all = empty(2 * size);
    let root = last as c_int;
    let whole = rank.buffer(&vec![-1.0; 2 * size]);
    // SAFETY: the simulator holds the addresses against its buffers.
    unsafe {
        let (f32s, sums) = (element::F32, reduction::SUM);
        nccl.reduce_scatter(at(from), at(to), 2, f32s, sums, comm, stream).unwrap();
        nccl.all_gather(at(to), at(all), 2, f32s, comm, stream).unwrap();
        nccl.reduce(at(from), at(whole), 2 * size, f32s, reduction::MAX, root, comm, stream)
            .unwrap();
    }
    assert_eq!(rank.read(all, 2 * size), (0..2 * size).map(sum).collect::<Vec<_>>());
    let largest: Vec<f32> = (0..2 * size).map(|i| 100.0 * (n - 1.0) + i as f32).collect();
    assert_eq!(
        rank.read(whole, 2 * size),
        if rank.rank == last { largest } else { vec![-1.0; 2 * size] }
    );

    // Around a ring, both directions of a rank together.
    let (next, before) = ((rank.rank + 1) % size, (rank.rank + last) % size);
    let to = empty(2);
    // SAFETY: as above.
    unsafe {
        nccl.broadcast(at(from), at(all), 2 * size, element::F32, 0, comm, stream).unwrap();
        nccl.group_start().unwrap();
        nccl.send(at(from), 2, element::F32, next as c_int, comm, stream).unwrap();
        nccl.receive(at(to), 2, element::F32, before as c_int, comm, stream).unwrap();
        nccl.group_end().unwrap();
    }
    assert_eq!(rank.read(all, 2 * size), (0..2 * size).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(rank.read(to, 2), [100.0 * before as f32, 100.0 * before as f32 + 1.0]);

    // Two numbers of bf16, and four bytes, in place.
    let half = |value: f32| u32::from(bf16::from_f32(value).to_bits());
    let pair = rank.buffer(&[f32::from_bits(half(r + 1.0) | half(-r) << 16)]);
    let bytes = rank.buffer(&[f32::from_bits(u32::from_ne_bytes([rank.rank as u8, 1, 200, 0]))]);
    // SAFETY: as above.
    unsafe {
        nccl.all_reduce(at(pair), at(pair), 2, element::BF16, reduction::SUM, comm, stream)
            .unwrap();
        nccl.all_reduce(at(bytes), at(bytes), 4, element::U8, reduction::MAX, comm, stream)
            .unwrap();
    }
    let sum = n * (n - 1.0) / 2.0;
    assert_eq!(rank.read(pair, 1)[0].to_bits(), half(sum + n) | half(-sum) << 16);
    assert_eq!(rank.read(bytes, 1)[0].to_bits().to_ne_bytes(), [last as u8, 1, 200, 0]);
}

/// Two by two, as the communicators of the CPU add.
#[test]
fn sums_follow_the_tree_over_ranks() {
    // 1 + (1e8 - 1e8) would be 1, and ((1e8 + 0) + 4) + 4 be 1e8.
    let cases: [(&[f32], f32); 2] =
        [(&[1.0, 1e8, -1e8], 0.0), (&[1e8, 0.0, 4.0, 4.0], 100_000_008.0)];
    for (values, sum) in cases {
        let size = values.len();
        let gpu = machine(size as u32, 1, 5.0);
        let sums = ranks(&gpu, size, |rank| {
            let x = rank.buffer(&[values[rank.rank]]);
            rank.all_reduce(x, x, 1, rank.stream).unwrap();
            rank.read(x, 1)[0]
        });
        assert_eq!(sums, vec![sum; size]);
    }
}

#[test]
fn a_group_is_split_by_colour_and_ordered_by_key() {
    let gpu = machine(5, 2, 5.0);
    let found = ranks(&gpu, 5, |mut rank| {
        let colour = if rank.rank == 4 { -1 } else { (rank.rank % 2) as c_int };
        let (mut part, mut config) = (Comm(null_mut()), Config::non_blocking());
        let key = -(rank.rank as c_int);
        // SAFETY: writes one handle.
        begun(unsafe { rank.nccl.comm_split(rank.comm, colour, key, &mut part, &mut config) });
        if colour < 0 {
            return (part.0.is_null(), Vec::new());
        }
        while rank.state(part) == IN_PROGRESS {
            std::thread::yield_now();
        }
        rank.comm = part;
        let (x, all) = (rank.buffer(&[rank.rank as f32]), rank.gpu.alloc(8, rank.stream).unwrap());
        // SAFETY: the simulator holds the addresses against its buffers.
        unsafe { rank.nccl.all_gather(at(x), at(all), 1, element::F32, part, rank.stream) }
            .unwrap();
        (false, rank.read(all, 2))
    });
    let [even, odd] = [vec![2.0, 0.0], vec![3.0, 1.0]];
    let expected =
        [(false, even.clone()), (false, odd.clone()), (false, even), (false, odd), (true, vec![])];
    assert_eq!(found, expected);
    assert_eq!(gpu.sim.reports(), Vec::<String>::new());
}

#[test]
fn a_reduction_before_its_gradient_is_found() {
    for seed in 0..8 {
        for has_event in [true, false] {
            let gpu = machine(2, seed, 5.0);
            ranks(&gpu, 2, |rank| {
                let (communication, x) = (rank.gpu.stream(), rank.buffer(&[0.0; 64]));
                rank.gpu.sync(rank.stream).unwrap();
                rank.gpu.upload(x, &[1.0; 64], rank.stream);
                if has_event || rank.rank == 0 {
                    rank.gpu.wait(communication, rank.gpu.record(rank.stream));
                }
                rank.all_reduce(x, x, 64, communication).unwrap();
                rank.gpu.sync(communication).unwrap();
                rank.gpu.sync(rank.stream).unwrap();
            });
            let reports = gpu.sim.reports();
            assert_eq!(reports.is_empty(), has_event, "seed {seed}: {reports:?}");
            for report in reports {
                let names = report.contains("`all-reduce of rank 1`")
                    && report.contains("`copy to device`");
                assert!(names && report.contains("no event orders the two"), "{report}");
            }
        }
    }
}

#[test]
fn ranks_that_disagree_are_told_and_stand_still_until_they_abort() {
    let gpu = machine(2, 1, 5.0);
    let ready = Barrier::new(2);
    ranks(&gpu, 2, |rank| {
        let x = rank.buffer(&[1.0; 8]);
        let first = rank.all_reduce(x, x, 8 - 4 * rank.rank, rank.stream);
        ready.wait();
        assert!(first.is_ok());
        assert_eq!(rank.state(rank.comm), 5);
        let again = rank.all_reduce(x, x, 8, rank.stream).unwrap_err();
        assert_eq!(again.name, "ncclInvalidUsage");
        // SAFETY: the communicator is open, and not used again.
        unsafe { rank.nccl.comm_abort(rank.comm) }.unwrap();
        rank.gpu.sync(rank.stream).unwrap();
    });
    let reports = gpu.sim.reports();
    let calls = [
        "rank 0 calls all-reduce of 8 elements of type 7",
        "rank 1 calls all-reduce of 4 elements of type 7",
    ];
    one(&reports, &calls);
}

#[test]
fn a_rank_that_does_not_come_is_waited_for_in_vain() {
    let gpu = machine(2, 1, 0.2);
    let errors = ranks(&gpu, 2, |rank| {
        let x = rank.buffer(&[1.0; 8]);
        if rank.rank == 1 {
            return rank.gpu.sync(rank.stream).err();
        }
        rank.all_reduce(x, x, 8, rank.stream).unwrap();
        rank.gpu.sync(rank.stream).err()
    });
    let names = errors.into_iter().map(|error| error.map(|error| error.name));
    assert_eq!(names.collect::<Vec<_>>(), [Some("CUDA_ERROR_LAUNCH_TIMEOUT".to_owned()), None]);
    one(&gpu.sim.reports(), &["nothing goes on; stream", "stands before `all-reduce of rank 0`"]);
}

/// Both send first, and nothing makes the two calls of a rank one.
#[test]
fn messages_that_wait_for_each_other_without_a_group_stand_still() {
    let gpu = machine(2, 1, 0.2);
    let posted = Barrier::new(2);
    let errors = ranks(&gpu, 2, |rank| {
        let (x, other) = (rank.buffer(&[1.0; 8]), 1 - rank.rank as c_int);
        // SAFETY: the simulator holds the addresses against its buffers.
        unsafe {
            rank.nccl.send(at(x), 4, element::F32, other, rank.comm, rank.stream).unwrap();
            rank.nccl.receive(at(x + 16), 4, element::F32, other, rank.comm, rank.stream).unwrap();
        }
        posted.wait();
        rank.gpu.sync(rank.stream).err()
    });
    assert!(errors.iter().all(Option::is_some), "{errors:?}");
    let reports = gpu.sim.reports();
    assert!(reports[0].contains("stands before `send to 1 of rank 0`"), "{reports:?}");
    assert!(reports[0].contains("stands before `send to 0 of rank 1`"), "{reports:?}");
}

#[test]
fn a_test_makes_a_call_fail() {
    let gpu = machine(2, 1, 5.0);
    let ready = Barrier::new(2);
    gpu.sim.fail_call(2);
    ranks(&gpu, 2, |rank| {
        let x = rank.buffer(&[1.0; 8]);
        rank.all_reduce(x, x, 8, rank.stream).unwrap();
        assert_eq!(rank.read(x, 8), [2.0; 8]);
        ready.wait();
        let _ = rank.all_reduce(x, x, 8, rank.stream);
        ready.wait();
        assert_eq!(rank.state(rank.comm), 2);
        // SAFETY: the communicator is open, and not used again.
        unsafe { rank.nccl.comm_abort(rank.comm) }.unwrap();
        rank.gpu.sync(rank.stream).unwrap();
    });
    one(&gpu.sim.reports(), &["nccl: a failure that the test asked for"]);
}

#[test]
fn a_communicator_that_blocks_waits_for_its_ranks() {
    let join = |gpu: &Gpu, nccl: &Nccl, id: UniqueId, rank: usize| {
        gpu.on(rank);
        let (mut comm, mut config) = (Comm(null_mut()), Config::non_blocking());
        config.blocking = 1;
        // SAFETY: writes one handle; the id is one that the library has made.
        unsafe { nccl.comm_init(&mut comm, 2, id, rank as c_int, &mut config) }
    };
    let gpu = machine(2, 1, 60.0);
    let nccl = nccl_of(&gpu);
    let (id, on, by) = (unique_id(&nccl), &gpu, &nccl);
    let results = std::thread::scope(|scope| {
        let threads = [0, 1].map(|rank| scope.spawn(move || join(on, by, id, rank)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(results, [Ok(()), Ok(())]);

    let gpu = machine(2, 1, 0.2);
    let nccl = nccl_of(&gpu);
    let alone = join(&gpu, &nccl, unique_id(&nccl), 0);
    assert_eq!(alone.unwrap_err().name, "ncclSystemError");
    one(&gpu.sim.reports(), &["nccl: not all ranks of a communicator have come"]);
}

#[test]
fn two_ranks_on_one_device_are_refused() {
    let gpu = machine(1, 1, 5.0);
    let nccl = nccl_of(&gpu);
    let id = unique_id(&nccl);
    gpu.on(0);
    let mut comms = [Comm(null_mut()); 2];
    for (rank, comm) in comms.iter_mut().enumerate() {
        let mut config = Config::non_blocking();
        // SAFETY: writes one handle; the id is one that the library has made.
        let result = unsafe { nccl.comm_init(comm, 2, id, rank as c_int, &mut config) };
        let code = result.unwrap_err().code;
        assert_eq!(code, [IN_PROGRESS, 5][rank]);
    }
    one(&gpu.sim.reports(), &["nccl: two ranks of a communicator are on GPU 0"]);
}
