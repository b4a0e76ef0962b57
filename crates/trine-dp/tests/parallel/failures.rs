//! Gradients that are not finite, samples, shares and ties that do not fit.

use crate::support::{Case, Divided, degrees, model, run};
use trine_buffer::Place;
use trine_comm::SelfComm;
use trine_dp::{DpError, GradNorm, GradSync, GradSyncOptions, WeightSync, own_ranges};
use trine_mesh::AxisSet;
use trine_nn::{Numerics, ParamId, Rows};
use trine_spec::Shares;

fn case(numerics: Numerics, divided: Divided, (dp, pp, tp): (usize, usize, usize)) -> Case {
    Case { model: model(), degrees: degrees(dp, pp, tp), divided, numerics, batch: 4, frozen: &[] }
}

#[test]
fn a_gradient_that_is_not_finite_stops_all_ranks_with_one_message() {
    let mut cases = 0;
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for numerics in [Numerics::Fast, Numerics::Reference] {
            for divided in [Divided::None, Divided::All] {
                let case = case(numerics, divided, (2, 2, 2));
                let texts = run(&case, |rank| {
                    let (mut grads, mut sync) = (rank.grads(), rank.sync());
                    // On one rank of the last stage, in two parameters: the first is named.
                    for name in ["block.1.mlp.down.bias", "block.1.norm2.weight"] {
                        if rank.at.dp == 1 && rank.at.pp == 1 {
                            let id = ParamId::find(&rank.layout, &[name]).unwrap();
                            let rows = Rows { samples: 2..3, seq: 1 };
                            let spoil = |_, sum: trine_buffer::SliceMut<'_>| {
                                sum.typed::<f32>()?[5] = value;
                                Ok(())
                            };
                            grads.add(&id, &rows, spoil).unwrap();
                        }
                    }
                    rank.reduce(&mut sync, &mut grads);
                    rank.poison_stale(&mut grads);
                    rank.norm().measure(&grads, &rank.ops).unwrap_err().to_string()
                });
                assert!(texts[0].contains("\"block.1.norm2.weight\""), "{}", texts[0]);
                assert!(texts[0].contains("rank ") && texts[0].contains("bucket "), "{}", texts[0]);
                assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 12);
}

#[test]
fn sums_over_other_samples_are_refused() {
    let case = case(Numerics::Reference, Divided::None, (1, 1, 1));
    let texts = run(&case, |rank| {
        let (mut grads, mut sync) = (rank.grads(), rank.sync());
        let id = ParamId::find(&rank.layout, &["block.0.norm1.bias"]).unwrap();
        // A batch of 4 is one subtree of level 2; three samples are not.
        grads.add(&id, &Rows { samples: 0..3, seq: 1 }, |_, _| Ok(())).unwrap();
        sync.post(&mut grads, id.bucket(), &rank.ops).unwrap_err().to_string()
    });
    assert!(texts[0].contains("level: 1") && texts[0].contains("level: 2"), "{}", texts[0]);
}

#[test]
fn trees_are_refused_in_fast_numerics() {
    let case = case(Numerics::Fast, Divided::None, (1, 1, 1));
    run(&case, |rank| {
        let mut tree = trine_nn::GradStore::new(
            rank.layout.clone(),
            trine_buffer::DType::F32,
            Numerics::Reference,
        );
        let error = rank.sync().post(&mut tree, 0, &rank.ops).unwrap_err();
        assert!(matches!(error, DpError::Numerics { bucket: 0 }), "{error}");
    });
}

#[test]
fn shares_and_ties_that_do_not_fit_are_refused() {
    run(&case(Numerics::Fast, Divided::All, (1, 2, 1)), |rank| {
        // What is not built, by everybody who reads the bucket.
        let mut layout = (*rank.layout).clone();
        layout.buckets[1].shared = Shares::zero(3, AxisSet::DP);
        let options = |tied_peer| GradSyncOptions {
            numerics: Numerics::Fast,
            global_batch: 4,
            tied_peer,
            place: Place::Host,
        };
        let (names, world) = (rank.case.model.parts(1).unwrap().names(), rank.world.clone());
        let refused = [
            own_ranges(&layout, &rank.groups).map(drop).unwrap_err(),
            GradSync::new(&layout, options(None), &rank.groups).map(drop).unwrap_err(),
            WeightSync::new(&layout, &rank.groups, &Place::Host).map(drop).unwrap_err(),
            GradNorm::new(names, &layout, &rank.groups, Numerics::Fast, world)
                .map(drop)
                .unwrap_err(),
        ];
        for text in refused.map(|error| error.to_string()) {
            assert!(text.contains("bucket 1 divides its weights over dp"), "{text}");
            assert!(text.ends_with("nearest valid value: none"), "{text}");
        }

        // One tied bucket: its copy must be somewhere.
        let sync = |peer| GradSync::new(&rank.layout, options(peer), &rank.groups);
        let text = sync(None).unwrap_err().to_string();
        assert!(text.contains("no communicator") && text.contains("2 ranks"), "{text}");
        let text = sync(Some(SelfComm::new())).unwrap_err().to_string();
        assert!(text.contains("communicator of size 1"), "{text}");
        assert!(sync(rank.tied.clone()).is_ok());
    });
}
