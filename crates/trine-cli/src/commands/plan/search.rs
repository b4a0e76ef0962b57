//! `trine plan`: the best layouts, why each beats the next, and what they would take.

use super::again::Again;
use super::runnable::{self, Runnable};
use super::task::{Task, describe, recompute_word};
use crate::failure::Failure;
use crate::output::{self, Align, Table, Unit, counted, grouped};
use crate::plan_args::SearchArgs;
use crate::written::{Kind, Output};
use anyhow::Context;
use serde_json::json;
use std::path::{Path, PathBuf};
use trine_plan::{
    Choice, Convention, Found, Planner, explain_lead, flops, items, memory_svg, search, sensitivity,
};
use trine_schedule::{Action, Compute, Delivery, Shape, draw, lower, simulate};
use trine_trainer::Time;

/// More micro-batches than twice the ranks make a timeline longer, not clearer.
const DRAWN_ACTIONS_MAX: usize = 1 << 14;

/// Searches and reports.
pub(crate) fn run(args: &SearchArgs) -> Result<(), Failure> {
    let files = args.task.files();
    let inputs: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let output = |option, path, kind| Output { option, path, kind };
    let drawn = args.svg.as_deref().map(|path| output("--svg", path, Kind::Svg));
    let config = args.write_config.as_deref();
    let config = config.map(|path| output("--write-config", path, Kind::Configuration));
    // Found out now, and not after the search.
    drawn.iter().chain(&config).try_for_each(|output| output.check(&inputs))?;
    let task = Task::new(&args.task)?;
    let planner = task.planner()?;
    let tokens = args.tokens.unwrap_or(20.0 * planner.model.params);
    let found = search(&planner, &task.request);
    let found = found.map_err(|error| {
        // What is offered instead must do for the file too.
        let mut wanted = task.request;
        wanted.fixed.runnable |= config.is_some();
        let error = search(&planner, &wanted).err().unwrap_or(error);
        runnable::failure(&task, &planner, tokens, error)
    })?;
    let runnable = Runnable::find(&task, &planner, tokens)?;
    if let Some(drawn) = drawn {
        drawn.write(&svg(&planner, &found.best[0])?, &inputs)?;
    }
    if let Some(config) = config {
        config.write(&runnable.file(&task)?, &inputs)?;
    }
    if args.json {
        let value = as_json(&task, &planner, (&found, &runnable), args, tokens);
        return output::print(&format!("{value:#}\n"));
    }
    let mut text = task.headline();
    text += &summary(&planner, &found, args.top);
    if args.top > 1 && found.best.len() > 1 {
        text += &leads(&found, args.top);
    }
    if let Some(again) = Again::of(&planner, &found.best[0], task.request.headroom) {
        text += &format!("\n{}", again.line());
    }
    text += &nearly(&found, task.request.headroom);
    text += &budget(&planner, &found.best[0], tokens);
    if args.explain {
        text += &explain(&found.best[0]);
    }
    if args.sensitivity {
        text += &ranking(&planner, &found.best[0], task.request.headroom);
    }
    for path in args.svg.iter().chain(&args.write_config) {
        text += &format!("\nWritten: {}\n", path.display());
    }
    text += &runnable.report(&task, &planner, found.best[0].step())?;
    output::print(&text)
}

/// FLOP/s of a device: what the model needs, and with what is computed again.
fn rates(planner: &Planner<'_>, choice: &Choice) -> (f64, f64) {
    let count = flops(planner.model, &choice.layout, Convention::FullAttention);
    let device_seconds = choice.step() * choice.layout.devices() as f64;
    (count.model / device_seconds, count.hardware / device_seconds)
}

