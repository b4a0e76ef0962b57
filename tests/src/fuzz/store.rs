//! A conversation with the store of a run: what a stranger says who knows the token.

use super::targets::{Read, said};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read as _, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use trine_comm::{Beat, Diagnosis, Doing, FlightRecord};
use trine_rendezvous::{Client, FRAME_BYTES_MAX, Store, StoreOptions, Token};

/// Ranks of the store's run.
const RANKS: usize = 2;

/// More than any answer takes.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The token of the store's run, as it is sent.
const TOKEN: &str = "000102030405060708090a0b0c0d0e0f";

/// Lists of messages: a greeting, and each question that there is.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let beat = Beat {
        rank: 1,
        host: "a".to_owned(),
        progress: 3,
        place: "step 1".to_owned(),
        deadline: Some(Duration::from_secs(9)),
        doing: Doing::Running { latest: None },
    };
    let record = FlightRecord {
        rank: 1,
        host: "a".to_owned(),
        place: "step 1".to_owned(),
        operations_posted: 0,
        quiet_s: 0.5,
        operations: Vec::new(),
    };
    let failure = Diagnosis { rank: 1, failure: "lost".to_owned(), beats: vec![beat.clone()] };
    let hello = json!({ "token": TOKEN, "rank": 1, "host": "a" });
    let conversations = [
        json!([hello, { "Put": { "key": "id", "value": [1, 2] } }, { "Get": { "key": "id" } }]),
        json!([hello, { "Beat": beat }, { "Record": record }, "Farewell"]),
        json!([hello, { "Beat": beat }, { "Fail": failure }, { "Beat": beat }]),
    ];
    conversations.map(|list| list.to_string().into_bytes()).into()
}

/// Says each message of a list, or the text itself where it is none, to a store. It must go on serving a rank.
pub(super) fn conversation() -> Read {
    let token: Token = TOKEN.parse().expect("invariant: 32 hexadecimal digits");
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let store = Store::bind(StoreOptions::new(loopback, RANKS, token.clone()))
        .expect("invariant: the loopback interface has a free port");
    let panics = panics_of_the_store();
    Box::new(move |input: &[u8]| {
        let answered = say(store.address(), &frames(input));
        let panicked = panics.load(Ordering::Relaxed);
        assert_eq!(panicked, 0, "threads of the store have panicked");
        let rank = Client::connect(store.address(), &token, 0, "b", ANSWER_WITHIN);
        let served = rank.and_then(|rank| {
            rank.put("asked", input.get(..64).unwrap_or(input))?;
            rank.get("asked", ANSWER_WITHIN)
        });
        assert!(served.is_ok(), "the store no longer serves a rank: {served:?}");
        answered
    })
}

/// The messages as they are sent. A text that is no list is sent as it is, which makes its first bytes a length.
fn frames(input: &[u8]) -> Vec<Vec<u8>> {
    let Ok(Value::Array(messages)) = serde_json::from_slice(input) else {
        return vec![input.to_vec()];
    };
    let frame = |message: Value| {
        let json = message.to_string().into_bytes();
        [&(json.len() as u32).to_le_bytes()[..], &json].concat()
    };
    messages.into_iter().map(frame).collect()
}

/// Accepted is a conversation in which each message has an answer that is no refusal.
fn say(store: SocketAddr, frames: &[Vec<u8>]) -> Result<(), String> {
    let mut stream = TcpStream::connect(store).map_err(said)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).map_err(said)?;
    for frame in frames {
        stream.write_all(frame).map_err(said)?;
        // An unfinished message is one only once nothing follows.
        if frames.len() == 1 {
            stream.shutdown(Shutdown::Write).map_err(said)?;
        }
        let answer = answer(&mut stream)?;
        if answer.get("No").is_some() {
            return Err(answer.to_string());
        }
    }
    Ok(())
}

fn answer(stream: &mut TcpStream) -> Result<Value, String> {
    let mut length = [0; 4];
    let begun = stream.read_exact(&mut length);
    let is_silent = |kind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let silent = begun.as_ref().is_err_and(|error| is_silent(error.kind()));
    assert!(!silent, "the store neither answers nor ends the connection");
    begun.map_err(said)?;
    let length = u32::from_le_bytes(length) as usize;
    assert!(length <= FRAME_BYTES_MAX, "an answer of {length} bytes");
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).map_err(said)?;
    serde_json::from_slice(&bytes).map_err(said)
}

/// Counts panics on threads of stores, which nobody else would see.
fn panics_of_the_store() -> Arc<AtomicUsize> {
    let panics = Arc::<AtomicUsize>::default();
    let (counted, before) = (panics.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        if thread::current().name().is_some_and(|name| name.starts_with("store")) {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        before(info);
    }));
    panics
}
