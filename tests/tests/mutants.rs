//! Mutants of a working program: each breaks one thing that a layout must do, and the comparison that
//! layouts pass must notice it. They are injected in front of the communicator or in a rank's plan;
//! production code has no switch for them.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers outside #[test] included"
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use trine_buffer::{Buf, DType};
use trine_comm::wrap::{Action as Tapped, Tap};
use trine_comm::{Communicator, Group, Operation, ReduceOp, Request};
use trine_kernels::{CpuOps, Ops, Team};
use trine_mesh::{AxisSet, Degrees};
use trine_optim::OptimizerConfig;
use trine_schedule::{Action, Compute, Reduction, ScheduleKind};
use trine_spec::{Attention, Body, Bucket, Family, Inner, ModelSpec, OrNone};
use trine_testkit::{tolerance, toy};
use trine_tests::compare::Check::{Gradients, Loss, LossAfter, Norm, Run};
use trine_tests::compare::{Check, Finding, findings};
use trine_tests::{ADAMW, Mutation, Outcome, batch, serial, step};
use trine_trainer::RunPlan;
use trine_trainer::engine::{EngineConfig, ZeroStage};

/// What a mutant does to an operation between ranks.
type Meddle = dyn Fn(&Group, &mut Request) -> Tapped + Send + Sync;

/// Where a mutant sits.
enum Injection {
    /// In front of the communicator.
    Operation(Arc<Meddle>),
    /// In the plan.
    Plan(Box<dyn Fn(&mut RunPlan)>),
}

struct Mutant {
    name: &'static str,
    config: EngineConfig,
    injection: Injection,
    /// The checks that fail.
    noticed: &'static [Check],
    /// What the first of them says.
    says: &'static str,
}

/// Two of everything.
fn layout(model: ModelSpec) -> EngineConfig {
    let degrees = Degrees { tp: 2, pp: 2, dp: 2, ..Degrees::SERIAL };
    EngineConfig { degrees, schedule: ScheduleKind::GPipe.into(), ..serial(model) }
}

/// An operation that never happens: `group` and the name's label tell which.
fn skip(group: &'static str, label: &'static str) -> Injection {
    Injection::Operation(Arc::new(move |of, request| {
        let meant = of.name() == group && request.name.label() == label;
        if meant { Tapped::Skip } else { Tapped::Forward }
    }))
}

/// An operation whose request is changed.
fn change(
    group: &'static str,
    label: &'static str,
    change: impl Fn(&Group, &mut Request) + Send + Sync + 'static,
) -> Injection {
    Injection::Operation(Arc::new(move |of, request| {
        if of.name() == group && request.name.label() == label {
            change(of, request);
        }
        Tapped::Forward
    }))
}

fn edit(edit: impl Fn(&mut RunPlan) + 'static) -> Injection {
    Injection::Plan(Box::new(edit))
}

/// The first bucket of every rank.
fn edit_bucket(change: impl Fn(&mut Bucket) + 'static) -> Injection {
    edit(move |plan| {
        let layouts = plan.ranks.iter_mut().flatten();
        layouts.for_each(|layout| change(&mut layout.buckets[0]));
    })
}

fn scale(buf: &mut Option<Buf>, factor: f64) {
    CpuOps::new(Team::new(1)).scale(buf.as_mut().unwrap().slice_mut(), factor).unwrap();
}

/// Sends the activation of micro-batch 0 again instead of that of micro-batch 1.
fn stale_activation() -> Injection {
    let first: Mutex<HashMap<usize, Vec<f32>>> = Mutex::default();
    change("pp", "activation for", move |group, request| {
        let (Operation::Send { .. }, Some(send)) = (request.operation, &mut request.send) else {
            return;
        };
        let values = send.typed_mut::<f32>().unwrap();
        let mut first = first.lock().unwrap();
        match request.name.index("mb") {
            Some(0) => drop(first.insert(group.world_rank(), values.to_vec())),
            Some(1) => values.copy_from_slice(&first[&group.world_rank()]),
            _ => {}
        }
    })
}

/// Each data-parallel rank divides by its own valid tokens times the number of ranks.
fn mean_of_means() -> Injection {
    Injection::Operation(Arc::new(|of, request| {
        if !(of.name() == "dp" && request.name.label() == "valid tokens") {
            return Tapped::Forward;
        }
        let own = request.send.as_mut().unwrap().typed_mut::<u64>().unwrap();
        own[0] *= of.size() as u64;
        Tapped::Skip
    }))
}

