//! Mutants of a working program: each breaks one thing that a layout must do, and the comparison that
//! layouts pass must notice it. They are injected in front of the communicator, in a rank's plan or in its samples;
//! production code has no switch for them.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers outside #[test] included"
)]

mod bf16;
mod data;
mod noticed;
mod parallel;
mod resumed;
mod traits;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use trine_buffer::{Buf, DType};
use trine_comm::wrap::{Action as Tapped, Tap};
use trine_comm::{Communicator, Group, Operation, ReduceOp, Request};
use trine_kernels::{CpuOps, Ops, Team};
use trine_mesh::{AxisSet, Degrees};
use trine_models::zoo;
use trine_optim::OptimizerConfig;
use trine_schedule::{Action, Compute, Reduction, ScheduleKind};
use trine_spec::{Attention, Body, Bucket, Family, Inner, ModelSpec, OrNone};
use trine_testkit::toy;
use trine_tests::compare::Check::{Gradients, Loss, LossAfter, Norm, Run};
use trine_tests::compare::{Check, Finding, beside, findings};
use trine_tests::{ADAMW, Mutation, Outcome, Samples, batch, packed, serial, step_on};
use trine_trainer::RunPlan;
use trine_trainer::engine::{Batch, EngineConfig, ZeroStage};

/// What a mutant does to an operation between ranks.
type Meddle = dyn Fn(&Group, &mut Request) -> Tapped + Send + Sync;

/// Where a mutant sits.
enum Injection {
    /// In front of the communicator.
    Operation(Arc<Meddle>),
    /// In the plan.
    Plan(Box<dyn Fn(&mut RunPlan)>),
    /// Between the data and a rank.
    Samples(Box<dyn Fn(usize, Samples<'_>) -> Batch + Sync>),
}

struct Mutant {
    name: &'static str,
    config: EngineConfig,
    /// Whether sequences have several documents, which are kept apart.
    packed: bool,
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
    Injection::Operation(skipped(group, label))
}

fn skipped(group: &'static str, label: &'static str) -> Arc<Meddle> {
    Arc::new(move |of, request| {
        let meant = of.name() == group && request.name.label() == label;
        if meant { Tapped::Skip } else { Tapped::Forward }
    })
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

fn mutant(
    name: &'static str,
    config: EngineConfig,
    injection: Injection,
    noticed: &'static [Check],
    says: &'static str,
) -> Mutant {
    Mutant { name, config, packed: false, injection, noticed, says }
}
