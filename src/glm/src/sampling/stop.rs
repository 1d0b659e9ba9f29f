//! Stop strings in a stream of text.
//!
//! The answer ends at the first place where any stop string is complete; if
//! several end there, the longest counts. Text that could still become a stop
//! string is held back, so no part of one is ever sent.

/// Text that may be sent, and whether the answer ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Text that belongs to the answer.
    pub text: String,
    /// Index of the stop string that was found.
    pub stop: Option<usize>,
}

/// Looks for stop strings across the borders of the pieces it is given.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    found: Option<usize>,
}

impl StopMatcher {
    /// Empty strings are ignored: they would end every answer before it begins.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        Self {
            stops: stops.to_vec(),
            held: String::new(),
            found: None,
        }
    }

    /// Adds text; returns what is certain not to be part of a stop string.
    pub fn push(&mut self, text: &str) -> Stopped {
        if self.found.is_some() {
            return Stopped {
                text: String::new(),
                stop: self.found,
            };
        }
        let scanned = self.held.len();
        self.held.push_str(text);
        let ends = self.held[scanned..]
            .char_indices()
            .map(|(at, c)| scanned + at + c.len_utf8());
        for end in ends {
            if let Some((index, start)) = self.ending_at(end) {
                self.held.truncate(start);
                self.found = Some(index);
                return Stopped {
                    text: std::mem::take(&mut self.held),
                    stop: self.found,
                };
            }
        }
        let keep = self.possible();
        let rest = self.held.split_off(keep);
        Stopped {
            text: std::mem::replace(&mut self.held, rest),
            stop: None,
        }
    }

    /// Ends the answer for another reason: what was held back belongs to it.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Longest stop string that ends at `end`, and where it starts.
    fn ending_at(&self, end: usize) -> Option<(usize, usize)> {
        let text = &self.held[..end];
        self.stops
            .iter()
            .enumerate()
            .filter(|(_, s)| !s.is_empty() && text.ends_with(s.as_str()))
            .map(|(index, s)| (index, end - s.len()))
            .min_by_key(|(_, start)| *start)
    }

    /// Where the longest ending begins that could still grow into a stop string.
    fn possible(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        self.held
            .char_indices()
            .map(|(at, _)| at)
            .filter(|at| *at >= from)
            .find(|at| {
                let ending = &self.held[*at..];
                self.stops.iter().any(|s| s.starts_with(ending))
            })
            .unwrap_or(self.held.len())
    }
}
