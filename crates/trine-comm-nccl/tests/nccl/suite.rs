//! The conformance suite with buffers on GPUs, as ranks that are threads.

use crate::machine::{Machine, Rank};
use trine_comm::conformance::{self, Body, Elsewhere, Scope};
use trine_comm::{CommError, Delivery};
use trine_gpu::Checks;

const SIZES: [usize; 4] = [2, 3, 4, 8];
const SEEDS: [u64; 3] = [1, 2, 3];

/// Bit for bit, as the simulated NCCL adds in the order of the host's communicators.
#[test]
fn the_suite_passes_on_gpus() {
    let (mut passed, mut expected) = (0, 0);
    for (at, size) in SIZES.into_iter().enumerate() {
        for seed in SEEDS {
            // A message is announced as the host's communicator delivers.
            let delivery = [Delivery::Buffered, Delivery::Rendezvous][(at + seed as usize) % 2];
            let mut machine = Machine::new(size, seed, Checks::On);
            machine.delivery = delivery;
            let launch = |ranks, _, body: Body<'_>| {
                let run = |rank: Rank| {
                    let comm = Elsewhere::around(rank.comm, rank.stream.place());
                    let failed = |message| CommError::Backend { backend: "suite", message };
                    body(comm).map_err(failed)
                };
                machine.run(ranks, |rank| rank, run).map(drop)
            };
            let scope = Scope { sizes: &[size], deliveries: &[delivery] };
            passed += conformance::check(&launch, scope)
                .unwrap_or_else(|error| panic!("{error}: {:?}", machine.sim.reports()));
            expected += conformance::cases(scope);
            machine.is_clean();
        }
    }
    assert_eq!((passed, passed > 5000), (expected, true));
}
