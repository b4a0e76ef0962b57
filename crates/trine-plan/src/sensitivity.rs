//! Which choice matters most: exact Shapley values of the predicted throughput over a full grid of choices.
//!
//! The ranking that Dash et al. (2312.12705) drew with SHAP from the trials of a search. A trial that does not fit, or
//! is no valid layout, has throughput 0, as there. On a full grid nothing has to be sampled or learned: the value of a
//! set of factors S at a trial x is the mean over all trials that agree with x on S, and a factor's Shapley value its
//! mean marginal contribution over all orders of the factors (Lundberg & Lee, 1705.07874, with independent factors). A
//! factor's weight is the mean of the absolute value over all trials.

use crate::{Convention, Layout, Planner, Recompute, flops};
use trine_schedule::ScheduleKind;

/// One factor and how much it moves throughput.
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    /// Its name.
    pub name: &'static str,
    /// The values that were tried.
    pub values: Vec<String>,
    /// Mean |Shapley value|, model TFLOP/s of a device.
    pub weight: f64,
    /// Mean throughput at each value, trials that do not fit counted as 0.
    pub means: Vec<f64>,
}

/// The outcome of a sensitivity analysis.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    /// Most important first.
    pub factors: Vec<Factor>,
    /// Trials of the grid.
    pub trials: usize,
    /// Those that fit.
    pub feasible: usize,
}

/// A factor's values, each as what it does to a layout.
type Values = Vec<(String, Change)>;
type Change = Box<dyn Fn(&mut Layout)>;

/// Analyses the layouts around `base`, with 1F1B and whole blocks recomputed, over the grid of the paper's search
/// (175B: tensor 4 or 8, pipeline 1 to 16, micro-batch up to 20, 5 or 10 micro-batches, 12 or 16 nodes, ZeRO-1 or
/// none), its degrees and devices taken relative to `base`.
pub fn sensitivity(planner: &Planner<'_>, base: &Layout, headroom: f64) -> Sensitivity {
    let factors = grid(planner, base);
    let sizes: Vec<usize> = factors.iter().map(|(_, values)| values.len()).collect();
    let trials: usize = sizes.iter().product();
    let throughput: Vec<f64> = (0..trials)
        .map(|trial| {
            let mut layout = *base;
            let mut devices = base.devices();
            for ((name, values), index) in factors.iter().zip(indices(trial, &sizes)) {
                values[index].1(&mut layout);
                if *name == "devices" && index > 0 {
                    devices += devices / 3;
                }
            }
            measure(planner, layout, devices, headroom)
        })
        .collect();
    let weights = shapley(&throughput, &sizes);
    let mean_at = |factor: usize, value: usize| {
        let of = (0..trials).filter(|trial| indices(*trial, &sizes)[factor] == value);
        of.map(|trial| throughput[trial]).sum::<f64>() * sizes[factor] as f64 / trials as f64
    };
    let mut ranked: Vec<Factor> = factors
        .iter()
        .enumerate()
        .map(|(index, (name, values))| Factor {
            name,
            values: values.iter().map(|(text, _)| text.clone()).collect(),
            weight: weights[index],
            means: (0..values.len()).map(|value| mean_at(index, value)).collect(),
        })
        .collect();
    ranked.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    let feasible = throughput.iter().filter(|value| **value > 0.0).count();
    Sensitivity { factors: ranked, trials, feasible }
}

/// The factors and their values.
fn grid(planner: &Planner<'_>, base: &Layout) -> Vec<(&'static str, Values)> {
    let spec = &planner.model.spec;
    let number = |value: usize, change: fn(&mut Layout, usize)| -> (String, Change) {
        (value.to_string(), Box::new(move |layout: &mut Layout| change(layout, value)))
    };
    let numbers = |values: &[usize], change: fn(&mut Layout, usize)| -> Values {
        values.iter().map(|value| number(*value, change)).collect()
    };
    // Parts of what the base has, in 48ths.
    let degrees = |base: usize, parts: &[usize], fits: &dyn Fn(usize) -> bool| -> Vec<usize> {
        let mut all: Vec<usize> = parts.iter().map(|part| (base * part / 48).max(1)).collect();
        all.dedup();
        all.retain(|degree| fits(*degree));
        all
    };
    let shares =
        |tp| spec.check_layout(tp, 1).is_ok() && planner.stack.check_degree(spec, tp).is_ok();
    let tensor = degrees(base.degrees.tp, &[24, 48], &shares);
    let pipeline = degrees(base.degrees.pp, &[3, 6, 12, 24, 36, 48], &|pp| pp <= spec.layers);
    let yes_no = |change: fn(&mut Layout, bool)| -> Values {
        [("no", false), ("yes", true)]
            .map(|(text, on)| -> (String, Change) {
                (text.into(), Box::new(move |layout: &mut Layout| change(layout, on)))
            })
            .into()
    };
    vec![
        (
            "micro-batch",
            numbers(&[1, 4, 8, 12, 16, 20], |layout, value| layout.micro_batch = value),
        ),
        ("tensor degree", numbers(&tensor, |layout, value| layout.degrees.tp = value)),
        ("pipeline degree", numbers(&pipeline, |layout, value| layout.degrees.pp = value)),
        // Held in the batch until the replicas are known.
        ("micro-batches", numbers(&[5, 10], |layout, value| layout.global_batch = value)),
        ("devices", numbers(&[base.devices(), base.devices() + base.devices() / 3], |_, _| {})),
        ("zero-1", yes_no(|layout, on| layout.zero = u8::from(on))),
    ]
}

