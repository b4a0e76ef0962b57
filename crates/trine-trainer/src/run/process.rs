//! Ranks as processes: what they must agree on before and after they train.

use crate::TrainError;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use trine_buffer::Buf;
use trine_comm::{CommError, Communicator, Name, Phase};

/// Where the ranks of a run are.
#[derive(Debug, Clone, Copy)]
pub enum Ranks<'a> {
    /// All in this process, a thread each.
    Threads,
    /// This process is one of them.
    Process(&'a Process),
}

impl<'a> Ranks<'a> {
    /// The first rank that is here.
    pub(crate) fn rank(self) -> usize {
        self.process().map_or(0, |process| process.world().rank())
    }

    /// Whether rank 0 is here: it writes, decides and speaks for all.
    pub(crate) fn is_first(self) -> bool {
        self.rank() == 0
    }

    /// Whether the first rank of this machine is here.
    pub(crate) fn is_first_here(self) -> bool {
        self.process().is_none_or(Process::is_first_here)
    }

    /// This machine; empty where all ranks are threads of one process.
    pub(crate) fn host(self) -> &'a str {
        self.process().map_or("", Process::host)
    }

    /// Cores for all ranks, of which those of this machine share `here`.
    pub(crate) fn cores(self, here: usize) -> usize {
        self.process().map_or(here, |one| here * one.world().size() / one.ranks_here())
    }

    /// Ranks of this machine, of `world` in all.
    pub(crate) fn ranks_here(self, world: usize) -> usize {
        self.process().map_or(world, Process::ranks_here)
    }

    /// What the processes do from now on.
    pub(crate) fn begin_phase(self, name: &'static str, deadline: Duration) {
        if let Some(process) = self.process() {
            let phase = Phase { name: Name::new(name), deadline: Some(deadline) };
            process.world().recorder().begin_phase(phase);
        }
    }

    /// [`Process::agree`]; alone, one agrees with oneself.
    pub(crate) fn agree<T>(self, own: Result<T, TrainError>) -> Result<T, TrainError> {
        match self.process() {
            Some(process) => process.agree(own, TrainError::is_usage),
            None => own,
        }
    }

    /// [`Process::rank_0_says`].
    pub(crate) fn rank_0_says(self, own: String) -> Result<String, CommError> {
        self.process().map_or(Ok(own.clone()), |process| process.rank_0_says(&own))
    }

    /// [`Process::check_same`].
    pub(crate) fn check_same(self, what: &str, own: &str) -> Result<(), TrainError> {
        self.process().map_or(Ok(()), |process| process.check_same(what, own))
    }

    fn process(self) -> Option<&'a Process> {
        match self {
            Self::Threads => None,
            Self::Process(process) => Some(process),
        }
    }
}

/// A process that is one rank of a run. Everything here is a collective call.
#[derive(Debug)]
pub struct Process {
    world: Arc<dyn Communicator>,
    /// Of every rank.
    hosts: Vec<String>,
}

impl Process {
    /// The rank that `world` says, on the machine called `host`.
    ///
    /// # Errors
    /// A failed collective.
    pub fn new(world: Arc<dyn Communicator>, host: &str) -> Result<Self, CommError> {
        let hosts = texts(&*world, host)?;
        Ok(Self { world, hosts })
    }

    /// All ranks.
    pub fn world(&self) -> &Arc<dyn Communicator> {
        &self.world
    }

    /// The machine of every rank.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The rank and its machine, for people.
    pub fn place(&self) -> String {
        let rank = self.world.rank();
        format!("rank {rank} on {}", self.hosts[rank])
    }

    /// This machine.
    pub fn host(&self) -> &str {
        &self.hosts[self.world.rank()]
    }

    /// Ranks on this machine.
    pub fn ranks_here(&self) -> usize {
        let own = &self.hosts[self.world.rank()];
        self.hosts.iter().filter(|host| *host == own).count()
    }

    /// Which ranks are on this machine.
    pub(crate) fn ranks_of_this_machine(&self) -> Vec<usize> {
        let is_here = |rank: &usize| self.hosts[*rank] == self.host();
        (0..self.hosts.len()).filter(is_here).collect()
    }

    /// Whether it is the first rank of its machine, which does what is done once a machine.
    pub(crate) fn is_first_here(&self) -> bool {
        let rank = self.world.rank();
        self.hosts.iter().position(|host| *host == self.hosts[rank]) == Some(rank)
    }

