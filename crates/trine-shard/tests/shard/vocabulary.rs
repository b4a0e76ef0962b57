//! The vocabulary split by rows: embedding, output layer and loss, with a vocabulary that does not
//! divide.

use crate::support::{
    COMPARED, Param, Part, Rank, SEQ, Setup, TOKENS, compare, nothing, outcome, param,
};
use trine_buffer::{Act, Buf, DType, Slice};
use trine_nn::{Context, NnError, Numerics};
use trine_shard::{VocabEmbedding, VocabHead, VocabShard};

const HIDDEN: usize = 16;
const VOCAB: usize = 101;
/// A multiple of 64; with four ranks the last one's 32 rows begin with five real ones.
const STORED: usize = 128;

/// Ids from all ranks' rows, some of them twice, with the first and the last of the vocabulary.
const IDS: [u32; TOKENS] = [0, 100, 63, 64, 31, 32, 96, 7, 63, 0, 95, 33];

fn table() -> Param {
    Param { valid_rows: VOCAB, ..param("table", [STORED, HIDDEN], Some((0, STORED))) }
}

fn embedding(
    rank: &mut Rank,
    ctx: &Context<'_>,
    learned: bool,
    scale: Option<f64>,
) -> Result<(Part, Part), NnError> {
    let layer = VocabEmbedding {
        group: rank.group.clone(),
        table: rank.find(&["table"]),
        positions: learned.then(|| rank.find(&["positions"])),
        rows: rank.local("table").ranges[0].clone(),
        hidden: HIDDEN,
        scale,
    };
    let ids = Act::new(Buf::from_vec(IDS.to_vec()));
    let (y, saved) = layer.forward(&rank.weights, ids, ctx)?;
    let y = rank.of_stream(&y, HIDDEN);
    let dy = rank.stream("dy", HIDDEN);
    layer.backward(saved, dy, ctx, &mut rank.grads)?;
    Ok((y, nothing()))
}

#[test]
fn the_embedding_equals_its_serial_self() {
    let positions = param("positions", [SEQ, HIDDEN], None);
    let with = [table(), positions];
    let mut compared = 0;
    for scale in [None, Some(2.7)] {
        for (learned, params) in [(false, &with[..1]), (true, &with[..])] {
            let name = format!("embedding, positions {learned}, scale {scale:?}");
            compared += compare(&name, params, &|rank, ctx| embedding(rank, ctx, learned, scale));
        }
    }
    assert_eq!(compared, 2 * 2 * COMPARED);
}

#[test]
fn an_embedded_token_is_its_scaled_row_plus_its_position() {
    const SCALE: f64 = 2.7;
    let serial =
        Setup { tp: 1, sequence_parallel: false, numerics: Numerics::Fast, compute: DType::F64 };
    let params = [table(), param("positions", [SEQ, HIDDEN], None)];
    let of = |scale: Option<f64>| {
        outcome(serial, &params, &|rank, ctx| {
            let lease = |name| rank.weights.lease(&rank.find(&[name])).unwrap().slice();
            let table = lease("table").typed::<f64>()?;
            let positions = lease("positions").typed::<f64>()?;
            let mut expected = Vec::new();
            for (token, id) in IDS.iter().enumerate() {
                let (row, at) = (*id as usize * HIDDEN, token % SEQ * HIDDEN);
                let factor = scale.unwrap_or(1.0);
                expected.extend((0..HIDDEN).map(|i| table[row + i] * factor + positions[at + i]));
            }
            let (y, dx) = embedding(rank, ctx, true, scale)?;
            assert_eq!(y.values, expected);
            Ok((y, dx))
        })
    };
    let (plain, scaled) = (of(None), of(Some(SCALE)));
    assert_eq!(plain.grads["positions"], scaled.grads["positions"]);
    let used: std::collections::BTreeSet<u32> = IDS.into();
    let rows = plain.grads["table"].chunks(HIDDEN).zip(scaled.grads["table"].chunks(HIDDEN));
    for (row, (plain, scaled)) in rows.enumerate() {
        assert_eq!(plain.iter().any(|g| *g != 0.0), used.contains(&(row as u32)), "row {row}");
        for (plain, scaled) in plain.iter().zip(scaled) {
            assert!((plain * SCALE - scaled).abs() <= 1e-14 * scaled.abs().max(1.0), "row {row}");
        }
    }
}

/// Without a bound of the logits, and with one about as large as they are.
const CAPS: [Option<f64>; 2] = [None, Some(2.0)];

/// Two tokens have nothing to predict.
const TARGETS: [u32; TOKENS] = [1, 100, u32::MAX, 64, 31, 32, 96, 7, u32::MAX, 0, 95, 33];

fn head(rank: &mut Rank, ctx: &Context<'_>, softcap: Option<f64>) -> Result<(Part, Part), NnError> {
    let targets = TARGETS.to_vec();
    let ctx = Context { targets: Some(Slice::new(&targets)), loss_scale: 0.1, ..ctx.clone() };
    let shard = VocabShard { rows: rank.local("table").ranges[0].clone(), vocab: VOCAB };
    let weight = rank.find(&["table"]);
    let layer = VocabHead::new(rank.group.clone(), weight, HIDDEN, shard, ctx.numerics)
        .with_softcap(softcap);
    let x = rank.stream("x", HIDDEN);
    let (loss, saved) = layer.forward(&rank.weights, &x, &ctx)?;
    let y = Part { values: loss.to_f64_vec().unwrap(), rows: 0..TOKENS, cols: vec![0], width: 1 };
    drop(loss);
    let (dx, work) = layer.backward_input(&rank.weights, saved, &ctx, &mut rank.grads)?;
    rank.run(work, &ctx)?;
    Ok((y, rank.of_stream(&dx, HIDDEN)))
}