/// Model TFLOP/s of a device; 0 if the layout is not valid or does not fit.
fn measure(planner: &Planner<'_>, mut layout: Layout, devices: usize, headroom: f64) -> f64 {
    let replica = layout.degrees.tp * layout.degrees.pp;
    // As in the paper's trials, devices that make no whole replica stay idle.
    layout.degrees.dp = devices / replica;
    layout.degrees.cp = 1;
    layout.virtual_stages = 1;
    layout.pipeline = ScheduleKind::OneFOneB;
    layout.recompute = Recompute::Full { every: 1 };
    layout.global_batch *= layout.micro_batch * layout.degrees.dp;
    if layout.check(planner.model).is_err() {
        return 0.0;
    }
    let estimate = planner.estimate(&layout);
    if !estimate.fits(headroom) {
        return 0.0;
    }
    let work = flops(planner.model, &layout, Convention::FullAttention).model;
    work / estimate.time.step / devices as f64 / 1e12
}

/// The value of each factor in a trial; the last factor varies fastest.
fn indices(trial: usize, sizes: &[usize]) -> Vec<usize> {
    let mut rest = trial;
    let mut indices = vec![0; sizes.len()];
    for (index, size) in indices.iter_mut().zip(sizes).rev() {
        *index = rest % size;
        rest /= size;
    }
    indices
}

/// The mean |Shapley value| of each factor.
fn shapley(outcome: &[f64], sizes: &[usize]) -> Vec<f64> {
    let factors = sizes.len();
    // For each set of factors: the mean over the trials that agree on it, at every trial.
    let means: Vec<Vec<f64>> = (0..1_usize << factors)
        .map(|set| {
            let key = |trial: usize| {
                let values = indices(trial, sizes);
                let kept = (0..factors).map(|f| if set >> f & 1 == 1 { values[f] } else { 0 });
                kept.zip(sizes).fold(0, |key, (value, size)| key * size + value)
            };
            let keys: Vec<usize> = (0..outcome.len()).map(key).collect();
            let mut sums = vec![(0.0, 0_usize); outcome.len()];
            for (&key, value) in keys.iter().zip(outcome) {
                sums[key].0 += value;
                sums[key].1 += 1;
            }
            keys.iter().map(|&key| sums[key].0 / sums[key].1 as f64).collect()
        })
        .collect();
    let factorial = |n: usize| (1..=n).map(|k| k as f64).product::<f64>();
    let weight = |size: usize| factorial(size) * factorial(factors - size - 1) / factorial(factors);
    (0..factors)
        .map(|factor| {
            let without: Vec<usize> =
                (0..1_usize << factors).filter(|set| set >> factor & 1 == 0).collect();
            let value = |trial: usize| -> f64 {
                let gain = |set: &usize| {
                    let joined = means[set | 1 << factor][trial] - means[*set][trial];
                    weight(set.count_ones() as usize) * joined
                };
                without.iter().map(gain).sum()
            };
            (0..outcome.len()).map(|trial| value(trial).abs()).sum::<f64>() / outcome.len() as f64
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapley_values_of_known_functions() {
        // Additive: each factor's own deviation, and nothing for one that does not matter.
        let sizes = [2, 3, 2];
        let value = |trial: usize| {
            let at = indices(trial, &sizes);
            10.0 * at[0] as f64 + at[1] as f64
        };
        let outcome: Vec<f64> = (0..12).map(value).collect();
        let found = shapley(&outcome, &sizes);
        for (found, expected) in found.iter().zip([5.0, 2.0 / 3.0, 0.0]) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        // A product is shared out equally: f = x y on {0, 1}²: at (1, 1), (3/4) / 2 each.
        let found = shapley(&[0.0, 0.0, 0.0, 1.0], &[2, 2]);
        assert!((found[0] - found[1]).abs() < 1e-12);
        let expected = (0.125 + 0.375 + 0.125 + 0.375) / 4.0;
        assert!((found[0] - expected).abs() < 1e-12, "{found:?}");
    }
}
