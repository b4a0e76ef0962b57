//! A gated causal convolution, written as a closure over candle tensors. No rank splits it: every tensor-parallel rank
//! computes it whole.

use candle_core::{D, Tensor};
use trine::comm::Name;
use trine::models::{Builder, PieceLayer};
use trine::nn::NnError;
use trine::nn::candle_layer::CandleLayer;
use trine::shard::Replicated;
use trine::spec::{Init, Kept, ModelSpec, OwnBody, OwnPiece, ParamSpec, SavedTensor, Split};

/// What kind of piece it is.
pub(crate) const KIND: &str = "gated convolution";

/// Tokens that a token sees: itself and those before it.
const TAPS: usize = 4;

/// Its parameters, by name and shape.
fn params(index: usize, hidden: usize) -> [(String, Vec<usize>); 4] {
    let name = |part| format!("block.{index}.convolution.{part}");
    [
        (name("gain"), vec![hidden]),
        (name("taps"), vec![TAPS, hidden]),
        (name("gate"), vec![hidden, hidden]),
        (name("output"), vec![hidden, hidden]),
    ]
}

/// What the rest of trine needs to know of it.
pub(crate) fn piece(index: usize, spec: &ModelSpec) -> OwnPiece {
    let hidden = spec.hidden;
    let start = |shape: &[usize]| match shape.len() {
        1 => Init::Ones,
        _ => Init::Normal { std: spec.init_std },
    };
    let param = |(name, shape): (String, Vec<usize>)| ParamSpec::new(name, &shape, start(&shape));
    let stream = |name, split| SavedTensor::new(name, hidden, Kept::Stream, split);
    OwnPiece {
        params: params(index, hidden).into_iter().map(param).collect(),
        body: OwnBody {
            name: KIND.into(),
            saved: vec![stream("x", Split::None)],
            forward: vec![vec![stream("y", Split::None), stream("own rows of y", Split::Sequence)]],
            backward: vec![vec![stream("dy", Split::Gathered), stream("dx", Split::None)]],
            ..OwnBody::default()
        },
        flops_per_token: (6 * hidden * (2 * hidden + TAPS)) as f64,
    }
}

/// Its layer.
pub(crate) fn layer(b: &Builder<'_>, index: usize) -> Result<PieceLayer, NnError> {
    let hidden = b.model.hidden;
    let mut weights = Vec::new();
    for (name, shape) in params(index, hidden) {
        weights.push((b.param(&name)?, shape));
    }
    let closure = CandleLayer::new(hidden, hidden, weights, forward);
    let name = Name::new(KIND).with("block", index as u64);
    Ok(PieceLayer::Inner(Box::new(Replicated::new(b.group().clone(), closure, name))))
}

/// `x + (conv(h) · sigmoid(h · gateᵀ)) · outputᵀ`, where `h` is the normalised `x`, `[samples, seq, hidden]`.
fn forward(x: &Tensor, weights: &[Tensor]) -> candle_core::Result<Tensor> {
    let [gain, taps, gate, output] = weights else { candle_core::bail!("four weights are needed") };
    let (samples, seq, hidden) = x.dims3()?;
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?;
    let h = x.broadcast_div(&scale)?.broadcast_mul(gain)?;
    let mut mixed = h.broadcast_mul(&taps.get(0)?)?;
    for back in 1..TAPS.min(seq) {
        let before = h.narrow(1, 0, seq - back)?.pad_with_zeros(1, back, 0)?;
        mixed = (mixed + before.broadcast_mul(&taps.get(back)?)?)?;
    }
    let rows = |tensor: &Tensor| tensor.reshape((samples * seq, hidden));
    let open = (rows(&h)?.matmul(&gate.t()?)?.neg()?.exp()? + 1.0)?.recip()?;
    let branch = (rows(&mixed)? * open)?.matmul(&output.t()?)?;
    x + branch.reshape((samples, seq, hidden))?
}
