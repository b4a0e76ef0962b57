//! Every schedule on every number of stages computes what one stage computes, and failures say where
//! they happened.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers outside #[test] included"
)]

use std::collections::BTreeMap;
use trine_buffer::{Act, Buf, DType, Pool};
use trine_comm::threads::{self, Delivery, WorldError, WorldOptions};
use trine_comm::{Communicator, Name, ReduceOp};
use trine_pipeline::{Execution, Moment, PipelineError, StageError, StageOps, execute};
use trine_schedule::{
    Action, Compute, KindInfo, Payload, Purpose, Reduction, Schedule, ScheduleKind, Shape,
    SyncPlan, lower,
};

const WIDTH: usize = 3;

/// Stages `y = gain · x + mb`, whose only weight is the gain. Every micro-batch's input, output
/// gradient and weight gradient is kept apart, so that a mix-up changes a number.
struct Affine<'a> {
    /// Stages of the whole pipeline.
    stages: usize,
    fail_at: Option<usize>,
    /// By stage and micro-batch.
    inputs: BTreeMap<(usize, usize), Act>,
    gradients: BTreeMap<(usize, usize), Act>,
    weights: BTreeMap<usize, f64>,
    synced: Vec<Reduction>,
    /// Of the last stage, by micro-batch.
    outputs: BTreeMap<usize, Vec<f64>>,
    pool: &'a Pool,
}

impl<'a> Affine<'a> {
    fn new(stages: usize, pool: &'a Pool) -> Self {
        Self {
            stages,
            fail_at: None,
            inputs: BTreeMap::new(),
            gradients: BTreeMap::new(),
            weights: BTreeMap::new(),
            synced: vec![],
            outputs: BTreeMap::new(),
            pool,
        }
    }

    fn map(&self, x: &Act, f: impl Fn(f64) -> f64) -> Result<Act, StageError> {
        let mut y = self.pool.alloc(DType::F64, x.len())?;
        let pairs = y.typed_mut::<f64>()?.iter_mut().zip(x.typed::<f64>()?);
        pairs.for_each(|(y, x)| *y = f(*x));
        Ok(Act::new(y))
    }
}

fn gain(stage: usize) -> f64 {
    1.0 + stage as f64 / 8.0
}

fn input(micro_batch: usize) -> Vec<f64> {
    (0..WIDTH).map(|i| (micro_batch * WIDTH + i) as f64).collect()
}

impl StageOps for Affine<'_> {
    fn forward(&mut self, stage: usize, mb: usize, x: Option<Act>) -> Result<Act, StageError> {
        if self.fail_at == Some(mb) {
            return Err("out of paper".into());
        }
        assert_eq!(x.is_none(), stage == 0, "the first stage takes the tokens");
        let x = x.unwrap_or_else(|| Act::new(Buf::from_vec(input(mb))));
        let y = self.map(&x, |x| gain(stage) * x + mb as f64)?;
        self.inputs.insert((stage, mb), x);
        if stage + 1 == self.stages {
            self.outputs.insert(mb, y.to_f64_vec().unwrap());
        }
        Ok(y)
    }

    fn backward_input(
        &mut self,
        stage: usize,
        mb: usize,
        segment: Option<usize>,
        dy: Option<Act>,
    ) -> Result<Option<Act>, StageError> {
        assert_eq!(segment.unwrap_or(0), 0, "one segment");
        assert_eq!(dy.is_none(), stage + 1 == self.stages, "the last stage ends in the loss");
        // The loss is half the square of the output.
        let dy = dy.unwrap_or_else(|| Act::new(Buf::from_vec(self.outputs[&mb].clone())));
        let dx = self.map(&dy, |dy| gain(stage) * dy)?;
        self.gradients.insert((stage, mb), dy);
        Ok(Some(dx))
    }

    fn backward_weight(
        &mut self,
        stage: usize,
        mb: usize,
        _: Option<usize>,
    ) -> Result<(), StageError> {
        let key = (stage, mb);
        let (x, dy) = (self.inputs.remove(&key).unwrap(), self.gradients.remove(&key).unwrap());
        let products =
            x.to_f64_vec().unwrap().into_iter().zip(dy.to_f64_vec().unwrap()).map(|(x, dy)| x * dy);
        *self.weights.entry(stage).or_default() += products.sum::<f64>();
        Ok(())
    }

    fn transfer_len(&self, _: Payload) -> (DType, usize) {
        (DType::F64, WIDTH)
    }

    fn sync(&mut self, reduction: Reduction) -> Result<(), StageError> {
        self.synced.push(reduction);
        Ok(())
    }
}

