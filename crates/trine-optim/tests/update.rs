//! Steps against the textbook in f64, parts against the whole, padding, state and errors.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers outside #[test] included"
)]

use std::ops::Range;
use std::sync::Arc;
use trine_buffer::{Buf, DType};
use trine_kernels::{CpuOps, Team};
use trine_mesh::{AxisSet, Degrees};
use trine_nn::{GradStore, Numerics, ParamStore, initial_weights};
use trine_optim::{
    Group, LrKind, LrSchedule, MASTER, OptimError, Optimizer, OptimizerConfig, Update,
};
use trine_spec::{LocalParam, Pattern, RankLayout, RankRequest, StagePieces, presets};

const ADAMW: OptimizerConfig =
    OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
const SGD: OptimizerConfig = OptimizerConfig::Sgd { momentum: 0.9, weight_decay: 0.05 };
const PLAIN: OptimizerConfig = OptimizerConfig::Sgd { momentum: 0.0, weight_decay: 0.05 };

/// A small tied GPT with a padded vocabulary, in several buckets.
fn layout() -> Arc<RankLayout> {
    let mut model = presets::find("gpt2-124m").unwrap().model;
    (model.hidden, model.layers, model.ffn, model.vocab) = (16, 2, 24, 70);
    (model.heads, model.kv_heads, model.head_dim, model.seq_max) = (4, 4, 4, 5);
    let model = model.parts(1).unwrap();
    let stages = [StagePieces::whole(&model)];
    let request = RankRequest {
        degrees: Degrees { dp: 4, ..Degrees::SERIAL },
        summed: AxisSet::DP,
        bucket_elements: 1500,
        ..RankRequest::serial(&model, &stages)
    };
    Arc::new(RankLayout::new(&request).unwrap())
}

fn ops() -> CpuOps {
    CpuOps::new(Team::new(1))
}

/// Some gradient for each element of each bucket; where padding is, zero.
fn gradient(layout: &RankLayout, bucket: usize, step: u64) -> Vec<f32> {
    let mut values = vec![0.0; layout.buckets[bucket].len];
    for param in layout.buckets[bucket].params.iter().map(|index| &layout.params[*index]) {
        let valid = param.offset..param.offset + param.spec.unpadded_len();
        for (at, value) in valid.clone().zip(&mut values[valid]) {
            *value = ((at as f32 + 1.0) * 0.37 + step as f32).sin() * 0.1;
        }
    }
    values
}

fn is_padding(layout: &RankLayout, bucket: usize, at: usize) -> bool {
    let params = layout.buckets[bucket].params.iter().map(|index| &layout.params[*index]);
    let valid = |p: &LocalParam| p.offset..p.offset + p.spec.unpadded_len();
    !params.into_iter().any(|param| valid(param).contains(&at))
}

fn own(layout: &RankLayout, parts: usize, part: usize) -> Vec<Range<usize>> {
    layout.buckets.iter().map(|bucket| trine_mesh::part(bucket.len, parts, part)).collect()
}

struct Run {
    layout: Arc<RankLayout>,
    params: ParamStore,
    optimizer: Optimizer,
}

fn start(
    own: Vec<Range<usize>>,
    compute: DType,
    config: OptimizerConfig,
) -> Result<Run, OptimError> {
    start_with(own, compute, (config, &[]))
}

fn start_with(
    own: Vec<Range<usize>>,
    compute: DType,
    config: (OptimizerConfig, &[Group]),
) -> Result<Run, OptimError> {
    let (layout, ops) = (layout(), ops());
    let mut params = ParamStore::zeros(layout.clone(), compute);
    let optimizer = Optimizer::with_groups(
        &layout,
        own,
        compute,
        config,
        &trine_buffer::Place::Host,
        |bucket| {
            let master = initial_weights(&layout, bucket, 5, compute.accumulator())?;
            params.load(bucket, master.slice(), &ops)?;
            Ok(master)
        },
    )?;
    Ok(Run { layout, params, optimizer })
}

fn update(step: u64) -> Update {
    Update { lr: (0.01 / step as f64).into(), grad_scale: 0.5, step }
}

fn train(run: &mut Run, steps: Range<u64>) {
    train_at(run, steps, update);
}

