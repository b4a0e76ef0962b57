//! What a block keeps is what the spec says (contract C10).

use crate::support::{Batch, Rank, SEQ, Setup, TOKENS};
use trine_buffer::DType;
use trine_comm::threads;
use trine_nn::{NnError, Saved};
use trine_spec::{Family, ModelSpec, PassShape, Piece, Recompute};
use trine_testkit::toy;

/// Bytes in use after a block's forward pass, after B, and after W.
fn bytes(setup: &Setup, tp: usize) -> Vec<[usize; 3]> {
    threads::run(tp, &Default::default(), |comm| {
        let rank = Rank::new(setup, comm)?;
        let batch = Batch::new(&setup.model);
        let ctx = rank.context(&batch);
        let rows = TOKENS / if setup.sequence_parallel { tp } else { 1 };
        let len = rows * setup.model.hidden;
        let in_use = || rank.pool.stats().bytes_in_use;
        let (y, mut states) = rank.stage.forward(&rank.weights, rank.noise("x", len), &ctx)?;
        drop(y);
        let forward = in_use();
        let kept: usize = states.iter().map(Saved::bytes).sum();
        assert!(kept >= forward, "a state counts what it shares with others too");
        let mut grads = rank.grads();
        let dy = rank.noise("dy", len);
        let (dx, work) =
            rank.stage.backward_input(0, &rank.weights, &mut states, dy, &ctx, &mut grads)?;
        drop(dx);
        let kept = in_use();
        assert!(kept <= work.bytes(), "after B only what W needs is left");
        work.run(&ctx, &mut grads)?;
        Ok::<_, NnError>([forward, kept, in_use()])
    })
    .unwrap()
}

#[test]
fn a_block_keeps_what_the_spec_says_and_gives_all_of_it_back() {
    let wide = ModelSpec { hidden: 64, ffn: 256, ..toy::gpt() };
    let mut compared = 0;
    let families = Family::ALL.iter().map(|family| toy::of(*family));
    let models: Vec<ModelSpec> = [wide, toy::llama(1), toy::uneven(5, 5), toy::uneven(5, 1)]
        .into_iter()
        .chain(families)
        .chain(toy::mixed())
        .collect();
    let what = [
        Recompute::None,
        Recompute::FULL,
        Recompute::tensors(["norms", "mlp.activation", "attention.qkv"]),
        Recompute::tensors(["*.input", "attention.core"]),
        Recompute::tensors(["*"]),
    ];
    for model in &models {
        for compute in [DType::F32, DType::Bf16] {
            for recompute in &what {
                for (tp, sequence_parallel) in [(1, false), (2, false), (2, true), (4, true)] {
                    let setup = Setup {
                        pieces: vec![Piece::Block(1)],
                        sequence_parallel,
                        recompute: recompute.clone(),
                        ..Setup::whole(model.clone(), compute)
                    };
                    let (compute_bytes, sum_bytes) =
                        (compute.bytes(), compute.accumulator().bytes());
                    let mut parts = model.parts(tp).unwrap();
                    parts.recompute(recompute).unwrap();
                    let part = parts.get(Piece::Block(1)).unwrap();
                    for (tp_index, held) in bytes(&setup, tp).into_iter().enumerate() {
                        let shape = PassShape {
                            tokens: TOKENS,
                            tp_index,
                            sequence_parallel,
                            compute_bytes,
                            sum_bytes,
                        };
                        let planned = parts.passes(part, &shape).forward.leaves;
                        let [forward, after_b, after_w] = held;
                        let off = (forward as f64 / planned as f64 - 1.0).abs();
                        assert!(off <= 0.03, "{setup:?} tp {tp}: {forward} planned {planned}");
                        assert!(after_b > 0 && after_w == 0, "{after_b} {after_w}");
                    }
                    compared += 1;
                }
            }
        }
    }
    assert_eq!((compared, TOKENS % SEQ), (models.len() * 2 * what.len() * 4, 0));
}
