//! Whole steps: reduce, clip, update, gather. Both ZeRO stages, both numerics, both precisions.

use crate::support::{Case, Divided, Named, Rank, degrees, model, named, run};
use trine_buffer::{DType, Place};
use trine_dp::{WeightSync, check_replicas, clip_scale, measured_bytes, planned_bytes};
use trine_mesh::AxisSet;
use trine_nn::{GradStore, Numerics, ParamStore, initial_weights};
use trine_optim::{Optimizer, OptimizerConfig, Update};
use trine_spec::Shares;

const ADAMW: OptimizerConfig =
    OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
const CONFIGS: [OptimizerConfig; 3] = [
    ADAMW,
    OptimizerConfig::Sgd { momentum: 0.9, weight_decay: 0.01 },
    OptimizerConfig::Sgd { momentum: 0.0, weight_decay: 0.0 },
];

fn optimizer(
    rank: &Rank,
    compute: DType,
    config: OptimizerConfig,
    params: &mut ParamStore,
) -> Optimizer {
    Optimizer::new(&rank.layout, rank.own.clone(), compute, config, |bucket| {
        let master = initial_weights(&rank.layout, bucket, 11, DType::F32)?;
        params.load(bucket, master.slice(), &rank.ops)?;
        Ok(master)
    })
    .unwrap()
}

/// Weights by parameter and element, and the bits of the squared norm.
type Trained = (Vec<(String, usize, f64)>, u64);

/// Three steps; every weight of this rank (all parts), and the last norm.
fn train(rank: &Rank, compute: DType, config: OptimizerConfig) -> Trained {
    let mut params = ParamStore::zeros(rank.layout.clone(), compute);
    let mut optimizer = optimizer(rank, compute, config, &mut params);
    let mut grads = GradStore::new(rank.layout.clone(), compute, rank.case.numerics);
    let (mut sync, mut last) = (rank.sync(), 0);
    let mut weights = WeightSync::new(&rank.layout, &rank.groups, &Place::Host).unwrap();
    let norm = rank.norm();
    for step in 1..=3 {
        grads.clear().unwrap();
        rank.reduce(&mut sync, &mut grads);
        rank.poison_stale(&mut grads);
        let measured = norm.measure(&grads, &rank.ops).unwrap();
        last = measured.squared().to_bits();
        let grad_scale = clip_scale(measured.norm(), 1.0);
        assert!(grad_scale < 0.1, "clipping must act for this test to mean something");
        let update = Update { lr: 0.02.into(), grad_scale, step };
        for bucket in 0..rank.layout.buckets.len() {
            optimizer.step_bucket(bucket, &mut params, &grads, update, &rank.ops).unwrap();
            weights.post(&mut params, bucket).unwrap();
        }
        weights.wait(&mut params).unwrap();
    }
    check_replicas(&params, &rank.groups, rank.tied.as_ref()).unwrap();
    // Every element that this rank holds, not only its part: the gather must have brought the rest.
    let mut all = Vec::new();
    for (bucket, held) in rank.layout.buckets.iter().enumerate() {
        let values = params.bucket(bucket).unwrap().to_f64_vec().unwrap();
        for param in held.params.iter().map(|index| &rank.layout.params[*index]) {
            let padding = param.spec.valid_rows - param.ranges[0].start.min(param.spec.valid_rows);
            let width: usize = param.shape()[1..].iter().product();
            for (at, value) in values[param.span()].iter().enumerate() {
                assert!(value.is_finite());
                assert!(at / width < padding || *value == 0.0, "padding of {}", param.spec.name);
                let first = param.ranges[0].start * width;
                let columns = param.ranges.get(1).map_or(0, |range| range.start);
                all.push((format!("{}@{first},{columns}", param.spec.name), at, *value));
            }
        }
    }
    (all, last)
}

fn weights(ranks: Vec<Trained>) -> (Named, u64) {
    let norm = ranks[0].1;
    assert!(ranks.iter().all(|(_, other)| *other == norm));
    // Data-parallel ranks must agree element by element before they are folded into one.
    let mut merged = Named::new();
    for (name, index, value) in ranks.into_iter().flat_map(|(all, _)| all) {
        let before = merged.insert((name.clone(), index), value);
        assert!(before.is_none_or(|before| before.to_bits() == value.to_bits()), "{name}[{index}]");
    }
    (merged, norm)
}

fn case(numerics: Numerics, divided: Divided, (dp, pp, tp): (usize, usize, usize)) -> Case {
    Case { model: model(), degrees: degrees(dp, pp, tp), divided, numerics, batch: 12, frozen: &[] }
}

