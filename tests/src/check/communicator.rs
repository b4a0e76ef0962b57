//! What ranks exchange: on one GPU that they share, and by NCCL where each has its own.

use super::{Machine, Options, Outcome, text};
use std::sync::Arc;
use trine_buffer::{Buf, DType};
use trine_comm::conformance::{self, Body, Elsewhere, Scope};
use trine_comm::threads::{self, WorldOptions};
use trine_comm::{CommError, Communicator, Delivery, ReduceOp};
use trine_nn::Numerics;
use trine_trainer::run::Devices;

/// Elements of a rank's share.
const LEN: usize = 1000;

pub(super) fn run(options: &Options) -> Result<Outcome, String> {
    let sizes: &[usize] = if options.simulated { &[2] } else { &[2, 4, 8] };
    let mut passed = 0;
    for &size in sizes {
        let machine = options.sharing(size)?;
        let launch = |ranks, delivery, body: Body<'_>| machine.run(ranks, delivery, body);
        let scope = Scope { sizes: &[size], deliveries: &[Delivery::Rendezvous] };
        passed += conformance::check(&launch, scope)?;
        machine.found()?;
    }
    let shared = format!("{passed} cases of ranks that share a GPU, to the bit");
    let Some((machine, ranks)) = options.with_own_gpus(8)? else {
        return Ok(Outcome::Passed(format!("{shared}; no NCCL: there is one GPU")));
    };
    let buffered = Delivery::Buffered;
    machine.run(ranks, buffered, |comm| whole_numbers(&comm).map_err(text))?;
    machine.found()?;
    Ok(Outcome::Passed(format!("{shared}; NCCL among {ranks} GPUs")))
}

impl Machine {
    /// Runs `body` on ranks whose buffers go by way of their GPU.
    fn run(
        &self,
        ranks: usize,
        delivery: Delivery,
        body: impl Fn(Arc<dyn Communicator>) -> Result<(), String> + Sync,
    ) -> Result<(), String> {
        let options = WorldOptions { delivery, device: self.ranks.shared(), ..Default::default() };
        let ran = threads::run(ranks, &options, |comm| {
            let ops = self.ranks.ops(comm.rank(), Numerics::Fast).map_err(text)?;
            let comm = self.ranks.communicator(comm).map_err(text)?;
            body(Elsewhere::around(comm, ops.place().clone()))
        });
        ran.map(drop).map_err(text)
    }
}

/// Operations on whole numbers, whose sums are the same in every order: NCCL's own is not ours to know.
fn whole_numbers(world: &Arc<dyn Communicator>) -> Result<(), CommError> {
    for dtype in [DType::F32, DType::Bf16] {
        all_reduce(&**world, dtype)?;
        parts(&**world, dtype)?;
        // Messages are for the ranks of a pipeline.
        ring(&*world.split(0, "pp")?, dtype)?;
    }
    Ok(())
}

/// Small enough for bf16 to hold their sum over eight ranks.
fn numbers(dtype: DType, rank: usize, len: usize) -> Buf {
    let value = |at: usize| (rank + at % 7) as f32;
    match dtype {
        DType::Bf16 => Buf::from_vec((0..len).map(|at| half::bf16::from_f32(value(at))).collect()),
        _ => Buf::from_vec((0..len).map(value).collect::<Vec<_>>()),
    }
}

fn all_reduce(comm: &dyn Communicator, dtype: DType) -> Result<(), CommError> {
    let (ranks, mine) = (comm.size(), numbers(dtype, comm.rank(), LEN));
    let sum = comm.all_reduce(mine, ReduceOp::Sum, "sum")?;
    let of_ranks = (ranks * (ranks - 1) / 2) as f64;
    expect("all-reduce", &sum, |at| of_ranks + (ranks * (at % 7)) as f64)?;
    let most = comm.all_reduce(numbers(dtype, comm.rank(), LEN), ReduceOp::Max, "most")?;
    expect("maximum", &most, |at| (ranks - 1 + at % 7) as f64)
}

fn parts(comm: &dyn Communicator, dtype: DType) -> Result<(), CommError> {
    let (ranks, rank) = (comm.size(), comm.rank());
    let mine = || numbers(dtype, rank, LEN);
    let (_, all) = comm.all_gather(mine(), Buf::zeros(dtype, ranks * LEN), "all")?;
    expect("all-gather", &all, |at| (at / LEN + at % LEN % 7) as f64)?;
    let (whole, part) = (numbers(dtype, rank, ranks * LEN), Buf::zeros(dtype, LEN));
    let (_, part) = comm.reduce_scatter(whole, part, ReduceOp::Sum, "part")?;
    let of_ranks = (ranks * (ranks - 1) / 2) as f64;
    expect("reduce-scatter", &part, |at| of_ranks + (ranks * ((rank * LEN + at) % 7)) as f64)?;
    let given = comm.broadcast(mine(), ranks - 1, "given")?;
    expect("broadcast", &given, |at| (ranks - 1 + at % 7) as f64)
}

fn ring(comm: &dyn Communicator, dtype: DType) -> Result<(), CommError> {
    let (ranks, rank) = (comm.size(), comm.rank());
    let (next, last) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
    let (mine, empty) = (numbers(dtype, rank, LEN), Buf::zeros(dtype, LEN));
    let (_, got) = comm.exchange(mine, next, empty, last, "ring")?;
    expect("exchange", &got, |at| (last + at % 7) as f64)
}

fn expect(what: &str, found: &Buf, expected: impl Fn(usize) -> f64) -> Result<(), CommError> {
    let found = found.slice().to_host()?.to_f64_vec()?;
    match found.iter().enumerate().find(|(at, x)| **x != expected(*at)) {
        None => Ok(()),
        Some((at, x)) => {
            let message = format!("{what}: element {at} is {x} instead of {}", expected(at));
            Err(CommError::Backend { backend: "check", message })
        }
    }
}
