//! A configuration as typed: a preset's name, a file's text, options; nothing is resolved yet.

use super::error::{ConfigError, LISTED_MAX, Origin, Violation};
use super::schema::{Key, Kind, NONE, quoted};
use super::{Source, check, keys};
use std::path::{Path, PathBuf};
use std::slice;
use toml::Value;
use toml::de::{DeTable, DeValue};
use trine_schedule::{Order, Schedule};
use trine_spec::{Recompute, RopeScaling, SpecError};

/// Bytes of the largest configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Bytes of the longest schedule of one's own: the configuration of a run, which is read again, holds its text.
const SCHEDULE_BYTES_MAX: usize = FILE_BYTES_MAX as usize / 2;

/// What stands before the path of a schedule, where its name could stand.
const SCHEDULE_FILE: &str = "file:";

/// What a user typed. Options win over the file, the file over the preset; of two options the
/// later wins.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Typed {
    /// The preset that everything not given comes from. Without one, here or in the file, it is
    /// [`super::DEFAULT_PRESET`].
    pub preset: Option<String>,
    /// A configuration file.
    pub file: Option<File>,
    /// Where relative paths in the file start; empty: at the working directory, as those of options do.
    pub file_dir: PathBuf,
    /// Whether the file is one that a run has stored. What does nothing there is no mistake of who reads it.
    pub is_stored: bool,
    /// Options, in order.
    pub settings: Vec<Setting>,
}

/// A configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// How messages call it: its path as typed.
    pub name: String,
    /// Its text.
    pub text: String,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// It is missing, no regular file, larger than 1 MiB, unreadable or not UTF-8.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        match trine_files::read_text(path, FILE_BYTES_MAX) {
            Ok(text) => Ok(Self { name, text }),
            Err(error) => Err(ConfigError::Read { path: name, cause: error.to_string() }),
        }
    }
}

/// One option that sets one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The option as typed, for messages: `--tp 3`.
    pub typed: String,
    /// The key's path and the value's text, apart; `None` if no `=` was found between them.
    assignment: Option<(String, String)>,
}

impl Setting {
    /// A shorthand option: `flag` with `value` sets the key `path`.
    pub fn option(flag: &str, path: &str, value: &str) -> Self {
        let assignment = Some((path.to_owned(), value.to_owned()));
        Self { typed: format!("{flag} {value}"), assignment }
    }

    /// A shorthand option whose value is a list: `flag` with `1,2` sets the key `path` to `[1,2]`.
    pub fn list(flag: &str, path: &str, value: &str) -> Self {
        let assignment = Some((path.to_owned(), format!("[{value}]")));
        Self { typed: format!("{flag} {value}"), assignment }
    }

    /// The path of its key, if it has one.
    pub fn key(&self) -> Option<&str> {
        self.assignment.as_ref().map(|(path, _)| path.as_str())
    }

    /// The option `--set path=value`. The value is TOML; a bare word is a text.
    pub fn set(text: &str) -> Self {
        let trimmed =
            |(path, value): (&str, &str)| (path.trim().to_owned(), value.trim().to_owned());
        Self { typed: format!("--set {text}"), assignment: text.split_once('=').map(trimmed) }
    }
}

/// A key with a value of its type, and where it was given.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Assignment {
    pub(super) key: &'static Key,
    pub(super) value: Value,
    pub(super) at: Origin,
}

/// Reads a file's keys in order of appearance; what is wrong goes to `violations`.
pub(super) fn read_file(
    file: &File,
    dir: &Path,
    violations: &mut Vec<Violation>,
) -> Result<Vec<Assignment>, ConfigError> {
    let syntax = |error: toml::de::Error| ConfigError::Syntax {
        at: file.origin(&file.line_starts(), error.span().map_or(0, |span| span.start)),
        cause: error.message().replace('\n', ", "),
    };
    // Two views of one text: one knows the places, the other converts numbers and escapes.
    let places = DeTable::parse(&file.text).map_err(syntax)?;
    let values: toml::Table = toml::from_str(&file.text).map_err(syntax)?;
    let mut reader =
        FileReader { file, dir, line_starts: file.line_starts(), found: Vec::new(), violations };
    reader.table("", places.get_ref(), &values);
    let mut found = reader.found;
    found.sort_by_key(|(offset, _)| *offset);
    Ok(found.into_iter().map(|(_, assignment)| placed(assignment, dir)).collect())
}

