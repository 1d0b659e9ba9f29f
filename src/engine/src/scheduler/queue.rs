//! Requests that wait, bounded in number and in tokens.
//!
//! Order of service is arrival plus the handicap of the priority
//! ([`Priority::handicap`]), fixed when a request arrives: urgent requests
//! overtake, but only those that arrived within the handicap, so nobody
//! starves. A request whose coalescing key is taken replaces the one that
//! waits: a sensor wants its latest reading judged, not every one.

use std::collections::BTreeMap;
use std::time::Duration;

use glm::Tokens;

use crate::units::{Moment, Priority, RequestId};

/// Bounds of a [`Queue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Most requests that wait.
    pub requests: usize,
    /// Most tokens that the waiting requests may cost together. A request that
    /// finds the queue empty is taken whatever it costs.
    pub tokens: Tokens,
    /// By how much priorities differ: see [`Priority::handicap`].
    pub ageing: Duration,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self {
            // What one broker delivers in a burst; a request waits in a few KiB.
            requests: 256,
            // A few minutes of work of a small box; beyond, waiting is no service.
            tokens: Tokens(65_536),
            // About the longest answer of a small box: priorities reorder whole answers.
            ageing: Duration::from_secs(10),
        }
    }
}

/// A request that waits, with what the order depends on.
#[derive(Debug)]
pub struct Waiting<T> {
    /// Its identity.
    pub id: RequestId,
    /// What it may cost.
    pub cost: Tokens,
    /// How urgent it is.
    pub priority: Priority,
    /// When it arrived.
    pub submitted: Moment,
    /// When its answer must be there.
    pub deadline: Option<Moment>,
    /// Who else it replaces.
    pub coalesce: Option<CoalesceKey>,
    /// The rest.
    pub payload: T,
}

/// Requests with equal keys replace each other while they wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoalesceKey {
    /// Clients do not replace each other's requests.
    pub client: Box<str>,
    /// The key as the client gave it.
    pub key: Box<str>,
}

/// Why a request found no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Too many requests wait.
    Requests,
    /// The requests that wait cost too much.
    Tokens,
}

/// Place of a request in the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Turn(Moment, RequestId);

/// Requests in the order of service.
#[derive(Debug)]
pub struct Queue<T> {
    entries: BTreeMap<Turn, Waiting<T>>,
    tokens: usize,
    limits: QueueLimits,
}

impl<T> Queue<T> {
    /// An empty queue.
    #[must_use]
    pub const fn new(limits: QueueLimits) -> Self {
        Self {
            entries: BTreeMap::new(),
            tokens: 0,
            limits,
        }
    }

    /// Takes a new request; returns the one that it replaces.
    ///
    /// # Errors
    /// Gives the request back with the bound that it breaks.
    #[expect(
        clippy::type_complexity,
        reason = "the refused request goes back to its owner"
    )]
    pub fn push(
        &mut self,
        waiting: Waiting<T>,
    ) -> Result<Option<Waiting<T>>, Box<(Full, Waiting<T>)>> {
        let older = waiting.coalesce.as_ref().and_then(|key| {
            self.entries
                .iter()
                .find(|(_, w)| w.coalesce.as_ref() == Some(key))
                .map(|(turn, w)| (*turn, w.cost.0))
        });
        let freed = older.map_or(0, |(_, cost)| cost);
        let others = self.entries.len() - usize::from(older.is_some());
        let tokens = self.tokens - freed;
        if others >= self.limits.requests {
            return Err(Box::new((Full::Requests, waiting)));
        }
        if others > 0 && tokens.saturating_add(waiting.cost.0) > self.limits.tokens.0 {
            return Err(Box::new((Full::Tokens, waiting)));
        }
        // The newer reading takes the older one's turn: being replaced must not mean starting over.
        let replaced = older.and_then(|(turn, _)| self.take(turn).map(|w| (turn, w)));
        let own = self.turn(&waiting);
        let turn = match &replaced {
            Some((Turn(at, _), _)) => Turn((*at).min(own.0), waiting.id),
            None => own,
        };
        self.insert(turn, waiting);
        Ok(replaced.map(|(_, w)| w))
    }

    /// Takes back a request that was served before. It was accepted once and cannot be refused.
    pub fn put_back(&mut self, waiting: Waiting<T>) {
        let turn = self.turn(&waiting);
        self.insert(turn, waiting);
    }

    /// Removes a request.
    pub fn take(&mut self, turn: Turn) -> Option<Waiting<T>> {
        let waiting = self.entries.remove(&turn)?;
        self.tokens -= waiting.cost.0;
        Some(waiting)
    }

    /// Removes every request that `wanted` picks, in the order of service.
    pub fn take_if(&mut self, mut wanted: impl FnMut(&Waiting<T>) -> bool) -> Vec<Waiting<T>> {
        let taken: Vec<Waiting<T>> = self
            .entries
            .extract_if(.., |_, w| wanted(w))
            .map(|(_, w)| w)
            .collect();
        self.tokens -= taken.iter().map(|w| w.cost.0).sum::<usize>();
        taken
    }

    /// Requests in the order of service.
    pub fn iter(&self) -> impl Iterator<Item = (Turn, &Waiting<T>)> {
        self.entries.iter().map(|(turn, waiting)| (*turn, waiting))
    }

    /// Number of requests that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the waiting requests may cost together.
    #[must_use]
    pub const fn tokens(&self) -> Tokens {
        Tokens(self.tokens)
    }

    /// The bounds.
    #[must_use]
    pub const fn limits(&self) -> &QueueLimits {
        &self.limits
    }

    fn turn(&self, waiting: &Waiting<T>) -> Turn {
        let handicap = waiting.priority.handicap(self.limits.ageing);
        Turn(waiting.submitted.after(handicap), waiting.id)
    }

    fn insert(&mut self, turn: Turn, waiting: Waiting<T>) {
        self.tokens = self.tokens.saturating_add(waiting.cost.0);
        self.entries.insert(turn, waiting);
    }
}