/// A parameter's rows begin one earlier on the second tensor-parallel rank.
fn shift(name: &'static str) -> Injection {
    edit(move |plan| {
        let params = plan.ranks.iter_mut().flatten().flat_map(|layout| &mut layout.params);
        for param in params.filter(|param| param.spec.name == name) {
            let rows = &mut param.ranges[0];
            if rows.start > 0 {
                *rows = rows.start - 1..rows.end - 1;
            }
        }
    })
}

/// Removes actions from all ranks' lists.
fn without(removed: impl Fn(&Action) -> bool + 'static) -> Injection {
    edit(move |plan| {
        for actions in &mut plan.training.actions {
            actions.retain(|action| !removed(action));
        }
    })
}

/// Operations between the ranks that share a layer.
fn in_tensor_parallelism() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    vec![
        mutant(
            "a tensor-parallel all-reduce is dropped in forward",
            gpt(),
            skip("tp", "down"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "a tensor-parallel all-reduce is dropped in backward",
            gpt(),
            skip("tp", "up"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "the vocabulary's sums of exponentials are not added up",
            gpt(),
            skip("tp", "head.sum"),
            &[Gradients, Loss, Norm, LossAfter],
            "that of",
        ),
        mutant(
            "the gradients of a shared KV head are not added up",
            layout(toy::llama(1)),
            skip("kv", "attention"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "norm gradients of split rows are not added up",
            EngineConfig { sequence_parallel: true, ..gpt() },
            skip("tp", "norm1"),
            &[Run],
            "replicas of",
        ),
    ]
}

/// Operations between stages.
fn in_the_pipeline() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    vec![
        mutant(
            "the two copies of the tied embedding keep their own gradients",
            gpt(),
            skip("tied", "tied gradient"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "the activation of another micro-batch is sent",
            gpt(),
            stale_activation(),
            &[Gradients, Loss, Norm, LossAfter],
            "that of",
        ),
        mutant(
            "gradients are doubled between stages",
            gpt(),
            change("pp", "gradient for", |_, request| {
                if matches!(request.operation, Operation::Send { .. }) {
                    scale(&mut request.send, 2.0);
                }
            }),
            &[Gradients, Norm, LossAfter],
            "that of",
        ),
    ]
}

/// Operations between replicas, and over all ranks.
fn in_data_parallelism() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    let zero1 = || EngineConfig { zero: ZeroStage::Zero1, ..gpt() };
    vec![
        mutant(
            "the data-parallel reduction of gradients is dropped",
            gpt(),
            skip("dp", "gradient"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "the data-parallel reduction of gradients is dropped under ZeRO-1",
            zero1(),
            skip("dp", "gradient"),
            &[Gradients, Norm, LossAfter],
            "that of",
        ),
        mutant(
            "gradients are averaged over data-parallel ranks and not summed",
            gpt(),
            change("dp", "gradient", |_, request| {
                request.operation = Operation::AllReduce(ReduceOp::Mean);
            }),
            &[Gradients, Norm],
            "that of",
        ),
        mutant(
            "gradients are scaled by the size of the world",
            gpt(),
            change("dp", "gradient", |_, request| scale(&mut request.send, 8.0)),
            &[Gradients, Norm],
            "that of",
        ),
        mutant(
            "valid tokens are not counted over all ranks",
            gpt(),
            mean_of_means(),
            &[Run],
            "ranks disagree about loss",
        ),
        mutant(
            "the norm's parts are not added up",
            gpt(),
            skip("world", "gradient norm"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "updated weights are not gathered under ZeRO-1",
            zero1(),
            skip("dp", "weights"),
            &[Run],
            "replicas of",
        ),
    ]
}

/// Decisions about what a rank holds and counts.
fn in_the_placement() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    vec![
        mutant(
            "the embedding's vocabulary range is shifted",
            gpt(),
            shift("embedding.token"),
            &[Run],
            "replicas of",
        ),
        mutant(
            "the output layer's vocabulary range is shifted",
            layout(toy::llama(2)),
            shift("head.output.weight"),
            &[Run],
            "no rank holds it",
        ),
        mutant(
            "the norm counts replicas twice",
            gpt(),
            edit(|plan| {
                let params = plan.ranks.iter_mut().flatten().flat_map(|layout| &mut layout.params);
                params.filter(|p| p.spec.tied_to.is_none()).for_each(|param| param.owner = true);
            }),
            &[Norm, LossAfter],
            "instead of",
        ),
        mutant(
            "the norm counts nothing of the second tensor-parallel rank",
            gpt(),
            edit(|plan| {
                for ranks in &mut plan.ranks {
                    ranks[1].params.iter_mut().for_each(|param| param.owner = false);
                }
            }),
            &[Norm, LossAfter],
            "instead of",
        ),
        mutant(
            "a bucket's gradient is summed over nothing",
            gpt(),
            edit_bucket(|bucket| bucket.summed = AxisSet::EMPTY),
            &[Run],
            "another rank",
        ),
        mutant(
            "a bucket's gradient is summed over the wrong axis",
            gpt(),
            edit_bucket(|bucket| bucket.summed = AxisSet::TP),
            &[Run],
            "replicas of",
        ),
        mutant(
            "a bucket divides its state over an axis that it is not summed over",
            gpt(),
            edit_bucket(|bucket| bucket.shared.states = AxisSet::PP),
            &[Run],
            "divides its states over pp, and its gradient is summed over dp",
        ),
    ]
}

/// Ranges of a rank that begin one too early, where heads and features do not divide.
fn in_unequal_shares() -> Vec<Mutant> {
    vec![
        mutant(
            "the query heads of a rank begin a row too early",
            layout(toy::uneven(5, 5)),
            shift("block.1.attention.q.weight"),
            &[Run],
            "no rank holds it",
        ),
        mutant(
            "the features of a rank begin one too early",
            layout(toy::uneven(6, 3)),
            shift("block.1.mlp.up.weight"),
            &[Run],
            "no rank holds it",
        ),
    ]
}

/// Actions that are left out.
fn in_the_schedule() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    let posts =
        |action: &Action| matches!(action, Action::Sync(Reduction::ReduceGrad { segment: 0, .. }));
    let awaits =
        |action: &Action| matches!(action, Action::Sync(Reduction::AwaitGrad { segment: 0, .. }));
    vec![
        mutant("a reduction is not posted", gpt(), without(posts), &[Run], "were not posted"),
        mutant(
            "a reduction is neither posted nor awaited",
            gpt(),
            without(move |action| posts(action) || awaits(action)),
            &[Run],
            "replicas of",
        ),
        mutant(
            "the sum of tied gradients is left out of the schedule",
            gpt(),
            without(|action| matches!(action, Action::Sync(Reduction::ReduceTied { .. }))),
            &[Run],
            "replicas of",
        ),
        mutant(
            "the weight gradients of a micro-batch are left out",
            gpt(),
            without(|action| {
                matches!(action, Action::Compute(Compute::BackwardWeight { micro_batch: 2, .. }))
            }),
            &[Gradients, Norm, LossAfter],
            "that of",
        ),
    ]
}

/// Changes attention's traits in every block of the plan.
fn edit_attention(change: impl Fn(&mut Attention) + 'static) -> Injection {
    edit(move |plan| {
        for part in &mut plan.parts.pieces {
            let Body::Block(block) = &mut part.body else { continue };
            for branch in &mut block.branches {
                if let Inner::Attention(attention) = &mut branch.inner {
                    change(attention);
                }
            }
        }
    })
}

/// Traits of attention that the ranks have otherwise than the serial run.
fn in_attention() -> Vec<Mutant> {
    let of = |family| layout(toy::of(family));
    vec![
        mutant(
            "a window is one token shorter",
            of(Family::Mistral),
            edit_attention(|attention| {
                attention.window = attention.window.map(|window| window - 1)
            }),
            &[Gradients],
            "that of",
        ),
        mutant(
            "scores have no bound",
            layout(toy::mixed().swap_remove(0)),
            edit_attention(|attention| attention.cap = None),
            &[Gradients],
            "that of",
        ),
        mutant(
            "scores are divided by another root",
            of(Family::Qwen3),
            edit_attention(|attention| attention.scale *= 1.1),
            &[Gradients],
            "that of",
        ),
        mutant(
            "half of a head is turned instead of a quarter",
            of(Family::GptNeoX),
            edit(|plan| {
                plan.parts.spec.rope_fraction = 0.5.into();
                for (index, part) in plan.parts.pieces.iter_mut().enumerate().skip(1) {
                    if let Body::Block(block) = &mut part.body {
                        *block = plan.parts.spec.block(index - 1);
                    }
                }
            }),
            &[Gradients],
            "that of",
        ),
    ]
}

/// Other traits.
fn in_other_traits() -> Vec<Mutant> {
    let of = |family| layout(toy::of(family));
    let all = &[Gradients, Loss, Norm];
    vec![
        mutant(
            "logits have another bound",
            layout(toy::mixed().swap_remove(0)),
            edit(|plan| plan.parts.spec.logit_cap = OrNone::Some(3.0)),
            all,
            "that of",
        ),
        mutant(
            "the embedding has another factor",
            of(Family::Gemma2),
            edit(|plan| plan.parts.spec.embedding_scale = OrNone::Some(5.0)),
            all,
            "that of",
        ),
        mutant(
            "positions turn at another rate",
            of(Family::Olmo2),
            edit(|plan| plan.parts.spec.rope_theta = 5e4),
            &[Gradients],
            "that of",
        ),
        mutant(
            "norms add another number to the variance",
            of(Family::Qwen2),
            edit(|plan| plan.parts.spec.norm_eps = 1e-4),
            &[Gradients],
            "that of",
        ),
        mutant(
            "branches follow one another instead of standing side by side",
            of(Family::GptNeoX),
            edit(|plan| {
                for part in &mut plan.parts.pieces {
                    if let Body::Block(block) = &mut part.body {
                        block.parallel = false;
                    }
                }
            }),
            all,
            "that of",
        ),
        mutant(
            "sums of squares over all heads are left on their ranks",
            of(Family::Olmo2),
            skip("tp", "qk_norm"),
            &[Gradients],
            "that of",
        ),
    ]
}

/// What the update and the masks do otherwise.
fn in_updates_and_masks() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    let adam = || EngineConfig { optimizer: ADAMW, ..gpt() };
    let after = &[LossAfter];
    vec![
        mutant(
            "gradients are not clipped",
            gpt(),
            edit(|plan| plan.config.clip_norm = 1e3),
            after,
            "instead of",
        ),
        mutant(
            "weights do not decay",
            adam(),
            edit(|plan| {
                if let OptimizerConfig::AdamW { weight_decay, .. } = &mut plan.config.optimizer {
                    *weight_decay = 0.0;
                }
            }),
            after,
            "instead of",
        ),
        mutant(
            "dropout has another probability",
            EngineConfig {
                recompute: true,
                ..layout(ModelSpec { dropout: 0.2.into(), ..toy::gpt() })
            },
            edit(|plan| plan.parts.spec.dropout = 0.25.into()),
            &[Gradients, Norm],
            "that of",
        ),
        mutant(
            "masks come from another seed",
            layout(ModelSpec { dropout: 0.2.into(), ..toy::llama(2) }),
            edit(|plan| plan.config.seed += 1),
            &[Gradients, Norm],
            "other initial weights",
        ),
    ]
}

