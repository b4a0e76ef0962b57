//! Lowering: small passes that turn compute-only lists into lists that can be executed.
//!
//! Each pass takes a schedule and returns another. [`lower()`] runs them in order.

use std::collections::{BTreeMap, HashSet};

use crate::action::Parcel;
use crate::schedule::is_backward_pair;
use crate::waits::stuck_inputs;
use crate::{
    Action, Compute, Message, Payload, Reduction, Schedule, ScheduleError, SyncPlan, Transfer,
};

/// All passes: messages between stages, exchanges, and (with a plan) the reduction of gradients. Lists that
/// have messages keep them as they are.
///
/// # Errors
/// [`ScheduleError::Shape`] if schedule or plan do not fit together, [`ScheduleError::Lowered`] if
/// the lists have segments or reductions, [`ScheduleError::Stuck`] if their order cannot be executed.
pub fn lower(schedule: &Schedule, sync: Option<&SyncPlan>) -> Result<Schedule, ScheduleError> {
    let with_messages = if schedule.actions.iter().flatten().any(is_transfer) {
        schedule.check()?;
        schedule.expect_only(UNSYNCED, is_unsynced)?;
        schedule.clone()
    } else {
        fuse_exchanges(add_transfers(schedule)?)
    };
    match sync {
        Some(plan) => add_grad_sync(with_messages, plan),
        None => Ok(with_messages),
    }
}

/// Adds the sends and receives that the placement asks for.
///
/// The lists of all ranks are traced together. A send follows what produced it (a gradient after W
/// when every W of the schedule stands right behind its B, for then they are one unit), a receive comes as late as it
/// can: where the next compute action needs it. Only when every rank waits is a message received early. A transfer
/// is put into the lists of both ends at the same moment of the trace, so each list is a part of one
/// common order; hence no rank can wait for another in a circle, even if a send completes only when
/// it is received.
///
/// # Errors
/// [`ScheduleError::Lowered`] if there is anything but whole F, B and W,
/// [`ScheduleError::Stuck`] if the compute actions wait for each other in a circle.
pub fn add_transfers(schedule: &Schedule) -> Result<Schedule, ScheduleError> {
    schedule.check()?;
    schedule.expect_only("whole F, B and W only", Action::is_whole_compute)?;
    let actions = Trace::new(schedule).run()?;
    Ok(Schedule { actions, ..schedule.clone() })
}

/// Joins each send that stands next to a receive with it, so that both are posted together.
///
/// Nothing is computed between the two, so posting the later one early is always allowed, and it can
/// only remove waiting.
pub fn fuse_exchanges(mut schedule: Schedule) -> Schedule {
    for list in &mut schedule.actions {
        let mut fused: Vec<Action> = Vec::with_capacity(list.len());
        for &action in list.iter() {
            let exchange = match (fused.last(), action) {
                (
                    Some(&Action::Message(Message::Send(send))),
                    Action::Message(Message::Recv(recv)),
                )
                | (
                    Some(&Action::Message(Message::Recv(recv))),
                    Action::Message(Message::Send(send)),
                ) => Some(Action::Message(Message::Exchange { send, recv })),
                // Any other neighbours stay as they are.
                _ => None,
            };
            if exchange.is_some() {
                fused.pop();
            }
            fused.push(exchange.unwrap_or(action));
        }
        *list = fused;
    }
    schedule
}

/// Adds the reduction of gradients, each bucket as early as it is complete.
///
/// The last W of each stage (and its B, if that stands right before) is cut into segments, and each
/// segment is followed by the posting of its reduction, so that buckets are reduced while the
/// backward of the others still runs. A tied segment has to wait for its copies: after all else
/// comes `ReduceTied`, then the reductions of tied segments, and then every reduction is awaited in
/// the order of posting.
///
/// # Errors
/// [`ScheduleError::Shape`] if the plan does not fit or the schedule is an evaluation,
/// [`ScheduleError::Lowered`] if there are segments or reductions already.
pub fn add_grad_sync(mut schedule: Schedule, plan: &SyncPlan) -> Result<Schedule, ScheduleError> {
    schedule.sync = Some(plan.clone());
    schedule.check()?;
    schedule.expect_only(UNSYNCED, is_unsynced)?;
    schedule.actions = (0..schedule.ranks()).map(|rank| sync_rank(&schedule, plan, rank)).collect();
    Ok(schedule)
}

/// What a schedule has before its reductions are added.
const UNSYNCED: &str = "whole F, B and W and their messages";

fn is_unsynced(action: &Action) -> bool {
    action.is_whole_compute() || is_transfer(action)
}

fn is_transfer(action: &Action) -> bool {
    matches!(action, Action::Message(_))
}

