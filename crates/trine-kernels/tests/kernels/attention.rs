//! Attention, its gradient, rotary embedding.

use crate::support::*;
use std::ops::Range;
use trine_buffer::{Buf, DType, Float, Slice};
use trine_kernels::{
    AttentionDropout, AttentionShape, Dropout, MatMut, MatRef, Ops, Qkv, QkvMut, RopeShape,
    rope_frequencies, rope_table,
};

fn shape(samples: usize, seq: usize, heads: usize, kv_heads: usize, dim: usize) -> AttentionShape {
    let scale = 1.0 / (dim as f64).sqrt();
    AttentionShape {
        samples,
        queries: seq,
        keys: seq,
        query_start: 0,
        key_start: 0,
        window: None,
        heads,
        kv_heads,
        head_dim: dim,
        scale,
        softcap: None,
    }
}

fn columns(shape: AttentionShape) -> (usize, usize) {
    (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim)
}

const DROPOUT: AttentionDropout = AttentionDropout {
    dropout: Dropout { probability: 0.3, key: 0x1234_5678_9abc, step: 5, first_sample: 3 },
    first_head: 2,
};

/// Documents that begin at 0, a third and two thirds of each sequence.
fn documents(shape: AttentionShape) -> Vec<u32> {
    let third = shape.queries.div_ceil(3);
    let start = |row: usize| row % shape.queries / third * third;
    (0..shape.samples * shape.queries).map(|row| start(row) as u32).collect()
}

/// Forward on fused rows: output and lse.
fn forward<T: Float>(
    ops: &dyn Ops,
    shape: AttentionShape,
    qkv: &Buf,
    starts: Option<&[u32]>,
    dropout: Option<AttentionDropout>,
) -> (Buf, Buf) {
    let (q_cols, kv_cols) = columns(shape);
    let rows = shape.samples * shape.queries;
    let mut o = Buf::zeros(T::DTYPE, rows * q_cols);
    let mut lse = Buf::zeros(T::DTYPE.accumulator(), rows * shape.heads);
    let all = MatRef::new(qkv.slice(), rows, q_cols + 2 * kv_cols);
    let qkv = Qkv::fused(all, q_cols, kv_cols).unwrap();
    let o_view = MatMut::new(o.slice_mut(), rows, q_cols);
    ops.attention(shape, o_view, lse.slice_mut(), qkv, starts.map(Slice::new), dropout).unwrap();
    (o, lse)
}

fn backward<T: Float>(
    ops: &dyn Ops,
    shape: AttentionShape,
    qkv: &Buf,
    d_o: &Buf,
    starts: Option<&[u32]>,
    dropout: Option<AttentionDropout>,
) -> Buf {
    let (o, lse) = forward::<T>(ops, shape, qkv, starts, dropout);
    let (q_cols, kv_cols) = columns(shape);
    let rows = shape.samples * shape.queries;
    let mut d = buf::<T>(99, qkv.len());
    let all = MatRef::new(qkv.slice(), rows, q_cols + 2 * kv_cols);
    ops.attention_backward(
        shape,
        QkvMut::Fused(MatMut::new(d.slice_mut(), rows, q_cols + 2 * kv_cols)),
        MatRef::new(d_o.slice(), rows, q_cols),
        MatRef::new(o.slice(), rows, q_cols),
        lse.slice(),
        Qkv::fused(all, q_cols, kv_cols).unwrap(),
        starts.map(Slice::new),
        dropout,
    )
    .unwrap();
    d
}