/// Orders of work with several stages on a rank.
fn in_other_orders() -> Vec<Mutant> {
    let order = |schedule: ScheduleKind, virtual_stages| EngineConfig {
        schedule: schedule.into(),
        virtual_stages,
        ..layout(toy::gpt())
    };
    vec![
        mutant(
            "the activation of another micro-batch goes to the next stage of a loop",
            order(ScheduleKind::Interleaved, 2),
            stale_activation(),
            &[Gradients, Norm],
            "that of",
        ),
        mutant(
            "gradients are doubled between stages of a V",
            order(ScheduleKind::ZbV, 2),
            change("pp", "gradient for", |_, request| {
                if matches!(request.operation, Operation::Send { .. }) {
                    scale(&mut request.send, 2.0);
                }
            }),
            &[Gradients, Norm],
            "that of",
        ),
        mutant(
            "the weight gradients of a micro-batch are left out of a V",
            order(ScheduleKind::DualPipeV, 2),
            without(|action| {
                matches!(action, Action::Compute(Compute::BackwardWeight { micro_batch: 3, .. }))
            }),
            &[Gradients, Norm],
            "that of",
        ),
    ]
}

/// The same layout in bf16, where a twentieth of a gradient must be noticed.
fn in_bf16() -> Vec<Mutant> {
    let of = |model| EngineConfig { compute: DType::Bf16, ..layout(model) };
    let bubbles = || EngineConfig { schedule: ScheduleKind::ZbH1.into(), ..of(toy::gpt()) };
    let again = || EngineConfig { recompute: true, zero: ZeroStage::Zero1, ..of(toy::llama(2)) };
    let gradients = &[Gradients, Norm];
    vec![
        mutant(
            "a twentieth of all gradients is lost between replicas",
            of(toy::gpt()),
            change("dp", "gradient", |_, request| scale(&mut request.send, 0.95)),
            gradients,
            "that of",
        ),
        mutant(
            "a tenth of one replica's gradients is lost",
            again(),
            change("dp", "gradient", |group, request| {
                let factor = if group.rank() == 1 { 0.9 } else { 1.0 };
                scale(&mut request.send, factor);
            }),
            gradients,
            "that of",
        ),
        mutant(
            "a twentieth of the gradient is lost between stages",
            bubbles(),
            change("pp", "gradient for", |_, request| {
                if matches!(request.operation, Operation::Send { .. }) {
                    scale(&mut request.send, 0.95);
                }
            }),
            gradients,
            "that of",
        ),
        mutant(
            "the weight gradients of a micro-batch are left out",
            bubbles(),
            without(|action| {
                matches!(action, Action::Compute(Compute::BackwardWeight { micro_batch: 1, .. }))
            }),
            gradients,
            "that of",
        ),
    ]
}

