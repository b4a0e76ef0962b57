//! The generator against a loop that computes the whole window for every token.

use crate::support::{Bench, SEED};
use trine_buffer::DType;
use trine_generate::{GenerateError, Generator, Sampling, sample};
use trine_nn::{Numerics, initial_weights};
use trine_rng::Stream;
use trine_spec::{ModelSpec, RankLayout};
use trine_testkit::toy;

const SAMPLING: Sampling = Sampling { temperature: 0.9, top_k: 0, top_p: 0.98, seed: 5 };
const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

fn fill(layout: &RankLayout, bucket: usize, out: &mut [f32]) {
    let initial = initial_weights(layout, bucket, SEED, DType::F32).unwrap();
    out.copy_from_slice(initial.typed().unwrap());
}

fn generator(model: &ModelSpec, threads: usize) -> Generator {
    let load = &mut |layout: &RankLayout, bucket, out: &mut [f32]| {
        fill(layout, bucket, out);
        Ok(())
    };
    Generator::new(model, threads, load).unwrap()
}

/// A generator whose weights `change` has changed, parameter by parameter: name, leading rows that
/// are real, all rows.
fn changed(model: &ModelSpec, change: impl Fn(&str, &mut [f32], &mut [f32])) -> Generator {
    let load = &mut |layout: &RankLayout, bucket: usize, out: &mut [f32]| {
        fill(layout, bucket, out);
        for &index in &layout.buckets[bucket].params {
            let param = &layout.params[index];
            let (real, padding) = out[param.span()].split_at_mut(param.spec.unpadded_len());
            change(&param.spec.name, real, padding);
        }
        Ok(())
    };
    Generator::new(model, 1, load).unwrap()
}

fn run(generator: &Generator, prompt: &[u32], tokens: usize, sampling: &Sampling) -> Vec<u32> {
    let mut told = Vec::new();
    let made =
        generator.generate(prompt, tokens, None, sampling, &mut |token| told.push(token)).unwrap();
    assert_eq!(made, told, "every token is told as it comes");
    assert_eq!(made.len(), tokens);
    made
}

/// The loop as one would write it first: no cache, all logits, the last row.
fn by_hand(bench: &Bench, prompt: &[u32], tokens: usize, sampling: &Sampling) -> Vec<u32> {
    let mut text = prompt.to_vec();
    for index in 0..tokens {
        let window = &text[text.len().saturating_sub(bench.spec.seq_max)..];
        let all = bench.logits(window, None).unwrap();
        let last = &all[(window.len() - 1) * (all.len() / window.len())..];
        let logits: Vec<f32> = last[..bench.spec.vocab].iter().map(|l| *l as f32).collect();
        let uniform = Stream::new(sampling.seed, "generate").uniform(index as u64);
        let token = sample(&logits, sampling, f64::from(uniform)).unwrap();
        if sampling.top_k > 0 {
            let larger = logits.iter().filter(|logit| **logit > logits[token as usize]).count();
            assert!(larger < sampling.top_k, "token {token} has {larger} likelier ones");
        }
        text.push(token);
    }
    text.split_off(prompt.len())
}