fn train_at(run: &mut Run, steps: Range<u64>, update: impl Fn(u64) -> Update) {
    let ops = ops();
    let mut grads = GradStore::new(run.layout.clone(), run.params.compute(), Numerics::Fast);
    for step in steps {
        for bucket in 0..run.layout.buckets.len() {
            let values = gradient(&run.layout, bucket, step);
            grads.bucket_mut(bucket).unwrap().typed_mut::<f32>().unwrap().copy_from_slice(&values);
        }
        run.optimizer.step(&mut run.params, &grads, update(step), &ops).unwrap();
    }
}

/// The textbook in f64: weights after some steps.
fn textbook(config: OptimizerConfig, weight: f64, decays: bool, grads: &[f64]) -> f64 {
    let (mut w, mut m, mut v) = (weight, 0.0, 0.0);
    for (grad, step) in grads.iter().zip(1u64..) {
        let Update { lr, grad_scale, .. } = update(step);
        let (lr, g) = (lr.run, grad * grad_scale);
        let decay = if decays { config.weight_decay() } else { 0.0 };
        match config {
            OptimizerConfig::AdamW { beta1, beta2, eps, .. } => {
                m = beta1 * m + (1.0 - beta1) * g;
                v = beta2 * v + (1.0 - beta2) * g * g;
                let m_hat = m / (1.0 - beta1.powi(step as i32));
                let v_hat: f64 = v / (1.0 - beta2.powi(step as i32));
                w -= lr * (m_hat / (v_hat.sqrt() + eps) + decay * w);
            }
            OptimizerConfig::Sgd { momentum, .. } => {
                m = momentum * m + g + decay * w;
                w -= lr * m;
            }
        }
    }
    w
}

#[test]
fn four_steps_are_the_textbooks_and_padding_stays_zero() {
    let (mut compared, mut padded) = (0, 0);
    for config in [ADAMW, SGD, PLAIN] {
        let mut run = start(own(&layout(), 1, 0), DType::F32, config).unwrap();
        train(&mut run, 1..5);
        let layout = &run.layout;
        for bucket in 0..layout.buckets.len() {
            let initial =
                initial_weights(layout, bucket, 5, DType::F64).unwrap().to_f64_vec().unwrap();
            let weights = run.params.bucket(bucket).unwrap().to_f64_vec().unwrap();
            let grads: Vec<_> = (1..5).map(|step| gradient(layout, bucket, step)).collect();
            for param in layout.buckets[bucket].params.iter().map(|index| &layout.params[*index]) {
                for at in param.span().filter(|at| !is_padding(layout, bucket, *at)) {
                    let grads: Vec<f64> = grads.iter().map(|g| f64::from(g[at])).collect();
                    let expected = textbook(config, initial[at], param.spec.decay, &grads);
                    let error = (weights[at] - expected).abs();
                    assert!(error < 1e-6, "{config:?} {}[{at}]: {error}", param.spec.name);
                    compared += 1;
                }
            }
            for at in (0..weights.len()).filter(|at| is_padding(layout, bucket, *at)) {
                assert_eq!(weights[at].to_bits(), 0, "bucket {bucket} element {at}");
                padded += 1;
            }
        }
    }
    assert!(compared > 15_000 && padded > 2000, "{compared} {padded}");
}