/// The same model on one rank: outputs of the last stage by micro-batch, and each stage's gradient.
fn serial(stages: usize, micro_batches: usize) -> (Vec<Vec<f64>>, Vec<f64>) {
    let (mut outputs, mut weights) = (vec![], vec![0.0; stages]);
    for mb in 0..micro_batches {
        let mut xs = vec![input(mb)];
        for stage in 0..stages {
            xs.push(xs[stage].iter().map(|x| gain(stage) * x + mb as f64).collect());
        }
        let mut dy = xs[stages].clone();
        for stage in (0..stages).rev() {
            weights[stage] += xs[stage].iter().zip(&dy).map(|(x, dy)| x * dy).sum::<f64>();
            dy.iter_mut().for_each(|dy| *dy *= gain(stage));
        }
        outputs.push(xs.pop().unwrap());
    }
    (outputs, weights)
}

fn schedule(kind: ScheduleKind, shape: Shape) -> Schedule {
    let plan = SyncPlan { segments: vec![1; shape.stages()], tied: vec![] };
    let schedule = lower(&kind.generate_shape(shape).unwrap(), Some(&plan)).unwrap();
    trine_schedule::verify(&schedule).unwrap();
    schedule
}

/// All kinds that train, each with up to three stages on a rank where it has several.
fn kinds() -> Vec<(ScheduleKind, usize)> {
    let trains = ScheduleKind::all().iter().filter(|info| info.purpose == Purpose::Train);
    let each = |info: &KindInfo| {
        let (kind, (fewest, most)) = (info.kind, info.chunks);
        (fewest..=most.min(3)).map(move |chunks| (kind, chunks))
    };
    trains.flat_map(each).collect()
}

#[test]
fn every_schedule_computes_what_one_stage_computes() {
    let (mut compared, mut several) = (0, 0);
    for (kind, chunks) in kinds() {
        for delivery in [Delivery::Buffered, Delivery::Rendezvous] {
            for ranks in [1, 2, 3, 4] {
                for micro_batches in [1, 2, 3, 4, 6, 8] {
                    let shape = Shape { ranks, chunks, micro_batches };
                    if kind.check_shape(&shape).is_err() {
                        continue;
                    }
                    let schedule = schedule(kind, shape);
                    let options = WorldOptions { delivery, ..WorldOptions::default() };
                    let done = threads::run(ranks, &options, |comm| run(&schedule, &*comm));
                    compare(&schedule, done.unwrap());
                    compared += 1;
                    several += usize::from(chunks > 1);
                }
            }
        }
    }
    // Interleaved schedules of several stages take whole groups of micro-batches.
    // DualPipeV takes at least two for each rank.
    let (any, grouped, at_least) = (6 + 2 + 1, 2 * (6 + 4 + 2 + 2), 5 + 3 + 2 + 1);
    assert_eq!(compared, 2 * (any * 4 * 6 + grouped + at_least));
    assert_eq!(several, 222);
}

/// What one rank has done.
struct Done {
    /// The weight gradient of each of its stages.
    weights: BTreeMap<usize, f64>,
    /// Of the last stage.
    outputs: Vec<Vec<f64>>,
    in_flight_max: usize,
}

/// Weight gradients are added in the order of micro-batches, so that they are equal to the bit.
fn compare(schedule: &Schedule, ranks: Vec<Done>) {
    let (outputs, weights) = serial(schedule.stages(), schedule.micro_batches);
    let mut seen = 0;
    for (rank, done) in ranks.into_iter().enumerate() {
        assert!(done.weights.keys().copied().eq(schedule.stages_of(rank)), "{}", schedule.name);
        for (stage, weight) in &done.weights {
            assert_eq!(*weight, weights[*stage], "{schedule}");
            seen += 1;
        }
        if done.weights.contains_key(&(schedule.stages() - 1)) {
            assert_eq!(done.outputs, outputs);
        }
        assert!(done.in_flight_max <= schedule.in_flight_max[rank]);
    }
    assert_eq!(seen, schedule.stages());
}

