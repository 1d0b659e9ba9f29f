//! Where the text and the blanks stand.

use crate::prompt::{Fit, Join, Prompt, Segment, Truncation, fill, segments};
use crate::tokenizer::{Part, Piece, Tokenizer};
use crate::{Error, Result};

/// The place of the text.
const PLACE: &str = "{text}";

/// First guess of how many characters of a long text fit, for each token.
const CHARS_PER_TOKEN: usize = 4;

/// A text around a text: `{text} It was [MASK].`
///
/// Only the pattern's own masks are blanks: what `{text}` stands for is text, whatever it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    before: String,
    after: String,
    trusted: bool,
}

impl Pattern {
    /// A pattern from a client: its masks are blanks, all else is text.
    ///
    /// # Errors
    /// [`Error::Input`] when it has not exactly one `{text}`.
    pub fn new(pattern: &str) -> Result<Self> {
        Self::parse(pattern, false)
    }

    /// A pattern that came with the model: the names of special tokens are those tokens.
    ///
    /// # Errors
    /// [`Error::Input`] when it has not exactly one `{text}`.
    pub fn trusted(pattern: &str) -> Result<Self> {
        Self::parse(pattern, true)
    }

    /// A question of a client behind the text; its masks are blanks, all else is text.
    #[must_use]
    pub fn behind(question: &str) -> Self {
        Self {
            before: String::new(),
            after: question.trim_end().to_owned(),
            trusted: false,
        }
    }

    fn parse(pattern: &str, trusted: bool) -> Result<Self> {
        match pattern.split(PLACE).collect::<Vec<_>>()[..] {
            [before, after] => Ok(Self {
                before: before.to_owned(),
                after: after.trim_end().to_owned(),
                trusted,
            }),
            _ => Err(Error::Input {
                field: "pattern",
                reason: format!("must have {PLACE} exactly once, such as `{PLACE} It was [MASK].`"),
            }),
        }
    }

    /// The pattern with the text in it, as pieces.
    ///
    /// # Errors
    /// [`Error::Input`] for a mask that the vocabulary does not have.
    pub fn pieces(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<Piece>> {
        let own = |part| match self.trusted {
            true => Part::Trusted(part),
            false => Part::Masks(part),
        };
        tokenizer.encode_parts(&[
            own(&self.before),
            Part::Plain(text.trim()),
            own(&self.after),
        ])
    }

    /// A prompt of the pattern with the text in it, arranged by `build`. When it does not fit and may
    /// be cut, the text loses its end, as in GLM's evaluation code, and the pattern nothing.
    ///
    /// # Errors
    /// Those of `build`; [`Error::TooLong`] when even the pattern alone does not fit.
    pub fn prompt(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        fit: Fit,
        build: impl Fn(&[Piece], Fit) -> Result<Prompt>,
    ) -> Result<Prompt> {
        let text = text.trim();
        let whole = Fit {
            truncation: Truncation::Refuse,
            ..fit
        };
        let attempt = |end: usize| build(&self.pieces(tokenizer, &text[..end])?, whole);
        // A prefix that cannot fit is not worth encoding whole first.
        let mut fits = 0;
        let mut end = border(text, (fit.limit.max(1)).saturating_mul(CHARS_PER_TOKEN));
        let too_long = loop {
            match attempt(end) {
                Ok(prompt) if end == text.len() => return Ok(prompt),
                Ok(_) => {
                    fits = end;
                    end = border(text, end.saturating_mul(2).max(CHARS_PER_TOKEN));
                }
                Err(error @ Error::TooLong { .. }) => break error,
                Err(error) => return Err(error),
            }
        };
        if fit.truncation == Truncation::Refuse {
            return Err(too_long);
        }
        let mut prompt = attempt(fits)?;
        let mut beyond = end;
        while let middle = border(text, fits + (beyond - fits) / 2)
            && middle > fits
        {
            match attempt(middle) {
                Ok(longer) => (prompt, fits) = (longer, middle),
                Err(Error::TooLong { .. }) => beyond = middle,
                Err(error) => return Err(error),
            }
        }
        prompt.removed = tokenizer.encode_plain(&text[fits..])?.len();
        Ok(prompt)
    }

    /// The pattern with the text and the answers in it.
    #[must_use]
    pub fn fill<'a>(
        &self,
        text: &str,
        answers: impl IntoIterator<Item = (&'a str, Join)>,
    ) -> String {
        let mut answers = answers.into_iter();
        // Not `answers` by value: the second part takes what the first left.
        let mut out = fill(&self.before, answers.by_ref().take(blanks(&self.before)));
        out.push_str(text.trim());
        let after = fill(&self.after, answers);
        let doubled = out.ends_with(char::is_whitespace);
        out.push_str(match doubled {
            true => after.trim_start_matches(' '),
            false => &after,
        });
        out
    }

    /// Whether white space stands before the last blank; it belongs to the word in the blank.
    pub(super) fn blank_follows_space(&self) -> bool {
        let mut before = false;
        let mut follows = false;
        for part in [&self.before, &self.after] {
            for segment in segments(part) {
                match segment {
                    Segment::Text(text) => before = text.ends_with(char::is_whitespace),
                    Segment::Mask(_) => follows = before,
                }
            }
            // The text that comes between is trimmed.
            before = false;
        }
        follows
    }
}

fn blanks(text: &str) -> usize {
    segments(text)
        .iter()
        .filter(|s| matches!(s, Segment::Mask(_)))
        .count()
}

/// The last border between characters at or before `at`.
fn border(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_one_place() {
        for bad in [
            "It was [MASK].",
            "{text} {text} [MASK]",
            "{Text} [MASK]",
            "",
        ] {
            let error = Pattern::new(bad).unwrap_err();
            assert!(error.to_string().starts_with("`pattern`"), "{error}");
        }
        assert!(Pattern::new(r#"{"a": "{text}"} [MASK]"#).is_ok());
    }

    #[test]
    fn a_space_before_the_blank_belongs_to_the_word() {
        for (pattern, expected) in [
            ("{text} It was [MASK].", true),
            ("{text} It was[MASK].", false),
            ("{text}[MASK]", false),
            ("[MASK]: {text}", false),
            ("Topic [MASK]: {text}", true),
        ] {
            let pattern = Pattern::new(pattern).unwrap();
            assert_eq!(pattern.blank_follows_space(), expected, "{pattern:?}");
        }
    }

    #[test]
    fn markers_in_the_text_are_text() {
        let pattern = Pattern::new("[MASK]: {text} is [MASK].").unwrap();
        let answers = [("note", Join::Word), (" good", Join::Word)];
        assert_eq!(
            pattern.fill("the [MASK] word", answers),
            "note: the [MASK] word is good."
        );
    }
}
