//! Failures made to order: one a run, the same for the same seed.

use super::Wrapper;
use crate::{
    Call, CommError, Communicator, Done, Group, Operation, Peers, Pending, Progress, Request,
};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use trine_buffer::{Buf, BufferError};

/// What goes wrong with an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It begins later.
    Delay(Duration),
    /// It is posted after the rank's next operation, or when the rank waits for it, whichever comes
    /// first; an operation that must keep its order behind it (the same group's collectives, the
    /// same receiver's messages) is not overtaken.
    Reorder,
    /// What the rank sends or contributes is lost; the rank goes on as if it had arrived.
    Drop,
    /// It is posted twice.
    Duplicate,
    /// A bit of what the rank sends or contributes is flipped on the way, after it was sealed.
    Corrupt {
        /// Which one, modulo their number.
        bit: u64,
    },
    /// The rank dies before it.
    KillBefore,
    /// The rank dies right after it has posted it.
    KillAfter,
}

impl Fault {
    /// One of each, in the order of tables.
    pub const KINDS: [Self; 7] = [
        Self::Delay(Duration::from_millis(3)),
        Self::Reorder,
        Self::Drop,
        Self::Duplicate,
        Self::Corrupt { bit: 0 },
        Self::KillBefore,
        Self::KillAfter,
    ];

    /// Its name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Delay(_) => "delay",
            Self::Reorder => "reorder",
            Self::Drop => "drop",
            Self::Duplicate => "duplicate",
            Self::Corrupt { .. } => "corrupt",
            Self::KillBefore => "kill before",
            Self::KillAfter => "kill after",
        }
    }

    /// Whether it can happen to this operation: what is lost, doubled or altered must have something
    /// to it that goes out.
    fn suits(self, request: &Request) -> bool {
        let goes_out = match request.operation {
            Operation::Recv { .. } | Operation::Exchange { .. } => false,
            Operation::Send { .. }
            | Operation::Broadcast { .. }
            | Operation::AllReduce(_)
            | Operation::AllGather
            | Operation::ReduceScatter(_)
            | Operation::AllToAll
            | Operation::Barrier => true,
        };
        let has_elements = request.send.as_ref().is_some_and(|send| !send.is_empty());
        match self {
            Self::Delay(_) | Self::Reorder | Self::KillBefore | Self::KillAfter => true,
            Self::Drop | Self::Duplicate => goes_out,
            Self::Corrupt { .. } => goes_out && has_elements,
        }
    }
}

/// A fault, and when it strikes: at the first operation of `rank` from `operation` on that it suits,
/// counted from 0 over all groups of more than one rank. Each strikes once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Injection {
    /// What happens.
    pub fault: Fault,
    /// World rank that it happens to.
    pub rank: usize,
    /// The rank's operation.
    pub operation: u64,
}

/// A world with a fault in it: makes every rank's communicator, and knows afterwards whether it has
/// struck.
///
/// ```
/// use trine_buffer::Buf;
/// use trine_comm::wrap::{Fault, Faults, Injection, Sealed};
/// use trine_comm::{CommError, ReduceOp, threads};
///
/// let faults = Faults::new(Some(Injection { fault: Fault::Drop, rank: 1, operation: 2 }));
/// let error = threads::run(2, &Default::default(), |comm| {
///     let comm = Sealed::around(faults.around(comm));
///     (0..5).try_for_each(|_| {
///         comm.all_reduce(Buf::from_vec(vec![1.0f32; 8]), ReduceOp::Sum, "grad").map(drop)
///     })
/// });
/// // Rank 1 has gone on: its next contribution has the wrong number.
/// let text = error.unwrap_err().to_string();
/// assert!(text.contains("\"grad\" #2, f32 × 8, sealed as #3"), "{text}");
/// assert!(faults.struck().unwrap().text().starts_with("all_reduce(sum) \"grad\""));
/// ```
#[derive(Debug, Clone)]
pub struct Faults(Arc<Plan>);

