//! Zero-bubble lists for stages whose F, B and W take different times: found by running the ranks in thought.
//!
//! A rank that is free takes a B or an F whose input is there. If there is none, it fills the wait with a W that was
//! put off. How it chooses between them is a policy; all policies are tried, and the handcrafted lists with them. The
//! shortest step wins, the handcrafted lists where nothing is shorter. No rank keeps more than those do.

use super::{backward_input, backward_weight, forward};
use crate::{
    Action, Delivery, Schedule, ScheduleError, StageCosts, UniformCosts, UniformStage, lower,
    simulate, step_times,
};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// The lists with the shortest step for these times, of those that keep no more than `usual`. Where F, B and W take
/// equally long, the handcrafted lists are the ones.
pub(crate) fn fit(usual: Schedule, times: &UniformStage) -> Result<Schedule, ScheduleError> {
    if times.forward == times.backward_input && times.forward == times.backward_weight {
        return Ok(usual);
    }
    let costs = StageCosts::uniform(usual.stages(), *times);
    let (mut shortest, mut best) = (executed(&usual, times)?, None);
    for prefer in [Prefer::Backward, Prefer::Forward, Prefer::Turns] {
        for share in GAP_SHARES {
            let run = Run::new(&usual, times, Policy { prefer, share });
            let Some(fitted) = run.lists() else { continue };
            // Sums of times differ in their last bits.
            let is_shorter = |time: f64, than: f64| time < than * (1.0 - 1e-9);
            // With its messages it is no faster than without, and to place them takes long.
            if !is_shorter(step_times(&fitted, &costs)?.makespan, shortest) {
                continue;
            }
            let time = executed(&fitted, times)?;
            if is_shorter(time, shortest) {
                (shortest, best) = (time, Some(fitted));
            }
        }
    }
    Ok(best.unwrap_or(usual))
}

/// How long a step of compute-only lists takes when a rank waits at each message that it receives.
fn executed(lists: &Schedule, times: &UniformStage) -> Result<f64, ScheduleError> {
    let whole = lower(lists, None)?;
    Ok(simulate(&whole, Delivery::Buffered, &UniformCosts::of(&whole, times))?.makespan)
}

/// W fills a wait that is at least this share of it.
const GAP_SHARES: [f64; 3] = [0.0, 0.5, 1.0];

/// What a rank takes where F and B are both ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prefer {
    Backward,
    Forward,
    /// What it did not do last.
    Turns,
}

#[derive(Debug, Clone, Copy)]
struct Policy {
    prefer: Prefer,
    share: f64,
}

/// A rank that may have something to do, in the order of time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Event {
    at: f64,
    rank: usize,
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.rank.cmp(&other.rank))
    }
}

/// A stage while its lists grow. Micro-batches go through in order.
#[derive(Debug, Default)]
struct Stage {
    /// The most F without their W.
    kept_max: usize,
    /// When the inputs of F and of B are there, by micro-batch, as far as that is decided.
    arrivals: [Vec<f64>; 2],
    /// F, B and W done.
    done: [usize; 3],
}

const F: usize = 0;
const B: usize = 1;
const W: usize = 2;

impl Stage {
    /// When the next F or B can begin, as far as that is decided.
    fn next(&self, what: usize) -> Option<f64> {
        let is_full = what == F && self.done[F] - self.done[W] >= self.kept_max;
        self.arrivals[what].get(self.done[what]).copied().filter(|_| !is_full)
    }
}

struct Run<'a> {
    usual: &'a Schedule,
    times: &'a UniformStage,
    policy: Policy,
    stages: Vec<Stage>,
    held: Vec<Vec<usize>>,
    busy_until: Vec<f64>,
    last: Vec<usize>,
    events: BinaryHeap<Reverse<Event>>,
    lists: Vec<Vec<Action>>,
}