/// A relative path in a file starts at the file's folder. What is only there from the working directory
/// on, where older releases looked, is still found.
fn placed(mut assignment: Assignment, dir: &Path) -> Assignment {
    if let Some(path) = path_of(assignment.key, &assignment.value) {
        let (at_file, at_caller) = (dir.join(path), Path::new(path));
        if at_file.exists() || !at_caller.exists() {
            assignment.value = Value::String(at_file.to_string_lossy().into_owned());
        }
    }
    assignment
}

/// The path that a value is, if it is one: a word may stand in its place, and none at all.
pub(super) fn path_of<'a>(key: &Key, value: &'a Value) -> Option<&'a str> {
    let text = value.as_str().filter(|_| key.kind == Kind::Path)?;
    let is_word = key.path == "data.source" && text == Source::CRATES;
    (!text.is_empty() && !is_word).then_some(text)
}

impl File {
    /// The byte at which each line begins.
    fn line_starts(&self) -> Vec<usize> {
        std::iter::once(0).chain(self.text.match_indices('\n').map(|(at, _)| at + 1)).collect()
    }

    /// Line and column of a byte.
    fn origin(&self, line_starts: &[usize], offset: usize) -> Origin {
        let line = line_starts.partition_point(|start| *start <= offset);
        let before = self.text.get(line_starts[line - 1]..offset).unwrap_or_default();
        Origin::File { name: self.name.clone(), line, column: before.chars().count() + 1 }
    }
}

struct FileReader<'a> {
    file: &'a File,
    dir: &'a Path,
    line_starts: Vec<usize>,
    found: Vec<(usize, Assignment)>,
    violations: &'a mut Vec<Violation>,
}

impl FileReader<'_> {
    fn table(&mut self, prefix: &str, places: &DeTable<'_>, values: &toml::Table) {
        for (name, place) in places {
            let word: &str = name.get_ref();
            let path = if prefix.is_empty() { word.to_owned() } else { format!("{prefix}.{word}") };
            let at = self.file.origin(&self.line_starts, name.span().start);
            let inner = values.get(word).and_then(Value::as_table);
            if let (DeValue::Table(places), Some(values)) = (place.get_ref(), inner)
                && keys::is_section(&path)
            {
                self.table(&path, places, values);
            } else if let Some(value) = values.get(word) {
                // Looking for the nearest key takes time, and nobody reads thousands of them.
                let is_counted = self.violations.len() >= LISTED_MAX;
                match checked(&path, value.clone(), at, is_counted, self.dir) {
                    Ok(assignment) => self.found.push((name.span().start, assignment)),
                    Err(violation) => self.violations.push(*violation),
                }
            }
        }
    }
}

