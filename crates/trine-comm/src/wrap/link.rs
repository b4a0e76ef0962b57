//! A slow link between ranks that are threads: when results would be there on a network.

use super::Wrapper;
use crate::{CommError, Communicator, Done, Group, Name, Operation, Pending, Progress, Request};
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bandwidth and latency of a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkSpeed {
    /// Bytes per second, each way.
    pub bytes_per_s: f64,
    /// From the last byte sent to its arrival.
    pub latency: Duration,
}

impl LinkSpeed {
    /// How long a collective of `ranks` ranks takes, of which each contributes `bytes`, by the ring
    /// algorithms (Patarasuk & Yuan, 2009): a reduce-scatter or a gather of all parts moves
    /// (n − 1) / n of the whole in n − 1 hops, an all-reduce twice that.
    fn time(&self, operation: Operation, ranks: usize, bytes: usize) -> Duration {
        let (n, hops) = (ranks as f64, ranks.saturating_sub(1) as f64);
        let (bytes, hops) = match operation {
            Operation::Send { .. } | Operation::Recv { .. } | Operation::Exchange { .. } => {
                (bytes as f64, 1.0)
            }
            Operation::AllReduce(_) => (2.0 * bytes as f64 * hops / n, 2.0 * hops),
            Operation::ReduceScatter(_) | Operation::AllToAll => (bytes as f64 * hops / n, hops),
            // Here a rank contributes its part only.
            Operation::AllGather => (bytes as f64 * hops, hops),
            Operation::Broadcast { .. } | Operation::Barrier => (bytes as f64, hops),
        };
        Duration::from_secs_f64(bytes / self.bytes_per_s) + self.latency.mul_f64(hops)
    }
}

/// What collectives took on a link, summed over a rank's operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkTime {
    /// Operations.
    pub operations: u64,
    /// Time that the link was busy with them.
    pub transfer: Duration,
    /// The part of it after every rank of the group had posted its last collective and begun to wait:
    /// what is left when there is nothing more to hide it under. Work between two waits does not count
    /// as such.
    pub exposed: Duration,
    /// How long the rank waited for them in all: for the link, or for ranks that came later than it
    /// did and that no link makes faster.
    pub waited: Duration,
}

impl LinkTime {
    /// The part of the transfers during which a rank of the group still worked on what comes next.
    pub fn hidden(&self) -> f64 {
        1.0 - self.exposed.as_secs_f64() / self.transfer.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl std::iter::Sum for LinkTime {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            operations: sum.operations + one.operations,
            transfer: sum.transfer + one.transfer,
            exposed: sum.exposed + one.exposed,
            waited: sum.waited + one.waited,
        })
    }
}

/// A link that all ranks of a world of threads share: the collectives of each group go over it one
/// after the other, from the moment when the last rank has come. Messages are not slowed down.
#[derive(Debug, Clone)]
pub struct Link(Arc<State>);

#[derive(Debug)]
struct State {
    speed: LinkSpeed,
    groups: Mutex<HashMap<Group, Traffic>>,
    /// A collective has come onto its link.
    began: Condvar,
    times: Mutex<HashMap<(usize, Name), LinkTime>>,
}

/// The collectives of one group, as seen by its first member.
#[derive(Debug, Default)]
struct Traffic {
    free_at: Option<Instant>,
    /// By number.
    under_way: HashMap<u64, UnderWay>,
    /// World ranks that have posted nothing since they waited, and since when.
    idle: HashMap<usize, Instant>,
}

/// One collective.
#[derive(Debug, Default)]
struct UnderWay {
    /// Ranks that have come, and those of them that have gone.
    arrived: usize,
    left: usize,
    /// Once all have come: when it is on the link.
    on_link: Option<Range<Instant>>,
    /// Who has waited for it.
    waits: Vec<Wait>,
}

/// A rank that waits for a collective.
#[derive(Debug, Clone, Copy)]
struct Wait {
    /// World rank.
    rank: usize,
    since: Instant,
    /// Since when it has only waited, for this one or for earlier ones, and posted nothing.
    idle_since: Instant,
}

impl UnderWay {
    /// What it took, by rank, when all are gone.
    fn times(&self) -> impl Iterator<Item = (usize, LinkTime)> + '_ {
        let last = self.waits.iter().map(|wait| wait.idle_since).max();
        let parts = self.on_link.as_ref().zip(last).into_iter();
        parts.flat_map(move |(Range { start, end }, last)| {
            self.waits.iter().map(move |wait| {
                let time = LinkTime {
                    operations: 1,
                    transfer: *end - *start,
                    exposed: end.saturating_duration_since(last.max(*start)),
                    waited: end.saturating_duration_since(wait.since),
                };
                (wait.rank, time)
            })
        })
    }
}

impl Link {
    /// A link of this speed.
    pub fn new(speed: LinkSpeed) -> Self {
        let (groups, began, times) = Default::default();
        Self(Arc::new(State { speed, groups, began, times }))
    }