#[derive(Debug)]
struct Plan {
    injection: Option<Injection>,
    struck: Mutex<Option<Call>>,
    /// Operations of each rank, by world rank, as far as they have been counted.
    counted: Mutex<Vec<u64>>,
}

impl Faults {
    /// A world with this fault, or with none, whose operations are counted.
    pub fn new(injection: Option<Injection>) -> Self {
        Self(Arc::new(Plan { injection, struck: Mutex::default(), counted: Mutex::default() }))
    }

    /// A rank's communicator, with the fault in front of it.
    pub fn around(&self, inner: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        let rank = Arc::new(Rank { count: AtomicU64::new(0), held: Mutex::default() });
        Arc::new(Faulty { inner, rank, plan: self.0.clone() })
    }

    /// The operation that the fault has struck, once it has.
    pub fn struck(&self) -> Option<Call> {
        lock(&self.0.struck).clone()
    }

    /// Operations that each rank has begun in groups of more than one.
    pub fn operations(&self) -> Vec<u64> {
        lock(&self.0.counted).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a rank's communicators share.
#[derive(Debug)]
struct Rank {
    count: AtomicU64,
    /// The operation that is held back.
    held: Mutex<Option<Arc<Held>>>,
}

/// One communicator of a rank in a world with a fault.
struct Faulty {
    inner: Arc<dyn Communicator>,
    rank: Arc<Rank>,
    plan: Arc<Plan>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({:?})", self.inner)
    }
}

impl Faulty {
    /// The fault, if it strikes now.
    fn strikes(&self, request: &Request) -> Option<Fault> {
        if self.group().size() == 1 {
            return None;
        }
        let count = self.rank.count.fetch_add(1, Ordering::Relaxed);
        let rank = self.group().world_rank();
        let mut counted = lock(&self.plan.counted);
        if counted.len() <= rank {
            counted.resize(rank + 1, 0);
        }
        counted[rank] = count + 1;
        let Injection { fault, rank: struck_rank, operation } = self.plan.injection?;
        let mut struck = lock(&self.plan.struck);
        let due = rank == struck_rank && count >= operation && struck.is_none();
        if !due || !fault.suits(request) {
            return None;
        }
        *struck =
            Some(Call { place: self.recorder().place(), ..request.call(self.group(), count) });
        Some(fault)
    }

    fn killed(&self, request: &Request, when: &str) -> CommError {
        let call = Box::new(request.call(self.group(), 0));
        CommError::Injected { call, message: format!("the rank was killed {when} it") }
    }

    fn kill_after(&self, request: Request) -> CommError {
        let error = self.killed(&request, "right after");
        // Its peers may go on with what it has posted, but nobody waits for the outcome here.
        match self.inner.start(request) {
            Ok(pending) => drop(pending),
            Err(first) => return first,
        }
        error
    }

    fn duplicate(&self, request: Request) -> Result<Pending, CommError> {
        let copy = |buf: &Option<Buf>| buf.as_ref().map(copy_of).transpose();
        let twin = Request { send: copy(&request.send)?, recv: copy(&request.recv)?, ..request };
        drop(self.inner.start(twin)?);
        self.inner.start(request)
    }

    fn hold(&self, request: Request) -> Pending {
        let channel = Channel::of(self.group(), request.operation);
        let state = Mutex::new(HeldState::Waiting(Box::new((self.inner.clone(), request))));
        let held = Arc::new(Held { channel, state });
        *lock(&self.rank.held) = Some(held.clone());
        Pending::started(Box::new(Late(held)))
    }