/// The textbook: all scores of a row, softmax, weighted values. Masks come from the kernel itself
/// through [`keep_factors`].
fn reference(
    shape: AttentionShape,
    qkv: &[f64],
    starts: Option<&[u32]>,
    factors: Option<&dyn Fn(usize, usize, usize, usize) -> f64>,
) -> Vec<f64> {
    let (q_cols, kv_cols) = columns(shape);
    let width = q_cols + 2 * kv_cols;
    let (seq, dim) = (shape.queries, shape.head_dim);
    let mut out = vec![0.0; shape.samples * seq * q_cols];
    for sample in 0..shape.samples {
        for head in 0..shape.heads {
            let kv = head / (shape.heads / shape.kv_heads);
            let vector = |row: usize, col: usize| &qkv[(sample * seq + row) * width + col..][..dim];
            for query in 0..seq {
                let row = sample * seq + query;
                let first = starts.map_or(0, |s| s[row] as usize);
                let q = vector(query, head * dim);
                let score = |key: usize| {
                    let k = vector(key, q_cols + kv * dim);
                    q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * shape.scale
                };
                let scores: Vec<f64> = (first..=query).map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                let out = &mut out[row * q_cols + head * dim..][..dim];
                for (score, key) in scores.iter().zip(first..) {
                    let factor = factors.map_or(1.0, |f| f(sample, head, query, key));
                    let p = (score - max).exp() / total * factor;
                    let v = vector(key, q_cols + kv_cols + kv * dim);
                    out.iter_mut().zip(v).for_each(|(o, v)| *o += p * v);
                }
            }
        }
    }
    out
}

fn shapes() -> Vec<AttentionShape> {
    vec![
        shape(1, 1, 1, 1, 1),
        shape(2, 17, 3, 3, 8),
        shape(1, 97, 4, 2, 5),
        shape(2, 200, 2, 1, 16),
        shape(1, 293, 3, 1, 20),
        // Lengths around those of tiles, heads around those of register tiles.
        shape(1, 63, 1, 1, 16),
        shape(2, 65, 2, 1, 40),
        shape(1, 257, 1, 1, 64),
        shape(1, 129, 2, 2, 80),
        shape(1, 130, 1, 1, 128),
        // Documents that begin inside later blocks of keys.
        shape(1, 521, 2, 1, 16),
    ]
}

fn forward_is_the_textbook<T: Float>() {
    let mut cases = 0;
    for shape in shapes() {
        let (q_cols, kv_cols) = columns(shape);
        let rows = shape.samples * shape.queries;
        let qkv = buf::<T>(7, rows * (q_cols + 2 * kv_cols));
        for starts in [None, Some(documents(shape))] {
            let starts = starts.as_deref();
            let results = everywhere(Some(T::DTYPE), |ops| {
                let (o, lse) = forward::<T>(ops, shape, &qkv, starts, None);
                vec![o, lse]
            });
            let expected = reference(shape, &qkv.to_f64_vec().unwrap(), starts, None);
            for result in results {
                close(&result[0], &expected, 8.0 * T::DTYPE.epsilon(), &format!("{shape}"));
                cases += 1;
            }
        }
    }
    assert!(cases >= 10);
}

/// The gradient in every type against the one in f64, which is checked by differences below.
fn backward_is_that_of_f64<T: Float>() {
    let mut cases = 0;
    for shape in shapes() {
        let (q_cols, kv_cols) = columns(shape);
        let rows = shape.samples * shape.queries;
        let qkv = buf::<T>(7, rows * (q_cols + 2 * kv_cols));
        let d_o = buf::<T>(8, rows * q_cols);
        let starts = documents(shape);
        let wide = |x: &Buf| Buf::from_vec(x.to_f64_vec().unwrap());
        for (starts, dropout) in [(None, None), (Some(&starts[..]), Some(DROPOUT))] {
            let expected =
                backward::<f64>(&one(), shape, &wide(&qkv), &wide(&d_o), starts, dropout);
            let results = everywhere(Some(T::DTYPE), |ops| {
                vec![backward::<T>(ops, shape, &qkv, &d_o, starts, dropout)]
            });
            for result in results {
                // Sums over up to 293 rows of rounded probabilities.
                let tolerance = 16.0 * T::DTYPE.epsilon();
                close(&result[0], &expected.to_f64_vec().unwrap(), tolerance, &format!("{shape}"));
                cases += 1;
            }
        }
    }
    assert!(cases >= 10);
}

