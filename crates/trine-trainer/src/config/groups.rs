//! A line of `optimizer.groups`: `PATTERN: lr=0.1 decay=0 schedule=constant`.

use super::keys::nearest_word;
use trine_optim::{Group, LrKind};
use trine_spec::Pattern;

/// What a line may set.
const WORDS: [&str; 3] = ["lr", "decay", "schedule"];

/// Why a text is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// What must hold.
    pub(super) rule: String,
    /// What would do.
    pub(super) nearest: String,
}

fn refused<T>(rule: impl Into<String>, nearest: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { rule: rule.into(), nearest: nearest.into() })
}

/// Reads a line.
pub(super) fn parse(line: &str) -> Result<Group, Refused> {
    let Some((pattern, settings)) = line.rsplit_once(':') else {
        let rule = "must be names of parameters, `:`, and what is set for them";
        return refused(rule, format!("\"{}: lr=1\"", line.trim()));
    };
    let mut group = Group::new(Pattern::new(pattern.trim()));
    for setting in settings.split_whitespace() {
        set(&mut group, setting)?;
    }
    if group == Group::new(group.pattern.clone()) {
        return refused(
            "sets none of lr, decay and schedule",
            format!("\"{}: lr=1\"", group.pattern),
        );
    }
    Ok(group)
}

/// Sets one thing, once.
fn set(group: &mut Group, setting: &str) -> Result<(), Refused> {
    let (word, value) = setting.split_once('=').unwrap_or((setting, ""));
    let was_set = match word {
        "lr" => group.lr.replace(number(word, value, "1")?).is_some(),
        "decay" => group.decay.replace(number(word, value, "0")?).is_some(),
        "schedule" => group.schedule.replace(kind(value)?).is_some(),
        _ => {
            let rule = format!("{word:?} is none of lr, decay and schedule");
            return refused(rule, nearest_word(word, WORDS));
        }
    };
    if was_set { refused(format!("sets {word} twice"), format!("only {setting}")) } else { Ok(()) }
}

/// A number that may stand behind a word.
fn number(word: &str, value: &str, nearest: &str) -> Result<f64, Refused> {
    let number = value.parse::<f64>().ok();
    let is_valid = |number: &f64| *number >= 0.0 && (*number as f32).is_finite();
    match number.filter(is_valid) {
        // Without the sign that a zero may have.
        Some(number) => Ok(number.abs()),
        None => {
            let rule = format!("{word} must be a number, 0 or more, that f32 has, found {value:?}");
            let nearest = if number.is_some_and(|number| number < 0.0) { "0" } else { nearest };
            refused(rule, format!("{word}={nearest}"))
        }
    }
}

/// A schedule.
fn kind(value: &str) -> Result<LrKind, Refused> {
    let found = LrKind::ALL.into_iter().find(|kind| kind.word() == value);
    found.map_or_else(
        || {
            let words = LrKind::WORDS;
            let rule = format!("schedule must be one of {}, found {value:?}", words.join(", "));
            refused(rule, format!("schedule={}", nearest_word(value, words.iter().copied())))
        },
        Ok,
    )
}
