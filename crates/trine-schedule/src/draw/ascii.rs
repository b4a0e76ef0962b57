//! The drawing for terminals.

use super::{Paint, Piece, pieces, shortest_compute, time, title};
use crate::Timeline;

const COLUMNS_MIN: usize = 20;

/// Draws a row a rank, time to the right, rows at most `columns_max` wide (but 20 for the work).
///
/// A piece of work is a letter (F, B, W), the micro-batch, and as many of `-`, `=`, `~` as its time
/// takes; idle time is dots. Posted reductions have a row of their own below their rank. Where a
/// piece is too short for its number, only the letter is left, and a line says so.
pub fn ascii(timeline: &Timeline<'_>, columns_max: usize) -> String {
    let ranks = timeline.schedule.ranks();
    let label_width = format!("rank {}", ranks.saturating_sub(1)).len().max("reduce".len());
    let columns_max = columns_max.saturating_sub(label_width + 3).max(COLUMNS_MIN);
    let rows: Vec<Vec<Piece>> = (0..ranks).map(|rank| pieces(timeline, rank)).collect();
    let scale = scale(timeline, &rows, columns_max);
    let columns = ((timeline.makespan * scale).round() as usize).clamp(1, columns_max);

    let mut text = format!("{}\n", title(timeline));
    let mut is_cut = false;
    for (rank, row) in rows.iter().enumerate() {
        let is_reduction = |piece: &&Piece| piece.paint == Paint::Reduction;
        let own = row.iter().filter(|piece| !is_reduction(piece));
        let line = draw_row(own, scale, columns, &mut is_cut);
        text.push_str(&format!("{:<label_width$} |{line}|\n", format!("rank {rank}")));
        if row.iter().any(|piece| is_reduction(&piece)) {
            let line = draw_row(row.iter().filter(is_reduction), scale, columns, &mut is_cut);
            text.push_str(&format!("{:>label_width$} |{line}|\n", "reduce"));
        }
    }
    text.push_str(&format!("{:<label_width$}  {}\n", "time", axis(timeline.makespan, columns)));
    text.push_str(&legend(&rows, is_cut));
    text
}

/// Columns for a unit of time: as many as the numbers need, if they fit.
fn scale(timeline: &Timeline<'_>, rows: &[Vec<Piece>], columns_max: usize) -> f64 {
    let longest = rows.iter().flatten().map(|piece| piece.label.len()).max().unwrap_or(0);
    let wanted = (longest + 2) as f64 / shortest_compute(timeline);
    wanted.min(columns_max as f64 / timeline.makespan.max(f64::MIN_POSITIVE))
}

fn draw_row<'p>(
    row: impl Iterator<Item = &'p Piece>,
    scale: f64,
    columns: usize,
    is_cut: &mut bool,
) -> String {
    let mut line = vec!['.'; columns];
    for piece in row {
        let column = |time: f64| ((time * scale).round() as usize).min(columns);
        let (start, end) = (column(piece.start), column(piece.end));
        let (letter, fill) = match piece.paint {
            Paint::Forward => ('F', '-'),
            Paint::BackwardInput => ('B', '='),
            Paint::BackwardWeight => ('W', '~'),
            Paint::Communication => ('x', 'x'),
            Paint::Reduction => ('G', '+'),
        };
        let fits = piece.label.len() < end - start;
        *is_cut |= !fits;
        let label = if fits { piece.label.as_str() } else { "" };
        let mut drawn = std::iter::once(letter).chain(label.chars());
        line[start..end].fill_with(|| drawn.next().unwrap_or(fill));
    }
    line.into_iter().collect()
}

/// Times below the drawing: the start of each label stands at its time. They are whole numbers, if a unit of time is
/// wide enough for one.
fn axis(makespan: f64, columns: usize) -> String {
    let labels = if makespan > 0.0 { (columns / 16).clamp(1, 8) } else { 1 };
    let each = makespan / labels as f64;
    let each = if each >= 1.0 { each.ceil() } else { each };
    let end = time(makespan);
    let mut axis = time(0.0);
    for index in 1..labels {
        let value = each * index as f64;
        let (column, label) = ((value / makespan * columns as f64).round() as usize, time(value));
        if column + label.len() + end.len() >= columns {
            break;
        }
        axis.push_str(&format!("{:<width$}{label}", "", width = column - axis.len()));
    }
    let gap = columns.saturating_sub(axis.len() + end.len());
    if gap > 0 {
        axis.push_str(&format!("{:gap$}{end}", ""));
    }
    axis
}

fn legend(rows: &[Vec<Piece>], is_cut: bool) -> String {
    let parts = [
        (Paint::Forward, "F- forward"),
        (Paint::BackwardInput, "B= input gradient"),
        (Paint::BackwardWeight, "W~ weight gradient"),
        (Paint::Communication, "x communication"),
        (Paint::Reduction, "G+ gradient reduction"),
    ];
    let drawn = |paint: Paint| rows.iter().flatten().any(|piece| piece.paint == paint);
    let mut words: Vec<&str> =
        parts.iter().filter(|part| drawn(part.0)).map(|part| part.1).collect();
    words.push(". idle");
    let note =
        if is_cut { "too narrow for some numbers: draw more columns (--columns)\n" } else { "" };
    format!("{}; numbers are micro-batches\n{note}", words.join(", "))
}
