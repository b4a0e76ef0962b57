//! The held-out split, in a fixed order.

use crate::batches::check_positive;
use crate::{Batch, DataError, TokenStream};
use std::ops::Range;
use std::sync::Arc;

/// Windows over the held-out split: one after the other without overlap, so that every token is
/// predicted exactly once; the last one is filled up with [`crate::IGNORE`].
///
/// ```
/// use std::sync::Arc;
/// use trine_data::{IGNORE, TokenStream, ValidationWindows};
///
/// let stream = TokenStream::new(vec![5, 6, 7, 8, 9], vec![0], 20, 10, 0)?;
/// let windows = ValidationWindows::new(Arc::new(stream), 3, false, None)?;
/// let batch = windows.batch(0..2);
/// assert_eq!(batch.inputs, [0, 5, 6, 7, 8, 0]);
/// assert_eq!(batch.targets, [5, 6, 7, 8, 9, IGNORE]);
/// # Ok::<(), trine_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ValidationWindows {
    stream: Arc<TokenStream>,
    seq: usize,
    document_mask: bool,
    /// Windows used, and windows there are.
    used: u64,
    all: u64,
}

impl ValidationWindows {
    /// Windows of `seq` tokens over `stream`; with `windows_max` at most so many, spread evenly over
    /// the split.
    ///
    /// # Errors
    /// A sequence length or a number of windows of 0.
    pub fn new(
        stream: Arc<TokenStream>,
        seq: usize,
        document_mask: bool,
        windows_max: Option<usize>,
    ) -> Result<Self, DataError> {
        check_positive("sequence length", seq)?;
        check_positive("validation windows", windows_max.unwrap_or(1))?;
        let all = stream.len().div_ceil(seq as u64);
        let used = windows_max.map_or(all, |max| all.min(max as u64));
        Ok(Self { stream, seq, document_mask, used, all })
    }

    /// Number of windows.
    pub fn len(&self) -> u64 {
        self.used
    }

    /// Whether there are none; never, since a stream has a token.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Windows `rows`. Those behind the last one are blank, nothing to predict in them, so that
    /// ranks may take equal numbers.
    pub fn batch(&self, rows: Range<u64>) -> Batch {
        let end_of_text = self.stream.end_of_text();
        let mut batch = Batch::blank(rows.clone(), self.seq, end_of_text, self.document_mask);
        for (row, window) in rows.enumerate().take_while(|(_, window)| *window < self.used) {
            batch.set_row(row, self.seq, &self.stream, self.range(window));
        }
        batch
    }

    /// The bigrams of all windows, in order: the tokens that a model is measured on.
    pub fn pairs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (0..self.used).flat_map(|window| {
            let batch = self.batch(window..window + 1);
            batch.pairs().collect::<Vec<_>>()
        })
    }

    /// Bytes of text that the windows' targets stand for, given the bytes of each token
    /// ([`crate::Tokenizer::byte_lengths`]): what total bits are divided by for bits per byte.
    pub fn raw_bytes(&self, byte_lengths: &[u32]) -> u64 {
        self.pairs().map(|(_, target)| u64::from(byte_lengths[target as usize])).sum()
    }

    /// The tokens that window `window` predicts.
    fn range(&self, window: u64) -> Range<u64> {
        // window · all / used is increasing, and window itself when all are used.
        let window = (u128::from(window) * u128::from(self.all) / u128::from(self.used)) as u64;
        let start = window * self.seq as u64;
        start..(start + self.seq as u64).min(self.stream.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IGNORE;

    fn stream(len: u32) -> Arc<TokenStream> {
        let starts = (0..u64::from(len)).step_by(7).collect();
        Arc::new(TokenStream::new((1..=len).collect(), starts, 9, 1000, 0).unwrap())
    }

    #[test]
    fn every_token_is_predicted_once() {
        let mut cases = 0;
        for len in [1, 7, 8, 9, 16, 100] {
            for seq in [1, 3, 8, 128] {
                let windows = ValidationWindows::new(stream(len), seq, true, None).unwrap();
                let expected: Vec<_> = (1..=len).map(|token| (token - 1, token)).collect();
                assert_eq!(windows.pairs().collect::<Vec<_>>(), expected);
                // Blank rows behind the last add nothing.
                let batch = windows.batch(0..windows.len() + 3);
                assert_eq!(batch.pairs().collect::<Vec<_>>(), expected);
                assert_eq!(batch.valid_tokens(), u64::from(len));
                assert!(batch.targets.iter().all(|&t| t == IGNORE || t <= len));
                cases += 1;
            }
        }
        assert_eq!(cases, 24);
    }

    #[test]
    fn fewer_windows_are_spread() {
        let windows = ValidationWindows::new(stream(100), 5, false, Some(4)).unwrap();
        let batch = windows.batch(0..4);
        let firsts: Vec<u32> = batch.targets.chunks(5).map(|row| row[0]).collect();
        assert_eq!(firsts, [1, 26, 51, 76]);
        assert_eq!(ValidationWindows::new(stream(9), 5, false, Some(4)).unwrap().len(), 2);
        assert!(ValidationWindows::new(stream(9), 5, false, Some(0)).is_err());
        assert!(ValidationWindows::new(stream(9), 0, false, None).is_err());
    }
}
