//! Predicted against published, and scaling curves, as self-contained pictures.

use crate::evaluate::Compared;
use crate::{Scaling, ScalingPoint};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Colours that stay apart for most eyes (Okabe & Ito), and grey.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c8c8c"];
const SIDE: f64 = 420.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 48.0;
/// A line of the legend.
const LINE: f64 = 17.0;
/// Least distance of two numbers along the lower axis: the width of five digits.
const TICK_APART: f64 = 36.0;

/// One series: its name, and (x, y) of its points.
type Series = (String, Vec<(f64, f64)>);

/// A square with two axes.
struct Panel {
    /// Where its left edge stands.
    left: f64,
    title: &'static str,
    labels: [&'static str; 2],
    /// Least and most of x and y.
    range: [(f64, f64); 2],
    /// Whether an axis is logarithmic.
    logarithmic: [bool; 2],
    /// Values that the lower axis is to name; empty for round ones.
    named: Vec<f64>,
}

impl Panel {
    /// Pixels of a value on an axis.
    fn at(&self, axis: usize, value: f64) -> f64 {
        let scale = |value: f64| if self.logarithmic[axis] { value.ln() } else { value };
        let (low, high) = self.range[axis];
        let share = (scale(value) - scale(low)) / (scale(high) - scale(low));
        if axis == 0 { self.left + share * SIDE } else { TOP + (1.0 - share) * SIDE }
    }

    /// The values that the lower axis names, as many as stand beside each other without touching.
    fn ticks_below(&self) -> Vec<f64> {
        if self.named.is_empty() {
            return self.ticks(0);
        }
        let mut apart: Vec<f64> = Vec::new();
        for &value in &self.named {
            let x = self.at(0, value);
            if apart.last().is_none_or(|last| x - self.at(0, *last) >= TICK_APART) {
                apart.push(value);
            }
        }
        apart
    }

    /// Powers of ten within a logarithmic axis, and steps between them where there are few; tenths of another.
    fn ticks(&self, axis: usize) -> Vec<f64> {
        let (low, high) = self.range[axis];
        let all: Vec<f64> = if self.logarithmic[axis] {
            let steps: &[f64] =
                if high > 100.0 * low { &[1.0] } else { &[1.0, 2.0, 3.0, 5.0, 7.0] };
            (-9..15).flat_map(|power| steps.iter().map(move |s| s * 10f64.powi(power))).collect()
        } else {
            (0..=10).map(|part| f64::from(part) / 10.0).collect()
        };
        all.into_iter().filter(|value| (low..=high).contains(value)).collect()
    }

    /// Frame, grid, numbers, title and labels.
    fn frame(&self) -> String {
        let mut text = format!(
            "<rect x=\"{:.1}\" y=\"{TOP:.1}\" width=\"{SIDE:.1}\" height=\"{SIDE:.1}\" fill=\"none\" stroke=\"#444444\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"15\" font-weight=\"bold\">{}</text>\n",
            self.left,
            self.left,
            TOP - 14.0,
            self.title
        );
        let bottom = TOP + SIDE;
        for value in self.ticks_below() {
            let x = self.at(0, value);
            let _ = writeln!(
                text,
                "<line x1=\"{x:.1}\" y1=\"{TOP:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"#e4e4e4\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 16.0,
                number(value)
            );
        }
        for value in self.ticks(1) {
            let y = self.at(1, value);
            let right = self.left + SIDE;
            let _ = writeln!(
                text,
                "<line x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" stroke=\"#e4e4e4\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                self.left,
                self.left - 6.0,
                y + 4.0,
                number(value)
            );
        }
        let (x, y) = (self.left + SIDE / 2.0, TOP + SIDE / 2.0);
        let across = self.left - 44.0;
        let _ = writeln!(
            text,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{across:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" \
             transform=\"rotate(-90 {across:.1} {y:.1})\">{}</text>",
            bottom + 34.0,
            self.labels[0],
            self.labels[1]
        );
        text
    }

    fn points(&self, style: usize, values: &[(f64, f64)]) -> String {
        let dot = |&(x, y): &(f64, f64)| mark(style, self.at(0, x), self.at(1, y), 2.6, 0.6);
        values.iter().map(dot).collect()
    }

    fn line(&self, colour: &str, dashes: &str, values: &[(f64, f64)]) -> String {
        let at: Vec<String> = values
            .iter()
            .map(|&(x, y)| format!("{:.1},{:.1}", self.at(0, x), self.at(1, y)))
            .collect();
        format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" \
             stroke-dasharray=\"{dashes}\"/>\n",
            at.join(" ")
        )
    }
}

/// A mark of a series: colours first, then shapes (dot, diamond, triangle), so that no two of 24 series look alike.
fn mark(style: usize, x: f64, y: f64, size: f64, opacity: f64) -> String {
    let fill = COLOURS[style % COLOURS.len()];
    let corners: &[(f64, f64)] = match style / COLOURS.len() % 3 {
        0 => {
            return format!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{size}\" fill=\"{fill}\" fill-opacity=\"{opacity}\"/>\n"
            );
        }
        1 => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
        _ => &[(0.0, -1.3), (1.3, 1.0), (-1.3, 1.0)],
    };
    let at = |(dx, dy): &(f64, f64)| format!("{:.1},{:.1}", x + dx * size, y + dy * size);
    let at: Vec<String> = corners.iter().map(at).collect();
    format!("<polygon points=\"{}\" fill=\"{fill}\" fill-opacity=\"{opacity}\"/>\n", at.join(" "))
}

/// Numbers of axes: as short as can be.
fn number(value: f64) -> String {
    let (plain, power) = (format!("{value}"), format!("{value:e}"));
    if value >= 1e4 && power.len() < plain.len() { power } else { plain }
}

