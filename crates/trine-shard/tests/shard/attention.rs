//! Attention by heads, with KV heads that several ranks share, and with norms of queries and keys.

use crate::support::{
    Param, Part, Rank, SEQ, Setup, TOKENS, cast, compare_on, nothing, outcome, param, values,
};
use std::ops::Range;
use trine_buffer::{Act, Buf, DType, Slice};
use trine_comm::Name;
use trine_kernels::{rope_frequencies, rope_table};
use trine_mesh::shard;
use trine_nn::{
    AttentionCore, AttentionShape, Context, DecodeCache, Dropout, GradStore, Layer, Mode, NnError,
    Numerics, ParamStore, Rotary, Rows, Saved, WeightWork, gradcheck,
};
use trine_shard::{QkNorm, QkNormKind, ShardedAttention, Split};

const HEADS: usize = 8;
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
    norms: Option<QkNormKind>,
}

const PLAIN: Case =
    Case { kv_heads: HEADS, rope: true, dropped: 0.0, documents: false, norms: None };

/// The gains of a case.
fn params(case: Case) -> Vec<Param> {
    let gains = |q: usize, k: usize, split: [Option<(usize, usize)>; 2]| {
        vec![param("q gain", [q], split[0]), param("k gain", [k], split[1])]
    };
    match case.norms {
        None => vec![],
        Some(QkNormKind::EachHead) => gains(HEAD_DIM, HEAD_DIM, [None; 2]),
        Some(QkNormKind::AllHeads) => {
            let split = [HEADS, case.kv_heads].map(|heads| Some((0, heads)));
            gains(HEADS * HEAD_DIM, case.kv_heads * HEAD_DIM, split)
        }
    }
}

/// One rank's attention, and which columns of the whole its input has.
struct Own {
    layer: ShardedAttention,
    q: Vec<usize>,
    qkv: Vec<usize>,
    kv_cols: usize,
    width: usize,
}

fn own(rank: &Rank, ctx: &Context<'_>, case: Case) -> Result<Own, NnError> {
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
    let table =
        rope_table(ctx.compute.accumulator(), &rope_frequencies(100.0, TURNED), 1.0, TOKENS)?;
    let core = AttentionCore {
        shape,
        scale: shape.scale(),
        rope: case.rope.then(|| Rotary { table: Act::new(table), turned: TURNED }),
        dropout: Dropout::new(case.dropped, 9, "attention", shape.q_cols()),
        window: None,
        softcap: None,
    };
    let name = Name::new("attention");
    let layer = ShardedAttention::new(core, &rank.group, kv.replicas, name)?.at_layer(0);
    let norm = |kind| QkNorm {
        group: rank.group.clone(),
        kind,
        q: rank.find(&["q gain"]),
        k: rank.find(&["k gain"]),
        cols: [q_width, kv_width],
        eps: 1e-5,
        name: Name::new("norms"),
    };
    let layer = match case.norms {
        Some(kind) => layer.with_norms(norm(kind)),
        None => layer,
    };
    let at = |first: usize| kv.range.clone().map(move |col| first + col);
    let qkv = q.range.clone().chain(at(q_width)).chain(at(q_width + kv_width)).collect();
    let (kv_cols, width) = (shape.kv_cols(), q_width + 2 * kv_width);
    Ok(Own { layer, q: q.range.collect(), qkv, kv_cols, width })
}

fn attention(rank: &mut Rank, ctx: &Context<'_>, case: Case) -> Result<(Part, Part), NnError> {
    let Own { layer, q, qkv, width, .. } = own(rank, ctx, case)?;
    let starts: Vec<u32> = (0..TOKENS).map(|t| (t % SEQ) as u32 / 2 * 2).collect();
    let document_start = case.documents.then(|| Slice::new(&starts));
    let ctx = Context { document_start, ..ctx.clone() };
    let x = rank.split("qkv", width, &qkv);
    let (y, saved) = layer.forward(&rank.weights, x, &ctx)?;
    let y = rank.of_split(&y, HEADS * HEAD_DIM, q.clone());
    let dy = rank.split("dy", HEADS * HEAD_DIM, &q);
    let d = layer.backward_input(&rank.weights, saved, dy, &ctx, &mut rank.grads)?;
    Ok((y, rank.of_split(&d, width, qkv)))
}