#[test]
fn zero_1_updates_as_zero_0_bit_for_bit() {
    let (mut cases, mut compared) = (0, 0);
    for config in CONFIGS {
        for compute in [DType::F32, DType::Bf16] {
            for layout in [(2, 1, 1), (3, 1, 1), (4, 1, 1), (2, 2, 2)] {
                let [whole, parts] = [Divided::None, Divided::All].map(|divided| {
                    let case = case(Numerics::Fast, divided, layout);
                    weights(run(&case, |rank| train(&rank, compute, config)))
                });
                assert_eq!(whole, parts, "{config:?} {compute} {layout:?}");
                compared += whole.0.len();
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 24);
    assert!(compared > 100_000, "{compared}");
}

#[test]
fn reference_numerics_update_as_the_serial_run_bit_for_bit() {
    let mut cases = 0;
    for config in CONFIGS {
        let serial = case(Numerics::Reference, Divided::None, (1, 1, 1)).serial();
        let serial = weights(run(&serial, |rank| train(&rank, DType::F32, config)));
        for layout in [(2, 1, 1), (3, 1, 1), (4, 1, 1), (2, 2, 1)] {
            for divided in [Divided::None, Divided::All] {
                let case = case(Numerics::Reference, divided, layout);
                let parallel = weights(run(&case, |rank| train(&rank, DType::F32, config)));
                assert_eq!(serial, parallel, "{config:?} {case:?}");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 24);
}

#[test]
fn each_bucket_is_read_where_some_divide_their_state_and_some_do_not() {
    let (mut cases, mut whole, mut parts) = (0, 0, 0);
    for numerics in [Numerics::Fast, Numerics::Reference] {
        for compute in [DType::F32, DType::Bf16] {
            let [all_whole, mixed] = [Divided::None, Divided::Mixed].map(|divided| {
                run(&case(numerics, divided, (2, 1, 1)), |rank| {
                    (train(&rank, compute, ADAMW), rank.own.clone(), rank.layout.clone())
                })
            });
            // One rank of the mixture has buckets of both kinds.
            for (_, own, layout) in &mixed {
                let held = own.iter().zip(&layout.buckets);
                whole += held.clone().filter(|(own, bucket)| own.len() == bucket.len).count();
                parts += held.filter(|(own, bucket)| own.len() * 2 == bucket.len).count();
            }
            let trained = |ranks: Vec<(Trained, _, _)>| -> (Named, u64) {
                weights(ranks.into_iter().map(|(trained, ..)| trained).collect())
            };
            let mixed = trained(mixed);
            assert_eq!(trained(all_whole), mixed, "{numerics:?} {compute}");
            if (numerics, compute) == (Numerics::Reference, DType::F32) {
                let serial = case(numerics, Divided::None, (1, 1, 1));
                assert_eq!(weights(run(&serial, |rank| train(&rank, compute, ADAMW))), mixed);
            }
            cases += 1;
        }
    }
    assert!(cases == 4 && whole >= 8 && parts >= 8, "{cases} cases, {whole} whole, {parts} parts");
}

#[test]
fn planned_bytes_are_the_allocated_ones() {
    let mut cases = 0;
    for config in CONFIGS {
        for compute in [DType::F32, DType::Bf16] {
            for divided in [Divided::None, Divided::All, Divided::Mixed] {
                for layout in [(1, 1, 1), (2, 2, 2), (3, 1, 1), (2, 1, 4)] {
                    for numerics in [Numerics::Fast, Numerics::Reference] {
                        let case = Case { batch: 2, ..case(numerics, divided, layout) };
                        let done = run(&case, |rank| {
                            let mut params = ParamStore::zeros(rank.layout.clone(), compute);
                            let optimizer = optimizer(&rank, compute, config, &mut params);
                            let (mut grads, mut sync) = (rank.grads(), rank.sync());
                            rank.reduce(&mut sync, &mut grads);
                            let moments = config.moments().len();
                            let degrees = &rank.case.degrees;
                            let planned = planned_bytes(&rank.layout, degrees, compute, moments);
                            let measured = measured_bytes(
                                &params,
                                &grads,
                                optimizer.master_bytes(),
                                optimizer.moment_bytes(),
                            );
                            assert_eq!(planned, measured, "{case:?} {compute}");
                            assert!(
                                planned.total() > planned.weights + planned.gradients
                                    || moments == 0
                            );
                            planned.total()
                        });
                        assert_eq!(done.len(), case.degrees.world());
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 144);
}

#[test]
fn zero_1_divides_optimizer_state_by_the_data_parallel_degree() {
    let case = case(Numerics::Fast, Divided::All, (4, 1, 1));
    let checked = run(&case, |rank| {
        let plan = |stage| {
            let mut layout = (*rank.layout).clone();
            let shared = Shares::zero(stage, AxisSet::DP);
            layout.buckets.iter_mut().for_each(|bucket| bucket.shared = shared);
            planned_bytes(&layout, &rank.case.degrees, DType::Bf16, 2)
        };
        let (whole, parts) = (plan(0), plan(1));
        assert_eq!((whole.weights * 2, whole.weights * 4), (whole.gradients, whole.moments));
        assert_eq!((parts.weights, parts.gradients), (whole.weights, whole.gradients));
        assert_eq!((parts.master * 4, parts.moments * 4), (whole.master, whole.moments));
        named(vec![rank.owned(|bucket| vec![0.0; rank.layout.buckets[bucket].len])]).len()
    });
    let held: usize = checked.iter().sum();
    let one = run(&case.serial(), |rank| rank.layout.params.iter().map(|p| p.len()).sum::<usize>());
    assert_eq!(held, one[0], "the parts cover every parameter once");
}