/// Time and memory of every row, predicted over published, on logarithmic axes, a mark a source; the lines are equality
/// and 15 % off. `fit` says which rows the constants were fitted on: they are left out.
pub fn evaluation_svg(compared: &[Compared<'_>], fit: &[bool]) -> String {
    let outside = || compared.iter().zip(fit).filter(|(_, fit)| !**fit).map(|(row, _)| row);
    let time =
        series(outside(), |row| Some((row.row.time_s?, row.estimate.as_ref().ok()?.time.step)));
    let memory = series(outside(), |row| {
        row.memory_error()?;
        Some((row.row.memory?.0 / 1e9, row.memory_predicted()? / 1e9))
    });
    let names: Vec<&String> = time.iter().chain(&memory).map(|(name, _)| name).collect();
    let mut order: Vec<&String> = Vec::new();
    for name in names {
        if !order.contains(&name) {
            order.push(name);
        }
    }
    let style = |name: &String| order.iter().position(|other| *other == name).unwrap_or(0);
    let mut body = String::new();
    for (left, title, labels, all) in [
        (LEFT, "seconds of a step", ["published, s", "predicted, s"], &time),
        (2.0 * LEFT + SIDE, "memory of a device", ["published, GB", "predicted, GB"], &memory),
    ] {
        let range = decades(all);
        let (range, logarithmic) = ([range; 2], [true, true]);
        let panel = Panel { left, title, labels, range, logarithmic, named: vec![] };
        body += &panel.frame();
        let (low, high) = panel.range[0];
        body += &panel.line("#444444", "", &[(low, low), (high, high)]);
        for off in [1.15, 1.0 / 1.15] {
            let ends = [
                (low.max(low / off), (low * off).max(low)),
                (high.min(high / off), (high * off).min(high)),
            ];
            body += &panel.line("#999999", "4 3", &ends);
        }
        for (name, values) in all {
            body += &panel.points(style(name), values);
        }
    }
    let legend: Vec<String> = order.iter().map(|name| (*name).clone()).collect();
    picture(&body, 2.0 * (LEFT + SIDE), &legend)
}

/// Efficiency of weak and strong scaling over devices. The lower axis names the sizes of the curves.
pub fn scaling_svg(curves: &[(Scaling, Vec<ScalingPoint>)]) -> String {
    let points = |points: &[ScalingPoint]| -> Vec<(f64, f64)> {
        points.iter().map(|point| (point.layout.devices() as f64, point.efficiency)).collect()
    };
    let all: Vec<(f64, f64)> = curves.iter().flat_map(|(_, curve)| points(curve)).collect();
    let ends = all.iter().fold((f64::INFINITY, 0.0_f64), |(low, high), &(devices, _)| {
        (low.min(devices), high.max(devices))
    });
    let mut named: Vec<f64> = all.iter().map(|&(devices, _)| devices).collect();
    named.sort_by(f64::total_cmp);
    named.dedup();
    let panel = Panel {
        left: LEFT,
        title: "weak and strong scaling",
        labels: ["devices", "tokens per second and device, relative to the smallest"],
        range: [(ends.0 / 1.1, ends.1 * 1.1), (0.0, 1.05)],
        logarithmic: [true, false],
        named,
    };
    let mut body = panel.frame();
    let mut legend = Vec::new();
    for (style, (scaling, curve)) in curves.iter().enumerate() {
        let colour = COLOURS[style % COLOURS.len()];
        let name = match scaling {
            Scaling::Weak => "weak: every replica keeps its batch",
            Scaling::Strong => "strong: the replicas share one batch",
        };
        let values = points(curve);
        body += &panel.line(colour, "", &values);
        body += &panel.points(style, &values);
        legend.push(name.to_owned());
    }
    picture(&body, LEFT + SIDE, &legend)
}

/// Points by source, the largest first. Long names are cut at their first bracket.
fn series<'a>(
    rows: impl Iterator<Item = &'a Compared<'a>>,
    value: impl Fn(&Compared<'_>) -> Option<(f64, f64)>,
) -> Vec<Series> {
    let mut all: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows {
        if let Some(point) = value(row) {
            let name = row.row.source.split(" (").next().unwrap_or("").to_owned();
            all.entry(name).or_default().push(point);
        }
    }
    let mut all: Vec<Series> = all.into_iter().collect();
    all.sort_by_key(|(_, points)| std::cmp::Reverse(points.len()));
    all
}

/// The range of all values, a little wider.
fn decades(all: &[Series]) -> (f64, f64) {
    let values = all.iter().flat_map(|(_, points)| points).flat_map(|&(x, y)| [x, y]);
    let (low, high) =
        values.fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
    if low.is_finite() { (low / 1.3, high * 1.3) } else { (0.1, 10.0) }
}

/// The drawing with its legend below, in columns, on white.
fn picture(body: &str, width: f64, legend: &[String]) -> String {
    let columns = (width / 310.0).floor().max(1.0) as usize;
    let rows = legend.len().div_ceil(columns);
    let below = TOP + SIDE + 58.0;
    let mut text = String::new();
    for (index, name) in legend.iter().enumerate() {
        let x = LEFT + (index / rows) as f64 * 300.0;
        let y = below + (index % rows) as f64 * LINE;
        let name = name.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            text,
            "{}<text x=\"{:.1}\" y=\"{y:.1}\">{name}</text>",
            mark(index, x, y - 4.0, 4.0, 1.0),
            x + 10.0
        );
    }
    let (width, height) = (width + 24.0, below + rows as f64 * LINE);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}{text}</svg>\n"
    )
}
