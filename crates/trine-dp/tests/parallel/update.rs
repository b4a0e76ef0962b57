//! Whole steps: reduce, clip, update, gather. Both ZeRO stages, both numerics, both precisions.

use crate::support::{Case, Named, Rank, degrees, model, named, run};
use trine_buffer::DType;
use trine_dp::{
    GradNorm, ReplicaGroups, WeightSync, ZeroStage, check_replicas, clip_scale, measured_bytes,
    planned_bytes,
};
use trine_nn::{GradStore, Numerics, ParamStore, initial_weights};
use trine_optim::{Optimizer, OptimizerConfig, Update};

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
    let own = rank.layout.buckets.iter().map(|bucket| rank.partition.own(bucket.len)).collect();
    Optimizer::new(&rank.layout, own, compute, config, |bucket| {
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
    let mut weights = WeightSync::new(rank.partition, rank.dp.clone()).unwrap();
    let (case, world) = (&rank.case, rank.world.clone());
    let norm = GradNorm::new(
        &case.model,
        &rank.layout,
        case.degrees.tp,
        rank.partition,
        case.numerics,
        world,
    );
    let norm = norm.unwrap();
    for step in 1..=3 {
        grads.clear().unwrap();
        rank.reduce(&mut sync, &mut grads);
        rank.poison_stale(&mut grads);
        let measured = norm.measure(&grads, &rank.ops).unwrap();
        last = measured.squared().to_bits();
        let grad_scale = clip_scale(measured.norm(), 1.0);
        assert!(grad_scale < 0.1, "clipping must act for this test to mean something");
        let update = Update { lr: 0.02, grad_scale, step };
        for bucket in 0..rank.layout.buckets.len() {
            optimizer.step_bucket(bucket, &mut params, &grads, update, &rank.ops).unwrap();
            weights.post(&mut params, bucket).unwrap();
        }
        weights.wait(&mut params).unwrap();
    }
    let groups =
        ReplicaGroups { dp: rank.dp.clone(), tp: rank.tp.clone(), tied: rank.tied.clone() };
    check_replicas(&params, &groups).unwrap();
    // Every element that this rank holds, not only its part: the gather must have brought the rest.
    let mut all = Vec::new();
    for (bucket, held) in rank.layout.buckets.iter().enumerate() {
        let values = params.bucket(bucket).unwrap().to_f64_vec();
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

fn case(numerics: Numerics, zero: ZeroStage, (dp, pp, tp): (usize, usize, usize)) -> Case {
    Case { model: model(), degrees: degrees(dp, pp, tp), zero, numerics, batch: 12 }
}

#[test]
fn zero_1_updates_as_zero_0_bit_for_bit() {
    let (mut cases, mut compared) = (0, 0);
    for config in CONFIGS {
        for compute in [DType::F32, DType::Bf16] {
            for layout in [(2, 1, 1), (3, 1, 1), (4, 1, 1), (2, 2, 2)] {
                let [whole, parts] = [ZeroStage::Zero0, ZeroStage::Zero1].map(|zero| {
                    let case = case(Numerics::Fast, zero, layout);
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
        let serial = case(Numerics::Reference, ZeroStage::Zero0, (1, 1, 1)).serial();
        let serial = weights(run(&serial, |rank| train(&rank, DType::F32, config)));
        for layout in [(2, 1, 1), (3, 1, 1), (4, 1, 1), (2, 2, 1)] {
            for zero in [ZeroStage::Zero0, ZeroStage::Zero1] {
                let case = case(Numerics::Reference, zero, layout);
                let parallel = weights(run(&case, |rank| train(&rank, DType::F32, config)));
                assert_eq!(serial, parallel, "{config:?} {case:?}");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 24);
}

#[test]
fn planned_bytes_are_the_allocated_ones() {
    let mut cases = 0;
    for config in CONFIGS {
        for compute in [DType::F32, DType::Bf16] {
            for zero in [ZeroStage::Zero0, ZeroStage::Zero1] {
                for layout in [(1, 1, 1), (2, 2, 2), (3, 1, 1), (2, 1, 4)] {
                    for numerics in [Numerics::Fast, Numerics::Reference] {
                        let case = Case { batch: 2, ..case(numerics, zero, layout) };
                        let done = run(&case, |rank| {
                            let mut params = ParamStore::zeros(rank.layout.clone(), compute);
                            let optimizer = optimizer(&rank, compute, config, &mut params);
                            let (mut grads, mut sync) = (rank.grads(), rank.sync());
                            rank.reduce(&mut sync, &mut grads);
                            let moments = config.moments().len();
                            let dp = layout.0;
                            let planned = planned_bytes(&rank.layout, zero, dp, compute, moments);
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
    assert_eq!(cases, 96);
}

#[test]
fn zero_1_divides_optimizer_state_by_the_data_parallel_degree() {
    let case = case(Numerics::Fast, ZeroStage::Zero1, (4, 1, 1));
    let checked = run(&case, |rank| {
        let plan = |zero| planned_bytes(&rank.layout, zero, 4, DType::Bf16, 2);
        let (whole, parts) = (plan(ZeroStage::Zero0), plan(ZeroStage::Zero1));
        assert_eq!((whole.weights * 2, whole.weights * 4), (whole.gradients, whole.moments));
        assert_eq!((parts.weights, parts.gradients), (whole.weights, whole.gradients));
        assert_eq!((parts.master * 4, parts.moments * 4), (whole.master, whole.moments));
        named(vec![rank.owned(|bucket| vec![0.0; rank.layout.buckets[bucket].len])]).len()
    });
    let held: usize = checked.iter().sum();
    let one = run(&case.serial(), |rank| rank.layout.params.iter().map(|p| p.len()).sum::<usize>());
    assert_eq!(held, one[0], "the parts cover every parameter once");
}