mod all {
    use crate::support::for_types;
    for_types! {
        forward_is_the_textbook;
        backward_is_that_of_f64;
    }
}

#[test]
fn gradients_are_those_of_differences() {
    let mut cases = 0;
    for shape in [shape(2, 7, 2, 2, 4), shape(1, 11, 4, 2, 3), shape(1, 101, 3, 1, 2)] {
        let (q_cols, kv_cols) = columns(shape);
        let rows = shape.samples * shape.queries;
        let qkv = buf::<f64>(7, rows * (q_cols + 2 * kv_cols));
        let d_o = buf::<f64>(8, rows * q_cols);
        let starts = documents(shape);
        for (starts, dropout) in
            [(None, None), (Some(&starts[..]), None), (Some(&starts[..]), Some(DROPOUT))]
        {
            let ops = one();
            let gradient = backward::<f64>(&ops, shape, &qkv, &d_o, starts, dropout);
            let loss = |x: &[f64]| {
                let (o, _) =
                    forward::<f64>(&ops, shape, &Buf::from_vec(x.to_vec()), starts, dropout);
                weigh(&o.to_f64_vec().unwrap(), &d_o.to_f64_vec().unwrap())
            };
            let stride = if rows > 50 { 37 } else { 1 };
            let what = format!("{shape}");
            check_gradient(
                &what,
                &qkv.to_f64_vec().unwrap(),
                &gradient.to_f64_vec().unwrap(),
                stride,
                loss,
            );
            cases += 1;
        }
    }
    assert_eq!(cases, 9);
}

/// One-hot values read the dropped probabilities out: with all scores equal, the output element of
/// key `j` is `factor / visible keys`.
#[test]
fn the_dropout_mask_is_a_function_of_global_coordinates() {
    let seq = 40;
    let all = shape(2, seq, 3, 3, seq);
    let masks = |shape: AttentionShape, dropout: AttentionDropout| {
        let (q_cols, kv_cols) = columns(shape);
        let width = q_cols + 2 * kv_cols;
        let mut qkv = vec![0.0f64; shape.samples * seq * width];
        for row in 0..shape.samples * seq {
            for head in 0..shape.kv_heads {
                qkv[row * width + q_cols + kv_cols + head * seq + row % seq] = 1.0;
            }
        }
        let qkv = Buf::from_vec(qkv);
        let o = forward::<f64>(&one(), shape, &qkv, None, Some(dropout)).0.to_f64_vec().unwrap();
        let mut cursor = o.iter();
        let mut factors = Vec::new();
        for row in 0..shape.samples * seq {
            for _ in 0..shape.heads {
                for key in 0..seq {
                    let p = cursor.next().unwrap() * (row % seq + 1) as f64;
                    assert!(key <= row % seq || p == 0.0);
                    factors.push(p);
                }
            }
        }
        factors
    };
    let whole = masks(all, DROPOUT);
    let at = |sample: usize, query: usize, head: usize, key: usize| {
        whole[((sample * seq + query) * 3 + head) * seq + key]
    };
    let visible: Vec<f64> =
        (0..2 * seq * 3).flat_map(|row| whole[row * seq..][..row / 3 % seq + 1].to_vec()).collect();
    let dropped = visible.iter().filter(|p| **p == 0.0).count() as f64 / visible.len() as f64;
    assert!((dropped - 0.3).abs() < 0.02, "{dropped} of {}", visible.len());
    assert!(visible.iter().all(|p| *p == 0.0 || (p - 1.0 / 0.7).abs() < 1e-12));
    // A rank with the second sample and the last head draws the same mask.
    let mut part = DROPOUT;
    part.dropout.first_sample += 1;
    part.first_head += 2;
    let local = masks(shape(1, seq, 1, 1, seq), part);
    for query in 0..seq {
        for key in 0..=query {
            assert_eq!(local[query * seq + key], at(1, query, 2, key));
        }
    }
    // Other heads, samples and steps have other masks.
    let mut other = DROPOUT;
    other.dropout.step += 1;
    assert_ne!(masks(all, other), whole);
    let row = |sample, head| (0..seq).map(|key| at(sample, seq - 1, head, key)).collect::<Vec<_>>();
    assert_ne!(row(0, 0), row(0, 1));
    assert_ne!(row(0, 0), row(1, 0));
    // And the textbook with these factors is what the kernel computes.
    let (q_cols, kv_cols) = columns(all);
    let qkv = buf::<f64>(3, 2 * seq * (q_cols + 2 * kv_cols));
    let o = forward::<f64>(&one(), all, &qkv, None, Some(DROPOUT)).0;
    let factors = |sample, head, query, key| at(sample, query, head, key);
    let expected = reference(all, &qkv.to_f64_vec().unwrap(), None, Some(&factors));
    close(&o.to_f64_vec().unwrap(), &expected, 1e-12, "with dropout");
}

