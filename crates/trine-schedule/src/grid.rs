//! The step × rank grid of error messages, offending cells marked.

use std::fmt::Write;

use crate::Schedule;

const ROWS_MAX: usize = 32;
const RANKS_MAX: usize = 8;
const ROWS_AROUND: usize = 3;

/// The part of the lists around the marked cells `(rank, position)`: a row a position, a column a
/// rank. Everything from the top if nothing is marked.
pub(crate) fn grid(schedule: &Schedule, marks: &[(usize, usize)]) -> String {
    let (rank, position) = marks.first().copied().unwrap_or((0, 0));
    let first_rank =
        rank.saturating_sub(RANKS_MAX / 2).min(schedule.ranks().saturating_sub(RANKS_MAX));
    let ranks = first_rank..schedule.ranks().min(first_rank + RANKS_MAX);
    // The other marks are shown too, as far as the window allows.
    let positions = marks.iter().filter(|mark| ranks.contains(&mark.0)).map(|mark| mark.1);
    let near = |other: &usize| other.abs_diff(position) < ROWS_MAX / 2;
    let low = positions.clone().filter(near).min().unwrap_or(position);
    let high = positions.filter(near).max().unwrap_or(position);
    let first_row = low.saturating_sub(ROWS_AROUND);
    let longest = ranks.clone().map(|rank| schedule.actions[rank].len()).max().unwrap_or(0);
    let rows = first_row..longest.min(high.saturating_add(ROWS_AROUND + 1)).max(first_row);

    let cell = |rank: usize, row: usize| match schedule.actions[rank].get(row) {
        Some(action) if marks.contains(&(rank, row)) => format!("{action} <--"),
        Some(action) => action.to_string(),
        None => String::new(),
    };
    let mut text = String::from("step |");
    let widths: Vec<usize> = ranks
        .clone()
        .map(|rank| rows.clone().map(|row| cell(rank, row).len()).max().unwrap_or(0).max(8))
        .collect();
    for (rank, width) in ranks.clone().zip(&widths) {
        write_cell(&mut text, &format!("rank {rank}"), *width);
    }
    for row in rows {
        text.truncate(text.trim_end().len());
        let _ = write!(text, "\n{row:>4} |");
        for (rank, width) in ranks.clone().zip(&widths) {
            write_cell(&mut text, &cell(rank, row), *width);
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn write_cell(text: &mut String, cell: &str, width: usize) {
    let _ = write!(text, " {cell:<width$}");
}
