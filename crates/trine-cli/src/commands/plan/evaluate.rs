//! `trine plan evaluate`: predicted against published.

use crate::failure::Failure;
use crate::output::{self, Align, Table, counted};
use crate::plan_args::EvaluateArgs;
use crate::written::{Kind, Output, given};
use anyhow::Context;
use serde_json::{Map, Value, json};
use std::path::Path;
use trine_plan::calibrate::fit_rows;
use trine_plan::evaluate::{Compared, Summary, World, summarize};
use trine_plan::published::{self, Outcome};
use trine_plan::{
    Cluster, Constants, Convention, Stack, clusters, evaluation_svg, flops, report, stacks,
};

/// Runs the command.
pub(crate) fn run(args: &EvaluateArgs) -> Result<(), Failure> {
    let inputs = given([args.runs.as_ref(), args.cluster_file.as_ref(), args.constants.as_ref()]);
    let drawn = args.svg.as_deref();
    let drawn = drawn.map(|path| Output { option: "--svg", path, kind: Kind::Svg });
    drawn.map_or(Ok(()), |drawn| drawn.check(&inputs))?;
    let more = args.cluster_file.as_deref().map(read).transpose()?;
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let clusters = clusters(&more).map_err(Failure::usage)?;
    let stacks = stacks().map_err(Failure::usage)?;
    let constants = match &args.constants {
        Some(path) => Constants::parse(&read(path)?).map_err(|error| at(path, &error))?,
        None => Constants::built_in().map_err(Failure::usage)?,
    };
    let rows = match &args.runs {
        Some(path) => {
            published::read(&read(path)?, &clusters, &stacks).map_err(|e| at(path, &e))?
        }
        None => published::built_in(&clusters, &stacks).map_err(Failure::usage)?,
    };
    let world = World { clusters: &clusters, stacks: &stacks, constants: &constants };
    let compared = world.compare(&rows).map_err(Failure::usage)?;
    let summary = summarize(&compared);
    // Rows of a user were in no fit.
    let fit = match &args.runs {
        Some(_) => vec![false; rows.len()],
        None => fit_rows(&rows, &clusters),
    };
    if let Some(drawn) = drawn {
        drawn.write(&evaluation_svg(&compared, &fit), &inputs)?;
    }
    if args.markdown {
        return output::print(&report::markdown(&compared, &fit));
    }
    if args.json {
        let json = as_json(&compared, &summary, args.by_row, &stacks, &clusters);
        return output::print(&format!("{json:#}\n"));
    }
    output::print(&(as_table(&compared, args.by_row) + &as_text(&summary)))
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::usage(format!("{}: {error}", path.display()))
}

fn read(path: &Path) -> Result<String, Failure> {
    let text = trine_files::read_text(path, trine_files::TEXT_BYTES_MAX);
    text.with_context(|| format!("cannot read {}", path.display())).map_err(Failure::Usage)
}

