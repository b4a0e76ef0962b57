//! The communicator of a rank that is a thread.

use super::Delivery;
use super::board::Board;
use super::channels::Transfer;
use super::record::Record;
use super::shared::{Seat, Shared};
use super::slots::{Complete, Posted};
use crate::collective;
use crate::device::{self, Parcel, Payload};
use crate::{
    CommError, Communicator, Done, Group, Operation, Peers, Pending, Progress, Recorder, Request,
    SelfComm, Site,
};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};
use trine_buffer::{Buf, DType};

/// How long a rank that is overdue gets at most to show progress after all.
const GRACE_MAX: Duration = Duration::from_secs(2);

/// One rank's view of one group.
pub(super) struct ThreadComm {
    seat: Arc<Seat>,
    group: Group,
    /// The group's place on the board.
    id: usize,
    /// How often this rank has divided the group.
    splits: AtomicU64,
}

impl fmt::Debug for ThreadComm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ThreadComm({:?})", self.group)
    }
}

impl ThreadComm {
    pub(super) fn new(seat: Arc<Seat>, group: Group, id: usize) -> Self {
        Self { seat, group, id, splits: AtomicU64::new(0) }
    }

    fn shared(&self) -> &Shared {
        &self.seat.shared
    }

    /// The board, with everybody woken if what `act` does makes the world fail.
    fn act<T>(&self, act: impl FnOnce(&mut Board) -> Result<T, CommError>) -> Result<T, CommError> {
        let mut board = self.shared().lock();
        let result = act(&mut board);
        // Only failures of the world come out of the board.
        if result.is_err() {
            self.shared().wake_all(board);
        }
        result
    }

    fn start_collective(&self, request: Request) -> Result<Pending, CommError> {
        let record = self.record(&request);
        let payload = Payload {
            send: request.send.map(|buf| self.parcel(buf)).transpose()?,
            recv: request.recv.map(|buf| self.parcel(buf)).transpose()?,
        };
        match self.act(|board| board.arrive(record, self.group.rank(), payload))? {
            Posted::Ticket(id, number) => Ok(self.pending(id, number)),
            Posted::Complete(complete) => {
                let payload = self.complete(complete)?;
                Ok(match payload.is_on_device() {
                    true => Pending::started(Box::new(Queued(payload))),
                    false => Pending::finished(payload.open()?),
                })
            }
        }
    }

    /// Refuses buffers on a device that the world has not been given.
    fn check_places(&self, request: &Request) -> Result<(), CommError> {
        let mut buffers = request.send.iter().chain(&request.recv);
        if self.shared().options.device.is_some() || !buffers.any(device::is_on_device) {
            return Ok(());
        }
        let call = request.call(&self.group, 0);
        let message = format!(
            "{call}: its buffers lie on a device, and this world has none: give it one in \
             WorldOptions::device"
        );
        Err(CommError::Backend { backend: "threads", message })
    }

    /// The last arriver's share: it works for everybody, outside the lock.
    fn complete(&self, mut complete: Complete) -> Result<Payload, CommError> {
        self.check_seals(complete.contributions())?;
        let executed =
            collective::execute(complete.operation, &mut complete.payloads, complete.idle);
        self.succeed(executed.map_err(CommError::from))?;
        let number = complete.number;
        let (own, wake) = self.shared().lock().close_collective(complete);
        self.recorder().finish(number);
        self.shared().wake(wake);
        Ok(own)
    }

    fn record(&self, request: &Request) -> Record {
        Record::new(self.seat.rank, self.id, request, self.recorder().place())
    }

