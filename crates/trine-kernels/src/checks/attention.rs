//! Arguments of attention.

use super::op::{Op, accumulator};
use crate::mask::{Mask, POSITIONS};
use crate::softcap::check_cap;
use crate::view::check_sections;
use crate::{AttentionDropout, AttentionShape, KernelError, MatMut, MatRef, Qkv, QkvMut};
use trine_buffer::{DType, Slice, SliceMut};

type Done = Result<(), KernelError>;

/// What no attention may have.
fn attention_shape(op: Op, shape: &AttentionShape, dropout: bool) -> Done {
    let AttentionShape { heads, kv_heads, scale, softcap, .. } = *shape;
    op.dims(kv_heads > 0 && heads.is_multiple_of(kv_heads), || {
        format!("{heads} query heads do not share {kv_heads} key heads evenly")
    })?;
    op.dims(scale > 0.0 && scale.is_finite(), || format!("a scale of {scale}"))?;
    check_cap(op.0, "scores", softcap)?;
    op.dims(shape.window != Some(0), || {
        "a window of 0 positions, a query sees at least its own (1)".to_owned()
    })?;
    let limit = if dropout { POSITIONS } else { 1 << 32 };
    let rows = [("query", shape.query_start, shape.queries), ("key", shape.key_start, shape.keys)];
    for (row, start, count) in rows {
        let end = (start as u64).saturating_add(count as u64);
        op.dims(end <= limit, || {
            let with = if dropout { "with dropout " } else { "" };
            format!("a {row} at position {}; {with}the last possible one is {}", end - 1, limit - 1)
        })?;
    }
    Ok(())
}

/// What both passes of an attention read; gives the compute type, and the shapes of queries and of keys.
fn attention_inputs(
    op: Op,
    shape: &AttentionShape,
    qkv: &Qkv<'_>,
    document_start: &Option<Slice<'_>>,
    dropout: &Option<AttentionDropout>,
) -> Result<(DType, [(usize, usize); 2]), KernelError> {
    let t = op.computes("q", qkv.q.data.dtype())?;
    attention_shape(op, shape, dropout.is_some())?;
    let AttentionShape { samples, queries, keys, heads, kv_heads, head_dim, .. } = *shape;
    let of_q = (samples * queries, heads * head_dim);
    let of_kv = (samples * keys, kv_heads * head_dim);
    op.shaped("q", &qkv.q, t, of_q)?;
    op.shaped("k", &qkv.k, t, of_kv)?;
    op.shaped("v", &qkv.v, t, of_kv)?;
    if let Some(starts) = document_start {
        op.vector("document_start", starts, DType::U32, samples * queries, shape)?;
    }
    if let Some(dropout) = dropout {
        Mask::new(op.0, dropout.dropout)?;
    }
    Ok((t, [of_q, of_kv]))
}

/// # Errors
/// Types or dimensions that do not fit, an impossible scale, window or cap, positions that are too large.
pub fn attention(
    shape: &AttentionShape,
    o: &MatMut<'_>,
    lse: &SliceMut<'_>,
    qkv: &Qkv<'_>,
    document_start: &Option<Slice<'_>>,
    dropout: &Option<AttentionDropout>,
) -> Done {
    let op = Op("attention");
    let (t, [of_q, _]) = attention_inputs(op, shape, qkv, document_start, dropout)?;
    op.shaped("o", o, t, of_q)?;
    op.vector("lse", lse, accumulator(t), of_q.0 * shape.heads, shape)
}

/// # Errors
/// As [`attention`], and fused gradients where `queries ≠ keys`.
pub fn attention_backward(
    shape: &AttentionShape,
    d: &QkvMut<'_>,
    d_o: &MatRef<'_>,
    o: &MatRef<'_>,
    lse: &Slice<'_>,
    qkv: &Qkv<'_>,
    document_start: &Option<Slice<'_>>,
    dropout: &Option<AttentionDropout>,
) -> Done {
    let op = Op("attention_backward");
    let (t, [of_q, of_kv]) = attention_inputs(op, shape, qkv, document_start, dropout)?;
    op.shaped("d_o", d_o, t, of_q)?;
    op.shaped("o", o, t, of_q)?;
    op.vector("lse", lse, accumulator(t), of_q.0 * shape.heads, shape)?;
    match d {
        QkvMut::Fused(all) => {
            let AttentionShape { queries, keys, .. } = *shape;
            op.dims(queries == keys, || {
                format!("fused gradients of {queries} queries and {keys} keys")
            })?;
            check_sections(op.0, all.cols, &[of_q.1, of_kv.1, of_kv.1])?;
            op.shaped("d", all, t, (of_q.0, of_q.1 + 2 * of_kv.1))
        }
        QkvMut::Separate { q, k, v } => {
            op.shaped("d.q", q, t, of_q)?;
            op.shaped("d.k", k, t, of_kv)?;
            op.shaped("d.v", v, t, of_kv)
        }
    }
}

/// # Errors
/// Types or dimensions that do not fit.
pub fn attention_merge(
    shape: &AttentionShape,
    o: &MatMut<'_>,
    lse: &SliceMut<'_>,
    part_o: &MatRef<'_>,
    part_lse: &Slice<'_>,
) -> Done {
    let (op, rows) = (Op("attention_merge"), shape.samples * shape.queries);
    let dims = (rows, shape.heads * shape.head_dim);
    let t = op.computes("part_o", part_o.data.dtype())?;
    op.holds_either("o", o.data.dtype(), t)?;
    op.shaped("o", o, o.data.dtype(), dims)?;
    op.shaped("part_o", part_o, t, dims)?;
    op.vector("lse", lse, accumulator(t), rows * shape.heads, shape)?;
    op.vector("part_lse", part_lse, accumulator(t), rows * shape.heads, shape)
}
