//! What a step leaves to the next: memory, and nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use trine_buffer::DType;
use trine_comm::wrap::{Action, Tap};
use trine_comm::{Operation, threads};
use trine_kernels::LargeBlocks;
use trine_mesh::{Axis, Degrees, Mesh};
use trine_schedule::ScheduleKind;
use trine_spec::ModelSpec;
use trine_testkit::toy;
use trine_tests::{ADAMW, batch, serial};
use trine_trainer::TrainError;
use trine_trainer::engine::{Engine, EngineConfig};

#[global_allocator]
static BLOCKS: LargeBlocks = LargeBlocks::new();

/// The allocator counts for the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Wide enough for every kind of buffer to be large.
fn wide(model: ModelSpec) -> ModelSpec {
    let (heads, head_dim) = (model.heads, 32);
    let hidden = heads * head_dim;
    ModelSpec { hidden, head_dim, ffn: 4 * hidden, seq_max: 128, ..model }
}

fn layouts() -> Vec<EngineConfig> {
    let mut all = Vec::new();
    for model in [toy::gpt(), toy::llama(2)] {
        for compute in [DType::F32, DType::Bf16] {
            for (dp, pp, tp) in [(1, 1, 1), (2, 2, 2)] {
                for recompute in [false, true] {
                    all.push(EngineConfig {
                        degrees: Degrees { dp, pp, tp, ..Degrees::SERIAL },
                        compute,
                        recompute: recompute.into(),
                        seq: 128,
                        global_batch: 8,
                        micro_batch: 2,
                        optimizer: ADAMW,
                        // Both ways to update: together behind the norm, each bucket at once.
                        clip_norm: if recompute { 0.0 } else { 0.5 },
                        // Which of a rank's threads finds something to do is open in every step.
                        threads: 2,
                        bucket_elements: 100_000,
                        ..serial(wide(model.clone()))
                    });
                }
            }
        }
    }
    all
}

/// Blocks of more than 64 KiB that each of `steps` steps allocates, over all ranks. From the third step on
/// ranks come `late` to every message that they receive.
fn large_blocks(config: &EngineConfig, steps: u64, late: Duration) -> Vec<u64> {
    let mesh = Mesh::new(config.degrees, config.degrees.world()).expect("a mesh");
    let ranks = threads::run(mesh.world(), &Default::default(), |comm| {
        let batch = batch(config, mesh.coordinate(comm.rank()).of(Axis::Dp));
        let is_late = Arc::new(AtomicBool::new(false));
        let told = is_late.clone();
        let comm = Tap::around(comm, move |_, request| {
            if matches!(request.operation, Operation::Recv { .. }) && told.load(Ordering::Relaxed) {
                std::thread::sleep(late);
            }
            Action::Forward
        });
        let mut engine = Engine::new(config, comm)?;
        let mut counts = Vec::new();
        for step in 0..steps {
            is_late.store(step >= 2, Ordering::Relaxed);
            // Nobody is in a step while somebody reads the counter.
            engine.world().barrier("before")?;
            let before = BLOCKS.counted();
            engine.world().barrier("begin")?;
            engine.train(step, 1e-3, &batch, &mut |_, _, _| {})?;
            engine.world().barrier("end")?;
            counts.push(BLOCKS.counted() - before);
            engine.world().barrier("after")?;
        }
        Ok::<_, TrainError>(counts)
    });
    ranks.expect("every rank finishes")[0].clone()
}

#[test]
fn a_step_allocates_nothing_large_after_the_second() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (mut cases, mut first) = (0, 0);
    for config in layouts() {
        let counts = large_blocks(&config, 5, Duration::ZERO);
        first += counts[0];
        assert_eq!(counts[2..], [0, 0, 0], "{counts:?} blocks in {config:?}");
        cases += 1;
    }
    assert_eq!(cases, 16);
    // The model is large enough for the test to mean something.
    assert!(first > 16 * 50, "{first} blocks in the first steps");
}

/// Messages that nobody waits for are copied, so that their senders can go on. How many there are at once is
/// not known from two steps in which all ranks came in time.
#[test]
fn ranks_that_come_late_allocate_nothing_large() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut cases = 0;
    for schedule in [ScheduleKind::OneFOneB, ScheduleKind::GPipe, ScheduleKind::ZbH2] {
        for pp in [2, 4] {
            let degrees = Degrees { pp, dp: 1, tp: 1, ..Degrees::SERIAL };
            let base = layouts().swap_remove(0);
            let config =
                EngineConfig { degrees, schedule: schedule.into(), global_batch: 16, ..base };
            let counts = large_blocks(&config, 5, Duration::from_millis(10));
            assert_eq!(counts[2..], [0, 0, 0], "{counts:?} blocks, {schedule} of {pp} stages");
            cases += 1;
        }
    }
    assert_eq!(cases, 6);
}

#[test]
fn gradients_do_not_remember_the_step_before() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut cases = 0;
    for config in layouts() {
        let mesh = Mesh::new(config.degrees, config.degrees.world()).unwrap();
        let gradients = |engine: &Engine| {
            let layout = engine.layout().clone();
            let bucket = |bucket: usize| {
                let values = engine.grads().bucket(bucket).unwrap().to_f64_vec().unwrap();
                values[engine.reduced(bucket)].to_vec()
            };
            (0..layout.buckets.len()).map(bucket).collect::<Vec<_>>()
        };
        threads::run(mesh.world(), &Default::default(), |comm| {
            let batch = batch(&config, mesh.coordinate(comm.rank()).of(Axis::Dp));
            let mut engine = Engine::new(&config, comm)?;
            engine.backward(0, &batch, &mut |_, _, _| {})?;
            let once = gradients(&engine);
            engine.backward(0, &batch, &mut |_, _, _| {})?;
            assert_eq!(once, gradients(&engine), "{config:?}");
            Ok::<_, TrainError>(())
        })
        .unwrap();
        cases += 1;
    }
    assert_eq!(cases, 16);
}