fn summary(planner: &Planner<'_>, found: &Found, top: usize) -> String {
    let best = &found.best[0];
    let seconds = Unit::of_seconds(best.step());
    let bytes = Unit::of_bytes(best.estimate.memory.total());
    let rate = Unit::of_flops(rates(planner, best).0);
    let mut table = Table::new(&[
        ("#", Align::Right),
        ("tp", Align::Right),
        ("pp", Align::Right),
        ("cp", Align::Right),
        ("dp", Align::Right),
        ("schedule", Align::Left),
        ("micro", Align::Right),
        ("zero", Align::Right),
        ("recompute", Align::Left),
        (seconds.long, Align::Right),
        (rate.long, Align::Right),
        ("MFU", Align::Right),
        ("HFU", Align::Right),
        ("bubble", Align::Right),
        (bytes.long, Align::Right),
    ]);
    let peak = |choice: &Choice| planner.cluster.device.peak(choice.layout.precision);
    for (index, choice) in found.best.iter().take(top).enumerate() {
        let layout = &choice.layout;
        let chunks = match layout.virtual_stages {
            1 => String::new(),
            chunks => format!(" × {chunks}"),
        };
        let split = if layout.sequence_parallel { " sp" } else { "" };
        let (model, hardware) = rates(planner, choice);
        table.row([
            (index + 1).to_string(),
            format!("{}{split}", layout.degrees.tp),
            layout.degrees.pp.to_string(),
            layout.degrees.cp.to_string(),
            layout.degrees.dp.to_string(),
            format!("{}{chunks}", layout.pipeline),
            format!("{} of {}", layout.micro_batch, layout.micro_batches()),
            layout.zero.to_string(),
            recompute_word(layout.recompute).to_owned(),
            seconds.number(choice.step(), 2),
            rate.number(model, 1),
            format!("{:.1} %", 100.0 * model / peak(choice)),
            format!("{:.1} %", 100.0 * hardware / peak(choice)),
            format!("{:.1} %", 100.0 * choice.simulated.map_or(0.0, |s| s.bubble_fraction)),
            bytes.number(choice.estimate.memory.total(), 1),
        ]);
    }
    format!(
        "{} evaluated, {} fit; the best {} simulated. {} and MFU count what the model needs (every query with \
         every key), HFU what is computed again too.\n\n{}",
        counted(found.evaluated, "layout"),
        grouped(found.feasible as u64),
        found.best.len(),
        rate.long,
        table.render()
    )
}

fn leads(found: &Found, top: usize) -> String {
    if top.min(found.best.len()) < 2 {
        return String::new();
    }
    let mut text = String::from("\nWhy each beats the next:\n");
    let unit = Unit::of_seconds(found.best[0].step());
    for (index, pair) in found.best.windows(2).take(top.saturating_sub(1)).enumerate() {
        let lead = 100.0 * (pair[1].step() / pair[0].step() - 1.0);
        let reasons: Vec<String> = explain_lead(&pair[0], &pair[1])
            .into_iter()
            .take(3)
            .map(|(name, saved)| format!("{name} {}", unit.signed(-saved, 2)))
            .collect();
        let reasons = match reasons.is_empty() {
            true => "no item differs by a thousandth of the step".to_owned(),
            false => reasons.join(", "),
        };
        text += &format!("  {} by {lead:.2} % over {}: {reasons}\n", index + 1, index + 2);
    }
    text
}

