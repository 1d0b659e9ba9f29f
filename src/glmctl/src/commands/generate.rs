//! `glmctl generate`: continue a text.

use clap::Args;
use glm_wire::completions::{CompletionRequest, CompletionResponse};

use crate::client::Client;
use crate::failure::Result;
use crate::options::{Form, Output, Sampling, Scheduling, apply};
use crate::{lines, print};

/// Continue a text
#[derive(Debug, Args)]
pub struct Generate {
    /// The text to continue; `-` reads standard input
    text: Option<String>,
    /// Repeat the prompt before the answer
    #[arg(long)]
    echo: bool,
    /// Report the log-probability of each token and of this many alternatives (with --output json)
    #[arg(long, value_name = "N")]
    logprobs: Option<usize>,
    /// One prompt a line, from standard input unless a text is given
    #[arg(long)]
    lines: bool,
    #[command(flatten)]
    sampling: Sampling,
    #[command(flatten)]
    form: Form,
    #[command(flatten)]
    scheduling: Scheduling,
}

/// Route of completions.
const ROUTE: &str = "/v1/completions";

impl Generate {
    /// Runs the command.
    pub async fn run(&self, client: &Client, output: Output) -> Result<()> {
        let mut request = CompletionRequest {
            echo: self.echo.then_some(true),
            logprobs: self.logprobs,
            ..CompletionRequest::default()
        };
        apply!(request, self.sampling, self.scheduling, self.form);
        let base = &request;
        let ask = |prompt| async move {
            let request = CompletionRequest {
                prompt,
                ..base.clone()
            };
            client.ask::<_, CompletionResponse>(ROUTE, &request).await
        };
        let argument = self.text.as_deref();
        if self.lines {
            return lines::ask_each(argument, output, ask, |answer: &CompletionResponse| {
                let texts: Vec<&str> = answer.choices.iter().map(|c| c.text.as_str()).collect();
                print::one_line(&texts.join("\n"))
            })
            .await;
        }
        let prompt = lines::text(argument)?;
        if output == Output::Json {
            return print::json(&ask(prompt).await?);
        }
        if self.sampling.n.unwrap_or(1) > 1 {
            let answer = ask(prompt).await?;
            return answer
                .choices
                .iter()
                .try_for_each(|choice| print::line(&choice.text));
        }
        let request = CompletionRequest {
            prompt,
            stream: Some(true),
            ..request
        };
        let mut events = client.stream(ROUTE, &request).await?;
        while let Some(chunk) = events.next::<CompletionResponse>().await? {
            for choice in chunk.choices {
                print::text(&choice.text)?;
            }
        }
        print::line("")
    }
}
