//! Text to tokens, in parallel, with each word looked up once.

use crate::split::pieces;
use crate::tokenizer::WordCache;
use crate::{DataError, Document, TokenStream, Tokenizer, library};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// Bytes that a thread encodes at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// The tokens of all documents in order, an end of text after each. `threads` threads (at least one)
/// take pieces in turn; the result does not depend on how many. `done` is called with the bytes
/// encoded so far.
pub(crate) fn encode_documents(
    tokenizer: &Tokenizer,
    documents: &[Document],
    threads: usize,
    mut done: impl FnMut(u64),
) -> Result<TokenStream, DataError> {
    let work: Vec<Vec<&str>> =
        documents.iter().map(|d| pieces(&d.text, PIECE_BYTES).collect()).collect();
    let flat: Vec<&str> = work.iter().flatten().copied().collect();
    let mut encoded = encode_pieces(tokenizer, &flat, threads, &mut done)?.into_iter();

    let mut tokens = Vec::with_capacity(flat.iter().map(|piece| piece.len()).sum::<usize>() / 3);
    let mut starts = Vec::with_capacity(documents.len());
    for pieces in &work {
        starts.push(tokens.len() as u64);
        encoded.by_ref().take(pieces.len()).for_each(|piece| tokens.extend(piece));
        tokens.push(tokenizer.end_of_text());
    }
    let raw_bytes = documents.iter().map(|d| d.text.len() as u64).sum();
    TokenStream::new(tokens, starts, raw_bytes, tokenizer.vocab_size(), tokenizer.end_of_text())
}

fn encode_pieces(
    tokenizer: &Tokenizer,
    pieces: &[&str],
    threads: usize,
    done: &mut impl FnMut(u64),
) -> Result<Vec<Vec<u32>>, DataError> {
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, pieces.len().max(1)) {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                let mut cache = WordCache::default();
                while let Some((index, text)) = take(next, pieces) {
                    let mut tokens = Vec::with_capacity(text.len() / 2);
                    let result = library::guarded("encoding", || {
                        cache.encode(tokenizer, text, &mut tokens).map(|()| tokens)
                    });
                    // The receiver is gone after a failure elsewhere: nothing left to do.
                    if sender.send((index, result)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut encoded = vec![Vec::new(); pieces.len()];
        let mut bytes = 0;
        for (index, result) in receiver {
            encoded[index] = result?;
            bytes += pieces[index].len() as u64;
            done(bytes);
        }
        Ok(encoded)
    })
}

fn take<'a>(next: &AtomicUsize, pieces: &[&'a str]) -> Option<(usize, &'a str)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    pieces.get(index).map(|piece| (index, *piece))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy;

    #[test]
    fn threads_and_pieces_do_not_change_tokens() {
        let documents: Vec<Document> = [700_000, 10, 30_000]
            .iter()
            .map(|&bytes| Document {
                name: bytes.to_string(), text: toy::text(bytes) + "日本 ½\n"
            })
            .collect();
        let tokenizer = Tokenizer::train([&documents[2].text[..]], 500).unwrap();
        let mut expected = Vec::new();
        for document in &documents {
            expected.extend(tokenizer.encode(&document.text).unwrap());
            expected.push(0);
        }
        for threads in [0, 1, 2, 5] {
            let mut last = 0;
            let stream =
                encode_documents(&tokenizer, &documents, threads, |bytes| last = bytes).unwrap();
            assert_eq!(stream.to_vec(), expected);
            assert_eq!(stream.document_starts().len(), 3);
            assert_eq!(stream.raw_bytes(), last);
        }
    }
}
