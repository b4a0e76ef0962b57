//! Attention that continues a sequence, apart from models, which have neither windows nor bounded
//! scores.

use crate::support::{Bench, buf, layout, values};
use trine_buffer::{Act, DType};
use trine_nn::{
    AttentionCore, AttentionShape, Context, DecodeCache, Dropout, Layer, Mode, Numerics, Rows,
};

#[test]
fn windows_and_bounded_scores_continue_a_sequence_to_the_bit() {
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 4, first_head: 0 };
    let (seq, cols) = (9, shape.qkv_cols());
    let x = values("x", seq * cols);
    let core = |window, softcap| {
        let dropout = Dropout::new(0.0, 9, "attention", shape.q_cols());
        AttentionCore { shape, scale: shape.scale(), rope: None, dropout, window, softcap }
    };
    for compute in [DType::F32, DType::F64] {
        let bench = Bench::new(compute, Numerics::Fast);
        let weights = bench.weights(&layout(&[]));
        let of = |rows: std::ops::Range<usize>| {
            let rows_x = Act::new(buf(compute, &x[rows.start * cols..rows.end * cols]));
            let context = bench.context(Rows { samples: 0..1, seq: rows.len() }, None);
            (rows_x, Context { mode: Mode::Eval, ..context })
        };
        let whole = |core: &AttentionCore| {
            let (x, ctx) = of(0..seq);
            core.forward(&weights, x, &ctx).unwrap().0.to_f64_vec().unwrap()
        };
        let plain = whole(&core(None, None));
        for (window, softcap) in [(Some(3), None), (None, Some(0.5)), (Some(3), Some(0.5))] {
            let core = core(window, softcap);
            let mut cache = DecodeCache::new(1, shape.kv_cols(), seq, compute);
            let mut decoded = Vec::new();
            for rows in [0..4, 4..5, 5..8, 8..9] {
                let tokens = rows.len();
                let (x, ctx) = of(rows);
                let ctx = Context { decode: Some(&cache), ..ctx };
                decoded.extend(
                    core.decode(&core.turn(x, &ctx).unwrap(), 0, &ctx)
                        .unwrap()
                        .0
                        .to_f64_vec()
                        .unwrap(),
                );
                cache.advance(tokens).unwrap();
            }
            assert_eq!(decoded, whole(&core), "{compute} {window:?} {softcap:?}");
            assert_ne!(decoded, plain, "{window:?} {softcap:?} changes nothing");
        }
    }
}
