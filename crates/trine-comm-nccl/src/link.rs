//! A communicator of NCCL: one rank's place in a group, with a stream of its own.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use trine_buffer::{Buf, DType};
use trine_comm::{CommError, Name, Operation, ReduceOp, Request};
use trine_gpu::{Arg, Device, GpuError, Priority, Span, SpanMut, Stream};
use trine_gpu_sys::driver::{self, DevicePtr};
use trine_gpu_sys::nccl::{Comm, Config, IN_PROGRESS, UniqueId, element, reduction};
use trine_gpu_sys::{CallError, Nccl};

/// Whose words errors pass on.
pub(crate) const NCCL: &str = "NCCL";
const GPU: &str = "GPU";

/// How often a call that goes on by itself is asked for.
const PAUSE: Duration = Duration::from_micros(100);

/// A rank's place in a group.
pub(crate) struct Link {
    nccl: Arc<Nccl>,
    stream: Stream,
    /// Its index in the group.
    rank: usize,
    size: usize,
    /// `None` once it has been aborted.
    comm: Mutex<Option<Comm>>,
}

// SAFETY: NCCL takes its handles from any thread, one call at a time; the handle is behind a lock.
unsafe impl Send for Link {}
// SAFETY: as above.
unsafe impl Sync for Link {}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} by {:?}", self.rank, self.size, self.stream)
    }
}

/// What a group is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) name: &'a str,
    pub(crate) rank: usize,
    pub(crate) size: usize,
}

pub(crate) fn gpu_error(error: GpuError) -> CommError {
    let backend = if let GpuError::Call { source, .. } = &error
        && source.function.starts_with("nccl")
    {
        NCCL
    } else {
        GPU
    };
    CommError::Backend { backend, message: error.to_string() }
}

/// What goes on by itself has begun well.
fn begun(result: Result<(), CallError>) -> Result<(), CallError> {
    result.or_else(|error| if error.code == IN_PROGRESS { Ok(()) } else { Err(error) })
}

/// What makes the ranks of a world find each other.
pub(crate) fn unique_id(nccl: &Nccl, device: &Device) -> Result<UniqueId, CommError> {
    let mut id = UniqueId([0; 128]);
    // SAFETY: writes one id.
    let make = || unsafe { nccl.unique_id(&mut id) };
    device.enter(|| "begin a world of NCCL".into(), make).map_err(gpu_error)?;
    Ok(id)
}

impl Link {
    /// Joins the world of an id. Until [`Link::settle`] has returned nothing else may be called.
    pub(crate) fn join(
        nccl: Arc<Nccl>,
        device: &Device,
        id: UniqueId,
        place: Place<'_>,
    ) -> Result<Self, CommError> {
        let Place { rank, size, .. } = place;
        Self::open(nccl, device, place, |nccl, comm, config| {
            // SAFETY: writes one handle; the configuration is of the version that it says.
            unsafe { nccl.comm_init(comm, size as c_int, id, rank as c_int, config) }
        })
        .map(|link| link.expect("invariant: joining gives a handle"))
    }

    /// The part of the group whose ranks give the same colour, in the order of their keys; `None` for no part.
    pub(crate) fn split(
        &self,
        colour: Option<usize>,
        key: usize,
        place: Place<'_>,
    ) -> Result<Option<Self>, CommError> {
        let whole = self.lock().ok_or_else(aborted)?;
        // NCCL's word for a rank that is in no part.
        let colour = colour.map_or(-1, |colour| colour as c_int);
        Self::open(self.nccl.clone(), self.stream.device(), place, |nccl, part, config| {
            // SAFETY: the whole is open; writes one handle.
            unsafe { nccl.comm_split(whole, colour, key as c_int, part, config) }
        })
    }

    fn open(
        nccl: Arc<Nccl>,
        device: &Device,
        Place { name, rank, size }: Place<'_>,
        make: impl FnOnce(&Nccl, &mut Comm, &mut Config) -> Result<(), CallError>,
    ) -> Result<Option<Self>, CommError> {
        let stream = device.stream(&format!("collectives of {name}"), Priority::First);
        let stream = stream.map_err(gpu_error)?;
        let (mut comm, mut config) = (Comm(null_mut()), Config::non_blocking());
        let join = || {
            let made = begun(make(&nccl, &mut comm, &mut config));
            made.map_err(|error| nccl.explained(error, comm))
        };
        let doing = || format!("open the group {name} of {size} ranks on GPU {}", device.index());
        device.enter(doing, join).map_err(gpu_error)?;
        let there = !comm.0.is_null();
        Ok(there.then(|| Self { nccl, stream, rank, size, comm: Mutex::new(Some(comm)) }))
    }

