//! What `glmctl top` has seen so far.

use std::collections::VecDeque;

use glm_wire::status::Status;

/// Looks that are kept: as many as a wide terminal has columns.
const KEPT: usize = 240;

/// One look at the daemon, as numbers to plot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    pub headroom: u64,
    pub budget: u64,
    pub queue: u64,
    pub speed: f64,
    pub celsius: Option<f64>,
}

/// The last looks, oldest first, and the latest in full.
#[derive(Debug, Default)]
pub struct History {
    pub samples: VecDeque<Sample>,
    pub latest: Status,
    /// Why the latest look failed, if it did.
    pub lost: Option<String>,
}

impl History {
    /// Takes a look.
    pub fn push(&mut self, status: Status) {
        if self.samples.len() == KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            headroom: status.memory.headroom,
            budget: status.batch.token_budget as u64,
            queue: status.requests.queued_tokens as u64,
            speed: status.tokens_per_second,
            celsius: status.temperature_c,
        });
        self.latest = status;
        self.lost = None;
    }

    /// Takes a look that failed.
    pub fn lost(&mut self, reason: String) {
        self.lost = Some(reason);
    }

    /// The last `count` values of a curve, oldest first.
    pub fn curve(&self, count: usize, value: impl Fn(&Sample) -> u64) -> Vec<u64> {
        let skip = self.samples.len().saturating_sub(count);
        self.samples.iter().skip(skip).map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_the_last_looks() {
        let mut history = History::default();
        for n in 0..KEPT + 10 {
            let mut status = Status::default();
            status.requests.queued_tokens = n;
            history.push(status);
        }
        assert_eq!(history.samples.len(), KEPT);
        let end = (KEPT + 9) as u64;
        assert_eq!(history.curve(3, |s| s.queue), [end - 2, end - 1, end]);
    }
}