fn nearly(found: &Found, headroom: f64) -> String {
    let mut text = String::new();
    for choice in found.tight(headroom).take(3) {
        text += &format!(
            "Tight, with {:.1} % of the memory in use: {}\n",
            100.0 * choice.memory_share(),
            describe(choice)
        );
    }
    for choice in found.near.iter().take(3) {
        let allowed = choice.estimate.memory_bytes * (1.0 - headroom);
        let missing = choice.estimate.memory.total() - allowed;
        text += &format!(
            "Would be {:.1} % faster, but needs {} more than allowed: {}\n",
            100.0 * (1.0 - choice.step() / found.best[0].step()),
            Unit::of_bytes(missing).show(missing, 1),
            describe(choice)
        );
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

fn budget(planner: &Planner<'_>, best: &Choice, tokens: f64) -> String {
    let (days, dollars) = days_and_dollars(planner, best, tokens);
    let price = match dollars {
        Some(dollars) => format!("{} dollars", Unit::of_many(dollars).show(dollars, 2)),
        None => format!("no price known for {}", planner.cluster.name),
    };
    let hours = days * 24.0 * best.layout.devices() as f64;
    format!(
        "\n{} tokens: {}, {} device hours, {price}.\n",
        Unit::of_count(tokens).show(tokens, 2),
        Time(86400.0 * days),
        Unit::of_many(hours).show(hours, 2)
    )
}

fn days_and_dollars(planner: &Planner<'_>, best: &Choice, tokens: f64) -> (f64, Option<f64>) {
    let rate = (best.layout.global_batch * best.layout.seq) as f64 / best.step();
    let days = tokens / rate / 86400.0;
    let price = planner.cluster.dollars_per_device_hour;
    let dollars = (price > 0.0).then(|| price * days * 24.0 * best.layout.devices() as f64);
    (days, dollars)
}

fn explain(best: &Choice) -> String {
    let time = &best.estimate.time;
    let unit = Unit::of_seconds(time.step);
    let mut text = format!(
        "\nWhere the {} of a step go (closed form {}):\n",
        unit.show(best.step(), 2),
        unit.number(time.step, 2)
    );
    for (name, seconds) in items(time) {
        let share = 100.0 * seconds / time.step;
        text += &format!("  {name:<20} {:>12} {share:>6.2} %\n", unit.show(seconds, 3));
    }
    let memory = &best.estimate.memory;
    text += &format!("What a rank of the fullest stage ({}) holds:\n", best.estimate.stage);
    for (name, bytes) in [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("master weights", memory.master),
        ("moments", memory.moments),
        ("activations", memory.activations),
        ("working set", memory.working_set),
        ("buffers", memory.buffers),
        ("allocator reserve", memory.reserve),
        ("device context", memory.context),
        ("all", memory.total()),
    ] {
        text += &format!("  {name:<20} {:>12}\n", Unit::of_bytes(bytes).show(bytes, 1));
    }
    text
}

fn ranking(planner: &Planner<'_>, best: &Choice, headroom: f64) -> String {
    let found = sensitivity(planner, &best.layout, headroom);
    let mut text = format!(
        "\nWhat moves throughput: mean |Shapley value| over a full grid of {} layouts, {} of which fit (the others count \
         as 0):\n",
        grouped(found.trials as u64),
        grouped(found.feasible as u64)
    );
    for factor in &found.factors {
        let means: Vec<String> = factor
            .values
            .iter()
            .zip(&factor.means)
            .map(|(value, mean)| format!("{value}: {mean:.1}"))
            .collect();
        text += &format!(
            "  {:<16} {:>6.2} TFLOP/s   mean at {}\n",
            factor.name,
            factor.weight,
            means.join(", ")
        );
    }
    text
}

/// Timeline and memory of a layout in one picture. A long step is drawn with fewer micro-batches.
fn svg(planner: &Planner<'_>, choice: &Choice) -> Result<String, Failure> {
    let mut shape = choice.layout.shape();
    let few =
        (DRAWN_ACTIONS_MAX / (3 * shape.stages())).max(1).min(2 * shape.ranks).max(shape.ranks);
    let most = shape.micro_batches.min(few / shape.ranks * shape.ranks).max(1);
    shape = Shape { micro_batches: most, ..shape };
    let timeline = timeline(planner, choice, shape)?;
    let memory = memory_svg(planner, &choice.layout);
    let (top_width, top_height) = size(&timeline);
    let (bottom_width, bottom_height) = size(&memory);
    let width = top_width.max(bottom_width);
    let (height, note) = (top_height + bottom_height + 32.0, describe(choice));
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <text x=\"12\" y=\"20\">{note}; {most} of {} micro-batches drawn</text>\n\
         <g transform=\"translate(0 32)\">{timeline}</g>\n\
         <g transform=\"translate(0 {:.0})\">{memory}</g>\n</svg>\n",
        choice.layout.micro_batches(),
        32.0 + top_height
    ))
}

fn timeline(planner: &Planner<'_>, choice: &Choice, shape: Shape) -> Result<String, Failure> {
    let kind = choice.layout.pipeline;
    let order = kind.generate_shape(shape).context("cannot make the schedule")?;
    let costs = planner.stage_costs(&choice.layout, &order.placement);
    let lowered = lower(&order, None).context("cannot complete the schedule")?;
    let cost = |_: usize, _: usize, action: &Action| match *action {
        Action::Compute(Compute::Forward { stage, .. }) => costs.forward[stage],
        Action::Compute(Compute::BackwardInput { stage, .. }) => costs.backward_input[stage],
        Action::Compute(Compute::BackwardWeight { stage, .. }) => costs.backward_weight[stage],
        Action::Message(_) | Action::Sync(_) => 0.0,
    };
    let timeline = simulate(&lowered, Delivery::Buffered, &cost).context("cannot simulate")?;
    Ok(draw::svg(&timeline))
}

