//! Runs that stop after a step, save, and go on in another layout: what they go on with.

use super::*;
use std::collections::BTreeMap;
use std::path::Path;
use trine_checkpoint::{Checkpoint, Disk, RunState, SaveRequest, save};
use trine_comm::{SelfComm, threads};
use trine_optim::{Group, LrKind, LrSchedule};
use trine_spec::assemble::{Tensors, assemble};
use trine_spec::{Pattern, RankLayout};
use trine_tests::{put_together, step_of_rank, weights};
use trine_trainer::TrainError;
use trine_trainer::engine::{Engine, WEIGHTS};

/// The highest rate of a run, and its steps.
const PEAK: f64 = 0.1;
const TOTAL: u64 = 6;

/// The layout that goes on; [`layout`] has saved.
const GOES_ON: Degrees = Degrees { tp: 2, pp: 1, dp: 2, cp: 1, ep: 1 };

/// What a rank holds of each quantity, bucket by bucket.
type State = BTreeMap<&'static str, Vec<Buf>>;

/// What a mutant does to what a rank has read.
type Change = dyn Fn(&RankLayout, &mut State) + Sync;

/// What a checkpoint says of the run.
struct Place {
    /// Steps done.
    step: u64,
    /// Steps whose samples have been seen.
    samples: usize,
    schedule: LrSchedule,
}

/// Where a mutant sits.
enum Wrong {
    /// In front of the communicator, while ranks save.
    Saving(Arc<Meddle>),
    /// In what a rank has read.
    State(Box<Change>),
    /// In the place of the run.
    Place(fn(&mut Place)),
    /// In the plan of the ranks that go on.
    Plan(fn(&mut RunPlan)),
}

struct Resumed {
    name: &'static str,
    config: EngineConfig,
    schedule: LrSchedule,
    wrong: Wrong,
    /// The checks that fail, and maybe others.
    noticed: &'static [Check],
}

fn schedule(kind: LrKind, warmup_steps: u64) -> LrSchedule {
    LrSchedule { kind, warmup_steps, min_ratio: 0.1, decay_fraction: 0.5 }
}

/// AdamW over ranks that share out their moments. With a small `eps` a gradient that is zero but for rounding would
/// move its weight by a full step, this way or that.
fn saving(model: ModelSpec) -> EngineConfig {
    let optimizer =
        OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-3, weight_decay: 0.1 };
    EngineConfig { optimizer, zero: ZeroStage::Zero1, ..layout(model) }
}

/// The samples of a step, which no other one has.
fn samples(config: &EngineConfig, step: usize, dp_index: usize) -> Batch {
    let all = EngineConfig { global_batch: (step + 1) * config.global_batch, ..config.clone() };
    let Batch { inputs, targets, document_start } =
        batch(&EngineConfig { degrees: Degrees::SERIAL, ..all }, 0);
    let each = config.global_batch / config.degrees.dp * config.seq;
    let first = step * config.global_batch * config.seq + dp_index * each;
    let own = |tokens: &[u32]| tokens[first..first + each].to_vec();
    Batch { inputs: own(&inputs), targets: own(&targets), document_start }
}

/// The first step of a rank.
fn first_step(
    engine: &mut Engine,
    schedule: LrSchedule,
    dp_index: usize,
) -> Result<(), TrainError> {
    let batch = samples(engine.config(), 0, dp_index);
    engine.train(0, schedule.rates(PEAK, 1, TOTAL), &batch, &mut |_, _, _| {})?;
    Ok(())
}

/// The second step of a serial run in f64 that never stops.
fn never_stopped(config: &EngineConfig, schedule: LrSchedule) -> Result<Outcome, TrainError> {
    let config = EngineConfig {
        degrees: Degrees::SERIAL,
        zero: ZeroStage::Zero0,
        compute: DType::F64,
        ..config.clone()
    };
    let plan = Arc::new(RunPlan::new(&config)?);
    let mut engine = Engine::from_plan(plan.clone(), SelfComm::new())?;
    let initial = assemble(&[weights(&engine)?]).map_err(TrainError::Parity)?;
    first_step(&mut engine, schedule, 0)?;
    let rates = schedule.rates(PEAK, 2, TOTAL);
    let rank = step_of_rank(&mut engine, (1, rates), &samples(&config, 1, 0), true)?;
    let outcome = put_together(&plan, vec![rank], true).map_err(TrainError::Parity)?;
    Ok(Outcome { initial, ..outcome })
}

