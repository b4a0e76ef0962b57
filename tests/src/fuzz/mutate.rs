//! Changes of an input: of its bytes, its words, or its structure where it is JSON.

use serde_json::{Map, Value, json};

/// Numbers at the ends of types, and what is none.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "2",
    "255",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "1000000",
    "1e308",
    "1e999",
    "-1e999",
    "1e-320",
    "nan",
    "inf",
    "-0.0",
    "0.1",
    "00",
    "0x10",
    "1_000",
    "9e9",
    "99999999999999999999999999999999999999",
];

/// Words that mean something somewhere, and characters that mean something to others.
const WORDS: &[&str] = &[
    "",
    "null",
    "true",
    "..",
    "../../x",
    "/dev/zero",
    "step-3",
    "weights",
    "f32",
    "bf16",
    "gpt",
    "llama",
    "gpt2",
    "1f1b",
    "rank 0",
    "F0.0",
    "B0.0/1",
    "SA0.0>1",
    "data",
    "train.steps = 3",
    "[model]",
    "\u{1b}[2J",
    "\u{0}",
    "\u{202e}",
    "\u{feff}",
    "größe",
    "<|endoftext|>",
    "Ġ",
];

/// How deep a nest is: deeper than parsers go by recursion.
const NEST: usize = 3000;

/// Numbers drawn one after the other from a state of its own (SplitMix64).
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64, name: &str, index: u64) -> Self {
        let name = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(seed ^ name ^ index.wrapping_mul(0xd605_1b35_b9fd_3c4f))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`; 0 if that is 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub(super) fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// A part of something that is so long; short ones are likelier.
    fn part(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len);
        let longest = if self.below(4) == 0 { len - start } else { (len - start).min(16) };
        start..start + self.below(longest + 1)
    }
}

/// Changes a text or any bytes in one to four places; `other` is another input to take parts of.
pub(super) fn text(input: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    for _ in 0..=dice.below(4) {
        let place = dice.part(input.len());
        match dice.below(9) {
            0 => {
                if let Some(byte) = input.get_mut(place.start) {
                    *byte ^= 1 << dice.below(8);
                }
            }
            1 => drop(input.drain(place)),
            2 => {
                let copy = input[place.clone()].to_vec();
                input.splice(place.start..place.start, copy);
            }
            3 => {
                let part = dice.part(other.len());
                input.splice(place, other[part].iter().copied());
            }
            4 | 5 => replace_word(input, dice.pick(NUMBERS), u8::is_ascii_digit, dice),
            6 => replace_word(input, dice.pick(WORDS), u8::is_ascii_alphabetic, dice),
            7 => move_line(input, dice),
            _ => {
                let (open, close) = dice.pick(&[&("[", "]"), &("{\"a\":", "}"), &("(", ")")]);
                let nest = open.repeat(dice.below(NEST)) + &close.repeat(dice.below(NEST));
                input.splice(place, nest.into_bytes());
            }
        }
    }
}

/// Puts `by` in the place of a run of bytes of a kind.
fn replace_word(input: &mut Vec<u8>, by: &str, kind: fn(&u8) -> bool, dice: &mut Dice) {
    let from = dice.below(input.len());
    let Some(start) = (from..input.len()).find(|at| kind(&input[*at])) else { return };
    let end = (start..input.len()).find(|at| !kind(&input[*at])).unwrap_or(input.len());
    input.splice(start..end, by.bytes());
}

/// Copies a line to another place, or moves it there.
fn move_line(input: &mut Vec<u8>, dice: &mut Dice) {
    let mut lines: Vec<Vec<u8>> =
        input.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
    if lines.is_empty() {
        return;
    }
    let (from, to) = (dice.below(lines.len()), dice.below(lines.len()));
    let line = if dice.below(2) == 0 { lines[from].clone() } else { lines.remove(from) };
    lines.insert(to.min(lines.len()), line);
    *input = lines.concat();
}

/// Changes one to three values of a JSON text, which stays JSON; what is none is changed as text.
pub(super) fn json(input: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    let Ok(mut value) = serde_json::from_slice::<Value>(input) else {
        return text(input, other, dice);
    };
    for _ in 0..=dice.below(3) {
        let mut left = dice.below(count(&value));
        if let Some(place) = nth(&mut value, &mut left) {
            change(place, dice);
        }
    }
    *input = value.to_string().into_bytes();
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// The value with so many before it.
fn nth<'v>(value: &'v mut Value, left: &mut usize) -> Option<&'v mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, left)),
        Value::Object(fields) => fields.values_mut().find_map(|field| nth(field, left)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn change(value: &mut Value, dice: &mut Dice) {
    let number = dice.pick(NUMBERS);
    match (dice.below(8), value) {
        (0 | 1, Value::Array(items)) if !items.is_empty() => {
            let at = dice.below(items.len());
            let item = items.remove(at);
            if dice.below(2) == 0 {
                items.extend(vec![item; 1 + dice.below(40)]);
            }
        }
        (0 | 1, Value::Object(fields)) if !fields.is_empty() => rename(fields, dice),
        (2, value) => *value = Value::String(dice.pick(WORDS).to_owned()),
        (3, value) => {
            *value = [json!(null), json!([]), json!({}), json!(true)][dice.below(4)].take()
        }
        (4, value) => {
            *value = (0..dice.below(120)).fold(value.take(), |inner, _| Value::Array(vec![inner]));
        }
        (5, Value::Number(old)) => {
            let near = old.as_u64().unwrap_or(0).wrapping_add(dice.below(3) as u64).wrapping_sub(1);
            *old = near.into();
        }
        (_, value) => *value = serde_json::from_str(number).unwrap_or(Value::Null),
    }
}

/// Takes a field away, or gives it another name.
fn rename(fields: &mut Map<String, Value>, dice: &mut Dice) {
    let at = dice.below(fields.len());
    let Some(name) = fields.keys().nth(at).cloned() else { return };
    let value = fields.remove(&name);
    if let (Some(value), 0) = (value, dice.below(2)) {
        fields.insert(dice.pick(WORDS).to_owned(), value);
    }
}

/// Changes the header of a safetensors file; mostly its length is made right again.
pub(super) fn tensors(input: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    let length = input.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)) as usize;
    let Some(header) = input.get(8..8usize.saturating_add(length)) else {
        return text(input, other, dice);
    };
    let mut changed = header.to_vec();
    match dice.below(4) {
        0 => text(&mut changed, other, dice),
        _ => json(&mut changed, other, dice),
    }
    let said = if dice.below(8) == 0 { dice.next() } else { changed.len() as u64 };
    input.splice(..8 + length, said.to_le_bytes().into_iter().chain(changed));
}
