//! A picture of a run: memory, budget and queue over time, on the colours of the levels.

use std::fmt::Write;

use glm_engine::units::Level;

use crate::STEP_TOKENS;
use crate::run::{Run, Sample};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 64.0;
const HEIGHT: f64 = 150.0;
const GAP: f64 = 44.0;

/// One of the pictures that stand above each other.
struct Panel {
    title: &'static str,
    unit: &'static str,
    low: f64,
    high: f64,
    step: f64,
    colour: &'static str,
    value: fn(&Sample) -> f64,
}

const PANELS: [Panel; 3] = [
    Panel {
        title: "Memory left above the floor",
        unit: "MiB",
        low: -300.0,
        high: 400.0,
        step: 100.0,
        colour: "#1b5fa8",
        value: |s| s.headroom.0 as f64 / 1_048_576.0,
    },
    Panel {
        title: "Token budget of a step",
        unit: "tokens",
        low: 0.0,
        high: STEP_TOKENS as f64,
        step: 64.0,
        colour: "#7a3e9d",
        value: |s| s.budget as f64,
    },
    Panel {
        title: "Requests that wait",
        unit: "requests",
        low: 0.0,
        high: 20.0,
        step: 5.0,
        colour: "#b0472b",
        value: |s| s.queue as f64,
    },
];

const LEVELS: [(Level, &str); 5] = [
    (Level::Green, "#e6f4e3"),
    (Level::Yellow, "#fff3bf"),
    (Level::Orange, "#ffdcab"),
    (Level::Red, "#f8b9ad"),
    (Level::Black, "#a9a9b2"),
];

pub fn svg(run: &Run) -> String {
    let end = run
        .samples
        .last()
        .map_or(1.0, |s| s.at.as_secs_f64())
        .ceil();
    let x = |seconds: f64| LEFT + seconds / end * (WIDTH - LEFT - RIGHT);
    let height = TOP + (HEIGHT + GAP) * PANELS.len() as f64 + 8.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"16\">A box of 1 GiB that others want too \
         (simulated)</text>\n"
    );
    legend(&mut svg);
    for (index, panel) in PANELS.iter().enumerate() {
        let top = TOP + (HEIGHT + GAP) * index as f64;
        draw(&mut svg, run, panel, top, end, &x);
    }
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String) {
    for (index, (level, colour)) in LEVELS.iter().enumerate() {
        let at = LEFT + 470.0 + 80.0 * index as f64;
        let name = level.name();
        let _ = writeln!(
            svg,
            "<rect x=\"{at}\" y=\"11\" width=\"14\" height=\"14\" fill=\"{colour}\" \
             stroke=\"#888\"/><text x=\"{:.0}\" y=\"22\">{name}</text>",
            at + 19.0
        );
    }
}

fn draw(svg: &mut String, run: &Run, panel: &Panel, top: f64, end: f64, x: &impl Fn(f64) -> f64) {
    let y = |value: f64| {
        let share = (value.clamp(panel.low, panel.high) - panel.low) / (panel.high - panel.low);
        top + HEIGHT * (1.0 - share)
    };
    let seconds = |s: &Sample| s.at.as_secs_f64();
    // The levels behind everything.
    for group in run.samples.chunk_by(|a, b| a.level == b.level) {
        let from = x(seconds(&group[0]));
        let next = run
            .samples
            .iter()
            .find(|s| s.at > group[group.len() - 1].at);
        let to = x(next.map_or(end, seconds));
        let colour = LEVELS.iter().find(|(level, _)| *level == group[0].level);
        let colour = colour.map_or("white", |(_, colour)| colour);
        let _ = writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{HEIGHT}\" \
             fill=\"{colour}\"/>",
            to - from
        );
    }
    let mut mark = panel.low;
    while mark <= panel.high {
        let at = y(mark);
        let strong = if mark == 0.0 && panel.low < 0.0 {
            "#444"
        } else {
            "#0002"
        };
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"{strong}\"/>\
             <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0
        );
        mark += panel.step;
    }
    let mut mark = 0.0;
    while mark <= end {
        let at = x(mark);
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mark} s</text>",
            top + HEIGHT + 16.0
        );
        mark += 20.0;
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-weight=\"bold\">{}, {}</text>",
        top - 8.0,
        panel.title,
        panel.unit
    );
    let points: Vec<String> = run
        .samples
        .iter()
        .map(|s| format!("{:.1} {:.1}", x(seconds(s)), y((panel.value)(s))))
        .collect();
    let _ = writeln!(
        svg,
        "<path d=\"M{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"/>",
        points.join("L"),
        panel.colour
    );
}