/// The first step in the layout of `config`, and its checkpoint in `folder`. Gives the weights before it.
fn saved(
    config: &EngineConfig,
    schedule: LrSchedule,
    wrong: Option<&Wrong>,
    folder: &Path,
) -> Result<Tensors, String> {
    let plan = Arc::new(RunPlan::new(config).map_err(|error| error.to_string())?);
    let ranks = threads::run(plan.mesh.world(), &Default::default(), |comm| {
        let dp_index = plan.mesh.coordinate(comm.rank()).dp;
        let comm = match wrong {
            Some(Wrong::Saving(meddle)) => {
                let meddle = meddle.clone();
                Tap::around(comm, move |group, request| meddle(group, request))
            }
            _ => comm,
        };
        let mut engine = Engine::from_plan(plan.clone(), comm)?;
        let initial = weights(&engine)?;
        first_step(&mut engine, schedule, dp_index)?;
        let run = RunState {
            step: 1,
            consumed_samples: config.global_batch as u64,
            seed: config.seed,
            data_hash: "toy tokens".into(),
            tokenizer_hash: None,
            trainer: serde_json::Value::Null,
        };
        let request = SaveRequest {
            dir: folder,
            model: &plan.parts,
            mesh: &plan.mesh,
            ranks: &plan.ranks,
            dtype: config.compute.accumulator(),
            moments: engine.moments(),
            run: &run,
            tokenizer: None,
            storage: &Disk,
        };
        save(&request, &**engine.world(), &mut |quantity, bucket| {
            engine.full_bucket(quantity, bucket).map_err(Into::into)
        })?;
        Ok::<_, TrainError>(initial)
    });
    assemble(&ranks.map_err(|error| error.to_string())?)
}

/// Sets what a rank holds to what a checkpoint has, but for what is wrong.
fn restore(
    engine: &mut Engine,
    checkpoint: &Checkpoint,
    wrong: Option<&Wrong>,
) -> Result<(), TrainError> {
    let (layout, dtype) = (engine.layout().clone(), engine.config().compute.accumulator());
    let mut state = State::new();
    for quantity in std::iter::once(WEIGHTS).chain(engine.moments().iter().copied()) {
        for (bucket, shape) in layout.buckets.iter().enumerate() {
            let mut all = Buf::zeros(dtype, shape.len);
            checkpoint.load_bucket(quantity, &layout, bucket, all.slice_mut())?;
            state.entry(quantity).or_default().push(all);
        }
    }
    if let Some(Wrong::State(change)) = wrong {
        change(&layout, &mut state);
    }
    for (quantity, buckets) in &state {
        for (bucket, all) in buckets.iter().enumerate() {
            engine.load_bucket(quantity, bucket, all)?;
        }
    }
    Ok(())
}

/// The second step of a run that has stopped after the first.
fn resumed(
    config: &EngineConfig,
    schedule: LrSchedule,
    wrong: Option<&Wrong>,
) -> Result<Outcome, String> {
    let folder = tempfile::tempdir().unwrap();
    let initial = saved(config, schedule, wrong, folder.path())?;
    let checkpoint = Checkpoint::open(&folder.path().join("step-1")).unwrap();
    checkpoint.verify().unwrap();
    let step = checkpoint.manifest().run.step;
    let mut place = Place { step, samples: 1, schedule };
    let config = EngineConfig { degrees: GOES_ON, zero: ZeroStage::Zero0, ..config.clone() };
    let mut plan = RunPlan::new(&config).unwrap();
    match wrong {
        Some(Wrong::Place(change)) => change(&mut place),
        Some(Wrong::Plan(change)) => change(&mut plan),
        Some(Wrong::Saving(_) | Wrong::State(_)) | None => {}
    }
    let plan = Arc::new(plan);
    let ranks = threads::run(plan.mesh.world(), &Default::default(), |comm| {
        let batch = samples(&config, place.samples, plan.mesh.coordinate(comm.rank()).dp);
        let mut engine = Engine::from_plan(plan.clone(), comm)?;
        restore(&mut engine, &checkpoint, wrong)?;
        let rates = place.schedule.rates(PEAK, place.step + 1, TOTAL);
        step_of_rank(&mut engine, (place.step, rates), &batch, false)
    });
    let ranks = ranks.map_err(|error| error.to_string())?;
    Ok(Outcome { initial, ..put_together(&plan, ranks, false)? })
}