    /// This rank's index in the group.
    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    // A panic while the lock is held leaves the handle as it was.
    fn locked(&self) -> MutexGuard<'_, Option<Comm>> {
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> Option<Comm> {
        *self.locked()
    }

    /// Whether what was called goes on by itself; what has gone wrong is an error.
    pub(crate) fn is_busy(&self) -> Result<bool, CommError> {
        let held = self.locked();
        let comm = held.ok_or_else(aborted)?;
        let mut code = 0;
        // SAFETY: the handle is open, as the lock is held; writes one number.
        let ask = || unsafe { self.nccl.comm_state(comm, &mut code) };
        let device = self.stream.device();
        device.enter(|| "ask for the state of a group".into(), ask).map_err(gpu_error)?;
        match code {
            0 => Ok(false),
            IN_PROGRESS => Ok(true),
            code => {
                let message = self.nccl.state_text(code, comm);
                Err(CommError::Backend { backend: NCCL, message })
            }
        }
    }

    /// Waits until what was called is queued, as long as `may_wait` allows.
    pub(crate) fn settle(
        &self,
        deadline: Duration,
        may_wait: impl Fn() -> Result<(), CommError>,
    ) -> Result<(), CommError> {
        let started = Instant::now();
        while self.is_busy()? {
            may_wait()?;
            if started.elapsed() >= deadline {
                let message = format!("a call has not been queued for {deadline:.1?}");
                return Err(CommError::Backend { backend: NCCL, message });
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Ends what is on its way, on every rank that does the same.
    pub(crate) fn abort(&self) {
        let Some(comm) = self.locked().take() else { return };
        // SAFETY: the handle was open, and nobody gets it any more. A failure can be told to nobody.
        let abort = || unsafe { self.nccl.comm_abort(comm) };
        let _ = self.stream.device().enter(String::new, abort);
    }

    /// Queues a collective whose request has passed [`Request::check`].
    pub(crate) fn collective(&self, request: &mut Request) -> Result<(), CommError> {
        let operation = request.operation;
        let (send, recv) = (request.send.as_mut(), request.recv.as_mut());
        let is_in_place =
            matches!(operation, Operation::AllReduce(_) | Operation::Broadcast { .. });
        let (source, target) = if is_in_place { (None, send) } else { (send, recv) };
        let name = format!("{} \"{}\"", operation.label(), request.name);
        self.queue(&name, source.map(|buf| &*buf), target, |call, ends, stream| {
            let seat = (self.rank, self.size);
            // SAFETY: the ends are of memory that `queue` holds.
            unsafe { call.collective(operation, seat, ends, stream) }
        })
    }

    /// Queues the message of a pair whose first rank sends and whose second receives.
    pub(crate) fn message(
        &self,
        name: Name,
        send: Option<&Buf>,
        recv: Option<&mut Buf>,
    ) -> Result<(), CommError> {
        let (what, peer) = if send.is_some() { ("send", 1) } else { ("receive", 0) };
        self.queue(&format!("{what} \"{name}\""), send, recv, |call, ends, stream| {
            let Call { nccl, comm, element, bytes } = *call;
            let Ends { from, sent, to, received } = ends;
            // SAFETY: the ends are of memory that `queue` holds.
            unsafe {
                if sent > 0 {
                    nccl.send(from as *const c_void, sent / bytes, element, peer, comm, stream)
                } else {
                    nccl.receive(to as *mut c_void, received / bytes, element, peer, comm, stream)
                }
            }
        })
    }

    /// Queues work between two buffers; nothing where they have no elements.
    fn queue(
        &self,
        name: &str,
        source: Option<&Buf>,
        target: Option<&mut Buf>,
        work: impl FnOnce(&Call<'_>, Ends, driver::Stream) -> Result<(), CallError>,
    ) -> Result<(), CommError> {
        let held = self.locked();
        let comm = held.ok_or_else(aborted)?;
        let Some(dtype) = source.or(target.as_deref()).map(Buf::dtype) else { return Ok(()) };
        let call =
            Call { nccl: &self.nccl, comm, element: element_of(dtype), bytes: dtype.bytes() };
        let source = source.map(|buf| Span::of(buf.slice())).transpose().map_err(gpu_error)?;
        let target = target.map(|buf| SpanMut::of(buf.slice_mut())).transpose();
        let target = target.map_err(gpu_error)?;
        let (from, sent) = source.map_or((0, 0), |span| (span.address(), span.bytes()));
        let (to, received) = target.as_ref().map_or((0, 0), |span| (span.address(), span.bytes()));
        if sent == 0 && received == 0 {
            return Ok(());
        }
        let target = target.into_iter().map(Arg::Write);
        let memory: Vec<Arg<'_>> = source.into_iter().map(Arg::Read).chain(target).collect();
        let ends = Ends { from, sent, to, received };
        // SAFETY: the work is between these ends, which are those of the memory, and on this stream.
        let queued = unsafe {
            self.stream.queue(name, &memory, |stream| {
                begun(work(&call, ends, stream)).map_err(|error| self.nccl.explained(error, comm))
            })
        };
        queued.map_err(gpu_error)
    }
}

fn aborted() -> CommError {
    CommError::Backend { backend: NCCL, message: "the group was aborted".into() }
}

impl Drop for Link {
    fn drop(&mut self) {
        let Some(comm) = self.locked().take() else { return };
        // SAFETY: the handle was open, and nobody gets it any more. A failure can be told to nobody.
        let destroy = || unsafe { self.nccl.comm_destroy(comm) };
        let _ = self.stream.device().enter(String::new, destroy);
    }
}

fn element_of(dtype: DType) -> c_int {
    match dtype {
        DType::F64 => element::F64,
        DType::F32 => element::F32,
        DType::Bf16 => element::BF16,
        DType::F16 => element::F16,
        DType::U64 => element::U64,
        DType::U32 => element::U32,
        DType::U8 => element::U8,
    }
}

fn reduction_of(op: ReduceOp) -> c_int {
    match op {
        ReduceOp::Sum => reduction::SUM,
        ReduceOp::Mean => reduction::AVERAGE,
        ReduceOp::Max => reduction::MAX,
    }
}

/// The addresses and bytes that an operation reads and writes.
#[derive(Debug, Clone, Copy)]
struct Ends {
    from: DevicePtr,
    sent: usize,
    to: DevicePtr,
    received: usize,
}

/// What every call of an operation takes.
struct Call<'a> {
    nccl: &'a Nccl,
    comm: Comm,
    element: c_int,
    /// Of an element.
    bytes: usize,
}

impl Call<'_> {
    /// # Safety
    /// The ends are of memory that work of the stream may read and write.
    unsafe fn collective(
        &self,
        operation: Operation,
        (rank, size): (usize, usize),
        Ends { from, sent, to, received }: Ends,
        stream: driver::Stream,
    ) -> Result<(), CallError> {
        let Self { nccl, comm, element, bytes } = *self;
        let (source, target) = (from as *const c_void, to as *mut c_void);
        let (gives, gets) = (sent / bytes, received / bytes);
        // SAFETY: the caller vouches for the memory; the counts are of its elements.
        unsafe {
            match operation {
                Operation::Broadcast { root } => {
                    nccl.broadcast(target, target, gets, element, root as c_int, comm, stream)
                }
                Operation::AllReduce(op) => {
                    nccl.all_reduce(target, target, gets, element, reduction_of(op), comm, stream)
                }
                Operation::AllGather => {
                    nccl.all_gather(source, target, gives, element, comm, stream)
                }
                Operation::ReduceScatter(op) => {
                    let op = reduction_of(op);
                    nccl.reduce_scatter(source, target, gets, element, op, comm, stream)
                }
                Operation::AllToAll => {
                    nccl.group_start()?;
                    let parts = (0..size).try_for_each(|step| {
                        // Each rank begins with another one.
                        let peer = (rank + step) % size;
                        self.swap(peer, from, to, gives / size, stream)
                    });
                    // The group is closed in any case.
                    begun(nccl.group_end()).and(parts)
                }
                // Messages are no collectives, and a barrier has no elements.
                Operation::Send { .. }
                | Operation::Recv { .. }
                | Operation::Exchange { .. }
                | Operation::Barrier => Ok(()),
            }
        }
    }

    /// Sends a rank its part, of `each` elements, and receives one from it.
    ///
    /// # Safety
    /// Both addresses are of a part for every rank.
    unsafe fn swap(
        &self,
        peer: usize,
        from: DevicePtr,
        to: DevicePtr,
        each: usize,
        stream: driver::Stream,
    ) -> Result<(), CallError> {
        let Self { nccl, comm, element, bytes } = *self;
        let at = (peer * each * bytes) as DevicePtr;
        let (source, target) = ((from + at) as *const c_void, (to + at) as *mut c_void);
        // SAFETY: the caller vouches for the addresses.
        unsafe {
            begun(nccl.send(source, each, element, peer as c_int, comm, stream))?;
            begun(nccl.receive(target, each, element, peer as c_int, comm, stream))
        }
    }
}
