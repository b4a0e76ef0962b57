//! Ranks that disagree or hang are told who is where, within a second; failures stop everybody.

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use trine_buffer::{Buf, DType};
use trine_comm::threads::{self, WorldError, WorldOptions};
use trine_comm::{CommError, Communicator, Delivery, Name, Phase, ReduceOp};
use trine_mesh::{AxisSet, Degrees, Mesh};

type Comm = Arc<dyn Communicator>;
type Outcome = Result<(), CommError>;

const BOTH: [Delivery; 2] = [Delivery::Buffered, Delivery::Rendezvous];

fn f32s(len: usize) -> Buf {
    Buf::zeros(DType::F32, len)
}

fn options(delivery: Delivery) -> WorldOptions {
    // Every case is found without the deadline.
    WorldOptions { delivery, deadline: Duration::from_secs(30), ..Default::default() }
}

/// Runs `body` on every rank, under both deliveries; every rank must fail within a second, and the
/// error of each of `told` must contain each of `wanted`, with this file as the call site.
fn expect(ranks: usize, told: &[usize], wanted: &[&str], body: impl Fn(Comm) -> Outcome + Sync) {
    for delivery in BOTH {
        let start = Instant::now();
        let errors = threads::run(ranks, &options(delivery), |comm| {
            Ok::<_, CommError>(body(comm).err().map(|error| error.to_string()))
        })
        .expect("every rank returns its error as a value");
        assert!(start.elapsed() < Duration::from_secs(1), "took {:?}", start.elapsed());
        for rank in told {
            let text = errors[*rank].as_deref().unwrap_or("no error");
            for wanted in wanted.iter().chain(&["diagnosis.rs:"]) {
                assert!(
                    text.contains(wanted),
                    "rank {rank}, {delivery:?}: {wanted} not in: {text}"
                );
            }
        }
    }
}

/// A way in which ranks can fail to meet.
struct Class {
    name: &'static str,
    ranks: usize,
    /// The ranks whose error must hold everything `wanted`.
    told: &'static [usize],
    wanted: &'static [&'static str],
    body: fn(Comm) -> Outcome,
}

/// The eight classes of mismatch: each names the ranks, what they called with group and number, where
/// in the source, and where in the run.
const CLASSES: [Class; 8] = [
    Class {
        name: "another operation",
        ranks: 2,
        told: &[0, 1],
        wanted: &[
            "disagree on operation #1 of group world[0,1]",
            "rank 0 in all_reduce(sum) \"grad bucket 2\" #1, f32 × 4",
            "rank 1 in barrier \"end\" #1",
            "in training step 3, action 5 (G0/2)",
        ],
        body: |comm| {
            comm.barrier("begin")?;
            comm.recorder().begin_phase(Name::new("training").with("step", 3));
            comm.recorder().begin_action(5, "G0/2");
            if comm.rank() == 0 {
                let name = Name::new("grad").with("bucket", 2);
                comm.all_reduce(f32s(4), ReduceOp::Sum, name).map(drop)
            } else {
                comm.barrier("end")
            }
        },
    },
    Class {
        name: "another shape",
        ranks: 3,
        told: &[0, 1, 2],
        wanted: &["rank 2 in all_reduce(sum) \"x\" #0, f32 × 5", "f32 × 4"],
        body: |comm| {
            let len = if comm.rank() == 2 { 5 } else { 4 };
            comm.all_reduce(f32s(len), ReduceOp::Sum, "x").map(drop)
        },
    },
    Class {
        name: "another type",
        ranks: 2,
        told: &[0, 1],
        wanted: &["rank 0 in all_gather", "rank 1 in all_gather", "bf16 × 4", " f16 × 4"],
        body: |comm| {
            let dtype = if comm.rank() == 0 { DType::Bf16 } else { DType::F16 };
            comm.all_gather(Buf::zeros(dtype, 4), Buf::zeros(dtype, 8), "w").map(drop)
        },
    },
    Class {
        name: "another order",
        ranks: 2,
        told: &[0, 1],
        wanted: &["rank 0 in", "rank 1 in", "\"grad bucket 0\" #0", "\"grad bucket 1\" #0"],
        body: |comm| {
            for step in 0..2 {
                let name = Name::new("grad").with("bucket", (step + comm.rank() as u64) % 2);
                comm.all_reduce(f32s(4), ReduceOp::Sum, name)?;
            }
            Ok(())
        },
    },
    Class {
        name: "another group",
        ranks: 4,
        told: &[0, 1, 2, 3],
        wanted: &["deadlock: ranks 0, 1, 2, 3", "group tp[0,1]", "group dp[1,3]", "waits for rank"],
        body: |comm| {
            let mesh = Mesh::new(Degrees { dp: 2, tp: 2, ..Degrees::SERIAL }, 4);
            let mesh = mesh.expect("2 × 2 is 4");
            let tp = comm.split(mesh.colour(comm.rank(), AxisSet::TP), "tp")?;
            let dp = comm.split(mesh.colour(comm.rank(), AxisSet::DP), "dp")?;
            // Ranks 0 and 3 begin with their tensor group, 1 and 2 with their data group.
            let order = if [0, 3].contains(&comm.rank()) { [&tp, &dp] } else { [&dp, &tp] };
            order
                .iter()
                .try_for_each(|group| group.all_reduce(f32s(4), ReduceOp::Sum, "x").map(drop))
        },
    },
    Class {
        name: "another root",
        ranks: 3,
        told: &[0, 1, 2],
        wanted: &["broadcast(root rank 0) \"seed\" #0", "broadcast(root rank 1) \"seed\" #0"],
        body: |comm| comm.broadcast(f32s(1), usize::from(comm.rank() == 1), "seed").map(drop),
    },
    Class {
        name: "a missing participant",
        ranks: 3,
        // Whether one or both are parked when rank 1 ends depends on who is faster; both are told.
        told: &[0, 2],
        wanted: &[
            "can never go on",
            "in all_reduce(sum) \"norm\" #1, f32 × 1, group world[0,1,2]",
            "rank 1 has finished",
        ],
        body: |comm| {
            comm.barrier("begin")?;
            if comm.rank() != 1 {
                comm.all_reduce(f32s(1), ReduceOp::Sum, "norm")?;
            }
            Ok(())
        },
    },
    Class {
        name: "a circular wait",
        ranks: 3,
        told: &[0, 1, 2],
        wanted: &[
            "rank 0 in recv(from rank 1) \"grad\" #0, f32 × 2, group world[0,1,2]",
            "rank 1 in recv(from rank 2)",
            "rank 2 in recv(from rank 0)",
            "waits for rank 0",
        ],
        body: |comm| comm.recv(f32s(2), (comm.rank() + 1) % 3, "grad").map(drop),
    },
];