/// Rows that are planned, and then those that are not, each with the reason.
fn as_table(compared: &[Compared<'_>], by_row: bool) -> String {
    let mut table = Table::new(&[
        ("row", Align::Left),
        ("layout", Align::Left),
        ("s predicted", Align::Right),
        ("published", Align::Right),
        ("error", Align::Right),
        ("tokens/s/device predicted", Align::Right),
        ("published", Align::Right),
        ("GB predicted", Align::Right),
        ("published", Align::Right),
        ("error", Align::Right),
        ("fits predicted", Align::Right),
        ("published", Align::Right),
    ]);
    let mut reasons = String::new();
    for row in compared {
        match (&row.row.run, &row.estimate) {
            (Ok(_), Ok(_)) if by_row || row.row.time_s.is_some() || row.row.memory.is_some() => {
                table.row(cells(row));
            }
            (Ok(_), Ok(_)) => {}
            (_, Err(why)) | (Err(why), _) => {
                reasons += &format!("not planned: {}: {why}\n", row.row.row_id);
            }
        }
    }
    table.render() + "\n" + &reasons
}

fn cells(row: &Compared<'_>) -> [String; 12] {
    let (Ok(run), Ok(estimate)) = (&row.row.run, &row.estimate) else {
        return Default::default();
    };
    let (layout, d) = (&run.layout, &run.layout.degrees);
    let some = |value: Option<f64>, digits: usize| {
        value.map_or("-".into(), |value| format!("{value:.digits$}"))
    };
    let percent =
        |value: Option<f64>| value.map_or("-".into(), |value| format!("{:+.1} %", 100.0 * value));
    let rate = |seconds: f64| {
        (layout.global_batch * layout.seq) as f64 / seconds / layout.devices() as f64
    };
    let fits = |fits: bool| if fits { "yes" } else { "no" }.to_owned();
    let memory = row.memory_predicted().unwrap_or(estimate.memory.total());
    [
        row.row.row_id.clone(),
        format!(
            "tp {} pp {}x{} dp {} cp {}, {} x {}",
            d.tp,
            d.pp,
            layout.virtual_stages,
            d.dp,
            d.cp,
            layout.micro_batch,
            layout.micro_batches()
        ),
        some(Some(estimate.time.step), 3),
        some(row.row.time_s, 3),
        percent(row.time_error()),
        some(Some(rate(estimate.time.step)), 1),
        some(row.row.time_s.map(rate), 1),
        some(Some(memory / 1e9), 1),
        some(row.row.memory.map(|(bytes, _)| bytes / 1e9), 1),
        percent(row.memory_error()),
        fits(estimate.fits(0.0)),
        row.row.outcome.map_or("-".into(), |outcome| fits(outcome == Outcome::Fits)),
    ]
}

fn as_text(summary: &Summary) -> String {
    let share = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
    let mut text = format!(
        "rows {}\ntime_rows {}\ntime_median_abs_err {}\ntime_p90_abs_err {}\nmemory_rows {}\n\
         memory_median_abs_err {}\nmemory_p90_abs_err {}\noom_rows {}\noom_accuracy {}\n",
        summary.rows,
        summary.time_rows,
        share(summary.time_median_abs_err),
        share(summary.time_p90_abs_err),
        summary.memory_rows,
        share(summary.memory_median_abs_err),
        share(summary.memory_p90_abs_err),
        summary.oom_rows,
        share(summary.oom_accuracy),
    );
    for (name, groups) in [
        ("spearman_by_group", &summary.spearman_by_group),
        ("best_layout_regret_by_group", &summary.best_layout_regret_by_group),
    ] {
        text += &format!("{name}\n");
        for (group, rows, value) in groups {
            text += &format!("  {value:.4}  {group} ({})\n", counted(*rows, "row"));
        }
    }
    text
}

/// The summary's keys, and beside them the rows that cannot be planned and, if asked for, all rows.
fn as_json(
    compared: &[Compared<'_>],
    summary: &Summary,
    by_row: bool,
    stacks: &[Stack],
    clusters: &[Cluster],
) -> Value {
    let groups = |groups: &[(String, usize, f64)]| -> Map<String, Value> {
        groups.iter().map(|(group, _, value)| (group.clone(), json!(value))).collect()
    };
    let mut all = json!({
        "rows": summary.rows,
        "time_rows": summary.time_rows,
        "time_median_abs_err": summary.time_median_abs_err,
        "time_p90_abs_err": summary.time_p90_abs_err,
        "memory_rows": summary.memory_rows,
        "memory_median_abs_err": summary.memory_median_abs_err,
        "memory_p90_abs_err": summary.memory_p90_abs_err,
        "oom_rows": summary.oom_rows,
        "oom_accuracy": summary.oom_accuracy,
        "spearman_by_group": groups(&summary.spearman_by_group),
        "best_layout_regret_by_group": groups(&summary.best_layout_regret_by_group),
    });
    let reason = |row: &Compared<'_>| {
        let why = row.estimate.as_ref().err()?;
        Some(json!({"row_id": row.row.row_id, "reason": why}))
    };
    all["not_planned"] = compared.iter().filter_map(reason).collect();
    if by_row {
        all["by_row"] = compared.iter().filter_map(|row| row_json(row, stacks, clusters)).collect();
    }
    all
}

fn row_json(row: &Compared<'_>, stacks: &[Stack], clusters: &[Cluster]) -> Option<Value> {
    let (Ok(run), Ok(estimate)) = (&row.row.run, &row.estimate) else { return None };
    let (layout, time, memory) = (&run.layout, &estimate.time, &estimate.memory);
    let counted = flops(&run.model, layout, Convention::FullAttention);
    let devices = layout.devices() as f64;
    let per_device = |work: f64, seconds: f64| work / seconds / devices / 1e12;
    let tokens = (layout.global_batch * layout.seq) as f64;
    let peak = clusters[run.cluster].device.peak_bf16;
    Some(json!({
        "row_id": row.row.row_id,
        "cluster": clusters[run.cluster].name,
        "stack": stacks[run.stack].name,
        "assumed": run.assumed,
        "time_s": {"predicted": time.step, "published": row.row.time_s, "error": row.time_error()},
        "tokens_per_s_per_device": {
            "predicted": tokens / time.step / devices,
            "published": row.row.time_s.map(|seconds| tokens / seconds / devices),
        },
        "tflops_per_device": {
            "convention": "full attention",
            "model": per_device(counted.model, time.step),
            "hardware": per_device(counted.hardware, time.step),
            "mfu_bf16": counted.model / time.step / devices / peak,
            "hfu_bf16": counted.hardware / time.step / devices / peak,
        },
        "memory_bytes": {
            "predicted": row.memory_predicted(),
            "published": row.row.memory.map(|(bytes, _)| bytes),
            "error": row.memory_error(),
        },
        "fits": {
            "predicted": estimate.fits(0.0),
            "published": row.row.outcome.map(|outcome| outcome == Outcome::Fits),
        },
        "time_items_s": {
            "forward": time.forward, "backward": time.backward, "recompute": time.recompute,
            "tensor": time.tensor, "context": time.context, "messages": time.messages,
            "bubble": time.bubble, "data": time.data, "optimizer": time.optimizer,
            "straggling": time.straggling,
        },
        "memory_items_bytes": {
            "stage": estimate.stage,
            "weights": memory.weights, "gradients": memory.gradients, "master": memory.master,
            "moments": memory.moments, "activations": memory.activations,
            "working_set": memory.working_set, "buffers": memory.buffers,
            "reserve": memory.reserve, "context": memory.context,
        },
    }))
}
