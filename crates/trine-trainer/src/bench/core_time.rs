//! What the cores did during training steps: a rank's computing, operations between ranks, nothing.

use crate::cores::thread_cpu_seconds;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use trine_comm::wrap::Wrapper;
use trine_comm::{CommError, Communicator, Done, Operation, Pending, Progress, Request};
use trine_pipeline::Moment;
use trine_schedule::{Action, Compute};

/// What a core's time goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Forward passes.
    Forward,
    /// Backward passes, and forward passes that are run again for them.
    Backward,
    /// What becomes of gradients: buckets, the norm, the optimizer; and all that is in no pass.
    Update,
    /// The work of reductions and gathers: adding up and copying.
    Collectives,
    /// The work of messages between stages: copying.
    Messages,
    /// A rank has come to a collective, others have not, and the core has nothing else to do.
    LateRanks,
    /// The same of a message.
    LateMessages,
    /// A core is idle while no rank waits for another, or it works for other programs.
    Idle,
}

/// What of a layout's overhead a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overhead {
    /// More computing than one rank needs.
    ExtraPasses,
    /// Work of operations between ranks.
    Collectives,
    /// Cores without work.
    Waiting,
}

impl Overhead {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::ExtraPasses, Self::Collectives, Self::Waiting];

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ExtraPasses => "extra passes",
            Self::Collectives => "collectives",
            Self::Waiting => "waiting",
        }
    }
}

const PARTS: usize = Part::ALL.len();

impl Part {
    /// All parts.
    pub const ALL: [Self; 8] = [
        Self::Forward,
        Self::Backward,
        Self::Update,
        Self::Collectives,
        Self::Messages,
        Self::LateRanks,
        Self::LateMessages,
        Self::Idle,
    ];

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Update => "gradients, update",
            Self::Collectives => "collectives",
            Self::Messages => "messages",
            Self::LateRanks => "waiting for other ranks",
            Self::LateMessages => "waiting for messages",
            Self::Idle => "idle otherwise",
        }
    }

    /// What it is where a layout has more of it.
    pub const fn overhead(self) -> Overhead {
        match self {
            Self::Forward | Self::Backward | Self::Update => Overhead::ExtraPasses,
            Self::Collectives | Self::Messages => Overhead::Collectives,
            Self::LateRanks | Self::LateMessages | Self::Idle => Overhead::Waiting,
        }
    }

    /// What an action's computing belongs to.
    fn of(action: &Action) -> Self {
        match action {
            Action::Compute(Compute::Forward { .. }) => Self::Forward,
            Action::Compute(Compute::BackwardInput { .. } | Compute::BackwardWeight { .. }) => {
                Self::Backward
            }
            Action::Message(_) => Self::Messages,
            Action::Sync(_) => Self::Update,
        }
    }
}

/// The time of all cores over some steps, by part, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CoreTime([f64; PARTS]);

impl CoreTime {
    /// Of one part.
    pub fn of(&self, part: Part) -> f64 {
        self.0[part as usize]
    }

    /// Of all parts: cores × wall time.
    pub fn total(&self) -> f64 {
        self.0.iter().sum()
    }

    /// Together with other steps.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(own, other)| *own += other);
        self
    }

    /// Every part by `factor`.
    #[must_use]
    pub fn times(mut self, factor: f64) -> Self {
        self.0.iter_mut().for_each(|seconds| *seconds *= factor);
        self
    }

    /// The time of `cores` cores over `wall` seconds, in which each of `ranks` computed with
    /// `threads` threads: a rank's own thread stands for all of them.
    ///
    /// What the ranks have not used is idle. As far as ranks waited, it is theirs: where there are more
    /// ranks than cores, one that waits leaves its core to another, and only what is left over counts,
    /// in proportion to how long they waited for what.
    pub(super) fn shared_out(cores: usize, threads: usize, wall: f64, ranks: &[RankTime]) -> Self {
        let mut all = Self::default();
        let mut waited = [0.0; 2];
        for rank in ranks {
            all = all.and(&CoreTime(rank.used).times(threads as f64));
            let own = rank.waited.map(|seconds| seconds * threads as f64);
            waited = [waited[0] + own[0], waited[1] + own[1]];
        }
        let idle = cores as f64 * wall - all.total();
        let scale = (idle.max(0.0) / (waited[0] + waited[1]).max(f64::MIN_POSITIVE)).min(1.0);
        let [late_ranks, late_messages] = waited.map(|seconds| seconds * scale);
        all.0[Part::LateRanks as usize] = late_ranks;
        all.0[Part::LateMessages as usize] = late_messages;
        all.0[Part::Idle as usize] = idle - late_ranks - late_messages;
        all
    }
}

/// What one rank's thread did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct RankTime {
    /// CPU seconds by part; none of the last three.
    pub(super) used: [f64; PARTS],
    /// Seconds without the CPU inside collectives, and inside messages.
    pub(super) waited: [f64; 2],
}

/// A rank's stopwatch: at any time its thread is at one part.
#[derive(Debug)]
struct Watch {
    part: Part,
    /// The thread's CPU time when it began with it.
    since: f64,
    time: RankTime,
}

impl Watch {
    /// Goes on with another part; the one before.
    fn switch(&mut self, part: Part) -> Part {
        let now = thread_cpu_seconds();
        self.time.used[self.part as usize] += now - self.since;
        self.since = now;
        std::mem::replace(&mut self.part, part)
    }
}

/// The stopwatch of a rank's thread, and the communicator that works it.
#[derive(Debug, Clone)]
pub(super) struct RankWatch(Arc<Mutex<Watch>>);