#[test]
fn eight_classes_of_mismatch() {
    let mut names = Vec::new();
    for Class { name, ranks, told, wanted, body } in CLASSES {
        expect(ranks, told, wanted, body);
        names.push(name);
    }
    names.dedup();
    assert_eq!(names.len(), 8);
}

#[test]
fn another_reduction() {
    expect(2, &[0, 1], &["all_reduce(sum) \"x\"", "all_reduce(mean) \"x\""], |comm| {
        let op = if comm.rank() == 0 { ReduceOp::Sum } else { ReduceOp::Mean };
        comm.all_reduce(f32s(4), op, "x").map(drop)
    });
}

#[test]
fn a_message_of_another_length() {
    let wanted =
        ["rank 0 in send(to rank 1) \"act mb 3\" #0, f32 × 4", "rank 1 in recv(from rank 0)"];
    expect(2, &[1], &wanted, |comm| {
        let name = Name::new("act").with("mb", 3);
        if comm.rank() == 0 {
            comm.send(f32s(4), 1, name)?;
        } else {
            comm.recv(f32s(8), 0, name)?;
        }
        comm.barrier("end")
    });
}

/// The second one is taken for the first.
#[test]
fn messages_in_another_order() {
    expect(2, &[1], &["\"act mb 1\" #0", "\"act mb 0\" #0"], |comm| {
        for step in 0..2 {
            if comm.rank() == 0 {
                comm.send(f32s(4), 1, Name::new("act").with("mb", step))?;
            } else {
                comm.recv(f32s(4), 0, Name::new("act").with("mb", 1 - step))?;
            }
        }
        Ok(())
    });
}

/// One rank in a message, the other in a collective.
#[test]
fn a_circle_of_a_message_and_a_collective() {
    let wanted = ["rank 0 in recv(from rank 1) \"act\"", "rank 1 in all_reduce(max) \"x\""];
    expect(2, &[0, 1], &wanted, |comm| {
        if comm.rank() == 0 {
            comm.recv(f32s(2), 1, "act").map(drop)
        } else {
            comm.all_reduce(f32s(2), ReduceOp::Max, "x").map(drop)
        }
    });
}

