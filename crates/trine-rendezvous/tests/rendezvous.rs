//! Ranks and strangers at a store: who is let in, who is noticed when it goes, and what a bad peer
//! cannot do.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, helpers outside #[test] included"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use trine_comm::{Diagnosis, Name, Operation, Recorder, Request};
use trine_rendezvous::{
    Client, FRAME_BYTES_MAX, RendezvousError, Stop, Store, StoreOptions, Token, Watch,
};

const TIMEOUT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

struct Run {
    store: Store,
    token: Token,
}

fn run(ranks: usize, deadline: Duration) -> Run {
    let token = Token::generate().unwrap();
    let bind = "127.0.0.1:0".parse().unwrap();
    let options = StoreOptions { deadline, ..StoreOptions::new(bind, ranks, token.clone()) };
    Run { store: Store::bind(options).unwrap(), token }
}

impl Run {
    fn client(&self, rank: usize) -> Client {
        self.client_within(rank, TIMEOUT)
    }

    fn client_within(&self, rank: usize, timeout: Duration) -> Client {
        Client::connect(self.store.address(), &self.token, rank, "here", timeout).unwrap()
    }

    fn cause(&self) -> Diagnosis {
        self.store.cause_within(TIMEOUT).expect("the run fails")
    }
}

/// A rank with heartbeats.
struct Rank {
    client: Client,
    recorder: Arc<Recorder>,
    watch: Option<Watch>,
    told: Receiver<Stop>,
}

fn join(run: &Run, rank: usize) -> Rank {
    join_with(run.client(rank), rank)
}

fn join_with(client: Client, rank: usize) -> Rank {
    let recorder = Recorder::new(rank, "here");
    let (tell, told) = channel();
    let watch = client.watch(&recorder, move |stop| drop(tell.send(stop))).unwrap();
    Rank { client, recorder, watch: Some(watch), told }
}

fn wait_in(recorder: &Recorder, label: &'static str) {
    let request = Request::new(Operation::Barrier, label, std::panic::Location::caller());
    let group = trine_comm::Group::new("world", vec![0, 1], recorder.rank()).unwrap();
    recorder.wait(recorder.post(request.call(&group, 4)));
}

