//! Byte-level BPE: training, loading, encoding, decoding.

use crate::split::pieces;
use crate::words::{
    ascii_words, byte_char, byte_level_ascii, byte_level_words, chunks, library_words,
};
use crate::{DataError, Document, files, library};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, Model, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper,
    Trainer,
};
use trine_rng::{Permutation, Stream};
use xxhash_rust::xxh3::{Xxh3DefaultBuilder, xxh3_128};

/// The token after each document, id 0 in tokenizers trained here.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// What published byte-level tokenizers call that token, most common first.
const END_OF_TEXT_NAMES: [&str; 4] = [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>"];
/// 256 bytes and the end of text.
const VOCABULARY_MIN: usize = 257;
/// Size of the pieces that training samples.
const SAMPLE_PIECE_BYTES: usize = 64 * 1024;
/// The longest word that training counts as one. Merging takes a time that grows with the square of
/// a word, and text without spaces is one word.
const COUNTED_BYTES_MAX: usize = 1024;
/// Words remembered by a thread; a megabyte of source code has about ten thousand.
const CACHE_WORDS_MAX: usize = 1 << 20;
/// No `tokenizer.json` is larger: that of a vocabulary of 256,000 has 40 MB.
const JSON_BYTES_MAX: u64 = 1 << 28;

/// A byte-level BPE tokenizer (Sennrich et al., arXiv 1508.07909; byte level as in GPT-2).
///
/// Every text can be encoded and decodes to itself, and each token stands for known bytes, which is
/// what makes bits per byte comparable between tokenizers. The special tokens of a vocabulary that
/// happen to stand in a text are read as ordinary text: no document can forge its own end.
///
/// ```
/// use trine_data::{Tokenizer, toy};
///
/// let text = toy::text(20_000);
/// let tokenizer = Tokenizer::train([text.as_str()], 300)?;
/// let ids = tokenizer.encode("fn größe() -> u8 { 1 }")?;
/// assert_eq!(tokenizer.decode(&ids), "fn größe() -> u8 { 1 }");
/// # Ok::<(), trine_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end_of_text: u32,
    /// The bytes of all tokens, one after the other, and where each begins.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    /// Whether words can be split by [`crate::words`] and looked up one by one.
    is_plain: bool,
}

