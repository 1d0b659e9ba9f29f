//! How the model's positions are shared between what it reads and what it writes.

use glm::prompt::{Fit, Truncation};
use glm::{Error, Result};

/// What the answers may take, before the prompt is known.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    /// Positions of the model.
    room: usize,
    /// Most tokens of each blank.
    limits: Vec<usize>,
    /// Whether the client asked for exactly these.
    fixed: bool,
}

impl Budget {
    /// `asked` tokens for each blank, or `defaults`.
    ///
    /// # Errors
    /// [`Error::Input`] when nothing may be written, [`Error::TooLong`] when that alone takes all positions.
    pub(super) fn new(room: usize, asked: Option<usize>, defaults: Vec<usize>) -> Result<Self> {
        if asked == Some(0) {
            return Err(Error::Input {
                field: "max_tokens",
                reason: "must be at least 1".to_owned(),
            });
        }
        let limits = match asked {
            Some(limit) => vec![limit; defaults.len()],
            None => defaults,
        };
        let budget = Self {
            room,
            limits,
            fixed: asked.is_some(),
        };
        match budget.fixed && budget.total() >= room {
            true => Err(Error::TooLong {
                needed: budget.total(),
                limit: room,
                hint: "max_tokens leaves no room for the text; ask for fewer tokens",
            }),
            false => Ok(budget),
        }
    }

    /// How long the prompt may be.
    pub(super) fn fit(&self, truncation: Truncation) -> Fit {
        let answers = match (self.fixed, truncation) {
            (true, _) => self.total(),
            // A text that may be cut leaves room for answers of the usual length.
            (false, Truncation::Cut) => self.total().min(self.room / 2),
            // One that may not is answered in what it leaves.
            (false, Truncation::Refuse) => 2 * self.limits.len() - 1,
        };
        Fit {
            limit: self.room.saturating_sub(answers),
            truncation,
        }
    }

    /// Most tokens of each blank after a prompt of `read` tokens.
    pub(super) fn limits(mut self, read: usize) -> Vec<usize> {
        let left = self.room.saturating_sub(read + self.limits.len() - 1);
        // The longest answers give way first: the highest cap under which all fit.
        let under = |cap: usize| self.limits.iter().map(|l| (*l).min(cap)).sum::<usize>();
        let longest = self.limits.iter().copied().max().unwrap_or(0);
        let cap = (1..=longest).rev().find(|cap| under(*cap) <= left);
        let cap = cap.unwrap_or(1);
        for limit in &mut self.limits {
            *limit = (*limit).min(cap);
        }
        self.limits
    }

    /// Positions of all answers: each blank's tokens, and the start of each piece after the first.
    fn total(&self) -> usize {
        (self.limits.iter()).fold(self.limits.len().saturating_sub(1), |sum, limit| {
            sum.saturating_add(*limit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_kept_free() {
        let budget = Budget::new(100, Some(10), vec![1, 1]).unwrap();
        assert_eq!(budget.fit(Truncation::Refuse).limit, 79);
        assert_eq!(budget.limits(79), [10, 10]);
        assert!(Budget::new(100, Some(0), vec![1]).is_err());
        assert!(Budget::new(100, Some(usize::MAX), vec![1, 1]).is_err());
        assert!(Budget::new(100, Some(50), vec![1, 1]).is_err());
    }

    #[test]
    fn usual_lengths_give_way() {
        let budget = Budget::new(100, None, vec![32, 256]).unwrap();
        assert_eq!(budget.fit(Truncation::Cut).limit, 50);
        assert_eq!(budget.fit(Truncation::Refuse).limit, 97);
        assert_eq!(budget.clone().limits(30), [32, 37]);
        assert_eq!(budget.clone().limits(60), [19, 19]);
        assert_eq!(budget.limits(97), [1, 1]);
    }
}