const NORMS: [Option<QkNormKind>; 3] =
    [None, Some(QkNormKind::EachHead), Some(QkNormKind::AllHeads)];

#[test]
fn attention_equals_its_serial_self_also_with_shared_kv_heads() {
    let mut compared = 0;
    for kv_heads in [HEADS, 2, 1] {
        for norms in NORMS {
            for (rope, dropped, documents) in
                [(false, 0.0, false), (true, 0.0, true), (true, 0.3, false)]
            {
                let case = Case { kv_heads, rope, dropped, documents, norms };
                let name = format!("{case:?}");
                let body = |rank: &mut Rank, ctx: &Context<'_>| attention(rank, ctx, case);
                compared += compare_on(&[2, 4, 8], &name, &params(case), &body);
            }
        }
    }
    assert_eq!(compared, 3 * 3 * 3 * (3 * 2 * 2));
}

/// On one rank, in f64.
fn serial(numerics: Numerics) -> Setup {
    Setup { tp: 1, sequence_parallel: false, numerics, compute: DType::F64 }
}

/// The rows of `[q | k | v]` with queries and keys divided by their root mean squares, in plain loops.
fn normalised(qkv: &[f64], case: Case, kind: QkNormKind, [q, k]: [&[f64]; 2]) -> Vec<f64> {
    let (q_cols, kv_cols) = (HEADS * HEAD_DIM, case.kv_heads * HEAD_DIM);
    let mut all = qkv.to_vec();
    for row in all.chunks_mut(q_cols + 2 * kv_cols) {
        let (queries, rest) = row.split_at_mut(q_cols);
        for (half, gain) in [(queries, q), (&mut rest[..kv_cols], k)] {
            let group = match kind {
                QkNormKind::EachHead => HEAD_DIM,
                QkNormKind::AllHeads => half.len(),
            };
            for run in half.chunks_mut(group) {
                let mean = run.iter().map(|x| x * x).sum::<f64>() / group as f64;
                run.iter_mut().zip(gain).for_each(|(x, g)| *x *= g / (mean + 1e-5).sqrt());
            }
        }
    }
    all
}

#[test]
fn norms_are_those_of_the_textbook_and_keep_what_is_planned() {
    let mut cases = 0;
    for kind in [QkNormKind::EachHead, QkNormKind::AllHeads] {
        let case = Case { kv_heads: 2, norms: Some(kind), ..PLAIN };
        outcome(serial(Numerics::Fast), &params(case), &|rank, ctx| {
            let Own { layer, qkv, width, kv_cols, .. } = own(rank, ctx, case)?;
            let plain = own(rank, ctx, Case { norms: None, ..case })?.layer;
            let x = rank.split("qkv", width, &qkv);
            let lease = |name| rank.weights.lease(&rank.find(&[name])).unwrap().slice();
            let gains = [lease("q gain").typed()?, lease("k gain").typed()?];
            let by_hand = normalised(x.typed()?, case, kind, gains);
            let by_hand = Split::assume(Act::new(Buf::from_vec(by_hand)));
            let (expected, without) = plain.forward(&rank.weights, by_hand, ctx)?;
            let (y, saved) = layer.forward(&rank.weights, x, ctx)?;
            for (y, expected) in y.typed::<f64>()?.iter().zip(expected.typed::<f64>()?) {
                assert!((y - expected).abs() < 1e-13, "{kind:?}: {y}, not {expected}");
            }
            let numbers = match kind {
                QkNormKind::EachHead => HEADS + 2,
                QkNormKind::AllHeads => 2,
            };
            let kept = TOKENS * (HEADS * HEAD_DIM + kv_cols + numbers) * size_of::<f64>();
            assert_eq!(saved.bytes(), without.bytes() + kept, "{kind:?}");
            Ok((nothing(), nothing()))
        });
        cases += 1;
    }
    assert_eq!(cases, 2);
}