impl Tokenizer {
    /// Trains on `texts` until the vocabulary has `vocab_size` entries, the end-of-text token and the
    /// 256 bytes among them; fewer when no pair of tokens occurs twice any more. The result depends
    /// on the texts only. The time is about a second for 8 MiB on one core, and grows with the bytes:
    /// of words over 1 KiB pieces are counted.
    ///
    /// # Errors
    /// A size below 257.
    pub fn train<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        vocab_size: usize,
    ) -> Result<Self, DataError> {
        if vocab_size < VOCABULARY_MIN {
            return Err(DataError::Vocabulary { asked: vocab_size, nearest: VOCABULARY_MIN });
        }
        let texts: Vec<&str> = texts.into_iter().collect();
        library::guarded("training", || {
            serial_library();
            let end_of_text = AddedToken::from(END_OF_TEXT, true);
            let mut trainer = BpeTrainer::builder()
                .vocab_size(vocab_size)
                .min_frequency(2)
                .show_progress(false)
                .special_tokens(vec![end_of_text.clone()])
                .initial_alphabet((0..=255).map(byte_char).collect())
                .build();
            let failed = |error: tokenizers::Error| failure("training", &error);
            trainer.feed(texts.into_iter(), |text| Ok(counted_words(text)?)).map_err(failed)?;
            let mut model = BPE::default();
            trainer.train(&mut model).map_err(failed)?;
            let byte_level = ByteLevel::new(false, false, true);
            let mut inner = tokenizers::Tokenizer::new(model);
            inner.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
            inner.add_special_tokens([end_of_text]).map_err(failed)?;
            Self::from_library(inner, "training")
        })
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// A file that cannot be read, is no tokenizer, is not byte-level, or has no end-of-text token.
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let json = files::read_small(path, JSON_BYTES_MAX)?;
        Self::from_json(&json, &path.display().to_string())
    }

    /// Reads the text of a `tokenizer.json`; `place` is what errors call it.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_json(json: &str, place: &str) -> Result<Self, DataError> {
        library::check(json, place)?;
        library::guarded(place, || {
            let inner =
                json.parse::<tokenizers::Tokenizer>().map_err(|error| failure(place, &error))?;
            Self::from_library(inner, place)
        })
    }

    /// The text of a `tokenizer.json`, the same for the same tokenizer.
    ///
    /// # Errors
    /// None in practice; the library may refuse.
    pub fn to_json(&self) -> Result<String, DataError> {
        self.inner.to_string(false).map_err(|error| failure("writing", &error))
    }

    fn from_library(mut inner: tokenizers::Tokenizer, place: &str) -> Result<Self, DataError> {
        serial_library();
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            let why = "its decoder is not ByteLevel, so its tokens stand for no exact bytes; \
                       use a byte-level BPE such as GPT-2's, or train one";
            return Err(DataError::Tokenizer { place: place.to_owned(), why: why.to_owned() });
        }
        if let Some(why) = changes_text(&inner) {
            return Err(DataError::Tokenizer { place: place.to_owned(), why: why.to_owned() });
        }
        let Some(end_of_text) = END_OF_TEXT_NAMES.iter().find_map(|name| inner.token_to_id(name))
        else {
            let why =
                format!("it has no end-of-text token; one of {END_OF_TEXT_NAMES:?} is needed");
            return Err(DataError::Tokenizer { place: place.to_owned(), why });
        };
        inner.set_encode_special_tokens(true);
        inner.with_truncation(None).map_err(|error| failure(place, &error))?;
        inner.with_padding(None);
        let (bytes, starts) = byte_table(&inner, place)?;
        let is_plain = is_plain(&inner);
        Ok(Self { inner, end_of_text, bytes, starts, is_plain })
    }

    /// One more than the largest token id: the rows that an embedding needs at least.
    pub fn vocab_size(&self) -> usize {
        self.starts.len() - 1
    }

    /// The name of the token after each document, such as [`END_OF_TEXT`].
    pub fn end_of_text_name(&self) -> &str {
        let is_it = |name: &&&str| self.inner.token_to_id(name) == Some(self.end_of_text);
        END_OF_TEXT_NAMES.iter().find(is_it).expect("invariant: it was found by its name")
    }

    /// The id of the token after each document. It stands for no bytes.
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// The bytes that a token stands for; none for special tokens and for ids that are not used.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let range = |at: usize| self.starts.get(at).map(|&start| start as usize);
        match (range(id as usize), range(id as usize + 1)) {
            (Some(start), Some(end)) => &self.bytes[start..end],
            (None, _) | (_, None) => &[],
        }
    }

    /// How many bytes each token stands for, by id.
    pub fn byte_lengths(&self) -> Vec<u32> {
        self.starts.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// The tokens of a text, without an end of text.
    ///
    /// # Errors
    /// A word that the library cannot encode, as for a vocabulary without all bytes.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        library::guarded("encoding", || {
            let mut tokens = Vec::new();
            WordCache::default().encode(self, text, &mut tokens)?;
            Ok(tokens)
        })
    }

    /// The text of tokens. Bytes that are no UTF-8, as at a cut, become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// XXH3-128 of the JSON form, as 32 hexadecimal digits.
    ///
    /// # Errors
    /// As [`to_json`](Self::to_json).
    pub fn hash(&self) -> Result<String, DataError> {
        Ok(format!("{:032x}", xxh3_128(self.to_json()?.as_bytes())))
    }

    /// The model, where words can be looked up one by one.
    fn plain_model(&self) -> Option<&ModelWrapper> {
        self.is_plain.then(|| self.inner.get_model())
    }
}

/// The tokens of words met before. Source code repeats its words, and merging pairs is what costs.
#[derive(Debug, Default)]
pub(crate) struct WordCache {
    /// Where a word's tokens stand. Keys are ASCII words and chunks with other characters; no text
    /// is both.
    places: HashMap<Box<str>, Range<usize>, Xxh3DefaultBuilder>,
    tokens: Vec<u32>,
}

impl WordCache {
    /// Appends the tokens of `text` to `out`.
    pub(crate) fn encode(
        &mut self,
        tokenizer: &Tokenizer,
        text: &str,
        out: &mut Vec<u32>,
    ) -> Result<(), DataError> {
        let Some(model) = tokenizer.plain_model() else {
            let encoding = tokenizer.inner.encode_fast(text, false);
            out.extend(encoding.map_err(|error| failure("encoding", &error))?.get_ids());
            return Ok(());
        };
        for chunk in chunks(text) {
            if chunk.is_ascii() {
                for word in ascii_words(chunk) {
                    self.look_up(model, word, |word| Ok(vec![byte_level_ascii(word)]), out)?;
                }
            } else {
                self.look_up(model, chunk, library_words, out)?;
            }
        }
        Ok(())
    }

