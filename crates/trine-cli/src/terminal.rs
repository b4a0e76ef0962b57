//! Who trine talks to: how it was started, how much is wanted, and what the terminal shows.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::Path;

/// Under which name `trine launch` tells the ranks how it was started itself.
pub(crate) const PROGRAM: &str = "TRINE_PROGRAM";

/// Columns where no terminal says how many it has.
const COLUMNS: usize = 120;

/// How much is said beside the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Volume {
    /// Notes and errors only.
    Quiet,
    /// Progress too.
    Normal,
    /// Every step.
    Verbose,
}

/// How a word stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Strong,
    Faint,
    Good,
    Warning,
    Error,
    Training,
    Validation,
}

impl Style {
    /// The numbers of its escape sequence (ECMA-48, SGR).
    fn code(self) -> &'static str {
        match self {
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Warning => "33",
            Self::Error => "1;31",
            Self::Training => "36",
            Self::Validation => "35",
        }
    }

    /// Whether what stands behind an escape character begins with a sequence of ours.
    pub(crate) fn is_sequence(text: &str) -> bool {
        let all = [
            Self::Strong,
            Self::Faint,
            Self::Good,
            Self::Warning,
            Self::Error,
            Self::Training,
            Self::Validation,
        ];
        let codes = all.into_iter().map(Self::code).chain([PLAIN]);
        codes.into_iter().any(|code| {
            text.strip_prefix('[').is_some_and(|text| {
                text.strip_prefix(code).is_some_and(|rest| rest.starts_with('m'))
            })
        })
    }
}

/// The number that ends all styles.
const PLAIN: &str = "0";

/// Puts colour on words, or leaves them as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Paint(bool);

impl Paint {
    pub(crate) fn text(self, style: Style, text: &str) -> String {
        if self.0 { format!("\x1b[{}m{text}\x1b[{PLAIN}m", style.code()) } else { text.to_owned() }
    }
}

/// The person, or the program, at the other end.
#[derive(Debug, Clone)]
pub(crate) struct Terminal {
    program: String,
    /// How much is wanted.
    pub(crate) volume: Volume,
    /// Whether lines on standard error can be drawn again.
    pub(crate) is_live: bool,
    /// Colour on standard error.
    pub(crate) errors: Paint,
    /// Colour on standard output.
    pub(crate) output: Paint,
}

impl Terminal {
    /// `typed` is the word that started the program.
    pub(crate) fn new(
        typed: Option<&OsStr>,
        volume: Volume,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Self {
        let typed = typed.map_or_else(|| "trine".into(), OsStr::to_string_lossy);
        let (out, err) = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        let is_dumb = env("TERM").is_some_and(|name| name == "dumb");
        Self {
            program: env(PROGRAM).unwrap_or_else(|| quoted(&typed).into_owned()),
            volume,
            is_live: err && !is_dumb && volume == Volume::Normal,
            errors: Paint(has_colour(err, env)),
            output: Paint(has_colour(out, env)),
        }
    }

    /// How the next command begins: the program as it was started, for a shell.
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    /// A command that can be copied into a shell.
    pub(crate) fn command(&self, words: &str, path: &Path) -> String {
        format!("{} {words} {}", self.program, quoted_path(path))
    }

    /// Columns of standard output.
    pub(crate) fn output_columns(&self) -> usize {
        columns(std::io::stdout()).unwrap_or(COLUMNS)
    }

    /// Columns that text on standard output is folded to: without a terminal it is not.
    pub(crate) fn folded_columns(&self) -> usize {
        columns(std::io::stdout()).unwrap_or(usize::MAX)
    }

    /// Columns of standard error, as wide as it is now.
    pub(crate) fn error_columns(&self) -> usize {
        columns(std::io::stderr()).unwrap_or(COLUMNS)
    }
}

/// What the conventions of <https://no-color.org> and <https://bixense.com/clicolors> say.
fn has_colour(is_terminal: bool, env: &dyn Fn(&str) -> Option<String>) -> bool {
    let is_set = |name: &str| env(name).is_some_and(|value| !value.is_empty());
    let is = |name: &str, value: &str| env(name).is_some_and(|found| found == value);
    if is_set("NO_COLOR") {
        return false;
    }
    if is_set("CLICOLOR_FORCE") && !is("CLICOLOR_FORCE", "0") {
        return true;
    }
    is_terminal && !is("CLICOLOR", "0") && !is("TERM", "dumb")
}

fn columns(output: impl AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(output).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// A word as a shell reads it: in quotes only where it needs them.
pub(crate) fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "_-./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    if word.chars().any(char::is_control) {
        let escaped: String = word.chars().map(escape).collect();
        return format!("$'{escaped}'").into();
    }
    format!("'{}'", word.replace('\'', "'\\''")).into()
}

/// A character within `$'…'`.
fn escape(c: char) -> String {
    match c {
        '\'' | '\\' => format!("\\{c}"),
        '\n' => "\\n".into(),
        '\t' => "\\t".into(),
        c if c.is_ascii_control() => format!("\\x{:02x}", u32::from(c)),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.into(),
    }
}

/// A path as a shell and an option read it: one that begins like an option gets `./`.
pub(crate) fn quoted_path(path: &Path) -> String {
    let text = path.to_string_lossy();
    match text.strip_prefix('-') {
        Some(_) => quoted(&format!("./{text}")).into_owned(),
        None => quoted(&text).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        let cases = [
            ("runs/tiny-2", "runs/tiny-2"),
            ("läuft", "läuft"),
            ("my run", "'my run'"),
            ("", "''"),
            ("it's", "'it'\\''s'"),
            ("$HOME;ls", "'$HOME;ls'"),
            ("~", "'~'"),
            ("a\nb\x1b'", "$'a\\nb\\x1b\\''"),
        ];
        for (word, expected) in cases {
            assert_eq!(quoted(word), expected, "{word:?}");
        }
        assert_eq!(quoted_path(Path::new("-x y")), "'./-x y'");
        assert_eq!(quoted_path(Path::new("x")), "x");
    }

    #[test]
    fn colour_follows_the_terminal_and_the_conventions() {
        type Variables = &'static [(&'static str, &'static str)];
        let cases: [(bool, Variables, bool); 9] = [
            (true, &[], true),
            (false, &[], false),
            (true, &[("NO_COLOR", "1")], false),
            (true, &[("NO_COLOR", "")], true),
            (true, &[("CLICOLOR", "0")], false),
            (true, &[("TERM", "dumb")], false),
            (false, &[("CLICOLOR_FORCE", "1")], true),
            (false, &[("CLICOLOR_FORCE", "0")], false),
            (false, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false),
        ];
        for (is_terminal, variables, expected) in cases {
            let env = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            assert_eq!(has_colour(is_terminal, &env), expected, "{is_terminal} {variables:?}");
        }
    }
}
