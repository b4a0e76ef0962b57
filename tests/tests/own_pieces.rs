//! Blocks that the zoo does not have, one whole on every tensor-parallel rank and one shared out, against the serial
//! run: to the bit in reference numerics, in fast ones within the zoo's bound.

use trine_buffer::{Act, DType};
use trine_comm::Name;
use trine_mesh::Degrees;
use trine_models::{Builder, PieceLayer, zoo};
use trine_nn::{
    Context, GradStore, Layer, NnError, Numerics, ParamId, ParamStore, Saved, WeightWork,
};
use trine_shard::Replicated;
use trine_spec::{Init, ModelSpec, OwnBody, OwnPiece, ParamSpec, PieceParts};
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

/// `x`, whatever its second parameter is.
#[derive(Debug)]
struct Idle {
    params: [ParamId; 2],
    /// How many of them it tells a gradient, which is zero.
    told: usize,
}

impl Layer for Idle {
    fn forward(&self, _: &ParamStore, x: Act, _: &Context<'_>) -> Result<(Act, Saved), NnError> {
        Ok((x, Saved::nothing()))
    }

    fn backward_input(
        &self,
        _: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let ([], []) = saved.take()?;
        for id in &self.params[..self.told] {
            grads.add(id, &ctx.rows, |_, _| Ok(()))?;
        }
        Ok((dy, WeightWork::nothing()))
    }
}

/// A step of a model whose block 1 is [`Idle`].
fn idle_step(config: &EngineConfig, told: usize) -> Result<Outcome, String> {
    let param = |name: &str| ParamSpec::new(name, &[config.model.hidden], Init::Ones);
    let body = OwnBody { name: "idle".into(), keeps_input: true, ..OwnBody::default() };
    let piece = OwnPiece {
        params: ["idle.first", "idle.second"].map(param).to_vec(),
        body,
        flops_per_token: 0.0,
    };
    let mut parts = config.model.parts(config.degrees.tp).map_err(|error| error.to_string())?;
    parts.replace(1, piece).map_err(|error| error.to_string())?;
    let build = |b: &Builder<'_>, part: &PieceParts| {
        if part.own_name().is_none() {
            return zoo(b, part);
        }
        let layer = Idle { params: [b.param("idle.first")?, b.param("idle.second")?], told };
        let layer = Replicated::new(b.group().clone(), layer, Name::new("idle"));
        Ok(PieceLayer::Inner(Box::new(layer)))
    };
    let plan = RunPlan::of_parts(config, parts).map_err(|error| error.to_string())?;
    step_of(plan, &build, &Mutation::NONE)
}

#[test]
fn a_gradient_that_a_layer_leaves_out_is_an_error_and_one_of_zeros_is_none() {
    for numerics in [Numerics::Reference, Numerics::Fast] {
        for degrees in [Degrees::SERIAL, Degrees { tp: 2, pp: 2, ..Degrees::SERIAL }] {
            let config = EngineConfig { degrees, ..base(toy::gpt(), numerics) };
            for (told, left_out) in [(0, "idle.first"), (1, "idle.second")] {
                let error = idle_step(&config, told).unwrap_err();
                let says = format!(
                    "block 1 (\"idle\"): backward has added nothing to the gradient of \"{left_out}\""
                );
                assert!(error.contains(&says), "{error}");
            }
            let grads = idle_step(&config, 2).unwrap().grads;
            assert!(grads["idle.second"].iter().all(|value| *value == 0.0));
        }
    }
}