impl<'a> Run<'a> {
    fn new(usual: &'a Schedule, times: &'a UniformStage, policy: Policy) -> Self {
        let ranks = usual.ranks();
        let mut stages: Vec<Stage> = usual
            .kept_by_stage()
            .into_iter()
            .map(|kept_max| Stage { kept_max, ..Stage::default() })
            .collect();
        stages[0].arrivals[F] = vec![0.0; usual.micro_batches];
        Self {
            usual,
            times,
            policy,
            stages,
            held: (0..ranks).map(|rank| usual.stages_of(rank).collect()).collect(),
            busy_until: vec![0.0; ranks],
            last: vec![B; ranks],
            events: (0..ranks).map(|rank| Reverse(Event { at: 0.0, rank })).collect(),
            lists: vec![Vec::new(); ranks],
        }
    }

    /// The whole schedule; `None` where ranks wait for ever, or keep more than usual.
    fn lists(mut self) -> Option<Schedule> {
        while let Some(Reverse(Event { at, rank })) = self.events.pop() {
            if at >= self.busy_until[rank] {
                self.decide(rank, at);
            }
        }
        let micro_batches = self.usual.micro_batches;
        if self.stages.iter().any(|stage| stage.done != [micro_batches; 3]) {
            return None;
        }
        let mut fitted = Schedule { actions: self.lists, ..self.usual.clone() };
        fitted.in_flight_max = fitted.in_flight_peaks().iter().map(|peak| peak.count).collect();
        let mut bounds = fitted.in_flight_max.iter().zip(&self.usual.in_flight_max);
        bounds.all(|(peak, bound)| peak <= bound).then_some(fitted)
    }

    fn decide(&mut self, rank: usize, now: f64) {
        let soonest = |what: usize| {
            let held = self.held[rank].iter().copied();
            let next = held.filter_map(|stage| Some((self.stages[stage].next(what)?, stage)));
            next.min_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
        };
        let (f, b) = (soonest(F), soonest(B));
        let is_ready = |next: &(f64, usize)| next.0 <= now;
        let (forward, backward) = (f.filter(is_ready), b.filter(is_ready));
        let forward_first = match self.policy.prefer {
            Prefer::Backward => false,
            Prefer::Forward => true,
            Prefer::Turns => self.last[rank] == B,
        };
        match (forward, backward) {
            (Some((_, stage)), None) => return self.begin(rank, now, stage, F),
            (None, Some((_, stage))) => return self.begin(rank, now, stage, B),
            (Some((_, stage)), Some(_)) if forward_first => return self.begin(rank, now, stage, F),
            (Some(_), Some((_, stage))) => return self.begin(rank, now, stage, B),
            (None, None) => {}
        }
        let wait = f.into_iter().chain(b).map(|next| next.0).fold(f64::INFINITY, f64::min);
        let put_off = self.held[rank]
            .iter()
            .copied()
            .filter(|stage| self.stages[*stage].done[W] < self.stages[*stage].done[B]);
        // The one of which the most is kept.
        let put_off =
            put_off.max_by_key(|stage| self.stages[*stage].done[B] - self.stages[*stage].done[W]);
        match put_off {
            Some(stage) if wait - now >= self.policy.share * self.times.backward_weight => {
                self.begin(rank, now, stage, W)
            }
            _ if wait.is_finite() => self.events.push(Reverse(Event { at: wait, rank })),
            _ => {}
        }
    }

    /// Puts the next F, B or W of a stage into the list.
    fn begin(&mut self, rank: usize, now: f64, stage: usize, what: usize) {
        let index = self.stages[stage].done[what];
        self.stages[stage].done[what] += 1;
        let (action, time) = match what {
            F => (forward(stage, index), self.times.forward),
            B => (backward_input(stage, index), self.times.backward_input),
            _ => (backward_weight(stage, index), self.times.backward_weight),
        };
        self.lists[rank].push(action);
        if what != W {
            self.last[rank] = what;
        }
        let end = now + time;
        self.busy_until[rank] = end;
        self.events.push(Reverse(Event { at: end, rank }));
        let last = self.stages.len() - 1;
        let (to, input) = match what {
            F if stage == last => (stage, B),
            F => (stage + 1, F),
            B if stage > 0 => (stage - 1, B),
            _ => return,
        };
        let home = self.usual.placement[to];
        let at = if home == rank { end } else { end + self.times.transfer };
        self.stages[to].arrivals[input].push(at);
        self.events.push(Reverse(Event { at, rank: home }));
    }
}
