//! The memory of every stage as a picture.

use crate::{Layout, Memory, Planner};
use std::fmt::Write;

const LEFT: f64 = 72.0;
const TOP: f64 = 64.0;
const HEIGHT: f64 = 220.0;
const GAP: f64 = 3.0;
const BAR_MAX: f64 = 48.0;
const WIDTH: f64 = 900.0;

/// The items of a bar from the bottom: name, fill, bytes.
fn items(memory: &Memory) -> [(&'static str, &'static str, f64); 9] {
    [
        ("weights", "#1f4e8c", memory.weights),
        ("gradients", "#3f83c7", memory.gradients),
        ("master weights", "#7fb2e5", memory.master),
        ("moments", "#bcd8f2", memory.moments),
        ("activations", "#1f6f43", memory.activations),
        ("working set", "#8fd19e", memory.working_set),
        ("buffers", "#b07cc6", memory.buffers),
        ("reserve", "#d9d9d9", memory.reserve),
        ("context", "#a6a6a6", memory.context),
    ]
}

/// One bar a pipeline rank, its items stacked, with the device's memory as a line: a self-contained SVG.
pub fn memory_svg(planner: &Planner<'_>, layout: &Layout) -> String {
    let ranks = layout.degrees.pp;
    let stages: Vec<Memory> = (0..ranks).map(|rank| planner.rank_memory(layout, rank)).collect();
    let limit = planner.cluster.device.memory_bytes as f64;
    let most = stages.iter().map(Memory::total).fold(limit, f64::max) * 1.05;
    let bar = ((WIDTH - LEFT) / ranks as f64 - GAP).clamp(1.0, BAR_MAX);
    let scale = HEIGHT / most;
    let mut body = String::new();
    for (rank, memory) in stages.iter().enumerate() {
        let x = LEFT + rank as f64 * (bar + GAP);
        let mut y = TOP + HEIGHT;
        for (name, fill, bytes) in items(memory) {
            let height = bytes * scale;
            y -= height;
            let _ = writeln!(
                body,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{bar:.1}\" height=\"{height:.1}\" \
                 fill=\"{fill}\"><title>rank {rank}: {name} {:.2} GB</title></rect>",
                bytes / 1e9
            );
        }
        if rank % ranks.div_ceil(16) == 0 {
            let below = TOP + HEIGHT + 14.0;
            let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{below:.1}\">{rank}</text>");
        }
    }
    let y = TOP + HEIGHT - limit * scale;
    let right = LEFT + ranks as f64 * (bar + GAP);
    let _ = writeln!(
        body,
        "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right:.1}\" y2=\"{y:.1}\" stroke=\"#b00020\" \
         stroke-dasharray=\"5 3\"/><text x=\"8\" y=\"{:.1}\">{:.0} GB</text>",
        y + 4.0,
        limit / 1e9
    );
    let (width, height) = (right.max(820.0) + 24.0, TOP + HEIGHT + 28.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"24\" font-size=\"15\" font-weight=\"bold\">memory of each pipeline rank</text>\n\
         {}{body}</svg>\n",
        legend()
    )
}

fn legend() -> String {
    let mut text = String::new();
    let mut x = 12.0;
    for (name, fill, _) in items(&Memory::default()) {
        let _ = writeln!(
            text,
            "<rect x=\"{x:.1}\" y=\"38\" width=\"12\" height=\"12\" fill=\"{fill}\"/>\
             <text x=\"{:.1}\" y=\"48\">{name}</text>",
            x + 17.0
        );
        x += 32.0 + 6.4 * name.len() as f64;
    }
    text
}