/// The same between tensor-parallel ranks.
fn in_bf16_between_tensor_ranks() -> Vec<Mutant> {
    let of = |model| EngineConfig { compute: DType::Bf16, ..layout(model) };
    let again = || EngineConfig { recompute: true, zero: ZeroStage::Zero1, ..of(toy::llama(2)) };
    vec![
        mutant(
            "a tenth of an MLP is lost between tensor ranks",
            EngineConfig { sequence_parallel: true, ..of(toy::gpt()) },
            change("tp", "down", |_, request| scale(&mut request.send, 0.9)),
            &[Gradients],
            "that of",
        ),
        mutant(
            "a tenth of the gradient of an MLP's input is lost between tensor ranks",
            again(),
            change("tp", "up", |_, request| scale(&mut request.send, 0.9)),
            &[Gradients],
            "that of",
        ),
        mutant(
            "the vocabulary's sums of exponentials are a tenth too large",
            of(toy::gpt()),
            change("tp", "head.sum", |_, request| scale(&mut request.send, 1.1)),
            &[Gradients],
            "that of",
        ),
        mutant(
            "the norm counts nothing of the second tensor-parallel rank",
            again(),
            edit(|plan| {
                for ranks in &mut plan.ranks {
                    ranks[1].params.iter_mut().for_each(|param| param.owner = false);
                }
            }),
            &[Norm],
            "instead of",
        ),
    ]
}

