//! Which requests are under way, so that they can be listed and cancelled by whoever sent them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use glm_engine::units::RequestId;
use glm_wire::Priority;

/// A request under way.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Who sent it.
    pub client: Box<str>,
    /// How urgent it is.
    pub priority: Priority,
    /// When it was accepted.
    pub since: Instant,
    /// Tokens of its prompt.
    pub prompt_tokens: usize,
}

type Entries = BTreeMap<RequestId, Entry>;

/// The requests under way. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<Entries>>);

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Each change is one call of the map: nothing can be left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a request until the guard is dropped.
    #[must_use]
    pub fn enter(&self, id: RequestId, entry: Entry) -> Listed {
        self.lock().insert(id, entry);
        Listed {
            registry: self.clone(),
            id,
        }
    }

    /// Who sent a request that is under way.
    #[must_use]
    pub fn client(&self, id: RequestId) -> Option<Box<str>> {
        self.lock().get(&id).map(|entry| entry.client.clone())
    }

    /// Every request under way, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<(RequestId, Entry)> {
        let entries = self.lock();
        entries.iter().map(|(id, e)| (*id, e.clone())).collect()
    }
}

/// Keeps a request listed.
#[derive(Debug)]
pub struct Listed {
    registry: Registry,
    id: RequestId,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.id);
    }
}

/// Identity of a request as clients see it.
#[must_use]
pub fn public(id: RequestId) -> String {
    format!("req-{id}")
}

/// The request that a client means: `req-17` or `17`.
#[must_use]
pub fn parse(text: &str) -> Option<RequestId> {
    let digits = text.strip_prefix("req-").unwrap_or(text);
    // `parse` would also take a sign.
    (digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok().map(RequestId))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_listed_as_long_as_its_guard_lives() {
        let registry = Registry::default();
        let id = RequestId(17);
        let entry = Entry {
            client: "uid:1000".into(),
            priority: Priority::High,
            since: Instant::now(),
            prompt_tokens: 3,
        };
        let listed = registry.enter(id, entry);
        assert_eq!(registry.client(id).as_deref(), Some("uid:1000"));
        assert_eq!(registry.all().len(), 1);
        drop(listed);
        assert_eq!(registry.client(id), None);
    }

    #[test]
    fn identities_read_back() {
        assert_eq!(parse(&public(RequestId(5))), Some(RequestId(5)));
        assert_eq!(parse("5"), Some(RequestId(5)));
        for bad in ["", "req-", "+5", "req--5", "5x", "99999999999999999999"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
