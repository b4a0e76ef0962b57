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
use trine_schedule::{Action, Payload, Schedule, ScheduleKind, SyncPlan, lower};

const WIDTH: usize = 3;

/// A stage `y = gain · x + mb`, whose only weight is the gain. Every micro-batch's input, output
/// gradient and weight gradient is kept apart, so that a mix-up changes a number.
struct Affine<'a> {
    gain: f64,
    last: bool,
    fail_at: Option<usize>,
    inputs: BTreeMap<usize, Act>,
    gradients: BTreeMap<usize, Act>,
    weight: f64,
    synced: Vec<Action>,
    outputs: BTreeMap<usize, Vec<f64>>,
    pool: &'a Pool,
}

impl<'a> Affine<'a> {
    fn new(stage: usize, stages: usize, pool: &'a Pool) -> Self {
        Self {
            gain: 1.0 + stage as f64 / 8.0,
            last: stage + 1 == stages,
            fail_at: None,
            inputs: BTreeMap::new(),
            gradients: BTreeMap::new(),
            weight: 0.0,
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

fn input(micro_batch: usize) -> Vec<f64> {
    (0..WIDTH).map(|i| (micro_batch * WIDTH + i) as f64).collect()
}

impl StageOps for Affine<'_> {
    fn forward(&mut self, _: usize, mb: usize, x: Option<Act>) -> Result<Act, StageError> {
        if self.fail_at == Some(mb) {
            return Err("out of paper".into());
        }
        let x = x.unwrap_or_else(|| Act::new(Buf::from_vec(input(mb))));
        let y = self.map(&x, |x| self.gain * x + mb as f64)?;
        self.inputs.insert(mb, x);
        self.outputs.insert(mb, y.to_f64_vec());
        Ok(y)
    }

    fn backward_input(
        &mut self,
        _: usize,
        mb: usize,
        segment: Option<usize>,
        dy: Option<Act>,
    ) -> Result<Option<Act>, StageError> {
        assert_eq!(segment.unwrap_or(0), 0, "one segment");
        assert_eq!(dy.is_none(), self.last, "the last stage ends in the loss");
        // The loss is half the square of the output.
        let dy = dy.unwrap_or_else(|| Act::new(Buf::from_vec(self.outputs[&mb].clone())));
        let dx = self.map(&dy, |dy| self.gain * dy)?;
        self.gradients.insert(mb, dy);
        Ok(Some(dx))
    }

    fn backward_weight(&mut self, _: usize, mb: usize, _: Option<usize>) -> Result<(), StageError> {
        let (x, dy) = (self.inputs.remove(&mb).unwrap(), self.gradients.remove(&mb).unwrap());
        let products = x.to_f64_vec().into_iter().zip(dy.to_f64_vec()).map(|(x, dy)| x * dy);
        self.weight += products.sum::<f64>();
        Ok(())
    }

    fn transfer_len(&self, _: Payload) -> (DType, usize) {
        (DType::F64, WIDTH)
    }

    fn sync(&mut self, action: &Action) -> Result<(), StageError> {
        self.synced.push(*action);
        Ok(())
    }
}

/// The same model on one rank: outputs of the last stage by micro-batch, and each stage's gradient.
fn serial(stages: usize, micro_batches: usize) -> (Vec<Vec<f64>>, Vec<f64>) {
    let (mut outputs, mut weights) = (vec![], vec![0.0; stages]);
    for mb in 0..micro_batches {
        let mut xs = vec![input(mb)];
        for stage in 0..stages {
            let gain = 1.0 + stage as f64 / 8.0;
            xs.push(xs[stage].iter().map(|x| gain * x + mb as f64).collect());
        }
        let mut dy = xs[stages].clone();
        for stage in (0..stages).rev() {
            weights[stage] += xs[stage].iter().zip(&dy).map(|(x, dy)| x * dy).sum::<f64>();
            let gain = 1.0 + stage as f64 / 8.0;
            dy.iter_mut().for_each(|dy| *dy *= gain);
        }
        outputs.push(xs.pop().unwrap());
    }
    (outputs, weights)
}

fn schedule(kind: ScheduleKind, stages: usize, micro_batches: usize) -> Schedule {
    let plan = SyncPlan { segments: vec![1; stages], tied: vec![] };
    let schedule = lower(&kind.generate(stages, micro_batches).unwrap(), Some(&plan)).unwrap();
    trine_schedule::verify(&schedule).unwrap();
    schedule
}

#[test]
fn every_schedule_computes_what_one_stage_computes() {
    let mut compared = 0;
    for kind in [ScheduleKind::GPipe, ScheduleKind::OneFOneB] {
        for delivery in [Delivery::Buffered, Delivery::Rendezvous] {
            for stages in [1, 2, 3, 4] {
                for micro_batches in [1, 2, 3, 5, 8] {
                    let schedule = schedule(kind, stages, micro_batches);
                    let options = WorldOptions { delivery, ..WorldOptions::default() };
                    let ranks = threads::run(stages, &options, |comm| run(&schedule, &*comm));
                    let (outputs, weights) = serial(stages, micro_batches);
                    for (stage, (weight, own, in_flight)) in ranks.unwrap().into_iter().enumerate()
                    {
                        // Weight gradients are added in the order of micro-batches.
                        assert_eq!(weight, weights[stage], "{kind:?} {stages} {micro_batches}");
                        if stage + 1 == stages {
                            assert_eq!(own, outputs);
                        }
                        assert!(in_flight <= schedule.in_flight_max[stage]);
                    }
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 2 * 2 * 4 * 5);
}

/// Gradient, outputs and most micro-batches in flight of one rank.
fn run(
    schedule: &Schedule,
    comm: &dyn Communicator,
) -> Result<(f64, Vec<Vec<f64>>, usize), PipelineError> {
    let pool = Pool::new();
    let mut stage = Affine::new(comm.rank(), comm.size(), &pool);
    let (mut seen, mut open, mut in_flight, mut in_flight_max) = (vec![], None, 0usize, 0);
    execute(
        &Execution { schedule, comm, pool: &pool },
        &mut stage,
        &mut |position, action, moment| match moment {
            Moment::Begin => {
                assert_eq!(open.replace(position), None);
                seen.push(*action);
            }
            Moment::End => {
                assert_eq!(open.take(), Some(position));
                in_flight += usize::from(matches!(action, Action::Forward { .. }));
                in_flight -= usize::from(matches!(action, Action::BackwardWeight { .. }));
                in_flight_max = in_flight_max.max(in_flight);
            }
        },
    )?;
    assert_eq!(seen, schedule.actions[comm.rank()], "observed from top to bottom");
    assert_eq!(stage.synced.len(), 2, "the gradient is posted and awaited");
    assert!(stage.inputs.is_empty() && stage.gradients.is_empty());
    assert_eq!(pool.stats().bytes_in_use, 0);
    Ok((stage.weight, stage.outputs.into_values().collect(), in_flight_max))
}

#[test]
fn a_failing_stage_is_named_with_rank_and_action_and_stops_the_others() {
    let schedule = schedule(ScheduleKind::OneFOneB, 3, 4);
    let error = threads::run(3, &Default::default(), |comm| {
        let pool = Pool::new();
        let mut stage = Affine::new(comm.rank(), 3, &pool);
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
    assert_eq!(action, Action::Forward { stage: 1, micro_batch: 2 });
    assert_eq!(schedule.actions[1][position], action);
    assert!(text.contains("pipeline rank 1, action") && text.contains("out of paper"), "{text}");
}

#[test]
fn a_list_that_was_not_verified_names_the_missing_input() {
    let mut broken = schedule(ScheduleKind::GPipe, 2, 1);
    for actions in &mut broken.actions {
        actions.retain(Action::is_compute);
    }
    let comms = threads::connect(2, &WorldOptions::default());
    for (comm, what) in comms.iter().zip(["output gradient", "input activation"]) {
        let pool = Pool::new();
        let mut stage = Affine::new(comm.rank(), 2, &pool);
        let execution = Execution { schedule: &broken, comm: &**comm, pool: &pool };
        let error = execute(&execution, &mut stage, &mut |_, _, _| {}).unwrap_err().to_string();
        assert!(error.contains(&format!("its {what} is not there")), "{error}");
    }
}

#[test]
fn a_schedule_for_other_ranks_is_refused() {
    let schedule = schedule(ScheduleKind::GPipe, 3, 2);
    let error = threads::run(2, &Default::default(), |comm| {
        let pool = Pool::new();
        let mut stage = Affine::new(comm.rank(), 2, &pool);
        let execution = Execution { schedule: &schedule, comm: &*comm, pool: &pool };
        let refused = execute(&execution, &mut stage, &mut |_, _, _| {}).unwrap_err();
        assert!(stage.outputs.is_empty(), "nothing has run");
        comm.all_reduce(Buf::zeros(DType::F64, 1), ReduceOp::Sum, Name::new("both")).unwrap();
        Err::<(), _>(refused)
    })
    .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("for 3 pipeline ranks, the group has 2"), "{text}");
}
