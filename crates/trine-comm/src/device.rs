//! What ranks that are threads hand in; where it lies on a device that all of them share, its exchange is work of the
//! device, which no host waits for.

use crate::{Done, Operation, ReduceOp};
use std::any::Any;
use std::fmt::Debug;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use trine_buffer::{Buf, BufferError, Pool, Slice, SliceMut};

/// A point in a queue of a device. What it is the device knows.
pub type Mark = Arc<dyn Any + Send + Sync>;

/// A device on which the buffers of all ranks of a world of threads lie, each in a queue of its rank's. It has one
/// queue more, for what ranks exchange.
///
/// Its reductions are those of [`reduce`](crate::reduce), bit for bit. No call waits for the device.
pub trait SharedDevice: Debug + Send + Sync {
    /// Memory of the queue of exchanges.
    fn pool(&self) -> &Pool;

    /// A point in the queue of a buffer, behind all that it has been given.
    ///
    /// # Errors
    /// If the buffer lies elsewhere, or the device does not take it.
    fn mark(&self, buf: Slice<'_>) -> Result<Mark, BufferError>;

    /// Lets the queue of a buffer go on behind a point only.
    ///
    /// # Errors
    /// As [`SharedDevice::mark`].
    fn follow(&self, buf: Slice<'_>, mark: &Mark) -> Result<(), BufferError>;

    /// Lets the queue of exchanges go on behind a point only.
    ///
    /// # Errors
    /// If the device does not take it.
    fn begin(&self, behind: &Mark) -> Result<(), BufferError>;

    /// Copies in the queue of exchanges.
    ///
    /// # Errors
    /// If types or lengths differ, a buffer lies elsewhere, or the device does not take it.
    fn copy(&self, from: Slice<'_>, to: SliceMut<'_>) -> Result<(), BufferError>;

    /// Combines what ranks contribute, in rank order, in the queue of exchanges.
    ///
    /// # Errors
    /// As [`SharedDevice::copy`]; or if there are more ranks than the device takes.
    fn reduce(
        &self,
        op: ReduceOp,
        contributions: &[Slice<'_>],
        to: SliceMut<'_>,
    ) -> Result<(), BufferError>;

    /// The point behind all exchanges so far.
    ///
    /// # Errors
    /// If the device does not take it.
    fn end(&self) -> Result<Mark, BufferError>;
}

/// A buffer that a rank has handed in. On a device it knows what its exchange must come behind, and its rank's queue
/// behind that: whoever opens or drops it lets that queue wait.
#[derive(Debug)]
pub(crate) struct Parcel {
    /// `None` once it is opened.
    buf: Option<Buf>,
    device: Option<Arc<dyn SharedDevice>>,
    behind: Option<Mark>,
    after: Option<Mark>,
}

impl Parcel {
    /// A buffer, with what its queue has been given so far.
    pub(crate) fn new(
        buf: Buf,
        device: Option<&Arc<dyn SharedDevice>>,
    ) -> Result<Self, BufferError> {
        let device = device.filter(|_| is_on_device(&buf)).cloned();
        let behind = device.as_ref().map(|device| device.mark(buf.slice())).transpose()?;
        Ok(Self { buf: Some(buf), device, behind, after: None })
    }

    /// Memory that is written and read in the queue of exchanges only, or lies on the host.
    pub(crate) fn plain(buf: Buf) -> Self {
        Self { buf: Some(buf), device: None, behind: None, after: None }
    }

    /// Lets the buffer's queue wait for what has been done to it, if it does not yet.
    pub(crate) fn let_queue_wait(&mut self) -> Result<(), BufferError> {
        match (&self.device, &self.buf, self.after.take()) {
            (Some(device), Some(buf), Some(after)) => device.follow(buf.slice(), &after),
            _ => Ok(()),
        }
    }

    /// The buffer; what its queue is given from now on sees the results.
    pub(crate) fn open(mut self) -> Result<Buf, BufferError> {
        self.let_queue_wait()?;
        Ok(self.buf.take().expect("invariant: a parcel is opened once"))
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        // Its memory goes back in the order of its queue. A failure can be told to nobody.
        let _ = self.let_queue_wait();
    }
}

impl Deref for Parcel {
    type Target = Buf;

    fn deref(&self) -> &Buf {
        self.buf.as_ref().expect("invariant: a parcel is opened once")
    }
}

impl DerefMut for Parcel {
    fn deref_mut(&mut self) -> &mut Buf {
        self.buf.as_mut().expect("invariant: a parcel is opened once")
    }
}

/// One rank's buffers.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    pub(crate) send: Option<Parcel>,
    pub(crate) recv: Option<Parcel>,
}

impl Payload {
    /// The buffers, as [`Parcel::open`].
    pub(crate) fn open(self) -> Result<Done, BufferError> {
        let open = |parcel: Option<Parcel>| parcel.map(Parcel::open).transpose();
        Ok(Done { send: open(self.send)?, recv: open(self.recv)? })
    }

    /// Whether a queue has to wait for what the buffers hold.
    pub(crate) fn is_on_device(&self) -> bool {
        self.send.iter().chain(&self.recv).any(|parcel| parcel.device.is_some())
    }
}

/// Whether a buffer lies on a device.
pub(crate) fn is_on_device(buf: &Buf) -> bool {
    matches!(buf.slice(), Slice::Device(_))
}

/// The device of what is exchanged; `None` on the host.
fn device_of<'a>(parcels: impl Iterator<Item = &'a Parcel>) -> Option<Arc<dyn SharedDevice>> {
    parcels.filter_map(|parcel| parcel.device.clone()).next()
}

/// Queues an exchange between what the parcels' queues have been given and what they will be.
fn queue(
    device: &Arc<dyn SharedDevice>,
    parcels: &mut [&mut Parcel],
    work: impl FnOnce(&mut [&mut Parcel]) -> Result<(), BufferError>,
) -> Result<(), BufferError> {
    for behind in parcels.iter().filter_map(|parcel| parcel.behind.as_ref()) {
        device.begin(behind)?;
    }
    let done = work(parcels);
    // What is queued already is waited for, also where something has failed.
    let end = device.end()?;
    for parcel in parcels {
        parcel.after = Some(end.clone());
    }
    done
}

/// A message: on the host at once, on a device in the queue of exchanges.
pub(crate) fn copy(send: &mut Parcel, recv: &mut Parcel) -> Result<(), BufferError> {
    let Some(device) = device_of([&*send, &*recv].into_iter()) else {
        return recv.slice_mut().copy_from(send.slice());
    };
    queue(&device, &mut [send, recv], |parcels| match parcels {
        [send, recv] => device.copy(send.slice(), recv.slice_mut()),
        _ => Ok(()),
    })
}

/// A copy of a message in memory of the exchanges, so that its sender can go on.
pub(crate) fn staged(
    device: &Arc<dyn SharedDevice>,
    send: &mut Parcel,
) -> Result<Parcel, BufferError> {
    let mut copy = device.pool().alloc(send.dtype(), send.len())?;
    queue(device, &mut [send], |parcels| {
        parcels.iter().try_for_each(|send| device.copy(send.slice(), copy.slice_mut()))
    })?;
    Ok(Parcel { buf: Some(copy), device: Some(device.clone()), behind: None, after: None })
}

/// Queues a collective whose buffers lie on a device; `None` if they do not.
pub(crate) fn execute(
    operation: Operation,
    payloads: &mut [Payload],
) -> Option<Result<(), BufferError>> {
    let device = device_of(payloads.iter().flat_map(|own| own.send.iter().chain(&own.recv)))?;
    let (mut sends, mut recvs) = (Vec::new(), Vec::new());
    for Payload { send, recv } in payloads {
        sends.extend(send);
        recvs.extend(recv);
    }
    let count = sends.len();
    let mut all: Vec<&mut Parcel> = sends.into_iter().chain(recvs).collect();
    Some(queue(&device, &mut all, |all| {
        let (sends, recvs) = all.split_at_mut(count);
        collective(&*device, operation, sends, recvs)
    }))
}

/// The copies and reductions of a collective; every rank's buffers in rank order.
fn collective(
    device: &dyn SharedDevice,
    operation: Operation,
    sends: &mut [&mut Parcel],
    recvs: &mut [&mut Parcel],
) -> Result<(), BufferError> {
    let ranks = sends.len();
    match operation {
        Operation::AllReduce(op) => {
            let mut result = device.pool().alloc(sends[0].dtype(), sends[0].len())?;
            let contributions: Vec<Slice<'_>> = sends.iter().map(|send| send.slice()).collect();
            device.reduce(op, &contributions, result.slice_mut())?;
            sends.iter_mut().try_for_each(|own| device.copy(result.slice(), own.slice_mut()))
        }
        Operation::Broadcast { root } => {
            let (before, rest) = sends.split_at_mut(root);
            let Some((source, after)) = rest.split_first_mut() else { return Ok(()) };
            let mut others = before.iter_mut().chain(after);
            others.try_for_each(|own| device.copy(source.slice(), own.slice_mut()))
        }
        Operation::ReduceScatter(op) => recvs.iter_mut().enumerate().try_for_each(|(rank, out)| {
            let part = rank * out.len()..(rank + 1) * out.len();
            let contributions: Result<Vec<_>, _> =
                sends.iter().map(|send| send.slice().range(part.clone())).collect();
            device.reduce(op, &contributions?, out.slice_mut())
        }),
        Operation::AllGather | Operation::AllToAll => {
            let each = recvs.first().map_or(0, |recv| recv.len() / ranks);
            for (rank, out) in recvs.iter_mut().enumerate() {
                let start = if operation == Operation::AllGather { 0 } else { rank * each };
                for (from, send) in sends.iter().enumerate() {
                    let to = out.slice_mut().range(from * each..(from + 1) * each)?;
                    device.copy(send.slice().range(start..start + each)?, to)?;
                }
            }
            Ok(())
        }
        // Messages are no collectives, and a barrier has no elements.
        Operation::Send { .. }
        | Operation::Recv { .. }
        | Operation::Exchange { .. }
        | Operation::Barrier => Ok(()),
    }
}