impl RankWatch {
    /// A stopwatch for the calling thread, which runs.
    pub(super) fn new() -> Self {
        let time = RankTime::default();
        Self(Arc::new(Mutex::new(Watch { part: Part::Update, since: thread_cpu_seconds(), time })))
    }

    fn lock(&self) -> MutexGuard<'_, Watch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `inner`, with the time inside its operations noted.
    pub(super) fn around(&self, inner: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        Arc::new(Watched { inner, watch: self.clone() })
    }

    /// Called before and after each action of a schedule.
    pub(super) fn observe(&self, action: &Action, moment: Moment) {
        self.lock().switch(match moment {
            Moment::Begin => Part::of(action),
            Moment::End => Part::Update,
        });
    }

    /// What was noted since the last call.
    pub(super) fn take(&self) -> RankTime {
        let mut watch = self.lock();
        watch.switch(Part::Update);
        std::mem::take(&mut watch.time)
    }

    /// `call`, as an operation between ranks.
    fn operation<R>(&self, part: Part, call: impl FnOnce() -> R) -> R {
        let before = self.lock().switch(part);
        let (wall, cpu) = (Instant::now(), self.lock().since);
        let result = call();
        let mut watch = self.lock();
        watch.switch(before);
        let waited = wall.elapsed().as_secs_f64() - (watch.since - cpu);
        watch.time.waited[usize::from(part == Part::Messages)] += waited.max(0.0);
        result
    }
}

struct Watched {
    inner: Arc<dyn Communicator>,
    watch: RankWatch,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watched({:?})", self.inner)
    }
}

fn part(operation: Operation) -> Part {
    if operation.peers().is_some() { Part::Messages } else { Part::Collectives }
}

impl Wrapper for Watched {
    fn inner(&self) -> &Arc<dyn Communicator> {
        &self.inner
    }

    fn forward(&self, request: Request) -> Result<Pending, CommError> {
        let part = part(request.operation);
        let inner = self.watch.operation(part, || self.inner.start(request))?;
        let watch = self.watch.clone();
        Ok(Pending::started(Box::new(UnderWay { inner, watch, part })))
    }

    fn in_front_of(&self, subgroup: Arc<dyn Communicator>) -> Arc<dyn Communicator> {
        Arc::new(Self { inner: subgroup, watch: self.watch.clone() })
    }
}

/// An operation whose wait is noted.
struct UnderWay {
    inner: Pending,
    watch: RankWatch,
    part: Part,
}

impl Progress for UnderWay {
    fn is_done(&self) -> bool {
        self.inner.is_done()
    }

    fn wait(self: Box<Self>) -> Result<Done, CommError> {
        let Self { inner, watch, part } = *self;
        watch.operation(part, || inner.wait())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use trine_buffer::Buf;
    use trine_comm::{ReduceOp, threads};

    fn rank(used: f64, collectives: f64, messages: f64) -> RankTime {
        let mut time = RankTime { waited: [collectives, messages], ..RankTime::default() };
        time.used[Part::Forward as usize] = used;
        time
    }

    #[test]
    fn parts_add_up_to_cores_times_wall() {
        // Two ranks on a core each: what they waited for is what the cores stood still.
        let own = CoreTime::shared_out(2, 1, 10.0, &[rank(9.0, 0.5, 0.25), rank(8.0, 1.0, 1.0)]);
        assert_eq!(own.of(Part::Forward), 17.0);
        assert_eq!((own.of(Part::LateRanks), own.of(Part::LateMessages)), (1.5, 1.25));
        assert_eq!((own.of(Part::Idle), own.total()), (0.25, 20.0));
        // Four ranks on two cores: one that waits leaves its core to another.
        let four = [rank(4.5, 3.0, 1.0); 4];
        let shared = CoreTime::shared_out(2, 1, 10.0, &four);
        assert_eq!((shared.of(Part::LateRanks), shared.of(Part::LateMessages)), (1.5, 0.5));
        assert_eq!((shared.of(Part::Idle), shared.total()), (0.0, 20.0));
        // A rank with two threads.
        let one = CoreTime::shared_out(2, 2, 10.0, &[rank(9.0, 0.0, 0.0)]);
        assert_eq!((one.of(Part::Forward), one.of(Part::Idle), one.total()), (18.0, 2.0, 20.0));
    }

    #[test]
    fn each_part_is_named_and_belongs_to_one_overhead() {
        for (at, part) in Part::ALL.into_iter().enumerate() {
            assert_eq!(part as usize, at);
            assert!(Overhead::ALL.contains(&part.overhead()));
        }
    }

    #[test]
    fn waiting_for_a_late_rank_is_no_work() {
        let late = Duration::from_millis(300);
        let times = threads::run(2, &Default::default(), |comm| {
            let watch = RankWatch::new();
            let rank = comm.rank();
            let comm = watch.around(comm);
            if rank == 1 {
                std::thread::sleep(late);
            }
            comm.all_reduce(Buf::from_vec(vec![1f32; 8]), ReduceOp::Sum, "sum")?;
            if rank == 0 {
                std::thread::sleep(late);
                comm.send(Buf::from_vec(vec![1f32]), 1, "message")?;
            } else {
                comm.recv(Buf::from_vec(vec![0f32]), 0, "message")?;
            }
            Ok::<_, CommError>(watch.take())
        });
        let times = times.unwrap();
        let late = late.as_secs_f64() / 2.0;
        // The first waits in the sum, the second for the message.
        assert!(times[0].waited[0] > late && times[0].waited[1] < late, "{times:?}");
        assert!(times[1].waited[1] > late && times[1].waited[0] < late, "{times:?}");
        for time in times {
            let work = time.used[Part::Collectives as usize] + time.used[Part::Messages as usize];
            assert!(work < late, "{time:?}");
        }
    }
}
