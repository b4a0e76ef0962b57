//! A split as one long row of tokens.

use crate::DataError;
use std::ops::Range;
use xxhash_rust::xxh3::Xxh3;

/// Tokens of a split in memory, each in as few bytes as the vocabulary allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tokens {
    U16(Vec<u16>),
    U32(Vec<u32>),
}

/// The tokens of one split: its documents one after the other, an end of text after each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenStream {
    tokens: Tokens,
    document_starts: Vec<u64>,
    raw_bytes: u64,
    vocab_size: usize,
    end_of_text: u32,
}

impl TokenStream {
    /// A stream of `tokens`. `document_starts` are the ascending offsets at which documents begin,
    /// the first of them 0; `raw_bytes` is the size of the text that the tokens stand for;
    /// `vocab_size` bounds the ids; `end_of_text` is the token that ends each document.
    ///
    /// # Errors
    /// A token outside of the vocabulary; starts that do not ascend from 0 or lie behind the end.
    pub fn new(
        tokens: Vec<u32>,
        document_starts: Vec<u64>,
        raw_bytes: u64,
        vocab_size: usize,
        end_of_text: u32,
    ) -> Result<Self, DataError> {
        let tokens = if needs_u32(vocab_size) {
            Tokens::U32(tokens)
        } else {
            check_range(tokens.iter().copied(), vocab_size)?;
            Tokens::U16(tokens.into_iter().map(|token| token as u16).collect())
        };
        Self::from_parts(tokens, document_starts, raw_bytes, vocab_size, end_of_text)
    }

    pub(crate) fn from_parts(
        tokens: Tokens,
        document_starts: Vec<u64>,
        raw_bytes: u64,
        vocab_size: usize,
        end_of_text: u32,
    ) -> Result<Self, DataError> {
        let stream = Self { tokens, document_starts, raw_bytes, vocab_size, end_of_text };
        check_range(stream.iter(), vocab_size)?;
        let starts = &stream.document_starts;
        let ascend = starts.windows(2).all(|pair| pair[0] < pair[1]);
        let last = starts.last().copied().unwrap_or(0);
        if starts.first() != Some(&0) || !ascend || last >= stream.len() {
            return Err(DataError::Shape {
                what: "document starts",
                asked: last,
                rule: format!(
                    "they ascend from 0 and stay below the number of tokens, {}",
                    stream.len()
                ),
                nearest: stream.len().saturating_sub(1),
            });
        }
        Ok(stream)
    }

    /// Number of tokens.
    pub fn len(&self) -> u64 {
        match &self.tokens {
            Tokens::U16(tokens) => tokens.len() as u64,
            Tokens::U32(tokens) => tokens.len() as u64,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// UTF-8 bytes of the text that the tokens stand for: what bits per byte are divided by.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// One more than the largest id allowed.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The token after each document. It is also what stands before the first.
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// Offsets at which documents begin.
    pub fn document_starts(&self) -> &[u64] {
        &self.document_starts
    }

    /// All tokens.
    pub fn to_vec(&self) -> Vec<u32> {
        self.iter().collect()
    }

    /// All tokens, one by one.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (narrow, wide): (&[u16], &[u32]) = match &self.tokens {
            Tokens::U16(tokens) => (tokens, &[]),
            Tokens::U32(tokens) => (&[], tokens),
        };
        narrow.iter().map(|&token| u32::from(token)).chain(wide.iter().copied())
    }