    /// Stops the world if elements are not what their rank has sealed.
    fn check_seals<'a>(
        &self,
        mut contributions: impl Iterator<Item = (&'a Record, &'a Parcel)>,
    ) -> Result<(), CommError> {
        let altered = contributions.find_map(|(record, buf)| {
            let seal = record.seal?;
            let found = seal.altered(buf).transpose()?;
            Some(found.map(|found| (record, seal.checksum, found)))
        });
        let Some((record, sent, found)) = altered.transpose()? else { return Ok(()) };
        let call = Box::new(self.shared().lock().call(record));
        self.succeed(Err(CommError::Corrupt { call, sent, found }))
    }

    /// Stops the world if work for others failed, because they wait for it.
    fn succeed(&self, result: Result<(), CommError>) -> Result<(), CommError> {
        self.act(|board| {
            if let Err(error) = result {
                board.fail(self.seat.rank, error, vec![self.seat.rank]);
                return board.check(self.seat.rank);
            }
            Ok(())
        })
    }

    fn start_message(&self, request: Request, peers: Peers) -> Result<Pending, CommError> {
        let record = self.record(&request);
        let mut send = request.send.map(|buf| self.parcel(buf)).transpose()?;
        let recv = request.recv.map(|buf| self.parcel(buf)).transpose()?;
        let staged = self.stage(send.as_mut(), peers)?;
        let own = self.group.rank();
        let (id, number, transfers) = self.act(|board| {
            let (id, number) = board.open_message(record, own, peers.to, peers.from)?;
            let mut transfers = [None, None];
            if let (Some(to), Some(buf)) = (peers.to, send) {
                transfers[0] = board.post_send(id, (own, to), buf, staged);
            }
            if let (Some(from), Some(buf)) = (peers.from, recv) {
                transfers[1] = board.post_recv(id, (from, own), buf);
            }
            board.check(self.seat.rank)?;
            Ok((id, number, transfers))
        })?;
        for transfer in transfers.into_iter().flatten() {
            self.transfer(transfer)?;
        }
        Ok(self.pending(id, number))
    }

    /// Whoever comes second copies the message, outside the lock.
    fn transfer(&self, mut transfer: Transfer) -> Result<(), CommError> {
        self.succeed(transfer.execute())?;
        self.check_seals([(transfer.record(), transfer.arrived())].into_iter())?;
        let wake = self.shared().lock().close_transfer(transfer);
        self.shared().wake(wake.into_iter().flatten());
        Ok(())
    }

    /// In buffered delivery, a copy of a message that no receiver waits for, so that the sender can
    /// go on.
    fn stage(&self, send: Option<&mut Parcel>, peers: Peers) -> Result<Option<Parcel>, CommError> {
        let (Some(to), Some(send)) = (peers.to, send) else { return Ok(None) };
        match self.shared().options.delivery {
            Delivery::Rendezvous => Ok(None),
            Delivery::Buffered => {
                if self.shared().lock().receiver_waits(self.id, self.group.rank(), to) {
                    return Ok(None);
                }
                if let Some(device) = &self.shared().options.device
                    && device::is_on_device(send)
                {
                    return Ok(Some(device::staged(device, send)?));
                }
                let mut copy = self.shared().pool.alloc(send.dtype(), send.len())?;
                copy.slice_mut().copy_from(send.slice())?;
                Ok(Some(Parcel::plain(copy)))
            }
        }
    }

    fn parcel(&self, buf: Buf) -> Result<Parcel, CommError> {
        Ok(Parcel::new(buf, self.shared().options.device.as_ref())?)
    }

    fn pending(&self, id: usize, number: u64) -> Pending {
        let seat = self.seat.clone();
        Pending::started(Box::new(ThreadPending { seat, ticket: Some(id), number }))
    }

    /// Everybody's colour, in the group's order.
    fn colours(&self, colour: u64, site: Site) -> Result<Vec<u64>, CommError> {
        let request = Request {
            send: Some(Buf::from_vec(vec![colour])),
            recv: Some(Buf::from_vec(vec![0u64; self.group.size()])),
            ..Request::new(Operation::AllGather, "split", site)
        };
        let all = self.start(request)?.wait()?.into_recv(site)?;
        Ok(all.into_vec()?)
    }
}

impl Communicator for ThreadComm {
    fn group(&self) -> &Group {
        &self.group
    }

    fn start(&self, request: Request) -> Result<Pending, CommError> {
        request.check(&self.group)?;
        self.check_places(&request)?;
        match request.operation.peers() {
            Some(peers) => self.start_message(request, peers),
            None => self.start_collective(request),
        }
    }

    fn subgroup(
        &self,
        colour: u64,
        name: &str,
        site: Site,
    ) -> Result<Arc<dyn Communicator>, CommError> {
        let split = self.splits.fetch_add(1, Ordering::Relaxed);
        let colours = self.colours(colour, site)?;
        let members: Vec<usize> =
            (0..self.group.size()).filter(|member| colours[*member] == colour).collect();
        let index = members.iter().position(|member| *member == self.group.rank());
        let ranks = members.iter().map(|member| self.group.ranks()[*member]).collect();
        let group = index.and_then(|index| Group::new(name, ranks, index));
        let group = group.expect("invariant: every rank has its own colour");
        if group.size() == 1 {
            let whole = Self::new(self.seat.clone(), self.group.clone(), self.id);
            return Ok(SelfComm::within(name, group.world_rank(), Some(Arc::new(whole))));
        }
        let id = self.act(|board| board.join((self.id, split, colour), &group, site))?;
        Ok(Arc::new(Self::new(self.seat.clone(), group, id)))
    }

