//! Text that fits its columns.

use crate::terminal::{Paint, Style};

/// The narrowest bar that says something, and the widest that is needed.
const BAR_MIN: usize = 8;
const BAR_MAX: usize = 40;

/// A part of a line that is left out where the place is short: the higher its rank, the sooner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) rank: usize,
    pub(crate) text: String,
}

/// Columns of a text without escape sequences; all characters that trine prints itself take one.
pub(crate) fn of(text: &str) -> usize {
    text.chars().count()
}

/// A line of at most so many columns: the first field, a bar that is full to `part`, the others.
pub(crate) fn bar_line(fields: &[Field], part: f64, columns: usize, paint: Paint) -> String {
    let mut kept: Vec<&Field> = fields.iter().collect();
    let width = |kept: &[&Field]| kept.iter().map(|field| of(&field.text) + 3).sum::<usize>() - 3;
    while kept.len() > 1 && width(&kept) > columns {
        let last = kept.iter().map(|field| field.rank).max();
        kept.retain(|field| Some(field.rank) != last);
    }
    let room = columns.saturating_sub(width(&kept) + 3);
    let mut texts: Vec<String> = kept.iter().map(|field| field.text.clone()).collect();
    if room >= BAR_MIN {
        let bar = room.min(BAR_MAX);
        let full = ((part * bar as f64) as usize).min(bar);
        let (full, rest) = ("━".repeat(full), "─".repeat(bar - full));
        let bar = paint.text(Style::Training, &full) + &paint.text(Style::Faint, &rest);
        texts[0] = format!("{} {bar}", texts[0]);
    }
    texts.join(" · ")
}

/// Lines of at most so many columns, parted between words; what goes on is indented. A word that is
/// longer stays whole.
pub(crate) fn folded(text: &str, columns: usize) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        if of(line) <= columns {
            lines.push(line.to_owned());
            continue;
        }
        let mut now = String::new();
        for word in line.split(' ') {
            let separator = if now.is_empty() { "" } else { " " };
            if of(&now) + of(separator) + of(word) > columns && !now.trim().is_empty() {
                lines.push(std::mem::replace(&mut now, format!("  {word}")));
            } else {
                now.push_str(separator);
                now.push_str(word);
            }
        }
        lines.push(now);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::{Terminal, Volume};

    #[test]
    fn a_bar_line_is_never_wider_than_the_terminal() {
        let terminal = Terminal::new(None, Volume::Quiet, &|name| {
            (name == "NO_COLOR").then(|| "1".to_owned())
        });
        let texts = ["step 12/100", "loss 3.21", "val 3.40", "1,234 tokens/s", "ETA 1:00"];
        let ranks = [0, 1, 3, 4, 2];
        let fields: Vec<Field> = texts
            .iter()
            .zip(ranks)
            .map(|(text, rank)| Field { rank, text: (*text).to_owned() })
            .collect();
        for columns in 11..200 {
            let line = bar_line(&fields, 0.5, columns, terminal.errors);
            assert!(of(&line) <= columns, "{columns}: {line}");
            assert!(line.starts_with("step 12/100"), "{line}");
        }
        let narrow = bar_line(&fields, 0.5, 34, terminal.errors);
        assert_eq!(narrow, "step 12/100 · loss 3.21 · ETA 1:00");
        let wide = bar_line(&fields, 0.5, 80, terminal.errors);
        assert!(wide.starts_with("step 12/100 ━━━━") && wide.contains('─'), "{wide}");
        assert!(wide.ends_with("1,234 tokens/s · ETA 1:00"), "{wide}");
    }

    #[test]
    fn long_lines_are_folded_between_words() {
        assert_eq!(folded("one two three", 20), "one two three");
        assert_eq!(folded("one two three", 8), "one two\n  three");
        assert_eq!(
            folded("one\nincomprehensibilities two", 8),
            "one\nincomprehensibilities\n  two"
        );
    }
}
