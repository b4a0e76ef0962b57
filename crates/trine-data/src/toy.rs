//! Text for tests: looks like Rust, compresses like Rust, and is made in milliseconds.

use crate::Document;
use std::fmt::Write;
use trine_rng::Stream;

const NOUNS: [&str; 16] = [
    "buffer", "rank", "stage", "token", "shard", "bucket", "mesh", "axis", "batch", "layer",
    "weight", "gradient", "window", "stream", "queue", "pool",
];
/// Further nouns are made of these, enough for a tokenizer of some thousand entries.
const SYLLABLES: [&str; 12] =
    ["ba", "den", "fi", "gor", "hul", "ka", "lem", "mi", "nor", "pe", "sta", "tu"];
const MADE_NOUNS: usize = 12 * 12 * 12;
const VERBS: [&str; 8] = ["read", "write", "reduce", "gather", "split", "count", "send", "check"];
const TYPES: [&str; 6] = ["usize", "u64", "f32", "Vec<u32>", "&str", "bool"];
const OPERATORS: [&str; 5] = ["+", "*", "-", "/", "%"];

/// About `bytes` bytes of pseudo-Rust, up to the end of a function: a pure function of `bytes`, and
/// a prefix of any longer text.
///
/// ```
/// let text = trine_data::toy::text(1000);
/// assert!((1000..2000).contains(&text.len()));
/// assert!(trine_data::toy::text(5000).starts_with(&text));
/// ```
pub fn text(bytes: usize) -> String {
    let mut source = Toy::new("toy");
    let mut text = String::with_capacity(bytes + 1000);
    while text.len() < bytes {
        source.function(&mut text);
    }
    text
}

/// `count` documents of about `bytes` bytes each, all different.
pub fn documents(count: usize, bytes: usize) -> Vec<Document> {
    (0..count)
        .map(|i| {
            let mut source = Toy::new(&format!("toy.{i}"));
            let mut text = format!("//! Part {i}.\n\n");
            while text.len() < bytes {
                source.function(&mut text);
            }
            Document { name: format!("part{i:04}.rs"), text }
        })
        .collect()
}

/// A place in a stream from which choices are drawn one after the other.
struct Toy {
    stream: Stream,
    index: u64,
}

impl Toy {
    fn new(name: &str) -> Self {
        Self { stream: Stream::new(0, name), index: 0 }
    }

    /// A number below `count`, small ones more often, as words are in any text.
    fn below(&mut self, count: usize) -> usize {
        self.index += 1;
        let u = self.stream.uniform(self.index);
        (u * u * count as f32) as usize
    }

    fn pick(&mut self, words: &[&'static str]) -> &'static str {
        words[self.below(words.len())]
    }

    /// A real noun seven times in ten, else a made one.
    fn noun(&mut self) -> String {
        if self.below(4) < 2 {
            return self.pick(&NOUNS).to_owned();
        }
        let n = self.below(MADE_NOUNS);
        [n / 144, n / 12 % 12, n % 12].map(|digit| SYLLABLES[digit]).concat()
    }

    fn function(&mut self, out: &mut String) {
        let (verb, noun, argument) = (self.pick(&VERBS), self.noun(), self.noun());
        let (from, to) = (self.pick(&TYPES), self.pick(&TYPES));
        let mut add = |line: std::fmt::Arguments<'_>| {
            out.write_fmt(line).expect("invariant: writing to a string cannot fail");
        };
        add(format_args!("/// {verb}s the {noun} of a {argument}.\n"));
        add(format_args!("pub fn {verb}_{noun}({argument}: {from}) -> {to} {{\n"));
        for _ in 0..2 + self.below(6) {
            let (name, other) = (self.noun(), self.noun());
            let (operator, number) = (self.pick(&OPERATORS), self.below(1000));
            match self.below(4) {
                0 => add(format_args!("    let {name} = {other} {operator} {number};\n")),
                1 => add(format_args!("    {name}.{verb}({other}, {number})?;\n")),
                2 => add(format_args!(
                    "    if {name} > {number} {{\n        return {other};\n    }}\n"
                )),
                _ => add(format_args!(
                    "    for {name} in 0..{number} {{\n        {other}.push({name});\n    }}\n"
                )),
            }
        }
        add(format_args!("    {argument}.into()\n}}\n\n"));
    }
}