/// One rank of a [`Trace`].
struct Tracer<'a> {
    compute: &'a [Action],
    /// The next compute action.
    next: usize,
    /// Produced and not yet taken by the receiver; nothing is computed meanwhile.
    sending: Option<Transfer>,
    delivered: HashSet<Parcel>,
    lowered: Vec<Action>,
}

/// The joint execution of all compute-only lists that decides where messages go. Every action takes
/// one unit of time: nearly what a balanced pipeline does.
struct Trace<'a> {
    schedule: &'a Schedule,
    /// Whether gradients are sent after W, not after B.
    backward_whole: bool,
    ranks: Vec<Tracer<'a>>,
}

impl<'a> Trace<'a> {
    fn new(schedule: &'a Schedule) -> Self {
        let tracer = |list: &'a Vec<Action>| Tracer {
            compute: list,
            next: 0,
            sending: None,
            delivered: HashSet::new(),
            lowered: Vec::with_capacity(2 * list.len()),
        };
        let ranks = schedule.actions.iter().map(tracer).collect();
        Self { schedule, backward_whole: schedule.keeps_backward_whole(), ranks }
    }

    fn run(mut self) -> Result<Vec<Vec<Action>>, ScheduleError> {
        loop {
            // One unit of time: messages that can go, then an action on every rank that has its input.
            while self.deliver_wanted() || self.deliver_for_the_sender() {}
            if self.compute() {
                continue;
            }
            if let Some(sender) = self.ranks.iter().position(|rank| rank.sending.is_some()) {
                self.deliver(sender);
            } else if self.ranks.iter().all(|rank| rank.next == rank.compute.len()) {
                return Ok(self.ranks.into_iter().map(|rank| rank.lowered).collect());
            } else {
                return Err(self.stuck());
            }
        }
    }

    /// Completes the transfers that both ends want; false if there were none.
    fn deliver_wanted(&mut self) -> bool {
        let mut delivered = false;
        for sender in 0..self.ranks.len() {
            if let Some(send) = self.ranks[sender].sending
                && self.wanted(send.peer).map(|recv| recv.received()) == send.sent()
            {
                self.deliver(sender);
                delivered = true;
            }
        }
        delivered
    }

    /// Completes one transfer whose sender could go on computing, if there is one. The receiver takes
    /// it early; its message is there, so it does not wait.
    fn deliver_for_the_sender(&mut self) -> bool {
        let could_go_on = |rank: usize| {
            let tracer = &self.ranks[rank];
            tracer.sending.is_some()
                && tracer.next < tracer.compute.len()
                && self.wanted(rank).is_none()
        };
        let sender = (0..self.ranks.len()).find(|&rank| could_go_on(rank));
        sender.inspect(|&sender| self.deliver(sender)).is_some()
    }

    /// Computes one action on every rank that can; false if none could.
    fn compute(&mut self) -> bool {
        let can = |rank: usize| self.ranks[rank].sending.is_none() && self.wanted(rank).is_none();
        let able: Vec<usize> = (0..self.ranks.len()).filter(|&rank| can(rank)).collect();
        let mut computed = false;
        for rank in able {
            let tracer = &mut self.ranks[rank];
            let Some(&action) = tracer.compute.get(tracer.next) else { continue };
            tracer.lowered.push(action);
            tracer.next += 1;
            self.ranks[rank].sending = self.produced(rank, self.ranks[rank].next - 1);
            computed = true;
        }
        computed
    }

    /// Completes what `sender` sends, whether or not the receiver needs it next.
    fn deliver(&mut self, sender: usize) {
        let send = self.ranks[sender].sending.take().expect("invariant: called for a waiting send");
        let message = send.sent().expect("invariant: only stages with a neighbour send");
        self.ranks[sender].lowered.push(Action::Message(Message::Send(send)));
        let receiver = &mut self.ranks[send.peer];
        receiver.delivered.insert(message);
        receiver.lowered.push(Action::Message(Message::Recv(Transfer {
            payload: message.payload,
            stage: message.to_stage,
            micro_batch: message.micro_batch,
            peer: sender,
        })));
    }

    /// The message that the next compute action of a rank still lacks.
    fn wanted(&self, rank: usize) -> Option<Transfer> {
        let tracer = &self.ranks[rank];
        let recv = self.needed(rank, tracer.compute.get(tracer.next)?)?;
        (!tracer.delivered.contains(&recv.received())).then_some(recv)
    }

    /// What a compute action takes from another rank.
    fn needed(&self, rank: usize, action: &Action) -> Option<Transfer> {
        let (payload, stage, micro_batch) = match *action {
            Action::Compute(Compute::Forward { stage, micro_batch }) => {
                (Payload::Activation, stage, micro_batch)
            }
            Action::Compute(Compute::BackwardInput { stage, micro_batch, .. }) => {
                (Payload::Gradient, stage, micro_batch)
            }
            Action::Compute(Compute::BackwardWeight { .. })
            | Action::Message(_)
            | Action::Sync(_) => return None,
        };
        let message = Parcel { payload, to_stage: stage, micro_batch };
        let peer = *self.schedule.placement.get(message.source_stage()?)?;
        (peer != rank).then_some(Transfer { payload, stage, micro_batch, peer })
    }

    /// What is ready to be sent once the compute action at `index` is done.
    fn produced(&self, rank: usize, index: usize) -> Option<Transfer> {
        let (payload, stage, micro_batch) = match self.ranks[rank].compute[index] {
            Action::Compute(Compute::Forward { stage, micro_batch }) => {
                (Payload::Activation, stage, micro_batch)
            }
            Action::Compute(Compute::BackwardInput { stage, micro_batch, .. })
                if !self.backward_whole =>
            {
                (Payload::Gradient, stage, micro_batch)
            }
            Action::Compute(Compute::BackwardWeight { stage, micro_batch, .. })
                if self.backward_whole =>
            {
                (Payload::Gradient, stage, micro_batch)
            }
            Action::Compute(Compute::BackwardInput { .. } | Compute::BackwardWeight { .. })
            | Action::Message(_)
            | Action::Sync(_) => return None,
        };
        let to_stage = Transfer { payload, stage, micro_batch, peer: rank }.sent()?.to_stage;
        let peer = *self.schedule.placement.get(to_stage)?;
        (peer != rank).then_some(Transfer { payload, stage, micro_batch, peer })
    }

    fn stuck(&self) -> ScheduleError {
        let waiting: Vec<(usize, usize)> = (0..self.ranks.len())
            .filter(|&rank| self.wanted(rank).is_some())
            .map(|rank| (rank, self.ranks[rank].next))
            .collect();
        stuck_inputs(self.schedule, &waiting)
    }
}

