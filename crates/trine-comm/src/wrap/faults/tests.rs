//! Each fault on a small program: what it looks like, and that it strikes where it should.

use super::*;
use crate::threads::{self, WorldError};
use crate::wrap::Sealed;
use crate::{Name, ReduceOp};
use trine_buffer::DType;

/// Three ranks: a ring of messages and a sum, four times; every rank's sums.
fn program(comm: &Arc<dyn Communicator>) -> Result<Vec<f32>, CommError> {
    let (rank, size) = (comm.rank(), comm.size());
    let (next, previous) = ((rank + 1) % size, (rank + size - 1) % size);
    let mut value = vec![rank as f32 + 1.0; 4];
    let mut sums = Vec::new();
    for step in 0..4 {
        let name = Name::new("act").with("step", step);
        let send = comm.post_send(Buf::from_vec(value.clone()), next, name)?;
        let recv = comm.post_recv(Buf::zeros(DType::F32, 4), previous, name)?;
        let got = recv.wait()?.into_recv(std::panic::Location::caller())?;
        send.wait()?;
        value = comm.all_reduce(got, ReduceOp::Sum, "sum")?.into_vec()?;
        sums.push(value[0]);
    }
    Ok(sums)
}

type Ran = Result<Vec<Vec<f32>>, WorldError<CommError>>;

fn run(injection: Option<Injection>) -> (Ran, Faults) {
    let faults = Faults::new(injection);
    let result =
        threads::run(3, &Default::default(), |comm| program(&Sealed::around(faults.around(comm))));
    (result, faults)
}

#[test]
fn without_a_fault_operations_are_counted() {
    let (result, faults) = run(None);
    assert_eq!(result.unwrap(), vec![vec![6.0, 18.0, 54.0, 162.0]; 3]);
    assert_eq!(faults.operations(), [12, 12, 12]);
    assert_eq!(faults.struck(), None);
}

/// Every fault at every operation: the right numbers or a diagnosis, nothing else.
#[test]
fn no_fault_goes_unnoticed() {
    let right = run(None).0.unwrap();
    let (mut harmless, mut noticed) = (0, 0);
    for kind in Fault::KINDS {
        for rank in 0..3 {
            for operation in 0..12 {
                for bit in [0, 31, 127] {
                    let fault = match kind {
                        Fault::Corrupt { .. } => Fault::Corrupt { bit },
                        other => other,
                    };
                    if fault == kind && bit > 0 {
                        continue;
                    }
                    let injection = Injection { fault, rank, operation };
                    let (result, faults) = run(Some(injection));
                    let struck = faults.struck().unwrap_or_else(|| panic!("{injection:?}"));
                    assert_eq!(struck.rank, rank);
                    match result {
                        Ok(sums) => {
                            assert_eq!(sums, right, "{injection:?} at {struck}");
                            harmless += 1;
                        }
                        Err(error) => {
                            check(injection, &struck, &error.to_string());
                            noticed += 1;
                        }
                    }
                }
            }
        }
    }
    // Delays and new orders do no harm; everything else is noticed.
    assert_eq!((harmless, noticed), (2 * 36, 4 * 36 + 3 * 36));
}

fn check(injection: Injection, struck: &Call, error: &str) {
    let says = |part: &str| assert!(error.contains(part), "{injection:?}: {part} not in {error}");
    let rank = format!("rank {}", injection.rank);
    match injection.fault {
        Fault::Delay(_) | Fault::Reorder => panic!("{injection:?} at {struck}: {error}"),
        Fault::Drop | Fault::Duplicate => says(&rank),
        Fault::Corrupt { .. } => {
            says("altered on the way");
            says(&format!("{rank} in {}", struck.operation.label()));
            says(&struck.name.to_string());
        }
        Fault::KillBefore | Fault::KillAfter => {
            says(&format!("{rank} failed"));
            says("was killed");
            says(&struck.name.to_string());
        }
    }
}

#[test]
fn the_same_fault_strikes_the_same_operation() {
    for fault in Fault::KINDS {
        let injection = Some(Injection { fault, rank: 1, operation: 5 });
        let struck = || run(injection).1.struck().unwrap();
        assert_eq!(struck(), struck(), "{fault:?}");
    }
}
