//! The keys of a configuration as data: one definition gives the struct, its documentation, the
//! check of a file's keys and types, and the list that `--help-config` prints.

use std::path::PathBuf;
use trine_spec::Recompute;

/// What a key's value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole number, 0 or more.
    Count,
    /// A number.
    Number,
    /// `true` or `false`.
    Flag,
    /// A text.
    Text,
    /// The path of a file or folder. In a file, a relative one starts at the file.
    Path,
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// One of these names, or a schedule of one's own: its text, or `file:` and the path of one.
    Order(&'static [&'static str]),
    /// A list of whole numbers.
    Counts,
    /// A list of numbers, or this word.
    NumbersOr(&'static str),
    /// A list of texts.
    Texts,
    /// Such a value for all blocks of a model, or a list of them that is repeated over the blocks.
    Each(&'static Kind),
    /// Such a value, or the word `none`.
    OrNone(&'static Kind),
    /// A number, or three.
    Rates,
    /// A stretching of rotary frequencies.
    Scaling,
    /// What is computed again: a flag, a word, a number of blocks or a list of names.
    Recompute,
}

/// The word of [`Kind::OrNone`].
pub(super) const NONE: &str = "none";

impl Kind {
    /// In words, for messages and lists.
    pub fn describe(self) -> String {
        match self {
            Self::Count => "a whole number, 0 or more".into(),
            Self::Number => "a number".into(),
            Self::Flag => "true or false".into(),
            Self::Text => "a text in quotes".into(),
            Self::Path => "a path in quotes".into(),
            Self::Choice(choices) => format!("one of {}", quoted(choices)),
            Self::Order(names) => format!(
                "{}, or \"file:\" and the path of a schedule",
                Self::Choice(names).describe()
            ),
            Self::Counts => "a list of whole numbers".into(),
            Self::NumbersOr(word) => format!("a list of numbers, or {}", quoted(&[word])),
            Self::Texts => "a list of texts in quotes".into(),
            Self::Each(kind) => {
                format!("{}, or a list that is repeated over the blocks", kind.describe())
            }
            Self::OrNone(kind) => format!("{}, or \"none\"", kind.describe()),
            Self::Rates => "a number, or a list of three".into(),
            Self::Scaling => "a text in quotes".into(),
            Self::Recompute => format!(
                "{}, {}, a whole number of blocks, or a list of texts in quotes",
                Self::Flag.describe(),
                quoted(&Recompute::WORDS)
            ),
        }
    }

    /// Whether a value has this type. Of a choice only the type counts here.
    pub(super) fn has_type(self, value: &toml::Value) -> bool {
        match self {
            Self::Count => value.as_integer().is_some_and(|number| number >= 0),
            Self::Number => value.is_float() || value.is_integer(),
            Self::Flag => value.is_bool(),
            Self::Text | Self::Path | Self::Choice(_) | Self::Order(_) | Self::Scaling => {
                value.is_str()
            }
            Self::Counts => all(value, |item| Self::Count.has_type(item)),
            // Of the word, too, only the type counts here.
            Self::NumbersOr(_) => value.is_str() || all(value, |item| Self::Number.has_type(item)),
            Self::Texts => all(value, toml::Value::is_str),
            Self::Each(kind) => {
                let is_list = value.as_array().is_some_and(|items| !items.is_empty());
                kind.has_type(value) || is_list && all(value, |item| kind.has_type(item))
            }
            Self::OrNone(kind) => value.as_str() == Some(NONE) || kind.has_type(value),
            // Of the word, too, only the type counts here.
            Self::Recompute => [Self::Flag, Self::Count, Self::Texts, Self::Text]
                .iter()
                .any(|kind| kind.has_type(value)),
            Self::Rates => {
                let is_three = value.as_array().is_some_and(|items| items.len() == 3);
                Self::Number.has_type(value)
                    || is_three && all(value, |item| Self::Number.has_type(item))
            }
        }
    }
}

fn all(list: &toml::Value, has_type: impl Fn(&toml::Value) -> bool) -> bool {
    list.as_array().is_some_and(|items| items.iter().all(has_type))
}

/// `"a", "b", "c"`.
pub(super) fn quoted(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    words.join(", ")
}

/// One key of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its dotted path, such as `train.steps`.
    pub path: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// What must hold of the value beyond its type.
    pub rule: &'static str,
    /// What it means.
    pub about: &'static str,
    /// A shorthand that files and options may use, and that the resolved configuration has
    /// replaced by the keys it stands for.
    pub shorthand: bool,
}

impl Key {
    /// What a key without a rule has in its place.
    const NO_RULE: &'static str = "any";

    /// Whether something must hold of its value beyond the type.
    pub fn has_rule(&self) -> bool {
        self.rule != Self::NO_RULE
    }

    /// Its type in words, with the least value where the rule begins with one.
    pub(super) fn expected(&self) -> String {
        let from_one = ["at least 1", "1..="].iter().any(|least| self.rule.starts_with(least));
        match self.kind {
            Kind::Count if from_one => "a whole number, at least 1".into(),
            kind => kind.describe(),
        }
    }
}

/// A type that a key's value can have.
pub(super) trait Field {
    const KIND: Kind;
}

/// Gives types their kind.
macro_rules! fields {
    ($($type:ty => $kind:ident),+ $(,)?) => {
        $(impl Field for $type {
            const KIND: Kind = Kind::$kind;
        })+
    };
}

fields! {
    usize => Count,
    u64 => Count,
    f64 => Number,
    bool => Flag,
    String => Text,
    PathBuf => Path,
    Vec<usize> => Counts,
    Vec<String> => Texts,
}

/// The name of a key: its field's, or another where that is a word of Rust's.
macro_rules! key_name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $key:literal) => {
        $key
    };
}

/// A section of the configuration: each field has its documentation, its type and its rule, and
/// appears in `KEYS` with all three.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident in $section:literal {
            $($(#[doc = $doc:literal])+ $field:ident $(as $key:literal)?: $type:ty, $rule:literal;)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $(
                $(#[doc = $doc])+
                #[doc = ""]
                #[doc = concat!("Rule: ", $rule, ".")]
                $(#[serde(rename = $key)])?
                pub $field: $type,
            )+
        }

        impl $name {
            /// The keys of this section.
            pub(super) const KEYS: &'static [Key] = &[$(Key {
                path: concat!($section, ".", key_name!($field $($key)?)),
                kind: <$type as Field>::KIND,
                rule: $rule,
                about: concat!($($doc),+),
                shorthand: false,
            }),+];
        }
    };
}

/// A choice: an enum whose variants are spelled as given here, in files and in messages alike.
macro_rules! choice {
    (
        $(#[doc = $about:literal])+
        $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal,)+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[doc = $doc])+ #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// The word that stands for it in configurations.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl Field for $name {
            const KIND: Kind = Kind::Choice(&[$($word),+]);
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

pub(super) use {choice, key_name, section};