#[test]
fn parts_update_as_the_whole_bit_for_bit_and_leave_the_rest_alone() {
    let mut cases = 0;
    for config in [ADAMW, SGD, PLAIN] {
        for compute in [DType::F32, DType::Bf16] {
            let mut whole = start(own(&layout(), 1, 0), compute, config).unwrap();
            train(&mut whole, 1..4);
            for parts in [2, 3, 4] {
                for part in 0..parts {
                    let mut run = start(own(&layout(), parts, part), compute, config).unwrap();
                    train(&mut run, 1..4);
                    for bucket in 0..run.layout.buckets.len() {
                        let initial = initial_weights(&run.layout, bucket, 5, DType::F32).unwrap();
                        let mut expected = ParamStore::zeros(run.layout.clone(), compute);
                        expected.load(bucket, initial.slice(), &ops()).unwrap();
                        let mut expected = expected.bucket(bucket).unwrap().to_f64_vec().unwrap();
                        let own = run.optimizer.own(bucket);
                        let updated = whole.params.bucket(bucket).unwrap().to_f64_vec().unwrap();
                        expected[own.clone()].copy_from_slice(&updated[own.clone()]);
                        assert_eq!(
                            run.params.bucket(bucket).unwrap().to_f64_vec().unwrap(),
                            expected
                        );
                        let states = run.optimizer.state(bucket);
                        for ((name, part), (_, whole)) in
                            states.iter().zip(whole.optimizer.state(bucket))
                        {
                            let whole = &whole.to_f64_vec().unwrap()[own.clone()];
                            assert_eq!(part.to_f64_vec().unwrap(), whole, "{name}");
                        }
                    }
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 54);
}

#[test]
fn bf16_weights_are_the_rounded_masters_which_keep_what_bf16_would_lose() {
    let mut run = start(own(&layout(), 1, 0), DType::Bf16, ADAMW).unwrap();
    train(&mut run, 1..4);
    let mut single = start(own(&layout(), 1, 0), DType::F32, ADAMW).unwrap();
    train(&mut single, 1..4);
    let mut lost = 0;
    for bucket in 0..run.layout.buckets.len() {
        let master = run.optimizer.state(bucket)[0].1.to_f64_vec().unwrap();
        assert_eq!(
            master,
            single.params.bucket(bucket).unwrap().to_f64_vec().unwrap(),
            "masters are f32"
        );
        let weights = run.params.bucket(bucket).unwrap().to_f64_vec().unwrap();
        for (master, weight) in master.iter().zip(&weights) {
            assert_eq!(half::bf16::from_f64(*master).to_f64(), *weight);
            lost += usize::from(master != weight);
        }
    }
    assert!(lost > 1000, "{lost}");
}

#[test]
fn state_moves_by_name_and_continues_bit_for_bit() {
    let mut cases = 0;
    for config in [ADAMW, SGD, PLAIN] {
        for compute in [DType::F32, DType::Bf16] {
            let mut straight = start(own(&layout(), 2, 1), compute, config).unwrap();
            train(&mut straight, 1..3);
            let mut resumed = start(own(&layout(), 2, 1), compute, config).unwrap();
            for bucket in 0..straight.layout.buckets.len() {
                let weights = straight.params.bucket(bucket).unwrap();
                let into = resumed.params.bucket_mut(bucket).unwrap();
                into.slice_mut().copy_from(weights.slice()).unwrap();
                for (name, values) in straight.optimizer.state(bucket) {
                    let into = resumed.optimizer.state_mut(bucket, name).unwrap();
                    into.slice_mut().copy_from(values.slice()).unwrap();
                }
            }
            train(&mut straight, 3..5);
            train(&mut resumed, 3..5);
            for bucket in 0..straight.layout.buckets.len() {
                let values = |run: &Run| run.params.bucket(bucket).unwrap().to_f64_vec().unwrap();
                assert_eq!(values(&straight), values(&resumed), "{config:?} {compute}");
            }
            cases += 1;
        }
    }
    assert_eq!(cases, 6);
}

#[test]
fn names_and_bytes_of_the_state() {
    let names = |config, compute| {
        let run = start(own(&layout(), 4, 0), compute, config).unwrap();
        let quarter: usize = run.layout.elements() / 4;
        let names: Vec<_> = run.optimizer.state(0).iter().map(|(name, _)| *name).collect();
        let moments = names.iter().filter(|name| **name != MASTER).count();
        assert_eq!(run.optimizer.moment_bytes(), 4 * quarter * moments);
        assert_eq!(run.optimizer.master_bytes(), 4 * quarter * (names.len() - moments));
        names
    };
    assert_eq!(names(ADAMW, DType::F32), ["exp_avg", "exp_avg_sq"]);
    assert_eq!(names(ADAMW, DType::Bf16), ["master", "exp_avg", "exp_avg_sq"]);
    assert_eq!(names(SGD, DType::Bf16), ["master", "momentum_buffer"]);
    assert_eq!(names(PLAIN, DType::F32), [""; 0]);
}

#[test]
fn misuse_is_refused_with_what_would_fit() {
    let layout = layout();
    let fail = |own, config| start(own, DType::F32, config).err().unwrap().to_string();
    assert!(fail(vec![], ADAMW).contains("0 owned ranges for"));
    let mut beyond = own(&layout, 1, 0);
    beyond[1].end += 1;
    assert!(fail(beyond, ADAMW).starts_with("bucket 1 has"));
    let bad = OptimizerConfig::Sgd { momentum: 1.0, weight_decay: 0.0 };
    assert!(fail(own(&layout, 1, 0), bad).contains("optimizer.momentum = 1"));

    let short = Optimizer::new(&layout, own(&layout, 1, 0), DType::Bf16, ADAMW, |_| {
        Ok(Buf::zeros(DType::F32, 3))
    });
    assert!(short.unwrap_err().to_string().contains("its initial weights have 3"));

    let mut run = start(own(&layout, 1, 0), DType::F32, ADAMW).unwrap();
    let text = run.optimizer.state_mut(0, "exp_avg_max").unwrap_err().to_string();
    assert!(text.contains("exp_avg_max") && text.contains("\"exp_avg_sq\""), "{text}");
    let grads = GradStore::new(run.layout.clone(), DType::F32, Numerics::Fast);
    let zero = run.optimizer.step(&mut run.params, &grads, Update { step: 0, ..update(1) }, &ops());
    assert!(matches!(zero, Err(OptimError::StepZero)));
    let tree = GradStore::new(run.layout.clone(), DType::F32, Numerics::Reference);
    let error = run.optimizer.step(&mut run.params, &tree, update(1), &ops()).unwrap_err();
    assert!(error.to_string().contains("gradients of bucket 0"), "{error}");
}

/// One group's pattern, its parts, and what an optimizer for it alone has: its constants and the kind of its schedule.
fn groups() -> [(Group, OptimizerConfig, f64, LrKind); 3] {
    let adamw =
        |weight_decay| OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay };
    let group = |pattern: &str| Group::new(Pattern::new(pattern));
    [
        (Group { lr: Some(0.5), decay: Some(0.0), ..group("*") }, adamw(0.0), 0.5, LrKind::Cosine),
        (
            Group { schedule: Some(LrKind::Constant), ..group("block.?.attention.*") },
            adamw(0.0),
            0.5,
            LrKind::Constant,
        ),
        (
            Group { lr: Some(2.0), decay: Some(0.3), ..group("*.k.weight") },
            adamw(0.3),
            2.0,
            LrKind::Constant,
        ),
    ]
}

#[test]
fn groups_update_as_optimizers_of_their_own_whatever_the_parts() {
    let schedule = |kind| LrSchedule { kind, warmup_steps: 2, min_ratio: 0.1, decay_fraction: 0.5 };
    let with = |kind: LrKind, factor: f64| {
        move |step| Update {
            lr: schedule(kind).rates(0.01 * factor, step, 6),
            grad_scale: 0.5,
            step,
        }
    };
    let table = groups();
    let lines: Vec<Group> = table.iter().map(|(group, ..)| group.clone()).collect();
    let mut alone = Vec::new();
    for (_, config, factor, kind) in &table {
        let mut run = start(own(&layout(), 1, 0), DType::Bf16, *config).unwrap();
        train_at(&mut run, 1..6, with(*kind, *factor));
        alone.push(run);
    }
    let mut compared = [0; 3];
    for (parts, part) in [(1, 0), (3, 0), (3, 1), (3, 2)] {
        let owned = own(&layout(), parts, part);
        let mut run = start_with(owned, DType::Bf16, (ADAMW, &lines)).unwrap();
        train_at(&mut run, 1..6, with(LrKind::Cosine, 1.0));
        for param in &run.layout.params {
            let last = lines.iter().rposition(|group| group.names(&param.spec)).unwrap();
            let own = run.optimizer.own(param.bucket);
            let span = param.span().start.max(own.start)..param.span().end.min(own.end);
            for ((name, got), (_, expected)) in run
                .optimizer
                .state(param.bucket)
                .iter()
                .zip(alone[last].optimizer.state(param.bucket))
            {
                let (got, expected) = (got.to_f64_vec().unwrap(), expected.to_f64_vec().unwrap());
                for at in span.clone() {
                    assert_eq!(got[at - own.start], expected[at], "{} {name}", param.spec.name);
                    compared[last] += 1;
                }
            }
        }
    }
    assert!(compared.iter().all(|compared| *compared > 2000), "{compared:?}");
}

#[test]
fn a_tied_copy_is_updated_as_the_embedding() {
    let model = presets::find("gpt2-124m").unwrap().model.parts(1).unwrap();
    let group = Group::new(Pattern::new("embedding.*"));
    let head = model.pieces.last().unwrap().params.last().unwrap();
    assert!(group.names(head) && !Group::new(Pattern::new("head.*")).names(head), "{head:?}");
}
