//! Losses over steps, drawn in characters.

use super::history::History;
use crate::terminal::{Paint, Style};

/// Columns of the numbers beside the drawing.
const LABEL: usize = 8;

/// What stands in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cell {
    Empty,
    Training,
    Validation,
}

/// The curve in so many columns and rows, with a line of names and one of steps; none without two
/// steps.
pub(super) fn draw(history: &History, columns: usize, rows: usize, paint: Paint) -> Option<String> {
    let points: Vec<(u64, f64)> = history.lines.iter().map(|line| (line.step, line.loss)).collect();
    let (first, last) = (points.first()?.0, points.last()?.0);
    let columns = columns.saturating_sub(LABEL + 2).max(10);
    if first >= last {
        return None;
    }
    let column = |step: u64| {
        ((step - first) as f64 / (last - first) as f64 * (columns - 1) as f64).round() as usize
    };
    let training = means(&points, columns, column);
    let validation: Vec<(u64, f64)> =
        history.evaluations().filter(|(step, loss)| *step >= first && loss.is_finite()).collect();
    let validation = means(&validation, columns, column);
    training.iter().flatten().next()?;
    let values = || training.iter().chain(&validation).flatten().copied();
    let (low, high) =
        values().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    let span = (high - low).max(f64::MIN_POSITIVE);
    let mut cells = vec![vec![Cell::Empty; columns]; rows];
    for (losses, cell) in [(training, Cell::Training), (validation, Cell::Validation)] {
        for (column, loss) in losses.into_iter().enumerate() {
            let Some(loss) = loss else { continue };
            cells[((high - loss) / span * (rows - 1) as f64).round() as usize][column] = cell;
        }
    }
    let mut text = heading(paint);
    for (index, row) in cells.iter().enumerate() {
        let value = high - span * index as f64 / (rows - 1) as f64;
        let is_labelled = index % 4 == 0 || index == rows - 1;
        let label = if is_labelled {
            format!("{value:>LABEL$.3} ┤")
        } else {
            format!("{:>LABEL$} │", "")
        };
        let drawn: String = row.iter().map(|cell| shown(*cell, paint)).collect();
        text.push_str(&format!("{label}{}\n", drawn.trim_end()));
    }
    text.push_str(&format!("{:>LABEL$} └{}\n", "", "─".repeat(columns)));
    let (first, last) = (first.to_string(), last.to_string());
    let gap = columns.saturating_sub(first.len());
    text.push_str(&format!("{:>LABEL$}  {first}{last:>gap$}\n", "step"));
    Some(text)
}

fn heading(paint: Paint) -> String {
    format!(
        "loss in nats per token: {} training, {} validation\n",
        shown(Cell::Training, paint),
        shown(Cell::Validation, paint)
    )
}

fn shown(cell: Cell, paint: Paint) -> String {
    match cell {
        Cell::Empty => " ".into(),
        Cell::Training => paint.text(Style::Training, "·"),
        Cell::Validation => paint.text(Style::Validation, "o"),
    }
}

/// The mean of the finite losses in each column.
fn means(points: &[(u64, f64)], columns: usize, column: impl Fn(u64) -> usize) -> Vec<Option<f64>> {
    let mut sums = vec![(0.0, 0_u32); columns];
    for (step, loss) in points.iter().filter(|(_, loss)| loss.is_finite()) {
        let (sum, count) = &mut sums[column(*step)];
        *sum += loss;
        *count += 1;
    }
    let mean = |(sum, count): (f64, u32)| (count > 0).then(|| sum / f64::from(count));
    sums.into_iter().map(mean).collect()
}
