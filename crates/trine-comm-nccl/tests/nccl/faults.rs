//! What goes wrong, by its name, on every rank, without a hang; and what must not.

use crate::machine::{Machine, Rank};
use std::time::{Duration, Instant};
use trine_comm::{Buf, CommError, DType, Name, ReduceOp, threads};
use trine_comm_nccl::{join, open};
use trine_gpu::{Checks, GpuError, Priority, SpanMut};
use trine_gpu_sys::Search;
use trine_testkit::gpu::stub;

fn failed(error: GpuError) -> CommError {
    CommError::Backend { backend: "GPU", message: error.to_string() }
}

impl Rank {
    /// Ones on this rank's GPU.
    fn ones(&self, len: usize) -> Result<Buf, CommError> {
        Ok(self.stream.place().hold(Buf::from_vec(vec![1.0f32; len]))?)
    }

    /// Waits for all work of the rank's own stream.
    fn synchronize(&self) -> Result<(), CommError> {
        self.stream.synchronize().map_err(failed)
    }
}

/// What the failure of a world says, which must come soon, and on each rank.
fn failure(
    machine: &Machine,
    ranks: usize,
    body: impl Fn(&Rank) -> Result<(), CommError> + Sync,
) -> (String, Vec<String>) {
    let started = Instant::now();
    let told = std::sync::Mutex::new(vec![String::new(); ranks]);
    let run = |rank: Rank| {
        let result = body(&rank);
        if let Err(error) = &result {
            told.lock().unwrap()[rank.comm.rank()] = error.to_string();
        }
        result
    };
    let first = machine.run(ranks, |rank| rank, run).expect_err("a failure");
    assert!(started.elapsed() < Duration::from_secs(15), "it took {:?}", started.elapsed());
    (first, told.into_inner().unwrap())
}

fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{text:?} lacks {word:?}");
    }
}

#[test]
fn ranks_that_disagree_are_told_both_calls() {
    let machine = Machine::new(2, 1, Checks::On);
    let (first, told) = failure(&machine, 2, |rank| {
        let name = Name::new("grad").with("bucket", rank.comm.rank() as u64);
        let sum = rank.comm.all_reduce(rank.ones(8)?, ReduceOp::Sum, name)?;
        // The GPU would stand still here for ever.
        sum.slice().to_host()?;
        rank.comm.barrier("end")
    });
    has(&first, &["grad bucket 0\" #0", "grad bucket 1\" #0", "faults.rs"]);
    assert!(told.iter().all(|told| !told.is_empty()), "{told:?}");

    // The names agree, the lengths do not; and a message.
    let machine = Machine::new(2, 2, Checks::On);
    let (first, _) = failure(&machine, 2, |rank| {
        let sum = rank.comm.all_reduce(rank.ones(8 + rank.comm.rank())?, ReduceOp::Sum, "grad")?;
        sum.slice().to_host()?;
        rank.comm.barrier("end")
    });
    has(&first, &["all_reduce(sum) \"grad\" #0, f32 × 8", "f32 × 9"]);
    let machine = Machine::new(2, 3, Checks::On);
    let (first, _) = failure(&machine, 2, |rank| {
        let buf = rank.ones(4 + rank.comm.rank())?;
        let buf = match rank.comm.rank() {
            0 => rank.comm.send(buf, 1, "act")?,
            _ => rank.comm.recv(buf, 0, "act")?,
        };
        buf.slice().to_host()?;
        rank.comm.barrier("end")
    });
    has(&first, &["send(to rank 1) \"act\" #0, f32 × 4", "recv(from rank 0) \"act\" #0, f32 × 5"]);
}

#[test]
fn two_ranks_on_one_gpu_are_refused() {
    let machine = Machine::new(1, 1, Checks::On);
    let error = machine.run(2, |_| 0, |_| Ok(())).unwrap_err();
    has(&error, &["ncclInvalidUsage", "two ranks of a communicator are on GPU 0"]);
}

/// The libraries of a host are one version, those of another host another.
#[test]
fn ranks_with_two_versions_of_nccl_are_refused() {
    let (machine, folder) = (Machine::new(2, 1, Checks::On), tempfile::tempdir().unwrap());
    stub(folder.path(), "libnccl.so.2", &["-DNCCL=21903"]).unwrap();
    let other = open(&Search::only(vec![folder.path().to_owned()])).unwrap();
    let error = threads::run(2, &Default::default(), |host| {
        let nccl = if host.rank() == 0 { &machine.nccl } else { &other };
        let device = machine.gpus.device(host.rank()).map_err(failed)?;
        join(nccl, &device, host, machine.options).map(drop)
    });
    let error = error.unwrap_err().to_string();
    has(&error, &["ranks have different versions: rank 0 has ", "rank 1 has 2.19.3"]);
}