/// What the terminal shows of a rank that hangs: who, where in the run, and who waits for it.
#[test]
fn a_rank_that_hangs_is_diagnosed_with_its_place() {
    let options = WorldOptions { deadline: Duration::from_millis(500), ..Default::default() };
    let over = AtomicBool::new(false);
    let failed = threads::run_explained(3, &options, |comm| {
        comm.recorder().begin_phase(Name::new("training").with("step", 9));
        comm.recorder().begin_action(comm.rank(), "F0.0");
        match comm.rank() {
            // Waits for the one that waits for the one that hangs.
            0 => comm.recv(f32s(1), 1, "act").map(drop),
            1 => comm.recv(f32s(1), 2, "act").map(drop),
            _ => {
                while !over.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            }
        }
        .inspect_err(|_| over.store(true, Ordering::Release))
    })
    .expect_err("a rank hangs");
    let diagnosis = &failed.post_mortem.diagnosis;
    let text = diagnosis.to_string();
    assert_eq!(diagnosis.rank, 2, "{text}");
    for wanted in [
        "rank 2, in training step 9, action 2 (F0.0), runs; it has not called anything yet",
        "rank 0, in training step 9, action 0 (F0.0), waits for rank 1 in recv(from rank 1)",
        "rank 1, in training step 9, action 1 (F0.0), waits for rank 2 in recv(from rank 2)",
    ] {
        assert!(text.contains(wanted), "{wanted} not in {text}");
    }
    let records = &failed.post_mortem.records;
    let kept: Vec<usize> = records.iter().map(|record| record.operations.len()).collect();
    assert_eq!(kept, [1, 1, 0]);
    assert_eq!(records[0].operations[0].place, "training step 9, action 0 (F0.0)");
}

