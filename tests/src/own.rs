//! Blocks that the zoo does not have, in trine's own layers: one that every tensor-parallel rank computes whole, and
//! one that they share.

use trine_buffer::Act;
use trine_comm::Name;
use trine_kernels::Function;
use trine_models::{Builder, PieceLayer, zoo};
use trine_nn::{
    Activation, AttentionCore, AttentionShape, Context, Dropout, GradStore, Layer, Linear, NnError,
    NormLayer, ParamStore, Saved, WeightWork,
};
use trine_shard::{ColumnLinear, Replicated, RowLinear, Split, Stream, StreamNorm};
use trine_spec::{
    Init, ModelParts, ModelSpec, Norm, OwnBody, OwnPiece, ParamSpec, Piece, PieceParts,
};
use trine_trainer::TrainError;

/// The block that every rank computes whole.
pub const WHOLE: usize = 1;
/// The block that ranks share.
pub const SHARED: usize = 3;

/// A model of at least four blocks, two of them its own, as `tp` ranks share it.
///
/// # Errors
/// A model that they cannot share, or that is too small.
pub fn parts(spec: &ModelSpec, tp: usize) -> Result<ModelParts, TrainError> {
    let mut parts = spec.parts(tp)?;
    parts.replace(WHOLE, whole_piece(spec))?;
    parts.replace(SHARED, shared_piece(spec))?;
    Ok(parts)
}

/// The layer of a piece.
///
/// # Errors
/// What [`zoo`] returns, or a parameter that this rank does not hold.
pub fn build(b: &Builder<'_>, part: &PieceParts) -> Result<PieceLayer, NnError> {
    Ok(PieceLayer::Inner(match (part.piece, part.own_name()) {
        (Piece::Block(WHOLE), Some(_)) => whole_layer(b)?,
        (Piece::Block(SHARED), Some(_)) => shared_layer(b)?,
        (_, _) => return zoo(b, part),
    }))
}

fn piece(kind: &str, params: Vec<ParamSpec>) -> OwnPiece {
    let elements: usize = params.iter().map(ParamSpec::unpadded_len).sum();
    let body = OwnBody { name: kind.into(), keeps_input: true, ..OwnBody::default() };
    OwnPiece { params, body, flops_per_token: (6 * elements) as f64 }
}

/// `x + output(attention(qkv(norm(x))))` without positions: tokens see those of other ranks.
#[derive(Debug)]
struct Whole {
    norm: NormLayer,
    qkv: Linear,
    attention: AttentionCore,
    output: Linear,
}

fn heads(spec: &ModelSpec) -> AttentionShape {
    let ModelSpec { heads, kv_heads, head_dim, .. } = *spec;
    AttentionShape { heads, kv_heads, head_dim, first_head: 0 }
}

fn whole_piece(spec: &ModelSpec) -> OwnPiece {
    let (init, shape) = (Init::Normal { std: spec.init_std }, heads(spec));
    piece(
        "whole attention",
        vec![
            ParamSpec::new("whole.norm", &[spec.hidden], Init::Ones),
            ParamSpec::new("whole.qkv", &[shape.qkv_cols(), spec.hidden], init),
            ParamSpec::new("whole.output", &[spec.hidden, shape.q_cols()], init),
            ParamSpec::new("whole.bias", &[spec.hidden], Init::Zeros),
        ],
    )
}

fn whole_layer(b: &Builder<'_>) -> Result<Box<dyn Layer>, NnError> {
    let (spec, shape) = (b.model, heads(b.model));
    let params = b.param("whole.norm")?;
    let bias = Some(b.param("whole.bias")?);
    let layer = Whole {
        norm: NormLayer { kind: Norm::Rms, params, cols: spec.hidden, eps: spec.norm_eps },
        qkv: Linear::new(b.param("whole.qkv")?, None, spec.hidden, shape.qkv_cols()),
        attention: AttentionCore {
            shape,
            scale: shape.scale(),
            rope: None,
            dropout: Dropout::new(0.0, 0, "whole", shape.q_cols()),
            window: None,
            softcap: None,
        },
        output: Linear::new(b.param("whole.output")?, bias, shape.q_cols(), spec.hidden),
    };
    Ok(Box::new(Replicated::new(b.group().clone(), layer, Name::new("whole"))))
}

