//! Dropout masks are functions of global coordinates (contract C1): with dropout on, every layout still
//! computes what the serial run computes.

use trine_buffer::DType;
use trine_mesh::Degrees;
use trine_nn::Numerics;
use trine_schedule::ScheduleKind;
use trine_spec::ModelSpec;
use trine_testkit::{tolerance, toy};
use trine_tests::compare::{Check, findings};
use trine_tests::layouts::Layout;
use trine_tests::{Mutation, Outcome, serial, step};
use trine_trainer::engine::{EngineConfig, ZeroStage};

const DROPOUT: f64 = 0.2;

fn layouts() -> Vec<Layout> {
    let mut layouts = Vec::new();
    for (tp, pp, dp) in
        [(2, 1, 1), (4, 1, 1), (1, 2, 1), (1, 4, 1), (1, 1, 2), (1, 1, 4), (2, 2, 2)]
    {
        for (recompute, sequence_parallel) in [(false, false), (true, true)] {
            let degrees = Degrees { tp, pp, dp, ..Degrees::SERIAL };
            let (schedule, zero) = (ScheduleKind::OneFOneB, ZeroStage::Zero1);
            layouts.push(Layout {
                degrees,
                schedule,
                virtual_stages: 1,
                zero,
                recompute,
                sequence_parallel,
            });
        }
    }
    layouts
}

fn models() -> [ModelSpec; 2] {
    [toy::gpt(), toy::llama(1)].map(|model| ModelSpec { dropout: DROPOUT.into(), ..model })
}

fn run(config: &EngineConfig) -> Outcome {
    step(config, &Mutation::NONE).unwrap_or_else(|error| panic!("{:?}: {error}", config.degrees))
}

#[test]
fn layouts_with_dropout_meet_the_bound_in_fast_numerics() {
    let mut compared = 0;
    for model in models() {
        let base = serial(model);
        let exact = run(&EngineConfig { compute: DType::F64, ..base.clone() });
        for layout in layouts() {
            let got = step(&layout.apply(&base), &Mutation::NONE);
            let found = findings(&got, &exact, tolerance::bound(DType::F32, &base.model));
            assert!(found.is_empty(), "{layout:?}: {found:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * 14);
}

#[test]
fn layouts_with_dropout_are_bit_equal_in_reference_numerics() {
    let mut compared = 0;
    for model in models() {
        let base = EngineConfig { numerics: Numerics::Reference, ..serial(model) };
        let exact = run(&base);
        for layout in layouts() {
            assert!(run(&layout.apply(&base)) == exact, "{layout:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * 14);
}

#[test]
fn a_missing_mask_is_noticed() {
    for model in models() {
        let base = serial(model);
        let exact = run(&EngineConfig { compute: DType::F64, ..base.clone() });
        let bound = tolerance::bound(DType::F32, &base.model);
        let dry = ModelSpec { dropout: 0.0.into(), ..base.model.clone() };
        let found =
            findings(&step(&EngineConfig { model: dry, ..base }, &Mutation::NONE), &exact, bound);
        let checks: Vec<Check> = found.iter().map(|finding| finding.check).collect();
        assert_eq!(checks, [Check::Gradients, Check::Loss, Check::Norm, Check::LossAfter]);
    }
}