    fn abort(&self, cause: &str) {
        self.shared().abort(self.seat.rank, cause);
    }

    fn check(&self) -> Result<(), CommError> {
        self.shared().lock().check(self.seat.rank)
    }

    fn recorder(&self) -> &Arc<Recorder> {
        &self.shared().recorders[self.seat.rank]
    }

    fn reserve(&self, dtype: DType, len: usize, messages: usize) -> Result<(), CommError> {
        if self.shared().options.delivery == Delivery::Buffered {
            // Where there is a device, what ranks send each other in numbers lies on it.
            let device = self.shared().options.device.as_ref().map(|device| device.pool());
            device.unwrap_or(&self.shared().pool).reserve(dtype, len, messages)?;
        }
        Ok(())
    }
}

/// The buffers of a device after an operation that has been queued for everybody.
struct Queued(Payload);

impl Progress for Queued {
    fn is_done(&self) -> bool {
        true
    }

    fn wait(self: Box<Self>) -> Result<Done, CommError> {
        Ok(self.0.open()?)
    }
}

/// A posted operation of a rank that is a thread.
struct ThreadPending {
    seat: Arc<Seat>,
    /// `None` once it has been waited for.
    ticket: Option<usize>,
    /// The operation's number in its rank's recorder.
    number: u64,
}

impl Progress for ThreadPending {
    fn is_done(&self) -> bool {
        let board = self.seat.shared.lock();
        self.ticket.is_none_or(|id| board.check(self.seat.rank).is_err() || board.is_done(id))
    }

    // Host memory is ready on every queue when the operation is over.
    fn wait(mut self: Box<Self>) -> Result<Done, CommError> {
        let Some(id) = self.ticket else { return Ok(Done::default()) };
        let mut board = self.seat.shared.lock();
        if !board.is_done(id) {
            board = self.park(board, id)?;
        }
        let payload = board.fetch(id).expect("invariant: the ticket is done");
        drop(board);
        self.ticket = None;
        self.seat.shared.recorders[self.seat.rank].finish(self.number);
        Ok(payload.open()?)
    }
}

impl ThreadPending {
    /// Parks until the operation is over, the world has failed or the deadline has passed. What is
    /// over when the world fails is a result; the next operation gets the error.
    fn park<'a>(
        &'a self,
        mut board: MutexGuard<'a, Board>,
        id: usize,
    ) -> Result<MutexGuard<'a, Board>, CommError> {
        let (rank, shared) = (self.seat.rank, &self.seat.shared);
        board.begin_wait(rank, id);
        board.fail_if_stuck(rank);
        let (since, mut warned) = (Instant::now(), false);
        while !board.is_done(id) && board.check(rank).is_ok() {
            let (waited, deadline) = (since.elapsed(), shared.options.deadline);
            let (left, late) = match deadline.checked_sub(waited) {
                Some(left) if !left.is_zero() => (left, None),
                Some(_) | None => board.time_left((rank, id), waited, deadline),
            };
            match late {
                // Once more, a little: a process that was suspended as a whole wakes up with all
                // its deadlines passed.
                Some(_) if left.is_zero() && !warned => {
                    warned = true;
                    board = shared.park(rank, board, (deadline / 8).min(GRACE_MAX));
                }
                Some(late) if left.is_zero() => board.fail_deadline((rank, id), late, waited),
                Some(_) | None => {
                    warned = false;
                    board = shared.park(rank, board, left);
                }
            }
        }
        board.end_wait(rank, id);
        match board.check(rank) {
            // Idempotent: whoever failed the world wakes everybody, and so does this.
            Err(error) if !board.is_done(id) => {
                shared.wake_all(board);
                Err(error)
            }
            Ok(()) | Err(_) => Ok(board),
        }
    }
}

impl Drop for ThreadPending {
    fn drop(&mut self) {
        if let Some(id) = self.ticket {
            // Buffers are dropped after the lock is released.
            let done = self.seat.shared.lock().abandon(id);
            drop(done);
        }
    }
}
