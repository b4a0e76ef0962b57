//! Ranks that are threads and share a simulated GPU: the conformance suite of communicators bit for bit, and orders.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]

use std::panic::Location;
use std::path::Path;
use std::sync::Arc;
use trine_buffer::{Buf, DType, Place};
use trine_comm::conformance::{self, Body, Elsewhere, Scope};
use trine_comm::threads::{self, WorldOptions};
use trine_comm::wrap::Sealed;
use trine_comm::{CommError, Communicator, Delivery, ReduceOp};
use trine_gpu::{Checks, Device, GpuError, Gpus, Priority, SpanMut, Stream};
use trine_gpu_sim::{self as sim, Settings, Simulator, Source, compile};
use trine_gpu_sys::Search;
use trine_kernels_gpu::{Exchanges, Kernels, SOURCES};

const SIZES: [usize; 4] = [2, 3, 4, 8];
const SEEDS: [u64; 3] = [1, 2, 3];

/// A machine with one GPU that all ranks share.
struct Machine {
    sim: Simulator,
    device: Device,
    options: WorldOptions,
}

/// A rank: its communicator, and the stream and place of its buffers.
struct Rank {
    comm: Arc<dyn Communicator>,
    device: Device,
    stream: Stream,
    place: Place,
}

fn failed(error: GpuError) -> CommError {
    CommError::Backend { backend: "GPU", message: error.to_string() }
}

impl Machine {
    fn new(seed: u64, delivery: Delivery, checks: Checks) -> Self {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trine-gpu-sim-exchanges");
        let wanted = |name: &str| name.ends_with(".cuh") || name == "reduce.cu";
        let sources = SOURCES.iter().filter(|(name, _)| wanted(name));
        let sources: Vec<_> = sources.map(|&(name, text)| Source { name, text }).collect();
        let library = compile(&kept, &sources, sim::Checks::On).unwrap_or_else(|e| panic!("{e}"));
        let settings = Settings { devices: 1, seed, ..Settings::default() };
        let sim = Simulator::start(&library, &settings).unwrap();
        let search = Search::only(vec![sim.folder().to_owned()]);
        let device = Gpus::open(&search, checks).unwrap().device(0).unwrap();
        let stream = device.stream("exchanges", Priority::First).unwrap();
        let kernels = Kernels::load(&stream, [sim.image().as_str()]).unwrap();
        let shared = Arc::new(Exchanges::new(stream, kernels));
        let options = WorldOptions { delivery, device: Some(shared), ..WorldOptions::default() };
        Self { sim, device, options }
    }

    fn run<T: Send>(
        &self,
        ranks: usize,
        body: impl Fn(Rank) -> Result<T, CommError> + Sync,
    ) -> Result<Vec<T>, String> {
        let ran = threads::run(ranks, &self.options, |comm| {
            let stream = self.device.stream("compute", Priority::Normal).map_err(failed)?;
            let place = stream.place();
            body(Rank { comm, device: self.device.clone(), stream, place })
        });
        ran.map_err(|error| error.to_string())
    }

    #[track_caller]
    fn is_clean(&self) {
        assert_eq!(self.sim.reports(), Vec::<String>::new());
    }
}

impl Rank {
    fn ones(&self, len: usize) -> Result<Buf, CommError> {
        Ok(self.place.hold(Buf::from_vec(vec![1.0f32; len]))?)
    }
}

fn suite(size: usize, seed: u64, delivery: Delivery, is_sealed: bool) -> usize {
    let machine = Machine::new(seed, delivery, Checks::On);
    let launch = |ranks, _, body: Body<'_>| {
        let run = |rank: Rank| {
            let comm =
                if is_sealed { Sealed::around(rank.comm.clone()) } else { rank.comm.clone() };
            let failed = |message| CommError::Backend { backend: "suite", message };
            body(Elsewhere::around(comm, rank.place.clone())).map_err(failed)
        };
        machine.run(ranks, run).map(drop)
    };
    let scope = Scope { sizes: &[size], deliveries: &[delivery] };
    let passed = conformance::check(&launch, scope)
        .unwrap_or_else(|error| panic!("{error}: {:?}", machine.sim.reports()));
    machine.is_clean();
    assert_eq!(passed, conformance::cases(scope));
    passed
}

#[test]
fn the_suite_passes_on_a_shared_gpu() {
    let mut passed = 0;
    for (at, size) in SIZES.into_iter().enumerate() {
        for seed in SEEDS {
            let delivery = [Delivery::Buffered, Delivery::Rendezvous][(at + seed as usize) % 2];
            passed += suite(size, seed, delivery, false);
        }
    }
    assert!(passed > 5000, "{passed}");
}