#[test]
fn text_is_that_of_the_plain_loop_through_and_beyond_the_window() {
    let mut compared = 0;
    for model in [toy::gpt(), toy::llama(4), toy::llama(1)] {
        let bench = Bench::new(&model, DType::F32, Numerics::Fast);
        let generator = generator(&model, 1);
        for prompt in [1, 5, 15, 16, 17, 40] {
            let (ids, _) = toy::tokens(&model, 1, prompt);
            for sampling in [SAMPLING, Sampling { top_k: 3, ..SAMPLING }, GREEDY] {
                let made = run(&generator, &ids, 25, &sampling);
                assert_eq!(made, by_hand(&bench, &ids, 25, &sampling), "{prompt} {sampling:?}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 3 * 6 * 3);
}

#[test]
fn text_depends_on_the_seed_and_not_on_threads_or_earlier_calls() {
    let model = toy::llama(2);
    let one = generator(&model, 1);
    let made = run(&one, &[1, 2, 3], 30, &SAMPLING);
    assert_eq!(run(&one, &[1, 2, 3], 30, &SAMPLING), made);
    assert_eq!(run(&generator(&model, 3), &[1, 2, 3], 30, &SAMPLING), made);
    assert_eq!(run(&one, &[1, 2, 3], 12, &SAMPLING), made[..12], "a shorter one is its start");
    assert_ne!(run(&one, &[1, 2, 3], 30, &Sampling { seed: 6, ..SAMPLING }), made);
    assert_ne!(run(&one, &[1, 2, 4], 30, &SAMPLING), made);
    assert_eq!(run(&one, &[1, 2, 3], 0, &SAMPLING), [0u32; 0]);
    let first = Sampling { top_k: 1, ..SAMPLING };
    assert_eq!(run(&one, &[1, 2, 3], 30, &first), run(&one, &[1, 2, 3], 30, &GREEDY));
}

#[test]
fn a_long_prompt_counts_by_its_end() {
    let model = toy::gpt();
    let (ids, _) = toy::tokens(&model, 1, 50);
    let generator = generator(&model, 1);
    let made = run(&generator, &ids, 10, &SAMPLING);
    assert_eq!(run(&generator, &ids[50 - model.seq_max..], 10, &SAMPLING), made);
    assert_ne!(run(&generator, &ids[50 - model.seq_max + 1..], 10, &SAMPLING), made);
}

#[test]
fn the_end_of_text_ends_it_and_starts_an_empty_prompt() {
    let generator = generator(&toy::gpt(), 1);
    let made = run(&generator, &[7, 8], 20, &SAMPLING);
    let end = made[9];
    let first = made.iter().position(|token| *token == end).unwrap();
    let mut told = Vec::new();
    let ended = generator
        .generate(&[7, 8], 20, Some(end), &SAMPLING, &mut |token| told.push(token))
        .unwrap();
    assert_eq!(ended, made[..first]);
    assert_eq!(told, ended);

    let from_end = generator.generate(&[], 5, Some(end), &SAMPLING, &mut |_| {}).unwrap();
    let same = generator.generate(&[end], 5, Some(end), &SAMPLING, &mut |_| {}).unwrap();
    assert!(!same.is_empty());
    assert_eq!(from_end, same);
    let error = generator.generate(&[], 5, None, &SAMPLING, &mut |_| {}).unwrap_err();
    assert!(matches!(error, GenerateError::EmptyPrompt), "{error}");
}

#[test]
fn padding_of_the_vocabulary_is_never_drawn() {
    // So hot that every stored entry would be as likely as any other: a quarter are padding.
    let hot = Sampling { temperature: 1e9, top_k: 0, top_p: 1.0, seed: 1 };
    let model = toy::llama(2);
    assert_eq!((model.vocab, model.vocab_stored(1)), (97, 128));
    let mut made = 0;
    for value in [0.0, 1e9, f32::NAN] {
        let generator = changed(&model, |_, _, padding| padding.fill(value));
        let tokens = run(&generator, &[1], 200, &hot);
        assert!(tokens.iter().all(|token| *token < 97), "{tokens:?}");
        assert!(tokens.iter().any(|token| *token >= 80), "the draws do not reach the end");
        made += tokens.len();
    }
    assert_eq!(made, 600);
}

#[test]
fn ids_beyond_the_vocabulary_are_refused() {
    let generator = generator(&toy::llama(2), 1);
    for (prompt, end, place) in [
        (&[0, 96, 97][..], None, "token 2 of the prompt is 97"),
        (&[u32::MAX], None, "token 0 of the prompt is 4294967295"),
        (&[1], Some(128), "the end of text is 128"),
        (&[], Some(97), "the end of text is 97"),
    ] {
        let mut told = 0;
        let error = generator.generate(prompt, 3, end, &SAMPLING, &mut |_| told += 1).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(place) && text.contains("ids go up to 96"), "{text}");
        assert_eq!(told, 0);
    }
}

#[test]
fn damaged_weights_and_wrong_constants_are_errors() {
    let model = toy::llama(2);
    let damaged = changed(&model, |name, real, _| {
        if name == "head.norm.weight" {
            real[3] = f32::NAN;
        }
    });
    let error = damaged.generate(&[1], 3, None, &GREEDY, &mut |_| {}).unwrap_err();
    assert!(matches!(error, GenerateError::Logit { token: 0, .. }), "{error}");

    let wrong = Sampling { top_p: 0.0, ..SAMPLING };
    let error = generator(&model, 1).generate(&[1], 0, None, &wrong, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("top_p = 0"), "{error}");
}

#[test]
fn weights_are_asked_for_bucket_by_bucket_and_failures_name_theirs() {
    let model = toy::gpt();
    let mut asked = Vec::new();
    let load = &mut |layout: &RankLayout, bucket: usize, out: &mut [f32]| {
        assert_eq!(out.len(), layout.buckets[bucket].len);
        assert!(out.iter().all(|value| *value == 0.0));
        asked.push((bucket, layout.buckets.len()));
        if bucket == 4 { Err("no such file".into()) } else { Ok(()) }
    };
    let text = Generator::new(&model, 1, load).unwrap_err().to_string();
    assert_eq!(text, "weights of bucket 4: no such file");
    assert_eq!(asked, (0..5).map(|bucket| (bucket, model.layers + 2)).collect::<Vec<_>>());

    let never = &mut |_: &RankLayout, _: usize, _: &mut [f32]| panic!("nothing to load");
    let text = Generator::new(&model, 0, never).unwrap_err().to_string();
    assert!(text.contains("threads = 0") && text.contains("nearest valid value: 1"), "{text}");
    let impossible = ModelSpec { kv_heads: 3, ..model };
    let text = Generator::new(&impossible, 1, never).unwrap_err().to_string();
    assert!(text.contains("kv_heads = 3"), "{text}");
}