    /// A rank's communicator, over the link.
    pub fn around(&self, inner: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        Arc::new(Linked { inner, link: self.0.clone(), count: AtomicU64::new(0) })
    }

    /// What the collectives with this label took on the world rank `rank`, by their names.
    pub fn times(&self, rank: usize, label: &str) -> Vec<(Name, LinkTime)> {
        let times = lock(&self.0.times);
        let of_rank = times.iter().filter(|((of, name), _)| *of == rank && name.label() == label);
        of_rank.map(|((_, name), time)| (*name, *time)).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Linked {
    inner: Arc<dyn Communicator>,
    link: Arc<State>,
    count: AtomicU64,
}

impl fmt::Debug for Linked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linked({:?})", self.inner)
    }
}

impl State {
    /// The group as a key that is the same for all its members.
    fn key(group: &Group) -> Group {
        group.seen_by(0).expect("invariant: a group has a first rank")
    }

    /// A rank has come to a collective; the last one starts the transfer, after it has done in memory
    /// what the network would have: that work hides nothing.
    fn arrive(&self, group: &Group, number: u64, transfer: Duration) {
        let mut groups = lock(&self.groups);
        let traffic = groups.entry(Self::key(group)).or_default();
        traffic.idle.remove(&group.world_rank());
        let under_way = traffic.under_way.entry(number).or_default();
        under_way.arrived += 1;
        if under_way.arrived == group.size() {
            let now = Instant::now();
            let start = traffic.free_at.map_or(now, |free| free.max(now));
            let end = start + transfer;
            (under_way.on_link, traffic.free_at) = (Some(start..end), Some(end));
            self.began.notify_all();
        }
    }

    /// A rank has a collective in memory; when it is over on the link. Each rank leaves once, and says
    /// since when it has waited, if it has. The last one adds up what it took.
    fn leave(
        &self,
        group: &Group,
        number: u64,
        name: Name,
        since: Option<Instant>,
    ) -> Option<Instant> {
        let key = Self::key(group);
        let mut groups = lock(&self.groups);
        // Over in memory, so the last rank is about to put it onto the link.
        let is_coming = |groups: &mut HashMap<Group, Traffic>| {
            let found = groups.get(&key).and_then(|traffic| traffic.under_way.get(&number));
            since.is_some() && found.is_some_and(|under_way| under_way.on_link.is_none())
        };
        groups = self.began.wait_while(groups, is_coming).unwrap_or_else(PoisonError::into_inner);
        let traffic = groups.get_mut(&key)?;
        let under_way = traffic.under_way.get_mut(&number)?;
        let end = under_way.on_link.as_ref().map(|on_link| on_link.end);
        if let Some(since) = since {
            let rank = group.world_rank();
            let idle_since = *traffic.idle.entry(rank).or_insert(since);
            under_way.waits.push(Wait { rank, since, idle_since });
        }
        under_way.left += 1;
        if under_way.left == group.size()
            && let Some(over) = traffic.under_way.remove(&number)
        {
            let mut times = lock(&self.times);
            for (rank, time) in over.times() {
                let sum = times.entry((rank, name)).or_default();
                *sum = [*sum, time].into_iter().sum();
            }
        }
        end
    }
}

impl Wrapper for Linked {
    fn inner(&self) -> &Arc<dyn Communicator> {
        &self.inner
    }

    fn forward(&self, request: Request) -> Result<Pending, CommError> {
        let (operation, name) = (request.operation, request.name);
        if self.group().size() == 1 || operation.peers().is_some() {
            return self.inner.start(request);
        }
        let bytes = request.send.as_ref().map_or(0, trine_buffer::Buf::size_bytes);
        let transfer = self.link.speed.time(operation, self.group().size(), bytes);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let inner = Some(self.inner.start(request)?);
        self.link.arrive(self.group(), number, transfer);
        let (link, group) = (self.link.clone(), self.group().clone());
        let slow = Slow { inner, link, group, number, name };
        Ok(Pending::started(Box::new(slow)))
    }

    fn in_front_of(&self, subgroup: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        let (inner, link) = (subgroup, self.link.clone());
        Arc::new(Self { inner, link, count: AtomicU64::new(0) })
    }
}

/// A collective on the link.
struct Slow {
    inner: Option<Pending>,
    link: Arc<State>,
    group: Group,
    number: u64,
    name: Name,
}

impl Progress for Slow {
    fn is_done(&self) -> bool {
        let groups = lock(&self.link.groups);
        let traffic = groups.get(&State::key(&self.group));
        let on_link = traffic.and_then(|all| all.under_way.get(&self.number)?.on_link.as_ref());
        on_link.is_some_and(|on_link| on_link.end <= Instant::now())
            && self.inner.as_ref().is_some_and(Pending::is_done)
    }

