//! Predicted against published as Markdown: what `docs/planning-rows.md` is written from.

use crate::evaluate::{Compared, noise_floor, quantile};
use crate::published::{Outcome, PublishedRun};
use std::collections::BTreeMap;

/// The tables: errors by source, sweeps by sheet, the noise floor, and every row.
pub fn markdown(compared: &[Compared<'_>], fit: &[bool]) -> String {
    let mut text = String::from("## By source\n\n");
    text += &by_source(compared, fit);
    text += "\n## Fits or not, by sheet\n\n";
    text += &by_sheet(compared, fit);
    let rows: Vec<PublishedRun> = compared.iter().map(|row| row.row.clone()).collect();
    let floor = noise_floor(&rows);
    text += &format!(
        "\n## Noise floor\n\n{} rows differ from another in nothing but their result. The best single prediction for each \
         such set, its median, is off by {} % (median) and {} % (90th percentile).\n",
        floor.len(),
        percent(quantile(&floor, 0.5)),
        percent(quantile(&floor, 0.9)),
    );
    text += "\n## Every row\n\n`*` marks rows of the fit. Seconds of a step; GB = 10⁹ bytes of one device, as the \
             source counts them.\n\n";
    text + &every_row(compared, fit)
}

fn by_source(compared: &[Compared<'_>], fit: &[bool]) -> String {
    let mut sources: BTreeMap<&str, Vec<(&Compared<'_>, bool)>> = BTreeMap::new();
    for (row, fit) in compared.iter().zip(fit) {
        sources.entry(&row.row.source).or_default().push((row, *fit));
    }
    let mut text = String::from(
        "| source | rows outside the fit with a time | median error | 90th percentile | with memory | median error | 90th percentile |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let mut line = |name: &str, rows: &[&Compared<'_>]| {
        let time: Vec<f64> = rows.iter().filter_map(|row| row.time_error()).map(f64::abs).collect();
        let memory: Vec<f64> =
            rows.iter().filter_map(|row| row.memory_error()).map(f64::abs).collect();
        if time.len() + memory.len() > 0 {
            text += &format!(
                "| {name} | {} | {} % | {} % | {} | {} % | {} % |\n",
                time.len(),
                percent(quantile(&time, 0.5)),
                percent(quantile(&time, 0.9)),
                memory.len(),
                percent(quantile(&memory, 0.5)),
                percent(quantile(&memory, 0.9)),
            );
        }
    };
    let outside = |rows: &[(&'_ Compared<'_>, bool)]| -> Vec<usize> {
        (0..rows.len()).filter(|index| !rows[*index].1).collect()
    };
    for (name, rows) in &sources {
        let chosen: Vec<&Compared<'_>> = outside(rows).into_iter().map(|i| rows[i].0).collect();
        line(name, &chosen);
    }
    let all: Vec<&Compared<'_>> =
        compared.iter().zip(fit).filter(|(_, fit)| !**fit).map(|(row, _)| row).collect();
    line("**all**", &all);
    text
}

fn by_sheet(compared: &[Compared<'_>], fit: &[bool]) -> String {
    let mut sheets: BTreeMap<&str, [(usize, usize); 2]> = BTreeMap::new();
    for (row, fit) in compared.iter().zip(fit) {
        let Some((right, outcome)) = row.fits_rightly().zip(row.row.outcome) else { continue };
        if *fit {
            continue;
        }
        let counts = sheets.entry(&row.row.sheet).or_default();
        let (of, all) = &mut counts[usize::from(outcome == Outcome::OutOfMemory)];
        *of += usize::from(right);
        *all += 1;
    }
    let mut text = String::from(
        "| sheet (rows outside the fit) | fitted: right | out of memory: right | accuracy | balanced |\n|---|---|---|---|---|\n",
    );
    for (sheet, [fitted, full]) in sheets {
        let share = |(right, of): (usize, usize)| (of > 0).then(|| right as f64 / of as f64);
        let all = share((fitted.0 + full.0, fitted.1 + full.1));
        let balanced = share(fitted).zip(share(full)).map(|(a, b)| (a + b) / 2.0);
        text += &format!(
            "| {sheet} | {} of {} | {} of {} | {} % | {} % |\n",
            fitted.0,
            fitted.1,
            full.0,
            full.1,
            percent(all),
            percent(balanced)
        );
    }
    text
}

fn every_row(compared: &[Compared<'_>], fit: &[bool]) -> String {
    let mut text = String::from(
        "| row | tp·pp·v·dp·cp, micro-batch × m | predicted s | published s | error | predicted GB | published GB | error | fits: predicted, published |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (row, fit) in compared.iter().zip(fit) {
        let id = format!("{}{}", row.row.row_id, if *fit { " *" } else { "" });
        let (Ok(run), Ok(estimate)) = (&row.row.run, &row.estimate) else {
            let why = row.estimate.as_ref().err().map_or("", String::as_str);
            text += &format!("| {id} | not planned: {why} | | | | | | | |\n");
            continue;
        };
        let (l, d) = (&run.layout, &run.layout.degrees);
        let number = |value: Option<f64>, digits: usize| {
            value.map_or(String::new(), |value| format!("{value:.digits$}"))
        };
        let error = |value: Option<f64>| {
            value.map_or(String::new(), |value| format!("{:+.1} %", 100.0 * value))
        };
        let gb = |bytes: Option<f64>| number(bytes.map(|bytes| bytes / 1e9), 1);
        let fits = |fits: bool| if fits { "yes" } else { "no" };
        let outcome = row.row.outcome.map_or(String::new(), |outcome| {
            format!("{}, {}", fits(estimate.fits(0.0)), fits(outcome == Outcome::Fits))
        });
        text += &format!(
            "| {id} | {}·{}·{}·{}·{}, {} × {} | {} | {} | {} | {} | {} | {} | {outcome} |\n",
            d.tp,
            d.pp,
            l.virtual_stages,
            d.dp,
            d.cp,
            l.micro_batch,
            l.micro_batches(),
            number(Some(estimate.time.step), 2),
            number(row.row.time_s, 2),
            error(row.time_error()),
            gb(row.memory_predicted().or(Some(estimate.memory.total()))),
            gb(row.row.memory.map(|(bytes, _)| bytes)),
            error(row.memory_error()),
        );
    }
    text
}

fn percent(share: Option<f64>) -> String {
    share.map_or("–".into(), |share| format!("{:.1}", 100.0 * share))
}
