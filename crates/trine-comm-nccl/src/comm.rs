//! The communicator and its pending operations.

use crate::announcement::Announcement;
use crate::channels::Channels;
use crate::link::{self, Link, NCCL, Place, gpu_error};
use crate::seat::{NcclOptions, Seat};
use std::ffi::c_char;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use trine_comm::{
    Buf, Call, Cause, CommError, Communicator, DType, Done, Extent, Group, Name, Operation, Peers,
    Pending, Progress, Recorder, ReduceOp, Request, SelfComm, Site, Slice,
};
use trine_gpu::{Device, Event, Span, Stream};
use trine_gpu_sys::nccl::UniqueId;
use trine_gpu_sys::{Nccl, Table, Version};

/// What the first operations are called.
const CONNECT: Name = Name::new("connect");

/// A group of ranks with a GPU each, seen by one of them.
pub(crate) struct NcclComm {
    host: Arc<dyn Communicator>,
    link: Arc<Link>,
    /// `None` if its ranks send each other nothing between GPUs.
    channels: Option<Arc<Channels>>,
    seat: Arc<Seat>,
    /// Operations that this rank has called: collectives, and messages with each other rank.
    numbers: Numbers,
}

#[derive(Debug)]
struct Numbers {
    collectives: AtomicU64,
    sends: Box<[AtomicU64]>,
    recvs: Box<[AtomicU64]>,
}

impl Numbers {
    fn new(size: usize) -> Self {
        let zeros = || (0..size).map(|_| AtomicU64::new(0)).collect();
        Self { collectives: AtomicU64::new(0), sends: zeros(), recvs: zeros() }
    }

    /// The next number of an operation; of an exchange that of what comes in.
    fn next(&self, operation: Operation) -> u64 {
        let next = |number: &AtomicU64| number.fetch_add(1, Ordering::Relaxed);
        let Some(peers) = operation.peers() else { return next(&self.collectives) };
        let sent = peers.to.map(|to| next(&self.sends[to]));
        let received = peers.from.map(|from| next(&self.recvs[from]));
        received.or(sent).unwrap_or(0)
    }
}

impl fmt::Debug for NcclComm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL group {:?}", self.host.group())
    }
}

/// Puts NCCL beside a communicator of the host: the same ranks, each with a GPU of its own. A collective call.
///
/// The first operation of every pair is made here, as NCCL connects ranks when they first talk, and waits for both.
///
/// # Errors
/// Two ranks on one GPU, ranks with different versions of NCCL, a rank that does not come, or a failure of NCCL.
#[track_caller]
pub fn join(
    nccl: &Arc<Nccl>,
    device: &Device,
    host: Arc<dyn Communicator>,
    options: NcclOptions,
) -> Result<Arc<dyn Communicator>, CommError> {
    let group = host.group().clone();
    if group.size() == 1 {
        return Ok(host);
    }
    let joined = || {
        same_versions(nccl, &host)?;
        let id = shared_id(nccl, device, &host)?;
        let place = Place { name: group.name(), rank: group.rank(), size: group.size() };
        let link = Arc::new(Link::join(nccl.clone(), device, id, place)?);
        let seat = Arc::new(Seat::new(host.clone(), options)?);
        NcclComm::connected(host.clone(), link, seat)
    };
    // The others wait for this rank.
    joined().inspect_err(|error| host.abort(&error.to_string()))
}

/// Asserts that all ranks have opened the same NCCL: others do not find each other, or read messages wrong.
#[track_caller]
fn same_versions(nccl: &Nccl, host: &Arc<dyn Communicator>) -> Result<(), CommError> {
    let failed = |message| CommError::Backend { backend: NCCL, message };
    let Version { major, minor, patch } =
        nccl.version().map_err(|error| failed(error.to_string()))?;
    let all = Buf::zeros(DType::U32, 3 * host.size());
    let own = Buf::from_vec(vec![major, minor, patch]);
    let (_, all) = host.all_gather(own, all, "version of NCCL")?;
    let all: Vec<_> = all.typed::<u32>()?.chunks_exact(3).collect();
    let Some(other) = all.iter().position(|version| *version != all[0]) else { return Ok(()) };
    let [first, other_version] = [all[0], all[other]].map(|numbers| {
        let [major, minor, patch] = [0, 1, 2].map(|at| numbers[at]);
        Version { major, minor, patch }
    });
    let both = format!("rank 0 has {first}, rank {other} has {other_version}");
    Err(failed(format!("ranks have different versions: {both}; give all of them the same one")))
}

/// The id that the first rank makes.
#[track_caller]
fn shared_id(
    nccl: &Nccl,
    device: &Device,
    host: &Arc<dyn Communicator>,
) -> Result<UniqueId, CommError> {
    let own = if host.rank() == 0 {
        let UniqueId(bytes) = link::unique_id(nccl, device)?;
        Buf::from_vec(bytes.map(|byte| byte.to_ne_bytes()[0]).to_vec())
    } else {
        Buf::zeros(DType::U8, size_of::<UniqueId>())
    };
    let id = host.broadcast(own, 0, "id of NCCL")?;
    let bytes = id.typed::<u8>()?;
    Ok(UniqueId(std::array::from_fn(|at| c_char::from_ne_bytes([bytes[at]]))))
}