/// The elements of a parameter, in its bucket.
fn elements<'a>(layout: &RankLayout, buckets: &'a mut [Buf], name: &str) -> &'a mut [f32] {
    let param = &layout.params[layout.find(name).unwrap()];
    &mut buckets[param.bucket].typed_mut::<f32>().unwrap()[param.span()]
}

/// A quantity of one parameter stands where that of another one belongs, and the other way round.
fn exchanged(quantity: &'static str, names: [&'static str; 2]) -> Wrong {
    Wrong::State(Box::new(move |layout, state| {
        let buckets = state.get_mut(quantity).unwrap();
        let [first, second] = names.map(|name| elements(layout, buckets, name).to_vec());
        elements(layout, buckets, names[0]).copy_from_slice(&second);
        elements(layout, buckets, names[1]).copy_from_slice(&first);
    }))
}

/// Every element of a quantity is another one.
fn each(quantity: &'static str, change: impl Fn(f32) -> f32 + Sync + 'static) -> Wrong {
    Wrong::State(Box::new(move |_, state| {
        for bucket in state.get_mut(quantity).unwrap() {
            bucket.typed_mut::<f32>().unwrap().iter_mut().for_each(|value| *value = change(*value));
        }
    }))
}

/// What a checkpoint brings back.
fn of_the_checkpoint() -> Vec<Resumed> {
    let of = |name, wrong, noticed| {
        let schedule = schedule(LrKind::Constant, 0);
        Resumed { name, config: saving(toy::gpt()), schedule, wrong, noticed }
    };
    let numbers: &[Check] = &[Gradients, Loss, Norm];
    let after: &[Check] = &[LossAfter];
    let mlps = ["block.1.mlp.up.weight", "block.2.mlp.up.weight"];
    let dropout = saving(ModelSpec { dropout: 0.2.into(), ..toy::gpt() });
    vec![
        of("weights are restored to another block", exchanged(WEIGHTS, mlps), numbers),
        of("weights have passed through bf16", each(WEIGHTS, to_bf16), &[Gradients]),
        of("a first moment belongs to another block", exchanged("exp_avg", mlps), after),
        of("a second moment belongs to another block", exchanged("exp_avg_sq", mlps), after),
        of("first moments are left out", each("exp_avg", |_| 0.0), after),
        of("second moments are left out", each("exp_avg_sq", |_| 0.0), after),
        of(
            "first moments have the values of second ones",
            Wrong::State(Box::new(|_, state| {
                let second = state["exp_avg_sq"].iter().map(|buf| buf.to_f64_vec().unwrap());
                let copies: Vec<Buf> = second.map(|values| f32s(&values)).collect();
                state.insert("exp_avg", copies);
            })),
            after,
        ),
        of(
            "moments that other replicas hold are not gathered",
            Wrong::Saving(skipped("dp", "state")),
            after,
        ),
        of("the update counts a step less", Wrong::Place(|place| place.step -= 1), after),
        of("the update counts a step more", Wrong::Place(|place| place.step += 1), after),
        Resumed {
            config: dropout,
            ..of(
                "masks are those of the step before",
                Wrong::Place(|place| place.step -= 1),
                numbers,
            )
        },
        of("samples come a second time", Wrong::Place(|place| place.samples = 0), numbers),
    ]
}

