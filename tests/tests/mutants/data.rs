//! Which samples a rank sees.

use super::*;

/// A mutant of runs over sequences of several documents.
fn packed_mutant(name: &'static str, config: EngineConfig, injection: Injection) -> Mutant {
    let noticed = &[Gradients, Loss, Norm];
    Mutant { packed: true, ..mutant(name, config, injection, noticed, "that of") }
}

/// Samples that are given to a rank otherwise.
fn given(samples: impl Fn(usize, Samples<'_>) -> Batch + Sync + 'static) -> Injection {
    Injection::Samples(Box::new(samples))
}

/// The tokens of a rank, moved by so many of the 48 that it has, or of their rows.
fn moved(mut batch: Batch, tokens: usize) -> Batch {
    batch.inputs.rotate_right(tokens);
    batch.targets.rotate_right(tokens);
    batch
}

/// How far a token of a document sees.
pub(crate) fn in_the_documents() -> Vec<Mutant> {
    let shifted = |mut batch: Batch, by: usize| {
        batch.document_start.as_mut().unwrap().rotate_right(by);
        batch
    };
    let llama = || layout(toy::llama(2));
    vec![
        packed_mutant(
            "documents see one another",
            layout(toy::gpt()),
            given(|dp_index, samples| Batch { document_start: None, ..samples(dp_index) }),
        ),
        packed_mutant(
            "documents begin a token late",
            llama(),
            given(move |dp_index, samples| shifted(samples(dp_index), 1)),
        ),
        packed_mutant(
            "a sequence has the documents of the one before it",
            llama(),
            given(move |dp_index, samples| shifted(samples(dp_index), 8)),
        ),
    ]
}

/// Which samples a rank sees, and in which order.
pub(crate) fn in_the_data() -> Vec<Mutant> {
    let gpt = || layout(toy::gpt());
    let dropout = || layout(ModelSpec { dropout: 0.2.into(), ..toy::gpt() });
    let all = &[Gradients, Loss, Norm];
    vec![
        mutant(
            "all replicas have the samples of the first",
            gpt(),
            given(|_, samples| samples(0)),
            all,
            "that of",
        ),
        mutant(
            "the samples of the second replica begin one too early",
            gpt(),
            given(|dp_index, samples| {
                let (first, mut own) = (samples(0), samples(dp_index));
                if dp_index == 1 {
                    own = moved(own, 8);
                    own.inputs[..8].copy_from_slice(&first.inputs[40..]);
                    own.targets[..8].copy_from_slice(&first.targets[40..]);
                }
                own
            }),
            all,
            "that of",
        ),
        mutant(
            "replicas have one another's samples under their own masks",
            dropout(),
            given(|dp_index, samples| samples(1 - dp_index)),
            all,
            "that of",
        ),
        mutant(
            "the samples of a rank come in another order than their masks",
            dropout(),
            given(|dp_index, samples| moved(samples(dp_index), 8)),
            all,
            "that of",
        ),
        mutant(
            "targets are the tokens themselves and not the next ones",
            gpt(),
            given(|dp_index, samples| {
                let Batch { inputs, targets, document_start } = samples(dp_index);
                let own = |(input, target): (&u32, u32)| match target {
                    u32::MAX => u32::MAX,
                    _ => *input,
                };
                let targets = inputs.iter().zip(targets).map(own).collect();
                Batch { inputs, targets, document_start }
            }),
            all,
            "that of",
        ),
    ]
}
