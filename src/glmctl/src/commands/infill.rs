//! `glmctl infill`: fill the blanks of a text.

use clap::Args;
use glm_wire::infill::{Blank, InfillRequest, InfillResponse};

use crate::client::Client;
use crate::failure::Result;
use crate::options::{Form, Output, Sampling, Scheduling, apply};
use crate::{lines, print};

/// Fill the blanks of a text
#[derive(Debug, Args)]
pub struct Infill {
    /// Text with [MASK] (a few words), [sMASK] (a sentence) or [gMASK] (the rest); `-` reads standard input
    text: Option<String>,
    /// A named task of the model: its pattern wraps the text and only what is filled in is printed
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
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

impl Infill {
    /// Runs the command.
    pub async fn run(&self, client: &Client, output: Output) -> Result<()> {
        let mut request = InfillRequest {
            task: self.task.clone(),
            ..InfillRequest::default()
        };
        apply!(request, self.sampling, self.scheduling, self.form);
        let request = &request;
        let ask = |text| async move {
            let request = InfillRequest {
                text,
                ..request.clone()
            };
            client
                .ask::<_, InfillResponse>("/v1/infill", &request)
                .await
        };
        let argument = self.text.as_deref();
        if self.lines {
            let show = |answer: &InfillResponse| {
                print::one_line(&self.shown(&answer.text, &answer.blanks))
            };
            return lines::ask_each(argument, output, ask, show).await;
        }
        let answer = ask(lines::text(argument)?).await?;
        match output {
            Output::Json => print::json(&answer),
            Output::Text if answer.choices.is_empty() => {
                print::line(&self.shown(&answer.text, &answer.blanks))
            }
            Output::Text => answer
                .choices
                .iter()
                .try_for_each(|choice| print::line(&self.shown(&choice.text, &choice.blanks))),
        }
    }

    /// What people want to see: the whole text, or the answer of a task.
    fn shown(&self, text: &str, blanks: &[Blank]) -> String {
        if self.task.is_none() {
            return text.to_owned();
        }
        let filled: Vec<&str> = blanks.iter().map(|blank| blank.text.trim()).collect();
        filled.join("\n")
    }
}