/// Runs one rank's list.
fn run(schedule: &Schedule, comm: &dyn Communicator) -> Result<Done, PipelineError> {
    let pool = Pool::new();
    let mut stages = Affine::new(schedule.stages(), &pool);
    let (mut seen, mut open, mut in_flight, mut in_flight_max) = (vec![], None, 0usize, 0);
    execute(
        &Execution { schedule, comm, pool: &pool },
        &mut stages,
        &mut |position, action, moment| match moment {
            Moment::Begin => {
                assert_eq!(open.replace(position), None);
                seen.push(*action);
            }
            Moment::End => {
                assert_eq!(open.take(), Some(position));
                in_flight +=
                    usize::from(matches!(action, Action::Compute(Compute::Forward { .. })));
                in_flight -=
                    usize::from(matches!(action, Action::Compute(Compute::BackwardWeight { .. })));
                in_flight_max = in_flight_max.max(in_flight);
            }
        },
    )?;
    assert_eq!(seen, schedule.actions[comm.rank()], "observed from top to bottom");
    let held = schedule.stages_of(comm.rank()).count();
    assert_eq!(stages.synced.len(), 2 * held, "each gradient is posted and awaited");
    assert!(stages.inputs.is_empty() && stages.gradients.is_empty());
    assert_eq!(pool.stats().bytes_in_use, 0);
    let outputs = stages.outputs.into_values().collect();
    Ok(Done { weights: stages.weights, outputs, in_flight_max })
}

#[test]
fn a_failing_stage_is_named_with_rank_and_action_and_stops_the_others() {
    let schedule = schedule(ScheduleKind::OneFOneB, Shape::plain(3, 4));
    let error = threads::run(3, &Default::default(), |comm| {
        let pool = Pool::new();
        let mut stage = Affine::new(3, &pool);
        stage.fail_at = (comm.rank() == 1).then_some(2);
        let execution = Execution { schedule: &schedule, comm: &*comm, pool: &pool };
        execute(&execution, &mut stage, &mut |_, _, _| {})
    })
    .unwrap_err();
    let text = error.to_string();
    let WorldError::Failed { rank: 1, error: PipelineError::Stage { position, action, .. } } =
        error
    else {
        panic!("{text}");
    };
    assert_eq!(action, Action::Compute(Compute::Forward { stage: 1, micro_batch: 2 }));
    assert_eq!(schedule.actions[1][position], action);
    assert!(text.contains("pipeline rank 1, action") && text.contains("out of paper"), "{text}");
}

#[test]
fn a_list_that_was_not_verified_names_the_missing_input() {
    let mut broken = schedule(ScheduleKind::GPipe, Shape::plain(2, 1));
    for actions in &mut broken.actions {
        actions.retain(Action::is_compute);
    }
    let comms = threads::connect(2, &WorldOptions::default());
    for (comm, what) in comms.iter().zip(["output gradient", "input activation"]) {
        let pool = Pool::new();
        let mut stage = Affine::new(2, &pool);
        let execution = Execution { schedule: &broken, comm: &**comm, pool: &pool };
        let error = execute(&execution, &mut stage, &mut |_, _, _| {}).unwrap_err().to_string();
        assert!(error.contains(&format!("its {what} is not there")), "{error}");
    }
}

#[test]
fn a_schedule_for_other_ranks_is_refused() {
    let schedule = schedule(ScheduleKind::GPipe, Shape::plain(3, 2));
    let error = threads::run(2, &Default::default(), |comm| {
        let pool = Pool::new();
        let mut stage = Affine::new(2, &pool);
        let execution = Execution { schedule: &schedule, comm: &*comm, pool: &pool };
        let refused = execute(&execution, &mut stage, &mut |_, _, _| {}).unwrap_err();
        assert!(stage.outputs.is_empty(), "nothing has run");
        comm.all_reduce(Buf::zeros(DType::F64, 1), ReduceOp::Sum, Name::new("both")).unwrap();
        Err::<(), _>(refused)
    })
    .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("ranks in it: 3, in the group: 2"), "{text}");
}
