//! `glmctl chat`: a conversation in the terminal.

use std::borrow::Cow;
use std::fs;
use std::io::{IsTerminal, stdin};
use std::path::PathBuf;

use clap::Args;
use glm_wire::chat::{ChatRequest, ChatResponse, Message};
use glm_wire::status::Status;
use reedline::{
    FileBackedHistory, Prompt, PromptEditMode, PromptHistorySearch, Reedline, Signal,
    ValidationResult, Validator,
};

use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::options::{Form, Output, Sampling, Scheduling, apply};
use crate::{interrupt, lines, print};

/// Talk with the model; only for models that chat
#[derive(Debug, Args)]
pub struct Chat {
    /// One message to answer instead of a conversation; `-` reads standard input
    message: Option<String>,
    /// Instructions that stand before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    scheduling: Scheduling,
}

/// Route of chat.
const ROUTE: &str = "/v1/chat/completions";
/// Lines of history that are kept.
const HISTORY: usize = 1000;
const HELP: &str = "\
/reset         forget the conversation
/system TEXT   set the instructions and forget the conversation
/exit          leave (also Ctrl-D)
A line that ends in \\ goes on in the next one. Ctrl-C stops an answer.";

impl Chat {
    /// Runs the command.
    pub async fn run(&self, client: &Client, output: Output) -> Result<()> {
        let mut request = ChatRequest {
            messages: self.system.iter().map(|text| say("system", text)).collect(),
            ..ChatRequest::default()
        };
        apply!(request, self.sampling, self.scheduling, self.form);
        let message = match self.message.as_deref() {
            None if stdin().is_terminal() => return self.converse(client, request).await,
            None => lines::stdin()?,
            given => lines::text(given)?,
        };
        request.messages.push(say("user", &message));
        if output == Output::Json {
            return print::json(&client.ask::<_, ChatResponse>(ROUTE, &request).await?);
        }
        answer(client, &request, &mut String::new()).await?;
        print::line("")
    }

    async fn converse(&self, client: &Client, mut request: ChatRequest) -> Result<()> {
        let status: Status = client.get("/v1/status").await?;
        let model = status.model.map(|model| model.id).unwrap_or_default();
        print::line(&format!("{model}: /help lists what can be typed here."))?;
        let mut editor = editor()?;
        loop {
            let typed = match editor.read_line(&Caret) {
                Ok(Signal::Success(typed)) => typed,
                Ok(Signal::CtrlC) => continue,
                Ok(Signal::CtrlD) => return Ok(()),
                Ok(_) => continue,
                Err(e) => return Err(Failure::io("the terminal", e)),
            };
            match typed.trim() {
                "" => continue,
                "/exit" | "/quit" => return Ok(()),
                "/help" => print::line(HELP)?,
                "/reset" => request.messages.retain(|m| m.role == "system"),
                order if order.starts_with("/system") => {
                    let text = order.trim_start_matches("/system").trim();
                    request.messages.clear();
                    if !text.is_empty() {
                        request.messages.push(say("system", text));
                    }
                }
                order if order.starts_with('/') && !order.contains(' ') => {
                    print::line(&format!("{order} is not known here; {HELP}"))?;
                }
                _ => turn(client, &mut request, &typed.replace("\\\n", "\n")).await?,
            }
        }
    }
}

/// One question and its answer, which Ctrl-C may end early.
async fn turn(client: &Client, request: &mut ChatRequest, text: &str) -> Result<()> {
    request.messages.push(say("user", text));
    let mut heard = String::new();
    let outcome = interrupt::or_done(answer(client, request, &mut heard)).await;
    print::line("")?;
    match outcome {
        // A refusal concerns this turn; the conversation may go on without it.
        Err(failure @ (Failure::Refused(_) | Failure::BadInput(_))) => {
            request.messages.pop();
            eprintln!("glmctl: {failure}");
            return Ok(());
        }
        Err(Failure::Interrupted) | Ok(()) => {}
        Err(failure) => return Err(failure),
    }
    request.messages.push(say("assistant", &heard));
    Ok(())
}

/// Prints an answer as it comes and keeps what was heard.
async fn answer(client: &Client, request: &ChatRequest, heard: &mut String) -> Result<()> {
    let request = ChatRequest {
        stream: Some(true),
        ..request.clone()
    };
    let mut events = client.stream(ROUTE, &request).await?;
    while let Some(chunk) = events.next::<ChatResponse>().await? {
        for delta in chunk.choices.into_iter().filter_map(|c| c.delta) {
            if let Some(text) = delta.content {
                print::text(&text)?;
                heard.push_str(&text);
            }
            for call in delta.tool_calls.into_iter().flatten() {
                print::line(&call.to_string())?;
            }
        }
    }
    Ok(())
}

fn say(role: &str, text: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: Some(text.to_owned()),
        ..Message::default()
    }
}

fn editor() -> Result<Reedline> {
    let editor = Reedline::create().with_validator(Box::new(Continues));
    let Some(path) = history_file() else {
        return Ok(editor);
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| Failure::io(folder.display().to_string(), e))?;
    }
    let history = FileBackedHistory::with_file(HISTORY, path.clone())
        .map_err(|e| Failure::io(path.display().to_string(), std::io::Error::other(e)))?;
    Ok(editor.with_history(Box::new(history)))
}

/// Where the XDG base directory specification keeps such files.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    Some(state.join("glmctl/history"))
}

/// A line that ends in a backslash is not the last one.
struct Continues;

impl Validator for Continues {
    fn validate(&self, line: &str) -> ValidationResult {
        if line.ends_with('\\') {
            ValidationResult::Incomplete
        } else {
            ValidationResult::Complete
        }
    }
}

/// What stands before the cursor.
struct Caret;

impl Prompt for Caret {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("> ")
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Borrowed("… ")
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        Cow::Owned(format!("(search: {}) ", search.term))
    }
}
