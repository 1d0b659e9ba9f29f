//! The screen of `glmctl top`.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::bar::NINE_LEVELS;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};

use super::history::{History, Sample};
use crate::commands::operate::{bytes, duration};

/// Rows of one plot with its frame.
const PLOT_ROWS: u16 = 6;

/// Draws what was seen.
pub fn draw(frame: &mut Frame<'_>, history: &History) {
    let [head, upper, lower, requests, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Length(PLOT_ROWS),
        Constraint::Length(PLOT_ROWS),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, head, history);
    draw_plots(frame, upper, lower, history);
    draw_requests(frame, requests, history);
    let foot_line = match &history.lost {
        Some(reason) => Line::styled(
            format!(" {}", reason.lines().next().unwrap_or_default()),
            Style::new().fg(Color::Red),
        ),
        None => Line::styled(" q quits", Style::new().add_modifier(Modifier::DIM)),
    };
    frame.render_widget(foot_line, foot);
}

/// Colour of a memory level; a name that is not known stays plain.
fn colour(level: &str) -> Color {
    match level {
        "green" => Color::Green,
        "yellow" => Color::Yellow,
        "orange" => Color::LightRed,
        "red" => Color::Red,
        "black" => Color::Magenta,
        _ => Color::Reset,
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, history: &History) {
    let status = &history.latest;
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let model = match &status.model {
        Some(m) => format!("{}  {} on {}", m.id, m.quantisation, m.backend),
        None => "no model is loaded".to_owned(),
    };
    let level = Span::styled(
        format!(" {} ", status.level),
        bold.fg(Color::Black).bg(colour(&status.level)),
    );
    let m = &status.memory;
    let lines = vec![
        Line::from(vec![
            Span::styled(format!(" glmd {}  ", status.version), bold),
            Span::raw(format!(
                "{model}  up {}  answered {}  refused {}  failed {}",
                duration(status.uptime_s),
                status.requests.answered,
                status.requests.refused,
                status.requests.failed
            )),
        ]),
        Line::from(vec![
            Span::raw(" "),
            level,
            Span::raw(format!(" {}", status.level_reason)),
        ]),
        Line::raw(format!(
            " weights {}  KV {} of {}  reserved {}  anonymous {}",
            bytes(m.weights),
            bytes(m.kv_used),
            bytes(m.kv_resident),
            bytes(m.reserved),
            bytes(m.anonymous)
        )),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_plots(frame: &mut Frame<'_>, upper: Rect, lower: Rect, history: &History) {
    let status = &history.latest;
    let thirds = [Constraint::Ratio(1, 3); 3];
    let [speed, batch, queue] = Layout::horizontal(thirds).areas(upper);
    let [headroom, temperature, level] = Layout::horizontal(thirds).areas(lower);
    // Tenths, since a sparkline takes whole numbers.
    plot(
        frame,
        speed,
        format!("{:.1} tokens/s", status.tokens_per_second),
        Color::Cyan,
        history,
        |s| tenths(s.speed),
    );
    let budget = &status.batch;
    plot(
        frame,
        batch,
        format!(
            "budget {} of {}  batch {}",
            budget.token_budget, budget.token_budget_max, budget.sequences
        ),
        Color::Blue,
        history,
        |s| s.budget,
    );
    plot(
        frame,
        queue,
        format!(
            "queue {} ({} tokens)",
            status.requests.queued, status.requests.queued_tokens
        ),
        Color::Yellow,
        history,
        |s| s.queue,
    );
    plot(
        frame,
        headroom,
        format!("headroom {}", bytes(status.memory.headroom)),
        colour(&status.level),
        history,
        |s| s.headroom,
    );
    let title = status
        .temperature_c
        .map_or_else(|| "no thermal zone".to_owned(), |c| format!("{c:.0} °C"));
    plot(frame, temperature, title, Color::LightRed, history, |s| {
        tenths(s.celsius.unwrap_or(0.0))
    });
    let r = &status.requests;
    let counts = Paragraph::new(vec![
        Line::raw(format!("running    {}", r.running)),
        Line::raw(format!("queued     {}", r.queued)),
        Line::raw(format!("cancelled  {}", r.cancelled)),
    ])
    .block(Block::bordered().title(" requests "));
    frame.render_widget(counts, level);
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what a plot can show"
)]
fn tenths(value: f64) -> u64 {
    (value * 10.0).clamp(0.0, 1e9) as u64
}

fn plot(
    frame: &mut Frame<'_>,
    area: Rect,
    title: String,
    colour: Color,
    history: &History,
    value: impl Fn(&Sample) -> u64,
) {
    let columns = usize::from(area.width.saturating_sub(2));
    let line = Sparkline::default()
        .block(Block::bordered().title(format!(" {title} ")))
        .data(history.curve(columns, value))
        .bar_set(NINE_LEVELS)
        .style(Style::new().fg(colour));
    frame.render_widget(line, area);
}

fn draw_requests(frame: &mut Frame<'_>, area: Rect, history: &History) {
    let header = Row::new(["id", "state", "priority", "prompt", "written", "age"])
        .style(Style::new().add_modifier(Modifier::BOLD));
    let rows = history.latest.running.iter().map(|request| {
        Row::new([
            Cell::new(request.id.as_str()),
            Cell::new(request.state.as_str()),
            Cell::new(format!("{:?}", request.priority).to_lowercase()),
            Cell::new(request.prompt_tokens.to_string()),
            Cell::new(request.completion_tokens.to_string()),
            Cell::new(duration(request.age_ms / 1000.0)),
        ])
    });
    let widths = [
        Constraint::Min(20),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(9),
    ];
    let table = Table::new(rows, widths)
        .header(header)
        .block(Block::bordered().title(" running and waiting "));
    frame.render_widget(table, area);
}

#[cfg(test)]
mod tests {
    use glm_wire::status::{ModelStatus, RunningRequest, Status};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn seen(history: &History, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal
            .draw(|frame| draw(frame, history))
            .expect("a drawing");
        terminal.backend().to_string()
    }

    fn busy() -> History {
        let mut history = History::default();
        for n in 0..40_u32 {
            let mut status = Status {
                version: "0.1.0".to_owned(),
                level: "yellow".to_owned(),
                level_reason: "headroom below 10 %".to_owned(),
                tokens_per_second: f64::from(n),
                temperature_c: Some(61.0),
                model: Some(ModelStatus {
                    id: "glm-mini".to_owned(),
                    backend: "ort-paged".to_owned(),
                    ..ModelStatus::default()
                }),
                ..Status::default()
            };
            status.memory.headroom = 512 << 20;
            status.running.push(RunningRequest {
                id: "infill-7".to_owned(),
                state: "decode".to_owned(),
                age_ms: 1200.0,
                ..RunningRequest::default()
            });
            history.push(status);
        }
        history
    }

    #[test]
    fn it_shows_what_matters() {
        let text = seen(&busy(), 120, 30);
        for expected in [
            "glm-mini",
            "ort-paged",
            "yellow",
            "headroom below 10 %",
            "39.0 tokens/s",
            "headroom 512 MiB",
            "61 °C",
            "infill-7",
            "decode",
        ] {
            assert!(text.contains(expected), "no `{expected}` in\n{text}");
        }
        assert!(text.contains('█'), "no plot in\n{text}");
    }

    #[test]
    fn it_fits_into_any_window_and_tells_of_a_lost_daemon() {
        let mut history = busy();
        for (width, height) in [(1, 1), (10, 3), (40, 12), (300, 80)] {
            seen(&history, width, height);
        }
        history.lost("cannot reach glmd".to_owned());
        assert!(seen(&history, 100, 30).contains("cannot reach glmd"));
    }
}
