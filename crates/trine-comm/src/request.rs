//! What a rank asks of its communicator: one operation, its buffers, its name and its call site.

use crate::{CommError, Group, Name, Place};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::Location;
use trine_buffer::{Buf, BufferError, DType, Slice};

/// Where in the source an operation was called.
pub type Site = &'static Location<'static>;

/// How a reducing collective combines the ranks' elements, in the order of
/// [`tree_fold`](crate::tree_fold).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// The sum. bf16 and f16 accumulate in f32 and round once at the end; integers wrap.
    Sum,
    /// The sum, divided by the number of ranks before it is rounded; integers truncate.
    Mean,
    /// The greatest; NaN if any rank has a NaN.
    Max,
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Max => "max",
        })
    }
}

/// An operation. Ranks are indices within the group. Lengths are in elements; `n` is one rank's
/// share and `size` the number of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `send` goes to one rank.
    Send {
        /// The receiver.
        to: usize,
    },
    /// `recv` is filled by one rank.
    Recv {
        /// The sender.
        from: usize,
    },
    /// `send` goes to one rank and `recv` comes from one, posted together: crossing exchanges
    /// cannot block each other. Both may be the calling rank.
    Exchange {
        /// The receiver of `send`.
        to: usize,
        /// The sender of `recv`.
        from: usize,
    },
    /// `send`, in place: every rank's becomes the root's.
    Broadcast {
        /// The rank whose elements go out.
        root: usize,
    },
    /// `send`, in place: every rank's becomes the reduction.
    AllReduce(ReduceOp),
    /// `send` of n elements; `recv` of size × n, in rank order.
    AllGather,
    /// `send` of size × n elements; `recv` of n: the calling rank's part of the reduction.
    ReduceScatter(ReduceOp),
    /// `send` and `recv` of size × n: part i of `send` becomes part (calling rank) of rank i.
    AllToAll,
    /// Nobody leaves before everybody has come.
    Barrier,
}

/// The other ends of a message, as indices within the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peers {
    /// The receiver of what is sent.
    pub to: Option<usize>,
    /// The sender of what is received.
    pub from: Option<usize>,
}

impl Operation {
    /// The operation's name, without ranks.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Send { .. } => "send",
            Self::Recv { .. } => "recv",
            Self::Exchange { .. } => "exchange",
            Self::Broadcast { .. } => "broadcast",
            Self::AllReduce(_) => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter(_) => "reduce_scatter",
            Self::AllToAll => "all_to_all",
            Self::Barrier => "barrier",
        }
    }

    /// The other ends of a message; `None` of a collective.
    pub const fn peers(&self) -> Option<Peers> {
        match *self {
            Self::Send { to } => Some(Peers { to: Some(to), from: None }),
            Self::Recv { from } => Some(Peers { to: None, from: Some(from) }),
            Self::Exchange { to, from } => Some(Peers { to: Some(to), from: Some(from) }),
            Self::Broadcast { .. }
            | Self::AllReduce(_)
            | Self::AllGather
            | Self::ReduceScatter(_)
            | Self::AllToAll
            | Self::Barrier => None,
        }
    }

    /// The operation as errors show it, with world ranks where `group` knows them.
    pub(crate) fn describe(&self, group: &Group, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = |rank: usize| group.ranks().get(rank).copied().unwrap_or(rank);
        f.write_str(self.label())?;
        match self {
            Self::Send { to } => write!(f, "(to rank {})", world(*to)),
            Self::Recv { from } => write!(f, "(from rank {})", world(*from)),
            Self::Exchange { to, from } => {
                write!(f, "(to rank {}, from rank {})", world(*to), world(*from))
            }
            Self::Broadcast { root } => write!(f, "(root rank {})", world(*root)),
            Self::AllReduce(op) | Self::ReduceScatter(op) => write!(f, "({op})"),
            Self::AllGather | Self::AllToAll | Self::Barrier => Ok(()),
        }
    }
}

/// Type and length of one buffer of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Element type.
    pub dtype: DType,
    /// Number of elements.
    pub len: usize,
}

impl Extent {
    /// The extent of a buffer.
    pub fn of(buf: &Buf) -> Self {
        Self { dtype: buf.dtype(), len: buf.len() }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.dtype, self.len)
    }
}

/// One operation with everything it needs. It owns its buffers until it is finished.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// What it is for.
    pub name: Name,
    /// The elements to contribute; the one buffer of the operations that work in place.
    pub send: Option<Buf>,
    /// The buffer to fill, of exactly the incoming length.
    pub recv: Option<Buf>,
    /// Where it was called.
    pub site: Site,
    /// What a rank promises about `send`, where operations are sealed ([`crate::wrap::Sealed`]). A
    /// backend compares it where the elements arrive.
    pub seal: Option<Seal>,
}