#[test]
fn a_failure_of_nccl_stops_every_rank() {
    let machine = Machine::new(3, 1, Checks::On);
    let (first, told) = failure(&machine, 3, |rank| {
        let x = rank.comm.all_reduce(rank.ones(8)?, ReduceOp::Sum, "first")?;
        rank.comm.barrier("one fails")?;
        if rank.comm.rank() == 0 {
            machine.sim.fail_call(0);
        }
        rank.comm.barrier("from now on")?;
        let x = rank.comm.all_reduce(x, ReduceOp::Sum, "second")?;
        x.slice().to_host()?;
        rank.comm.barrier("end")
    });
    has(&first, &["NCCL", "a failure that the test asked for"]);
    assert!(told.iter().all(|told| !told.is_empty()), "{told:?}");
}

#[test]
fn a_lost_gpu_stops_every_rank() {
    let machine = Machine::new(3, 1, Checks::On);
    let (first, told) = failure(&machine, 3, |rank| {
        let x = rank.comm.all_reduce(rank.ones(8)?, ReduceOp::Sum, "first")?;
        rank.comm.barrier("one is lost")?;
        if rank.comm.rank() == 1 {
            machine.sim.lose_device(1);
        }
        let x = rank.comm.all_reduce(x, ReduceOp::Sum, "second")?;
        x.slice().to_host()?;
        rank.comm.barrier("end")
    });
    has(&first, &["rank 1", "CUDA_ERROR_DEVICE_UNAVAILABLE"]);
    assert!(told.iter().all(|told| !told.is_empty()), "{told:?}");
}

/// The others wait for their GPUs, not for an operation of the host.
#[test]
fn a_rank_that_fails_by_itself_stops_those_that_wait_for_their_gpu() {
    let machine = Machine::new(2, 1, Checks::On);
    let (first, told) = failure(&machine, 2, |rank| {
        if rank.comm.rank() == 1 {
            std::thread::sleep(Duration::from_millis(50));
            return Err(CommError::Backend { backend: "disk", message: "full".into() });
        }
        let x = rank.comm.all_reduce(rank.ones(8)?, ReduceOp::Sum, "grad")?;
        x.slice().to_host()?;
        rank.comm.check()
    });
    has(&first, &["rank 1 failed: disk: full"]);
    has(&told[0], &["stopped by rank 1: disk: full"]);
}

