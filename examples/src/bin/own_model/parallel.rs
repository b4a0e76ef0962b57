//! A block whose attention and MLP read the same norm (as GPT-J's do), written in trine's sharded layers and `Ops`.

use trine::buffer::Act;
use trine::comm::Name;
use trine::kernels::Function;
use trine::models::{Builder, PieceLayer};
use trine::nn::{Activation, Context, GradStore, Layer, NnError, ParamStore, Saved, WeightWork};
use trine::shard::{
    ColumnLinear, RowLinear, ShardedAttention, Split as Sharded, Stream, StreamNorm,
};
use trine::spec::{Init, Kept, ModelSpec, Norm, OwnBody, OwnPiece, ParamSpec, SavedTensor, Split};

/// What kind of piece it is.
pub(crate) const KIND: &str = "parallel block";

/// What the rest of trine needs to know of it.
pub(crate) fn piece(index: usize, spec: &ModelSpec, tp: usize) -> OwnPiece {
    let (hidden, q, kv, ffn, kv_heads) =
        (spec.hidden, spec.q_dim(), spec.kv_dim(), spec.ffn, spec.kv_heads);
    // Ranks have whole KV heads with their query heads, where there are enough.
    let heads = if tp <= kv_heads { kv_heads } else { spec.heads };
    let init = Init::Normal { std: spec.init_std };
    let name = |part: &str| format!("block.{index}.{part}.weight");
    // Columns are split by output features, rows by input features; columns that are used as one lie together.
    let column = |part: &str, out, units, fused| ParamSpec {
        fused,
        ..ParamSpec::new(name(part), &[out, hidden], init).split(0, units)
    };
    let row = |part: &str, inputs, units| {
        ParamSpec::new(name(part), &[hidden, inputs], init).split(1, units)
    };
    let of = |name, width, kept, split| SavedTensor::new(name, width, kept, split);
    let split = |name, width, units| of(name, width, Kept::Compute, Split::Tensor { units });
    let rows = |name| of(name, hidden, Kept::Compute, Split::Sequence);
    let gathered = |name| of(name, hidden, Kept::Compute, Split::Gathered);
    OwnPiece {
        params: vec![
            ParamSpec::new(name("norm"), &[hidden], Init::Ones),
            column("attention.q", q, heads, false),
            column("attention.k", kv, kv_heads, true),
            column("attention.v", kv, kv_heads, true),
            row("attention.output", q, heads),
            column("mlp.up", ffn, ffn, false),
            row("mlp.down", ffn, ffn),
        ],
        body: OwnBody {
            name: KIND.into(),
            keeps_input: true,
            saved: vec![
                of("stats", 1, Kept::Sums, Split::Sequence),
                rows("normed"),
                split("q", q, heads),
                split("kv", 2 * kv, kv_heads),
                split("heads", q, heads),
                of("log_sum", spec.heads, Kept::Sums, Split::Tensor { units: heads }),
                split("inner", ffn, ffn),
                split("activated", ffn, ffn),
            ],
            forward: vec![
                vec![rows("attended"), rows("fed"), gathered("sum")],
                vec![rows("attended"), rows("fed"), rows("y")],
            ],
            backward: vec![
                vec![gathered("dy"), split("d activated", ffn, ffn), split("d inner", ffn, ffn)],
                // Columns gather what they have read again, and rows the gradient of what they gave.
                vec![
                    gathered("dy"),
                    gathered("dy again"),
                    gathered("normed"),
                    gathered("normed again"),
                    rows("fed"),
                    rows("attended"),
                    rows("what is gathered"),
                ],
            ],
            work: vec![
                of("dy", hidden, Kept::Compute, Split::None),
                of("normed", hidden, Kept::Compute, Split::None),
                gathered("dy again"),
                gathered("normed again"),
                split("q", q, heads),
                split("kv", 2 * kv, kv_heads),
                split("heads", q, heads),
                split("inner", ffn, ffn),
                split("activated", ffn, ffn),
            ],
            ..OwnBody::default()
        },
        flops_per_token: (6 * (hidden * (2 * q + 2 * kv + 2 * ffn) + q * spec.seq_max)) as f64,
    }
}