    /// Every token with the one before it, the end of text before the first: the bigrams of the
    /// whole split.
    pub fn pairs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        std::iter::once(self.end_of_text).chain(self.iter()).zip(self.iter())
    }

    /// XXH3-128 of the tokens, each as four little-endian bytes: equal streams stand for equal text,
    /// whatever its files are called.
    pub fn hash(&self) -> String {
        let mut hash = Xxh3::new();
        self.iter().for_each(|token| hash.update(&token.to_le_bytes()));
        format!("{:032x}", hash.digest128())
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Writes the tokens of a range; `out` is as long as it.
    pub(crate) fn copy(&self, range: Range<u64>, out: &mut [u32]) {
        let range = range.start as usize..range.end as usize;
        match &self.tokens {
            Tokens::U16(tokens) => {
                out.iter_mut().zip(&tokens[range]).for_each(|(o, &token)| *o = u32::from(token));
            }
            Tokens::U32(tokens) => out.copy_from_slice(&tokens[range]),
        }
    }

    /// The tokens before those of a range: what a model reads to predict them.
    pub(crate) fn copy_before(&self, range: Range<u64>, out: &mut [u32]) {
        let (first, rest) = match range.start {
            0 => out.split_at_mut(out.len().min(1)),
            _ => out.split_at_mut(0),
        };
        first.fill(self.end_of_text);
        let end = range.end - 1;
        self.copy(end - rest.len() as u64..end, rest);
    }

    /// For each input that predicts a token of `range`, the place within the range of the input at
    /// which its document begins: the end of text before the document, or 0 when that is earlier.
    pub(crate) fn document_places(&self, range: Range<u64>, out: &mut [u32]) {
        // The input at place p is token `range.start + p − 1`, so the document that begins at token
        // s begins, with the end of text before it, at place s − range.start.
        let mut next = self.document_starts.partition_point(|&start| start <= range.start);
        let mut begin = 0;
        for (place, out) in out.iter_mut().enumerate() {
            if self.document_starts.get(next) == Some(&(range.start + place as u64)) {
                begin = place as u32;
                next += 1;
            }
            *out = begin;
        }
    }
}

/// Whether ids of a vocabulary need more than 16 bits.
pub(crate) fn needs_u32(vocab_size: usize) -> bool {
    vocab_size > 1 << 16
}

fn check_range(tokens: impl Iterator<Item = u32>, vocab_size: usize) -> Result<(), DataError> {
    let mut tokens = tokens.zip(0..);
    match tokens.find(|(token, _)| *token as usize >= vocab_size) {
        None => Ok(()),
        Some((token, position)) => Err(DataError::TokenRange {
            place: "the stream".to_owned(),
            position,
            token,
            vocab_size,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_what_stands_before_them() {
        for vocab_size in [100, 70_000] {
            let stream =
                TokenStream::new(vec![5, 6, 7, 0, 8, 9, 0], vec![0, 4], 20, vocab_size, 0).unwrap();
            let mut out = [99; 3];
            stream.copy_before(0..3, &mut out);
            assert_eq!(out, [0, 5, 6]);
            stream.copy_before(4..7, &mut out);
            assert_eq!(out, [0, 8, 9]);
            stream.copy(4..7, &mut out);
            assert_eq!(out, [8, 9, 0]);
            let pairs: Vec<_> = stream.pairs().collect();
            assert_eq!(pairs, [(0, 5), (5, 6), (6, 7), (7, 0), (0, 8), (8, 9), (9, 0)]);
        }
    }

    #[test]
    fn documents_begin_at_the_end_of_text_before_them() {
        let stream =
            TokenStream::new(vec![5, 6, 7, 0, 8, 0, 9, 9], vec![0, 4, 6], 20, 10, 0).unwrap();
        let places = |range: Range<u64>| {
            let mut out = vec![99; (range.end - range.start) as usize];
            stream.document_places(range, &mut out);
            out
        };
        assert_eq!(places(0..8), [0, 0, 0, 0, 4, 4, 6, 6]);
        assert_eq!(places(4..8), [0, 0, 2, 2]);
        assert_eq!(places(3..6), [0, 1, 1]);
        assert_eq!(places(5..8), [0, 1, 1]);
    }

    #[test]
    fn bad_streams_are_refused() {
        let error = TokenStream::new(vec![1, 2, 300], vec![0], 9, 100, 0).unwrap_err().to_string();
        assert!(error.contains("token 300 at position 2"), "{error}");
        assert!(error.contains("largest id 99"), "{error}");
        let too_large = TokenStream::new(vec![70_001], vec![0], 9, 70_001, 0);
        assert!(matches!(too_large, Err(DataError::TokenRange { token: 70_001, .. })));
        for starts in [vec![], vec![1], vec![0, 2, 2], vec![0, 3]] {
            assert!(TokenStream::new(vec![1, 2, 3], starts, 9, 100, 0).is_err());
        }
    }
}
