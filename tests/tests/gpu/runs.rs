//! A step of training, with an update and the loss after it, in layouts.

use crate::machine::{Accesses, Machine};
use trine_buffer::DType;
use trine_mesh::Degrees;
use trine_nn::Numerics;
use trine_schedule::ScheduleKind;
use trine_spec::ModelSpec;
use trine_testkit::toy;
use trine_tests::compare::{beside, different_bits, findings};
use trine_tests::{Mutation, Outcome, serial, step};
use trine_trainer::engine::{EngineConfig, ZeroStage};

/// A step of `config` on simulated GPUs, each with its own rank, or all ranks on one.
fn on_gpus(
    config: &EngineConfig,
    gpus: u32,
    seed: u64,
    accesses: Accesses,
) -> Result<Outcome, String> {
    let machine = Machine::new(gpus, config.degrees.world(), seed, accesses);
    let devices: Option<&dyn trine_trainer::run::Devices> = Some(&machine.ranks);
    let outcome = step(config, &Mutation { devices, ..Mutation::NONE });
    machine.is_clean();
    outcome
}

fn small(model: ModelSpec, compute: DType) -> EngineConfig {
    EngineConfig { compute, global_batch: 4, ..serial(model) }
}

#[test]
fn one_rank_computes_on_a_gpu_what_it_does_on_the_processor() {
    for model in [toy::gpt(), toy::llama(2)] {
        for compute in [DType::F32, DType::Bf16] {
            let config = small(model.clone(), compute);
            let (exact, bound) = beside(compute, &config.model, 1);
            let exact = EngineConfig { compute: exact, ..config.clone() };
            let exact = step(&exact, &Mutation::NONE).unwrap();
            let found = findings(&on_gpus(&config, 1, 1, Accesses::On), &exact, bound);
            assert!(found.is_empty(), "{compute}: {found:?}");
        }
    }
}
