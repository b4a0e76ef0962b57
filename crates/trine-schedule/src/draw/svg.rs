//! The drawing for documents: one self-contained SVG.

use std::fmt::Write;

use super::{Paint, Piece, pieces, shortest_compute, time, title};
use crate::Timeline;

const LEFT: f64 = 72.0;
const TOP: f64 = 64.0;
const ROW: f64 = 26.0;
const LANE: f64 = 14.0;
const GAP: f64 = 6.0;
const WIDTH_MIN: f64 = 720.0;
const WIDTH_MAX: f64 = 2400.0;
/// Width of a character of the labels in the boxes.
const CHARACTER: f64 = 6.6;
const TICKS_MAX: f64 = 12.0;

/// What each paint looks like: fill, text, and its words in the legend.
fn style(paint: Paint) -> (&'static str, &'static str, &'static str) {
    match paint {
        Paint::Forward => ("#9ec9f5", "#10263d", "F forward"),
        Paint::BackwardInput => ("#1f6f43", "#ffffff", "B input gradient"),
        Paint::BackwardWeight => ("#8fd19e", "#0c2a17", "W weight gradient"),
        Paint::Communication => ("#b07cc6", "#ffffff", "communication"),
        Paint::Reduction => ("#e8a33d", "#3a2604", "G gradient reduction"),
    }
}

const PAINTS: [Paint; 5] = [
    Paint::Forward,
    Paint::BackwardInput,
    Paint::BackwardWeight,
    Paint::Communication,
    Paint::Reduction,
];

/// Draws a row a rank, time to the right, with title, legend and axis.
///
/// Boxes carry letter and micro-batch where they are wide enough, so that forward and backward are
/// told apart without colour; what is left blank is idle time.
pub fn svg(timeline: &Timeline<'_>) -> String {
    let rows: Vec<Vec<Piece>> =
        (0..timeline.schedule.ranks()).map(|rank| pieces(timeline, rank)).collect();
    let makespan = timeline.makespan.max(f64::MIN_POSITIVE);
    let longest = rows.iter().flatten().map(|piece| piece.label.len()).max().unwrap_or(0);
    let wanted = (longest as f64 + 2.0) * CHARACTER * makespan / shortest_compute(timeline);
    let width = wanted.clamp(WIDTH_MIN, WIDTH_MAX);
    let scale = width / makespan;

    let mut body = String::new();
    let mut y = TOP;
    for (rank, row) in rows.iter().enumerate() {
        y = draw_rank(&mut body, rank, row, y, width, scale);
    }
    draw_axis(&mut body, timeline.makespan, y, scale);
    let (total_width, total_height) = (LEFT + width + 24.0, y + 44.0);
    let title = escape(&title(timeline));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {total_width:.0} {total_height:.0}\" \
         width=\"{total_width:.0}\" height=\"{total_height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\">{title}</text>\n\
         {}{body}</svg>\n",
        legend(&rows)
    )
}

fn legend(rows: &[Vec<Piece>]) -> String {
    let mut text = String::new();
    let mut x = 12.0;
    let drawn = |paint: &Paint| rows.iter().flatten().any(|piece| piece.paint == *paint);
    let used = PAINTS.into_iter().filter(drawn).map(|paint| (style(paint).0, style(paint).2));
    for (fill, words) in used.chain([(IDLE, "idle")]) {
        let _ = writeln!(
            text,
            "<rect x=\"{x:.1}\" y=\"38\" width=\"12\" height=\"12\" fill=\"{fill}\" stroke=\"#666\" \
             stroke-width=\"0.5\"/><text x=\"{:.1}\" y=\"48\">{words}</text>",
            x + 17.0
        );
        x += 36.0 + CHARACTER * words.len() as f64;
    }
    text
}

const IDLE: &str = "#eeeeee";

/// Draws a rank and, if it has one, its lane; returns where the next begins.
fn draw_rank(body: &mut String, rank: usize, row: &[Piece], y: f64, width: f64, scale: f64) -> f64 {
    let has_lane = row.iter().any(|piece| piece.paint == Paint::Reduction);
    let _ = writeln!(
        body,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"12\">rank {rank}</text>\
         <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{ROW}\" fill=\"{IDLE}\"/>",
        LEFT - 8.0,
        y + ROW * 0.68,
    );
    for piece in row {
        let (top, height) = match piece.paint {
            Paint::Reduction => (y + ROW + 1.0, LANE),
            Paint::Forward
            | Paint::BackwardInput
            | Paint::BackwardWeight
            | Paint::Communication => (y, ROW),
        };
        draw_piece(body, piece, top, height, scale);
    }
    y + ROW + GAP + if has_lane { LANE + 1.0 } else { 0.0 }
}

fn draw_piece(body: &mut String, piece: &Piece, y: f64, height: f64, scale: f64) {
    let (fill, ink, words) = style(piece.paint);
    let (x, width) = (LEFT + piece.start * scale, (piece.end - piece.start) * scale);
    let _ = write!(
        body,
        "<rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{height}\" fill=\"{fill}\" \
         stroke=\"#ffffff\" stroke-width=\"0.8\"/>"
    );
    // The letter, then the number; the number alone where there is no room for both.
    let letter = words.chars().next().filter(|_| !piece.label.is_empty());
    let label: String = letter.into_iter().chain(piece.label.chars()).collect();
    let fits = |label: &&str| !label.is_empty() && label.len() as f64 * CHARACTER < width;
    if let Some(label) = [label.as_str(), piece.label.as_str()].iter().copied().find(|l| fits(l)) {
        let _ = write!(
            body,
            "<text x=\"{:.2}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\" fill=\"{ink}\">{label}</text>",
            x + width / 2.0,
            y + height / 2.0 + 3.6
        );
    }
    body.push('\n');
}

fn draw_axis(body: &mut String, makespan: f64, y: f64, scale: f64) {
    let step = tick_step(makespan);
    let end = LEFT + makespan * scale;
    let _ = writeln!(
        body,
        "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{end:.1}\" y2=\"{y:.1}\" stroke=\"#444\"/>"
    );
    let ticks = (makespan / step) as usize;
    for tick in 0..=ticks {
        let value = tick as f64 * step;
        let x = LEFT + value * scale;
        let _ = writeln!(
            body,
            "<line x1=\"{x:.1}\" y1=\"{y:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#444\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            y + 5.0,
            y + 18.0,
            time(value)
        );
    }
    let _ = writeln!(
        body,
        "<text x=\"{end:.1}\" y=\"{:.1}\" text-anchor=\"end\">time</text>",
        y + 34.0
    );
}

/// 1, 2 or 5 times a power of ten, so that there are at most twelve ticks.
fn tick_step(makespan: f64) -> f64 {
    if makespan <= 0.0 {
        return 1.0;
    }
    let smallest = makespan / TICKS_MAX;
    let power = 10_f64.powf(smallest.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    factors.iter().map(|f| f * power).find(|step| *step >= smallest).unwrap_or(10.0 * power)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
