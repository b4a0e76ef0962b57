//! Updates bucket by bucket, as soon as a gradient is reduced, against updates that wait for the norm.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers outside #[test] included"
)]

use std::sync::{Arc, Mutex};
use trine_comm::threads;
use trine_comm::wrap::{Action as Tapped, Tap};
use trine_mesh::{Axis, Degrees, Mesh};
use trine_nn::Numerics;
use trine_schedule::{Action, Reduction};
use trine_testkit::toy;
use trine_tests::layouts;
use trine_tests::{ADAMW, batch, serial};
use trine_trainer::RunPlan;
use trine_trainer::TrainError;
use trine_trainer::engine::{Engine, EngineConfig, WEIGHTS, ZeroStage};

const STEPS: u64 = 3;
const LR: f64 = 0.05;

/// What a rank holds and says after some steps: bits of weights and moments, losses and norms.
type After = (Vec<Vec<f64>>, Vec<(f64, f64)>);

/// Some steps of every rank, by [`Engine::train`] or by a backward pass and an update of all buckets.
fn steps(config: &EngineConfig, together: bool) -> Vec<After> {
    steps_of(RunPlan::new(config).unwrap(), together)
}

fn steps_of(plan: RunPlan, together: bool) -> Vec<After> {
    let plan = Arc::new(plan);
    let (config, mesh) = (&plan.config, plan.mesh);
    let ranks = threads::run(mesh.world(), &Default::default(), |comm| {
        let at = mesh.coordinate(comm.rank());
        let batch = batch(config, at.of(Axis::Dp));
        let mut engine = Engine::from_plan(plan.clone(), comm)?;
        let mut said = Vec::new();
        for step in 0..STEPS {
            let (loss, updated) = if together {
                let loss = engine.backward(step, &batch, &mut |_, _, _| {})?;
                (loss, engine.update(step + 1, LR)?)
            } else {
                engine.train(step, LR, &batch, &mut |_, _, _| {})?
            };
            said.push((loss.mean(), updated.norm.norm()));
            engine.check_replicas()?;
        }
        assert_eq!(engine.bytes(), plan.memory(at.pp, at.tp).state);
        let mut held = Vec::new();
        for quantity in std::iter::once(WEIGHTS).chain(engine.moments().iter().copied()) {
            for bucket in 0..engine.layout().buckets.len() {
                held.push(engine.full_bucket(quantity, bucket)?.to_f64_vec().unwrap());
            }
        }
        Ok::<_, TrainError>((held, said))
    });
    ranks.unwrap_or_else(|error| panic!("{config:?}: {error}"))
}

