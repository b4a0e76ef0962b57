//! Layouts held against the serial run: the gradients of a whole model, put together from all ranks.

use crate::TrainError;
use crate::engine::{Batch, Engine, EngineConfig};
use crate::plan::RunPlan;
use std::sync::Arc;
use trine_buffer::DType;
use trine_comm::threads;
use trine_mesh::Degrees;
use trine_models::{Builder, PieceLayer, zoo};
use trine_nn::{NnError, Numerics};
use trine_rng::Stream;
use trine_spec::assemble::{Shards, Tensors, assemble};
use trine_spec::{ModelSpec, PieceParts, presets};

/// The layout that [`check`] runs: every kind of parallelism at once.
pub const LAYOUT: Degrees = Degrees { dp: 2, pp: 2, tp: 2, cp: 1, ep: 1 };

/// A layout's gradients beside those of the serial run.
#[derive(Debug, Clone, PartialEq)]
pub struct LayoutCheck {
    /// Type of weights and activations.
    pub compute: DType,
    /// How sums are ordered.
    pub numerics: Numerics,
    /// The parameter whose gradient is furthest off.
    pub parameter: String,
    /// How far, as [`worst`] has it.
    pub error: f64,
    /// How far it may be. In reference numerics layouts have the serial run's bits: 0.
    pub bound: f64,
}

/// What is compared, and how far it may be from the serial run: in reference numerics from that of the same type, in
/// fast numerics from that in f64. A wrong number is off by its own size.
const CHECKED: [(DType, Numerics, f64); 4] = [
    (DType::F32, Numerics::Reference, 0.0),
    (DType::F64, Numerics::Fast, 1e-12),
    (DType::F32, Numerics::Fast, 1e-4),
    (DType::Bf16, Numerics::Fast, 0.1),
];

/// One step of a tiny model in [`LAYOUT`] against the serial run, in each type.
///
/// # Errors
/// A failed step, or ranks that disagree about an element that they share.
pub fn check() -> Result<Vec<LayoutCheck>, TrainError> {
    let one = |(compute, numerics, bound)| {
        let serial = tiny(compute, numerics)?;
        let compared = match numerics {
            Numerics::Reference => compute,
            Numerics::Fast => DType::F64,
        };
        let exact = step(&EngineConfig { compute: compared, ..serial.clone() })?;
        let got = step(&EngineConfig { degrees: LAYOUT, ..serial })?;
        let (parameter, error) = worst(&got, &exact);
        Ok(LayoutCheck { compute, numerics, parameter, error, bound })
    };
    CHECKED.into_iter().map(one).collect()
}

/// A serial run of the default model made tiny.
fn tiny(compute: DType, numerics: Numerics) -> Result<EngineConfig, TrainError> {
    let whole = presets::find("rust-default")?.model;
    let narrow = ModelSpec { hidden: 64, heads: 8, kv_heads: 8, head_dim: 8, ffn: 256, ..whole };
    let model = ModelSpec { layers: 4, vocab: 509, seq_max: 32, dropout: 0.1.into(), ..narrow };
    let (global_batch, micro_batch) = (8, 2);
    Ok(EngineConfig { numerics, compute, global_batch, micro_batch, ..EngineConfig::serial(model) })
}

/// The gradients of the first step of the zoo's pieces.
fn step(config: &EngineConfig) -> Result<Tensors, TrainError> {
    let plan = Arc::new(RunPlan::new(config)?);
    gradients_of(&plan, &zoo, &|dp_index| batch(config, dp_index))
}

