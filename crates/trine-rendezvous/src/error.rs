//! What can go wrong between a process and the store.

use std::net::SocketAddr;
use std::time::Duration;

/// What can go wrong between a process and the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RendezvousError {
    /// The store's address cannot be used.
    #[error(
        "the store cannot listen on {address}: {source}; give the address of an interface of this host"
    )]
    Bind {
        /// Where it should listen.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Nobody answers, or no longer.
    #[error("the store at {address} cannot be reached: {source}")]
    Unreachable {
        /// Its address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The store ended the connection: another run's token, or a rank that the run does not have.
    #[error("the store at {address} refused rank {rank}: {why}")]
    Refused {
        /// Its address.
        address: SocketAddr,
        /// The rank.
        rank: usize,
        /// Its words, or what a silent end means.
        why: String,
    },
    /// Something else than the protocol came.
    #[error("the store at {address} does not speak the protocol: {why}")]
    Protocol {
        /// Its address.
        address: SocketAddr,
        /// What came.
        why: String,
    },
    /// A value did not come in time.
    #[error("nobody has put \"{key}\" within {waited:.1?}")]
    NoValue {
        /// Its key.
        key: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A message is larger than a frame may be.
    #[error("a message of {bytes} bytes is larger than a frame may be ({max})")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The system has no random numbers or no thread to give.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A token is not one. It is not shown, because it may be one but for a space.
    #[error("a token takes 32 hexadecimal digits; this text has {chars} characters")]
    Token {
        /// Characters of the text.
        chars: usize,
    },
}