/// A rank that begins and ends actions is waited for, far beyond the deadline.
#[test]
fn a_rank_that_makes_progress_is_waited_for() {
    let options = WorldOptions { deadline: Duration::from_secs(1), ..Default::default() };
    threads::run(2, &options, |comm| {
        if comm.rank() == 1 {
            for action in 0..90 {
                comm.recorder().begin_action(action, "F");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        comm.barrier("end")
    })
    .expect("nobody hangs");
    // The same without progress, in a phase that may take longer.
    threads::run(2, &options, |comm| {
        if comm.rank() == 1 {
            let deadline = Some(Duration::from_secs(30));
            comm.recorder().begin_phase(Phase { name: Name::new("saving"), deadline });
            std::thread::sleep(Duration::from_millis(1800));
        }
        comm.barrier("end")
    })
    .expect("a long phase");
}

#[test]
fn crossing_sends_deadlock_under_rendezvous_only_and_exchanges_never() {
    let body = |exchange: bool| {
        move |comm: Comm| {
            let peer = 1 - comm.rank();
            if exchange {
                return comm.exchange(f32s(2), peer, f32s(2), peer, "x").map(drop);
            }
            comm.send(f32s(2), peer, "x")?;
            comm.recv(f32s(2), peer, "x").map(drop)
        }
    };
    for delivery in BOTH {
        threads::run(2, &options(delivery), body(true)).unwrap();
        let sends = threads::run(2, &options(delivery), body(false));
        match delivery {
            Delivery::Buffered => assert!(sends.is_ok()),
            Delivery::Rendezvous => {
                let text = sends.unwrap_err().to_string();
                assert!(text.contains("deadlock: ranks 0, 1"), "{text}");
                assert!(text.contains("send(to rank 1) \"x\" #0"), "{text}");
            }
        }
    }
}

#[test]
fn subgroups_with_different_names_disagree() {
    expect(2, &[0], &["tp[0,1]", "dp[0,1]"], |comm| {
        let part = comm.split(0, if comm.rank() == 0 { "tp" } else { "dp" })?;
        part.barrier("x")
    });
}

#[test]
fn ranks_outside_learn_of_a_mismatch_as_the_first_cause() {
    let errors = threads::run(3, &WorldOptions::default(), |comm| {
        let pair = comm.split(u64::from(comm.rank() == 2), "pair")?;
        if comm.rank() < 2 {
            pair.all_reduce(f32s(1 + comm.rank()), ReduceOp::Sum, "x").map(drop)?;
        }
        Ok::<_, CommError>(comm.barrier("end").unwrap_err())
    });
    // Ranks 0 and 1 return the mismatch; rank 2 was told of it.
    let Err(WorldError::Failed { rank, error: CommError::Mismatch { .. } }) = errors else {
        panic!("{errors:?}")
    };
    assert!(rank < 2);
}

#[test]
fn an_error_stops_the_others_with_the_first_cause() {
    for panics in [false, true] {
        let seen = std::sync::Mutex::new(Vec::new());
        let start = Instant::now();
        let result = threads::run(4, &WorldOptions::default(), |comm| {
            if comm.rank() == 2 {
                comm.recv(f32s(1), 0, "order").map_err(|e| e.to_string())?;
                assert!(!panics, "loss is not finite");
                return Err("loss is not finite".to_owned());
            }
            if comm.rank() == 0 {
                comm.send(f32s(1), 2, "order").map_err(|e| e.to_string())?;
            }
            let pending = comm.post_all_reduce(f32s(8), ReduceOp::Sum, "grad");
            let error = pending.and_then(|pending| pending.wait()).unwrap_err();
            let later = comm.barrier("later").unwrap_err();
            assert_eq!(error, later);
            seen.lock().unwrap().push(error.to_string());
            Err::<(), _>(error.to_string())
        });
        assert!(start.elapsed() < Duration::from_secs(1));
        let message = result.unwrap_err().to_string();
        let (verb, cause) = if panics {
            ("panicked", "stopped by rank 2: panicked: loss is not finite")
        } else {
            ("failed", "stopped by rank 2: loss is not finite")
        };
        assert_eq!(message, format!("rank 2 {verb}: loss is not finite"));
        let seen = seen.into_inner().unwrap();
        assert_eq!(seen, [cause; 3]);
    }
}

#[test]
fn what_was_over_before_a_failure_is_a_result() {
    let stopped = AtomicBool::new(false);
    let outcomes = threads::run(2, &WorldOptions::default(), |comm| {
        let ones = Buf::from_vec(vec![1.0f32; 2]);
        let sum = comm.post_all_reduce(ones, ReduceOp::Sum, "sum")?;
        let sum = if comm.rank() == 1 {
            let sum = sum.wait();
            comm.abort("out of disk");
            stopped.store(true, Ordering::Release);
            sum
        } else {
            while !stopped.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            sum.wait()
        };
        let sum = sum?.into_send(Location::caller())?;
        Ok::<_, CommError>((sum, comm.barrier("x").unwrap_err().to_string()))
    });
    for (sum, error) in outcomes.unwrap() {
        assert_eq!(sum.into_vec(), Ok(vec![2.0f32; 2]));
        assert_eq!(error, "stopped by rank 1: out of disk");
    }
}

#[test]
fn an_abort_by_hand_reaches_ranks_that_are_parked() {
    let errors = threads::run(3, &WorldOptions::default(), |comm| {
        if comm.rank() == 1 {
            std::thread::sleep(Duration::from_millis(20));
            // Through a group of its own: it must reach the whole world.
            comm.abort("out of disk");
            comm.abort("too late to be the first");
        }
        Ok::<_, CommError>(comm.barrier("x").unwrap_err().to_string())
    });
    assert_eq!(errors.unwrap(), ["stopped by rank 1: out of disk"; 3]);
}

#[test]
fn a_rank_that_runs_but_does_not_come_meets_the_deadline() {
    let options = WorldOptions { deadline: Duration::from_millis(500), ..Default::default() };
    let over = AtomicBool::new(false);
    let errors = threads::run(2, &options, |comm| {
        if comm.rank() == 1 {
            comm.barrier("begin")?;
            while !over.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            return Ok::<_, CommError>(comm.barrier("end").unwrap_err().to_string());
        }
        comm.barrier("begin")?;
        let error = comm.barrier("end").unwrap_err().to_string();
        over.store(true, Ordering::Release);
        Ok(error)
    })
    .unwrap();
    for wanted in [
        "rank 0 in barrier \"end\" #1",
        "rank 1 is running; its latest call was: rank 1 in barrier \"begin\" #0",
        "diagnosis.rs",
    ] {
        assert!(errors[0].contains(wanted), "{wanted} not in {}", errors[0]);
    }
    assert!(errors[1].starts_with("stopped by rank 0: rank 0 in barrier"), "{}", errors[1]);
}

#[test]
fn what_nobody_took_is_reported_at_the_end() {
    let result = threads::run(2, &WorldOptions::default(), |comm| {
        if comm.rank() == 0 {
            comm.send(f32s(3), 1, "lost")?;
        }
        Ok::<_, CommError>(())
    });
    let text = result.unwrap_err().to_string();
    assert!(text.contains("rank 0 in send(to rank 1) \"lost\" #0, f32 × 3"), "{text}");
}