#[test]
fn ranks_meet_and_part() {
    let run = run(3, TIMEOUT);
    let ranks: Vec<Rank> = (0..3).map(|rank| join(&run, rank)).collect();
    std::thread::scope(|scope| {
        for Rank { client, .. } in &ranks {
            scope.spawn(move || assert_eq!(client.get("id", TIMEOUT).unwrap(), [1, 2]));
        }
        ranks[1].client.put("id", &[1, 2]).unwrap();
    });
    let error = ranks[0].client.get("other", SHORT).unwrap_err().to_string();
    assert!(error.starts_with("nobody has put \"other\" within"), "{error}");
    for mut rank in ranks {
        rank.recorder.begin_phase(Name::new("end"));
        rank.client.record(&rank.recorder.record()).unwrap();
        rank.watch.take().unwrap().farewell();
    }
    assert!(run.store.over_within(TIMEOUT));
    let records = run.store.records_within(TIMEOUT);
    assert_eq!(records.iter().map(|r| r.rank).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(records.iter().all(|record| record.place == "end" && record.host == "here"));
    assert_eq!(run.store.cause_within(Duration::ZERO), None);
}

#[test]
fn a_rank_that_is_gone_is_named_at_once_and_to_everybody() {
    let run = run(3, TIMEOUT);
    let mut ranks: Vec<Rank> = (0..3).map(|rank| join(&run, rank)).collect();
    wait_in(&ranks[0].recorder, "gradient");
    // Its next heartbeat says so.
    let began = Instant::now();
    while !run.store.beats()[0].to_string().contains("gradient") {
        assert!(began.elapsed() < TIMEOUT);
        std::thread::sleep(Duration::from_millis(5));
    }
    // Without a farewell: as if its process had been killed.
    ranks[1].watch = None;
    let cause = run.cause();
    assert_eq!(cause.rank, 1);
    let text = cause.to_string();
    for part in [
        "rank 1 on here: its process is gone",
        "rank 0 on here, waits for rank 1 in barrier \"gradient\" #4",
        "rank 2 on here, runs",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }
    for survivor in [0, 2] {
        let told = ranks[survivor].told.recv_timeout(TIMEOUT).unwrap();
        assert_eq!(told, Stop::Failed(cause.clone()));
    }
    // Whoever started it knows more.
    run.store.note_exit(1, "was killed by signal 9");
    assert_eq!(run.cause().failure, "was killed by signal 9");
}

#[test]
fn the_first_report_is_the_cause() {
    let run = run(2, TIMEOUT);
    let ranks: Vec<Rank> = (0..2).map(|rank| join(&run, rank)).collect();
    ranks[1].recorder.begin_phase(Name::new("training").with("step", 7));
    let report = |rank: usize, failure: &str| Diagnosis {
        rank,
        failure: failure.into(),
        beats: vec![ranks[rank].recorder.beat()],
    };
    ranks[1].client.fail(&report(1, "the loss is NaN")).unwrap();
    ranks[0].client.fail(&report(0, "stopped by rank 1")).unwrap();
    let cause = run.cause();
    assert_eq!((cause.rank, &*cause.failure), (1, "the loss is NaN"));
    assert!(cause.to_string().contains("rank 1 on here, in training step 7"), "{cause}");
    assert_eq!(ranks[0].told.recv_timeout(TIMEOUT).unwrap(), Stop::Failed(cause));
    let nobody = Diagnosis { rank: 9, failure: "x".into(), beats: vec![] };
    assert!(ranks[0].client.fail(&nobody).is_err());
}

#[test]
fn a_rank_that_hangs_is_found_at_the_deadline_although_its_heart_beats() {
    let run = run(2, Duration::from_millis(600));
    let ranks: Vec<Rank> = (0..2).map(|rank| join(&run, rank)).collect();
    ranks[1].recorder.begin_phase(Name::new("training").with("step", 2));
    ranks[1].recorder.begin_action(3, "F0.1");
    wait_in(&ranks[0].recorder, "loss");
    let began = Instant::now();
    let cause = run.cause();
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    let text = cause.to_string();
    assert_eq!(cause.rank, 1, "{text}");
    assert!(text.contains("runs without progress"), "{text}");
    assert!(text.contains("in training step 2, action 3 (F0.1)"), "{text}");
}

#[test]
fn a_rank_that_makes_progress_may_take_its_time() {
    let run = run(2, Duration::from_millis(1200));
    let ranks: Vec<Rank> = (0..2).map(|rank| join(&run, rank)).collect();
    wait_in(&ranks[0].recorder, "loss");
    for action in 0..60 {
        ranks[1].recorder.begin_action(action, "F");
        std::thread::sleep(Duration::from_millis(40));
    }
    assert_eq!(run.store.cause_within(Duration::ZERO), None);
}

#[test]
fn strangers_are_dropped() {
    let run = run(2, TIMEOUT);
    let other = Token::generate().unwrap();
    let error = Client::connect(run.store.address(), &other, 0, "there", TIMEOUT).unwrap_err();
    assert!(error.to_string().contains("another run's token"), "{error}");
    let error = Client::connect(run.store.address(), &run.token, 2, "here", TIMEOUT).unwrap_err();
    assert!(error.to_string().contains("refused rank 2: the run has ranks 0..2"), "{error}");
    // A second process with a rank that is there.
    let first = join(&run, 0);
    let recorder = Recorder::new(0, "there");
    let refused = run.client(0).watch(&recorder, |_| ()).unwrap_err().to_string();
    assert!(refused.contains("rank 0 is here already, on here"), "{refused}");
    // A rank that speaks for another.
    let refused = run.client(1).record(&first.recorder.record()).unwrap_err().to_string();
    assert!(refused.contains("another rank's"), "{refused}");
    assert_eq!(run.store.cause_within(Duration::ZERO), None);
}

#[test]
fn what_is_not_the_protocol_ends_the_connection_and_nothing_else() {
    let run = run(1, TIMEOUT);
    let rank = join(&run, 0);
    let hello = format!("{{\"token\":\"{}\",\"rank\":0,\"host\":\"x\"}}", run.token.reveal());
    let frame = |json: &str| [&(json.len() as u32).to_le_bytes()[..], json.as_bytes()].concat();
    let junk: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        frame("null"),
        frame("{\"token\":17}"),
        frame("[[[[[[[["),
        [frame(&hello), frame("{\"Nonsense\":1}")].concat(),
        [frame(&hello), (FRAME_BYTES_MAX as u32 + 1).to_le_bytes().to_vec()].concat(),
        [frame(&hello), frame("{\"Get\":{\"key\":\"\\ud800\"}}")].concat(),
        [frame(&hello), vec![0xff, 0xff, 0, 0], b"{".repeat(0xffff)].concat(),
    ];
    let mut ended = 0;
    for bytes in &junk {
        let mut stream = TcpStream::connect(run.store.address()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        // It may end the connection before everything is written.
        let _ = stream.write_all(bytes);
        let mut rest = Vec::new();
        // The end, or a reset: both end it.
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{bytes:?}");
        }
        ended += 1;
    }
    assert_eq!(ended, junk.len());
    rank.client.put("still", b"here").unwrap();
    assert_eq!(run.store.cause_within(Duration::ZERO), None);
}

