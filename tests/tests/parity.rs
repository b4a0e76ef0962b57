//! Every layout against the serial run: loss, gradient norm and every gradient.

use trine_buffer::DType;
use trine_nn::Numerics;
use trine_spec::{Family, ModelSpec};
use trine_testkit::{relative_error, tolerance, toy};
use trine_tests::compare::{beside, findings};
use trine_tests::layouts::{self, Layout};
use trine_tests::{ADAMW, Mutation, Outcome, serial, step};
use trine_trainer::engine::EngineConfig;

/// The models that are compared: a vocabulary of 1009, tied embeddings and five layers; KV heads
/// fewer than ranks; one KV head.
fn models() -> [ModelSpec; 3] {
    [toy::gpt(), toy::llama(2), toy::llama(1)]
}

/// The same with heads for eight ranks, in GPT one for each; in Llama four ranks share a KV head.
fn models_of_eight_heads() -> [ModelSpec; 2] {
    let eight = |model| ModelSpec { heads: 8, head_dim: 4, ..model };
    [ModelSpec { kv_heads: 8, ..eight(toy::gpt()) }, eight(toy::llama(2))]
}

fn run(config: &EngineConfig) -> Outcome {
    step(config, &Mutation::NONE).unwrap_or_else(|error| panic!("{:?}: {error}", config.degrees))
}

/// Compares a layout with the serial f64 run within the derived bound, in fast numerics.
fn compare_fast(layout: &Layout, base: &EngineConfig, exact: &Outcome) {
    let got = step(&layout.apply(base), &Mutation::NONE);
    let found = findings(&got, exact, tolerance::bound(base.compute, &base.model));
    let messages: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(messages.is_empty(), "{layout:?}: {}", messages.join("; "));
}

fn fast(models: &[ModelSpec], layouts: &[Layout]) -> usize {
    let mut compared = 0;
    for model in models {
        for optimizer in [serial(model.clone()).optimizer, ADAMW] {
            let base = EngineConfig { optimizer, ..serial(model.clone()) };
            let exact = run(&EngineConfig { compute: DType::F64, ..base.clone() });
            for layout in layouts {
                compare_fast(layout, &base, &exact);
                compared += 1;
            }
        }
    }
    compared
}

fn reference(models: &[ModelSpec], compute: DType, layouts: &[Layout]) -> usize {
    let mut compared = 0;
    for model in models {
        for optimizer in [serial(model.clone()).optimizer, ADAMW] {
            let numerics = Numerics::Reference;
            let base = EngineConfig { optimizer, numerics, compute, ..serial(model.clone()) };
            let exact = run(&base);
            for layout in layouts {
                let got = run(&layout.apply(&base));
                for (name, grad) in &got.grads {
                    assert!(*grad == exact.grads[name], "{layout:?}: gradient of {name} differs");
                }
                assert!(got == exact, "{layout:?}: {} {} {}", got.loss, got.loss_after, got.norm);
                compared += 1;
            }
        }
    }
    compared
}

#[test]
fn a_covering_set_of_layouts_meets_the_bound_in_fast_numerics() {
    let layouts = layouts::pairwise();
    assert_eq!(fast(&models(), &layouts), 3 * 2 * layouts.len());
    assert!(layouts.len() >= 34, "{} layouts", layouts.len());
}

