//! What clients ask and what the store answers.

use serde::{Deserialize, Serialize};
use trine_comm::{Beat, Diagnosis, FlightRecord};

/// The first message of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) token: String,
    pub(crate) rank: usize,
    pub(crate) host: String,
}

/// One question; each gets one [`Answer`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// How the rank is; the connection is then its lifeline: if it ends without [`Ask::Farewell`], the
    /// rank is gone.
    Beat(Beat),
    /// The rank has failed.
    Fail(Diagnosis),
    /// The rank's flight recorder.
    Record(FlightRecord),
    /// Keep a value.
    Put { key: String, value: Vec<u8> },
    /// A value, if it is there.
    Get { key: String },
    /// One rank's side of an operation, of which there are `places`, and which `takers` take out.
    Share { key: String, place: usize, places: usize, takers: usize, value: String },
    /// All sides of an operation, once they are there. Each taker asks until it has them, and then no more.
    Take { key: String },
    /// Whether the run still stands.
    Check,
    /// The rank has done its work and goes.
    Farewell,
}

/// The store's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Nothing to say.
    Fine,
    /// The run has failed: the first cause.
    Stop(Diagnosis),
    /// What was asked for.
    Value(Vec<u8>),
    /// All sides of an operation.
    Shared(Vec<String>),
    /// It is not there yet.
    NotYet,
    /// The connection is refused, or the question.
    No(String),
}
