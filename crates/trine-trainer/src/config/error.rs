//! What can be wrong with a configuration, and how it is said: what, where, the nearest valid value.

use std::fmt;

/// More problems than this are counted, not listed.
pub(super) const LISTED_MAX: usize = 50;

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The program that built the configuration.
    Program,
    /// A preset.
    Preset(String),
    /// A place in a file.
    File {
        /// The file's path as typed.
        name: String,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// A command-line option with its value, as typed.
    Option(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program => f.write_str("config"),
            Self::Preset(name) => write!(f, "preset {name}"),
            Self::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Self::Option(text) => f.write_str(text),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// No key has this path.
    #[error("{at}: unknown key {key}; nearest: {nearest}")]
    UnknownKey {
        /// Where it stands.
        at: Origin,
        /// The path.
        key: String,
        /// The most similar path that exists.
        nearest: String,
    },
    /// A value has the wrong type.
    #[error("{at}: {key} must be {expected}, found {found}; for example: {example}")]
    Type {
        /// Where it stands.
        at: Origin,
        /// The key's path.
        key: String,
        /// The type it must have.
        expected: String,
        /// The value, and its type.
        found: String,
        /// A value that would do.
        example: String,
    },
    /// A word is none of those that are possible.
    #[error("{at}: {key} = \"{found}\": must be one of {choices}; nearest: \"{nearest}\"")]
    Choice {
        /// Where it stands.
        at: Origin,
        /// The key's path.
        key: String,
        /// The word.
        found: String,
        /// All that are possible.
        choices: String,
        /// The most similar of them.
        nearest: String,
    },
    /// An option cannot be read.
    #[error("{at}: {rule}; for example: {example}")]
    Option {
        /// The option as typed.
        at: Origin,
        /// What it must look like.
        rule: String,
        /// One that would do.
        example: String,
    },
    /// A schedule of one's own cannot be read, or no run can train by it.
    #[error("{at}: {key}: {cause}")]
    Schedule {
        /// Where it was given.
        at: Origin,
        /// The key's path.
        key: String,
        /// The file, if it is from one, the line, and what is wrong.
        cause: String,
    },
    /// A value contradicts a rule or another value.
    #[error("{at}: {what}: {rule}; nearest valid: {nearest}")]
    Rule {
        /// Where it was given.
        at: Origin,
        /// The key and its value.
        what: String,
        /// What must hold.
        rule: String,
        /// Values that would do.
        nearest: String,
    },
}

/// Why there is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "{}: cannot read the configuration: {cause}; `trine presets` lists what can be trained without a file",
        on_one_line(path)
    )]
    Read {
        /// The path as typed.
        path: String,
        /// The system's message.
        cause: String,
    },
    /// The file is no TOML.
    #[error("{}: not valid TOML: {cause}", on_one_line(at))]
    Syntax {
        /// Where.
        at: Origin,
        /// The parser's message.
        cause: String,
    },
    /// Keys or values are wrong: all that were found.
    #[error("{}", list(.0))]
    Invalid(Vec<Violation>),
    /// The configuration cannot be written as TOML (a whole number above 2⁶³ − 1).
    #[error("the configuration cannot be written as TOML: {cause}")]
    Write {
        /// The writer's message.
        cause: String,
    },
}

impl Violation {
    /// Whether a rule may be broken only because the value that this one is about was not
    /// understood, and the preset's stands in its place.
    pub(super) fn may_explain(&self, rule: &Self) -> bool {
        let meant = match self {
            Self::UnknownKey { nearest, .. } => nearest.trim_matches(['[', ']']),
            Self::Type { key, .. } | Self::Choice { key, .. } | Self::Schedule { key, .. } => key,
            Self::Option { .. } | Self::Rule { .. } => return false,
        };
        let Self::Rule { what, rule, .. } = rule else { return false };
        let speaks_of = |path: &str| what.starts_with(path) || rule.contains(path);
        // Rules of the layout speak of the model's sizes without their keys.
        let is_of_layout = meant.starts_with("model") && what.starts_with("layout.");
        speaks_of(meant) || is_of_layout
    }
}

/// A problem on one line: keys, values and names of files may have several.
fn on_one_line(problem: &impl fmt::Display) -> String {
    problem.to_string().replace('\n', "\\n").replace('\r', "\\r")
}

fn list(violations: &[Violation]) -> String {
    match violations {
        [one] => on_one_line(one),
        all => {
            let shown = all.iter().take(LISTED_MAX);
            let mut lines: Vec<String> =
                shown.map(|one| format!("  {}", on_one_line(one))).collect();
            if all.len() > LISTED_MAX {
                lines.push(format!("  … and {} more", all.len() - LISTED_MAX));
            }
            format!("{} problems in the configuration:\n{}", all.len(), lines.join("\n"))
        }
    }
}
