//! Which bytes go where in an operation: a pure function, looked at by the tests and carried out by
//! the engine.
//!
//! Every collective is one or two rounds of messages between pairs. A reduction divides the
//! elements among the ranks, each of which gathers all contributions to its share, adds them in the
//! order of [`trine_comm::tree_fold`], and sends the result to everybody: 2 (p − 1) / p times the
//! buffer in and out of each rank, as a ring does, but with a stated order. A short one is left to
//! the first rank alone: fewer messages.

use std::ops::Range;
use trine_comm::{Extent, Operation, ReduceOp};

/// Reductions up to this size are gathered by one rank: below it a message costs more than its bytes.
const WHOLE_BYTES_MAX: usize = 16 << 10;

/// Which memory of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The request's `send` buffer.
    Send = 0,
    /// The request's `recv` buffer.
    Recv = 1,
    /// Contributions on their way to be reduced, rank after rank.
    Scratch = 2,
}

/// Bytes of one memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) place: Place,
    pub(crate) bytes: Range<usize>,
}

/// A message to or from the group's rank `peer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) peer: usize,
    pub(crate) part: Part,
}

/// The scratch, reduced into `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reduce {
    pub(crate) op: ReduceOp,
    pub(crate) to: Part,
}

/// What happens before anything of the next round does: copies, messages, a reduction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Round {
    pub(crate) copy: Option<(Part, Part)>,
    pub(crate) sends: Vec<Transfer>,
    pub(crate) recvs: Vec<Transfer>,
    pub(crate) reduce: Option<Reduce>,
}

/// One rank's side of an operation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Elements of the scratch, of the type of the operation.
    pub(crate) scratch_len: usize,
    pub(crate) rounds: Vec<Round>,
}

fn part(place: Place, bytes: Range<usize>) -> Part {
    Part { place, bytes }
}

fn to(peer: usize, place: Place, bytes: Range<usize>) -> Transfer {
    Transfer { peer, part: part(place, bytes) }
}

/// The group as one of its ranks sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seat {
    pub(crate) rank: usize,
    pub(crate) size: usize,
}

impl Seat {
    fn others(self) -> impl Iterator<Item = usize> {
        (0..self.size).filter(move |peer| *peer != self.rank)
    }

    /// The `index`-th of equal parts of `len` bytes.
    fn slot(len: usize, index: usize) -> Range<usize> {
        index * len..(index + 1) * len
    }

    /// What this rank does in `operation`; `send` and `recv` have passed
    /// [`trine_comm::Request::check`].
    pub(crate) fn plan(
        self,
        operation: Operation,
        send: Option<Extent>,
        recv: Option<Extent>,
    ) -> Plan {
        let bytes = |extent: Option<Extent>| extent.map_or(0, |e| e.len * e.dtype.bytes());
        let (sent, received) = (bytes(send), bytes(recv));
        let element = send.map_or(1, |extent| extent.dtype.bytes());
        let one = |round: Round| Plan { scratch_len: 0, rounds: vec![round] };
        match operation {
            Operation::Send { to: peer } => one(self.message(Some((peer, sent)), None)),
            Operation::Recv { from } => one(self.message(None, Some((from, received)))),
            Operation::Exchange { to: peer, from } => {
                one(self.message(Some((peer, sent)), Some((from, received))))
            }
            Operation::Broadcast { root } => one(self.broadcast(root, sent)),
            Operation::AllGather => one(Round {
                sends: self.others().map(|peer| to(peer, Place::Send, 0..sent)).collect(),
                ..self.gather(Place::Recv, sent, part(Place::Send, 0..sent))
            }),
            Operation::AllToAll => {
                let each = sent / self.size;
                let part_of = |peer| to(peer, Place::Send, Self::slot(each, peer));
                let own = part(Place::Send, Self::slot(each, self.rank));
                let sends = self.others().map(part_of).collect();
                one(Round { sends, ..self.gather(Place::Recv, each, own) })
            }
            Operation::ReduceScatter(op) => {
                let part_of = |peer| to(peer, Place::Send, Self::slot(received, peer));
                let own = part(Place::Send, Self::slot(received, self.rank));
                let round = Round {
                    sends: self.others().map(part_of).collect(),
                    reduce: Some(Reduce { op, to: part(Place::Recv, 0..received) }),
                    ..self.gather(Place::Scratch, received, own)
                };
                Plan { scratch_len: sent / element, rounds: vec![round] }
            }
            Operation::AllReduce(op) => self.all_reduce(Some(op), sent, element),
            Operation::Barrier => self.all_reduce(None, 0, element),
        }
    }