impl NcclComm {
    /// The group, with all connections made: NCCL makes them when ranks first talk, and waits for both.
    fn connected(
        host: Arc<dyn Communicator>,
        link: Arc<Link>,
        seat: Arc<Seat>,
    ) -> Result<Arc<dyn Communicator>, CommError> {
        let group = host.group();
        let (name, rank, size) = (group.name(), group.rank(), group.size());
        let settle = |link: &Link| link.settle(seat.deadline(), || seat.check());
        seat.add(&link);
        settle(&link)?;
        let place = link.stream().place();
        for operation in [Operation::AllToAll, Operation::AllReduce(ReduceOp::Max)] {
            let mut request = Request::new(operation, CONNECT, Location::caller());
            request.send = Some(place.zeros(DType::U8, size)?);
            if operation == Operation::AllToAll {
                request.recv = Some(place.zeros(DType::U8, size)?);
            }
            link.collective(&mut request)?;
            settle(&link)?;
        }
        let mut channels = None;
        if seat.options().message_groups.contains(&name) {
            let made = Channels::new(&link, Place { name, rank, size }, |pair| {
                seat.add(pair);
                settle(pair)?;
                let mut byte = pair.stream().place().zeros(DType::U8, 1)?;
                match pair.rank() {
                    0 => pair.message(CONNECT, Some(&byte), None)?,
                    _ => pair.message(CONNECT, None, Some(&mut byte))?,
                }
                settle(pair)
            });
            channels = Some(Arc::new(made?));
        }
        let numbers = Numbers::new(size);
        Ok(Arc::new(Self { host, link, channels, seat, numbers }))
    }

    /// The groups of NCCL that an operation goes by: that of what is sent, or of a collective, and that of what is
    /// received.
    fn ways(&self, call: &Call) -> Result<[Option<Arc<Link>>; 2], CommError> {
        let Some(Peers { to, from }) = call.operation.peers() else {
            return Ok([Some(self.link.clone()), None]);
        };
        let Some(channels) = &self.channels else {
            let message = format!(
                "{call}: the ranks of this group have no ways for messages between GPUs, only those of {}; name it in \
                 NcclOptions::message_groups",
                self.seat.options().message_groups.join(", ")
            );
            return Err(CommError::Backend { backend: NCCL, message });
        };
        Ok([to.and_then(|to| channels.to[to].clone()), from.and_then(|f| channels.from[f].clone())])
    }

    fn start_on_gpu(&self, mut request: Request) -> Result<Pending, CommError> {
        self.seat.check()?;
        let group = self.host.group();
        let call = request.call(group, self.numbers.next(request.operation));
        let altered = request.seal.zip(request.send.as_ref());
        if let Some((seal, send)) = altered
            && let Some(found) = seal.altered(send)?
        {
            let (call, sent) = (Box::new(call), seal.checksum);
            return Err(CommError::Corrupt { call, sent, found });
        }
        let ways = self.ways(&call)?;
        let announcement = Announcement::post(&*self.host, &call, request.seal)?;
        let number = self.recorder().post(call.clone());
        self.seat.post(number, announcement);
        let streams = streams_of(&request)?;
        for link in ways.iter().flatten() {
            for behind in &streams {
                let event = behind.record().map_err(gpu_error)?;
                link.stream().wait(&event).map_err(gpu_error)?;
            }
        }
        let queued = self.queue(&mut request, &ways);
        // Also where something has failed, the buffers stay until what is queued has ended.
        let ends = ways.iter().flatten().map(|link| link.stream().record());
        let ends: Result<Arc<[Event]>, _> = ends.collect();
        let ends = ends.map_err(gpu_error)?;
        self.seat.queued(number, ends.clone());
        let (seat, done) = (self.seat.clone(), Done { send: request.send, recv: request.recv });
        let recorder = self.recorder().clone();
        let under_way = UnderWay { seat, ends, done, streams, recorder, number };
        queued?;
        Ok(Pending::started(Box::new(under_way)))
    }

    /// Queues the calls of an operation, each on the stream of its way.
    fn queue(&self, request: &mut Request, ways: &[Option<Arc<Link>>; 2]) -> Result<(), CommError> {
        let Request { operation, name, send, recv, .. } = request;
        match (ways, operation.peers()) {
            ([Some(link), _], None) => link.collective(request)?,
            // `check` allows a message to oneself in an exchange only.
            ([None, None], _) => {
                if let (Some(send), Some(recv)) = (send, recv) {
                    recv.slice_mut().copy_from(send.slice())?;
                }
            }
            ([to, from], _) => {
                if let Some(link) = to {
                    link.message(*name, send.as_ref(), None)?;
                }
                if let Some(link) = from {
                    link.message(*name, None, recv.as_mut())?;
                }
            }
        }
        let settle = |link: &Arc<Link>| link.settle(self.seat.deadline(), || self.seat.check());
        ways.iter().flatten().try_for_each(settle)
    }
}

