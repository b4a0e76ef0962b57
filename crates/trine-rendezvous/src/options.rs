//! What a store is made of.

use crate::Token;
use std::net::SocketAddr;
use std::time::Duration;

/// What a store is made of.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The interface to listen on, and the port; 0: any free one.
    pub bind: SocketAddr,
    /// Ranks of the run.
    pub ranks: usize,
    /// The run's secret.
    pub token: Token,
    /// How long a rank may be unheard of, or keep others waiting without progress.
    pub deadline: Duration,
    /// How long ranks may take until their first heartbeat.
    pub join_within: Duration,
    /// The rank whose process has the store; `None`: a process beside the ranks.
    pub owner: Option<usize>,
}

impl StoreOptions {
    /// A store beside the ranks, with a deadline of 60 s.
    pub fn new(bind: SocketAddr, ranks: usize, token: Token) -> Self {
        let (deadline, owner) = (Duration::from_secs(60), None);
        Self { bind, ranks, token, deadline, join_within: Self::join_within(deadline), owner }
    }

    /// How long ranks may take to join where they may be silent for `deadline`: twice as long, but at
    /// least 30 s, because processes must be started first.
    pub fn join_within(deadline: Duration) -> Duration {
        (2 * deadline).max(Duration::from_secs(30))
    }

    /// Connections of ranks at a time: what each needs, and some for its earlier ones.
    pub(crate) fn connections_max(&self) -> usize {
        4 * self.ranks + 16
    }

    /// How often the ranks are judged.
    pub(crate) fn tick(&self) -> Duration {
        (self.deadline / 20).clamp(Duration::from_millis(5), Duration::from_millis(250))
    }
}