#[test]
fn sealed_operations_pass_too() {
    assert!(suite(2, 1, Delivery::Buffered, true) > 400);
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
    let machine = Machine::new(1, Delivery::Buffered, Checks::On);
    let error = machine.run(2, |rank| reduce_before_the_gradient(&rank)).unwrap_err();
    for words in ["`reduce_f32` on stream `exchanges` reads", "`fill` on stream `backward` writes"]
    {
        assert!(error.contains(words), "{error}");
    }
    // Without the ledger the simulator finds it, with every seed.
    for seed in SEEDS {
        let machine = Machine::new(seed, Delivery::Buffered, Checks::Off);
        machine.run(2, |rank| reduce_before_the_gradient(&rank)).unwrap();
        let reports = machine.sim.reports();
        let named = |report: &String| {
            report.contains("`reduce_f32`") && report.contains("no event orders the two")
        };
        assert!(reports.iter().any(named), "seed {seed}: {reports:?}");
    }
}

/// The host waits for nothing, results are there, and what comes back may be used again at once.
#[test]
fn no_host_waits_for_the_device() {
    for (seed, delivery) in
        SEEDS.into_iter().zip([Delivery::Buffered, Delivery::Rendezvous].repeat(2))
    {
        let machine = Machine::new(seed, delivery, Checks::On);
        let ran = machine.run(4, |rank| {
            let (next, last) = ((rank.comm.rank() + 1) % 4, (rank.comm.rank() + 3) % 4);
            let act = Buf::from_vec(vec![rank.comm.rank() as f32; 64]);
            let act = rank.place.hold(act)?;
            let (grad, dropped, empty) = (rank.ones(64)?, rank.ones(64)?, rank.ones(64)?);
            rank.comm.barrier("all are here")?;
            let waits = machine.sim.counters().host_waits;
            rank.comm.barrier("nobody has begun")?;
            let sum = rank.comm.post_all_reduce(grad, ReduceOp::Sum, "grad")?;
            let recv = rank.comm.post_recv(empty, last, "act")?;
            let mut act = rank.comm.send(act, next, "act")?;
            // The message has left, or its stream waits until it has.
            act.slice_mut().zero()?;
            let act_in = recv.wait()?.into_recv(Location::caller())?;
            let sum = sum.wait()?.into_send(Location::caller())?;
            drop(rank.comm.post_all_reduce(dropped, ReduceOp::Sum, "dropped")?);
            let again = rank.place.zeros(DType::F32, 64)?;
            rank.comm.barrier("all have queued")?;
            let waited = machine.sim.counters().host_waits - waits;
            rank.comm.barrier("nobody has waited")?;
            assert_eq!(waited, 0, "a host has waited");
            assert_eq!(act_in.to_f64_vec()?, vec![last as f64; 64]);
            assert_eq!(sum.to_f64_vec()?, vec![4.0; 64]);
            assert_eq!(again.to_f64_vec()?, vec![0.0; 64]);
            Ok(())
        });
        ran.unwrap();
        machine.is_clean();
    }
}

#[test]
fn what_a_shared_gpu_cannot_do_is_said() {
    let machine = Machine::new(1, Delivery::Buffered, Checks::On);
    // A world without the device.
    let error = threads::run(2, &WorldOptions::default(), |comm| {
        let stream = machine.device.stream("compute", Priority::Normal).map_err(failed)?;
        let buf = stream.place().zeros(DType::F32, 4)?;
        comm.all_reduce(buf, ReduceOp::Sum, "grad").map(drop)
    });
    let error = error.unwrap_err().to_string();
    for words in ["all_reduce(sum) \"grad\" #0, f32 × 4", "WorldOptions::device"] {
        assert!(error.contains(words), "{error}");
    }
    // One rank's buffer lies on the host.
    let error = machine.run(2, |rank| {
        let buf = if rank.comm.rank() == 0 { rank.ones(4)? } else { Buf::zeros(DType::F32, 4) };
        rank.comm.all_reduce(buf, ReduceOp::Sum, "grad").map(drop)
    });
    let error = error.unwrap_err();
    assert!(error.contains("a buffer of 4 f32 lies on the host"), "{error}");
    let error = machine
        .run(17, |rank| rank.comm.all_reduce(rank.ones(4)?, ReduceOp::Sum, "grad").map(drop));
    let error = error.unwrap_err();
    assert!(error.contains("1 to 16 ranks that share it, not 17"), "{error}");
}
