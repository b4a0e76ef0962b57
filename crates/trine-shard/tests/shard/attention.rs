//! Attention by heads, with KV heads that several ranks share.

use crate::support::{COMPARED, Part, Rank, SEQ, TOKENS, compare};
use trine_buffer::{Act, Slice};
use trine_comm::Name;
use trine_kernels::{rope_frequencies, rope_table};
use trine_mesh::shard;
use trine_nn::{AttentionCore, AttentionShape, Context, Dropout, NnError, Rotary};
use trine_shard::ShardedAttention;

const HEADS: usize = 4;
const HEAD_DIM: usize = 8;
/// Elements of a head that are turned.
const TURNED: usize = 6;

/// What differs between the cases.
#[derive(Debug, Clone, Copy)]
struct Case {
    kv_heads: usize,
    rope: bool,
    dropped: f64,
    documents: bool,
}

fn attention(rank: &mut Rank, ctx: &Context<'_>, case: Case) -> Result<(Part, Part), NnError> {
    let (tp, index) = (rank.group.size(), rank.group.rank());
    let (q_width, kv_width) = (HEADS * HEAD_DIM, case.kv_heads * HEAD_DIM);
    let q = shard(q_width, HEADS, tp, index).unwrap();
    let kv = shard(kv_width, case.kv_heads, tp, index).unwrap();
    let shape = AttentionShape {
        heads: q.range.len() / HEAD_DIM,
        kv_heads: kv.range.len() / HEAD_DIM,
        head_dim: HEAD_DIM,
        first_head: q.range.start / HEAD_DIM,
    };
    let table = rope_table(ctx.compute.accumulator(), &rope_frequencies(100.0, TURNED), 1.0, SEQ)?;
    let core = AttentionCore {
        shape,
        scale: shape.scale(),
        rope: case.rope.then(|| Rotary { table: Act::new(table), turned: TURNED }),
        dropout: Dropout::new(case.dropped, 9, "attention", shape.q_cols()),
        window: None,
        softcap: None,
    };
    let name = Name::new("attention");
    let layer = ShardedAttention::new(core, &rank.group, kv.replicas, name)?;

    let starts: Vec<u32> = (0..TOKENS).map(|t| (t % SEQ) as u32 / 2 * 2).collect();
    let document_start = case.documents.then(|| Slice::new(&starts));
    let ctx = Context { document_start, ..ctx.clone() };
    let width = q_width + 2 * kv_width;
    let at = |first: usize| kv.range.clone().map(move |col| first + col);
    let cols: Vec<usize> =
        q.range.clone().chain(at(q_width)).chain(at(q_width + kv_width)).collect();
    let qkv = rank.split("qkv", width, &cols);
    let (y, saved) = layer.forward(&rank.weights, qkv, &ctx)?;
    let own: Vec<usize> = q.range.collect();
    let y = rank.of_split(&y, q_width, own.clone());
    let dy = rank.split("dy", q_width, &own);
    let d = layer.backward_input(saved, dy, &ctx)?;
    Ok((y, rank.of_split(&d, width, cols)))
}

#[test]
fn attention_equals_its_serial_self_also_with_shared_kv_heads() {
    let mut compared = 0;
    for kv_heads in [4, 2, 1] {
        for rope in [false, true] {
            for (dropped, documents) in [(0.0, false), (0.3, true)] {
                let case = Case { kv_heads, rope, dropped, documents };
                let name = format!("{case:?}");
                compared += compare(&name, &[], &|rank, ctx| attention(rank, ctx, case));
            }
        }
    }
    assert_eq!(compared, 3 * 2 * 2 * COMPARED);
}