/// Attention with its norms as a layer that differences can be taken of.
#[derive(Debug)]
struct Alone(ShardedAttention);

impl Layer for Alone {
    fn forward(&self, w: &ParamStore, x: Act, ctx: &Context<'_>) -> Result<(Act, Saved), NnError> {
        let (y, saved) = self.0.forward(w, Split::assume(x), ctx)?;
        Ok((y.into_inner(), saved))
    }

    fn backward_input(
        &self,
        w: &ParamStore,
        saved: Saved,
        dy: Act,
        ctx: &Context<'_>,
        grads: &mut GradStore,
    ) -> Result<(Act, WeightWork), NnError> {
        let dx = self.0.backward_input(w, saved, Split::assume(dy), ctx, grads)?;
        Ok((dx.into_inner(), WeightWork::nothing()))
    }
}

#[test]
fn gradients_of_norms_are_those_of_differences() {
    let mut cases = 0;
    for kind in [QkNormKind::EachHead, QkNormKind::AllHeads] {
        let case = Case { kv_heads: 2, norms: Some(kind), ..PLAIN };
        outcome(serial(Numerics::Fast), &params(case), &|rank, ctx| {
            let Own { layer, width, .. } = own(rank, ctx, case)?;
            let ctx = Context { rows: Rows { samples: 0..1, seq: SEQ }, ..ctx.clone() };
            let x = values("qkv", SEQ * width);
            let report = gradcheck::check(&Alone(layer), &mut rank.weights, &x, &ctx)?;
            assert!(report.error_max < 1e-6 && report.gradient_max > 1e-2, "{kind:?}: {report:?}");
            assert_eq!(report.compared, x.len() + rank.layout.elements(), "{kind:?}");
            Ok((nothing(), nothing()))
        });
        cases += 1;
    }
    assert_eq!(cases, 2);
}

#[test]
fn a_sequence_is_continued_with_the_bits_of_a_pass_over_it() {
    let mut cases = 0;
    for (norms, tp) in NORMS.into_iter().flat_map(|norms| [(norms, 1), (norms, 4)]) {
        let case = Case { kv_heads: 2, norms, ..PLAIN };
        let setup = Setup { tp, compute: DType::F32, ..serial(Numerics::Fast) };
        outcome(setup, &params(case), &|rank, ctx| {
            let Own { layer, qkv, kv_cols, width, .. } = own(rank, ctx, case)?;
            let x = rank.split("qkv", width, &qkv).to_f64_vec().unwrap();
            let pass = |tokens: Range<usize>, decode: Option<&DecodeCache>| {
                let rows = &x[tokens.start * qkv.len()..tokens.end * qkv.len()];
                let rows = Split::assume(Act::new(cast(rows, DType::F32)));
                let of = Rows { samples: 0..1, seq: tokens.len() };
                let ctx = Context { mode: Mode::Eval, rows: of, decode, ..ctx.clone() };
                Ok::<_, NnError>(layer.forward(&rank.weights, rows, &ctx)?.0.to_f64_vec().unwrap())
            };
            let whole = pass(0..TOKENS, None)?;
            let mut cache = DecodeCache::new(1, kv_cols, TOKENS, DType::F32);
            let mut decoded = Vec::new();
            for tokens in [0..5, 5..6, 6..9, 9..12] {
                let len = tokens.len();
                decoded.extend(pass(tokens, Some(&cache))?);
                cache.advance(len)?;
            }
            assert!(decoded == whole, "{norms:?} on {tp}");
            Ok((nothing(), nothing()))
        });
        cases += 1;
    }
    assert_eq!(cases, NORMS.len() * 2);
}
