//! Options that several commands share, and how they become fields of requests.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use glm_wire::Priority;
use glm_wire::format::{JsonSchema, ResponseFormat, Stop};

use crate::failure::{Failure, Result};

/// Socket of the packaged service.
const SYSTEM_SOCKET: &str = "/run/glmd/glmd.sock";

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: what glmd answered.
    Json,
}

/// Urgency of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Urgency {
    /// Work that nobody waits for.
    Low,
    /// The default.
    Normal,
    /// An alarm, a person in front of a screen.
    High,
}

impl From<Urgency> for Priority {
    fn from(urgency: Urgency) -> Self {
        match urgency {
            Urgency::Low => Self::Low,
            Urgency::Normal => Self::Normal,
            Urgency::High => Self::High,
        }
    }
}

/// When and in which order a request runs.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Scheduling")]
pub struct Scheduling {
    /// Milliseconds after which the answer is no longer wanted
    #[arg(long, value_name = "MS")]
    pub deadline_ms: Option<u64>,
    /// Who goes first when requests wait
    #[arg(long, value_enum)]
    pub priority: Option<Urgency>,
    /// Of waiting requests with the same key only the latest is answered
    #[arg(long, value_name = "KEY")]
    pub coalesce_key: Option<String>,
}

/// How text is written.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Sampling")]
pub struct Sampling {
    /// Most tokens to write (in one blank, for infill)
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// 0 always takes the likeliest token, 1 follows the model's probabilities
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Only the likeliest tokens with together at least this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Only this many of the likeliest tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Only tokens with at least this share of the likeliest token's probability
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Above 1 makes tokens that were seen less likely
    #[arg(long, value_name = "R")]
    pub repetition_penalty: Option<f32>,
    /// Same seed, same prompt, same model: same answer
    #[arg(long)]
    pub seed: Option<u64>,
    /// Answers wanted
    #[arg(short, value_name = "N")]
    pub n: Option<usize>,
    /// The answer ends before this text (may be repeated)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

/// What an answer must look like.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Form of the answer")]
#[group(multiple = false)]
pub struct Form {
    /// The answer is JSON that this schema accepts
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,
    /// The answer matches this regular expression
    #[arg(long, value_name = "PATTERN")]
    pub regex: Option<String>,
    /// The answer is one of these texts (repeat for each)
    #[arg(long, value_name = "TEXT")]
    pub choice: Vec<String>,
}

impl Form {
    /// The field `response_format` of a request.
    pub fn response_format(&self) -> Result<Option<ResponseFormat>> {
        if let Some(path) = &self.json_schema {
            let schema = read_json(path)?;
            return Ok(Some(ResponseFormat::JsonSchema {
                json_schema: JsonSchema {
                    name: None,
                    description: None,
                    strict: None,
                    schema,
                },
            }));
        }
        if let Some(pattern) = &self.regex {
            return Ok(Some(ResponseFormat::Regex {
                pattern: pattern.clone(),
            }));
        }
        Ok((!self.choice.is_empty()).then(|| ResponseFormat::Choice {
            choices: self.choice.clone(),
        }))
    }
}

impl Sampling {
    /// The field `stop` of a request.
    pub fn stop(&self) -> Option<Stop> {
        (!self.stop.is_empty()).then(|| Stop::Many(self.stop.clone()))
    }
}

/// Writes the options into the fields that every request for text has.
macro_rules! apply {
    ($request:expr, $sampling:expr, $scheduling:expr, $form:expr) => {{
        let (sampling, scheduling) = (&$sampling, &$scheduling);
        $request.max_tokens = sampling.max_tokens;
        $request.temperature = sampling.temperature;
        $request.top_p = sampling.top_p;
        $request.top_k = sampling.top_k;
        $request.min_p = sampling.min_p;
        $request.repetition_penalty = sampling.repetition_penalty;
        $request.seed = sampling.seed;
        $request.n = sampling.n;
        $request.stop = sampling.stop();
        $request.deadline_ms = scheduling.deadline_ms;
        $request.priority = scheduling.priority.map(Into::into);
        $request.coalesce_key.clone_from(&scheduling.coalesce_key);
        $request.response_format = $form.response_format()?;
    }};
}
pub(crate) use apply;

/// Largest schema that is read; the body of a request is no larger.
const MAX_SCHEMA_BYTES: u64 = glm_wire::MAX_BODY_BYTES as u64;

fn read_json(path: &Path) -> Result<serde_json::Value> {
    let name = path.display().to_string();
    let length = fs::metadata(path).map_err(|e| Failure::io(&name, e))?.len();
    if length > MAX_SCHEMA_BYTES {
        return Err(Failure::BadInput(format!(
            "{name} has {length} bytes, at most {MAX_SCHEMA_BYTES} are sent"
        )));
    }
    let bytes = fs::read(path).map_err(|e| Failure::io(&name, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Failure::BadInput(format!("{name}: {e}")))
}

/// What waits for the daemon: one thread, for a client does not compute.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::io("the run-time", e))
}

/// The socket to talk to: the one that was named, the system's, or the one
/// that `make run` puts into the user's run-time directory.
pub fn socket(named: Option<PathBuf>) -> PathBuf {
    if let Some(path) = named {
        return path;
    }
    let system = PathBuf::from(SYSTEM_SOCKET);
    if !system.exists()
        && let Some(run) = std::env::var_os("XDG_RUNTIME_DIR")
    {
        let user = PathBuf::from(run).join("glmd/glmd.sock");
        if user.exists() {
            return user;
        }
    }
    system
}
