//! Blocks that the zoo does not have, one whole on every tensor-parallel rank and one shared out, against the serial
//! run: to the bit in reference numerics, in fast ones within the zoo's bound.

use trine_buffer::DType;
use trine_nn::Numerics;
use trine_spec::ModelSpec;
use trine_testkit::{tolerance, toy};
use trine_tests::compare::findings;
use trine_tests::layouts::{self, Layout};
use trine_tests::{ADAMW, Mutation, Outcome, own, serial, step_of};
use trine_trainer::RunPlan;
use trine_trainer::engine::EngineConfig;

/// Tied embeddings, and embeddings apart with fewer KV heads.
fn models() -> [ModelSpec; 2] {
    [toy::gpt(), toy::llama(2)]
}

fn run(config: &EngineConfig) -> Result<Outcome, String> {
    let parts = own::parts(&config.model, config.degrees.tp).map_err(|error| error.to_string())?;
    let plan = RunPlan::of_parts(config, parts).map_err(|error| error.to_string())?;
    step_of(plan, &own::build, &Mutation::NONE)
}

fn base(model: ModelSpec, numerics: Numerics) -> EngineConfig {
    EngineConfig { numerics, optimizer: ADAMW, ..serial(model) }
}

#[test]
fn own_pieces_are_bit_equal_in_reference_numerics() {
    let mut compared = 0;
    for model in models() {
        let base = base(model, Numerics::Reference);
        let exact = run(&base).unwrap();
        let own = |name: &&String| name.starts_with("whole.") || name.starts_with("shared.");
        assert_eq!(exact.grads.keys().filter(own).count(), 4 + 5);
        for (name, grad) in &exact.grads {
            assert!(grad.iter().any(|value| *value != 0.0), "{name} has no gradient");
        }
        for layout in layouts::own_pieces() {
            let got = run(&layout.apply(&base)).unwrap();
            for (name, grad) in &got.grads {
                assert!(*grad == exact.grads[name], "{layout:?}: gradient of {name} differs");
            }
            assert!(got == exact, "{layout:?}: {} {} {}", got.loss, got.loss_after, got.norm);
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * layouts::own_pieces().len());
}

#[test]
fn own_pieces_meet_the_bound_of_the_zoo_in_fast_numerics() {
    let check = |layout: &Layout, base: &EngineConfig, exact: &Outcome| {
        let bound = tolerance::bound(base.compute, &base.model);
        let found = findings(&run(&layout.apply(base)), exact, bound);
        assert_eq!(found, [], "{layout:?}");
    };
    for model in models() {
        let base = base(model, Numerics::Fast);
        let exact = run(&EngineConfig { compute: DType::F64, ..base.clone() }).unwrap();
        layouts::own_pieces().iter().for_each(|layout| check(layout, &base, &exact));
    }
}