    /// Posts an operation around the one that is held back, in the order that is allowed.
    fn pass(&self, request: Request) -> Result<Pending, CommError> {
        let Some(held) = lock(&self.rank.held).take() else { return self.inner.start(request) };
        if held.channel == Channel::of(self.group(), request.operation) {
            held.release();
            return self.inner.start(request);
        }
        let pending = self.inner.start(request);
        held.release();
        pending
    }
}

fn copy_of(buf: &Buf) -> Result<Buf, BufferError> {
    let mut copy = Buf::zeros(buf.dtype(), buf.len());
    copy.slice_mut().copy_from(buf.slice())?;
    Ok(copy)
}

impl Wrapper for Faulty {
    fn inner(&self) -> &Arc<dyn Communicator> {
        &self.inner
    }

    fn forward(&self, mut request: Request) -> Result<Pending, CommError> {
        let fault = self.strikes(&request);
        match fault {
            None => self.pass(request),
            Some(Fault::Delay(time)) => {
                std::thread::sleep(time);
                self.pass(request)
            }
            Some(Fault::Reorder) => Ok(self.hold(request)),
            Some(Fault::Drop) => {
                Ok(Pending::finished(Done { send: request.send, recv: request.recv }))
            }
            Some(Fault::Duplicate) => self.duplicate(request),
            Some(Fault::Corrupt { bit }) => {
                if let Some(send) = &mut request.send {
                    let view = send.slice_mut();
                    let bytes = view.bytes()?;
                    let bit = bit as usize % (8 * bytes.len());
                    bytes[bit / 8] ^= 1 << (bit % 8);
                }
                self.pass(request)
            }
            Some(Fault::KillBefore) => Err(self.killed(&request, "before")),
            Some(Fault::KillAfter) => Err(self.kill_after(request)),
        }
    }

    fn in_front_of(&self, subgroup: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        let (rank, plan) = (self.rank.clone(), self.plan.clone());
        Arc::new(Self { inner: subgroup, rank, plan })
    }

    // Nothing may be held back across it.
    fn before_division(&self) {
        if let Some(held) = lock(&self.rank.held).take() {
            held.release();
        }
    }
}

/// What keeps its order: a group's collectives, the messages from one member to another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Channel {
    group: Group,
    ends: Option<Peers>,
}

impl Channel {
    fn of(group: &Group, operation: Operation) -> Self {
        Self { group: group.clone(), ends: operation.peers() }
    }
}

/// An operation that is held back.
#[derive(Debug)]
struct Held {
    channel: Channel,
    state: Mutex<HeldState>,
}

#[derive(Debug)]
enum HeldState {
    Waiting(Box<(Arc<dyn Communicator>, Request)>),
    Posted(Result<Pending, CommError>),
    /// Its rank has fetched or dropped it.
    Gone,
}

impl Held {
    /// Posts it, if it is not posted yet.
    fn release(&self) {
        let mut state = lock(&self.state);
        *state = match std::mem::replace(&mut *state, HeldState::Gone) {
            HeldState::Waiting(held) => HeldState::Posted(held.0.start(held.1)),
            other @ (HeldState::Posted(_) | HeldState::Gone) => other,
        };
    }
}

/// What the rank gets for an operation that is held back.
struct Late(Arc<Held>);

impl Progress for Late {
    fn is_done(&self) -> bool {
        match &*lock(&self.0.state) {
            HeldState::Posted(Ok(pending)) => pending.is_done(),
            HeldState::Posted(Err(_)) | HeldState::Gone => true,
            HeldState::Waiting(_) => false,
        }
    }

    fn wait(self: Box<Self>) -> Result<Done, CommError> {
        self.0.release();
        let state = std::mem::replace(&mut *lock(&self.0.state), HeldState::Gone);
        match state {
            HeldState::Posted(posted) => posted?.wait(),
            HeldState::Waiting(_) | HeldState::Gone => Ok(Done::default()),
        }
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        // What is dropped is still under way. The lock is free again before anything is dropped.
        self.0.release();
        let state = std::mem::replace(&mut *lock(&self.0.state), HeldState::Gone);
        drop(state);
    }
}

#[cfg(test)]
mod tests;
