//! Which sample is trained on when: a pure function of seed and step.

use crate::{Batch, DataError, TokenStream};
use std::sync::Arc;
use trine_rng::{Permutation, Stream};

/// Shape and order of the training batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Tokens of a sample.
    pub seq: usize,
    /// Samples of a step, over all ranks.
    pub global_batch: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Whether [`Batch::document_start`] is given, so that documents do not see each other.
    pub document_mask: bool,
}

/// The part of a step that one data-parallel rank computes, and in how many pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The rank along the data-parallel axis.
    pub dp_rank: usize,
    /// Ranks along that axis.
    pub dp: usize,
    /// Micro-batches of each rank.
    pub micro_batches: usize,
}

/// Training batches over a stream.
///
/// The stream is cut into windows of `seq` tokens to predict; each is predicted from the token
/// before it, across the border of the window too. Sample `i` of a run (`step · global_batch +` its
/// place in the batch) is window `permutation(i mod n)` of epoch `i / n`, each epoch with its own
/// keyed permutation of the `n` windows. Nothing else counts: rank `d` of `dp` takes the samples
/// `d · B/dp ..` of each global batch, its micro-batch `m` the `m`-th part of these, so every layout
/// trains on the same numbers in the same places.
///
/// ```
/// use std::sync::Arc;
/// use trine_data::{BatchOptions, Batches, Share, TokenStream};
///
/// let stream = TokenStream::new((1..=64).collect(), vec![0], 200, 65, 0)?;
/// let options = BatchOptions { seq: 4, global_batch: 8, seed: 1, document_mask: false };
/// let batches = Batches::new(Arc::new(stream), options)?;
/// let whole = batches.micro_batch(3, Share { dp_rank: 0, dp: 1, micro_batches: 1 }, 0)?;
/// let part = batches.micro_batch(3, Share { dp_rank: 1, dp: 2, micro_batches: 2 }, 1)?;
/// assert_eq!(part.rows, 6..8);
/// assert_eq!(part.inputs, whole.inputs[6 * 4..]);
/// # Ok::<(), trine_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Batches {
    stream: Arc<TokenStream>,
    options: BatchOptions,
}

impl Batches {
    /// Batches over `stream`.
    ///
    /// # Errors
    /// A size of 0, and a stream shorter than one window.
    pub fn new(stream: Arc<TokenStream>, options: BatchOptions) -> Result<Self, DataError> {
        check_positive("sequence length", options.seq)?;
        check_positive("global batch", options.global_batch)?;
        if stream.len() < options.seq as u64 {
            let (tokens, seq) = (stream.len(), options.seq);
            return Err(DataError::TooShort { split: "training", tokens, seq });
        }
        Ok(Self { stream, options })
    }

    /// Windows of an epoch. The tail that fills no window is never used.
    pub fn windows(&self) -> u64 {
        self.stream.len() / self.options.seq as u64
    }

    /// Tokens predicted in a step.
    pub fn tokens_per_step(&self) -> u64 {
        (self.options.global_batch * self.options.seq) as u64
    }

    /// The window that sample `sample` of the run is.
    pub fn window_of(&self, sample: u64) -> u64 {
        let (epoch, place) = (sample / self.windows(), sample % self.windows());
        let stream = Stream::new(self.options.seed, &format!("data.order.{epoch}"));
        Permutation::new(self.windows(), stream).get(place)
    }

    /// Micro-batch `micro_batch` of `share` at `step`. [`Batch::rows`] are the samples' places in the
    /// global batch.
    ///
    /// # Errors
    /// A share that does not divide the global batch, or a part that is not in it.
    pub fn micro_batch(
        &self,
        step: u64,
        share: Share,
        micro_batch: usize,
    ) -> Result<Batch, DataError> {
        self.micro_batch_from(step * self.options.global_batch as u64, share, micro_batch)
    }

