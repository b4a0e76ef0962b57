//! What is printed: text that may end in a closed pipe, tables, numbers for people.

use crate::failure::Failure;
use crate::terminal::{Paint, Style};
use indicatif::HumanCount;
use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use trine_mesh::plural;

/// Prints to standard output, for people: see [`printable`]. A reader that has seen enough (`| head`)
/// is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    write(&printable(text))
}

/// Prints what is for programs as it is; a terminal gets what is for people.
pub(crate) fn print_data(text: &str) -> Result<(), Failure> {
    if std::io::stdout().is_terminal() { print(text) } else { write(text) }
}

/// Names, texts and messages come from files and arguments, and a control character among them
/// could move the cursor, clear the screen or forge lines. They are shown as `\u{1b}`; lines and tabs
/// stay.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    // These reorder a line of text, so that it reads as another.
    let reorders = |c| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let is_shown = |c: char| matches!(c, '\n' | '\t') || !(c.is_control() || reorders(c));
    if text.chars().all(is_shown) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_shown(c) { shown.push(c) } else { shown.extend(c.escape_unicode()) }
    }
    Cow::Owned(shown)
}

/// The same for text in which [`Paint`](crate::terminal::Paint) has put colour, which stays.
pub(crate) fn print_painted(text: &str) -> Result<(), Failure> {
    write(&painted(text))
}

/// Text as [`printable`] shows it, with the colours of trine.
pub(crate) fn painted(text: &str) -> String {
    let mut pieces = text.split('\x1b');
    let mut shown = printable(pieces.next().unwrap_or_default()).into_owned();
    for piece in pieces {
        if Style::is_sequence(piece) {
            shown.push('\x1b');
        } else {
            shown.push_str("\\u{1b}");
        }
        shown.push_str(&printable(piece));
    }
    shown
}

fn write(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow::Error::from(error).context("cannot write to the standard output").into())
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints a line to standard error, for people; if that is closed, nobody can be told.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", printable(line));
}

/// The same with colours of trine.
pub(crate) fn complain_painted(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", painted(line));
}

/// On which side of a column its cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows in columns that are as wide as they must be.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    aligns: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table with these column heads.
    pub(crate) fn new(columns: &[(&str, Align); N]) -> Self {
        let rows = vec![columns.map(|(name, _)| name.to_owned())];
        Self { aligns: columns.map(|(_, align)| align), rows }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// The table as lines, without blanks at their ends.
    pub(crate) fn render(&self) -> String {
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..N).map(width).collect();
        let line = |row: &[String; N]| {
            let cells = row.iter().zip(&widths).zip(self.aligns);
            let cells: Vec<String> = cells
                .map(|((cell, &width), align)| match align {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                })
                .collect();
            cells.join("  ").trim_end().to_owned() + "\n"
        };
        self.rows.iter().map(line).collect()
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    HumanCount(number).to_string()
}

/// `1 rank`, `1,234 ranks`.
pub(crate) fn counted(number: usize, noun: &str) -> String {
    format!("{} {}", grouped(number as u64), plural(number as u64, noun))
}

/// Bytes in the unit that leaves at most four digits.
pub(crate) fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} PiB")
}

/// A unit in which a number has one to three digits before its point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Unit {
    size: f64,
    /// As it stands behind a number.
    short: &'static str,
    /// As the head of a column.
    pub(crate) long: &'static str,
}

impl Unit {
    /// The unit of seconds for a number and those that are like it.
    pub(crate) fn of_seconds(number: f64) -> Self {
        let (ms, us) = ((1e-3, "ms", "ms"), (1e-6, "µs", "µs"));
        Self::largest(number, &[(1.0, "s", "seconds"), ms, us])
    }

    /// The same of bytes, in powers of ten as devices are sold.
    pub(crate) fn of_bytes(number: f64) -> Self {
        Self::largest(number, &[(1e9, "GB", "GB"), (1e6, "MB", "MB"), (1e3, "kB", "kB")])
    }