    fn message(self, send: Option<(usize, usize)>, recv: Option<(usize, usize)>) -> Round {
        if let Some(((peer, len), _)) = send.zip(recv)
            && peer == self.rank
        {
            let copy = Some((part(Place::Send, 0..len), part(Place::Recv, 0..len)));
            return Round { copy, ..Round::default() };
        }
        let one = |place| move |(peer, len)| to(peer, place, 0..len);
        Round {
            sends: send.into_iter().map(one(Place::Send)).collect(),
            recvs: recv.into_iter().map(one(Place::Recv)).collect(),
            ..Round::default()
        }
    }

    /// Everybody reports to the root too, with no bytes: a rank that thinks of another root, or of
    /// another operation, is found out.
    fn broadcast(self, root: usize, len: usize) -> Round {
        let (out, back) = (0..len, 0..0);
        let (sends, recvs) = if self.rank == root { (out, back) } else { (back, out) };
        let peers: Vec<usize> =
            if self.rank == root { self.others().collect() } else { vec![root] };
        let all = |bytes: Range<usize>| {
            peers.iter().map(|peer| to(*peer, Place::Send, bytes.clone())).collect()
        };
        Round { sends: all(sends), recvs: all(recvs), ..Round::default() }
    }

    /// A part of `each` bytes from every rank, the own one copied from `own`, rank after rank.
    fn gather(self, place: Place, each: usize, own: Part) -> Round {
        let slot = |rank| Self::slot(each, rank);
        Round {
            copy: Some((own, part(place, slot(self.rank)))),
            recvs: self.others().map(|peer| to(peer, place, slot(peer))).collect(),
            ..Round::default()
        }
    }

    /// A barrier is a reduction of nothing.
    fn all_reduce(self, op: Option<ReduceOp>, len: usize, element: usize) -> Plan {
        let shares = shares(len, element, self.size);
        let own = shares.iter().find(|(owner, _)| *owner == self.rank).map(|(_, share)| share);
        let others = shares.iter().filter(|(owner, _)| *owner != self.rank);
        let send_parts =
            others.clone().map(|(owner, share)| to(*owner, Place::Send, share.clone()));
        let sends = send_parts.collect::<Vec<_>>();
        let mut contribute = Round { sends: sends.clone(), ..Round::default() };
        // What went out as a contribution comes back as the result.
        let mut spread = Round { recvs: sends, ..Round::default() };
        let mut scratch_len = 0;
        if let Some(share) = own {
            let gather = self.gather(Place::Scratch, share.len(), part(Place::Send, share.clone()));
            (contribute.copy, contribute.recvs) = (gather.copy, gather.recvs);
            contribute.reduce = op.map(|op| Reduce { op, to: part(Place::Send, share.clone()) });
            spread.sends = self.others().map(|peer| to(peer, Place::Send, share.clone())).collect();
            scratch_len = share.len() / element * self.size;
        }
        Plan { scratch_len, rounds: vec![contribute, spread] }
    }
}

