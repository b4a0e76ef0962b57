//! One sequence: what the model reads and what it should predict.

use crate::TokenStream;
use std::ops::Range;

/// The target of a position at which nothing is to be predicted.
pub const IGNORE: u32 = u32::MAX;

/// Rows of equal length, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The rows' numbers: places in the global batch, or numbers of validation windows.
    pub rows: Range<u64>,
    /// Tokens read, `[rows, seq]`.
    pub inputs: Vec<u32>,
    /// Tokens to predict, `[rows, seq]`, [`IGNORE`] where there is none.
    pub targets: Vec<u32>,
    /// For each position the place in its row at which its document begins, `[rows, seq]`, where
    /// documents are kept apart. A document begins with the end of text before it.
    pub document_start: Option<Vec<u32>>,
}

impl Batch {
    /// A batch of so many rows in which nothing is to be predicted.
    pub(crate) fn blank(rows: Range<u64>, seq: usize, fill: u32, document_mask: bool) -> Self {
        let len = (rows.end - rows.start) as usize * seq;
        Self {
            rows,
            inputs: vec![fill; len],
            targets: vec![IGNORE; len],
            document_start: document_mask.then(|| vec![0; len]),
        }
    }

    /// Fills row `row` with the tokens of `range` as targets; what is beyond the range stays blank.
    pub(crate) fn set_row(
        &mut self,
        row: usize,
        seq: usize,
        stream: &TokenStream,
        range: Range<u64>,
    ) {
        let first = row * seq;
        let places = first..first + (range.end - range.start) as usize;
        stream.copy_before(range.clone(), &mut self.inputs[places.clone()]);
        stream.copy(range.clone(), &mut self.targets[places]);
        if let Some(starts) = &mut self.document_start {
            // The blank tail too: it belongs to the last document.
            let whole = range.start..range.start + seq as u64;
            stream.document_places(whole, &mut starts[first..first + seq]);
        }
    }

    /// Positions at which a token is to be predicted.
    pub fn valid_tokens(&self) -> u64 {
        self.targets.iter().filter(|&&target| target != IGNORE).count() as u64
    }

    /// Each token to predict with the one before it: the batch's bigrams.
    pub fn pairs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.inputs
            .iter()
            .copied()
            .zip(self.targets.iter().copied())
            .filter(|pair| pair.1 != IGNORE)
    }

    /// Bytes of text that the tokens to predict stand for, given the bytes of each token
    /// ([`crate::Tokenizer::byte_lengths`]).
    pub fn target_bytes(&self, byte_lengths: &[u32]) -> u64 {
        self.pairs().map(|(_, target)| u64::from(byte_lengths[target as usize])).sum()
    }
}
