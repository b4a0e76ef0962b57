//! Finite differences in f64 against a layer's explicit backward pass.

use crate::{Context, GradStore, Layer, NnError, ParamStore};
use std::sync::Arc;
use trine_buffer::{Act, Buf};
use trine_spec::RankLayout;

/// How far a layer's gradients are from central differences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Largest |analytic − numeric| over the input and all parameters, relative to the largest
    /// gradient of the same tensor.
    pub error_max: f64,
    /// Gradient elements compared.
    pub compared: usize,
    /// Largest analytic gradient: a layer whose gradients are all zero has not been checked.
    pub gradient_max: f64,
}

/// Compares the gradients of `Σ c·layer(x)` by the input and every parameter with central
/// differences of step 1e-5. `c` is a fixed irregular vector. Everything must be in f64.
///
/// ```
/// # use trine_kernels::Function;
/// # use trine_nn::*;
/// let swiglu = Activation { function: Function::Silu, gated: true, cols: 3 };
/// let report = gradcheck::activation(swiglu, 2 * 3)?;
/// assert!(report.error_max < 1e-7 && report.compared == 12);
/// # Ok::<(), NnError>(())
/// ```
///
/// # Errors
/// What the layer returns.
pub fn check(
    layer: &dyn Layer,
    weights: &mut ParamStore,
    x: &[f64],
    ctx: &Context<'_>,
) -> Result<Report, NnError> {
    let layout = weights.layout().clone();
    let mut grads = GradStore::new(layout.clone(), ctx.compute, ctx.numerics);
    let (y, saved) = layer.forward(weights, Act::new(Buf::from_vec(x.to_vec())), ctx)?;
    let dy: Vec<f64> = (0..y.len()).map(coefficient).collect();
    let dy = Act::new(Buf::from_vec(dy));
    let (dx, work) = layer.backward_input(weights, saved, dy, ctx, &mut grads)?;
    work.run(ctx, &mut grads)?;
    let mut report = Report { error_max: 0.0, compared: 0, gradient_max: 0.0 };
    let objective = |weights: &ParamStore, x: &[f64]| -> Result<f64, NnError> {
        let (y, _) = layer.forward(weights, Act::new(Buf::from_vec(x.to_vec())), ctx)?;
        Ok(y.to_f64_vec()?.iter().enumerate().map(|(i, y)| coefficient(i) * y).sum())
    };
    let mut moved = x.to_vec();
    let mut numeric = Vec::new();
    for i in 0..x.len() {
        numeric.push(central(x[i], |value| {
            moved[i] = value;
            objective(weights, &moved)
        })?);
        moved[i] = x[i];
    }
    report.compare(dx.typed::<f64>()?, &numeric);
    for bucket in 0..layout.buckets.len() {
        check_bucket(bucket, &layout, weights, &grads, &mut report, &mut |w| objective(w, x))?;
    }
    Ok(report)
}

fn check_bucket(
    bucket: usize,
    layout: &Arc<RankLayout>,
    weights: &mut ParamStore,
    grads: &GradStore,
    report: &mut Report,
    objective: &mut dyn FnMut(&ParamStore) -> Result<f64, NnError>,
) -> Result<(), NnError> {
    for &index in &layout.buckets[bucket].params {
        let span = layout.params[index].span();
        let mut numeric = Vec::new();
        for i in span.clone() {
            let value = weights.bucket(bucket)?.typed::<f64>()?[i];
            numeric.push(central(value, |moved| {
                weights.bucket_mut(bucket)?.typed_mut::<f64>()?[i] = moved;
                objective(weights)
            })?);
            weights.bucket_mut(bucket)?.typed_mut::<f64>()?[i] = value;
        }
        report.compare(&grads.bucket(bucket)?.typed::<f64>()?[span], &numeric);
    }
    Ok(())
}

/// [`check`] for an activation, which has no parameters: `inputs` elements in each of two rows.
///
/// # Errors
/// What the layer returns.
pub fn activation(layer: crate::Activation, inputs: usize) -> Result<Report, NnError> {
    let layout = Arc::new(RankLayout { params: vec![], buckets: vec![], stages: vec![] });
    let mut weights = ParamStore::zeros(layout, trine_buffer::DType::F64);
    let (ops, pool) =
        (trine_kernels::CpuOps::new(trine_kernels::Team::new(1)), trine_buffer::Pool::new());
    let rows = crate::Rows { samples: 0..1, seq: 2 };
    let ctx = Context::train(&ops, &pool, trine_buffer::DType::F64, rows);
    let x: Vec<f64> = (0..2 * inputs).map(|i| coefficient(i) * 1.5).collect();
    check(&layer, &mut weights, &x, &ctx)
}

fn central(value: f64, mut at: impl FnMut(f64) -> Result<f64, NnError>) -> Result<f64, NnError> {
    let step = 1e-5;
    Ok((at(value + step)? - at(value - step)?) / (2.0 * step))
}

/// Irregular, of order one, never zero.
fn coefficient(index: usize) -> f64 {
    ((index as f64 * 0.754_877_666) % 1.0 - 0.5) * 1.7 + 0.01
}

impl Report {
    fn compare(&mut self, analytic: &[f64], numeric: &[f64]) {
        let scale = analytic.iter().fold(1e-6f64, |max, g| max.max(g.abs()));
        for (a, n) in analytic.iter().zip(numeric) {
            self.error_max = self.error_max.max((a - n).abs() / scale);
            self.compared += 1;
        }
        self.gradient_max = self.gradient_max.max(scale);
    }
}
