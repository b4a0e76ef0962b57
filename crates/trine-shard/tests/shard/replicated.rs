//! A layer that nobody has split, on ranks that split the stream: to the bit what one rank computes.

use crate::support::{Part, Rank, SEQ, Setup, outcome, param};
use trine_buffer::DType;
use trine_comm::Name;
use trine_nn::candle_layer::CandleLayer;
use trine_nn::{Context, Layer, NnError, Numerics};
use trine_shard::{Replicated, Stream};

const HIDDEN: usize = 6;

/// `x + tanh(mix · x · wᵀ)`: every token of a sample sees all others, those of other ranks too.
fn mixer(rank: &mut Rank, ctx: &Context<'_>) -> Result<(Part, Part), NnError> {
    let params = vec![
        (rank.find(&["mix"]), vec![SEQ, SEQ]),
        (rank.find(&["w"]), vec![HIDDEN, HIDDEN]),
        (rank.find(&["gain"]), vec![HIDDEN]),
    ];
    let closure = CandleLayer::new(HIDDEN, HIDDEN, params, |x, w| {
        let mixed = w[0].broadcast_left(x.dim(0)?)?.matmul(x)?;
        x + mixed.broadcast_matmul(&w[1].t()?)?.tanh()?.broadcast_mul(&w[2])?
    });
    let layer = Replicated::new(rank.group.clone(), closure, Name::new("mixer"));
    let x = rank.stream("x", HIDDEN).into_inner();
    let (y, saved) = layer.forward(&rank.weights, x, ctx)?;
    let y = rank.of_stream(&Stream::assume(y), HIDDEN);
    let dy = rank.stream("dy", HIDDEN).into_inner();
    let (dx, work) = layer.backward_input(&rank.weights, saved, dy, ctx, &mut rank.grads)?;
    rank.run(work, ctx)?;
    Ok((y, rank.of_stream(&Stream::assume(dx), HIDDEN)))
}

#[test]
fn a_replicated_layer_has_the_bits_of_one_rank_and_counts_its_gradient_once() {
    let params = [
        param("mix", [SEQ, SEQ], None),
        param("w", [HIDDEN, HIDDEN], None),
        param("gain", [HIDDEN], None),
    ];
    let mut compared = 0;
    for numerics in [Numerics::Fast, Numerics::Reference] {
        for compute in [DType::F32, DType::F64] {
            let serial = Setup { tp: 1, sequence_parallel: false, numerics, compute };
            let exact = outcome(serial, &params, &mixer);
            let all = exact.grads.values().chain([&exact.y, &exact.dx]);
            assert!(all.flatten().all(|value| value.abs() > 1e-9), "zeros prove nothing");
            for tp in [1, 2, 4] {
                for sequence_parallel in [false, true] {
                    let setup = Setup { tp, sequence_parallel, ..serial };
                    assert!(outcome(setup, &params, &mixer) == exact, "{setup:?}");
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 2 * 2 * 3 * 2);
}
