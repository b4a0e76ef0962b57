//! `trine presets`.

use crate::args::PresetsArgs;
use crate::failure::Failure;
use crate::output::{self, Align, Table};
use anyhow::Context;
use serde_json::json;
use trine_mesh::Degrees;
use trine_spec::presets::{Preset, all};

/// Runs the command.
pub(crate) fn run(args: &PresetsArgs) -> Result<(), Failure> {
    let presets = all();
    output::print(&if args.json { as_json(&presets)? } else { as_table(&presets) })
}

fn as_table(presets: &[Preset]) -> String {
    let mut table = Table::new(&[
        ("name", Align::Left),
        ("parameters", Align::Right),
        ("layers", Align::Right),
        ("hidden", Align::Right),
        ("heads", Align::Right),
        ("ffn", Align::Right),
        ("vocab", Align::Right),
        ("seq", Align::Right),
        ("layouts: dp × pp × tp, sequences of a micro-batch", Align::Left),
    ]);
    for preset in presets {
        let model = &preset.model;
        let heads = if model.kv_heads == model.heads {
            model.heads.to_string()
        } else {
            format!("{}/{}", model.heads, model.kv_heads)
        };
        let layouts: Vec<String> = preset.layouts.iter().map(layout).collect();
        table.row([
            preset.name.to_owned(),
            output::grouped(model.param_count()),
            model.layers.to_string(),
            model.hidden.to_string(),
            heads,
            model.ffn.to_string(),
            model.vocab.to_string(),
            model.seq_max.to_string(),
            layouts.join("; "),
        ]);
    }
    let mut text = table.render();
    text.push_str("\nheads a/b: a query heads share b KV heads. Where no degree is given, rust-default trains in the last of its layouts, and the others in the fastest that fits this machine; --layout preset takes the last, --tp, --pp and --dp any.\n");
    for preset in presets {
        text.push_str(&format!("{:<15} {}\n", preset.name, preset.about));
    }
    text
}

fn layout((degrees, micro): &(Degrees, usize)) -> String {
    format!("{} × {} × {}, {micro}", degrees.dp, degrees.pp, degrees.tp)
}

fn as_json(presets: &[Preset]) -> Result<String, Failure> {
    let rows: Vec<serde_json::Value> = presets
        .iter()
        .map(|preset| {
            let layouts: Vec<_> = preset
                .layouts
                .iter()
                .map(|(d, micro)| json!({"dp": d.dp, "pp": d.pp, "tp": d.tp, "micro": micro}))
                .collect();
            json!({
                "name": preset.name,
                "about": preset.about,
                "parameters": preset.model.param_count(),
                "model": preset.model,
                "layouts": layouts,
            })
        })
        .collect();
    let text = serde_json::to_string_pretty(&rows).context("cannot write JSON")?;
    Ok(text + "\n")
}
