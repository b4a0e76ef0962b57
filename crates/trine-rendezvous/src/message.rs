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
    /// It is not there yet.
    NotYet,
    /// The connection is refused, or the question.
    No(String),
}