    fn wait(mut self: Box<Self>) -> Result<Done, CommError> {
        let since = Instant::now();
        let Some(inner) = self.inner.take() else { return Ok(Done::default()) };
        let done = inner.wait()?;
        if let Some(over) = self.link.leave(&self.group, self.number, self.name, Some(since)) {
            std::thread::sleep(over.saturating_duration_since(Instant::now()));
        }
        Ok(done)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        // Not waited for: nobody asks when it is over.
        if self.inner.is_some() {
            self.link.leave(&self.group, self.number, self.name, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ReduceOp, threads};
    use trine_buffer::Buf;

    const MIB: usize = 1 << 20;

    fn speed(bytes_per_s: f64, latency_us: u64) -> LinkSpeed {
        LinkSpeed { bytes_per_s, latency: Duration::from_micros(latency_us) }
    }

    #[test]
    fn ring_algorithms_take_their_time() {
        let speed = speed(1e6, 100);
        let micros = |operation, ranks, bytes| speed.time(operation, ranks, bytes).as_micros();
        let sum = ReduceOp::Sum;
        assert_eq!(micros(Operation::AllReduce(sum), 2, 1000), 1000 + 200);
        assert_eq!(micros(Operation::AllReduce(sum), 4, 1000), 1500 + 600);
        assert_eq!(micros(Operation::ReduceScatter(sum), 4, 1000), 750 + 300);
        assert_eq!(micros(Operation::AllGather, 4, 250), 750 + 300);
        assert_eq!(micros(Operation::Barrier, 2, 0), 100);
    }

    #[test]
    fn transfers_queue_up_and_what_is_hidden_is_counted() {
        let link = Link::new(speed(100e6, 50));
        let began = Instant::now();
        let sums = threads::run(2, &Default::default(), |comm| {
            let comm = link.around(comm);
            let post = |value: f32| {
                let buf = Buf::from_vec(vec![value; MIB / 4]);
                comm.post_all_reduce(buf, ReduceOp::Sum, Name::new("grad"))
            };
            let pending = [post(1.0)?, post(2.0)?, post(3.0)?];
            // As long as the three take: nothing is left to wait for.
            std::thread::sleep(Duration::from_millis(40));
            let mut sums = Vec::new();
            for pending in pending {
                sums.push(pending.wait()?.send.map(|buf| buf.to_f64_vec().unwrap()[7]));
            }
            comm.all_reduce(Buf::from_vec(vec![0f32; MIB / 4]), ReduceOp::Sum, "shown")?;
            comm.barrier("end")?;
            Ok::<_, CommError>(sums)
        });
        assert_eq!(sums.unwrap(), vec![vec![Some(2.0), Some(4.0), Some(6.0)]; 2]);
        assert!(began.elapsed() >= Duration::from_millis(50));
        let of = |rank, label| link.times(rank, label).into_iter().map(|(_, time)| time).sum();
        for rank in 0..2 {
            let (hidden, shown): (LinkTime, LinkTime) = (of(rank, "grad"), of(rank, "shown"));
            assert_eq!((hidden.operations, shown.operations), (3, 1));
            assert_eq!(hidden.transfer, 3 * shown.transfer);
            // How much was hidden depends on the machine; more than all of it never stands out.
            assert!(hidden.exposed <= hidden.transfer && shown.exposed <= shown.transfer);
            assert!((0.0..=1.0).contains(&hidden.hidden()), "{hidden:?}");
        }
        assert!(link.times(0, "other").is_empty());
        assert!(lock(&link.0.groups).values().all(|traffic| traffic.under_way.is_empty()));
    }

    /// A rank that waits while another one computes waits for that one, however fast the link is.
    #[test]
    fn a_late_peer_is_not_the_links_fault() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let check = |since: [u64; 2], idle_since: [u64; 2], exposed: u64, waited: [u64; 2]| {
            let wait = |index: usize, rank| {
                let (since, idle_since) = (at(since[index]), at(idle_since[index]));
                Wait { rank, since, idle_since }
            };
            let waits = vec![wait(0, 4), wait(1, 6)];
            let on_link = Some(at(100)..at(110));
            let under_way = UnderWay { arrived: 2, left: 2, on_link, waits };
            let ms = Duration::from_millis;
            let time = |waited| LinkTime {
                operations: 1,
                transfer: ms(10),
                exposed: ms(exposed),
                waited: ms(waited),
            };
            let times: Vec<_> = under_way.times().collect();
            assert_eq!(times, [(4, time(waited[0])), (6, time(waited[1]))]);
        };
        check([120, 130], [120, 130], 0, [0, 0]); // over before anybody wanted it
        check([50, 104], [50, 104], 6, [60, 6]); // hidden under the second rank's work until 104
        check([107, 60], [107, 60], 3, [3, 50]);
        check([50, 100], [50, 100], 10, [60, 10]); // posted last and waited for at once: it all shows
        // What a rank does between two waits hides nothing.
        check([105, 108], [90, 103], 7, [5, 2]);
        let nobody = UnderWay { on_link: Some(at(1)..at(2)), ..UnderWay::default() };
        assert_eq!(nobody.times().count(), 0);
    }
}