/// Reads one option.
pub(super) fn read_setting(setting: &Setting) -> Result<Assignment, Box<Violation>> {
    let at = Origin::Option(setting.typed.clone());
    let example = "--set train.steps=500".to_owned();
    let Some((path, text)) = &setting.assignment else {
        let rule = "must be a key's path, `=` and a value".to_owned();
        return Err(Box::new(Violation::Option { at, rule, example }));
    };
    if path.is_empty() {
        let rule = "the key's path is missing before `=`".to_owned();
        return Err(Box::new(Violation::Option { at, rule, example }));
    }
    let wants_text = keys::find(path).is_some_and(|key| {
        matches!(key.kind, Kind::Text | Kind::Path | Kind::Choice(_) | Kind::Order(_))
    });
    let wants_number = keys::find(path).is_some_and(|key| key.kind == Kind::Number);
    if let Some(violation) = too_long(path, text, &at) {
        return Err(Box::new(violation));
    }
    let value = match text.parse::<Value>() {
        // A text may look like a number or a date.
        Ok(value) if wants_text && !value.is_str() => Value::String(text.clone()),
        Ok(value) => value,
        // More digits than TOML's whole numbers have.
        Err(_) if wants_number && is_whole(text) => {
            Value::Float(text.parse().expect("invariant: digits are a number"))
        }
        // A bare word; what looks like broken TOML is not taken for one.
        Err(_) if wants_text || !text.starts_with(['"', '\'', '[', '{']) => {
            Value::String(text.clone())
        }
        Err(error) => {
            let cause = error.message().replace('\n', ", ");
            let rule = format!("the value is not valid TOML ({cause})");
            return Err(Box::new(Violation::Option { at, rule, example }));
        }
    };
    checked(path, value, at, false, Path::new(""))
}

/// Looks the key up and checks the value; of a problem that `is_counted` only, no nearest key is
/// looked for. A schedule of one's own is read from its file, which a relative path has below `dir`.
fn checked(
    path: &str,
    value: Value,
    at: Origin,
    is_counted: bool,
    dir: &Path,
) -> Result<Assignment, Box<Violation>> {
    let Some(key) = keys::find(path) else {
        return Err(Box::new(if keys::is_section(path) {
            section_as_value(path, &value, at)
        } else {
            let nearest = if is_counted { String::new() } else { nearest_key(path, &value) };
            Violation::UnknownKey { at, key: path.to_owned(), nearest }
        }));
    };
    let value = match (key.kind, own_schedule(&value, dir)) {
        (Kind::Order(_), Some(Ok(text))) => Value::String(text),
        (Kind::Order(_), Some(Err(cause))) => {
            return Err(Box::new(Violation::Schedule { at, key: path.to_owned(), cause }));
        }
        _ => value,
    };
    match wrong_value(key, &value, &at) {
        Some(violation) => Err(Box::new(violation)),
        None => Ok(Assignment { key, value, at }),
    }
}

/// The text of a schedule of one's own, proven and as the program writes it, where a value is one or names its file.
fn own_schedule(value: &Value, dir: &Path) -> Option<Result<String, String>> {
    let text = value.as_str()?;
    let Some(path) = text.strip_prefix(SCHEDULE_FILE) else {
        return Order::is_own(text).then(|| proven(text));
    };
    let path = dir.join(path);
    let name = path.display();
    Some(match trine_files::read_text(&path, SCHEDULE_BYTES_MAX as u64) {
        Ok(text) => proven(&text).map_err(|cause| format!("{name}: {cause}")),
        Err(error) => Err(format!("{name}: cannot read the schedule: {error}")),
    })
}

/// Reads a schedule and proves that a run can train by it. An error is told in a line, without the lists.
fn proven(text: &str) -> Result<String, String> {
    let schedule = text.parse::<Schedule>().and_then(|own| own.check_order().map(|()| own));
    let schedule = schedule
        .map_err(|error| error.in_text(text).lines().next().unwrap_or_default().to_owned())?;
    let written = schedule.to_string();
    if written.len() > SCHEDULE_BYTES_MAX {
        return Err(format!(
            "with all its keys it has {} bytes; that of a run has at most {SCHEDULE_BYTES_MAX}",
            written.len()
        ));
    }
    Ok(written)
}

/// Reports a whole number with more digits than TOML has: it would pass for a text.
fn too_long(path: &str, text: &str, at: &Origin) -> Option<Violation> {
    let is_counted = |key: &&Key| matches!(key.kind, Kind::Count | Kind::Recompute);
    let key = keys::find(path).filter(is_counted)?;
    (is_whole(text) && text.parse::<i64>().is_err()).then(|| check::above_limit(key, text, at))
}

