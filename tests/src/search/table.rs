//! What is promised of each option, and what is refused: the tables of `docs/numerics.md`.

use super::{Case, Promise, Row, Space};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Both tables, in Markdown.
pub fn promised(space: &Space) -> String {
    let mut text =
        "| option | values | reference numerics | fast numerics |\n|---|---|---|---|\n".to_owned();
    for row in &space.rows {
        let values: Vec<String> = row.values.iter().map(shown).collect();
        let [reference, fast] = cells(space, row);
        let (name, values) = (row.name, values.join(", "));
        writeln!(text, "| `{name}` | {values} | {reference} | {fast} |")
            .expect("invariant: a String takes all that is written");
    }
    text.push_str("\n| refused beside one another | why |\n|---|---|\n");
    for (options, reason) in refused_pairs(space) {
        writeln!(text, "| {options} | {reason} |").expect("invariant: as above");
    }
    text
}

/// A value as the table has it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "as it is".to_owned(),
        value => format!("`{}`", value.to_string().replace(r#"{"kind":"sgd","#, "{")),
    }
}

/// What is promised of an option in reference and in fast numerics.
fn cells(space: &Space, row: &Row) -> [String; 2] {
    let refused = |base: &Case| {
        let refused = |value: &&Value| refusal(space, &base.with(row, value)).is_some();
        let values: Vec<String> = row.values.iter().filter(refused).map(shown).collect();
        if values.is_empty() { String::new() } else { format!("; {} refused", values.join(", ")) }
    };
    let fast = match row.promise {
        Promise::Shared | Promise::Rule => "bound",
        Promise::Bits => "bits of the same layout without it",
    };
    let reference = refused(&reference(space));
    [format!("bits{reference}"), format!("{fast}{}", refused(&Case::default()))]
}

/// Options of which some values are refused beside one another, and none alone: the first of each kind, with why.
/// What only reference numerics refuse comes last; what only the search refuses is left out.
fn refused_pairs(space: &Space) -> Vec<(String, String)> {
    let (mut pairs, mut known) = (Vec::new(), BTreeSet::new());
    for base in [Case::default(), reference(space)] {
        for (at, first) in space.rows.iter().enumerate() {
            for second in &space.rows[at + 1..] {
                for (case, options) in cases_of(space, &base, first, second) {
                    let Some(reason) = refusal(space, &case) else { continue };
                    let kind = super::without_numbers(&reason).replace(first.name, "");
                    if known.insert((second.name, kind)) {
                        pairs.push((options, reason));
                    }
                }
            }
        }
    }
    pairs
}

/// The simplest case in reference numerics.
fn reference(space: &Space) -> Case {
    let row = space.rows.iter().find(|row| row.name == "numerics");
    row.map(|row| Case::default().with(row, &json!("reference"))).unwrap_or_default()
}

/// Why a case that a search can compare is refused, without the advice.
fn refusal(space: &Space, case: &Case) -> Option<String> {
    let setup = space.setup(case).ok()?;
    if setup.obstacle().is_some() {
        return None;
    }
    let reason = setup.plan().err()?;
    let end = reason.find("; nearest").or_else(|| reason.find("; the nearest"));
    Some(reason[..end.unwrap_or(reason.len())].to_owned())
}

/// The cases in which two options have values that are accepted alone beside `base`, and how these are written.
fn cases_of(space: &Space, base: &Case, first: &Row, second: &Row) -> Vec<(Case, String)> {
    let alone = |row: &Row| -> Vec<Value> {
        let accepted = |value: &&Value| space.plan(&base.with(row, value)).is_ok();
        row.values[1..].iter().filter(accepted).cloned().collect()
    };
    let (ones, others) = (alone(first), alone(second));
    let both = |(one, other): (&Value, &Value)| {
        let case = base.with(first, one).with(second, other);
        let mut options = format!("`{} = {one}`, `{} = {other}`", first.name, second.name);
        let set = space.rows.iter().filter(|row| ![first.name, second.name].contains(&row.name));
        for row in set.filter(|row| base.value(row) != &row.values[0]) {
            options.push_str(&format!(", `{} = {}`", row.name, base.value(row)));
        }
        (case, options)
    };
    ones.iter().flat_map(|one| others.iter().map(move |other| (one, other))).map(both).collect()
}