fn mutant(
    name: &'static str,
    config: EngineConfig,
    injection: Injection,
    noticed: &'static [Check],
    says: &'static str,
) -> Mutant {
    Mutant { name, config, injection, noticed, says }
}

/// All mutants.
fn all() -> Vec<Mutant> {
    let mut mutants = in_tensor_parallelism();
    mutants.extend(in_the_pipeline());
    mutants.extend(in_data_parallelism());
    mutants.extend(in_the_placement());
    mutants.extend(in_unequal_shares());
    mutants.extend(in_the_schedule());
    mutants
}

/// The serial run in f64 and the bound that layouts keep, for the configurations met so far.
#[derive(Default)]
struct Exact(HashMap<String, (Outcome, f64)>);

impl Exact {
    /// The serial run of a configuration, once the layout itself has passed the comparison.
    fn of(&mut self, config: &EngineConfig) -> &(Outcome, f64) {
        self.0.entry(format!("{config:?}")).or_insert_with(|| {
            let serial = EngineConfig {
                degrees: Degrees::SERIAL,
                schedule: ScheduleKind::GPipe.into(),
                virtual_stages: 1,
                sequence_parallel: false,
                zero: ZeroStage::Zero0,
                recompute: false,
                ..config.clone()
            };
            // In bf16 layouts are compared with the serial run of the same type.
            let (compute, bound) = match config.compute {
                DType::Bf16 => {
                    let tp = config.degrees.tp;
                    (DType::Bf16, tolerance::bound_beside_serial(DType::Bf16, &config.model, tp))
                }
                _ => (DType::F64, tolerance::bound(DType::F32, &config.model)),
            };
            let serial = EngineConfig { compute, ..serial };
            let exact = step(&serial, &Mutation::NONE).unwrap();
            let healthy = findings(&step(config, &Mutation::NONE), &exact, bound);
            assert!(healthy.is_empty(), "{healthy:?}");
            (exact, bound)
        })
    }
}