/// Who reduces which bytes of a buffer of `len`: every rank an even share, or the first one all.
fn shares(len: usize, element: usize, size: usize) -> Vec<(usize, Range<usize>)> {
    if len <= WHOLE_BYTES_MAX {
        return vec![(0, 0..len)];
    }
    let bound = |index: usize| len / element * index / size * element;
    let share = |owner: usize| (owner, bound(owner)..bound(owner + 1));
    (0..size).map(share).filter(|(_, share)| !share.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, VecDeque};
    use trine_buffer::{Buf, DType};

    /// All ranks of a group, carried out round by round in one thread.
    fn simulate(operation: Operation, sends: &[Vec<u8>], recv_len: Option<usize>) -> Vec<Vec<u8>> {
        let size = sends.len();
        let extent = |len: usize| Extent { dtype: DType::U8, len };
        let has_send = operation != Operation::Barrier;
        let plans: Vec<Plan> = (0..size)
            .map(|rank| {
                let send = has_send.then(|| extent(sends[rank].len()));
                Seat { rank, size }.plan(operation, send, recv_len.map(extent))
            })
            .collect();
        let mut memories: Vec<[Vec<u8>; 3]> = (0..size)
            .map(|rank| {
                let recv = vec![0; recv_len.unwrap_or(0)];
                [sends[rank].clone(), recv, vec![0; plans[rank].scratch_len]]
            })
            .collect();
        for at in 0..plans[0].rounds.len() {
            let mut mail: HashMap<(usize, usize), VecDeque<Vec<u8>>> = HashMap::new();
            for (rank, plan) in plans.iter().enumerate() {
                let round = &plan.rounds[at];
                if let Some((from, to)) = &round.copy {
                    let bytes = memories[rank][from.place as usize][from.bytes.clone()].to_vec();
                    memories[rank][to.place as usize][to.bytes.clone()].copy_from_slice(&bytes);
                }
                for send in &round.sends {
                    let bytes = &memories[rank][send.part.place as usize][send.part.bytes.clone()];
                    mail.entry((rank, send.peer)).or_default().push_back(bytes.to_vec());
                }
            }
            for (rank, plan) in plans.iter().enumerate() {
                for recv in &plan.rounds[at].recvs {
                    let bytes = mail.get_mut(&(recv.peer, rank)).unwrap().pop_front().unwrap();
                    let into = &mut memories[rank][recv.part.place as usize];
                    into[recv.part.bytes.clone()].copy_from_slice(&bytes);
                }
                if let Some(Reduce { op, to }) = &plan.rounds[at].reduce {
                    let all = memories[rank][Place::Scratch as usize].clone();
                    let mut out = Buf::from_vec(vec![0u8; to.bytes.len()]);
                    let all = Buf::from_vec(all);
                    trine_comm::reduce(*op, all.slice(), out.slice_mut()).unwrap();
                    let out = out.into_vec::<u8>().unwrap();
                    memories[rank][to.place as usize][to.bytes.clone()].copy_from_slice(&out);
                }
            }
            let left: usize = mail.values().map(VecDeque::len).sum();
            assert_eq!(left, 0, "{operation:?}: messages that nobody takes");
        }
        memories
            .into_iter()
            .map(|[send, recv, _]| if recv_len.is_some() { recv } else { send })
            .collect()
    }

    #[test]
    fn every_operation_moves_every_byte_to_its_place() {
        let mut checked = 0;
        for size in 1..=9usize {
            for each in [0usize, 1, 5, WHOLE_BYTES_MAX, WHOLE_BYTES_MAX + 3] {
                let data = |len: usize| -> Vec<Vec<u8>> {
                    (0..size)
                        .map(|r| (0..len).map(|i| (i * 31 + r * 7 + i / 251) as u8).collect())
                        .collect()
                };
                let sum = |all: &[Vec<u8>]| -> Vec<u8> {
                    let of = |at: usize| all.iter().fold(0u8, |sum, one| sum.wrapping_add(one[at]));
                    (0..all[0].len()).map(of).collect()
                };
                let (short, long) = (data(each), data(each * size));
                let all_reduced = simulate(Operation::AllReduce(ReduceOp::Sum), &short, None);
                assert_eq!(all_reduced, vec![sum(&short); size]);
                let root = size - 1;
                let spread = simulate(Operation::Broadcast { root }, &short, None);
                assert_eq!(spread, vec![short[root].clone(); size]);
                let gathered = simulate(Operation::AllGather, &short, Some(each * size));
                assert_eq!(gathered, vec![short.concat(); size]);
                let scattered =
                    simulate(Operation::ReduceScatter(ReduceOp::Sum), &long, Some(each));
                assert_eq!(scattered.concat(), sum(&long));
                let turned = simulate(Operation::AllToAll, &long, Some(each * size));
                for (rank, got) in turned.iter().enumerate() {
                    let part = |from: usize| long[from][Seat::slot(each, rank)].to_vec();
                    assert_eq!(*got, (0..size).flat_map(part).collect::<Vec<_>>());
                }
                checked += 5;
            }
        }
        assert_eq!(checked, 9 * 5 * 5);
    }

    #[test]
    fn nobody_leaves_a_barrier_without_a_word_from_everybody() {
        for size in 2..=9 {
            let first = Seat { rank: 0, size }.plan(Operation::Barrier, None, None);
            assert_eq!(first.rounds[0].recvs.len(), size - 1);
            assert_eq!(first.rounds[1].sends.len(), size - 1);
            let last = Seat { rank: size - 1, size }.plan(Operation::Barrier, None, None);
            assert_eq!(last.rounds[1].recvs[0].peer, 0);
        }
    }

    /// No element may be cut in two, or it would be added in halves.
    #[test]
    fn shares_are_whole_elements_and_cover_the_buffer() {
        for size in 1..=9 {
            let len = (WHOLE_BYTES_MAX / 8 + 13) * 8;
            let shares = shares(len, 8, size);
            assert_eq!(shares.len(), size);
            let mut next = 0;
            for (_, share) in &shares {
                assert_eq!((share.start, share.len() % 8), (next, 0));
                next = share.end;
            }
            assert_eq!(next, len);
        }
    }
}
