//! The border to the tokenizers crate: what it would not survive is refused, and a panic in it is an
//! error.

use crate::DataError;
use serde_json::Value;
use std::any::Any;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Largest id for each entry of a vocabulary. Tables are as long as the largest id; published ones
/// leave some hundred out at most.
const IDS_PER_ENTRY: u64 = 4;

/// Calls the library. What it was working on is gone after a panic, so nothing half-done is seen.
pub(crate) fn guarded<T>(
    place: &str,
    work: impl FnOnce() -> Result<T, DataError>,
) -> Result<T, DataError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(refused(place, format!("the library failed: {}", said(&*panic))))
    })
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}

/// Refuses a `tokenizer.json` on which the library is known to panic, or whose ids would need tables
/// out of all proportion. What is no JSON is left to the library to say.
///
/// # Errors
/// What is wrong, and where.
pub(crate) fn check(json: &str, place: &str) -> Result<(), DataError> {
    let Ok(file) = serde_json::from_str::<Value>(json) else { return Ok(()) };
    if !matches!(&file["decoder"], Value::Null | Value::Object(_)) {
        return Err(refused(place, "its decoder is no object".to_owned()));
    }
    check_ids(&file, place)?;
    check_merges(&file["model"], place)
}

fn check_ids(file: &Value, place: &str) -> Result<(), DataError> {
    let vocabulary = file["model"]["vocab"].as_object().into_iter().flatten();
    let added = file["added_tokens"].as_array().into_iter().flatten();
    let ids = vocabulary
        .map(|(token, id)| (token.as_str(), id.as_u64()))
        .chain(added.map(|token| (token["content"].as_str().unwrap_or("?"), token["id"].as_u64())));
    let (mut entries, mut largest) = (0, ("", 0));
    for (token, id) in ids {
        entries += 1;
        largest = std::cmp::max_by_key(largest, (token, id.unwrap_or(0)), |(_, id)| *id);
    }
    let (token, id) = largest;
    if entries == 0 || id < IDS_PER_ENTRY * entries {
        return Ok(());
    }
    let why = format!(
        "token {token:?} has id {id}, but there are {entries} entries; \
         ids go from 0 to about {}",
        entries - 1
    );
    Err(refused(place, why))
}

/// The library joins the halves of each merge in a buffer of the longest entry.
fn check_merges(model: &Value, place: &str) -> Result<(), DataError> {
    let prefix = &model["continuing_subword_prefix"];
    if prefix.as_str().is_some_and(|prefix| !prefix.is_empty()) {
        let why = format!("continuing_subword_prefix is {prefix}; a byte-level BPE has none");
        return Err(refused(place, why));
    }
    let Some(vocabulary) = model["vocab"].as_object() else { return Ok(()) };
    let known: HashSet<&str> = vocabulary.keys().map(String::as_str).collect();
    for merge in model["merges"].as_array().into_iter().flatten() {
        let halves = match merge {
            Value::String(text) => text.split_once(' '),
            other => other[0].as_str().zip(other[1].as_str()),
        };
        let joined = halves.map(|(first, second)| [first, second].concat());
        if let Some(joined) = joined.filter(|joined| !known.contains(joined.as_str())) {
            let why = format!("merge {merge} gives {joined:?}, which is not in the vocabulary");
            return Err(refused(place, why));
        }
    }
    Ok(())
}

fn refused(place: &str, why: String) -> DataError {
    DataError::Tokenizer { place: place.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error() {
        let failed = guarded::<()>("x.json", || panic!("index {} out of range", 3));
        let message = failed.unwrap_err().to_string();
        assert!(
            message.contains("x.json") && message.contains("index 3 out of range"),
            "{message}"
        );
        assert_eq!(guarded("x.json", || Ok(7)).unwrap(), 7);
    }
}
