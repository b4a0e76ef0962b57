//! The cases, and how one runs on a rank.

use super::serial;
use crate::{Communicator, Done, Operation, Pending, ReduceOp, Request};
use std::panic::Location;
use std::sync::Arc;
use trine_buffer::{Buf, DType};

const DTYPES: [DType; 7] =
    [DType::F64, DType::F32, DType::Bf16, DType::F16, DType::U64, DType::U32, DType::U8];

/// Elements of a rank's share: none, one, odd, and more than any block a backend works in.
const LENGTHS: [usize; 4] = [0, 1, 37, 2500];

/// A way to cut the world into groups: its name and the colour of a rank.
type Division = (&'static str, fn(usize) -> u64);

const DIVISIONS: [Division; 3] =
    [("parity", |rank| rank as u64 % 2), ("halves", |rank| rank as u64 / 2), ("one", |_| 7)];

/// Pending collectives that overlap.
const OVERLAP: usize = 5;

/// How many cases [`run`] has in a world of `ranks`.
pub(super) fn count(ranks: usize) -> usize {
    let of_collectives = collectives(ranks).len() * DTYPES.len() * LENGTHS.len() * 2;
    let of_messages = DTYPES.len() * LENGTHS.len() * (if ranks > 1 { 3 } else { 1 });
    of_collectives + of_messages + DIVISIONS.len() * collectives(1).len() + 1 + 1 + 1
}

/// All cases on one rank.
pub(super) fn run(world: &Arc<dyn Communicator>) -> Result<(), String> {
    let mut suite = Suite { ran: 0 };
    suite.all_collectives(world)?;
    suite.all_messages(world)?;
    suite.divisions(world)?;
    suite.overlap(world)?;
    suite.nan(world)?;
    suite.barrier(world)?;
    let expected = count(world.size());
    if suite.ran != expected {
        return Err(format!("{} cases ran instead of {expected}", suite.ran));
    }
    Ok(())
}

fn collectives(ranks: usize) -> Vec<Operation> {
    let ops = [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max];
    let mut all = vec![Operation::AllGather, Operation::AllToAll];
    all.extend(ops.map(Operation::AllReduce));
    all.extend(ops.map(Operation::ReduceScatter));
    all.push(Operation::Broadcast { root: 0 });
    if ranks > 1 {
        all.push(Operation::Broadcast { root: ranks - 1 });
    }
    all
}

/// The lengths of what a rank contributes and receives, when its share is `len`.
fn lengths(operation: Operation, ranks: usize, len: usize) -> (usize, Option<usize>) {
    match operation {
        Operation::AllGather => (len, Some(len * ranks)),
        Operation::AllToAll => (len * ranks, Some(len * ranks)),
        Operation::ReduceScatter(_) => (len * ranks, Some(len)),
        Operation::AllReduce(_) | Operation::Broadcast { .. } => (len, None),
        Operation::Send { .. }
        | Operation::Recv { .. }
        | Operation::Exchange { .. }
        | Operation::Barrier => (len, None),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// One collective of the suite.
#[derive(Debug, Clone, Copy)]
struct Collective {
    operation: Operation,
    dtype: DType,
    len: usize,
    /// Distinguishes the data of cases.
    case: u64,
}

impl Collective {
    fn send(&self, ranks: usize, rank: usize) -> Buf {
        serial::data(self.dtype, lengths(self.operation, ranks, self.len).0, self.case, rank)
    }

    #[track_caller]
    fn post(&self, comm: &dyn Communicator) -> Result<Pending, String> {
        let recv = lengths(self.operation, comm.size(), self.len).1;
        // Nothing may be left of what the buffer held before.
        let recv = recv.map(|len| serial::data(self.dtype, len, !self.case, comm.rank()));
        let request = Request {
            send: Some(self.send(comm.size(), comm.rank())),
            recv,
            ..Request::new(self.operation, "conformance", Location::caller())
        };
        comm.start(request).map_err(text)
    }

    /// The same through the blocking call.
    fn call(&self, comm: &dyn Communicator) -> Result<Done, String> {
        let send = self.send(comm.size(), comm.rank());
        let recv = lengths(self.operation, comm.size(), self.len).1;
        let recv = Buf::zeros(self.dtype, recv.unwrap_or(0));
        let both = |(send, recv): (Buf, Buf)| Done { send: Some(send), recv: Some(recv) };
        let in_place = |buf: Buf| Done { send: Some(buf), recv: None };
        match self.operation {
            Operation::AllGather => comm.all_gather(send, recv, "conformance").map(both),
            Operation::AllToAll => comm.all_to_all(send, recv, "conformance").map(both),
            Operation::ReduceScatter(op) => {
                comm.reduce_scatter(send, recv, op, "conformance").map(both)
            }
            Operation::AllReduce(op) => comm.all_reduce(send, op, "conformance").map(in_place),
            Operation::Broadcast { root } => {
                comm.broadcast(send, root, "conformance").map(in_place)
            }
            Operation::Barrier => comm.barrier("conformance").map(|()| Done::default()),
            Operation::Send { .. } | Operation::Recv { .. } | Operation::Exchange { .. } => {
                return Err("not a collective".to_owned());
            }
        }
        .map_err(text)
    }

    /// Compares what came back with the serial result, and a separate send buffer with what it was.
    fn compare(&self, comm: &dyn Communicator, done: Done) -> Result<(), String> {
        let (ranks, rank) = (comm.size(), comm.rank());
        let sends: Vec<Buf> = (0..ranks).map(|rank| self.send(ranks, rank)).collect();
        let wanted = serial::collective(self.operation, &sends, rank);
        let got = match (done.send, done.recv) {
            (Some(send), Some(recv)) => {
                same(&send, bytes(&sends[rank])?)
                    .map_err(|error| format!("{self:?}: the contribution changed: {error}"))?;
                recv
            }
            (Some(buf), None) | (None, Some(buf)) => buf,
            (None, None) => return Err(format!("{self:?}: no buffer came back")),
        };
        same(&got, &wanted).map_err(|error| format!("{self:?} on rank {rank}: {error}"))
    }
}

fn bytes(buf: &Buf) -> Result<&[u8], String> {
    buf.slice().bytes().map_err(|error| error.to_string())
}

fn same(got: &Buf, wanted: &[u8]) -> Result<(), String> {
    let held = got.slice().to_host().map_err(|error| error.to_string())?;
    let held = bytes(&held)?;
    if held == wanted {
        return Ok(());
    }
    let at = held.iter().zip(wanted).position(|(got, wanted)| got != wanted);
    let element = at.unwrap_or(wanted.len()) / got.dtype().bytes();
    Err(format!("element {element} of {} differs from the serial result", got.len()))
}

struct Suite {
    ran: usize,
}

impl Suite {
    fn all_collectives(&mut self, comm: &Arc<dyn Communicator>) -> Result<(), String> {
        for operation in collectives(comm.size()) {
            for dtype in DTYPES {
                for len in LENGTHS {
                    let case = self.ran as u64;
                    let collective = Collective { operation, dtype, len, case };
                    let done = collective.call(&**comm)?;
                    collective.compare(&**comm, done)?;
                    let done = collective.post(&**comm)?.wait().map_err(text)?;
                    collective.compare(&**comm, done)?;
                    self.ran += 2;
                }
            }
        }
        Ok(())
    }

    /// Around the ring: an exchange, a send and a receive, and both pending.
    fn all_messages(&mut self, comm: &Arc<dyn Communicator>) -> Result<(), String> {
        let (ranks, rank) = (comm.size(), comm.rank());
        let (next, previous) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
        for dtype in DTYPES {
            for len in LENGTHS {
                let case = self.ran as u64;
                let mine = || serial::data(dtype, len, case, rank);
                let empty = || Buf::zeros(dtype, len);
                let wanted = serial::data(dtype, len, case, previous);
                let (sent, got) =
                    comm.exchange(mine(), next, empty(), previous, "ring").map_err(text)?;
                let check = |buf: &Buf, wanted: &Buf| same(buf, bytes(wanted)?);
                check(&sent, &mine())?;
                check(&got, &wanted)?;
                self.ran += 1;
                if ranks == 1 {
                    continue;
                }
                // The first rank sends first, so that the ring turns under any delivery.
                let got = if rank == 0 {
                    check(&comm.send(mine(), next, "ring").map_err(text)?, &mine())?;
                    comm.recv(empty(), previous, "ring").map_err(text)?
                } else {
                    let got = comm.recv(empty(), previous, "ring").map_err(text)?;
                    check(&comm.send(mine(), next, "ring").map_err(text)?, &mine())?;
                    got
                };
                check(&got, &wanted)?;
                let send = comm.post_send(mine(), next, "ring").map_err(text)?;
                let recv = comm.post_recv(empty(), previous, "ring").map_err(text)?;
                let done = recv.wait().map_err(text)?;
                check(&done.into_recv(Location::caller()).map_err(text)?, &wanted)?;
                let done = send.wait().map_err(text)?;
                check(&done.into_send(Location::caller()).map_err(text)?, &mine())?;
                self.ran += 2;
            }
        }
        Ok(())
    }

    /// Every collective in every part of several divisions, and in a part of a part.
    fn divisions(&mut self, world: &Arc<dyn Communicator>) -> Result<(), String> {
        for (name, colour) in DIVISIONS {
            let part = world.split(colour(world.rank()), name).map_err(text)?;
            let members: Vec<usize> =
                (0..world.size()).filter(|rank| colour(*rank) == colour(world.rank())).collect();
            if part.group().ranks() != members || part.group().world_rank() != world.rank() {
                return Err(format!("division {name}: {:?} instead of {members:?}", part.group()));
            }
            let inner = part.split(part.rank() as u64 % 2, "inner").map_err(text)?;
            for operation in collectives(1) {
                let collective =
                    Collective { operation, dtype: DType::F32, len: 100, case: self.ran as u64 };
                // The parts overlap in time: the inner one runs while the outer one is pending.
                let outer = collective.post(&*part)?;
                let done = collective.call(&*inner)?;
                collective.compare(&*inner, done)?;
                collective.compare(&*part, outer.wait().map_err(text)?)?;
                self.ran += 1;
            }
        }
        Ok(())
    }

    /// Several collectives under way at once, waited for in the opposite order.
    fn overlap(&mut self, comm: &Arc<dyn Communicator>) -> Result<(), String> {
        let all: Vec<Collective> = (0..OVERLAP)
            .map(|index| Collective {
                operation: collectives(1)[index],
                dtype: DTYPES[index],
                len: 10 + index,
                case: index as u64,
            })
            .collect();
        let mut pending = Vec::new();
        for collective in &all {
            pending.push(collective.post(&**comm)?);
        }
        for (collective, pending) in all.iter().zip(pending).rev() {
            collective.compare(&**comm, pending.wait().map_err(text)?)?;
        }
        self.ran += 1;
        Ok(())
    }

    /// One rank's NaN reaches every rank through every reduction.
    fn nan(&mut self, comm: &Arc<dyn Communicator>) -> Result<(), String> {
        for source in 0..comm.size() {
            for op in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max] {
                let value = if comm.rank() == source { f32::NAN } else { 1.0 };
                let buf = comm.all_reduce(Buf::from_vec(vec![value, 2.0]), op, "nan");
                let values = buf.and_then(|buf| Ok(buf.into_vec::<f32>()?)).map_err(text)?;
                if !values[0].is_nan() || values[1].is_nan() {
                    return Err(format!("{op} of a NaN on rank {source} is {values:?}"));
                }
            }
        }
        self.ran += 1;
        Ok(())
    }

    /// Nobody leaves a barrier before everybody has come: each rank posts, and the last one to post
    /// is the first to see it over.
    fn barrier(&mut self, comm: &Arc<dyn Communicator>) -> Result<(), String> {
        for late in 0..comm.size() {
            if comm.rank() == late {
                // Everybody else has posted when their tokens are here.
                for other in (0..comm.size()).filter(|other| *other != late) {
                    comm.recv(Buf::zeros(DType::U8, 1), other, "token").map_err(text)?;
                }
                comm.barrier("late").map_err(text)?;
            } else {
                let barrier = comm.post_barrier("late").map_err(text)?;
                if barrier.is_done() {
                    return Err(format!("the barrier is over without rank {late}"));
                }
                comm.send(Buf::zeros(DType::U8, 1), late, "token").map_err(text)?;
                barrier.wait().map_err(text)?;
            }
        }
        self.ran += 1;
        Ok(())
    }
}