#[test]
fn an_abort_stops_later_calls_at_once() {
    let machine = Machine::new(2, 1, Checks::On);
    let (first, told) = failure(&machine, 2, |rank| {
        let x = rank.comm.all_reduce(rank.ones(8)?, ReduceOp::Sum, "first")?;
        rank.comm.barrier("one aborts")?;
        if rank.comm.rank() == 0 {
            rank.comm.abort("disk full");
        } else {
            while rank.comm.check().is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        rank.comm.all_reduce(x, ReduceOp::Sum, "second").map(drop)
    });
    has(&first, &["stopped by rank 0: disk full"]);
    for told in told {
        has(&told, &["stopped by rank 0: disk full"]);
    }
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let mut machine = Machine::new(2, 1, Checks::On);
    machine.options.deadline = Duration::from_millis(300);
    let (first, told) = failure(&machine, 2, |rank| {
        if rank.comm.rank() == 1 {
            // It does something else, until it is told.
            while rank.comm.check().is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
            return rank.comm.check();
        }
        let x = rank.comm.all_reduce(rank.ones(8)?, ReduceOp::Sum, "grad")?;
        x.slice().to_host()?;
        rank.comm.check()
    });
    has(&first, &["all_reduce(sum) \"grad\" #0", "waited", "rank 1"]);
    has(&told[1], &["stopped by rank 0"]);
}

#[test]
fn an_operation_that_all_have_called_and_that_does_not_end_is_named() {
    let mut machine = Machine::new(2, 1, Checks::On);
    machine.options.deadline = Duration::from_millis(300);
    let (first, _) = failure(&machine, 2, |rank| {
        rank.comm.barrier("the link stands still")?;
        machine.sim.slow_link(100.0);
        let x = rank.comm.all_reduce(rank.ones(8)?, ReduceOp::Sum, "grad")?;
        x.slice().to_host()?;
        rank.comm.check()
    });
    has(&first, &["all_reduce(sum) \"grad\" #0", "all its ranks have called it", "has not ended"]);
}

#[test]
fn messages_need_a_group_with_ways() {
    let mut machine = Machine::new(2, 1, Checks::On);
    machine.options.message_groups = &["pp"];
    let (first, _) = failure(&machine, 2, |rank| {
        rank.comm
            .exchange(
                rank.ones(4)?,
                1 - rank.comm.rank(),
                rank.ones(4)?,
                1 - rank.comm.rank(),
                "act",
            )
            .map(drop)
    });
    has(&first, &["exchange(to rank", "only those of pp", "NcclOptions::message_groups"]);
    // A part of that name has them.
    let sums = machine.run(
        2,
        |rank| rank,
        |rank| {
            let pair = rank.comm.split(0, "pp")?;
            let other = 1 - rank.comm.rank();
            let mine = rank.stream.place().hold(Buf::from_vec(vec![rank.comm.rank() as f32]))?;
            let (_, theirs) = pair.exchange(mine, other, rank.ones(1)?, other, "act")?;
            Ok(theirs.slice().to_host()?.typed::<f32>()?[0])
        },
    );
    assert_eq!(sums.unwrap(), [1.0, 0.0]);
}

/// A gradient that another stream writes than the one that its buffer belongs to.
fn reduce_before_the_gradient(rank: &Rank) -> Result<Vec<f32>, CommError> {
    let mut grad = rank.ones(64)?;
    let other = rank.device.stream("backward", Priority::Normal).map_err(failed)?;
    other.wait(&rank.stream.record().map_err(failed)?).map_err(failed)?;
    other.fill(SpanMut::of(grad.slice_mut()).map_err(failed)?, 0).map_err(failed)?;
    let sum = rank.comm.all_reduce(grad, ReduceOp::Sum, "grad")?;
    Ok(sum.slice().to_host()?.into_vec()?)
}

#[test]
fn a_reduction_that_does_not_wait_for_its_gradient_is_found() {
    let machine = Machine::new(2, 1, Checks::On);
    let (_, told) = failure(&machine, 2, |rank| reduce_before_the_gradient(rank).map(drop));
    let words = [
        "`all_reduce \"grad\"` on stream `collectives of world`",
        "`fill` on stream `backward` writes",
        "no event orders the two",
    ];
    // The ledger also finds, and tells the next who asks, that the buffer is freed beside it.
    let named = |told: &String| words.iter().all(|word| told.contains(word));
    assert!(told.iter().any(named), "{told:?}");
    // Without the ledger the simulator finds it, with every seed.
    for seed in 1..4 {
        let machine = Machine::new(2, seed, Checks::Off);
        machine.run(2, |rank| rank, |rank| reduce_before_the_gradient(&rank)).unwrap();
        let reports = machine.sim.reports();
        let words = ["all-reduce of rank", "no event orders the two"];
        let named = |report: &String| words.iter().all(|word| report.contains(word));
        assert!(reports.iter().any(named), "seed {seed}: {reports:?}");
    }
}

/// The result is the own stream's; another one must wait for it.
#[test]
fn a_result_on_the_wrong_stream_is_found() {
    let machine = Machine::new(2, 1, Checks::On);
    let (first, _) = failure(&machine, 2, |rank| {
        let other = rank.device.stream("update", Priority::Normal).map_err(failed)?;
        let mut sum = rank.comm.all_reduce(rank.ones(64)?, ReduceOp::Sum, "grad")?;
        other.fill(SpanMut::of(sum.slice_mut()).map_err(failed)?, 0).map_err(failed)
    });
    has(
        &first,
        &["`fill` on stream `update` writes", "`all_reduce \"grad\"`", "no event orders the two"],
    );
}

/// Nobody waits for the operation, and its buffer is used again at once.
#[test]
fn an_operation_that_is_dropped_keeps_its_buffer_to_its_end() {
    for seed in 1..4 {
        let machine = Machine::new(2, seed, Checks::Off);
        let ran = machine.run(
            2,
            |rank| rank,
            |rank| {
                drop(rank.comm.post_all_reduce(rank.ones(64)?, ReduceOp::Sum, "dropped")?);
                let next = rank.stream.place().zeros(DType::F32, 64)?;
                rank.synchronize()?;
                rank.comm.barrier("end")?;
                Ok(next.to_f64_vec()?)
            },
        );
        assert_eq!(ran.unwrap(), vec![vec![0.0; 64]; 2]);
        machine.is_clean();
    }
}

/// What is queued behind the start of a reduction runs beside it, and the host waits for neither.
#[test]
fn a_reduction_runs_beside_what_comes_after_its_start() {
    let machine = Machine::new(2, 1, Checks::On);
    let ran = machine.run(
        2,
        |rank| rank,
        |rank| {
            let (grad, mut other) = (rank.ones(64)?, rank.ones(64)?);
            rank.comm.barrier("all have joined")?;
            machine.sim.slow_link(0.5);
            let waits = machine.sim.counters().host_waits;
            rank.comm.barrier("the link is slow")?;
            let started = Instant::now();
            let sum = rank.comm.post_all_reduce(grad, ReduceOp::Sum, "grad")?;
            other.slice_mut().zero()?;
            let beside = rank.stream.record().map_err(failed)?;
            let sum = sum.wait()?.into_send(std::panic::Location::caller())?;
            let waited = machine.sim.counters().host_waits - waits;
            rank.comm.barrier("nobody waits before all have looked")?;
            assert_eq!(waited, 0, "a host has waited");
            beside.synchronize().map_err(failed)?;
            let beside = started.elapsed();
            let sum = sum.to_f64_vec()?;
            Ok((beside.as_secs_f64(), started.elapsed().as_secs_f64(), sum[0]))
        },
    );
    for (beside, all, sum) in ran.unwrap() {
        assert!(beside < 0.4 && all >= 0.5, "{beside} s beside it, {all} s in all");
        assert_eq!(sum, 2.0);
    }
    machine.is_clean();
}