#[test]
fn silent_and_slow_connections_do_not_hold_the_store() {
    let run = run(2, TIMEOUT);
    // Silent ones, and ones that stop in the middle of a frame.
    let stuck: Vec<TcpStream> = (0..10)
        .map(|index| {
            let mut stream = TcpStream::connect(run.store.address()).unwrap();
            stream.write_all(&[9, 0, 0, 0, b'{'][..index % 6]).unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    let rank = join(&run, 0);
    rank.client.put("a", b"b").unwrap();
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    // They are dropped by themselves.
    for mut stream in stuck {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
    // A crowd of them, of which the last ones come after the rank: they take nobody's place.
    let crowd = |count| -> Vec<TcpStream> {
        (0..count).filter_map(|_| TcpStream::connect(run.store.address()).ok()).collect()
    };
    let (began, before) = (Instant::now(), crowd(200));
    let other = join(&run, 1);
    let after = crowd(200);
    assert_eq!(other.client.get("a", TIMEOUT).unwrap(), b"b");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    // Nor do they hold up its end.
    let began = Instant::now();
    drop(run.store);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    drop((before, after));
}

#[test]
fn a_store_that_dies_stops_its_ranks() {
    let run = run(1, TIMEOUT);
    let rank = join(&run, 0);
    let address = run.store.address();
    drop(run);
    let Stop::Unheard(cause) = rank.told.recv_timeout(TIMEOUT).unwrap() else {
        panic!("nobody could tell a cause");
    };
    assert_eq!(cause.rank, 0);
    assert!(cause.failure.contains(&address.to_string()), "{cause}");
    assert!(cause.failure.contains("whoever started the run"), "{cause}");
    assert!(rank.client.put("a", b"b").is_err());
    // Nobody there any more.
    let token = Token::generate().unwrap();
    let error = Client::connect(address, &token, 0, "here", SHORT).unwrap_err();
    assert!(matches!(error, RendezvousError::Unreachable { .. }), "{error}");
}

#[test]
fn a_store_that_falls_silent_stops_its_ranks() {
    // It takes connections and says nothing: the far side of a link that is cut.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let token = Token::generate().unwrap();
    let began = Instant::now();
    let error = Client::connect(address, &token, 0, "here", SHORT).unwrap_err().to_string();
    assert!(error.contains("no answer for 300"), "{error}");
    assert!(began.elapsed() < TIMEOUT);
}

#[test]
fn many_ranks_at_once() {
    const RANKS: usize = 48;
    let run = run(RANKS, TIMEOUT);
    std::thread::scope(|scope| {
        let run = &run;
        for rank in 0..RANKS {
            scope.spawn(move || {
                let mut joined = join(run, rank);
                joined.client.put(&format!("rank {rank}"), &rank.to_le_bytes()).unwrap();
                let next = (rank + 1) % RANKS;
                let value = joined.client.get(&format!("rank {next}"), TIMEOUT).unwrap();
                assert_eq!(value, next.to_le_bytes());
                joined.watch.take().unwrap().farewell();
            });
        }
    });
    assert!(run.store.over_within(TIMEOUT));
    assert_eq!(run.store.cause_within(Duration::ZERO), None);
}

#[test]
fn a_message_that_is_too_large_is_refused_where_it_is_made() {
    let run = run(1, TIMEOUT);
    let client = run.client(0);
    let error = client.put("large", &vec![200; FRAME_BYTES_MAX]).unwrap_err();
    assert!(matches!(error, RendezvousError::TooLarge { .. }), "{error}");
    client.put("small", b"1").unwrap();
}

#[test]
fn an_address_that_is_not_ours_is_refused() {
    let token = Token::generate().unwrap();
    // Reserved for documents (RFC 5737): no host has it.
    let options = StoreOptions::new("192.0.2.1:0".parse().unwrap(), 1, token);
    let error = Store::bind(options).unwrap_err().to_string();
    assert!(error.contains("cannot listen on 192.0.2.1:0"), "{error}");
}
