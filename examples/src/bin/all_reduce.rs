//! Four ranks as threads add up a vector; then one of them calls another operation, and all are told.
#![expect(clippy::print_stdout, reason = "an example shows what it finds")]

use std::error::Error;
use trine::comm::{Buf, CommError, ReduceOp, threads};

fn main() -> Result<(), Box<dyn Error>> {
    // A buffer moves into the operation and comes back with the sum: meanwhile nobody can write to it.
    let sums = threads::run(4, &Default::default(), |comm| {
        let mine = Buf::from_vec(vec![comm.rank() as f32, 1.0]);
        let sum = comm.all_reduce(mine, ReduceOp::Sum, "gradient")?;
        Ok::<_, CommError>(sum.typed::<f32>()?.to_vec())
    })?;
    for (rank, sum) in sums.iter().enumerate() {
        println!("rank {rank} has {sum:?}");
    }

    // Rank 2 believes that the step is over. The others would wait for ever.
    let mistaken = threads::run(4, &Default::default(), |comm| {
        if comm.rank() == 2 {
            return comm.barrier("end of step");
        }
        comm.all_reduce(Buf::from_vec(vec![1.0f32; 2]), ReduceOp::Sum, "gradient").map(drop)
    });
    match mistaken {
        Ok(_) => Err("the mistake was not noticed".into()),
        Err(error) => {
            println!("\nwith a mistake on rank 2:\n{error}");
            Ok(())
        }
    }
}