/// Number and checksum of what a rank contributes to an operation, made before anything could happen
/// to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seal {
    /// The number of what goes out, as the caller counts: per group for collectives, per ordered
    /// pair of ranks for messages. Ranks must agree; one that was lost or came twice is found by it.
    pub outgoing: u64,
    /// The number of what comes in.
    pub incoming: u64,
    /// xxh3-64 of the bytes of `send`; 0 without.
    pub checksum: u64,
}

impl Seal {
    /// The number that is shown of an operation: what comes in, where something does.
    pub fn number(&self, operation: Operation) -> u64 {
        match operation {
            Operation::Recv { .. } | Operation::Exchange { .. } => self.incoming,
            Operation::Send { .. }
            | Operation::Broadcast { .. }
            | Operation::AllReduce(_)
            | Operation::AllGather
            | Operation::ReduceScatter(_)
            | Operation::AllToAll
            | Operation::Barrier => self.outgoing,
        }
    }

    /// The checksum of what `buf` holds, if that is not what was sealed.
    ///
    /// # Errors
    /// If work of the device has failed.
    pub fn altered(&self, buf: &Buf) -> Result<Option<u64>, BufferError> {
        let found = checksum_of(buf)?;
        Ok((found != self.checksum).then_some(found))
    }
}

/// The checksum of a [`Seal`].
pub fn checksum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// The checksum of a buffer. From a device the host copies it, and waits.
pub(crate) fn checksum_of(buf: &Buf) -> Result<u64, BufferError> {
    match buf.slice() {
        device @ Slice::Device(_) => Ok(checksum(device.to_host()?.slice().bytes()?)),
        host => Ok(checksum(host.bytes()?)),
    }
}

impl Request {
    /// A request without buffers and without a seal.
    pub fn new(operation: Operation, name: impl Into<Name>, site: Site) -> Self {
        Self { operation, name: name.into(), send: None, recv: None, site, seal: None }
    }

    /// Checks everything that one rank can see alone: the peers exist, the buffers are the ones
    /// that the operation takes, and their lengths fit together.
    ///
    /// # Errors
    /// [`CommError::Rank`] or [`CommError::Shape`].
    pub fn check(&self, group: &Group) -> Result<(), CommError> {
        self.check_ranks(group)?;
        let send = self.send.as_ref().map(Extent::of);
        let recv = self.recv.as_ref().map(Extent::of);
        let size = group.size();
        let wanted = match (self.operation, send, recv) {
            (Operation::Send { .. }, Some(_), None)
            | (Operation::Recv { .. }, None, Some(_))
            | (Operation::Broadcast { .. } | Operation::AllReduce(_), Some(_), None)
            | (Operation::Barrier, None, None) => return Ok(()),
            (Operation::Exchange { to, .. }, Some(s), Some(r)) => {
                // Only a rank that exchanges with itself sees both ends.
                if to != group.rank() || s == r {
                    return Ok(());
                }
                format!("send and recv alike for an exchange with itself, such as {s}")
            }
            (Operation::AllGather, Some(s), Some(r)) => {
                let fit = Extent { len: s.len * size, ..s };
                if fit == r {
                    return Ok(());
                }
                format!("recv {fit} for send {s}")
            }
            (Operation::ReduceScatter(_), Some(s), Some(r)) => {
                let fit = Extent { len: r.len * size, ..r };
                if fit == s {
                    return Ok(());
                }
                format!("send {fit} for recv {r}")
            }
            (Operation::AllToAll, Some(s), Some(r)) => {
                if s == r && s.len.is_multiple_of(size) {
                    return Ok(());
                }
                let fit = Extent { len: s.len / size * size, ..s };
                format!("send and recv alike, a multiple of {size} long, such as {fit}")
            }
            (Operation::Send { .. } | Operation::Broadcast { .. }, _, _)
            | (Operation::AllReduce(_), _, _) => "a send buffer only".to_owned(),
            (Operation::Recv { .. }, _, _) => "a recv buffer only".to_owned(),
            (Operation::Barrier, _, _) => "no buffer".to_owned(),
            (Operation::Exchange { .. } | Operation::AllGather, _, _)
            | (Operation::ReduceScatter(_) | Operation::AllToAll, _, _) => {
                "a send and a recv buffer".to_owned()
            }
        };
        let show = |extent: Option<Extent>| extent.map_or("none".to_owned(), |e| e.to_string());
        Err(CommError::Shape {
            call: Box::new(self.call(group, 0)),
            given: format!("send {}, recv {}", show(send), show(recv)),
            wanted,
        })
    }