/// The streams that the buffers of a request belong to, each once.
fn streams_of(request: &Request) -> Result<Vec<Stream>, CommError> {
    let mut streams: Vec<Stream> = Vec::new();
    for buf in request.send.iter().chain(&request.recv) {
        let stream = Span::of(buf.slice()).map_err(gpu_error)?.stream().clone();
        if streams.iter().all(|other| !other.is(&stream)) {
            streams.push(stream);
        }
    }
    Ok(streams)
}

/// Whether the buffers of a request lie on a GPU; all of them do, or none.
fn is_on_gpu(request: &Request, group: &Group) -> Result<bool, CommError> {
    let on_gpu = |buf: &Buf| matches!(buf.slice(), Slice::Device(_));
    let places = [request.send.as_ref().map(on_gpu), request.recv.as_ref().map(on_gpu)];
    match places {
        [Some(send), Some(recv)] if send != recv => {
            let shown = |buf: &Option<Buf>, on_gpu: bool| {
                let extent = buf.as_ref().map(Extent::of).map_or(String::new(), |e| e.to_string());
                format!("{extent} on the {}", if on_gpu { "GPU" } else { "host" })
            };
            Err(CommError::Shape {
                call: Box::new(request.call(group, 0)),
                given: format!(
                    "send {}, recv {}",
                    shown(&request.send, send),
                    shown(&request.recv, recv)
                ),
                wanted: "both in one place".to_owned(),
            })
        }
        [Some(one), _] | [None, Some(one)] => Ok(one),
        [None, None] => Ok(false),
    }
}

impl Communicator for NcclComm {
    fn group(&self) -> &Group {
        self.host.group()
    }

    fn start(&self, request: Request) -> Result<Pending, CommError> {
        request.check(self.group())?;
        if is_on_gpu(&request, self.group())? {
            return self.start_on_gpu(request).map_err(|error| self.seat.fail(error));
        }
        self.seat.check()?;
        self.host.start(request)
    }

    fn subgroup(
        &self,
        colour: u64,
        name: &str,
        site: Site,
    ) -> Result<Arc<dyn Communicator>, CommError> {
        self.seat.check()?;
        let part = self.host.subgroup(colour, name, site)?;
        let divided = || {
            let group = part.group();
            let (rank, size) = (group.rank(), group.size());
            // NCCL's colours are small numbers: that of a part is its first rank.
            let first = self.group().ranks().iter().position(|rank| *rank == group.ranks()[0]);
            let colour = first.filter(|_| size > 1);
            let link = self.link.split(colour, rank, Place { name, rank, size })?;
            let Some(link) = link.map(Arc::new) else {
                let whole = Self {
                    host: self.host.clone(),
                    link: self.link.clone(),
                    channels: self.channels.clone(),
                    seat: self.seat.clone(),
                    numbers: Numbers::new(self.group().size()),
                };
                return Ok(SelfComm::within(name, group.world_rank(), Some(Arc::new(whole))));
            };
            Self::connected(part.clone(), link, self.seat.clone())
        };
        divided().map_err(|error| self.seat.fail(error))
    }

    fn abort(&self, cause: &str) {
        self.host.abort(cause);
        // The first cause is the world's, which may be another one.
        let cause = Cause { rank: self.group().world_rank(), message: cause.into() };
        let first = self.host.check().err().unwrap_or(CommError::Aborted { cause });
        self.seat.fail(first);
    }

    fn check(&self) -> Result<(), CommError> {
        self.seat.check()
    }

    fn recorder(&self) -> &Arc<Recorder> {
        self.host.recorder()
    }

    fn reserve(&self, dtype: DType, len: usize, messages: usize) -> Result<(), CommError> {
        self.host.reserve(dtype, len, messages)
    }
}

/// A posted operation of a GPU.
#[derive(Debug)]
struct UnderWay {
    seat: Arc<Seat>,
    ends: Arc<[Event]>,
    done: Done,
    streams: Vec<Stream>,
    recorder: Arc<Recorder>,
    number: u64,
}

impl UnderWay {
    fn let_streams_wait(&self) -> Result<(), CommError> {
        let wait = |stream: &Stream| self.ends.iter().try_for_each(|end| stream.wait(end));
        self.streams.iter().try_for_each(wait).map_err(gpu_error)
    }
}

impl Progress for UnderWay {
    // The host does not wait for a GPU.
    fn is_done(&self) -> bool {
        true
    }

    fn wait(mut self: Box<Self>) -> Result<Done, CommError> {
        self.seat.check()?;
        self.let_streams_wait().map_err(|error| self.seat.fail(error))?;
        self.recorder.finish(self.number);
        Ok(std::mem::take(&mut self.done))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.done.send.is_some() || self.done.recv.is_some() {
            // The buffers go back to whom they belong in the order of their streams. A failure can be told to nobody.
            let _ = self.let_streams_wait();
        }
    }
}