/// The gradients of the first step of a plan, put together from all ranks, which are threads here. `build` builds the
/// model's pieces, and `batch` gives the samples of a data-parallel rank.
///
/// # Errors
/// A failed step, or ranks that disagree about an element that they share.
pub fn gradients_of(
    plan: &Arc<RunPlan>,
    build: &(dyn Fn(&Builder<'_>, &PieceParts) -> Result<PieceLayer, NnError> + Sync),
    batch: &(dyn Fn(usize) -> Batch + Sync),
) -> Result<Tensors, TrainError> {
    let ranks = threads::run(plan.mesh.world(), &Default::default(), |comm| {
        let dp_index = plan.mesh.coordinate(comm.rank()).dp;
        let ops = plan.config.cpu_ops()?;
        let mut engine = Engine::with_pieces(plan.clone(), comm, ops, build)?;
        engine.backward(0, &batch(dp_index), &mut |_, _, _| {})?;
        gradients(&engine)
    });
    let ranks = ranks.map_err(|error| TrainError::Parity(error.to_string()))?;
    assemble(&ranks).map_err(TrainError::Parity)
}

/// The samples of one data-parallel rank: tokens drawn evenly, each the target of the one before.
fn batch(config: &EngineConfig, dp_index: usize) -> Batch {
    let each = config.global_batch / config.degrees.dp * config.seq;
    let first = dp_index * each;
    let stream = Stream::new(config.seed, "parity tokens");
    let id = |at: usize| (stream.uniform(at as u64) * config.model.vocab as f32) as u32;
    Batch {
        inputs: (first..first + each).map(id).collect(),
        targets: (first + 1..=first + each).map(id).collect(),
        document_start: None,
    }
}

/// A rank's gradients of the last [`Engine::backward`], and which part of each bucket it vouches for. What is frozen
/// has none.
///
/// # Errors
/// A bucket that is away.
pub fn gradients(engine: &Engine) -> Result<Shards, TrainError> {
    let mut layout = engine.layout().as_ref().clone();
    layout.params.retain(|param| layout.buckets[param.bucket].trainable);
    let values = layout.buckets.iter().enumerate().map(|(index, bucket)| match bucket.trainable {
        true => Ok(engine.grads().bucket(index)?.to_f64_vec()?),
        false => Ok(Vec::new()),
    });
    let buckets = values.collect::<Result<Vec<_>, TrainError>>()?;
    let valid = (0..buckets.len()).map(|bucket| engine.reduced(bucket)).collect();
    Ok(Shards { layout, buckets, valid })
}

/// The largest relative error of any gradient, with its name. In exact arithmetic some gradients are
/// zero (a key bias shifts all scores of a query alike), so what is left of them is the rounding of
/// terms that cancel: an error is measured against at least this parameter's share of the whole
/// gradient, as if all elements were of equal size.
///
/// # Panics
/// The two runs have other parameters.
pub fn worst(grads: &Tensors, exact: &Tensors) -> (String, f64) {
    assert!(grads.keys().eq(exact.keys()), "other parameters");
    let square = |values: &Vec<f64>| values.iter().map(|v| v * v).sum::<f64>();
    let elements: usize = exact.values().map(Vec::len).sum();
    let mean_square = exact.values().map(square).sum::<f64>() / elements as f64;
    let error = |(name, grad): (&String, &Vec<f64>)| {
        let exact = &exact[name];
        let difference: Vec<f64> = grad.iter().zip(exact).map(|(g, e)| g - e).collect();
        let size = square(exact).max(mean_square * exact.len() as f64);
        (name.clone(), (square(&difference) / size).sqrt())
    };
    let worst = grads.iter().map(error).max_by(|a, b| a.1.total_cmp(&b.1));
    worst.expect("invariant: a model has parameters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_parallelism_at_once_has_the_serial_gradients() {
        let found = check().unwrap();
        assert_eq!(found.len(), CHECKED.len());
        for LayoutCheck { compute, numerics, parameter, error, bound } in found {
            assert!(error <= bound, "{compute} {numerics:?}: {parameter} {error:e} > {bound:e}");
            assert_eq!(error == 0.0, numerics == Numerics::Reference, "{compute} {numerics:?}");
        }
    }

    #[test]
    fn one_wrong_gradient_is_seen() {
        let serial = tiny(DType::F32, Numerics::Reference).unwrap();
        let exact = step(&serial).unwrap();
        let size = |g: &Vec<f64>| g.iter().map(|value| value * value).sum::<f64>() / g.len() as f64;
        let largest = exact.iter().max_by(|a, b| size(a.1).total_cmp(&size(b.1)));
        let largest = largest.unwrap().0.clone();
        let mut wrong = exact.clone();
        wrong.get_mut(&largest).unwrap().iter_mut().for_each(|value| *value *= 2.0);
        assert_eq!(worst(&wrong, &exact), (largest, 1.0));
    }
}
