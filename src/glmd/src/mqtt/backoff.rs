//! How long to wait before the next try to connect. Pure: the caller sleeps.

use std::time::Duration;

/// Shortest wait: a broker that restarts is back within a second or two.
const FIRST: Duration = Duration::from_secs(1);
/// Longest wait, also after a refusal that only an operator can mend.
const LONGEST: Duration = Duration::from_secs(60);
/// A connection that held this long was a good one.
const GOOD: Duration = Duration::from_secs(30);

/// Why a connection ended, as far as waiting is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The network or the broker went away.
    Lost {
        /// How long the connection was of use.
        after: Duration,
    },
    /// The broker knows us and will not have us.
    Refused,
    /// We left, to come back.
    Left,
}

/// Doubles from one second to a minute, with jitter so that a house full of
/// devices does not come back in step.
#[derive(Clone, Debug)]
pub struct Backoff {
    tries: u32,
    noise: u64,
}

impl Backoff {
    /// A back-off whose jitter differs between nodes and is the same in every run of one.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self {
            tries: 0,
            // Zero is the one state that xorshift never leaves.
            noise: seed | 1,
        }
    }

    /// The wait before the next try.
    pub fn next(&mut self, ended: Ended) -> Duration {
        let base = match ended {
            Ended::Refused => LONGEST,
            Ended::Left => FIRST,
            Ended::Lost { after } => {
                if after >= GOOD {
                    self.tries = 0;
                }
                let doubled = FIRST.saturating_mul(1 << self.tries.min(6));
                self.tries = self.tries.saturating_add(1);
                doubled.min(LONGEST)
            }
        };
        base.mul_f64(0.75 + 0.25 * self.jitter())
    }

    /// A number from 0 to 1 (xorshift64, Marsaglia 2003).
    fn jitter(&mut self) -> f64 {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        f64::from(u32::try_from(self.noise >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOST: Ended = Ended::Lost {
        after: Duration::ZERO,
    };

    #[test]
    fn waits_double_up_to_a_minute_and_start_over_after_a_good_connection() {
        let mut backoff = Backoff::new(7);
        let waits: Vec<f64> = (0..10).map(|_| backoff.next(LOST).as_secs_f64()).collect();
        assert!((0.75..=1.0).contains(&waits[0]));
        assert!((3.0..=4.0).contains(&waits[2]));
        assert!((45.0..=60.0).contains(&waits[9]));
        let fresh = backoff.next(Ended::Lost { after: GOOD });
        assert!(fresh <= FIRST);
    }

    #[test]
    fn a_refusal_is_not_hammered() {
        assert!(Backoff::new(1).next(Ended::Refused) >= Duration::from_secs(45));
    }

    proptest! {
        #[test]
        fn no_wait_is_outside_the_bounds(seed: u64, ends in proptest::collection::vec(0_u8..3, 0..200)) {
            let mut backoff = Backoff::new(seed);
            for end in ends {
                let wait = backoff.next(match end {
                    0 => Ended::Refused,
                    1 => Ended::Lost { after: GOOD },
                    _ => LOST,
                });
                prop_assert!(wait >= FIRST.mul_f64(0.75) && wait <= LONGEST);
            }
        }
    }
}