/// Beside the serial run in bf16, which is within its own bound of the exact one. Models that no family is like are
/// left out: a bias in front of a layer norm has a gradient of terms that cancel.
#[test]
fn a_covering_set_of_layouts_meets_the_bound_in_bf16() {
    let (pairwise, few) = (layouts::pairwise(), layouts::few());
    let mut compared = 0;
    let two = [toy::gpt(), toy::llama(1)].map(|model| (model, &pairwise));
    for (model, layouts) in two.into_iter().chain(other_families().into_iter().map(|m| (m, &few))) {
        let base = EngineConfig { compute: DType::Bf16, ..serial(model) };
        let exact = run(&EngineConfig { compute: DType::F64, ..base.clone() });
        let same = run(&base);
        let found = findings(&Ok(same.clone()), &exact, tolerance::bound(DType::Bf16, &base.model));
        assert!(found.is_empty(), "{base:?}: {found:?}");
        for layout in layouts {
            let got = step(&layout.apply(&base), &Mutation::NONE);
            let (_, bound) = beside(DType::Bf16, &base.model, layout.degrees.tp);
            let found = findings(&got, &same, bound);
            assert!(found.is_empty(), "{layout:?} of {:?}: {found:?}", base.model);
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * pairwise.len() + 6 * few.len());
}

#[test]
fn a_covering_set_of_layouts_is_bit_equal_in_reference_numerics() {
    let layouts = layouts::pairwise();
    assert_eq!(reference(&models(), DType::F32, &layouts), 3 * 2 * layouts.len());
    assert_eq!(reference(&[toy::gpt()], DType::F64, &layouts), 2 * layouts.len());
}

#[test]
fn eight_tensor_parallel_ranks_agree_with_the_serial_run() {
    let layouts = layouts::eight_tensor_ranks();
    let models = models_of_eight_heads();
    assert_eq!(fast(&models, &layouts), 2 * 2 * layouts.len());
    assert_eq!(reference(&models, DType::F32, &layouts), 2 * 2 * layouts.len());
    assert_eq!(layouts.len(), 5);
}

#[test]
fn zero_bubble_schedules_agree_with_the_serial_run() {
    let layouts = layouts::zero_bubble();
    assert_eq!(fast(&models(), &layouts), 3 * 2 * layouts.len());
    assert_eq!(reference(&models(), DType::F32, &layouts), 3 * 2 * layouts.len());
}

#[test]
fn several_stages_on_a_rank_agree_with_the_serial_run() {
    let layouts = layouts::several_stages();
    assert_eq!(layouts.len(), 20);
    assert_eq!(fast(&models(), &layouts), 3 * 2 * layouts.len());
    assert_eq!(reference(&models(), DType::F32, &layouts), 3 * 2 * layouts.len());
    let deep = [ModelSpec { layers: 9, ..toy::gpt() }, ModelSpec { layers: 8, ..toy::llama(2) }];
    let layouts = layouts::several_stages_on_four_ranks();
    assert_eq!(fast(&deep, &layouts), 2 * 2 * layouts.len());
    assert_eq!(reference(&deep, DType::F32, &layouts), 2 * 2 * layouts.len());
}

/// Every family but the two above.
fn other_families() -> Vec<ModelSpec> {
    let others = Family::ALL.iter().filter(|family| !matches!(family, Family::Gpt | Family::Llama));
    others.map(|family| toy::of(*family)).collect()
}

/// These, and models that no family is like.
fn models_of_all_kinds() -> Vec<ModelSpec> {
    other_families().into_iter().chain(toy::mixed()).collect()
}

#[test]
fn blocks_of_all_kinds_agree_with_the_serial_run() {
    let layouts = layouts::few();
    let models = models_of_all_kinds();
    assert_eq!(fast(&models, &layouts), models.len() * 2 * layouts.len());
    assert_eq!(reference(&models, DType::F32, &layouts), models.len() * 2 * layouts.len());
    assert_eq!((models.len(), layouts.len()), (9, 7));
}

#[test]
#[ignore = "all layouts: minutes; `cargo xtask ci --full` runs it"]
fn all_layouts_meet_the_bound_in_fast_numerics() {
    let layouts = layouts::all();
    assert_eq!(layouts.len(), 17 * 16);
    assert_eq!(fast(&models(), &layouts), 3 * 2 * layouts.len());
}

#[test]
#[ignore = "all layouts: minutes; `cargo xtask ci --full` runs it"]
fn all_layouts_are_bit_equal_in_reference_numerics() {
    let layouts = layouts::all();
    assert_eq!(reference(&models(), DType::F32, &layouts), 3 * 2 * layouts.len());
}

#[test]
fn the_bound_is_far_below_a_shuffled_gradient() {
    let base = serial(toy::gpt());
    let exact = run(&EngineConfig { compute: DType::F64, ..base.clone() });
    let bound = tolerance::bound(DType::F32, &base.model);
    let mut compared = 0;
    // A key bias has no gradient in exact arithmetic: nothing to shuffle.
    for (name, grad) in exact.grads.iter().filter(|(name, _)| !name.ends_with("k.bias")) {
        let mut shuffled = grad.clone();
        shuffled.rotate_left(1);
        assert!(relative_error(&shuffled, grad) > 100.0 * bound, "{name}");
        compared += 1;
    }
    assert!(compared > 50, "{compared} parameters");
}

#[test]
fn every_parameter_gets_a_gradient() {
    for model in models() {
        let got = run(&serial(model));
        for (name, grad) in &got.grads {
            assert!(grad.iter().any(|value| *value != 0.0), "{name} has no gradient");
        }
    }
}
