//! `glmctl status`, `cancel`, `reload`, `unload`: look at the daemon and steer it.

use glm_wire::status::{Reloaded, Status};

use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::options::Output;
use crate::print;

/// `glmctl status`
pub async fn status(client: &Client, output: Output) -> Result<()> {
    let status: Status = client.get("/v1/status").await?;
    match output {
        Output::Json => print::json(&status),
        Output::Text => print::text(&describe(&status)),
    }
}

/// `glmctl reload`
pub async fn reload(client: &Client, output: Output) -> Result<()> {
    let reloaded: Reloaded = client.order("/admin/reload").await?;
    if output == Output::Json {
        return print::json(&reloaded);
    }
    let how = match reloaded.old_served {
        true => "the old model answered until this one had passed its test",
        false => "there was no memory for two models, so the old one went first",
    };
    print::line(&format!("{} is loaded; {how}", reloaded.model))
}

/// `glmctl cancel ID`
pub async fn cancel(client: &Client, id: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if id.is_empty() || !id.chars().all(fits) {
        return Err(Failure::Usage(format!(
            "`{id}` is no id of a request; `glmctl status` lists them"
        )));
    }
    client.delete(&format!("/v1/requests/{id}")).await
}

/// The daemon in aligned lines.
fn describe(status: &Status) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    rows.push((
        "glmd",
        format!("{}, up {}", status.version, duration(status.uptime_s)),
    ));
    match &status.model {
        Some(model) => {
            rows.push((
                "model",
                format!("{} ({}, {})", model.id, model.family, model.quantisation),
            ));
            rows.push(("backend", model.backend.clone()));
            rows.push(("provider", model.provider.clone()));
            rows.push(("", model.backend_reason.clone()));
            rows.push(("matmul", model.matmul.clone()));
            rows.push(("does", model.operations.join(", ")));
            rows.push(("tasks", model.tasks.join(", ")));
        }
        None => rows.push(("model", "none is loaded".to_owned())),
    }
    let reason = if status.level_reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", status.level_reason)
    };
    rows.push(("level", format!("{}{reason}", status.level)));
    let m = &status.memory;
    rows.push((
        "memory",
        format!(
            "headroom {}, reserved {}, KV {} of {} resident, weights {}, anonymous {}",
            bytes(m.headroom),
            bytes(m.reserved),
            bytes(m.kv_used),
            bytes(m.kv_resident),
            bytes(m.weights),
            bytes(m.anonymous)
        ),
    ));
    let b = &status.batch;
    rows.push((
        "step",
        format!(
            "{} tokens of {} sequences, at most {} of {} tokens",
            b.tokens, b.sequences, b.token_budget, b.token_budget_max
        ),
    ));
    let r = &status.requests;
    rows.push((
        "requests",
        format!(
            "{} running, {} queued ({} tokens); {} answered, {} refused, {} failed, {} cancelled",
            r.running, r.queued, r.queued_tokens, r.answered, r.refused, r.failed, r.cancelled
        ),
    ));
    rows.push(("speed", format!("{:.1} tokens/s", status.tokens_per_second)));
    if let Some(celsius) = status.temperature_c {
        rows.push(("hottest", format!("{celsius:.0} °C")));
    }
    for request in &status.running {
        rows.push((
            "",
            format!(
                "{}  {}  {} + {} tokens, {}",
                request.id,
                request.state,
                request.prompt_tokens,
                request.completion_tokens,
                duration(request.age_ms / 1000.0)
            ),
        ));
    }
    rows.into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name:<10}{value}\n"))
        .collect()
}

/// Bytes in the unit that people read.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Seconds in the unit that people read.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_people_read() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(15 << 20), "15.0 MiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(duration(4.25), "4.2 s");
        assert_eq!(duration(600.0), "10 min");
        assert_eq!(duration(90_000.0), "25.0 h");
    }

    #[test]
    fn whose_products_a_model_uses_is_a_line_of_its_own() {
        let with = |matmul: &str| {
            describe(&Status {
                model: Some(glm_wire::status::ModelStatus {
                    matmul: matmul.to_owned(),
                    ..Default::default()
                }),
                ..Status::default()
            })
        };
        let text = with("glmd, as model.matmul says");
        assert!(text.contains("matmul    glmd, as"), "{text}");
        assert!(!with("").contains("matmul"));
    }

    #[test]
    fn a_daemon_without_a_model_says_so() {
        let text = describe(&Status {
            level: "green".to_owned(),
            ..Status::default()
        });
        assert!(text.contains("none is loaded"), "{text}");
        assert!(!text.contains("backend"), "{text}");
    }
}