    /// Appends the tokens of `text`, whose words in byte characters `words` gives.
    fn look_up(
        &mut self,
        model: &impl Model,
        text: &str,
        words: impl FnOnce(&str) -> Result<Vec<String>, DataError>,
        out: &mut Vec<u32>,
    ) -> Result<(), DataError> {
        if let Some(place) = self.places.get(text) {
            out.extend_from_slice(&self.tokens[place.clone()]);
            return Ok(());
        }
        let first = out.len();
        for word in words(text)? {
            let tokens = model.tokenize(&word).map_err(|error| failure("encoding", &error))?;
            out.extend(tokens.iter().map(|token| token.id));
        }
        if self.places.len() < CACHE_WORDS_MAX {
            let start = self.tokens.len();
            self.tokens.extend_from_slice(&out[first..]);
            self.places.insert(text.into(), start..self.tokens.len());
        }
        Ok(())
    }
}

/// Texts of about `bytes_max` bytes to train a tokenizer on: pieces of 64 KiB in the order of a keyed
/// permutation, so that every kind of document has its part.
pub(crate) fn sample(documents: &[Document], bytes_max: usize) -> Vec<&str> {
    let all: Vec<&str> =
        documents.iter().flat_map(|d| pieces(&d.text, SAMPLE_PIECE_BYTES)).collect();
    let order = Permutation::new(all.len() as u64, Stream::new(0, "tokenizer.sample"));
    let mut bytes = 0;
    (0..order.len())
        .map(|place| all[order.get(place) as usize])
        .take_while(|piece| {
            let is_room = bytes < bytes_max;
            bytes += piece.len();
            is_room
        })
        .collect()
}

/// The words of a text as training counts them.
fn counted_words(text: &str) -> Result<Vec<String>, DataError> {
    let mut counted = Vec::new();
    for word in byte_level_words(text)? {
        // Each character stands for a byte, and takes one or two.
        if word.len() <= COUNTED_BYTES_MAX {
            counted.push(word);
            continue;
        }
        let characters: Vec<char> = word.chars().collect();
        counted.extend(characters.chunks(COUNTED_BYTES_MAX).map(String::from_iter));
    }
    Ok(counted)
}

fn failure(place: &str, error: &tokenizers::Error) -> DataError {
    DataError::Tokenizer { place: place.to_owned(), why: error.to_string() }
}

/// Keeps the library off its global thread pool and off the environment variable that would
/// otherwise decide about it: threads are an argument here.
fn serial_library() {
    tokenizers::utils::parallelism::set_parallelism(false);
}

/// Why tokens would not be those of the text, or not the same ones each time.
fn changes_text(inner: &tokenizers::Tokenizer) -> Option<&'static str> {
    match inner.get_normalizer() {
        // Canonical composition gives an equivalent text; published byte-level tokenizers have it.
        None | Some(NormalizerWrapper::NFC(_)) => {}
        Some(_) => {
            return Some(
                "it has a normalizer, which changes the text before it is encoded: bits per byte would be \
                 of another text; set \"normalizer\": null, or train one",
            );
        }
    }
    let ModelWrapper::BPE(bpe) = inner.get_model() else { return None };
    bpe.dropout.is_some_and(|share| share > 0.0).then_some(
        "its model has a dropout, so the same text has other tokens each time; set \"dropout\": null",
    )
}

/// Whether text becomes tokens by GPT-2's splitting and one look-up a word, and nothing else.
fn is_plain(inner: &tokenizers::Tokenizer) -> bool {
    let splits_like_gpt2 = matches!(
        inner.get_pre_tokenizer(),
        Some(PreTokenizerWrapper::ByteLevel(ByteLevel {
            add_prefix_space: false,
            use_regex: true,
            ..
        }))
    );
    let is_certain = matches!(inner.get_model(), ModelWrapper::BPE(bpe) if bpe.dropout.is_none());
    let finds_no_words = inner.get_added_tokens_decoder().values().all(|token| token.special);
    splits_like_gpt2 && is_certain && finds_no_words && inner.get_normalizer().is_none()
}

