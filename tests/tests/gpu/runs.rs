//! A step of training, with an update and the loss after it, in layouts.

use std::sync::Arc;
use trine_buffer::DType;
use trine_comm::threads::{self, WorldOptions};
use trine_mesh::Degrees;
use trine_nn::Numerics;
use trine_testkit::toy;
use trine_tests::compare::{different_bits, findings};
use trine_tests::gpu::{Accesses, Machine, eight_ranks, exact, small};
use trine_tests::{ADAMW, Mutation, Outcome, batch, step};
use trine_trainer::engine::{Engine, EngineConfig};
use trine_trainer::run::Devices;
use trine_trainer::{RunPlan, TrainError};

/// A step of `config` on simulated GPUs.
fn on_gpus(
    config: &EngineConfig,
    gpus: u32,
    seed: u64,
    accesses: Accesses,
) -> Result<Outcome, String> {
    let machine = Machine::new(gpus, config.degrees.world(), seed, accesses)?;
    machine.run(&Mutation::NONE, |mutation| step(config, mutation))
}

#[test]
fn one_rank_computes_on_a_gpu_what_it_does_on_the_processor() {
    for model in [toy::gpt(), toy::llama(2)] {
        for compute in [DType::F32, DType::Bf16] {
            let config = small(model.clone(), compute);
            let (exact, bound) = exact(&config).unwrap();
            let found = findings(&on_gpus(&config, 1, 1, Accesses::On), &exact, bound);
            assert!(found.is_empty(), "{compute}: {found:?}");
        }
    }
}

#[test]
fn eight_ranks_that_share_a_gpu_agree_with_the_serial_run() {
    let mut seed = 0;
    for model in [toy::gpt(), toy::llama(2)] {
        for layout in eight_ranks() {
            let config = layout.apply(&small(model.clone(), DType::F32));
            let (exact, bound) = exact(&config).unwrap();
            seed += 1;
            let found = findings(&on_gpus(&config, 1, seed, Accesses::Off), &exact, bound);
            assert!(found.is_empty(), "{layout:?}, seed {seed}: {found:?}");
        }
    }
    assert_eq!(seed, 8);
}

#[test]
fn eight_ranks_with_a_gpu_each_agree_with_the_serial_run() {
    for (number, layout) in eight_ranks().into_iter().enumerate() {
        let model = if number % 2 == 0 { toy::gpt() } else { toy::llama(2) };
        let base = EngineConfig { optimizer: ADAMW, ..small(model, DType::Bf16) };
        let config = layout.apply(&base);
        let (exact, bound) = exact(&config).unwrap();
        let seed = 10 + number as u64;
        let found = findings(&on_gpus(&config, 8, seed, Accesses::Off), &exact, bound);
        assert!(found.is_empty(), "{layout:?}, seed {seed}: {found:?}");
    }
}

/// In reference numerics every layout has the bits of one rank on the same device.
#[test]
fn layouts_are_bit_equal_in_reference_numerics() {
    for (seed, model) in [toy::gpt(), toy::llama(2)].into_iter().enumerate() {
        let base = EngineConfig { numerics: Numerics::Reference, ..small(model, DType::F32) };
        let alone = on_gpus(&base, 1, 1, Accesses::Off).unwrap();
        for layout in eight_ranks().into_iter().skip(seed).step_by(2) {
            let config = layout.apply(&base);
            let found = different_bits(&on_gpus(&config, 1, seed as u64, Accesses::Off), &alone);
            assert!(found.is_empty(), "{layout:?}: {found:?}");
        }
    }
}

/// Losses and norm are read once a step. One rank has what a step needs from the first ones; how many messages of
/// several are on their way at once is a matter of time.
#[test]
fn a_step_has_one_wait_of_the_host_and_allocates_nothing() {
    for (gpus, degrees) in [(1, Degrees::SERIAL), (1, eight_ranks()[0].degrees)] {
        let base = EngineConfig { optimizer: ADAMW, ..small(toy::llama(2), DType::Bf16) };
        let config = EngineConfig { degrees, ..base };
        let ranks = degrees.world();
        let machine = Machine::new(gpus, ranks, 3, Accesses::Off).unwrap();
        let plan = Arc::new(RunPlan::new(&config).unwrap());
        let options = WorldOptions { device: machine.ranks.shared(), ..Default::default() };
        let counted = threads::run(ranks, &options, |comm| {
            let ops = machine.ranks.ops(comm.rank(), config.numerics)?;
            let batch = batch(&config, plan.mesh.coordinate(comm.rank()).dp);
            let mut engine = Engine::with_ops(plan.clone(), comm.clone(), ops)?;
            let mut counters = Vec::new();
            for step in 0..6 {
                engine.train(step, 0.01, &batch, &mut |_, _, _| {})?;
                comm.barrier("counting")?;
                counters.push(machine.sim.counters());
                comm.barrier("counted")?;
            }
            Ok::<_, TrainError>(counters)
        });
        let counters = &counted.unwrap()[0];
        for pair in counters[2..].windows(2) {
            assert_eq!(pair[1].host_waits - pair[0].host_waits, ranks as u64, "{counters:?}");
            let allocated = pair[1].allocations - pair[0].allocations;
            assert!(allocated == 0 || ranks > 1, "{counters:?}");
        }
        assert_eq!(machine.sim.reports(), Vec::<String>::new());
    }
}
