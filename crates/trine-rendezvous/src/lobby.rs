//! Connections that have not said yet who they are. They cost a place here and nothing else: no thread, no
//! place of a rank's, and no time of the store's.

use crate::Token;
use crate::frame::{self, LENGTH_BYTES};
use crate::message::Hello;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How long a connection may take to say who it is. What knows the run says so in its first packet.
const GREETING_WITHIN: Duration = Duration::from_secs(2);

/// Connections at a time; of more, the oldest is dropped.
const STRANGERS_MAX: usize = 128;

/// A greeting is a token, a number and the name of a host.
const HELLO_BYTES_MAX: usize = 4096;

/// Strangers, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Lobby(VecDeque<Stranger>);

#[derive(Debug)]
struct Stranger {
    stream: TcpStream,
    since: Instant,
    said: Vec<u8>,
}

impl Lobby {
    /// Takes in a new connection.
    pub(crate) fn enter(&mut self, stream: TcpStream) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.0.len() >= STRANGERS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Stranger { stream, since: Instant::now(), said: Vec::new() });
    }

    /// Those who have said by now who they are, with the run's token. Whoever has another one, says something
    /// else or nothing for too long is dropped.
    pub(crate) fn greeted(&mut self, token: &Token) -> Vec<(TcpStream, Hello)> {
        let mut known = Vec::new();
        for mut stranger in std::mem::take(&mut self.0) {
            match stranger.hear() {
                Ok(Some(hello)) if token.admits(&hello.token) => {
                    known.push((stranger.stream, hello))
                }
                Ok(None) if stranger.since.elapsed() < GREETING_WITHIN => {
                    self.0.push_back(stranger)
                }
                Ok(Some(_) | None) | Err(_) => {}
            }
        }
        known
    }
}

impl Stranger {
    /// Its greeting, once it is complete. Nothing behind it is read.
    fn hear(&mut self) -> io::Result<Option<Hello>> {
        loop {
            let length = self.said.first_chunk::<LENGTH_BYTES>();
            let length = length.map(|bytes| frame::length(*bytes, HELLO_BYTES_MAX)).transpose()?;
            let (heard, wanted) = (self.said.len(), LENGTH_BYTES + length.unwrap_or(0));
            if length.is_some() && heard == wanted {
                return Ok(Some(serde_json::from_slice(&self.said[LENGTH_BYTES..])?));
            }
            self.said.resize(wanted, 0);
            let read = self.stream.read(&mut self.said[heard..]);
            self.said.truncate(heard + read.as_ref().map_or(0, |read| *read));
            match read {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
