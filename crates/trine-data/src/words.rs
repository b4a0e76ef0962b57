//! The splitting of text into words that byte-level BPE starts from, fast.
//!
//! The pattern is GPT-2's:
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
//! The tokenizers crate runs it as a back-tracking regular expression and tracks the origin of every
//! character, at about a megabyte a second on two cores. Source code is almost all ASCII, for which the
//! pattern is a small scanner; whatever is not ASCII goes through the crate. A test compares both.

use crate::DataError;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

/// Stretches of white space with what follows up to the next white space. No match of the pattern
/// goes on from a character into white space after it, and none looks back: the words of a text are
/// the words of its chunks.
pub(crate) fn chunks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let spaces = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
        let word = rest[spaces..].find(char::is_whitespace).unwrap_or(rest.len() - spaces);
        let (chunk, after) = rest.split_at(spaces + word);
        rest = after;
        Some(chunk)
    })
}

/// The words of an ASCII chunk.
pub(crate) fn ascii_words(chunk: &str) -> impl Iterator<Item = &str> {
    let mut rest = chunk;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (word, after) = rest.split_at(ascii_word_end(rest.as_bytes()));
        rest = after;
        Some(word)
    })
}

#[derive(PartialEq, Clone, Copy)]
enum Class {
    Space,
    Letter,
    Digit,
    Other,
}

fn class(byte: u8) -> Class {
    match byte {
        b'\t'..=b'\r' | b' ' => Class::Space,
        b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
        b'0'..=b'9' => Class::Digit,
        _ => Class::Other,
    }
}

fn run(bytes: &[u8], class_of_run: Class) -> usize {
    bytes.iter().position(|&byte| class(byte) != class_of_run).unwrap_or(bytes.len())
}

/// Length of the first word of a chunk that is not empty.
fn ascii_word_end(bytes: &[u8]) -> usize {
    let spaces = run(bytes, Class::Space);
    match spaces {
        0 => contraction(bytes).unwrap_or_else(|| run(bytes, class(bytes[0]))),
        _ if spaces == bytes.len() => spaces,
        // `\s+(?!\S)` gives the last space back, for the word that follows.
        2.. => spaces - 1,
        _ if bytes[0] == b' ' => 1 + run(&bytes[1..], class(bytes[1])),
        _ => 1,
    }
}

/// Length of an English ending such as `'re`, if there is one.
fn contraction(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'\'', b's' | b't' | b'm' | b'd', ..] => Some(2),
        [b'\'', b'r' | b'v', b'e', ..] | [b'\'', b'l', b'l', ..] => Some(3),
        _ => None,
    }
}

/// The words of any chunk in the characters that stand for bytes, by the tokenizers crate.
pub(crate) fn library_words(chunk: &str) -> Result<Vec<String>, DataError> {
    let mut text = PreTokenizedString::from(chunk);
    ByteLevel::new(false, false, true).pre_tokenize(&mut text).map_err(|error| {
        DataError::Tokenizer { place: "splitting text".to_owned(), why: error.to_string() }
    })?;
    let words = text.get_splits(OffsetReferential::Original, OffsetType::None);
    Ok(words.into_iter().map(|(word, _, _)| word.to_owned()).collect())
}

/// The words of a text in the characters that stand for bytes.
pub(crate) fn byte_level_words(text: &str) -> Result<Vec<String>, DataError> {
    let mut words = Vec::new();
    for chunk in chunks(text) {
        if chunk.is_ascii() {
            words.extend(ascii_words(chunk).map(byte_level_ascii));
        } else {
            words.extend(library_words(chunk)?);
        }
    }
    Ok(words)
}

/// An ASCII word in the characters that stand for bytes.
pub(crate) fn byte_level_ascii(word: &str) -> String {
    word.bytes().map(byte_char).collect()
}

/// The printable character that stands for a byte in a byte-level vocabulary (GPT-2): itself where
/// it is printable in Latin-1, else one from U+0100 on, in order.
pub(crate) fn byte_char(byte: u8) -> char {
    let rank = match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => return char::from(byte),
        0..=b' ' => u32::from(byte),
        0x7f..=0xa0 => u32::from(byte) - 0x7f + 33,
        0xad => 67,
    };
    char::from_u32(0x100 + rank).expect("invariant: U+0100 to U+0143 are characters")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use trine_rng::Stream;

    fn check(text: &str) {
        assert_eq!(byte_level_words(text).unwrap(), library_words(text).unwrap(), "{text:?}");
    }

    #[test]
    fn bytes_have_the_characters_of_the_library() {
        let ours: BTreeSet<char> = (0..=255).map(byte_char).collect();
        assert_eq!(ours.len(), 256);
        assert_eq!(ours, ByteLevel::alphabet().into_iter().collect());
        assert_eq!((byte_char(b' '), byte_char(b'\n'), byte_char(0xad)), ('Ġ', 'Ċ', 'Ń'));
    }

    #[test]
    fn chosen_texts_split_as_in_the_library() {
        for text in [
            "",
            " ",
            "  ",
            "\n\n",
            "fn main() {\n    println!(\"{}\", x1);\n}\n",
            "it's 'static we're I'll 'd' \"'s\" x's' '''s 'S",
            " 's  're\t'm\n'll",
            "a  b   c\t\td\r\n\r\ne \t f",
            "trailing   ",
            "   \u{a0} mixed\u{3000}x",
            "\u{1c}\u{1f}\u{b}\u{c}\u{85}",
            "naïve café Ω≈ç√ 日本語、テスト １２３ ²³ ⅷ e\u{301}",
            "0x1f_u32 1.5e-3 a1b2",
        ] {
            check(text);
        }
    }

    #[test]
    fn random_texts_split_as_in_the_library() {
        let alphabet: Vec<char> =
            "aZ09_ '  \n\n\t\r.({stmdrevl\u{1f}\u{b}é日²\u{a0}\u{301}".chars().collect();
        let stream = Stream::new(1, "test.words");
        let mut index = 0;
        let mut draw = |below: usize| {
            index += 1;
            (stream.uniform(index) * below as f32) as usize
        };
        let mut compared = 0;
        for _ in 0..3000 {
            let text: String = (0..draw(40)).map(|_| alphabet[draw(alphabet.len())]).collect();
            check(&text);
            compared += text.len();
        }
        assert!(compared > 50_000);
    }
}
