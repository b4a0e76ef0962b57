//! `trine schema`: the configuration as a JSON schema, for editors and other programs.

use crate::failure::Failure;
use crate::output;
use anyhow::Context;
use serde_json::{Map, Value, json};
use trine_spec::Recompute;
use trine_trainer::config::{self, Key, Kind};

/// Prints the schema.
pub(crate) fn run() -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(&schema()).context("cannot write JSON")?;
    output::print(&(text + "\n"))
}

/// One object a section, with a property for each key; nothing else is allowed.
fn schema() -> Value {
    let mut root = Map::new();
    for key in config::keys() {
        let value = property(key);
        match key.path.split_once('.') {
            None => {
                root.insert(key.path.into(), value);
            }
            Some((section, name)) => {
                let section = root.entry(section).or_insert_with(|| object(Map::new()));
                section["properties"][name] = value;
            }
        }
    }
    let mut schema = object(root);
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "Configuration of trine train".into();
    schema
}

fn object(properties: Map<String, Value>) -> Value {
    json!({"type": "object", "properties": properties, "additionalProperties": false})
}

fn property(key: &Key) -> Value {
    let mut property = of_kind(key.kind);
    let rule = if key.has_rule() { format!(" Rule: {}.", key.rule) } else { String::new() };
    property["description"] = format!("{}.{rule}", key.about.trim()).into();
    // Shorthands have none of their own.
    if let Some(default) = config::default_value(key.path) {
        property["default"] = json!(default);
    }
    property
}

fn of_kind(kind: Kind) -> Value {
    let count = json!({"type": "integer", "minimum": 0});
    match kind {
        Kind::Count => count,
        Kind::Number => json!({"type": "number"}),
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Text | Kind::Path => json!({"type": "string"}),
        Kind::Choice(words) => json!({"enum": words}),
        // The text of a schedule has several lines.
        Kind::Order(names) => {
            json!({"anyOf": [{"enum": names}, {"type": "string", "pattern": "^file:.|\n"}]})
        }
        Kind::Counts => json!({"type": "array", "items": count}),
        Kind::NumbersOr(word) => {
            json!({"anyOf": [{"type": "array", "items": {"type": "number"}}, {"enum": [word]}]})
        }
        Kind::Texts => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Each(kind) => {
            let list = json!({"type": "array", "items": of_kind(*kind), "minItems": 1});
            json!({"anyOf": [of_kind(*kind), list]})
        }
        Kind::OrNone(kind) => json!({"anyOf": [of_kind(*kind), {"enum": ["none"]}]}),
        Kind::Rates => {
            let number = json!({"type": "number"});
            let three = json!({"type": "array", "items": number, "minItems": 3, "maxItems": 3});
            json!({"anyOf": [number, three]})
        }
        Kind::Scaling => json!({"type": "string"}),
        Kind::Recompute => json!({"anyOf": [
            {"type": "boolean"},
            {"enum": Recompute::WORDS},
            {"type": "integer", "minimum": 1},
            {"type": "array", "items": {"type": "string"}},
        ]}),
    }
}
