//! Packed sequences: their gradient is the sum over their documents, in every layout.
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]

use trine_buffer::DType;
use trine_mesh::Degrees;
use trine_models::zoo;
use trine_nn::Numerics;
use trine_schedule::ScheduleKind;
use trine_spec::{Family, ModelSpec};
use trine_testkit::assemble::Tensors;
use trine_testkit::{tolerance, toy};
use trine_tests::compare::{different_bits, findings};
use trine_tests::layouts::Layout;
use trine_tests::{Mutation, Outcome, Samples, packed, serial, step_on};
use trine_trainer::RunPlan;
use trine_trainer::engine::{Batch, EngineConfig, ZeroStage};
use trine_trainer::parity::worst;

/// Learned positions; rotary ones; a window; rotary ones and none in turns.
fn even_models() -> [ModelSpec; 4] {
    [toy::gpt(), toy::llama(2), toy::of(Family::Mistral), toy::mixed().swap_remove(0)]
}

/// Heads and features that three ranks share unevenly.
fn uneven_model() -> ModelSpec {
    toy::uneven(5, 5)
}

/// Sequences of twelve tokens, which two and three ranks split evenly.
fn base(model: ModelSpec) -> EngineConfig {
    EngineConfig { compute: DType::F64, seq: 12, ..serial(model) }
}

fn run(config: &EngineConfig, mutation: &Mutation<'_>) -> Result<Outcome, String> {
    let plan = RunPlan::new(config).map_err(|error| error.to_string())?;
    step_on(plan, &zoo, &|dp_index| packed::batch(config, dp_index).unwrap(), mutation)
}

/// The gradient that the documents of a step have alone.
fn sum_alone(config: &EngineConfig) -> Tensors {
    let whole = packed::batch(config, 0).unwrap();
    let documents = packed::documents(&whole, config.seq);
    assert!(documents.len() > 30, "{}", documents.len());
    assert!(documents.iter().any(|document| document.first > 0));
    packed::sum_alone(config, &documents).unwrap()
}

#[test]
fn the_gradient_of_packed_sequences_is_the_sum_over_their_documents() {
    for model in even_models().into_iter().chain([uneven_model()]) {
        let config = base(model);
        let sum = sum_alone(&config);
        let bound = tolerance::bound(DType::F64, &config.model);
        let error = |samples: &(dyn Fn(usize, Samples<'_>) -> Batch + Sync)| {
            let mutation = Mutation { samples, ..Mutation::NONE };
            worst(&run(&config, &mutation).unwrap().grads, &sum)
        };
        let (name, off) = error(Mutation::NONE.samples);
        assert!(off <= bound, "{name} is off by {off:e} > {bound:e}");
        // Without the mask, or with one that begins a token late, it is another gradient.
        let open = error(&|dp_index, samples| Batch { document_start: None, ..samples(dp_index) });
        let late = error(&|dp_index, samples| {
            let mut batch = samples(dp_index);
            batch.document_start.as_mut().unwrap().rotate_right(1);
            batch
        });
        for (name, off) in [open, late] {
            assert!(off > 1e9 * bound, "{name} is off by {off:e} only");
        }
    }
}

fn layout(tp: usize, pp: usize, dp: usize, sequence_parallel: bool) -> Layout {
    Layout {
        degrees: Degrees { tp, pp, dp, ..Degrees::SERIAL },
        schedule: if pp > 1 { ScheduleKind::ZbH1 } else { ScheduleKind::OneFOneB },
        virtual_stages: 1,
        zero: if dp > 1 { ZeroStage::Zero1 } else { ZeroStage::Zero0 },
        recompute: dp > 1,
        sequence_parallel,
    }
}

/// Holds layouts against the serial run of the same samples; says how many.
fn compare(model: &ModelSpec, numerics: Numerics, layouts: &[Layout]) -> usize {
    let base = EngineConfig { numerics, ..base(model.clone()) };
    let exact = run(&base, &Mutation::NONE).unwrap();
    for layout in layouts {
        let got = run(&layout.apply(&base), &Mutation::NONE);
        let found = match numerics {
            Numerics::Fast => findings(&got, &exact, tolerance::bound(DType::F64, model)),
            Numerics::Reference => different_bits(&got, &exact),
        };
        assert!(found.is_empty(), "{layout:?} of {model:?}: {found:?}");
    }
    layouts.len()
}

#[test]
fn layouts_with_packed_sequences_agree_with_the_serial_run() {
    let even = [
        layout(2, 1, 1, false),
        layout(2, 1, 1, true),
        layout(1, 2, 1, false),
        layout(1, 1, 2, false),
        layout(2, 2, 2, true),
    ];
    let uneven = [layout(3, 1, 1, true), layout(3, 2, 1, false)];
    let mut compared = 0;
    for model in even_models() {
        compared += compare(&model, Numerics::Fast, &even);
        compared += compare(&model, Numerics::Reference, &even);
    }
    compared += compare(&uneven_model(), Numerics::Fast, &[&even[..], &uneven].concat());
    assert_eq!(compared, 4 * 2 * 5 + 7);
}
