//! `trine plan scale`: how far more devices help, and what stops it.

use super::task::{Task, describe};
use crate::failure::Failure;
use crate::output::{self, Align, Table, Unit, counted, grouped};
use crate::plan_args::ScaleArgs;
use crate::written::{Kind, Output};
use serde_json::json;
use std::path::{Path, PathBuf};
use trine_plan::{Choice, Planner, Scaling, ScalingPoint, scale, scaling_svg, search};

/// Efficiency below this share of what it was is a bend.
const BENDS_BELOW: f64 = 0.95;

/// Finds the best layout of the smallest size and follows it to larger ones.
pub(crate) fn run(args: &ScaleArgs) -> Result<(), Failure> {
    let files = args.task.files();
    let inputs: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let drawn = args.svg.as_deref();
    let drawn = drawn.map(|path| Output { option: "--svg", path, kind: Kind::Svg });
    drawn.map_or(Ok(()), |drawn| drawn.check(&inputs))?;
    let task = Task::new(&args.task)?;
    let planner = task.planner()?;
    let devices = task.request.devices;
    if args.to < devices {
        let message = format!("--to {}: at least --gpus {devices}", args.to);
        return Err(Failure::usage(message));
    }
    let found = search(&planner, &task.request).map_err(|error| task.failure(error))?;
    let best = &found.best[0];
    let sizes = sizes(best, args.to);
    let mut curves = Vec::new();
    for scaling in [Scaling::Weak, Scaling::Strong] {
        let points = scale(&planner, &best.layout, &sizes, scaling).map_err(Failure::usage)?;
        curves.push((scaling, points));
    }
    if let Some(drawn) = drawn {
        drawn.write(&scaling_svg(&curves), &inputs)?;
    }
    if args.json {
        return output::print(&format!("{:#}\n", as_json(&task, best, &curves)));
    }
    let mut text = task.headline();
    text += &format!("The best layout there: {}\n", describe(best));
    for (scaling, points) in &curves {
        text += &curve(&planner, name(*scaling), points);
    }
    let most = planner.cluster.devices();
    if args.to > most {
        let most = grouped(most as u64);
        text += &format!(
            "\n{} has {most} devices: the curves end there, before --to {}.\n",
            planner.cluster.name, args.to
        );
    }
    output::print(&text)
}

fn name(scaling: Scaling) -> &'static str {
    match scaling {
        Scaling::Weak => "weak",
        Scaling::Strong => "strong",
    }
}

/// Whole replicas: the first few one by one, then doubled, and the most that fit.
fn sizes(best: &Choice, most: usize) -> Vec<usize> {
    let base = best.layout.devices();
    let replica = base / best.layout.degrees.dp;
    let mut sizes: Vec<usize> = std::iter::successors(Some(base), |size| Some(size * 2))
        .take_while(|size| *size <= most)
        .collect();
    let last = most / replica * replica;
    if sizes.last().is_some_and(|size| *size < last) {
        sizes.push(last);
    }
    sizes
}

fn curve(planner: &Planner<'_>, name: &str, points: &[ScalingPoint]) -> String {
    let unit = Unit::of_seconds(points.first().map_or(1.0, |point| point.step));
    let mut table = Table::new(&[
        ("devices", Align::Right),
        ("batch", Align::Right),
        ("micro-batches", Align::Right),
        (unit.long, Align::Right),
        ("tokens/s", Align::Right),
        ("efficiency", Align::Right),
        ("what grew most", Align::Left),
    ]);
    for point in points {
        let layout = &point.layout;
        let tokens = (layout.global_batch * layout.seq) as f64 / point.step;
        let grew = point.bend.map_or(String::new(), |(item, share)| {
            format!("{item} {:+.1} % of the step", 100.0 * share)
        });
        table.row([
            grouped(layout.devices() as u64),
            grouped(layout.global_batch as u64),
            layout.micro_batches().to_string(),
            unit.number(point.step, 2),
            grouped(tokens as u64),
            format!("{:.1} %", 100.0 * point.efficiency),
            grew,
        ]);
    }
    let bend = points.iter().find(|point| point.efficiency < BENDS_BELOW);
    let said = match bend {
        Some(point) => format!(
            "It bends at {} ({:.1} %): {}.\n",
            counted(point.layout.devices(), "device"),
            100.0 * point.efficiency,
            reason(planner, point)
        ),
        None => format!("It does not fall below {:.0} %.\n", 100.0 * BENDS_BELOW),
    };
    format!("\n{name} scaling\n{}{said}", table.render())
}

/// What bends a curve, in words.
fn reason(planner: &Planner<'_>, point: &ScalingPoint) -> String {
    let layout = &point.layout;
    match point.bend {
        Some(("bubble", share)) => format!(
            "the bubble takes {:.1} % more of the step, as each of {} has {} left",
            100.0 * share,
            counted(layout.degrees.pp, "pipeline rank"),
            counted(layout.micro_batches(), "micro-batch"),
        ),
        Some(("data parallelism", share)) => format!(
            "reducing gradients over {} replicas takes {:.1} % more of the step; it crosses the level \"{}\"",
            layout.degrees.dp,
            100.0 * share,
            planner
                .cluster
                .levels
                .iter()
                .find(|level| level.devices >= layout.devices())
                .map_or("machine", |level| level.name.as_str())
        ),
        Some((item, share)) => format!("{item} takes {:.1} % more of the step", 100.0 * share),
        None => "every item keeps its share".into(),
    }
}

fn as_json(
    task: &Task,
    best: &Choice,
    curves: &[(Scaling, Vec<ScalingPoint>)],
) -> serde_json::Value {
    let points = |points: &[ScalingPoint]| -> Vec<serde_json::Value> {
        let one = |point: &ScalingPoint| {
            json!({
                "devices": point.layout.devices(),
                "global_batch": point.layout.global_batch,
                "micro_batches": point.layout.micro_batches(),
                "step_s": point.step,
                "tokens_per_s": (point.layout.global_batch * point.layout.seq) as f64 / point.step,
                "efficiency": point.efficiency,
                "grew_most": point.bend.map(|(item, _)| item),
                "grew_by": point.bend.map(|(_, share)| share),
            })
        };
        points.iter().map(one).collect()
    };
    let curves: serde_json::Map<String, serde_json::Value> =
        curves.iter().map(|(kind, curve)| (name(*kind).to_owned(), json!(points(curve)))).collect();
    json!({ "model": task.name(), "layout": describe(best), "curves": curves })
}
