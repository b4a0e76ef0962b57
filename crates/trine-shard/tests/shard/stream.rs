//! Row-wise layers on the residual stream.

use crate::support::{COMPARED, Part, Rank, compare, param};
use trine_comm::Name;
use trine_nn::{Context, Dropout, NnError, NormLayer};
use trine_shard::{StreamDropout, StreamNorm};
use trine_spec::Norm;

const HIDDEN: usize = 16;

fn norm(
    rank: &mut Rank,
    ctx: &Context<'_>,
    kind: Norm,
    names: &[&str],
    beside: bool,
) -> Result<(Part, Part), NnError> {
    let norm = NormLayer { kind, params: rank.find(names), cols: HIDDEN, eps: 1e-5 };
    let layer = StreamNorm::new(rank.group.clone(), norm, Name::new("norm"));
    let x = rank.stream("x", HIDDEN);
    let (y, saved) = layer.forward(&rank.weights, &x, ctx)?;
    let y = rank.of_stream(&y, HIDDEN);
    let dy = rank.stream("dy", HIDDEN);
    let beside = beside.then(|| rank.stream("beside", HIDDEN));
    let dx = layer.backward_input(&rank.weights, saved, dy, beside, ctx, &mut rank.grads)?;
    Ok((y, rank.of_stream(&dx, HIDDEN)))
}

#[test]
fn norms_equal_their_serial_selves() {
    let both = [param("gain", [HIDDEN], None), param("bias", [HIDDEN], None)];
    let mut compared = 0;
    for beside in [false, true] {
        compared += compare("layer norm", &both, &|rank, ctx| {
            norm(rank, ctx, Norm::Layer, &["gain", "bias"], beside)
        });
        compared += compare("rms norm", &both[..1], &|rank, ctx| {
            norm(rank, ctx, Norm::Rms, &["gain"], beside)
        });
    }
    assert_eq!(compared, 4 * COMPARED);
}

#[test]
fn dropout_draws_the_serial_mask_whatever_rows_a_rank_holds() {
    let compared = compare("dropout", &[], &|rank, ctx| {
        let dropout = Dropout::new(0.4, 9, "residual", HIDDEN);
        let layer = StreamDropout::new(rank.group.clone(), dropout);
        let y = layer.apply(rank.stream("x", HIDDEN), ctx)?;
        let y = rank.of_stream(&y, HIDDEN);
        let dropped = y.values.iter().filter(|v| **v == 0.0).count();
        assert!(dropped > 0 && dropped < y.values.len());
        let dx = layer.apply(rank.stream("dy", HIDDEN), ctx)?;
        Ok((y, rank.of_stream(&dx, HIDDEN)))
    });
    assert_eq!(compared, COMPARED);
}
