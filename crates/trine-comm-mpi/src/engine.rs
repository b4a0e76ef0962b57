//! A rank's operations under way, and the polling that moves them on.
//!
//! Every message has an [`Envelope`] that arrives in one receive which is always posted; its payload
//! is received straight into its place once the operation that it belongs to has been called here.
//! An envelope that comes before its operation waits; one that does not agree with it fails the
//! world.

use crate::envelope::{BYTES_MAX, Channel, Content, Envelope, INLINE_BYTES_MAX, Slot};
use crate::options::MpiOptions;
use crate::plan::{Part, Place, Plan, Seat, Transfer};
use crate::raw::{Link, Memory};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use trine_buffer::{Buf, DType, Pool};
use trine_comm::{
    Call, Cause, CommError, Delivery, Done, Extent, Group, Missing, Operation, Peers, RankState,
    Recorder, Request,
};

/// Under which tag envelopes travel; payloads have those above.
const ENVELOPE_TAG: i32 = 0;

/// The greatest tag that every MPI library has.
const TAG_MAX: i32 = 32_767;

/// A group of this rank: who its members are in MPI's numbering.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    pub(crate) group: Group,
    pub(crate) id: u64,
    pub(crate) mpi_ranks: Arc<[i32]>,
    pub(crate) recorder: Arc<Recorder>,
}

/// An operation under way.
#[derive(Debug)]
struct Active {
    call: Call,
    /// Its number in the flight recorder.
    number: u64,
    members: Members,
    /// Where its incoming messages belong; a send has none.
    slot: Slot,
    /// What its outgoing messages belong to, where that differs.
    slot_out: Slot,
    signature: u64,
    signature_out: u64,
    plan: Plan,
    round: usize,
    /// Whether payloads carry checksums.
    sealed: bool,
    /// Payloads of this round on their way, with what they must be and who sent them.
    unchecked: Vec<(Part, u64, String)>,
    /// Messages of this round whose envelopes have not come.
    expected: Vec<Transfer>,
    memories: [Option<Memory>; 3],
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Going,
    /// Nobody waits for it any more.
    Dropped,
    Done,
}

/// One rank's side of the world.
#[derive(Debug)]
pub(crate) struct Engine {
    link: Link,
    options: MpiOptions,
    mpi_rank: i32,
    /// World rank in errors, by MPI rank.
    world_ranks: Vec<usize>,
    /// The posted receive for envelopes; `None` after [`Engine::close`].
    inbox: Option<Memory>,
    outbox: Vec<Memory>,
    active: BTreeMap<u64, Active>,
    slots: HashMap<Slot, u64>,
    early: HashMap<Slot, Vec<Envelope>>,
    /// The next sequence number of a group's collectives and of each pair's messages.
    next: HashMap<(u64, Channel), u64>,
    next_out: HashMap<(u64, usize), u64>,
    next_id: u64,
    next_tag: Vec<i32>,
    cause: Option<Cause>,
    announced: bool,
    /// The latest call that was heard of, by MPI rank.
    heard: Vec<Option<Box<str>>>,
    scratch: Pool,
}

impl Engine {
    pub(crate) fn new(
        link: Link,
        options: MpiOptions,
        mpi_rank: i32,
        size: usize,
    ) -> Result<Self, CommError> {
        let mut engine = Self {
            link,
            options,
            mpi_rank,
            world_ranks: (0..size).collect(),
            inbox: None,
            outbox: Vec::new(),
            active: BTreeMap::new(),
            slots: HashMap::new(),
            early: HashMap::new(),
            next: HashMap::new(),
            next_out: HashMap::new(),
            next_id: 0,
            next_tag: vec![ENVELOPE_TAG + 1; size],
            cause: None,
            announced: false,
            heard: vec![None; size],
            scratch: Pool::new(),
        };
        engine.open_inbox()?;
        Ok(engine)
    }

    fn open_inbox(&mut self) -> Result<(), CommError> {
        let mut inbox = Memory::new(Buf::zeros(DType::U8, BYTES_MAX))?;
        inbox.recv(&self.link, 0..BYTES_MAX, None, ENVELOPE_TAG)?;
        self.inbox = Some(inbox);
        Ok(())
    }

    /// The ranks are called otherwise from now on: `world_ranks[i]` is the name of MPI's rank i.
    pub(crate) fn rename(&mut self, world_ranks: Vec<usize>) {
        self.world_ranks = world_ranks;
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.options.deadline
    }

