//! A side channel between the processes of a run, beside the communicator that moves their tensors.
//!
//! One process (the supervisor, or that of rank 0) has a [`Store`]; every rank has a [`Client`]. The
//! ranks send heartbeats there. The store judges them ([`trine_comm::judge`]), keeps the **first**
//! cause of a failure and tells everybody. So a run in which one rank is killed, hangs or fails
//! ends everywhere within seconds with the same diagnosis. It collects flight recorders, and holds
//! small values under keys, for what processes have to agree on before they can talk.
//!
//! [`StoreComm`] is a communicator by way of the store, for control words of processes whose tensors go another way.
//!
//! The protocol is JSON in frames with a length, over TCP on one given interface. A connection begins
//! with the run's [`Token`]; without it, it is dropped. Frames have a limit, every read and write has
//! a timeout, and what cannot be understood ends the connection and nothing else. The token keeps out
//! strangers and strays of earlier runs; nothing is encrypted, so the interface must be one that the
//! cluster trusts.
//!
//! ```
//! use std::time::Duration;
//! use trine_comm::{Diagnosis, Recorder};
//! use trine_rendezvous::{Client, Store, StoreOptions, Token};
//!
//! let token = Token::generate()?;
//! let bind = "127.0.0.1:0".parse()?;
//! let options = StoreOptions::new(bind, 2, token.clone());
//! let store = Store::bind(StoreOptions { deadline: Duration::from_secs(60), ..options })?;
//!
//! // In each rank's process:
//! let timeout = Duration::from_secs(5);
//! let ranks: Vec<Client> = (0..2)
//!     .map(|rank| Client::connect(store.address(), &token, rank, "localhost", timeout))
//!     .collect::<Result<_, _>>()?;
//! let watch = ranks[0].watch(&Recorder::new(0, "localhost"), |stop| {
//!     println!("{stop:?}"); // abort the communicator, then the process
//! })?;
//! ranks[1].put("id", b"7")?;
//! assert_eq!(ranks[0].get("id", timeout)?, b"7");
//!
//! let failure = Diagnosis { rank: 1, failure: "out of memory".into(), beats: vec![] };
//! ranks[1].fail(&failure)?;
//! assert_eq!(store.cause_within(timeout).expect("rank 1 failed").failure, "out of memory");
//! drop(watch);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod client;
mod comm;
mod error;
mod frame;
mod lobby;
mod message;
mod options;
mod share;
mod state;
mod store;
mod token;

pub use client::{Client, Stop, Watch};
pub use comm::StoreComm;
pub use error::RendezvousError;
pub use frame::FRAME_BYTES_MAX;
pub use options::StoreOptions;
pub use store::Store;
pub use token::Token;
