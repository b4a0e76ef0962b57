//! The schema of a configuration accepts what `trine train` accepts, and refuses what it cannot read.

use crate::common::ok;
use serde_json::Value;
use std::path::Path;

fn schema() -> Value {
    serde_json::from_str(&ok(Path::new("."), &["schema"])).unwrap()
}

/// What is wrong with a value, by the words of JSON schema that the schema uses; any other word fails.
fn problems(schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let mut wrong = |what: String| found.push(format!("{at}: {what}"));
    for (word, rule) in schema.as_object().unwrap() {
        match word.as_str() {
            "$schema" | "title" | "description" | "default" => {}
            "type" => {
                let holds = match rule.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "number" => value.is_number(),
                    other => panic!("{at}: unknown type {other}"),
                };
                if !holds {
                    wrong(format!("{value} is no {rule}"));
                }
            }
            "enum" if !rule.as_array().unwrap().contains(value) => {
                wrong(format!("{value} is none of {rule}"))
            }
            "minimum" if value.as_f64() < rule.as_f64() => {
                wrong(format!("{value} is below {rule}"))
            }
            "minItems" | "maxItems" => {
                let (len, bound) =
                    (value.as_array().map_or(0, Vec::len) as u64, rule.as_u64().unwrap());
                if value.is_array() && if word == "minItems" { len < bound } else { len > bound } {
                    wrong(format!("{len} items, against {word} {bound}"));
                }
            }
            "anyOf" => {
                let fits = |schema: &Value| {
                    let mut found = Vec::new();
                    problems(schema, value, at, &mut found);
                    found.is_empty()
                };
                if !rule.as_array().unwrap().iter().any(fits) {
                    wrong(format!("{value} is none of {rule}"));
                }
            }
            "pattern" => {
                assert_eq!(rule, "^file:.|\n");
                let text = value.as_str().unwrap_or_default();
                if !(text.starts_with("file:") || text.contains('\n')) {
                    wrong(format!("{value} is no {rule}"));
                }
            }
            "additionalProperties" => {
                assert_eq!(rule, false);
                let known = schema["properties"].as_object().unwrap();
                let names = value.as_object().into_iter().flatten().map(|(name, _)| name);
                let unknown: Vec<&String> =
                    names.filter(|name| !known.contains_key(*name)).collect();
                unknown.iter().for_each(|name| wrong(format!("{name} is unknown")));
            }
            "enum" | "minimum" | "properties" | "items" => {}
            other => panic!("{at}: unknown word {other}"),
        }
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        if let Some(schema) = schema["properties"].get(name) {
            problems(schema, value, &format!("{at}.{name}"), found);
        }
    }
    if let Some(schema) = schema.get("items") {
        for value in value.as_array().into_iter().flatten() {
            problems(schema, value, &format!("{at}[]"), found);
        }
    }
}

fn check(schema: &Value, toml: &str) -> Vec<String> {
    let mut found = Vec::new();
    problems(schema, &toml::from_str(toml).unwrap(), "", &mut found);
    found
}

#[test]
fn every_preset_fits_the_schema() {
    let schema = schema();
    let mut cases = 0;
    for preset in trine_spec::presets::all() {
        let text = ok(Path::new("."), &["train", "--preset", preset.name, "--dry-run"]);
        assert_eq!(check(&schema, &text), Vec::<String>::new(), "{}", preset.name);
        cases += 1;
    }
    assert!(cases >= 16, "{cases}");
    let shorthands =
        "preset = \"gpt2-124m\"\nbatch.micro_batches = 4\nmodel.preset = \"llama3-8b\"\n";
    assert!(check(&schema, shorthands).is_empty());
    for own in ["\"file:mine.txt\"", "\"\"\"\nschedule mine\n\"\"\""] {
        assert!(check(&schema, &format!("[layout]\nschedule = {own}\n")).is_empty(), "{own}");
    }
    for times in ["[]", "[1, 1.5, 0.5, 0]", "\"measured\""] {
        assert!(check(&schema, &format!("[layout]\ntimes = {times}\n")).is_empty(), "{times}");
    }
    // Every key is there with what is said of it.
    for key in trine_trainer::config::keys() {
        let pointer = format!("/properties/{}", key.path.replace('.', "/properties/"));
        let property = schema.pointer(&pointer).unwrap_or_else(|| panic!("{pointer}"));
        let said = property["description"].as_str().unwrap();
        assert!(said.contains(key.about.trim()), "{pointer}");
        assert!(!key.has_rule() || said.contains(key.rule), "{pointer}");
        assert_eq!(property.get("default").is_none(), key.shorthand, "{pointer}");
    }
}

#[test]
fn what_cannot_be_read_does_not_fit() {
    let schema = schema();
    let cases = [
        ("sed = 1", ": sed is unknown"),
        ("[train]\nstepz = 1", ".train: stepz is unknown"),
        ("[train]\nsteps = \"many\"", ".train.steps: \"many\" is no \"integer\""),
        ("[train]\nsteps = -1", ".train.steps: -1 is below 0"),
        ("[layout]\nschedule = \"1f2b\"", ".layout.schedule: \"1f2b\" is none of "),
        ("[model]\nwindow = []", ".model.window: [] is none of "),
        ("[model]\nqk_norm = [\"all\", \"any\"]", ".model.qk_norm: "),
        ("[model]\ndropout = [0.1, 0.2]", ".model.dropout: "),
        ("[layout]\ntimes = \"mesured\"", ".layout.times: \"mesured\" is none of "),
        ("[layout]\ntimes = [\"1\"]", ".layout.times: [\"1\"] is none of "),
        ("[layout]\nlayers = [1, \"2\"]", ".layout.layers[]: \"2\" is no \"integer\""),
        ("[sample]\nprompts = [1]", ".sample.prompts[]: 1 is no \"string\""),
        ("[train]\nrecompute = 0", ".train.recompute: 0 is none of "),
        ("[train]\nrecompute = \"some\"", ".train.recompute: \"some\" is none of "),
        ("[train]\nrecompute = [1]", ".train.recompute: [1] is none of "),
        ("train = 3", ".train: 3 is no \"object\""),
    ];
    for (toml, expected) in cases {
        let found = check(&schema, toml);
        assert!(found.iter().any(|problem| problem.starts_with(expected)), "{toml}: {found:?}");
    }
    assert_eq!(cases.len(), 16);
}