/// Rows `queries` of each sequence alone, as decoding with cached keys asks for them.
fn continued<T: Float>(shape: AttentionShape, qkv: &Buf, rows: Range<usize>) -> Vec<f64> {
    assert_eq!(shape.samples, 1);
    let (q_cols, kv_cols) = columns(shape);
    let all = MatRef::new(qkv.slice(), shape.keys, q_cols + 2 * kv_cols);
    let part =
        AttentionShape { queries: rows.len(), keys: rows.end, query_start: rows.start, ..shape };
    let views = Qkv::fused(all, q_cols, kv_cols).unwrap();
    let views = Qkv {
        q: views.q.rows(rows.clone()).unwrap(),
        k: views.k.rows(0..rows.end).unwrap(),
        v: views.v.rows(0..rows.end).unwrap(),
    };
    let mut o = Buf::zeros(T::DTYPE, rows.len() * q_cols);
    let mut lse = Buf::zeros(T::DTYPE.accumulator(), rows.len() * shape.heads);
    let view = MatMut::new(o.slice_mut(), rows.len(), q_cols);
    one().attention(part, view, lse.slice_mut(), views, None, None).unwrap();
    o.to_f64_vec().unwrap()
}

#[test]
fn later_rows_alone_have_the_bits_of_the_whole() {
    fn check<T: Float>() {
        let shape = shape(1, 300, 2, 1, 24);
        let (q_cols, kv_cols) = columns(shape);
        let qkv = buf::<T>(5, 300 * (q_cols + 2 * kv_cols));
        let whole = forward::<T>(&one(), shape, &qkv, None, None).0.to_f64_vec().unwrap();
        let mut cases = 0;
        for rows in [0..1, 31..33, 95..97, 100..300, 255..258, 299..300] {
            let part = continued::<T>(shape, &qkv, rows.clone());
            let expected = &whole[rows.start * q_cols..rows.end * q_cols];
            same_bits(&part, expected, &format!("{rows:?}"));
            cases += 1;
        }
        assert_eq!(cases, 6);
    }
    check::<f64>();
    check::<f32>();
    check::<half::bf16>();
}

