//! Decoding with a cache of keys and values against one pass over the whole sequence.

use crate::support::Bench;
use trine_buffer::{Act, Buf, DType};
use trine_nn::{Context, DecodeCache, Mode, Numerics, Rows};
use trine_spec::ModelSpec;
use trine_testkit::{relative_error, toy};

/// The logits of every token, from passes over chunks of these lengths.
fn decoded(bench: &Bench, ids: &[u32], chunks: &[usize]) -> Vec<f64> {
    assert_eq!(chunks.iter().sum::<usize>(), ids.len());
    let mut cache = bench.cache(ids.len());
    let mut logits = Vec::new();
    for &tokens in chunks {
        let fresh = &ids[cache.position()..][..tokens];
        logits.extend(bench.logits(fresh, Some(&cache)).unwrap());
        cache.advance(tokens).unwrap();
    }
    logits
}

/// A prompt of each length in one pass, then token by token; and the rest in one more pass.
fn chunkings(seq: usize) -> Vec<Vec<usize>> {
    let by_token = (1..=seq).map(|prompt| [vec![prompt], vec![1; seq - prompt]].concat());
    by_token.chain((1..seq).map(|prompt| vec![prompt, seq - prompt])).collect()
}

fn models() -> Vec<ModelSpec> {
    // Without dropout there would be nothing to leave off.
    let dropout = 0.3;
    let all = [toy::gpt(), toy::llama(4), toy::llama(2), toy::llama(1)];
    all.map(|model| ModelSpec { dropout: dropout.into(), ..model }).into()
}

#[test]
fn cached_decoding_is_the_pass_over_everything_to_the_last_bit() {
    let mut compared = 0;
    for spec in models() {
        let seq = spec.seq_max;
        let (ids, _) = toy::tokens(&spec, 1, seq);
        for (compute, bound) in [(DType::F32, 1e-5), (DType::F64, 1e-12)] {
            for numerics in [Numerics::Fast, Numerics::Reference] {
                let bench = Bench::new(&spec, compute, numerics);
                let whole = bench.logits(&ids, None).unwrap();
                let spread = whole.iter().fold(0.0f64, |max, logit| max.max(logit.abs()));
                assert!(spread > 0.1, "these logits say nothing: {spread}");
                for chunks in chunkings(seq) {
                    let decoded = decoded(&bench, &ids, &chunks);
                    let error = relative_error(&decoded, &whole);
                    assert!(error <= bound, "{spec:?} {compute} {chunks:?}: {error:e}");
                    assert_eq!(decoded, whole, "{spec:?} {compute} {numerics:?} {chunks:?}");
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 4 * 2 * 2 * 31);
}

#[test]
fn sequences_longer_than_a_tile_of_keys_decode_alike() {
    for spec in [toy::gpt(), toy::llama(2)] {
        let spec = ModelSpec { seq_max: 300, layers: 2, ..spec };
        let (ids, _) = toy::tokens(&spec, 1, spec.seq_max);
        let bench = Bench::new(&spec, DType::F32, Numerics::Fast);
        let whole = bench.logits(&ids, None).unwrap();
        for chunks in [[vec![1; 20], vec![280]].concat(), [vec![120], vec![1; 180]].concat()] {
            assert_eq!(decoded(&bench, &ids, &chunks), whole, "{chunks:?}");
        }
    }
}

#[test]
fn the_next_logits_are_the_last_row() {
    for spec in models() {
        let (ids, _) = toy::tokens(&spec, 1, 7);
        let bench = Bench::new(&spec, DType::F32, Numerics::Fast);
        let whole = bench.logits(&ids, None).unwrap();
        let x = Act::new(Buf::from_vec(ids.clone()));
        let next = bench.model.next_logits(&bench.weights, x, &bench.context(7, None)).unwrap();
        assert_eq!(next.to_f64_vec().unwrap(), whole[6 * whole.len() / 7..]);
        let nothing = Act::new(Buf::from_vec(Vec::<u32>::new()));
        assert!(bench.model.next_logits(&bench.weights, nothing, &bench.context(0, None)).is_err());
    }
}

#[test]
fn a_cache_that_is_forgotten_or_wrong_shows() {
    let spec = toy::llama(2);
    let (ids, _) = toy::tokens(&spec, 1, 8);
    let bench = Bench::new(&spec, DType::F32, Numerics::Fast);
    let whole = bench.logits(&ids, None).unwrap();

    // The control: the last four tokens without those before them are another text.
    let alone = bench.logits(&ids[4..], None).unwrap();
    assert!(relative_error(&alone, &whole[whole.len() / 2..]) > 1e-2);

    // A pass that was not counted can be run again; one after `clear` starts anew.
    let mut cache = bench.cache(8);
    bench.logits(&ids[4..], Some(&cache)).unwrap();
    cache.advance(4).unwrap();
    cache.clear();
    bench.logits(&ids[2..5], Some(&cache)).unwrap();
    assert_eq!(bench.logits(&ids, Some(&cache)).unwrap(), whole);
}

#[test]
fn a_cache_that_does_not_fit_is_refused() {
    let spec = toy::llama(2);
    let (ids, _) = toy::tokens(&spec, 2, 8);
    let bench = Bench::new(&spec, DType::F32, Numerics::Fast);
    let refused = |cache: &DecodeCache, tokens: usize| {
        bench.logits(&ids[..tokens], Some(cache)).unwrap_err().to_string()
    };
    let mut full = bench.cache(5);
    full.advance(3).unwrap();
    let text = refused(&full, 3);
    assert!(text.contains("3 tokens do not fit behind 3") && text.contains("at most 2"), "{text}");

    let few = DecodeCache::new(spec.layers - 1, spec.kv_dim(), 8, DType::F32);
    let text = refused(&few, 3);
    assert!(text.contains("layer 4 has no place in a cache of 4 layers"), "{text}");
    assert!(refused(&DecodeCache::new(spec.layers, 5, 8, DType::F32), 3).contains("copy"));
    assert!(refused(&DecodeCache::new(spec.layers, 16, 8, DType::F64), 3).contains("f64"));

    let cache = bench.cache(16);
    let with = |rows: Rows, mode: Mode| {
        let ids = Act::new(Buf::from_vec(ids[..rows.tokens()].to_vec()));
        let ctx = Context { rows, mode, ..bench.context(0, Some(&cache)) };
        bench.model.logits(&bench.weights, ids, &ctx).unwrap_err().to_string()
    };
    let text = with(Rows { samples: 0..2, seq: 4 }, Mode::Eval);
    assert!(text.contains("batch of a cache has 2 elements, expected 1"), "{text}");
    let text = with(Rows { samples: 0..1, seq: 4 }, Mode::Train);
    assert!(text.contains("Mode::Eval"), "{text}");
}