    fn check_ranks(&self, group: &Group) -> Result<(), CommError> {
        let (own, size) = (group.rank(), group.size());
        let refuse = |rank: usize, wanted: String| {
            Err(CommError::Rank { call: Box::new(self.call(group, 0)), rank, wanted })
        };
        let outside = |rank: usize| refuse(rank, format!("0..{size}"));
        match self.operation {
            Operation::Send { to: rank }
            | Operation::Recv { from: rank }
            | Operation::Broadcast { root: rank }
                if rank >= size =>
            {
                outside(rank)
            }
            Operation::Exchange { to, from } if to >= size || from >= size => {
                outside(if to >= size { to } else { from })
            }
            Operation::Send { to: rank } | Operation::Recv { from: rank } if rank == own => refuse(
                rank,
                "another rank; use exchange where a rank may be its own peer".to_owned(),
            ),
            Operation::Exchange { to, from } if (to == own) != (from == own) => {
                refuse(own, "itself for both directions or for neither".to_owned())
            }
            Operation::Send { .. }
            | Operation::Recv { .. }
            | Operation::Exchange { .. }
            | Operation::Broadcast { .. }
            | Operation::AllReduce(_)
            | Operation::AllGather
            | Operation::ReduceScatter(_)
            | Operation::AllToAll
            | Operation::Barrier => Ok(()),
        }
    }

    /// The request as errors show it.
    pub fn call(&self, group: &Group, sequence: u64) -> Call {
        Call {
            rank: group.world_rank(),
            operation: self.operation,
            name: self.name,
            sequence,
            send: self.send.as_ref().map(Extent::of),
            recv: self.recv.as_ref().map(Extent::of),
            group: group.clone(),
            site: self.site,
            sealed: self.seal.map(|seal| seal.number(self.operation)),
            place: Place::default(),
        }
    }
}

/// One rank's side of an operation, as errors show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// World rank of the caller.
    pub rank: usize,
    /// What it called, with ranks as indices within the group.
    pub operation: Operation,
    /// The operation's name.
    pub name: Name,
    /// Its number: per group for collectives, per ordered pair of ranks for messages.
    pub sequence: u64,
    /// What it contributes.
    pub send: Option<Extent>,
    /// What it wants to receive.
    pub recv: Option<Extent>,
    /// The group.
    pub group: Group,
    /// The call site.
    pub site: Site,
    /// The number under which its caller has sealed it, if it has.
    pub sealed: Option<u64>,
    /// Where in the run the rank was.
    pub place: Place,
}

impl Call {
    /// The call without its rank and place.
    pub fn text(&self) -> String {
        struct Text<'a>(&'a Call);
        impl fmt::Display for Text<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.describe(f)
            }
        }
        Text(self).to_string()
    }

    /// What the ranks that meet in an operation must agree on, as a number: the operation, its name, and the extents
    /// that must be alike; of a message its name and its own extent, `message`. Sealed operations agree on their number
    /// too. The same program runs on all ranks, so the same hash does.
    pub fn signature(&self, message: Option<Extent>, sealed: Option<u64>) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.name, sealed).hash(&mut hasher);
        match self.operation.peers() {
            Some(_) => message.hash(&mut hasher),
            None => (self.operation, self.send, self.recv).hash(&mut hasher),
        }
        hasher.finish()
    }

    /// World ranks of all others that take part.
    pub fn others(&self) -> Vec<usize> {
        let world = |member: usize| self.group.ranks()[member];
        let mut others: Vec<usize> = match self.operation.peers() {
            Some(Peers { to, from }) => to.into_iter().chain(from).map(world).collect(),
            None => self.group.ranks().to_vec(),
        };
        others.retain(|rank| *rank != self.rank);
        others.dedup();
        others
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.operation.describe(&self.group, f)?;
        write!(f, " \"{}\" #{}", self.name, self.sequence)?;
        match (self.send, self.recv) {
            (Some(send), Some(recv)) => write!(f, ", sends {send}, receives {recv}")?,
            (Some(one), None) | (None, Some(one)) => write!(f, ", {one}")?,
            (None, None) => {}
        }
        if let Some(number) = self.sealed.filter(|number| *number != self.sequence) {
            write!(f, ", sealed as #{number}")?;
        }
        write!(f, ", group {}, at {}", self.group, self.site)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} in ", self.rank)?;
        self.describe(f)?;
        if self.place.is_empty() { Ok(()) } else { write!(f, ", in {}", self.place) }
    }
}