    /// All go on, or all fail: with their own error on rank 0 if it has one, else with that of the
    /// first rank that has.
    ///
    /// # Errors
    /// The own error, [`TrainError::Elsewhere`], or a failed collective.
    pub fn agree<T, E>(&self, own: Result<T, E>, is_usage: fn(&E) -> bool) -> Result<T, TrainError>
    where
        E: Display + Into<TrainError>,
    {
        let said = match &own {
            Ok(_) => String::new(),
            Err(error) => format!("{}{error}", if is_usage(error) { USAGE } else { FAILURE }),
        };
        let all = texts(&*self.world, &said)?;
        let Some(first) = all.iter().position(|said| !said.is_empty()) else {
            return own.map_err(Into::into);
        };
        if let (Err(error), true) = (own, self.world.rank() == 0) {
            return Err(error.into());
        }
        let mut letters = all[first].chars();
        let is_usage = letters.next() == Some(USAGE);
        let (host, message) = (self.hosts[first].clone(), letters.as_str().to_owned());
        Err(TrainError::Elsewhere { rank: first, host, message, is_usage })
    }

    /// Rank 0's text.
    ///
    /// # Errors
    /// A failed collective.
    pub fn rank_0_says(&self, own: &str) -> Result<String, CommError> {
        let own = if self.world.rank() == 0 { own } else { "" };
        Ok(texts(&*self.world, own)?.swap_remove(0))
    }

    /// Fails everywhere unless all ranks say the same.
    pub(crate) fn check_same(&self, what: &str, own: &str) -> Result<(), TrainError> {
        let all = texts(&*self.world, own)?;
        match all.iter().position(|other| *other != all[0]) {
            None => Ok(()),
            Some(other) => Err(TrainError::Unlike {
                what: what.to_owned(),
                first: format!("rank 0 on {} has {}", self.hosts[0], all[0]),
                other: format!("rank {other} on {} has {}", self.hosts[other], all[other]),
            }),
        }
    }
}

const USAGE: char = 'u';
const FAILURE: char = 'f';

/// Every rank's text.
pub(crate) fn texts(world: &dyn Communicator, own: &str) -> Result<Vec<String>, CommError> {
    let ranks = world.size();
    let len = Buf::from_vec(vec![own.len() as u64]);
    let lens =
        world.all_gather(len, Buf::from_vec(vec![0u64; ranks]), Name::new("text lengths"))?.1;
    let lens = lens.typed::<u64>()?;
    let most = lens.iter().copied().max().unwrap_or(0) as usize;
    let mut bytes = own.as_bytes().to_vec();
    bytes.resize(most, 0);
    let room = Buf::from_vec(vec![0u8; most * ranks]);
    let all = world.all_gather(Buf::from_vec(bytes), room, Name::new("texts"))?.1;
    let all = all.typed::<u8>()?;
    let text = |rank: usize| {
        String::from_utf8_lossy(&all[rank * most..][..lens[rank] as usize]).into_owned()
    };
    Ok((0..ranks).map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use trine_comm::threads;

    fn processes<T: Send>(hosts: [&str; 4], body: impl Fn(&Process) -> T + Sync) -> Vec<T> {
        let run = threads::run(4, &Default::default(), |comm| {
            let host = hosts[comm.rank()];
            Ok::<_, CommError>(body(&Process::new(comm, host)?))
        });
        run.unwrap()
    }

    #[test]
    fn hosts_are_known_to_all() {
        let all = processes(["a", "b", "b", "a"], |process| {
            assert_eq!(process.hosts(), ["a", "b", "b", "a"]);
            (process.ranks_here(), process.is_first_here(), process.place())
        });
        assert_eq!(all[2], (2, false, "rank 2 on b".to_owned()));
        assert_eq!(all.iter().filter(|(_, first, _)| *first).count(), 2);
    }

    #[test]
    fn one_failure_is_everybodys() {
        let outcomes = processes(["a", "a", "b", "b"], |process| {
            let rank = process.world().rank();
            let own = if rank < 2 { Ok(rank) } else { Err(TrainError::Quantity(rank.to_string())) };
            process.agree(own, TrainError::is_usage).unwrap_err().to_string()
        });
        assert_eq!(outcomes, vec!["rank 2 on b: this run keeps no \"2\""; 4]);
        let good = processes(["a", "a", "b", "b"], |process| {
            process.agree(Ok::<_, TrainError>(7), TrainError::is_usage).unwrap()
        });
        assert_eq!(good, [7; 4]);
    }

    #[test]
    fn usage_stays_usage_on_every_rank() {
        let outcomes = processes(["a", "a", "a", "a"], |process| {
            let own: Result<(), _> = Err(TrainError::NoManifest);
            process.agree(own, TrainError::is_usage).unwrap_err().is_usage()
        });
        assert_eq!(outcomes, [true; 4]);
    }

    #[test]
    fn unlike_values_name_both() {
        let outcomes = processes(["a", "a", "b", "b"], |process| {
            let own = if process.world().rank() == 3 { "x" } else { "y" };
            assert_eq!(process.rank_0_says(own).unwrap(), "y");
            process.check_same("corpus", own).unwrap_err().to_string()
        });
        for text in outcomes {
            assert!(text.contains("rank 0 on a has y") && text.contains("rank 3 on b has x"));
        }
    }
}
