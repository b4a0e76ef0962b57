//! The group of one rank.

use crate::{
    Cause, CommError, Communicator, Done, Group, Operation, Pending, Recorder, Request, Site,
};
use std::sync::{Arc, OnceLock};

/// A communicator of one rank: every operation is over when it is posted, and costs a check and at
/// most a copy. What a degree of 1 uses, and a serial run. Its operations are not recorded: none of
/// them can wait for anybody.
#[derive(Debug)]
pub struct SelfComm {
    group: Group,
    /// The group that it was split from: aborting must reach the others.
    parent: Option<Arc<dyn Communicator>>,
    aborted: OnceLock<Cause>,
    recorder: Arc<Recorder>,
}

impl SelfComm {
    /// A world of one rank.
    #[expect(clippy::new_ret_no_self, reason = "communicators are used as trait objects")]
    pub fn new() -> Arc<dyn Communicator> {
        Self::within("world", 0, None)
    }

    /// The group `name` of the world rank `rank` alone, split from `parent`, which an abort is
    /// handed on to and whose recorder it shares.
    pub fn within(
        name: &str,
        rank: usize,
        parent: Option<Arc<dyn Communicator>>,
    ) -> Arc<dyn Communicator> {
        let group = Group::new(name, vec![rank], 0).expect("invariant: a group of one has rank 0");
        let recorder = match &parent {
            Some(parent) => parent.recorder().clone(),
            None => Recorder::new(rank, ""),
        };
        Arc::new(Self { group, parent, aborted: OnceLock::new(), recorder })
    }
}

impl Communicator for SelfComm {
    fn group(&self) -> &Group {
        &self.group
    }

    fn start(&self, mut request: Request) -> Result<Pending, CommError> {
        request.check(&self.group)?;
        if let Some(cause) = self.aborted.get() {
            return Err(CommError::Aborted { cause: cause.clone() });
        }
        match request.operation {
            // `check` refuses a message to oneself; sum, mean and maximum of one are the one.
            Operation::Send { .. }
            | Operation::Recv { .. }
            | Operation::Broadcast { .. }
            | Operation::AllReduce(_)
            | Operation::Barrier => {}
            Operation::Exchange { .. }
            | Operation::AllGather
            | Operation::ReduceScatter(_)
            | Operation::AllToAll => {
                if let (Some(send), Some(recv)) = (&request.send, &mut request.recv) {
                    recv.slice_mut().copy_from(send.slice())?;
                }
            }
        }
        Ok(Pending::finished(Done { send: request.send, recv: request.recv }))
    }

    fn subgroup(
        &self,
        _colour: u64,
        name: &str,
        _site: Site,
    ) -> Result<Arc<dyn Communicator>, CommError> {
        if let Some(cause) = self.aborted.get() {
            return Err(CommError::Aborted { cause: cause.clone() });
        }
        let group = Group::new(name, vec![self.group.world_rank()], 0);
        let group = group.expect("invariant: a group of one has rank 0");
        let (parent, recorder) = (self.parent.clone(), self.recorder.clone());
        Ok(Arc::new(Self { group, parent, aborted: OnceLock::new(), recorder }))
    }

    fn abort(&self, cause: &str) {
        let cause = Cause { rank: self.group.world_rank(), message: cause.into() };
        self.aborted.get_or_init(|| cause.clone());
        if let Some(parent) = &self.parent {
            parent.abort(&cause.message);
        }
    }

    fn check(&self) -> Result<(), CommError> {
        match self.aborted.get() {
            Some(cause) => Err(CommError::Aborted { cause: cause.clone() }),
            None => self.parent.as_ref().map_or(Ok(()), |parent| parent.check()),
        }
    }

    fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReduceOp;
    use trine_buffer::Buf;

    #[test]
    fn every_operation_on_one_rank_is_the_identity() {
        let comm = SelfComm::new();
        let buf = |x: f32| Buf::from_vec(vec![x, x + 1.0]);
        for op in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max] {
            let out = comm.all_reduce(buf(3.0), op, "x").unwrap();
            assert_eq!(out.typed::<f32>().unwrap(), [3.0, 4.0]);
            let (_, out) = comm.reduce_scatter(buf(3.0), buf(0.0), op, "x").unwrap();
            assert_eq!(out.typed::<f32>().unwrap(), [3.0, 4.0]);
        }
        let both = [
            comm.all_gather(buf(5.0), buf(0.0), "x").unwrap(),
            comm.all_to_all(buf(5.0), buf(0.0), "x").unwrap(),
            comm.exchange(buf(5.0), 0, buf(0.0), 0, "x").unwrap(),
        ];
        for (send, recv) in both {
            assert_eq!(send.typed::<f32>().unwrap(), recv.typed::<f32>().unwrap());
        }
        assert_eq!(comm.broadcast(buf(1.0), 0, "x").unwrap().typed::<f32>().unwrap(), [1.0, 2.0]);
        comm.barrier("x").unwrap();
        assert_eq!(comm.split(7, "tp").unwrap().group().to_string(), "tp[0]");
    }

    #[test]
    fn bad_requests_say_what_would_fit() {
        let comm = SelfComm::new();
        let buf = |len: usize| Buf::zeros(trine_buffer::DType::F32, len);
        let error = comm.all_gather(buf(2), buf(3), "weights").unwrap_err().to_string();
        assert!(error.contains("recv f32 × 2 for send f32 × 2"), "{error}");
        assert!(error.contains("local.rs"), "{error}");
        let error = comm.broadcast(buf(2), 1, "x").unwrap_err().to_string();
        assert!(error.contains("it takes 0..1"), "{error}");
        let error = comm.send(buf(2), 0, "x").unwrap_err().to_string();
        assert!(error.contains("use exchange"), "{error}");
    }

    #[test]
    fn an_abort_reaches_later_calls() {
        let comm = SelfComm::new();
        comm.abort("disk full");
        let error = comm.barrier("end").unwrap_err().to_string();
        assert_eq!(error, "stopped by rank 0: disk full");
    }
}