    /// The same of a step that begins with sample `first_sample` of the run: its number is no multiple
    /// of the batch where the batch was another before.
    ///
    /// # Errors
    /// As [`Batches::micro_batch`].
    pub fn micro_batch_from(
        &self,
        first_sample: u64,
        share: Share,
        micro_batch: usize,
    ) -> Result<Batch, DataError> {
        let rows = self.rows_per_micro_batch(share)?;
        check_below("data-parallel rank", share.dp_rank, share.dp)?;
        check_below("micro-batch", micro_batch, share.micro_batches)?;
        let first = ((share.dp_rank * share.micro_batches + micro_batch) * rows) as u64;
        let BatchOptions { seq, document_mask, .. } = self.options;
        let places = first..first + rows as u64;
        let mut batch = Batch::blank(places.clone(), seq, self.stream.end_of_text(), document_mask);
        for (row, place) in places.enumerate() {
            let window = self.window_of(first_sample + place);
            let start = window * seq as u64;
            batch.set_row(row, seq, &self.stream, start..start + seq as u64);
        }
        Ok(batch)
    }

    /// Samples of a micro-batch.
    ///
    /// # Errors
    /// A global batch that `dp · micro_batches` does not divide.
    pub fn rows_per_micro_batch(&self, share: Share) -> Result<usize, DataError> {
        check_positive("data-parallel ranks", share.dp)?;
        check_positive("micro-batches", share.micro_batches)?;
        let (batch, parts) = (self.options.global_batch, share.dp * share.micro_batches);
        if !batch.is_multiple_of(parts) {
            let nearest = ((batch + parts / 2) / parts).max(1) * parts;
            return Err(DataError::Shape {
                what: "global batch",
                asked: batch as u64,
                rule: format!(
                    "data-parallel ranks × micro-batches = {} × {} divides it",
                    share.dp, share.micro_batches
                ),
                nearest: nearest as u64,
            });
        }
        Ok(batch / parts)
    }

    /// The bigrams that the first `samples` samples of the run train on, each window once: what a
    /// bigram model may be fitted on to have seen exactly the same text.
    pub fn seen_pairs(&self, samples: u64) -> impl Iterator<Item = (u32, u32)> + '_ {
        let seq = self.options.seq;
        (0..samples.min(self.windows())).flat_map(move |sample| {
            let start = self.window_of(sample) * seq as u64;
            let mut batch = Batch::blank(sample..sample + 1, seq, 0, false);
            batch.set_row(0, seq, &self.stream, start..start + seq as u64);
            batch.inputs.into_iter().zip(batch.targets)
        })
    }
}

pub(crate) fn check_positive(what: &'static str, value: usize) -> Result<(), DataError> {
    if value > 0 {
        return Ok(());
    }
    let rule = "it is at least 1".to_owned();
    Err(DataError::Shape { what, asked: 0, rule, nearest: 1 })
}