/// The posting of a bucket, which is a segment of a stage.
fn post((stage, segment): (usize, usize)) -> Action {
    Reduction::ReduceGrad { stage, segment }.into()
}

/// The list of one rank with its reductions.
fn sync_rank(schedule: &Schedule, plan: &SyncPlan, rank: usize) -> Vec<Action> {
    let list = &schedule.actions[rank];
    let last_weight = last_weights(list);
    let mut synced = Vec::with_capacity(list.len() + 16);
    let mut posted = Vec::new();
    let mut tied = Vec::new();
    for (index, &action) in list.iter().enumerate() {
        let Action::Compute(Compute::BackwardWeight { stage, micro_batch, segment: None }) = action
        else {
            synced.push(action);
            continue;
        };
        if last_weight[&stage] != index {
            synced.push(action);
            continue;
        }
        let with_input = index > 0 && is_backward_pair(list, index - 1);
        if with_input {
            synced.pop();
        }
        let segments = plan.segments.get(stage).copied().unwrap_or(0);
        for segment in backward_segments(segments) {
            if with_input {
                synced.push(Compute::BackwardInput { stage, micro_batch, segment }.into());
            }
            synced.push(Compute::BackwardWeight { stage, micro_batch, segment }.into());
            if segments == 0 {
                continue;
            }
            let bucket = (stage, segment.unwrap_or(0));
            if plan.is_tied(bucket.0, bucket.1) {
                tied.push(bucket);
            } else {
                synced.push(post(bucket));
                posted.push(bucket);
            }
        }
    }
    if let Some(stage) = tied.iter().map(|&(stage, _)| stage).min() {
        synced.push(Reduction::ReduceTied { stage }.into());
    }
    synced.extend(tied.iter().copied().map(post));
    posted.extend(tied);
    let wait = |(stage, segment)| Action::from(Reduction::AwaitGrad { stage, segment });
    synced.extend(posted.into_iter().map(wait));
    synced
}

/// The segments of B and W from last to first; a single one needs no number.
fn backward_segments(segments: usize) -> Box<dyn Iterator<Item = Option<usize>>> {
    match segments {
        0 | 1 => Box::new(std::iter::once(None)),
        many => Box::new((0..many).rev().map(Some)),
    }
}

/// The position of the last W of each stage.
fn last_weights(list: &[Action]) -> BTreeMap<usize, usize> {
    let mut last = BTreeMap::new();
    for (index, action) in list.iter().enumerate() {
        if let Action::Compute(Compute::BackwardWeight { stage, .. }) = action {
            last.insert(*stage, index);
        }
    }
    last
}