#[test]
fn the_output_layer_and_its_loss_equal_their_serial_selves() {
    let mut compared = 0;
    for softcap in CAPS {
        let name = format!("head, logits capped at {softcap:?}");
        compared += compare(&name, &[table()], &|rank, ctx| head(rank, ctx, softcap));
    }
    assert_eq!(compared, CAPS.len() * COMPARED);
}

#[test]
fn the_loss_is_the_textbook_one_and_padding_has_no_gradient() {
    for softcap in CAPS {
        textbook(softcap);
    }
}

fn textbook(softcap: Option<f64>) {
    let setup =
        Setup { tp: 4, sequence_parallel: true, numerics: Numerics::Fast, compute: DType::F64 };
    let got = outcome(setup, &[table()], &|rank, ctx| head(rank, ctx, softcap));
    // The same in plain loops, from the global tensors.
    let x = crate::support::values("x", TOKENS * HIDDEN);
    let mut table_f32 = vec![0.0f32; VOCAB * HIDDEN];
    trine_rng::Stream::new(5, "table").fill_normal(0, 0.4, &mut table_f32);
    let mut expected_dx = vec![0.0; TOKENS * HIDDEN];
    for (token, target) in TARGETS.iter().enumerate() {
        let x = &x[token * HIDDEN..][..HIDDEN];
        let row = |id: usize| &table_f32[id * HIDDEN..][..HIDDEN];
        let product =
            |id: usize| -> f64 { row(id).iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum() };
        let logit = |id| softcap.map_or(product(id), |cap| cap * (product(id) / cap).tanh());
        let slope = |id| softcap.map_or(1.0, |cap| 1.0 - (logit(id) / cap).powi(2));
        let sum: f64 = (0..VOCAB).map(|id| logit(id).exp()).sum();
        if *target == u32::MAX {
            assert_eq!(got.y[token], 0.0);
            continue;
        }
        let loss = sum.ln() - logit(*target as usize);
        assert!((got.y[token] - loss).abs() < 1e-13, "token {token}");
        for id in 0..VOCAB {
            let one = f64::from(u8::from(id == *target as usize));
            let d = (logit(id).exp() / sum - one) * 0.1 * slope(id);
            let dx = expected_dx[token * HIDDEN..][..HIDDEN].iter_mut();
            dx.zip(row(id)).for_each(|(dx, w)| *dx += d * f64::from(*w));
        }
    }
    for (dx, expected) in got.dx.iter().zip(&expected_dx) {
        assert!((dx - expected).abs() < 1e-14);
    }
    let (real, padding) = got.grads["table"].split_at(VOCAB * HIDDEN);
    assert!(real.iter().all(|g| *g != 0.0), "softmax reaches every entry");
    assert!(padding.iter().all(|g| *g == 0.0), "padding has no gradient");
    assert_eq!(padding.len(), (STORED - VOCAB) * HIDDEN);
}

#[test]
fn logits_for_sampling_are_bounded_too() {
    let serial =
        Setup { tp: 1, sequence_parallel: false, numerics: Numerics::Fast, compute: DType::F64 };
    outcome(serial, &[table()], &|rank, ctx| {
        let shard = VocabShard { rows: 0..STORED, vocab: VOCAB };
        let weight = rank.find(&["table"]);
        let plain = VocabHead::new(rank.group.clone(), weight, HIDDEN, shard, ctx.numerics);
        let x = rank.stream("x", HIDDEN);
        let free = plain.logits(&rank.weights, &x, ctx)?.to_f64_vec().unwrap();
        let bounded = plain.clone().with_softcap(Some(2.0)).logits(&rank.weights, &x, ctx)?;
        assert!(free.iter().any(|logit| *logit > 2.0));
        for (bounded, free) in bounded.to_f64_vec().unwrap().iter().zip(&free) {
            assert!((bounded - 2.0 * (free / 2.0).tanh()).abs() < 1e-14);
        }
        Ok((nothing(), nothing()))
    });
}

#[test]
fn a_loss_without_targets_is_an_error() {
    let setup =
        Setup { tp: 2, sequence_parallel: false, numerics: Numerics::Fast, compute: DType::F64 };
    outcome(setup, &[table()], &|rank, ctx| {
        let shard = VocabShard { rows: rank.local("table").ranges[0].clone(), vocab: VOCAB };
        let weight = rank.find(&["table"]);
        let layer = VocabHead::new(rank.group.clone(), weight, HIDDEN, shard, ctx.numerics);
        let error = layer.forward(&rank.weights, &rank.stream("x", HIDDEN), ctx).unwrap_err();
        assert_eq!(error.to_string(), "head needs targets in its context");
        Ok((nothing(), nothing()))
    });
}