fn check_below(what: &'static str, value: usize, count: usize) -> Result<(), DataError> {
    if value < count {
        return Ok(());
    }
    let rule = format!("it is below {count}");
    Err(DataError::Shape { what, asked: value as u64, rule, nearest: count as u64 - 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(tokens: u32, options: BatchOptions) -> Batches {
        let starts = (0..u64::from(tokens)).step_by(11).collect();
        let stream = TokenStream::new((0..tokens).collect(), starts, 9, 100_000, 0).unwrap();
        Batches::new(Arc::new(stream), options).unwrap()
    }

    const OPTIONS: BatchOptions =
        BatchOptions { seq: 8, global_batch: 24, seed: 3, document_mask: true };
    const SERIAL: Share = Share { dp_rank: 0, dp: 1, micro_batches: 1 };

    #[test]
    fn every_layout_has_the_same_samples_in_the_same_places() {
        let batches = batches(1000, OPTIONS);
        let mut layouts = 0;
        for step in [0, 1, 7] {
            let whole = batches.micro_batch(step, SERIAL, 0).unwrap();
            for (dp, micro_batches) in [(1, 2), (2, 1), (2, 3), (3, 4), (4, 6), (24, 1), (8, 3)] {
                let mut joined = Batch::blank(0..0, 8, 0, true);
                for dp_rank in 0..dp {
                    for m in 0..micro_batches {
                        let share = Share { dp_rank, dp, micro_batches };
                        let part = batches.micro_batch(step, share, m).unwrap();
                        assert_eq!(part.rows.start, joined.rows.end);
                        joined.rows.end = part.rows.end;
                        joined.inputs.extend(part.inputs);
                        joined.targets.extend(part.targets);
                        let starts = joined.document_start.as_mut().unwrap();
                        starts.extend(part.document_start.unwrap());
                    }
                }
                assert_eq!(joined, whole, "dp {dp}, {micro_batches} micro-batches");
                layouts += 1;
            }
        }
        assert_eq!(layouts, 21);
    }

    #[test]
    fn an_epoch_reads_every_window_once_and_the_next_in_another_order() {
        let batches = batches(1003, OPTIONS);
        assert_eq!(batches.windows(), 125);
        let epoch = |k: u64| (k * 125..(k + 1) * 125).map(|i| batches.window_of(i));
        for k in 0..3 {
            let mut windows: Vec<u64> = epoch(k).collect();
            windows.sort_unstable();
            assert!(windows.into_iter().eq(0..125));
        }
        assert!(!epoch(0).eq(epoch(1)));
    }

    #[test]
    fn targets_follow_inputs() {
        let batches = batches(1000, OPTIONS);
        let batch = batches.micro_batch(2, SERIAL, 0).unwrap();
        for (row, place) in batch.rows.clone().enumerate() {
            let first = (batches.window_of(48 + place) * 8) as u32;
            let targets: Vec<u32> = (first..first + 8).collect();
            assert_eq!(batch.targets[row * 8..][..8], targets);
            let inputs: Vec<u32> = targets.iter().map(|&t| t.saturating_sub(1)).collect();
            assert_eq!(batch.inputs[row * 8..][..8], inputs);
        }
        assert_eq!(batch.valid_tokens(), 24 * 8);
    }

    #[test]
    fn another_batch_goes_on_from_the_samples_seen() {
        let (small, large) =
            (batches(1000, OPTIONS), batches(1000, BatchOptions { global_batch: 48, ..OPTIONS }));
        let tokens = |batch: Batch| (batch.inputs, batch.targets);
        let whole = tokens(large.micro_batch_from(72, SERIAL, 0).unwrap());
        let (mut inputs, mut targets) = tokens(small.micro_batch(3, SERIAL, 0).unwrap());
        let next = tokens(small.micro_batch(4, SERIAL, 0).unwrap());
        inputs.extend(next.0);
        targets.extend(next.1);
        assert_eq!(whole, (inputs, targets));
    }

    #[test]
    fn the_seed_decides() {
        let order = |seed| {
            let batches = batches(1000, BatchOptions { seed, ..OPTIONS });
            batches.micro_batch(0, SERIAL, 0).unwrap().inputs
        };
        assert_eq!(order(3), order(3));
        assert_ne!(order(3), order(4));
    }

    #[test]
    fn seen_pairs_are_those_of_the_batches() {
        let batches = batches(1000, OPTIONS);
        let mut expected: Vec<_> = (0..2)
            .flat_map(|step| {
                let batch = batches.micro_batch(step, SERIAL, 0).unwrap();
                batch.pairs().collect::<Vec<_>>()
            })
            .collect();
        let seen: Vec<_> = batches.seen_pairs(48).collect();
        assert_eq!(seen, expected);
        // Beyond an epoch nothing new is seen.
        expected = batches.seen_pairs(125).collect();
        assert_eq!(batches.seen_pairs(10_000).collect::<Vec<_>>(), expected);
        assert_eq!(expected.len(), 1000);
    }

    #[test]
    fn bad_shapes_name_the_nearest_good_one() {
        let stream = Arc::new(TokenStream::new(vec![1; 7], vec![0], 9, 10, 0).unwrap());
        let error = Batches::new(stream, OPTIONS).unwrap_err().to_string();
        assert!(error.contains("tokens in it: 7, in a window: 8; set data.seq to 7"), "{error}");
        let batches = batches(1000, OPTIONS);
        let error = |share, m| batches.micro_batch(0, share, m).unwrap_err().to_string();
        let uneven = error(Share { dp_rank: 0, dp: 5, micro_batches: 2 }, 0);
        assert!(uneven.contains("24") && uneven.contains("nearest that does is 20"), "{uneven}");
        assert!(error(Share { dp_rank: 2, dp: 2, micro_batches: 1 }, 0).contains("rank: 2"));
        assert!(error(Share { dp_rank: 0, dp: 2, micro_batches: 1 }, 1).contains("micro-batch: 1"));
        assert!(error(Share { dp_rank: 0, dp: 0, micro_batches: 1 }, 0).contains("at least 1"));
    }
}
