//! The communicator by way of the store: the conformance suite, and how it fails.
#![expect(clippy::unwrap_used, reason = "a failing call fails the test, in its helpers too")]

use std::sync::Arc;
use std::time::{Duration, Instant};
use trine_comm::conformance::{self, Body, Scope};
use trine_comm::{Buf, CommError, Communicator, Delivery, Diagnosis, Recorder, ReduceOp};
use trine_rendezvous::{Client, Store, StoreComm, StoreOptions, Token};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs `body` on each rank of a world, which is a thread here and has a client of its own.
fn run<T: Send>(
    ranks: usize,
    deadline: Duration,
    body: impl Fn(Arc<dyn Communicator>) -> T + Sync,
) -> (Vec<T>, Option<Diagnosis>) {
    let token = Token::generate().unwrap();
    let bind = "127.0.0.1:0".parse().unwrap();
    let store = Store::bind(StoreOptions::new(bind, ranks, token.clone())).unwrap();
    let (address, token, body) = (store.address(), &token, &body);
    let results = std::thread::scope(|scope| {
        let live = |rank: usize| {
            let client = Client::connect(address, token, rank, "here", TIMEOUT).unwrap();
            let recorder = Recorder::new(rank, "here");
            body(StoreComm::world(Arc::new(client), ranks, recorder, deadline))
        };
        let threads: Vec<_> = (0..ranks).map(|rank| scope.spawn(move || live(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    (results, store.cause_within(Duration::ZERO))
}

#[test]
fn the_suite_passes() {
    const SIZES: &[usize] = &[1, 3];
    let launch = |ranks, _, body: Body<'_>| {
        let (results, cause) = run(ranks, TIMEOUT, body);
        assert_eq!(cause, None);
        results.into_iter().collect()
    };
    let scope = Scope { sizes: SIZES, deliveries: &[Delivery::Buffered] };
    let passed = conformance::check(&launch, scope).unwrap();
    assert_eq!((passed, passed > 700), (conformance::cases(scope), true));
}

fn one(value: f32) -> Buf {
    Buf::from_vec(vec![value])
}

#[test]
fn ranks_that_disagree_are_told_both_calls_and_stop() {
    let (told, cause) = run(3, TIMEOUT, |comm| {
        let name = if comm.rank() == 2 { "norm" } else { "loss" };
        comm.all_reduce(one(1.0), ReduceOp::Sum, name)?;
        comm.barrier("end")
    });
    let told: Vec<String> = told.into_iter().map(|told| told.unwrap_err().to_string()).collect();
    let cause = cause.unwrap().failure;
    assert!(cause.contains("\"norm\" #0") && cause.contains("\"loss\" #0"), "{cause}");
    assert!(told.contains(&cause), "{told:?}");
}

#[test]
fn a_rank_that_does_not_come_is_named_after_the_deadline() {
    let deadline = Duration::from_millis(200);
    let started = Instant::now();
    let (told, cause) = run(2, deadline, |comm| {
        if comm.rank() == 0 {
            return comm.barrier("end");
        }
        while comm.check().is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        comm.check()
    });
    let cause = cause.unwrap();
    assert_eq!(cause.rank, 0);
    for words in ["barrier \"end\" #0", "rank 1 has not been heard of"] {
        assert!(cause.failure.contains(words), "{}", cause.failure);
    }
    assert!(matches!(&told[1], Err(CommError::Aborted { cause }) if cause.rank == 0), "{told:?}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

/// An operation that nobody waits for is taken out of the store all the same.
#[test]
fn what_is_dropped_leaves_the_store() {
    let (sums, cause) = run(2, TIMEOUT, |comm| {
        for _ in 0..100 {
            drop(comm.post_all_reduce(one(1.0), ReduceOp::Sum, "dropped")?);
        }
        Ok::<_, CommError>(comm.all_reduce(one(2.0), ReduceOp::Sum, "kept")?.typed::<f32>()?[0])
    });
    assert_eq!(sums.into_iter().collect::<Result<Vec<_>, _>>().unwrap(), [4.0, 4.0]);
    assert_eq!(cause, None);
}

#[test]
fn an_abort_reaches_all() {
    let (told, cause) = run(2, TIMEOUT, |comm| {
        if comm.rank() == 0 {
            comm.abort("disk full");
        }
        comm.barrier("end").unwrap_err().to_string()
    });
    assert_eq!(told, ["stopped by rank 0: disk full", "stopped by rank 0: disk full"]);
    assert_eq!(cause.unwrap().failure, "disk full");
}