    fn world_rank(&self) -> usize {
        self.world_ranks[self.mpi_rank as usize]
    }

    /// The failure of the world, if there is one.
    pub(crate) fn check(&self) -> Result<(), CommError> {
        match &self.cause {
            Some(cause) => Err(CommError::Aborted { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    /// The world fails with this error, unless it has failed already.
    pub(crate) fn fail(&mut self, error: &CommError) {
        self.abort(&error.to_string());
    }

    /// The world fails; the others are told by the next poll.
    pub(crate) fn abort(&mut self, message: &str) {
        if self.cause.is_none() {
            self.cause = Some(Cause { rank: self.world_rank(), message: message.into() });
        }
    }

    /// Posts an operation; its number.
    pub(crate) fn start(&mut self, members: &Members, request: Request) -> Result<u64, CommError> {
        request.check(&members.group)?;
        self.link.check_thread()?;
        self.check()?;
        let (slot, slot_out) = self.slots_of(members, request.operation);
        let shown =
            if matches!(request.operation, Operation::Send { .. }) { slot_out } else { slot };
        let call = request.call(&members.group, shown.sequence);
        let number = members.recorder.post(call.clone());
        let call = Call { place: members.recorder.place(), ..call };
        let Request { operation, send, recv, seal, .. } = request;
        let seat = Seat { rank: members.group.rank(), size: members.group.size() };
        let plan = seat.plan(operation, call.send, call.recv);
        let scratch = match plan.scratch_len {
            0 => None,
            len => Some(self.scratch.alloc(call.send.map_or(DType::U8, |e| e.dtype), len)?),
        };
        let altered = seal.zip(send.as_ref()).and_then(|(seal, send)| {
            let found = seal.altered(send).transpose()?;
            let corrupt = |found| {
                let call = Box::new(call.clone());
                CommError::Corrupt { call, sent: seal.checksum, found }
            };
            Some(found.map_or_else(CommError::from, corrupt))
        });
        let held = |buf: Option<Buf>| buf.map(Memory::new).transpose();
        let memories = [held(send)?, held(recv)?, held(scratch)?];
        let incoming = if call.recv.is_some() { call.recv } else { call.send };
        let active = Active {
            signature: call.signature(incoming, seal.map(|seal| seal.number(operation))),
            signature_out: call.signature(call.send, seal.map(|seal| seal.outgoing)),
            number,
            members: members.clone(),
            slot,
            slot_out,
            plan,
            sealed: seal.is_some(),
            unchecked: Vec::new(),
            round: 0,
            expected: Vec::new(),
            memories,
            state: State::Going,
            call,
        };
        let id = self.next_id;
        self.next_id += 1;
        if !matches!(operation, Operation::Send { .. }) {
            self.slots.insert(slot, id);
        }
        self.active.insert(id, active);
        if let Some(error) = altered {
            self.fail(&error);
            return Err(error);
        }
        let begun = self.begin_round(id).and_then(|()| self.poll());
        begun.inspect_err(|error| self.fail(error))?;
        Ok(id)
    }

    /// The next slots for what comes in and what goes out.
    fn slots_of(&mut self, members: &Members, operation: Operation) -> (Slot, Slot) {
        let group = members.id;
        let incoming = |channel, next: &mut HashMap<(u64, Channel), u64>| {
            let next = next.entry((group, channel)).or_default();
            *next += 1;
            Slot { group, channel, sequence: *next - 1 }
        };
        let Some(Peers { to, from }) = operation.peers() else {
            let slot = incoming(Channel::Collective, &mut self.next);
            return (slot, slot);
        };
        let channel = Channel::Message { from: self.mpi_rank };
        let mut out = Slot { group, channel, sequence: 0 };
        if let Some(to) = to {
            let next = self.next_out.entry((group, to)).or_default();
            (out.sequence, *next) = (*next, *next + 1);
        }
        let slot = from.map(|from| {
            incoming(Channel::Message { from: members.mpi_ranks[from] }, &mut self.next)
        });
        (slot.unwrap_or(out), out)
    }

    fn active_mut(&mut self, id: u64) -> &mut Active {
        self.active.get_mut(&id).expect("invariant: an operation is kept until it is fetched")
    }

    /// Copies, sends and expects what the current round of an operation says.
    fn begin_round(&mut self, id: u64) -> Result<(), CommError> {
        let active = self.active_mut(id);
        let round = active.plan.rounds[active.round].clone();
        active.expected = round.recvs;
        if let Some((from, to)) = &round.copy {
            let bytes = active.read(from);
            active.write(to, &bytes);
        }
        for send in round.sends {
            self.send(id, &send)?;
        }
        let slot = self.active_mut(id).slot;
        for envelope in self.early.remove(&slot).unwrap_or_default() {
            self.deliver(envelope)?;
        }
        Ok(())
    }

    fn send(&mut self, id: u64, transfer: &Transfer) -> Result<(), CommError> {
        let Self { active, next_tag, link, options, mpi_rank, .. } = self;
        let active = active.get_mut(&id).expect("invariant: as for `active_mut`");
        let to = active.members.mpi_ranks[transfer.peer];
        let len = transfer.part.bytes.len();
        let inline_bytes_max = match options.delivery {
            Delivery::Buffered => INLINE_BYTES_MAX,
            Delivery::Rendezvous => 0,
        };
        let content = if len <= inline_bytes_max {
            Content::Inline(active.read(&transfer.part))
        } else {
            let tag = &mut next_tag[to as usize];
            *tag = if *tag == TAG_MAX { ENVELOPE_TAG + 1 } else { *tag + 1 };
            Content::Tag(*tag)
        };
        let tag = if let Content::Tag(tag) = content { Some(tag) } else { None };
        let envelope = Envelope {
            source: *mpi_rank,
            slot: active.slot_out,
            round: active.round as u64,
            signature: active.signature_out,
            payload_bytes: len,
            checksum: active.sealed.then(|| hash(active.read(&transfer.part))),
            content,
            text: active.call.to_string(),
        };
        let bytes = envelope.encode();
        let mut memory = Memory::new(Buf::from_vec(bytes))?;
        let envelope_len = memory.buf_mut().len();
        memory.send(link, 0..envelope_len, to, ENVELOPE_TAG)?;
        if let (Some(tag), Some(from)) = (tag, active.memory(transfer.part.place)) {
            from.send(link, transfer.part.bytes.clone(), to, tag)?;
        }
        self.outbox.push(memory);
        Ok(())
    }

    /// Takes an envelope in: into its operation, or aside until there is one.
    fn deliver(&mut self, envelope: Envelope) -> Result<(), CommError> {
        let source = envelope.source;
        let Some(id) = self.slots.get(&envelope.slot).copied() else {
            let next = self.next.get(&(envelope.slot.group, envelope.slot.channel));
            if next.is_some_and(|next| envelope.slot.sequence < *next) {
                let message = format!("came to an operation that is over here: {}", envelope.text);
                return Err(CommError::Backend { backend: "trine-comm-mpi", message });
            }
            self.early.entry(envelope.slot).or_default().push(envelope);
            return Ok(());
        };
        let link = self.link;
        let active = self.active_mut(id);
        let conflict = |active: &Active| {
            let own = Box::new(active.call.clone());
            Err(CommError::Conflict { own, theirs: envelope.text.clone() })
        };
        if envelope.signature != active.signature {
            return conflict(active);
        }
        if envelope.round > active.round as u64 {
            self.early.entry(envelope.slot).or_default().push(envelope);
            return Ok(());
        }
        let from_source = |transfer: &Transfer| active.members.mpi_ranks[transfer.peer] == source;
        let Some(index) = active.expected.iter().position(from_source) else {
            return conflict(active);
        };
        let Transfer { part, .. } = active.expected.swap_remove(index);
        if envelope.payload_bytes != part.bytes.len() {
            return conflict(active);
        }
        if let Some(checksum) = envelope.checksum {
            active.unchecked.push((part.clone(), checksum, envelope.text));
        }
        match envelope.content {
            Content::Inline(bytes) => active.write(&part, &bytes),
            Content::Tag(tag) => {
                if let Some(into) = active.memory(part.place) {
                    into.recv(&link, part.bytes, Some(source), tag)?;
                }
            }
            Content::Abort => {}
        }
        Ok(())
    }

    /// Lets MPI work and moves on what has come; whether anything has.
    pub(crate) fn poll(&mut self) -> Result<bool, CommError> {
        if !self.link.is_here() {
            return Ok(false);
        }
        let mut moved = false;
        while let Some(envelope) = self.receive()? {
            moved = true;
            // Once there is a cause, what else disagrees must not keep the others from hearing of it.
            self.take_in(envelope).or_else(|error| self.cause.as_ref().map(drop).ok_or(error))?;
        }
        if self.cause.is_some() && !self.announced {
            self.announce()?;
        }
        let link = self.link;
        for memory in &mut self.outbox {
            memory.poll(&link, |_| {})?;
        }
        self.outbox.retain(|memory| !memory.is_idle());
        let mut ready = Vec::new();
        for (id, active) in &mut self.active {
            for memory in active.memories.iter_mut().flatten() {
                memory.poll(&link, |_| {})?;
            }
            if active.is_round_over() {
                ready.push(*id);
            }
        }
        for id in ready {
            moved = true;
            self.advance(id)?;
        }
        Ok(moved)
    }

    /// The next envelope that has arrived.
    fn receive(&mut self) -> Result<Option<Envelope>, CommError> {
        let Some(inbox) = &mut self.inbox else { return Ok(None) };
        let mut arrived = None;
        inbox.poll(&self.link, |arrival| arrived = Some(arrival.bytes))?;
        let Some(len) = arrived else { return Ok(None) };
        let envelope = Envelope::decode(&inbox.read(0..len));
        inbox.recv(&self.link, 0..BYTES_MAX, None, ENVELOPE_TAG)?;
        envelope.map(Some).ok_or_else(|| CommError::Backend {
            backend: "trine-comm-mpi",
            message: format!(
                "{len} bytes that are no envelope: do all ranks run the same version of trine ({})?",
                env!("CARGO_PKG_VERSION")
            ),
        })
    }

    fn take_in(&mut self, envelope: Envelope) -> Result<(), CommError> {
        if envelope.content == Content::Abort {
            let rank = self.world_ranks[envelope.source as usize];
            let message = envelope.text.into();
            self.cause.get_or_insert(Cause { rank, message });
            // Whoever failed has told everybody.
            self.announced = true;
            return Ok(());
        }
        self.heard[envelope.source as usize] = Some(envelope.text.clone().into());
        self.deliver(envelope)
    }

    /// Tells all ranks why the world has failed.
    fn announce(&mut self) -> Result<(), CommError> {
        self.announced = true;
        let text = self.cause.as_ref().map_or("", |cause| &cause.message).to_owned();
        let envelope = Envelope {
            source: self.mpi_rank,
            slot: Slot { group: 0, channel: Channel::Collective, sequence: 0 },
            round: 0,
            signature: 0,
            payload_bytes: 0,
            checksum: None,
            content: Content::Abort,
            text,
        };
        let bytes = envelope.encode();
        for to in (0..self.world_ranks.len() as i32).filter(|to| *to != self.mpi_rank) {
            let mut memory = Memory::new(Buf::from_vec(bytes.clone()))?;
            memory.send(&self.link, 0..bytes.len(), to, ENVELOPE_TAG)?;
            self.outbox.push(memory);
        }
        Ok(())
    }

    /// Ends the current round of an operation, and begins the next or ends the operation.
    fn advance(&mut self, id: u64) -> Result<(), CommError> {
        let active = self.active_mut(id);
        active.check()?;
        active.reduce()?;
        active.round += 1;
        if active.round < active.plan.rounds.len() {
            return self.begin_round(id);
        }
        let (slot, dropped) = (active.slot, active.state == State::Dropped);
        active.memories[Place::Scratch as usize] = None;
        active.state = State::Done;
        active.members.recorder.finish(active.number);
        if self.slots.get(&slot) == Some(&id) {
            self.slots.remove(&slot);
        }
        if dropped {
            self.active.remove(&id);
        }
        Ok(())
    }

    /// The buffers of an operation that is over.
    pub(crate) fn fetch(&mut self, id: u64) -> Option<Done> {
        if !self.is_done(id) {
            return None;
        }
        let [send, recv, _] = self.active.remove(&id)?.memories;
        Some(Done { send: send.map(Memory::into_buf), recv: recv.map(Memory::into_buf) })
    }

    /// Notes that the rank waits for an operation.
    pub(crate) fn begin_wait(&self, id: u64) {
        if let Some(active) = self.active.get(&id).filter(|active| active.state != State::Done) {
            active.members.recorder.wait(active.number);
        }
    }

    pub(crate) fn is_done(&self, id: u64) -> bool {
        self.active.get(&id).is_some_and(|active| active.state == State::Done)
    }

    /// Nobody waits for the operation any more; its buffers stay until it is over.
    pub(crate) fn forget(&mut self, id: u64) {
        if self.is_done(id) {
            self.active.remove(&id);
        } else if let Some(active) = self.active.get_mut(&id) {
            active.state = State::Dropped;
        }
    }

    /// The error of an operation that took too long.
    pub(crate) fn overdue(&self, id: u64, waited: Duration) -> Option<CommError> {
        let active = self.active.get(&id)?;
        // Without anybody missing, a peer has not taken what was sent to it.
        let round = &active.plan.rounds[active.round];
        let awaited = if active.expected.is_empty() { &round.sends } else { &active.expected };
        let missing = awaited.iter().map(|transfer| {
            let mpi_rank = active.members.mpi_ranks[transfer.peer] as usize;
            let state = RankState::Unheard(self.heard[mpi_rank].clone());
            Missing { rank: self.world_ranks[mpi_rank], state }
        });
        let call = Box::new(active.call.clone());
        Some(CommError::Deadline { call, waited, missing: missing.collect() })
    }

    /// Whether all that was to be sent has left.
    pub(crate) fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    /// The calls that nobody has matched, here or among those that have been heard of; apart from the
    /// collectives of the group `leaving`, by which faster ranks are asking the same.
    pub(crate) fn left(&self, leaving: u64) -> Vec<String> {
        let own = self.active.values().map(|active| active.call.to_string());
        let is_question =
            |slot: &Slot| slot.group == leaving && slot.channel == Channel::Collective;
        let others = self.early.iter().filter(|(slot, _)| !is_question(slot));
        let others = others.flat_map(|(_, envelopes)| envelopes);
        own.chain(others.map(|envelope| envelope.text.clone())).collect()
    }

    /// Takes no envelopes any more.
    pub(crate) fn close(&mut self) -> Result<(), CommError> {
        match self.inbox.take() {
            Some(mut inbox) => inbox.cancel(&self.link),
            None => Ok(()),
        }
    }
}

impl Active {
    /// `None` of the buffers that an operation without elements does not have.
    fn memory(&mut self, place: Place) -> Option<&mut Memory> {
        self.memories[place as usize].as_mut()
    }

    fn read(&mut self, part: &Part) -> Vec<u8> {
        self.memory(part.place).map_or_else(Vec::new, |memory| memory.read(part.bytes.clone()))
    }

    fn write(&mut self, part: &Part, bytes: &[u8]) {
        if let Some(memory) = self.memory(part.place) {
            memory.write(part.bytes.clone(), bytes);
        }
    }

    fn is_round_over(&self) -> bool {
        self.state != State::Done
            && self.expected.is_empty()
            && self.memories.iter().flatten().all(Memory::is_idle)
    }

    /// Compares what has come with the checksums that came ahead of it.
    fn check(&mut self) -> Result<(), CommError> {
        for (part, sent, text) in std::mem::take(&mut self.unchecked) {
            let found = hash(self.read(&part));
            if found != sent {
                let message = format!(
                    "{text}: its elements were altered on the way: checksum {found:016x} instead \
                     of {sent:016x}"
                );
                return Err(CommError::Backend { backend: "checksum", message });
            }
        }
        Ok(())
    }

    /// Reduces what the round has gathered.
    fn reduce(&mut self) -> Result<(), CommError> {
        let Some(reduce) = self.plan.rounds[self.round].reduce.clone() else { return Ok(()) };
        let [send, recv, scratch] = &mut self.memories;
        let out = if reduce.to.place == Place::Send { send } else { recv };
        let (Some(out), Some(scratch)) = (out, scratch) else { return Ok(()) };
        let out = out.buf_mut();
        let element = Extent::of(out).dtype.bytes();
        let range = reduce.to.bytes.start / element..reduce.to.bytes.end / element;
        let out = out.slice_mut().range(range)?;
        Ok(trine_comm::reduce(reduce.op, scratch.buf_mut().slice(), out)?)
    }
}

fn hash(bytes: Vec<u8>) -> u64 {
    trine_comm::checksum(&bytes)
}