/// Its layer.
pub(crate) fn layer(b: &Builder<'_>, index: usize) -> Result<PieceLayer, NnError> {
    let within = |part: &str| format!("block.{index}.{part}");
    let label = |part| Name::new(part).with("block", index as u64);
    let (attention, up, down) = (within("attention"), within("mlp"), within("mlp.down"));
    let cols = b.local(&format!("{down}.weight"))?.shape()[1];
    Ok(PieceLayer::Inner(Box::new(Parallel {
        norm: b.norm(&within("norm"), Norm::Rms, label("norm"))?,
        qkv: b.column(&attention, &["q", "k", "v"], false, label("qkv"))?,
        attention: b.attention(
            &attention,
            index,
            &b.model.attention_traits(index),
            label("attention"),
        )?,
        output: b.row(&format!("{attention}.output"), false, label("output"))?,
        up: b.column(&up, &["up"], false, label("up"))?,
        activation: Activation { function: Function::GeluTanh, gated: false, cols },
        down: b.row(&down, false, label("down"))?,
    })))
}

/// `x + attention(norm(x)) + mlp(norm(x))`.
#[derive(Debug)]
struct Parallel {
    norm: StreamNorm,
    qkv: ColumnLinear,
    attention: ShardedAttention,
    output: RowLinear,
    up: ColumnLinear,
    activation: Activation,
    down: RowLinear,
}

impl Layer for Parallel {
    fn forward(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let x = Stream::assume(x);
        let (h, norm) = self.norm.forward(w, &x, ctx)?;
        let (qkv, qkv_saved) = self.qkv.forward(w, &h, ctx)?;
        let (heads, attention) = self.attention.forward(w, qkv, ctx)?;
        let (attended, output) = self.output.forward(w, heads, ctx)?;
        let (inner, up) = self.up.forward(w, &h, ctx)?;
        let (active, activation) = self.activation.forward(w, inner.into_inner(), ctx)?;
        let (fed, down) = self.down.forward(w, Sharded::assume(active), ctx)?;
        let mut y = ctx.pool.alloc(x.dtype(), x.len())?;
        ctx.ops.add(y.slice_mut(), x.slice(), attended.slice())?;
        ctx.ops.add_assign(y.slice_mut(), fed.slice())?;
        let saved = [norm, qkv_saved, attention, output, up, activation, down];
        Ok((Act::new(y), Saved::new([], saved)))
    }

    fn backward_input(
        &self,
        w: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let ([], [norm, qkv, attention, output, up, activation, down]) = saved.take()?;
        let dy = Stream::assume(dy);
        let branch = dy.clone().to(ctx.compute, ctx)?;
        let (d, mut work) = self.down.backward_input(w, down, &branch, ctx, grads)?;
        let d = self.activation.backward_input(w, activation, d.into_inner(), ctx, grads)?.0;
        let (fed, left) = self.up.backward_input(w, up, Sharded::assume(d), ctx, grads)?;
        work.append(left);
        let (d, left) = self.output.backward_input(w, output, &branch, ctx, grads)?;
        work.append(left);
        let d = self.attention.backward_input(w, attention, d, ctx, grads)?;
        let (attended, left) = self.qkv.backward_input(w, qkv, d, ctx, grads)?;
        work.append(left);
        let mut dh = attended.into_inner().into_buf(ctx.pool)?;
        ctx.ops.add_assign(dh.slice_mut(), fed.slice())?;
        let dh = Stream::assume(Act::new(dh));
        let dx = self.norm.backward_input(w, norm, dh, Some(dy), ctx, grads)?;
        Ok((dx.into_inner(), work))
    }
}
