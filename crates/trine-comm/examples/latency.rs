//! How long collectives take between ranks that are threads: `cargo run --release --example latency`.

use std::time::Instant;
use trine_buffer::{Buf, DType};
use trine_comm::{CommError, Delivery, ReduceOp, threads};

fn micros(
    ranks: usize,
    (dtype, bytes): (DType, usize),
    delivery: Delivery,
    step: impl Fn(&dyn trine_comm::Communicator, Buf) -> Result<Buf, CommError> + Sync,
) -> Result<f64, threads::WorldError<CommError>> {
    const ROUNDS: u32 = 2000;
    let options = threads::WorldOptions { delivery, ..Default::default() };
    let times = threads::run(ranks, &options, |comm| {
        let mut buf = Buf::zeros(dtype, bytes / dtype.bytes());
        for _ in 0..50 {
            buf = step(&*comm, buf)?;
        }
        let start = Instant::now();
        for _ in 0..ROUNDS {
            buf = step(&*comm, buf)?;
        }
        Ok::<_, CommError>(start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS))
    })?;
    Ok(times.into_iter().fold(0.0, f64::max))
}

#[expect(clippy::print_stdout, reason = "a measurement to look at")]
fn main() -> Result<(), threads::WorldError<CommError>> {
    for ranks in [2, 4, 8] {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for kib in [0, 64, 512] {
                let reduce = micros(ranks, (dtype, kib << 10), Delivery::Buffered, |comm, buf| {
                    comm.all_reduce(buf, ReduceOp::Sum, "x")
                })?;
                println!("{ranks} ranks, {dtype:4} {kib:4} KiB: all_reduce {reduce:8.1} µs");
            }
        }
    }
    for delivery in [Delivery::Buffered, Delivery::Rendezvous] {
        let ping = micros(2, (DType::F32, 64 << 10), delivery, |comm, buf| {
            if comm.rank() == 0 {
                let buf = comm.send(buf, 1, "ping")?;
                comm.recv(buf, 1, "pong")
            } else {
                let buf = comm.recv(buf, 0, "ping")?;
                comm.send(buf, 0, "pong")
            }
        })?;
        println!("2 ranks, 64 KiB there and back, {delivery:?}: {ping:.1} µs");
    }
    Ok(())
}