/// All tokens' bytes and where each token's begin, with one more start at the end.
fn byte_table(
    inner: &tokenizers::Tokenizer,
    place: &str,
) -> Result<(Vec<u8>, Vec<u32>), DataError> {
    let byte_of: HashMap<char, u8> = (0..=255).map(|byte| (byte_char(byte), byte)).collect();
    let mut table: Vec<Vec<u8>> = Vec::new();
    let mut set = |id: u32, bytes: Vec<u8>| {
        table.resize_with(table.len().max(id as usize + 1), Vec::new);
        table[id as usize] = bytes;
    };
    for (token, id) in inner.get_vocab(false) {
        let bytes: Option<Vec<u8>> = token.chars().map(|c| byte_of.get(&c).copied()).collect();
        // A special token may be written with characters that stand for no byte.
        let is_added = inner.get_added_tokens_decoder().contains_key(&id);
        let bytes = match bytes {
            Some(bytes) => bytes,
            None if is_added => Vec::new(),
            None => {
                let why =
                    format!("token {token:?} (id {id}) has characters that stand for no byte");
                return Err(DataError::Tokenizer { place: place.to_owned(), why });
            }
        };
        set(id, bytes);
    }
    for (id, token) in inner.get_added_tokens_decoder() {
        set(id, if token.special { Vec::new() } else { token.content.into_bytes() });
    }
    let mut starts = vec![0];
    for bytes in &table {
        starts.push(starts[starts.len() - 1] + bytes.len() as u32);
    }
    Ok((table.concat(), starts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy;

    fn trained() -> Tokenizer {
        let text = toy::text(60_000);
        Tokenizer::train([text.as_str()], 600).unwrap()
    }

    #[test]
    fn what_changes_the_text_or_the_tokens_is_refused() {
        let json = trained().to_json().unwrap();
        for (null, value, why) in [
            ("\"normalizer\":null", "\"normalizer\":{\"type\":\"Lowercase\"}", "a normalizer"),
            ("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFKC\"}", "a normalizer"),
            ("\"dropout\":null", "\"dropout\":0.1", "a dropout"),
        ] {
            assert!(json.contains(null), "{null}");
            let error = Tokenizer::from_json(&json.replace(null, value), "t.json").unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        let nfc = json.replace("\"normalizer\":null", "\"normalizer\":{\"type\":\"NFC\"}");
        assert!(Tokenizer::from_json(&nfc, "t.json").is_ok());
    }

    #[test]
    fn round_trips_any_text() {
        let tokenizer = trained();
        assert_eq!(tokenizer.vocab_size(), 600);
        assert_eq!(tokenizer.end_of_text(), 0);
        let mut compared = 0;
        for text in [
            "",
            "fn main() { println!(\"Grüße, 世界 🦀\"); }\n",
            "\0\u{1}\u{7f}\u{ad}\r\n\t",
            "e\u{301} \u{202e}rtl\u{a0}",
            "text with <|endoftext|> inside",
        ] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids), text);
            assert!(!ids.contains(&0), "{text:?} gave an end of text");
            let lengths = tokenizer.byte_lengths();
            let bytes: usize = ids.iter().map(|&id| lengths[id as usize] as usize).sum();
            assert_eq!(bytes, text.len());
            compared += 1;
        }
        assert_eq!(compared, 5);
    }

    /// The word cache and the scanner give what the library itself gives.
    #[test]
    fn encodes_like_the_library() {
        let tokenizer = trained();
        assert!(tokenizer.is_plain);
        let text = toy::text(30_000) + "naïve ‘quotes’ 日本語\u{a0}x  \n\n 'static it's\n";
        let library = tokenizer.inner.encode_fast(text.as_str(), false).unwrap();
        assert_eq!(tokenizer.encode(&text).unwrap(), library.get_ids());
    }

    #[test]
    fn training_is_deterministic_and_survives_json() {
        let (first, second) = (trained(), trained());
        assert_eq!(first.to_json().unwrap(), second.to_json().unwrap());
        let again = Tokenizer::from_json(&first.to_json().unwrap(), "here").unwrap();
        assert_eq!(again.hash().unwrap(), first.hash().unwrap());
        assert_eq!(again.bytes, first.bytes);
        assert_eq!(again.encode("let x = 1;").unwrap(), first.encode("let x = 1;").unwrap());
    }

    #[test]
    fn other_byte_level_tokenizers_work_through_the_library() {
        let json = trained().to_json().unwrap();
        let prefixed = json.replace("\"add_prefix_space\":false", "\"add_prefix_space\":true");
        assert_ne!(prefixed, json);
        let tokenizer = Tokenizer::from_json(&prefixed, "here").unwrap();
        assert!(!tokenizer.is_plain);
        let ids = tokenizer.encode("let größe = 1;").unwrap();
        assert_eq!(tokenizer.decode(&ids), " let größe = 1;");
    }

    #[test]
    fn bad_tokenizers_say_why() {
        let error = Tokenizer::train(["x"], 100).unwrap_err().to_string();
        assert!(error.contains("100") && error.contains("257"), "{error}");
        let json = trained().to_json().unwrap();
        let at = json.find("\"decoder\"").unwrap();
        let no_decoder =
            format!("{}\"decoder\":null,{}", &json[..at], &json[json.find("\"model\"").unwrap()..]);
        let error = Tokenizer::from_json(&no_decoder, "x.json").unwrap_err().to_string();
        assert!(error.contains("x.json") && error.contains("ByteLevel"), "{error}");
        let nameless = json.replace("<|endoftext|>", "<|stop|>");
        let error = Tokenizer::from_json(&nameless, "y.json").unwrap_err().to_string();
        assert!(error.contains("<|endoftext|>"), "{error}");
        assert!(Tokenizer::from_json("{", "z.json").is_err());
    }

    /// What the library would abort or panic on is refused before it is asked.
    #[test]
    fn hostile_tokenizers_are_refused() {
        let json = trained().to_json().unwrap();
        let mut refused = 0;
        for (from, to, parts) in [
            ("\"id\":0,", "\"id\":4294967295,", &["id 4294967295", "entries"][..]),
            ("\"vocab\":{", "\"vocab\":{\"~~\":50000000,", &["id 50000000", "entries"]),
            (
                "\"merges\":[",
                "\"merges\":[[\"Ġlet\",\"Ġlet\"],",
                &["merge", "not in the vocabulary"],
            ),
            (
                "\"continuing_subword_prefix\":null",
                "\"continuing_subword_prefix\":\"####\"",
                &["continuing_subword_prefix"],
            ),
        ] {
            let hostile = json.replacen(from, to, 1);
            assert_ne!(hostile, json, "{from}");
            let error = Tokenizer::from_json(&hostile, "x.json").unwrap_err().to_string();
            assert!(error.contains("x.json"), "{error}");
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
            refused += 1;
        }
        for decoder in ["3", "\"ByteLevel\"", "[]"] {
            let text = format!("{{\"decoder\":{decoder}}}");
            let error = Tokenizer::from_json(&text, "x.json").unwrap_err().to_string();
            assert!(error.contains("decoder is no object"), "{error}");
            refused += 1;
        }
        assert_eq!(refused, 7);
    }

    #[test]
    fn long_words_are_counted_in_pieces() {
        let short = "a".repeat(COUNTED_BYTES_MAX) + " é" + &"=".repeat(40);
        assert_eq!(counted_words(&short).unwrap(), byte_level_words(&short).unwrap());
        let long = counted_words(&"ab".repeat(COUNTED_BYTES_MAX)).unwrap();
        assert_eq!(long.iter().map(String::len).collect::<Vec<_>>(), [COUNTED_BYTES_MAX; 2]);
        // 400 kB without a space took minutes once.
        let letters = Stream::new(3, "test.dna");
        let text: String = (0..400_000)
            .map(|i| char::from(b"ACGT"[(letters.uniform(i) * 4.0) as usize]))
            .collect();
        let tokenizer = Tokenizer::train([text.as_str()], 400).unwrap();
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        assert!(ids.len() < text.len() / 2, "{}", ids.len());
    }

    #[test]
    fn samples_are_limited_and_spread() {
        let documents: Vec<Document> = (0..40)
            .map(|i| Document { name: i.to_string(), text: format!("{i} ").repeat(20_000) })
            .collect();
        let texts = sample(&documents, 500_000);
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        assert!((500_000..700_000).contains(&bytes), "{bytes}");
        assert!(texts.len() >= 4);
        assert_eq!(sample(&documents[..1], usize::MAX).concat(), documents[0].text);
    }
}