#[test]
fn separate_gradients_equal_fused_ones_and_heads_add_in_a_tree() {
    // Two key heads of four query heads each; a rank with half of a group's heads has half a tree.
    let shape = shape(2, 30, 8, 2, 4);
    let (q_cols, kv_cols) = columns(shape);
    let (rows, width) = (60, q_cols + 2 * kv_cols);
    let qkv = buf::<f32>(5, rows * width);
    let d_o = buf::<f32>(6, rows * q_cols);
    let fused = backward::<f32>(&one(), shape, &qkv, &d_o, None, None).to_f64_vec().unwrap();
    let ops = one();
    let all = MatRef::new(qkv.slice(), rows, width);
    let views = Qkv::fused(all, q_cols, kv_cols).unwrap();
    let (o, lse) = forward::<f32>(&ops, shape, &qkv, None, None);
    let (mut dq, mut dk) = (Buf::zeros(DType::F32, rows * q_cols), buf::<f32>(1, rows * kv_cols));
    let mut dv = buf::<f32>(2, rows * kv_cols);
    let d = QkvMut::Separate {
        q: MatMut::new(dq.slice_mut(), rows, q_cols),
        k: MatMut::new(dk.slice_mut(), rows, kv_cols),
        v: MatMut::new(dv.slice_mut(), rows, kv_cols),
    };
    let (d_o_view, o_view) =
        (MatRef::new(d_o.slice(), rows, q_cols), MatRef::new(o.slice(), rows, q_cols));
    ops.attention_backward(shape, d, d_o_view, o_view, lse.slice(), views, None, None).unwrap();
    for row in 0..rows {
        let fused = &fused[row * width..][..width];
        let parts = [(&dq, q_cols), (&dk, kv_cols), (&dv, kv_cols)];
        let separate: Vec<f64> = parts
            .iter()
            .flat_map(|(part, cols)| part.to_f64_vec().unwrap()[row * cols..][..*cols].to_vec())
            .collect();
        same_bits(&separate, fused, "separate");
    }
    // Query heads 4 and 5 alone, then 6 and 7: their dk add up to key head 1's.
    let half = AttentionShape { heads: 2, kv_heads: 1, ..shape };
    let partial = |first: usize| {
        let take = |mat: MatRef<'_>, cols: Range<usize>| {
            let mut copy = Buf::zeros(DType::F32, rows * cols.len());
            let view = MatMut::new(copy.slice_mut(), rows, cols.len());
            ops.copy(view, mat.columns(cols).unwrap()).unwrap();
            copy.into_vec::<f32>().unwrap()
        };
        let (q, k) = (take(views.q, first * 4..(first + 2) * 4), take(views.k, 4..8));
        let (v, d) = (take(views.v, 4..8), take(d_o_view, first * 4..(first + 2) * 4));
        let fused: Vec<f32> = (0..rows)
            .flat_map(|r| [&q[r * 8..][..8], &k[r * 4..][..4], &v[r * 4..][..4]].concat())
            .collect();
        let d = Buf::from_vec(d);
        backward::<f32>(&ops, half, &Buf::from_vec(fused), &d, None, None).into_vec::<f32>()
    };
    let (left, right) = (partial(4).unwrap(), partial(6).unwrap());
    for row in 0..rows {
        for col in 0..4 {
            let sum = left[row * 16 + 8 + col] + right[row * 16 + 8 + col];
            assert_eq!(f64::from(sum), fused[row * width + q_cols + 4 + col]);
        }
    }
}

#[test]
fn contradictions_are_errors() {
    let ops = one();
    let buf = Buf::zeros(DType::F32, 3 * 24);
    let (mut o, mut lse) = (Buf::zeros(DType::F32, 3 * 8), Buf::zeros(DType::F32, 6));
    let mut call = |shape: AttentionShape| {
        let qkv = Qkv::fused(MatRef::new(buf.slice(), 3, 24), 8, 8).unwrap();
        let o = MatMut::new(o.slice_mut(), 3, 8);
        ops.attention(shape, o, lse.slice_mut(), qkv, None, None)
    };
    call(shape(1, 3, 2, 2, 4)).unwrap();
    let text = call(shape(1, 3, 4, 3, 2)).unwrap_err().to_string();
    assert_eq!(text, "attention: 4 query heads do not share 3 key heads evenly");
    assert!(call(shape(1, 4, 2, 2, 4)).unwrap_err().to_string().contains("it must be [4, 8]"));
    let text = Qkv::fused(MatRef::new(buf.slice(), 3, 24), 8, 4).unwrap_err().to_string();
    assert_eq!(text, "Qkv::fused: 24 columns do not split into sections of [8, 4, 4]");
}

