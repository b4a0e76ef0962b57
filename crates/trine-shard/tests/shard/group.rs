//! The borders of a parallel region: what crosses them, and what a failure there says.

use std::sync::{Arc, Mutex};
use trine_buffer::{Act, Buf, DType, Pool};
use trine_comm::wrap::{Action, Tap};
use trine_comm::{CommError, Name, Operation, SelfComm, threads};
use trine_kernels::{CpuOps, Team};
use trine_nn::{Context, NnError, Rows};
use trine_shard::{Partial, Stream, TensorGroup};

const NAME: Name = Name::new("border");

fn crossings(sequence_parallel: bool) -> Vec<Operation> {
    let seen: Arc<Mutex<Vec<Operation>>> = Arc::default();
    threads::run(2, &Default::default(), |comm| {
        let (log, rank) = (seen.clone(), comm.rank());
        let comm = Tap::around(comm, move |_, request| {
            if rank == 0 {
                log.lock().unwrap().push(request.operation);
            }
            Action::Forward
        });
        let group = TensorGroup::new(comm, sequence_parallel);
        let (ops, pool) = (CpuOps::new(Team::new(1)), Pool::new());
        let ctx = Context::train(&ops, &pool, DType::F64, Rows { samples: 0..1, seq: 4 });
        let rows = group.stream_rows(4);
        let stream = |scale: f64| {
            let own: Vec<f64> = rows.clone().map(|row| row as f64 * scale).collect();
            Stream::assume(Act::new(Buf::from_vec(own)))
        };
        let whole = group.enter(&stream(1.0), NAME, &ctx)?;
        assert_eq!(whole.to_f64_vec().unwrap(), [0.0, 1.0, 2.0, 3.0]);
        let mine = || Partial::assume(Buf::from_vec(vec![(rank + 1) as f64; 4]));
        let sums = vec![3.0; rows.len()];
        assert_eq!(group.leave(mine(), NAME, &ctx)?.to_f64_vec().unwrap(), sums);
        let whole = group.leave_backward(stream(2.0), NAME, &ctx)?;
        assert_eq!(whole.to_f64_vec().unwrap(), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(group.enter_backward(mine(), NAME, &ctx)?.to_f64_vec().unwrap(), sums);
        Ok::<_, NnError>(())
    })
    .unwrap();
    Arc::into_inner(seen).unwrap().into_inner().unwrap()
}

#[test]
fn each_crossing_has_its_collective_and_its_conjugate() {
    use trine_comm::ReduceOp::Sum;
    assert_eq!(crossings(false), [Operation::AllReduce(Sum), Operation::AllReduce(Sum)]);
    let (gather, scatter) = (Operation::AllGather, Operation::ReduceScatter(Sum));
    assert_eq!(crossings(true), [gather, scatter, gather, scatter]);
}

#[test]
fn one_rank_holds_all_rows_and_communicates_nothing() {
    let comm = Tap::around(SelfComm::new(), |_, _| Action::Fail("no communication".into()));
    let group = TensorGroup::new(comm, true);
    assert!(!group.sequence_parallel());
    assert_eq!((group.size(), group.rank(), group.stream_rows(6)), (1, 0, 0..6));
    let (ops, pool) = (CpuOps::new(Team::new(1)), Pool::new());
    let ctx = Context::train(&ops, &pool, DType::F64, Rows { samples: 0..1, seq: 4 });
    let x = Stream::assume(Act::new(Buf::zeros(DType::F64, 4)));
    assert_eq!(group.enter(&x, NAME, &ctx).unwrap().len(), 4);
    let sum = Partial::assume(Buf::zeros(DType::F64, 4));
    assert_eq!(group.leave(sum, NAME, &ctx).unwrap().len(), 4);
}

#[test]
fn a_failed_collective_names_itself_and_stops_the_other_rank() {
    let error = threads::run(2, &Default::default(), |comm| {
        let failing = comm.rank() == 1;
        let comm = Tap::around(comm, move |_, _| match failing {
            true => Action::Fail("cable pulled".into()),
            false => Action::Forward,
        });
        let group = TensorGroup::new(comm, false);
        let (ops, pool) = (CpuOps::new(Team::new(1)), Pool::new());
        let ctx = Context::train(&ops, &pool, DType::F64, Rows { samples: 0..1, seq: 4 });
        group.leave(Partial::assume(Buf::zeros(DType::F64, 4)), NAME, &ctx)
    })
    .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("cable pulled") && text.contains("border"), "{text}");
    let threads::WorldError::Failed { rank: 1, error: NnError::Communication(cause) } = error
    else {
        panic!("{text}");
    };
    assert!(matches!(cause.downcast_ref(), Some(CommError::Injected { .. })));
}
