//! What the model wrote, as an answer: text or a call of a tool.

use super::{ToolCall, call};
use crate::Family;

/// Reads an answer piece by piece.
///
/// A model may begin with white space, which is not said. Families with metadata name a tool in
/// their first line; text that could still become such a line is held back.
#[derive(Clone, Debug)]
pub struct Reply {
    family: Family,
    tools: Vec<String>,
    /// All that the model wrote.
    raw: String,
    /// How much of it was given out.
    sent: usize,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Beginning,
    Text,
    /// The body of a call starts here.
    Call {
        tool: String,
        body: usize,
    },
}

/// The end of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// Text that was held back and belongs to the answer.
    pub rest: String,
    /// What the assistant asks for.
    pub calls: Vec<ToolCall>,
}

impl Reply {
    pub(super) const fn new(family: Family, tools: Vec<String>) -> Self {
        Self {
            family,
            tools,
            raw: String::new(),
            sent: 0,
            state: State::Beginning,
        }
    }

    /// Adds text that the model wrote; returns what it says now.
    pub fn push(&mut self, text: &str) -> String {
        self.raw.push_str(text);
        if self.state == State::Beginning {
            self.begin();
        }
        match self.state {
            State::Text => {
                let said = self.raw[self.sent..].to_owned();
                self.sent = self.raw.len();
                said
            }
            State::Beginning | State::Call { .. } => String::new(),
        }
    }

    /// Ends the answer.
    #[must_use]
    pub fn finish(self) -> Said {
        let State::Call { tool, body } = &self.state else {
            return Said {
                rest: self.raw[self.sent..].trim_start().to_owned(),
                calls: Vec::new(),
            };
        };
        let body = &self.raw[*body..];
        let arguments = match self.family {
            Family::ChatGlm3 => call::from_python(body),
            _ => serde_json::from_str(body.trim())
                .ok()
                .filter(serde_json::Value::is_object),
        };
        match arguments {
            Some(arguments) => Said {
                rest: String::new(),
                calls: vec![ToolCall {
                    name: tool.clone(),
                    arguments,
                }],
            },
            // It began like a call and is none: it is what the model says.
            None => Said {
                rest: self.raw.trim_start().to_owned(),
                calls: Vec::new(),
            },
        }
    }

    fn begin(&mut self) {
        let said = self.raw.trim_start();
        let start = self.raw.len() - said.len();
        if said.is_empty() {
            return;
        }
        let text = |sent| (sent, State::Text);
        (self.sent, self.state) = match said.split_once('\n') {
            // A line feed in front means that there is no metadata.
            _ if self.raw[..start].contains('\n') => text(start),
            Some((line, _)) if self.tools.iter().any(|t| t == line.trim()) => (
                start,
                State::Call {
                    tool: line.trim().to_owned(),
                    body: start + line.len() + 1,
                },
            ),
            None if self.tools.iter().any(|t| t.starts_with(said.trim_end())) => return,
            _ => text(start),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(family: Family, tools: &[&str], text: &str, step: usize) -> (String, Said) {
        let mut reply = Reply::new(family, tools.iter().map(|t| (*t).to_owned()).collect());
        let chars: Vec<char> = text.chars().collect();
        let mut said = String::new();
        for piece in chars.chunks(step) {
            said.push_str(&reply.push(&piece.iter().collect::<String>()));
        }
        (said, reply.finish())
    }

    #[test]
    fn white_space_in_front_is_not_said() {
        for step in [1, 3, 100] {
            let (said, end) = read(Family::Glm4, &[], "\n  Good day.\n", step);
            assert_eq!((said.as_str(), end), ("Good day.\n", Said::default()));
        }
    }

    #[test]
    fn a_first_line_that_names_a_tool_is_a_call() {
        let call = ToolCall {
            name: "weather".into(),
            arguments: json!({"city": "Berlin"}),
        };
        let json = "weather\n{\"city\": \"Berlin\"}";
        let python = "weather\n ```python\ntool_call(city='Berlin')\n```";
        for step in [1, 2, 100] {
            for (family, text) in [
                (Family::Glm4, json),
                (Family::Glm40414, json),
                (Family::ChatGlm3, python),
            ] {
                let (said, end) = read(family, &["weather", "wind"], text, step);
                assert_eq!(said, "");
                assert_eq!(end.calls, std::slice::from_ref(&call));
            }
        }
    }

    #[test]
    fn what_only_looks_like_a_call_is_text() {
        for (tools, text) in [
            (&["weather"][..], "weather\nis fine"),
            (&["weather"][..], "weather"),
            (&["weather"][..], "weather is fine\n{}"),
            (&["weather"][..], "\nweather\n{}"),
            (&[][..], "weather\n{}"),
        ] {
            for step in [1, 100] {
                let (said, end) = read(Family::Glm4, tools, text, step);
                assert_eq!(said + &end.rest, text.trim_start(), "{text}");
                assert!(end.calls.is_empty());
            }
        }
    }
}
