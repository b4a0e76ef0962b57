//! Two linear layers whose inner features two ranks share, beside the same layers on one rank.
#![expect(clippy::print_stdout, reason = "an example shows what it finds")]

use std::error::Error;
use std::sync::Arc;
use trine::buffer::{Act, Buf, DType, Pool};
use trine::comm::{Communicator, Name, SelfComm, threads};
use trine::kernels::{CpuOps, Team};
use trine::nn::{Context, GradStore, Numerics, ParamId, ParamStore, Rows, initial_weights};
use trine::shard::{ColumnLinear, RowLinear, Section, Stream, TensorGroup};
use trine::spec::{Init, ParamSpec, RankLayout};

const HIDDEN: usize = 16;
const INNER: usize = 64;

/// Output and input gradient, with y as its own gradient.
fn run(comm: Arc<dyn Communicator>) -> Result<[Vec<f64>; 2], Box<dyn Error + Send + Sync>> {
    let (tp, init) = (comm.size(), Init::Normal { std: 0.1 });
    let up = ParamSpec::new("up", &[INNER, HIDDEN], init).split(0, INNER);
    let down = ParamSpec::new("down", &[HIDDEN, INNER], init).split(1, INNER);
    let layout = Arc::new(RankLayout::of(vec![up, down], tp, comm.rank())?);
    let (ops, pool, fast) = (CpuOps::new(Team::new(1)), Pool::new(), Numerics::Fast);
    let ctx = Context::train(&ops, &pool, DType::F64, Rows { samples: 0..2, seq: 4 });
    // Each rank draws its slice of the same global weights.
    let mut weights = ParamStore::zeros(layout.clone(), DType::F64);
    weights.load(0, initial_weights(&layout, 0, 1, DType::F64)?.slice(), &ops)?;
    let mut grads = GradStore::new(layout.clone(), DType::F64, fast);

    let group = TensorGroup::new(comm, false);
    let find = |name| ParamId::find(&layout, &[name]).map(|id| (id, None));
    let own = [Section::own(INNER / tp)];
    let up = ColumnLinear::new(group.clone(), find("up")?, HIDDEN, &own, fast, Name::new("up"));
    let down = RowLinear::new(group, find("down")?, INNER / tp, HIDDEN, fast, Name::new("down"));

    let x = (0..8 * HIDDEN).map(|i| (i as f64).sin()).collect();
    let x = Stream::assume(Act::new(Buf::from_vec(x)));
    let (inner, of_up) = up.forward(&weights, &x, &ctx)?;
    let (y, of_down) = down.forward(&weights, inner, &ctx)?;
    let (d_inner, work) = down.backward_input(&weights, of_down, &y, &ctx, &mut grads)?;
    work.run(&ctx, &mut grads)?;
    let (dx, work) = up.backward_input(&weights, of_up, d_inner, &ctx, &mut grads)?;
    work.run(&ctx, &mut grads)?;
    Ok([y.to_f64_vec()?, dx.to_f64_vec()?])
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let serial = run(SelfComm::new())?;
    for (rank, split) in threads::run(2, &Default::default(), run)?.iter().enumerate() {
        let pairs = split.iter().flatten().zip(serial.iter().flatten());
        let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("rank {rank}: output and input gradient are within {off:.0e} of one rank's");
    }
    Ok(())
}