fn f32s(values: &[f64]) -> Buf {
    Buf::from_vec(values.iter().map(|value| *value as f32).collect::<Vec<f32>>())
}

/// Rounded as bf16 is, but towards zero.
fn to_bf16(value: f32) -> f32 {
    f32::from_bits(value.to_bits() & 0xffff_0000)
}

/// How far an update goes.
fn of_the_rate() -> Vec<Resumed> {
    let group = |pattern: &str| Group::new(Pattern::new(pattern));
    let slow = Group { lr: Some(0.25), ..group("block.*") };
    let linear = Group { schedule: Some(LrKind::Linear), ..group("embedding.*") };
    let decayed = Group { decay: Some(0.9), ..group("*") };
    let kept = Group { decay: Some(0.0), ..group("embedding.*") };
    let groups = vec![slow, linear, decayed, kept];
    let of = |name, schedule, wrong| {
        let config = EngineConfig { groups: groups.clone(), ..saving(toy::gpt()) };
        Resumed { name, config, schedule, wrong, noticed: &[LossAfter] }
    };
    let constant = schedule(LrKind::Constant, 0);
    let slowly = schedule(LrKind::Constant, 4);
    let falling = schedule(LrKind::Cosine, 0);
    let warmer = |place: &mut Place| place.schedule.warmup_steps += 1;
    let colder = |place: &mut Place| place.schedule.warmup_steps -= 1;
    let norms_decay = |plan: &mut RunPlan| {
        let params = plan.ranks.iter_mut().flatten().flat_map(|layout| &mut layout.params);
        params.filter(|param| param.spec.name.contains("norm")).for_each(|p| p.spec.decay = true);
    };
    let group_of_run = |plan: &mut RunPlan| plan.config.groups[0].lr = None;
    let schedule_of_run = |plan: &mut RunPlan| plan.config.groups[1].schedule = None;
    let decay_of_run = |plan: &mut RunPlan| plan.config.groups[2].decay = None;
    let first_wins = |plan: &mut RunPlan| plan.config.groups.swap(2, 3);
    vec![
        of("the warm-up is a step longer", slowly, Wrong::Place(warmer)),
        of("the warm-up is a step shorter", slowly, Wrong::Place(colder)),
        of(
            "the rate stays at its peak",
            falling,
            Wrong::Place(|place| {
                place.schedule.kind = LrKind::Constant;
            }),
        ),
        of("a group has the rate of the run", constant, Wrong::Plan(group_of_run)),
        of("a group has the schedule of the run", constant, Wrong::Plan(schedule_of_run)),
        of("a group has the decay of the run", constant, Wrong::Plan(decay_of_run)),
        of("the first of two groups wins", constant, Wrong::Plan(first_wins)),
        of("norms decay", constant, Wrong::Plan(norms_decay)),
    ]
}

/// Each is wrong in a number of the second step, and the same run without it in none.
#[test]
fn every_mutant_of_a_checkpoint_and_of_the_rate_is_noticed() {
    let mut noticed = 0;
    let mut healthy: HashMap<String, Outcome> = HashMap::new();
    for Resumed { name, config, schedule, wrong, noticed: by } in
        of_the_checkpoint().into_iter().chain(of_the_rate())
    {
        let (_, bound) = beside(config.compute, &config.model, config.degrees.tp);
        let exact = healthy.entry(format!("{config:?} {schedule:?}")).or_insert_with(|| {
            let exact = never_stopped(&config, schedule).unwrap();
            let found = findings(&resumed(&config, schedule, None), &exact, bound);
            assert_eq!(found, [], "{name}");
            exact
        });
        let found = findings(&resumed(&config, schedule, Some(&wrong)), exact, bound);
        let checks: Vec<Check> = found.iter().map(|finding| finding.check).collect();
        println!("{name}: {checks:?} {:?}", found.first());
        let all = by.iter().all(|check| checks.contains(check));
        assert!(all && !checks.contains(&Run), "{name}: {found:?}");
        noticed += 1;
    }
    assert_eq!(noticed, 20);
}