impl Layer for Whole {
    fn forward(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let (h, norm) = self.norm.forward(w, x.clone(), ctx)?;
        let (h, qkv) = self.qkv.forward(w, h, ctx)?;
        let (h, attention) = self.attention.forward(w, h, ctx)?;
        let (branch, output) = self.output.forward(w, h, ctx)?;
        Ok((add(&x, branch, ctx)?, Saved::new([], [norm, qkv, attention, output])))
    }

    fn backward_input(
        &self,
        w: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let ([], [norm, qkv, attention, output]) = saved.take()?;
        let (d, mut work) = self.output.backward_input(w, output, dy.clone(), ctx, grads)?;
        let (d, _) = self.attention.backward_input(w, attention, d, ctx, grads)?;
        let (d, left) = self.qkv.backward_input(w, qkv, d, ctx, grads)?;
        work.append(left);
        let (d, _) = self.norm.backward_input(w, norm, d, ctx, grads)?;
        Ok((add(&dy, d, ctx)?, work))
    }
}

fn add(x: &Act, branch: Act, ctx: &Context<'_>) -> Result<Act, NnError> {
    let mut sum = branch.into_buf(ctx.pool)?;
    ctx.ops.add_assign(sum.slice_mut(), x.slice())?;
    Ok(Act::new(sum))
}

/// `x + down(gelu(up(norm(x))))`, split by the features between both products.
#[derive(Debug)]
struct Shared {
    norm: StreamNorm,
    up: ColumnLinear,
    activation: Activation,
    down: RowLinear,
}

fn shared_piece(spec: &ModelSpec) -> OwnPiece {
    let (hidden, ffn, init) = (spec.hidden, spec.ffn, Init::Normal { std: spec.init_std });
    piece(
        "shared MLP",
        vec![
            ParamSpec::new("shared.norm.weight", &[hidden], Init::Ones),
            ParamSpec::new("shared.up.weight", &[ffn, hidden], init).split(0, ffn),
            ParamSpec::new("shared.up.bias", &[ffn], init).split(0, ffn),
            ParamSpec::new("shared.down.weight", &[hidden, ffn], init).split(1, ffn),
            ParamSpec::new("shared.down.bias", &[hidden], init),
        ],
    )
}

fn shared_layer(b: &Builder<'_>) -> Result<Box<dyn Layer>, NnError> {
    let cols = b.local("shared.up.bias")?.len();
    Ok(Box::new(Shared {
        norm: b.norm("shared.norm", Norm::Rms, Name::new("shared norm"))?,
        up: b.column("shared", &["up"], true, Name::new("shared up"))?,
        activation: Activation { function: Function::GeluTanh, gated: false, cols },
        down: b.row("shared.down", true, Name::new("shared down"))?,
    }))
}

impl Layer for Shared {
    fn forward(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let x = Stream::assume(x);
        let (h, norm) = self.norm.forward(w, &x, ctx)?;
        let (h, up) = self.up.forward(w, &h, ctx)?;
        let (h, activation) = self.activation.forward(w, h.into_inner(), ctx)?;
        let (branch, down) = self.down.forward(w, Split::assume(h), ctx)?;
        let y = add(&x, branch.into_inner(), ctx)?;
        Ok((y, Saved::new([], [norm, up, activation, down])))
    }

    fn backward_input(
        &self,
        w: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let ([], [norm, up, activation, down]) = saved.take()?;
        let dy = Stream::assume(dy);
        let (d, mut work) = self.down.backward_input(w, down, &dy, ctx, grads)?;
        let (d, _) = self.activation.backward_input(w, activation, d.into_inner(), ctx, grads)?;
        let (d, left) = self.up.backward_input(w, up, Split::assume(d), ctx, grads)?;
        work.append(left);
        let dx = self.norm.backward_input(w, norm, d, Some(dy), ctx, grads)?;
        Ok((dx.into_inner(), work))
    }
}
