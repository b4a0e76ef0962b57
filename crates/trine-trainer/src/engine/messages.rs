//! Messages between the stages of a pipeline: what one is, and room for them.

use super::EngineConfig;
use crate::plan::RunPlan;
use std::collections::BTreeSet;
use trine_buffer::DType;
use trine_comm::{CommError, Communicator};
use trine_nn::stream_type;

impl EngineConfig {
    /// Type and elements of a message.
    pub(crate) fn message(&self) -> (DType, usize) {
        let tp = if self.sequence_parallel { self.degrees.tp } else { 1 };
        let rows = self.micro_batch * self.seq / tp;
        (stream_type(self.compute), rows * self.model.hidden)
    }
}

/// Makes room in `pp` for as many messages as this rank can have under way at once. Without it a receiver that
/// comes later than ever before would make a backend take memory in the middle of a run.
///
/// A message that its receiver has not taken belongs to a micro-batch that is in flight at one of the two.
///
/// # Errors
/// If there is too little memory.
pub(super) fn make_room(plan: &RunPlan, pp: &dyn Communicator) -> Result<(), CommError> {
    let (schedule, rank) = (&plan.training, pp.rank());
    let sent = schedule.actions[rank].iter().filter_map(|action| action.transfers().0);
    let peers: BTreeSet<usize> = sent.map(|send| send.peer).collect();
    let in_flight = &schedule.in_flight_max;
    let messages = peers.iter().map(|peer| in_flight[rank].max(in_flight[*peer])).sum();
    let (dtype, len) = plan.config.message();
    pp.reserve(dtype, len, messages)
}
