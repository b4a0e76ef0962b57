//! Reduced gradients against the serial ones.

use crate::support::{
    Case, Divided, EMBEDDING, HEAD, Named, Rank, degrees, exact, model, named, run,
};
use trine_buffer::Buf;
use trine_comm::{Communicator, Name};
use trine_nn::{Numerics, ParamId, Rows};

const DIVIDED: [Divided; 3] = [Divided::None, Divided::All, Divided::Mixed];

fn gradients(rank: &Rank) -> Vec<(String, usize, f64)> {
    let (mut grads, mut sync) = (rank.grads(), rank.sync());
    rank.reduce(&mut sync, &mut grads);
    rank.poison_stale(&mut grads);
    rank.owned(|bucket| grads.bucket(bucket).unwrap().to_f64_vec().unwrap())
}

fn case(
    numerics: Numerics,
    divided: Divided,
    (dp, pp, tp): (usize, usize, usize),
    batch: usize,
) -> Case {
    Case { model: model(), degrees: degrees(dp, pp, tp), divided, numerics, batch, frozen: &[] }
}

#[test]
fn fast_sums_are_the_exact_ones_up_to_their_order() {
    let mut cases = 0;
    for divided in DIVIDED {
        for layout in [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1), (2, 2, 1), (2, 2, 2), (3, 1, 2)]
        {
            let case = case(Numerics::Fast, divided, layout, 12);
            let mut checked = 0;
            for (name, index, value) in run(&case, |rank| gradients(&rank)).into_iter().flatten() {
                let by_vocabulary = name == EMBEDDING || name == HEAD;
                if by_vocabulary && index >= case.model.vocab * case.model.hidden {
                    assert_eq!(value, 0.0, "padding of {name}");
                } else {
                    let (sum, size) = exact(&case.model, &name, index, case.batch);
                    // 24 rounded additions at most: 12 samples of two uses.
                    let bound = 24.0 * f64::from(f32::EPSILON) * size;
                    assert!(
                        (value - sum).abs() <= bound,
                        "{case:?} {name}[{index}]: {value}, {sum}"
                    );
                }
                checked += 1;
            }
            assert!(checked > 5000, "{checked}");
            cases += 1;
        }
    }
    assert_eq!(cases, 21);
}

#[test]
fn both_stages_and_a_mixture_reduce_to_the_same_bits() {
    let mut compared = 0;
    for layout in [(2, 1, 1), (3, 1, 1), (4, 1, 1), (2, 2, 1)] {
        let [whole, parts, mixed] = DIVIDED.map(|divided| {
            named(run(&case(Numerics::Fast, divided, layout, 12), |rank| gradients(&rank)))
        });
        assert_eq!(whole, parts, "{layout:?}");
        assert_eq!(whole, mixed, "{layout:?}");
        compared += whole.len();
    }
    assert!(compared > 20_000, "{compared}");
}

fn serial(batch: usize) -> Named {
    let case = case(Numerics::Reference, Divided::None, (1, 1, 1), batch);
    named(run(&case, |rank| gradients(&rank)))
}

#[test]
fn reference_sums_have_the_serial_bits_in_every_layout() {
    let (mut cases, mut elements) = (0, 0);
    // Splits into unequal trees (12 on 2: 4 + 2 and 2 + 4), and ones that do not even divide.
    for batch in [4, 6, 7, 12] {
        let serial = serial(batch);
        for divided in DIVIDED {
            for layout in
                [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1), (2, 2, 1), (4, 2, 1), (2, 2, 2)]
            {
                let case = case(Numerics::Reference, divided, layout, batch);
                let mut seen = 0;
                for (name, index, value) in
                    run(&case, |rank| gradients(&rank)).into_iter().flatten()
                {
                    let expected = serial[&(name.clone(), index)];
                    assert_eq!(value.to_bits(), expected.to_bits(), "{case:?} {name}[{index}]");
                    seen += 1;
                }
                assert!(seen >= serial.len(), "{seen} of {}", serial.len());
                elements += seen;
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 84);
    assert!(elements > 500_000, "{elements}");
}

#[test]
fn the_order_of_samples_would_show() {
    // Control: the comparison of bits above is not vacuous. In fast numerics some element differs.
    let reference = serial(12);
    let fast = case(Numerics::Fast, Divided::None, (1, 1, 1), 12);
    let fast = named(run(&fast, |rank| gradients(&rank)));
    let differing = fast.iter().filter(|(at, value)| reference[*at] != **value).count();
    assert!(differing > 1000, "{differing}");
}

#[test]
fn a_bucket_that_nobody_contributed_to_is_zero() {
    for numerics in [Numerics::Fast, Numerics::Reference] {
        let case = case(numerics, Divided::All, (2, 1, 1), 4);
        let zeros = run(&case, |rank| {
            let (mut grads, mut sync) = (rank.grads(), rank.sync());
            sync.post(&mut grads, 1, &rank.ops).unwrap();
            sync.wait(&mut grads, 1, &rank.ops).unwrap();
            let values = grads.bucket(1).unwrap().to_f64_vec().unwrap();
            values.iter().filter(|value| **value == 0.0).count() == values.len()
        });
        assert_eq!(zeros, [true, true]);
    }
}

#[test]
fn posting_does_not_wait_and_a_posted_bucket_cannot_be_written() {
    for (numerics, divided) in [
        (Numerics::Fast, Divided::None),
        (Numerics::Fast, Divided::All),
        (Numerics::Reference, Divided::All),
    ] {
        let case = case(numerics, divided, (2, 1, 1), 4);
        let done = run(&case, |rank| {
            let (mut grads, mut sync) = (rank.grads(), rank.sync());
            rank.accumulate(&mut grads);
            let (token, go) = (Buf::from_vec(vec![1u8]), Name::new("go"));
            let buckets = rank.layout.buckets.iter().enumerate();
            let ready: Vec<usize> = buckets.filter(|(_, b)| !b.tied).map(|(i, _)| i).collect();
            let post_all = |sync: &mut trine_dp::GradSync, grads: &mut _| {
                ready.iter().for_each(|bucket| sync.post(grads, *bucket, &rank.ops).unwrap());
            };
            // Rank 1 posts only once rank 0 has posted everything: waiting would be a deadlock.
            let comm: &dyn Communicator = &*rank.world;
            if rank.at.dp == 0 {
                post_all(&mut sync, &mut grads);
                assert!(ready.iter().all(|bucket| !sync.is_done(*bucket)));
                let id = ParamId::find(&rank.layout, &["block.0.norm1.weight"]).unwrap();
                let rows = Rows { samples: 0..1, seq: 1 };
                let error = grads.add(&id, &rows, |_, _| Ok(())).unwrap_err().to_string();
                assert!(error.contains("in flight"), "{error}");
                let error = sync.post(&mut grads, id.bucket(), &rank.ops).unwrap_err().to_string();
                assert!(error.contains("in flight"), "{error}");
                comm.send(token, 1, go).unwrap();
            } else {
                comm.recv(token, 0, go).unwrap();
                post_all(&mut sync, &mut grads);
                assert!(
                    ready.iter().all(|bucket| sync.is_done(*bucket)),
                    "the last arriver reduces"
                );
            }
            ready.iter().for_each(|bucket| sync.wait(&mut grads, *bucket, &rank.ops).unwrap());
            let error = sync.wait(&mut grads, ready[0], &rank.ops).unwrap_err().to_string();
            assert!(error.contains("not posted"), "{error}");
            ready.len()
        });
        assert!(done[0] > 1 && done[0] == done[1], "{done:?}");
    }
}
