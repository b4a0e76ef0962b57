//! Messages between stages before there are any: memory that backends take for them is taken once.

use super::{EngineConfig, RankPlan};
use crate::TrainError;
use std::collections::BTreeSet;
use std::sync::Arc;
use trine_buffer::{Buf, Queue};
use trine_comm::{Communicator, Name};
use trine_schedule::Action;

const NAME: Name = Name::new("rehearsal");

/// Sends to each neighbour in the pipeline as many messages as a step can have under way to it, before anybody
/// receives one. A backend that copies what nobody waits for keeps the copies' memory; without this, a rank that
/// comes later to a message than ever before would make it take more in the middle of a run. A collective call.
///
/// A message that its receiver has not taken belongs to a micro-batch that is in flight at one of the two.
pub(super) fn rehearse(
    config: &EngineConfig,
    plan: &RankPlan,
    world: &Arc<dyn Communicator>,
    pp: &Arc<dyn Communicator>,
) -> Result<(), TrainError> {
    if config.degrees.pp == 1 {
        return Ok(());
    }
    let schedule = &plan.training;
    let rank = plan.coordinate.pp;
    let (mut to, mut from) = (BTreeSet::new(), BTreeSet::new());
    for action in &schedule.actions[rank] {
        if let Action::Send(send) | Action::Exchange { send, .. } = action {
            to.insert(send.peer);
        }
        if let Action::Recv(recv) | Action::Exchange { recv, .. } = action {
            from.insert(recv.peer);
        }
    }
    let in_flight = &schedule.in_flight_max;
    let under_way = |peer: &usize| in_flight[rank].max(in_flight[*peer]);
    let (dtype, len) = config.message();
    let mut sending = Vec::new();
    for peer in &to {
        for _ in 0..under_way(peer) {
            sending.push(pp.post_send(Buf::zeros(dtype, len), *peer, NAME)?);
        }
    }
    world.barrier(NAME)?;
    for peer in &from {
        let mut buf = Buf::zeros(dtype, len);
        for _ in 0..under_way(peer) {
            buf = pp.recv(buf, *peer, NAME)?;
        }
    }
    for sent in sending {
        sent.wait(&Queue::Host)?;
    }
    Ok(())
}