/// Width and height that an SVG gives itself.
fn size(svg: &str) -> (f64, f64) {
    let of = |name: &str| -> Option<f64> {
        let (_, rest) = svg.split_once(&format!(" {name}=\""))?;
        rest.split_once('"')?.0.parse().ok()
    };
    (of("width").unwrap_or(900.0), of("height").unwrap_or(300.0))
}

fn as_json(
    task: &Task,
    planner: &Planner<'_>,
    (found, runnable): (&Found, &Runnable),
    args: &SearchArgs,
    tokens: f64,
) -> serde_json::Value {
    let best = &found.best[0];
    let (days, dollars) = days_and_dollars(planner, best, tokens);
    let near = found.near.iter().map(|one| choice_json(planner, one));
    let mut value = json!({
        "model": task.name(),
        "parameters": planner.model.params,
        "cluster": planner.cluster.name,
        "stack": planner.stack.name,
        "devices": task.request.devices,
        "global_batch": task.request.global_batch,
        "seq": task.request.seq,
        "memory_headroom": task.request.headroom,
        "flops_convention": "every query with every key; model: without recompute, hardware: with it",
        "evaluated": found.evaluated,
        "feasible": found.feasible,
        "best": found.best.iter().take(args.top).map(|one| choice_json(planner, one)).collect::<Vec<_>>(),
        "runnable": runnable.choice().map(|one| choice_json(planner, one)),
        "nearly_feasible": near.collect::<Vec<_>>(),
        "tokens": tokens,
        "days": days,
        "dollars": dollars,
    });
    if args.sensitivity {
        let ranked = sensitivity(planner, &best.layout, task.request.headroom);
        let factors: Vec<_> = ranked
            .factors
            .iter()
            .map(|one| json!({
                "name": one.name, "weight_tflops": one.weight, "values": one.values, "mean_tflops": one.means,
            }))
            .collect();
        value["sensitivity"] =
            json!({ "trials": ranked.trials, "feasible": ranked.feasible, "factors": factors });
    }
    value
}

fn choice_json(planner: &Planner<'_>, choice: &Choice) -> serde_json::Value {
    // The shares need no headroom.
    let again = Again::of(planner, choice, 0.0);
    let layout = &choice.layout;
    let (model, hardware) = rates(planner, choice);
    let peak = planner.cluster.device.peak(layout.precision);
    let memory = &choice.estimate.memory;
    let time: serde_json::Map<String, serde_json::Value> = items(&choice.estimate.time)
        .into_iter()
        .map(|(name, seconds)| (name.replace(' ', "_"), json!(seconds)))
        .collect();
    json!({
        "tp": layout.degrees.tp, "pp": layout.degrees.pp, "dp": layout.degrees.dp, "cp": layout.degrees.cp,
        "schedule": layout.pipeline.name(),
        "virtual_stages": layout.virtual_stages,
        "micro_batch": layout.micro_batch,
        "micro_batches": layout.micro_batches(),
        "sequence_parallel": layout.sequence_parallel,
        "zero": layout.zero,
        "recompute": recompute_word(layout.recompute),
        "recompute_time_share": again.as_ref().map_or(0.0, Again::time_share),
        "recompute_bytes_saved": again.as_ref().map_or(0.0, Again::bytes_saved),
        "step_s": choice.step(),
        "closed_form_step_s": choice.estimate.time.step,
        "bubble_fraction": choice.simulated.map(|simulated| simulated.bubble_fraction),
        "model_tflops_per_device": model / 1e12,
        "hardware_tflops_per_device": hardware / 1e12,
        "mfu": model / peak,
        "hfu": hardware / peak,
        "memory_bytes": {
            "weights": memory.weights, "gradients": memory.gradients, "master": memory.master,
            "moments": memory.moments, "activations": memory.activations, "working_set": memory.working_set,
            "buffers": memory.buffers, "reserve": memory.reserve, "context": memory.context,
            "total": memory.total(),
        },
        "memory_share": choice.memory_share(),
        "time_s": time,
    })
}
