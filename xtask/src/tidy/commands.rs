//! Commands in Markdown: what a reader would type, found in fenced blocks and in code spans.
//!
//! It knows no program. The rule about `cargo xtask` and the test of trine-cli hold what is found
//! against the command lines that they have.

/// A command as a document shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    /// From 1; of a code span the line where its paragraph begins.
    pub(crate) line: usize,
    /// True in a code span, where a command may be named without its arguments.
    pub(crate) in_prose: bool,
    /// True if brackets show what is optional.
    pub(crate) is_synopsis: bool,
    /// The words behind the program's name.
    pub(crate) words: Vec<String>,
}

impl Shown {
    fn new(line: usize, in_prose: bool, words: &[String]) -> Self {
        let is_synopsis = words.iter().any(|word| word.starts_with('['));
        Self { line, in_prose, is_synopsis, words: until_end(words) }
    }
}

/// Languages of fenced blocks that hold no commands.
const NO_COMMANDS: &[&str] = &["rust", "toml", "json"];

/// Words that end a command in a shell.
const ENDS: &[&str] = &["|", "||", "&&", ";", ">", ">>", "2>", "<", "&"];

/// All commands of `program` (such as `["cargo", "xtask"]`) in `text`.
pub(crate) fn shown(text: &str, program: &[&str]) -> Vec<Shown> {
    let (mut found, mut block, mut paragraph) = (Vec::new(), None, Lines::default());
    for (at, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let fence = trimmed.strip_prefix("```");
        if fence.is_some() || trimmed.is_empty() {
            found.extend(spans(&std::mem::take(&mut paragraph), program));
        }
        match (fence, &mut block) {
            (Some(_), Some(lines)) => {
                found.extend(fenced(lines, program));
                block = None;
            }
            (Some(language), None) => {
                let lines = Lines::default();
                block = Some(Block { skipped: NO_COMMANDS.contains(&language.trim()), lines });
            }
            (None, Some(block)) => block.lines.push(at + 1, line),
            (None, None) => paragraph.push(at + 1, trimmed),
        }
    }
    found.extend(spans(&paragraph, program));
    found
}

#[derive(Default)]
struct Lines(Vec<(usize, String)>);

impl Lines {
    /// Adds a line, or continues the one before if that ends with a backslash.
    fn push(&mut self, at: usize, line: &str) {
        match self.0.last_mut() {
            Some((_, last)) if last.ends_with('\\') => {
                last.pop();
                last.push_str(line);
            }
            Some(_) | None => self.0.push((at, line.to_owned())),
        }
    }
}

struct Block {
    skipped: bool,
    lines: Lines,
}

fn fenced(block: &Block, program: &[&str]) -> Vec<Shown> {
    let lines = block.lines.0.iter().filter(|_| !block.skipped);
    let command = |(at, line): &(usize, String)| {
        let words = words(line);
        let start = (0..words.len()).find(|start| begins(&words[*start..], program))?;
        // A name alone is no command: `name: trine`.
        let rest = words.get(start + program.len()..).filter(|rest| !rest.is_empty())?;
        Some(Shown::new(*at, false, rest))
    };
    lines.filter_map(command).collect()
}

fn spans(paragraph: &Lines, program: &[&str]) -> Vec<Shown> {
    let Some((line, _)) = paragraph.0.first() else { return Vec::new() };
    let text: Vec<&str> = paragraph.0.iter().map(|(_, text)| text.as_str()).collect();
    let text = text.join(" ");
    let code = text.split('`').skip(1).step_by(2).map(words);
    let commands = code.filter(|words| begins(words, program) && words.len() > program.len());
    commands.map(|words| Shown::new(*line, true, &words[program.len()..])).collect()
}

/// True if `words` begin with the program's name, with or without a folder before it.
fn begins(words: &[String], program: &[&str]) -> bool {
    let is = |(word, name): (&String, &&str)| {
        word == name || word.strip_suffix(name).is_some_and(|folder| folder.ends_with('/'))
    };
    words.len() >= program.len() && words.iter().zip(program).all(is)
}

/// The words of one command, without what only a reader needs: brackets around what is optional,
/// all but the first of `a|b`, `[OPTIONS]`, `"$@"`, and dots that stand for nothing in particular.
fn until_end(words: &[String]) -> Vec<String> {
    let mut command: Vec<String> = Vec::new();
    for word in words.iter().take_while(|word| !ENDS.contains(&word.as_str())) {
        let bare = word.trim_start_matches('[').trim_end_matches(']');
        let dots = bare == "…" && command.last().is_none_or(|last| !last.starts_with("--"));
        let stands_for_options = bare.len() + 2 == word.len() && !bare.starts_with('-');
        if !dots && !stands_for_options && bare != "$@" {
            command.push(bare.split('|').next().unwrap_or(bare).to_owned());
        }
    }
    command
}

/// The words of a line as a shell takes them, up to a comment.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars() {
        match (letter, quote) {
            (_, Some(open)) if letter == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (' ' | '\t', None) => words.extend(word.take()),
            ('#', None) if word.is_none() => break,
            (_, _) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(usize, String)> {
        let shown = shown(text, &["trine"]);
        shown.into_iter().map(|command| (command.line, command.words.join(" "))).collect()
    }

    fn one(line: &str) -> String {
        let [(1, words)] = &found(&format!("`{line}`"))[..] else { panic!("{line}") };
        words.clone()
    }

    #[test]
    fn commands_of_blocks_and_of_prose_are_found() {
        let text = "See `trine presets`\nand `trine\nplan`.\n\n```sh\nmpirun -n 2 trine train --tp 2 \\\n  \
                    --pp 2  # a comment\n./target/release/trine inspect runs/a | less\nname: trine\n```\n\n\
                    ```toml\ntrine = { version = 1 }\n```\n`trine bench comm`";
        let expected = [
            (1, "presets".to_owned()),
            (1, "plan".to_owned()),
            (6, "train --tp 2 --pp 2".to_owned()),
            (8, "inspect runs/a".to_owned()),
            (15, "bench comm".to_owned()),
        ];
        assert_eq!(found(text), expected);
    }

    #[test]
    fn what_only_a_reader_needs_is_left_out() {
        assert_eq!(one("trine launch [OPTIONS] -- \"$@\""), "launch --");
        assert_eq!(
            one("trine plan … [--recompute none|full] [--to N]"),
            "plan --recompute none --to N"
        );
        assert_eq!(one("trine train --set … --dry-run"), "train --set … --dry-run");
        assert_eq!(one("trine generate --prompt 'a # b' > out.txt"), "generate --prompt a # b");
    }

    #[test]
    fn other_programs_are_not_found() {
        assert_eq!(found("`trine-cli` `cargo test` `my-trine train`"), []);
        assert_eq!(
            shown("`cargo xtask ci --full`", &["cargo", "xtask"])[0].words,
            ["ci", "--full"]
        );
    }
}
