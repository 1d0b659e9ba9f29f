//! The screen as a picture: an SVG of the very cells that a terminal would show.

use std::fmt::Write;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier, Style};

use super::history::History;
use super::screen;

/// Cells of the picture: a wide terminal, and few empty rows.
const COLUMNS: u16 = 112;
const ROWS: u16 = 26;
/// Size of a cell, in SVG units: the usual shape of monospaced letters.
const WIDTH: u32 = 8;
const HEIGHT: u32 = 17;
/// Where letters stand in their cell.
const BASELINE: u32 = 13;
/// Colours of an unstyled cell.
const INK: &str = "#d0d0d0";
const PAPER: &str = "#16181d";

/// Draws the screen.
///
/// # Errors
/// When the screen cannot be drawn.
pub fn svg(history: &History) -> Result<String, std::io::Error> {
    let mut terminal = Terminal::new(TestBackend::new(COLUMNS, ROWS)).map_err(unlikely)?;
    terminal
        .draw(|frame| screen::draw(frame, history))
        .map_err(unlikely)?;
    Ok(picture(terminal.backend().buffer()))
}

fn unlikely(error: impl std::fmt::Display) -> std::io::Error {
    std::io::Error::other(error.to_string())
}

fn picture(buffer: &Buffer) -> String {
    let (columns, rows) = (buffer.area.width, buffer.area.height);
    let (width, height) = (u32::from(columns) * WIDTH, u32::from(rows) * HEIGHT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"DejaVu Sans Mono,Menlo,Consolas,monospace\" font-size=\"13\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"{PAPER}\"/>\n"
    );
    for y in 0..rows {
        let mut x = 0;
        while x < columns {
            let style = buffer[(x, y)].style();
            let mut text = String::new();
            let from = x;
            while x < columns && buffer[(x, y)].style() == style {
                text.push_str(buffer[(x, y)].symbol());
                x += 1;
            }
            run(&mut svg, &text, style, from, x - from, y);
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Cells of one style that stand side by side.
fn run(svg: &mut String, text: &str, style: Style, x: u16, cells: u16, y: u16) {
    let (left, top) = (u32::from(x) * WIDTH, u32::from(y) * HEIGHT);
    let width = u32::from(cells) * WIDTH;
    // Writing to a string does not fail.
    if let Some(paper) = style.bg.and_then(hex) {
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{HEIGHT}\" fill=\"{paper}\"/>"
        );
    }
    if text.trim().is_empty() {
        return;
    }
    let ink = style.fg.and_then(hex).unwrap_or(INK);
    let is = |modifier| style.add_modifier.contains(modifier);
    let weight = if is(Modifier::BOLD) {
        " font-weight=\"bold\""
    } else {
        ""
    };
    let dim = if is(Modifier::DIM) {
        " opacity=\"0.6\""
    } else {
        ""
    };
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"{}\" textLength=\"{width}\" xml:space=\"preserve\" fill=\"{ink}\"{weight}{dim}>{}</text>",
        top + BASELINE,
        escape(text)
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The colours that the screen uses; `None` for the terminal's own.
const fn hex(colour: Color) -> Option<&'static str> {
    match colour {
        Color::Black => Some("#101010"),
        Color::Red => Some("#e05561"),
        Color::LightRed => Some("#f08d49"),
        Color::Green => Some("#8cc265"),
        Color::Yellow => Some("#d8b34a"),
        Color::Blue => Some("#4aa5f0"),
        Color::Magenta => Some("#c162de"),
        Color::Cyan => Some("#42b3c2"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use glm_wire::status::Status;

    use super::*;

    #[test]
    fn the_picture_has_what_the_screen_has() {
        let mut history = History::default();
        for n in 0..20_u32 {
            history.push(Status {
                version: "0.1.0".to_owned(),
                level: "green".to_owned(),
                level_reason: "a < b & c".to_owned(),
                tokens_per_second: f64::from(n),
                ..Status::default()
            });
        }
        let svg = svg(&history).expect("a picture");
        for expected in [
            "glmd 0.1.0",
            "a &lt; b &amp; c",
            "19.0 tokens/s",
            "█",
            "#42b3c2",
        ] {
            assert!(svg.contains(expected), "no `{expected}` in\n{svg}");
        }
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }
}