/// The checks that a mutant fails, with or without the comparison of copies on several ranks.
fn run(mutant: &Mutant, copies_agree: bool, (exact, bound): &(Outcome, f64)) -> Vec<Finding> {
    let none = Mutation { copies_agree, ..Mutation::NONE };
    let got = match &mutant.injection {
        Injection::Operation(meddle) => {
            let wrap = |comm: Arc<dyn Communicator>| {
                let meddle = meddle.clone();
                Tap::around(comm, move |group, request| meddle(group, request))
            };
            step(&mutant.config, &Mutation { wrap: &wrap, ..none })
        }
        Injection::Plan(edit) => step(&mutant.config, &Mutation { edit: &**edit, ..none }),
    };
    findings(&got, exact, *bound)
}

/// Mutants of which ranks that compare their copies say so first: their numbers are wrong by themselves.
#[test]
fn mutants_that_copies_betray_have_wrong_numbers_too() {
    let (mut by_numbers, mut exact) = (Vec::new(), Exact::default());
    let betrayed = |mutant: &Mutant| {
        mutant.noticed == [Run]
            && ["replicas of", "ranks disagree"].iter().any(|s| mutant.says.contains(s))
    };
    for mutant in all().into_iter().filter(betrayed) {
        let found = run(&mutant, false, exact.of(&mutant.config));
        let checks: Vec<Check> = found.iter().map(|finding| finding.check).collect();
        println!("{}: {checks:?} {:?}", mutant.name, found.first());
        if !checks.is_empty() && !checks.contains(&Run) {
            by_numbers.push(mutant.name);
        }
    }
    assert_eq!(by_numbers.len(), 12, "{by_numbers:?}");
}

#[test]
fn every_mutant_is_noticed() {
    let (mut noticed, mut exact) = (0, Exact::default());
    for mutant in all() {
        let found = run(&mutant, true, exact.of(&mutant.config));
        let checks: Vec<Check> = found.iter().map(|finding| finding.check).collect();
        assert_eq!(checks, mutant.noticed, "{}: {found:?}", mutant.name);
        let first = found.first().expect("a mutant has survived");
        assert!(first.message.contains(mutant.says), "{}: {first}", mutant.name);
        noticed += 1;
    }
    assert_eq!(noticed, 28);
}

/// Each exceeds the bound in a number: the run itself ends well.
#[test]
fn every_mutant_in_bf16_exceeds_the_bound() {
    let (mut noticed, mut exact) = (0, Exact::default());
    for mutant in in_bf16().into_iter().chain(in_bf16_between_tensor_ranks()) {
        let found = run(&mutant, true, exact.of(&mutant.config));
        let checks: Vec<Check> = found.iter().map(|finding| finding.check).collect();
        let all = mutant.noticed.iter().all(|check| checks.contains(check));
        assert!(all && !checks.contains(&Run), "{}: {found:?}", mutant.name);
        assert!(found[0].message.contains(mutant.says), "{}: {}", mutant.name, found[0]);
        noticed += 1;
    }
    assert_eq!(noticed, 8);
}

/// Traits, updates and other orders of work: each is wrong in a number.
#[test]
fn every_mutant_of_traits_updates_and_orders_is_noticed() {
    let (mut noticed, mut exact) = (0, Exact::default());
    let traits = in_attention().into_iter().chain(in_other_traits());
    let rest = in_updates_and_masks().into_iter().chain(in_other_orders());
    for mutant in traits.chain(rest) {
        let found = run(&mutant, false, exact.of(&mutant.config));
        let checks: Vec<Check> = found.iter().map(|finding| finding.check).collect();
        println!("{}: {checks:?} {:?}", mutant.name, found.first());
        let all = mutant.noticed.iter().all(|check| checks.contains(check));
        assert!(all && !checks.contains(&Run), "{}: {found:?}", mutant.name);
        let first = found.first().expect("a mutant has survived");
        assert!(first.message.contains(mutant.says), "{}: {first}", mutant.name);
        noticed += 1;
    }
    assert_eq!(noticed, 17);
}

#[test]
fn data_parallel_ranks_have_unequal_numbers_of_valid_tokens() {
    for dp in [2, 4] {
        let degrees = Degrees { dp, ..Degrees::SERIAL };
        let config = EngineConfig { degrees, ..serial(toy::gpt()) };
        let tokens: Vec<u64> = (0..dp).map(|rank| batch(&config, rank).valid_tokens()).collect();
        assert!(tokens.iter().any(|count| *count != tokens[0]), "{tokens:?}");
    }
}