/// Without clipping, buckets are updated at once: weights, moments, losses and norms have the bits of an
/// update that waits. A bucket that is left out or updated twice differs.
#[test]
fn buckets_at_once_have_the_bits_of_all_together() {
    let mut compared = 0;
    for numerics in [Numerics::Fast, Numerics::Reference] {
        for model in [toy::gpt(), toy::llama(2)] {
            let base = EngineConfig { optimizer: ADAMW, clip_norm: 0.0, numerics, ..serial(model) };
            for layout in layouts::pairwise().iter().chain(&layouts::zero_bubble()) {
                let config = layout.apply(&base);
                assert!(steps(&config, false) == steps(&config, true), "{config:?}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 4 * (10 + 16), "{compared}");
}

/// What is divided is said by each bucket and by nothing else: where every second one divides its state, a run has
/// the bits of one where none does, and holds less.
#[test]
fn each_bucket_divides_its_state_for_itself() {
    let (mut cases, mut divided) = (0, 0);
    for numerics in [Numerics::Fast, Numerics::Reference] {
        for (tp, pp) in [(1, 1), (2, 2)] {
            for clip_norm in [0.0, 0.01] {
                let degrees = Degrees { tp, pp, dp: 2, ..Degrees::SERIAL };
                let base = EngineConfig { degrees, numerics, clip_norm, ..serial(toy::gpt()) };
                let config = EngineConfig { optimizer: ADAMW, bucket_elements: 2_000, ..base };
                let whole = RunPlan::new(&config).unwrap();
                let mut mixed = whole.clone();
                for layout in mixed.ranks.iter_mut().flatten() {
                    for bucket in layout.buckets.iter_mut().step_by(2) {
                        bucket.shared = ZeroStage::Zero1.shares(bucket.summed);
                        divided += 1;
                    }
                }
                let held = |plan: &RunPlan| plan.memory(0, 0).state.moments;
                assert!(held(&mixed) < held(&whole) && held(&mixed) > held(&whole) / 2);
                let together = clip_norm > 0.0;
                assert!(steps_of(mixed, together) == steps_of(whole, together), "{config:?}");
                cases += 1;
            }
        }
    }
    assert!(cases == 8 && divided > 40, "{cases} cases, {divided} buckets");
}

/// With clipping, a step is a backward pass and an update behind the norm.
#[test]
fn a_step_that_clips_waits_for_the_norm() {
    for zero in [ZeroStage::Zero0, ZeroStage::Zero1] {
        let degrees = Degrees { tp: 2, pp: 2, dp: 2, ..Degrees::SERIAL };
        let config = EngineConfig { degrees, zero, clip_norm: 0.01, ..serial(toy::gpt()) };
        let (train, update) = (steps(&config, false), steps(&config, true));
        assert!(train == update);
        // The limit is below the norm, so without it the run is another.
        assert!(train[0].1[0].1 > config.clip_norm);
        let free = steps(&EngineConfig { clip_norm: 0.0, ..config.clone() }, false);
        assert_eq!(free[0].1[0], train[0].1[0], "the first step's loss and norm");
        assert!(free != train);
    }
}

/// What each rank says after a step with a gradient that is not finite, and which of its buckets of
/// weights are as they were.
type Stopped = (String, Vec<bool>);

/// A step in which the last element of `bucket` of a replica's gradient is `value`.
fn poisoned(config: &EngineConfig, bucket: u64, value: f32) -> Vec<Stopped> {
    let mesh = Mesh::new(config.degrees, config.degrees.world()).unwrap();
    let stopped = Mutex::new(vec![Stopped::default(); mesh.world()]);
    let run = threads::run(mesh.world(), &Default::default(), |comm| {
        let rank = comm.rank();
        let batch = batch(config, mesh.coordinate(rank).of(Axis::Dp));
        let tapped = Tap::around(comm.clone(), move |group, request| {
            let gradient = group.name() == "dp" && request.name.label() == "gradient";
            if gradient && group.rank() == 0 && request.name.index("bucket") == Some(bucket) {
                let values = request.send.as_mut().unwrap().typed_mut::<f32>().unwrap();
                *values.last_mut().unwrap() = value;
            }
            Tapped::Forward
        });
        let mut engine = Engine::new(config, tapped)?;
        let buckets = 0..engine.layout().buckets.len();
        // A bucket whose gather is posted when the step stops is away: it was updated.
        let held = |engine: &Engine, bucket| {
            engine.weights().bucket(bucket).map(|buf| buf.to_f64_vec().unwrap())
        };
        let before: Vec<_> = buckets.clone().map(|bucket| held(&engine, bucket).unwrap()).collect();
        let error = engine.train(0, LR, &batch, &mut |_, _, _| {}).unwrap_err();
        let unchanged =
            |bucket: usize| held(&engine, bucket).is_ok_and(|now| now == before[bucket]);
        let unchanged = buckets.map(unchanged).collect();
        stopped.lock().unwrap()[rank] = (error.to_string(), unchanged);
        // Nobody is stopped by another's failure before it has its own.
        comm.barrier("stopped")?;
        Err::<(), _>(error)
    });
    assert!(run.is_err());
    stopped.into_inner().unwrap()
}

#[test]
fn a_gradient_that_is_not_finite_never_reaches_a_weight() {
    let mut cases = 0;
    for zero in [ZeroStage::Zero0, ZeroStage::Zero1] {
        for (tp, pp) in [(1, 1), (2, 1), (1, 2)] {
            let degrees = Degrees { tp, pp, dp: 2, ..Degrees::SERIAL };
            let base = EngineConfig { optimizer: ADAMW, clip_norm: 0.0, ..serial(toy::gpt()) };
            let config = EngineConfig { degrees, zero, bucket_elements: 2_000, ..base };
            let layout = RunPlan::new(&config).unwrap().ranks[0][0].clone();
            assert!(layout.buckets.len() > 2);
            // A bucket whose last element belongs to a parameter and is no padding.
            let last = |bucket: usize| {
                let ends = layout.params.iter().filter(|param| param.bucket == bucket);
                ends.map(|param| param.span().end).max() == Some(layout.buckets[bucket].len)
            };
            let bucket = (1..layout.buckets.len()).find(|b| last(*b) && !layout.buckets[*b].tied);
            let bucket = bucket.expect("a bucket without padding");
            let mesh = Mesh::new(degrees, degrees.world()).unwrap();
            for value in [f32::NAN, f32::INFINITY] {
                let stopped = poisoned(&config, bucket as u64, value);
                for (rank, (error, unchanged)) in stopped.into_iter().enumerate() {
                    let case = format!("{config:?}, {value}, rank {rank}: {error}");
                    assert!(error.contains("is not finite"), "{case}");
                    // Where the element is read, the bucket is as it was; on other stages it may be
                    // another bucket, or padding.
                    let at = mesh.coordinate(rank);
                    let reads = zero == ZeroStage::Zero0 || at.dp == 1;
                    if reads && at.pp == 0 {
                        assert!(unchanged[bucket], "{case}");
                        // Buckets are awaited in the order of the backward pass: the last one's gradient
                        // is there first.
                        let updated = unchanged[bucket + 1..].iter().filter(|same| !**same).count();
                        assert!(bucket + 1 == unchanged.len() || updated > 0, "{case}");
                    }
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 2 * 2 * (2 + 4 + 4));
}

/// Buckets are updated where the schedule waits for their gradients. A schedule that does not, or does
/// twice, is noticed.
#[test]
fn a_bucket_that_is_not_awaited_exactly_once_is_an_error() {
    for times in [0, 2] {
        let degrees = Degrees { dp: 2, ..Degrees::SERIAL };
        let config = EngineConfig { degrees, clip_norm: 0.0, ..serial(toy::gpt()) };
        let run = threads::run(2, &Default::default(), |comm| {
            let mut plan = RunPlan::new(&config)?;
            let batch = batch(&config, comm.rank());
            for list in &mut plan.training.actions {
                let awaits =
                    |action: &Action| matches!(action, Action::Sync(Reduction::AwaitGrad { .. }));
                let at = list.iter().position(awaits).unwrap();
                let action = list.remove(at);
                list.splice(at..at, std::iter::repeat_n(action, times));
            }
            let mut engine = Engine::from_plan(Arc::new(plan), comm)?;
            engine.train(0, LR, &batch, &mut |_, _, _| {})?;
            Ok::<_, TrainError>(())
        });
        let error = run.unwrap_err().to_string();
        assert!(error.contains("bucket"), "awaited {times} times: {error}");
    }
}
