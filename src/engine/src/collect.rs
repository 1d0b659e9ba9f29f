//! The whole answer at once, for callers that do not stream.

use crate::answer::{Event, Finished, Reason, Token};
use crate::error::{Error, Result};
use crate::mailbox::Ticket;

/// What was written into one blank.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filled {
    /// The text.
    pub text: String,
    /// Its tokens, with the one that ended it.
    pub tokens: Vec<Token>,
}

/// One of the `n` answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Blank by blank.
    pub blanks: Vec<Filled>,
    /// Why it ended.
    pub reason: Option<Reason>,
}

impl Choice {
    /// The text of all blanks, one after the other.
    #[must_use]
    pub fn text(&self) -> String {
        self.blanks.iter().map(|b| b.text.as_str()).collect()
    }

    /// The tokens of all blanks, one after the other.
    pub fn tokens(&self) -> impl Iterator<Item = &Token> {
        self.blanks.iter().flat_map(|b| &b.tokens)
    }
}

/// All that came out of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Collected {
    /// The answers.
    pub choices: Vec<Choice>,
    /// Log-probabilities of the prompt, when asked for.
    pub prompt: Vec<Token>,
    /// Cost, time and scores.
    pub finished: Finished,
}

impl Collected {
    /// Takes one event; `true` when it was the last.
    ///
    /// # Errors
    /// The error that the request ended with.
    pub fn push(&mut self, event: Event) -> Result<bool> {
        match event {
            Event::Started { .. } => {}
            Event::Prompt(tokens) => self.prompt = tokens,
            Event::Part(part) => {
                let blanks = &mut self.choice(part.choice).blanks;
                if blanks.len() <= part.blank {
                    blanks.resize(part.blank + 1, Filled::default());
                }
                blanks[part.blank].text.push_str(&part.text);
                blanks[part.blank].tokens.extend(part.tokens);
            }
            Event::ChoiceEnded { choice, reason } => self.choice(choice).reason = Some(reason),
            Event::Finished(finished) => {
                self.finished = *finished;
                return Ok(true);
            }
            Event::Failed(error) => return Err(error),
        }
        Ok(false)
    }

    fn choice(&mut self, index: usize) -> &mut Choice {
        if self.choices.len() <= index {
            self.choices.resize(index + 1, Choice::default());
        }
        &mut self.choices[index]
    }
}

/// The ticket ended without a last event, which the mailbox excludes.
const SILENT: Error = Error::Internal {
    reason: "the answer ended without a last event",
};

impl Ticket {
    /// Reads to the end.
    ///
    /// # Errors
    /// The error that the request ended with.
    pub async fn collect(mut self) -> Result<Collected> {
        let mut collected = Collected::default();
        while let Some(event) = self.next().await {
            if collected.push(event)? {
                return Ok(collected);
            }
        }
        Err(SILENT)
    }

    /// Reads to the end. For threads, not for async tasks.
    ///
    /// # Errors
    /// The error that the request ended with.
    pub fn collect_blocking(mut self) -> Result<Collected> {
        let mut collected = Collected::default();
        while let Some(event) = self.next_blocking() {
            if collected.push(event)? {
                return Ok(collected);
            }
        }
        Err(SILENT)
    }
}