    /// The same of operations a second, without one that is smaller than cores need.
    pub(crate) fn of_flops(number: f64) -> Self {
        Self::largest(number, &[(1e12, "TFLOP/s", "TFLOP/s"), (1e9, "GFLOP/s", "GFLOP/s")])
    }

    /// The same of things that are counted.
    pub(crate) fn of_count(number: f64) -> Self {
        let thousands = (1e3, "k", "thousand");
        let large = [(1e12, "T", "trillion"), (1e9, "B", "billion"), (1e6, "M", "million")];
        Self::largest(number, &[&large[..], &[thousands, (1.0, "", "")]].concat())
    }

    /// The same of dollars and hours, which are many.
    pub(crate) fn of_many(number: f64) -> Self {
        let units = [(1e6, "million", "million"), (1e3, "thousand", "thousand"), (1.0, "", "")];
        Self::largest(number, &units)
    }

    fn largest(number: f64, all: &[(f64, &'static str, &'static str)]) -> Self {
        let fits = |unit: &&(f64, &str, &str)| number.abs() >= unit.0;
        let found = all.iter().find(fits).or(all.last());
        let (size, short, long) = *found.expect("invariant: there are units");
        Self { size, short, long }
    }

    /// A number in this unit with so many digits behind its point, without the unit.
    pub(crate) fn number(self, number: f64, digits: usize) -> String {
        format!("{:.digits$}", number / self.size)
    }

    /// The same with the unit.
    pub(crate) fn show(self, number: f64, digits: usize) -> String {
        format!("{} {}", self.number(number, digits), self.short).trim_end().to_owned()
    }

    /// The same with its sign, also of what is more than nothing.
    pub(crate) fn signed(self, number: f64, digits: usize) -> String {
        format!("{:+.digits$} {}", number / self.size, self.short)
    }
}

/// Prints why a command did not succeed, once and without a backtrace, and gives the exit code.
pub(crate) fn fail(failure: &Failure, paint: Paint) -> ExitCode {
    if failure.is_said_here() {
        complain_painted(&format!("{} {failure}", paint.text(Style::Error, "error:")));
    }
    ExitCode::from(failure.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_bytes_scaled() {
        let groups = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (number, text) in groups {
            assert_eq!(grouped(number), text);
        }
        let bytes = [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 50, "5.0 PiB")];
        for (number, text) in bytes {
            assert_eq!(human_bytes(number), text);
        }
    }

    #[test]
    fn units_fit_the_number() {
        let seconds = |number| Unit::of_seconds(number).show(number, 2);
        let all = [12.3, 0.0123, 1.2e-5, 1e-9].map(seconds);
        assert_eq!(all, ["12.30 s", "12.30 ms", "12.00 µs", "0.00 µs"]);
        let bytes = |number| Unit::of_bytes(number).show(number, 1);
        assert_eq!([2.4e12, 6e8, 1e3].map(bytes), ["2400.0 GB", "600.0 MB", "1.0 kB"]);
        let count = |number| Unit::of_count(number).show(number, 1);
        assert_eq!([1.75e11, 3.4e6, 12.0].map(count), ["175.0 B", "3.4 M", "12.0"]);
        assert_eq!(Unit::of_many(2.5e4).show(2.5e4, 1), "25.0 thousand");
        assert_eq!(Unit::of_seconds(0.5).signed(0.001, 1), "+1.0 ms");
    }

    #[test]
    fn what_could_work_on_the_terminal_is_shown_instead() {
        let plain = "größe 世界\ta\nb ×";
        assert!(matches!(printable(plain), Cow::Borrowed(text) if text == plain));
        let cases = [
            ("\u{1b}[2Jx", "\\u{1b}[2Jx"),
            ("a\rb\u{7}", "a\\u{d}b\\u{7}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("run\u{202e}txt.exe", "run\\u{202e}txt.exe"),
        ];
        for (text, shown) in cases {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("a", Align::Left), ("number", Align::Right)]);
        table.row(["×".into(), "1".into()]);
        table.row(["long".into(), "23".into()]);
        assert_eq!(table.render(), "a     number\n×          1\nlong      23\n");
    }
}