fn rope_turns_pairs<T: Float>() {
    // All of a head, as in GPT-NeoX a part of it, none; and with YaRN's amplitude.
    for (turned, amplitude) in [(6, 1.0), (2, 1.0), (4, 1.5), (0, 1.0)] {
        rope_turns::<T>(turned, amplitude);
    }
}

fn rope_turns<T: Float>(turned: usize, amplitude: f64) {
    let (rows, seq, heads, dim, gap, start) = (14, 7, 3, 6, 5, 4);
    let stride = heads * dim + gap;
    let frequencies = rope_frequencies(10_000.0, turned);
    let table = rope_table(T::DTYPE.accumulator(), &frequencies, amplitude, start + seq).unwrap();
    let x = buf::<T>(1, rows * stride);
    let shape = RopeShape { heads, head_dim: dim, turned, seq, start };
    let turn = |ops: &dyn Ops, x: &mut Buf, inverse: bool| {
        let view = MatMut { data: x.slice_mut(), rows, cols: heads * dim, stride };
        ops.rope(shape, inverse, view, table.slice()).unwrap();
    };
    let results = everywhere(None, |ops| {
        let mut y = Buf::from_vec(values::<T>(1, rows * stride));
        turn(ops, &mut y, false);
        let mut back = Buf::from_vec(y.typed::<T>().unwrap().to_vec());
        turn(ops, &mut back, true);
        vec![y, back]
    });
    let x = x.to_f64_vec().unwrap();
    // There and back multiplies by the amplitude twice.
    let (mut expected, mut back) = (x.clone(), x.clone());
    for row in 0..rows {
        for pair in 0..heads * turned / 2 {
            let (head, i) = (pair / (turned / 2), pair % (turned / 2));
            let frequency = 10_000f64.powf(-2.0 * i as f64 / turned as f64);
            let angle = (start + row % seq) as f64 * frequency;
            let (cos, sin) = (amplitude * angle.cos(), amplitude * angle.sin());
            let left = row * stride + head * dim + i;
            let right = left + turned / 2;
            expected[left] = x[left] * cos - x[right] * sin;
            expected[right] = x[right] * cos + x[left] * sin;
            back[left] *= amplitude * amplitude;
            back[right] *= amplitude * amplitude;
        }
    }
    assert_eq!(results.len(), 1);
    close(&results[0][0], &expected, 3.0 * T::DTYPE.epsilon(), "rope");
    close(&results[0][1], &back, 4.0 * T::DTYPE.epsilon(), "rope and back");
}

mod turned {
    use crate::support::for_types;
    for_types! { rope_turns_pairs; }
}

#[test]
fn rope_needs_a_table_long_enough_and_pairs_within_a_head() {
    let table = rope_table(DType::F32, &rope_frequencies(1e4, 4), 1.0, 8).unwrap();
    let mut x = Buf::zeros(DType::F32, 8 * 4);
    let mut call = |turned, start| {
        let shape = RopeShape { heads: 1, head_dim: 4, turned, seq: 8, start };
        one().rope(shape, false, MatMut::new(x.slice_mut(), 8, 4), table.slice())
    };
    call(4, 0).unwrap();
    call(2, 8).unwrap();
    assert!(call(4, 1).unwrap_err().to_string().contains("positions up to 9"));
    for (turned, nearest) in [(3, "2"), (6, "4")] {
        let text = call(turned, 0).unwrap_err().to_string();
        let expected = format!(
            "rope: {turned} turned elements of 4: it must be even and no more, as {nearest} is"
        );
        assert_eq!(text, expected);
    }
    assert!(rope_table(DType::Bf16, &[1.0], 1.0, 1).is_err());
}