/// Whether a text is a whole number, however long.
fn is_whole(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// What is wrong with a value by itself: its type, its word if it is a choice, its size.
fn wrong_value(key: &Key, value: &Value, at: &Origin) -> Option<Violation> {
    if !key.kind.has_type(value) {
        return Some(Violation::Type {
            at: at.clone(),
            key: key.path.to_owned(),
            expected: key.expected(),
            found: describe(value),
            example: example(key),
        });
    }
    let (choices, more) = match &key.kind {
        Kind::Each(kind) => {
            let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            return items
                .iter()
                .find_map(|item| wrong_value(&Key { kind: **kind, ..*key }, item, at));
        }
        Kind::OrNone(_) if value.as_str() == Some(NONE) => return None,
        Kind::OrNone(kind) => return wrong_value(&Key { kind: **kind, ..*key }, value, at),
        Kind::Scaling => return wrong_scaling(key, value, at),
        Kind::Choice(choices) => (*choices, ""),
        Kind::Order(names) => (*names, ", or \"file:\" and the path of a schedule"),
        Kind::NumbersOr(word) => (slice::from_ref(word), ", or a list of numbers"),
        Kind::Recompute if value.is_integer() => return check::too_large(key, value, at),
        Kind::Recompute => {
            (&Recompute::WORDS[..], ", true or false, a number of blocks, or a list of names")
        }
        Kind::Count
        | Kind::Number
        | Kind::Flag
        | Kind::Text
        | Kind::Path
        | Kind::Counts
        | Kind::Rates
        | Kind::Texts => return check::too_large(key, value, at),
    };
    let is_own = |word: &str| matches!(key.kind, Kind::Order(_)) && Order::is_own(word);
    match value.as_str() {
        Some(word) if !choices.contains(&word) && !is_own(word) => Some(Violation::Choice {
            at: at.clone(),
            key: key.path.to_owned(),
            found: word.to_owned(),
            choices: quoted(choices) + more,
            nearest: keys::nearest_word(word, choices.iter().copied()).to_owned(),
        }),
        Some(_) | None => None,
    }
}

/// What is wrong with a stretching of rotary frequencies.
fn wrong_scaling(key: &Key, value: &Value, at: &Origin) -> Option<Violation> {
    let text = value.as_str().unwrap_or_default();
    let error = text.parse::<RopeScaling>().err()?;
    let SpecError::Field { rule, nearest, .. } = error else { return None };
    Some(Violation::Rule { at: at.clone(), what: format!("{} = {value}", key.path), rule, nearest })
}

/// An unknown table is a misspelled section, anything else a misspelled key.
fn nearest_key(path: &str, value: &Value) -> String {
    if value.is_table() {
        let section = keys::nearest_word(path, keys::sections());
        return format!("[{section}]");
    }
    keys::nearest(path).to_owned()
}

fn section_as_value(path: &str, value: &Value, at: Origin) -> Violation {
    let key = keys::keys()
        .find(|key| !key.shorthand && key.path.starts_with(&format!("{path}.")))
        .expect("invariant: a section has keys");
    let expected = format!("a section, its keys set one by one ({}, …)", key.path);
    Violation::Type {
        at,
        key: path.to_owned(),
        expected,
        found: describe(value),
        example: example(key),
    }
}

/// `train.steps = 400`, with the value of the default preset.
fn example(key: &Key) -> String {
    let value =
        super::default_value(key.path).map_or_else(|| "\"rust-default\"".into(), |v| v.to_string());
    format!("{} = {value}", key.path)
}

/// The value and its type in words.
fn describe(value: &Value) -> String {
    match value {
        Value::String(_) => format!("the text {value}"),
        Value::Integer(_) => format!("the whole number {value}"),
        Value::Float(number) => format!("the number {}", check::Shown(*number)),
        Value::Boolean(_) => format!("the flag {value}"),
        Value::Datetime(_) => format!("the date {value}"),
        Value::Array(_) => format!("the list {value}"),
        Value::Table(_) => "a table".to_owned(),
    }
}
