//! The conformance suite on threads, controls of the suite itself, and buffers under way.

use super::{Delivery, WorldOptions, connect, run};
use crate::conformance::{self, Body, Scope};
use crate::wrap::{Action, Tap};
use crate::{CommError, Communicator, Operation, ReduceOp, tree_fold};
use std::sync::Arc;
use trine_buffer::{Buf, DType, Pool};

fn launch(ranks: usize, delivery: Delivery, body: Body<'_>) -> Result<(), String> {
    let options = WorldOptions { delivery, ..Default::default() };
    run(ranks, &options, body).map(drop).map_err(|error| error.to_string())
}

#[test]
fn threads_conform() {
    let passed = conformance::check(&launch, Scope::FULL).unwrap();
    assert_eq!(passed, conformance::cases(Scope::FULL));
    // One rank: 9 collectives; more: 10. Each × 7 types × 4 lengths × 2 forms; messages in 1 or 3
    // forms; 3 divisions × 9 collectives; overlap, NaN and barrier.
    let one = 9 * 56 + 28 + 30;
    let more = 10 * 56 + 3 * 28 + 30;
    assert_eq!(passed, 2 * (one + 4 * more));
}

/// The suite must notice a backend that is wrong in one place.
#[test]
fn the_suite_notices_a_wrong_backend() {
    type Fault = fn(&mut crate::Request) -> Action;
    let faults: [(&str, Fault); 5] = [
        ("an all-reduce that does nothing", |request| match request.operation {
            Operation::AllReduce(_) => Action::Skip,
            _ => Action::Forward,
        }),
        ("max for sum", |request| {
            if request.operation == Operation::AllReduce(ReduceOp::Sum) {
                request.operation = Operation::AllReduce(ReduceOp::Max);
            }
            Action::Forward
        }),
        ("the wrong root", |request| {
            if let Operation::Broadcast { root } = &mut request.operation {
                *root = 1 - *root;
            }
            Action::Forward
        }),
        ("one flipped bit", |request| {
            if let (Operation::AllToAll, Some(send)) = (request.operation, &mut request.send)
                && let Some(byte) = send.slice_mut().bytes().unwrap().last_mut()
            {
                *byte ^= 1;
            }
            Action::Forward
        }),
        ("an empty barrier", |request| match request.operation {
            Operation::Barrier => Action::Skip,
            _ => Action::Forward,
        }),
    ];
    let mut noticed = 0;
    for (what, fault) in faults {
        let faulty = |ranks, delivery, body: Body<'_>| {
            let tapped = |comm| body(Tap::around(comm, move |_, request| fault(request)));
            launch(ranks, delivery, &tapped)
        };
        let scope = Scope { sizes: &[2], deliveries: &[Delivery::Buffered] };
        assert!(conformance::check(&faulty, scope).is_err(), "{what} went unnoticed");
        noticed += 1;
    }
    assert_eq!(noticed, 5);
}

/// The order of the tree is visible in the bits, so comparing bits compares orders.
#[test]
fn another_order_has_other_bits() {
    // 2²⁴ + 1 rounds back to 2²⁴, 2²⁴ + 2 does not.
    let values = [16_777_216.0f32, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    let tree = tree_fold(values.iter().copied(), |l, r| l + r).unwrap();
    let line: f32 = values.iter().sum();
    assert_eq!((tree, line), (16_777_222.0, 16_777_216.0));
    let sums = run(8, &WorldOptions::default(), |comm| {
        let buf = Buf::from_vec(vec![values[comm.rank()]]);
        Ok::<_, CommError>(comm.all_reduce(buf, ReduceOp::Sum, "x")?.typed::<f32>()?[0].to_bits())
    });
    assert_eq!(sums.unwrap(), [tree.to_bits(); 8]);
}

/// Whoever drops a pending operation does not get its memory back before the peers are done.
#[test]
fn a_dropped_operation_keeps_its_buffers_until_it_is_over() {
    let mut comms = connect(2, &WorldOptions::default());
    let (one, zero) = (comms.pop().unwrap(), comms.pop().unwrap());
    let pool = Pool::new();
    let mut mine = pool.alloc(DType::F32, 4).unwrap();
    mine.typed_mut::<f32>().unwrap().fill(1.0);
    drop(zero.post_all_reduce(mine, ReduceOp::Sum, "grad").unwrap());
    assert_eq!((pool.stats().bytes_in_use, pool.stats().bytes_idle), (16, 0));
    let sum = one.all_reduce(Buf::from_vec(vec![2.0f32; 4]), ReduceOp::Sum, "grad").unwrap();
    assert_eq!(sum.typed::<f32>().unwrap(), [3.0; 4]);
    assert_eq!((pool.stats().bytes_in_use, pool.stats().bytes_idle), (0, 16));
    // The same for a message that nobody has taken, and for one that is over when it is dropped.
    for name in ["taken later", "taken before"] {
        let incoming = pool.alloc(DType::F32, 4).unwrap();
        let pending = zero.post_recv(incoming, 1, name).unwrap();
        let mut pending = Some(pending);
        if name == "taken later" {
            drop(pending.take());
        }
        assert_eq!(pool.stats().bytes_in_use, 16);
        drop(one.send(Buf::from_vec(vec![5.0f32; 4]), 0, name).unwrap());
        drop(pending);
        assert_eq!(pool.stats().bytes_in_use, 0);
    }
    assert_eq!(pool.stats().allocations, 1);
}

#[test]
fn a_buffered_sender_goes_on_and_a_rendezvous_sender_waits() {
    let send = |delivery| {
        let mut comms = connect(2, &WorldOptions { delivery, ..Default::default() });
        let (one, zero) = (comms.pop().unwrap(), comms.pop().unwrap());
        let pending = zero.post_send(Buf::from_vec(vec![7u32]), 1, "x").unwrap();
        let before = pending.is_done();
        let got = one.recv(Buf::zeros(DType::U32, 1), 0, "x").unwrap();
        assert_eq!(got.typed::<u32>().unwrap(), [7]);
        assert!(pending.is_done());
        let back = pending.wait().unwrap().send.unwrap();
        assert_eq!(back.typed::<u32>().unwrap(), [7]);
        before
    };
    assert!(send(Delivery::Buffered));
    assert!(!send(Delivery::Rendezvous));
}

#[test]
fn a_communicator_is_a_shared_trait_object() {
    fn takes(_: &(dyn Communicator + 'static)) {}
    fn shared<T: Send + Sync + ?Sized>(_: &T) {}
    for comm in connect(2, &WorldOptions::default()) {
        let comm: Arc<dyn Communicator> = comm;
        takes(&*comm);
        shared(&*comm);
    }
}
