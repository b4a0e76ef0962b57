//! Gradients that are not finite, samples and groups that do not fit.

use crate::support::{Case, degrees, model, run};
use trine_comm::SelfComm;
use trine_dp::{DpError, GradNorm, GradSync, GradSyncOptions, Partition, WeightSync, ZeroStage};
use trine_nn::{Numerics, ParamId, Rows};

fn case(numerics: Numerics, zero: ZeroStage, (dp, pp, tp): (usize, usize, usize)) -> Case {
    Case { model: model(), degrees: degrees(dp, pp, tp), zero, numerics, batch: 4 }
}

#[test]
fn a_gradient_that_is_not_finite_stops_all_ranks_with_one_message() {
    let mut cases = 0;
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for numerics in [Numerics::Fast, Numerics::Reference] {
            for zero in [ZeroStage::Zero0, ZeroStage::Zero1] {
                let case = case(numerics, zero, (2, 2, 2));
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
                    let world = rank.world.clone();
                    let norm = GradNorm::new(
                        &case.model,
                        &rank.layout,
                        2,
                        rank.partition,
                        numerics,
                        world,
                    );
                    norm.unwrap().measure(&grads, &rank.ops).unwrap_err().to_string()
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
    let case = case(Numerics::Reference, ZeroStage::Zero0, (1, 1, 1));
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
    let case = case(Numerics::Fast, ZeroStage::Zero0, (1, 1, 1));
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
fn groups_and_ties_that_do_not_fit_are_refused() {
    run(&case(Numerics::Fast, ZeroStage::Zero1, (1, 2, 1)), |rank| {
        let partition = Partition::new(ZeroStage::Zero1, 2, 1).unwrap();
        let error = WeightSync::new(partition, rank.dp.clone()).unwrap_err().to_string();
        assert!(error.contains("rank 1 of 2") && error.contains("rank 0 of 1"), "{error}");

        // One tied bucket: its copy must be somewhere.
        let options = |tied_peer| GradSyncOptions {
            partition: rank.partition,
            numerics: Numerics::Fast,
            global_batch: 4,
            tied_peer,
        };
        let sync = |peer| GradSync::new(&rank.layout, options(peer), rank.dp.clone());
        let text = sync(None).unwrap_err().to_string();
        assert!(text.contains("no communicator") && text.contains("2 ranks"), "{text}");
        let text = sync(Some(SelfComm::new())).unwrap_err().to_string();
        assert!(text.contains("communicator of 1 ranks"), "{text}");
        assert!(sync(rank.tied.clone()).is_ok());
    });
}
