//! Names of topics. Pure.

use crate::operations::Operation;
use crate::service::Op;

/// What a request topic asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// An operation.
    Op(Op),
    /// To end another request.
    Cancel,
    /// To operate the daemon.
    Operate(Operation),
}

/// Operations by the last level of their topic.
const OPERATIONS: [(&str, Asked); 5] = [
    ("generate", Asked::Op(Op::Completions)),
    ("infill", Asked::Op(Op::Infill)),
    ("classify", Asked::Op(Op::Classify)),
    ("chat", Asked::Op(Op::Chat)),
    ("cancel", Asked::Cancel),
];

/// The topics of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    /// `glmd/<node>`
    root: String,
    /// `glmd/pool/<pool>` and the group that shares it.
    pool: Option<(String, String)>,
    /// Whether the daemon is operated over MQTT.
    admin: bool,
}

impl Topics {
    /// Topics below `base` of `node`, and of the pool `(group, pool)` that it shares.
    #[must_use]
    pub fn new(base: &str, node: &str, pool: Option<(&str, &str)>) -> Self {
        Self {
            root: format!("{base}/{node}"),
            pool: pool.map(|(group, pool)| (group.to_owned(), format!("{base}/pool/{pool}"))),
            admin: false,
        }
    }

    /// With topics to operate the daemon, or without.
    #[must_use]
    pub fn with_admin(self, admin: bool) -> Self {
        Self { admin, ..self }
    }

    /// What the daemon does to itself for whoever may publish on its topics.
    #[must_use]
    pub fn operations(&self) -> &'static [Operation] {
        if self.admin { &Operation::ALL } else { &[] }
    }

    /// `online` or `offline`.
    #[must_use]
    pub fn state(&self) -> String {
        format!("{}/state", self.root)
    }

    /// What is loaded.
    #[must_use]
    pub fn info(&self) -> String {
        format!("{}/info", self.root)
    }

    /// How it fares.
    #[must_use]
    pub fn stats(&self) -> String {
        format!("{}/stats", self.root)
    }

    /// What happened.
    #[must_use]
    pub fn event(&self) -> String {
        format!("{}/event", self.root)
    }

    /// Where answers go that were asked for without a response topic.
    #[must_use]
    pub fn response(&self, asked: Asked) -> String {
        format!("{}/response/{}", self.root, Self::word(asked))
    }

    /// Where `asked` is asked for.
    #[must_use]
    pub fn request(&self, asked: Asked) -> String {
        // Apart from the others, so that an access list of the broker can tell them apart.
        let kind = match asked {
            Asked::Operate(_) => "admin",
            Asked::Op(_) | Asked::Cancel => "request",
        };
        format!("{}/{kind}/{}", self.root, Self::word(asked))
    }

    /// Filters to subscribe to: one for each operation, since a wildcard would also bring what later versions add.
    #[must_use]
    pub fn filters(&self) -> Vec<String> {
        let own = OPERATIONS
            .iter()
            .map(|(word, _)| format!("{}/request/{word}", self.root));
        let shared = self.pool.iter().flat_map(|(group, pool)| {
            OPERATIONS
                .iter()
                // A cancel must reach the node that has the request, which a shared queue cannot promise.
                .filter(|(_, asked)| *asked != Asked::Cancel)
                .map(move |(word, _)| format!("$share/{group}/{pool}/request/{word}"))
        });
        let admin = (self.operations().iter()).map(|o| self.request(Asked::Operate(*o)));
        own.chain(shared).chain(admin).collect()
    }

    /// What a message on `topic` asks for.
    #[must_use]
    pub fn asked(&self, topic: &str) -> Option<Asked> {
        if let Some(word) = topic
            .strip_prefix(&self.root)
            .and_then(|rest| rest.strip_prefix("/admin/"))
        {
            let found = self.operations().iter().find(|o| o.name() == word);
            return found.map(|o| Asked::Operate(*o));
        }
        let roots = std::iter::once(&self.root).chain(self.pool.iter().map(|(_, pool)| pool));
        let word = roots
            .filter_map(|root| topic.strip_prefix(root.as_str())?.strip_prefix("/request/"))
            .next()?;
        OPERATIONS
            .iter()
            .find(|(name, _)| *name == word)
            .map(|(_, asked)| *asked)
    }

    fn word(asked: Asked) -> &'static str {
        if let Asked::Operate(operation) = asked {
            return operation.name();
        }
        OPERATIONS
            .iter()
            .find(|(_, a)| *a == asked)
            .map_or("other", |(word, _)| word)
    }
}

/// Whether a topic matches a filter (MQTT 5, section 4.7).
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+", "a/b/c", false),
            ("a/#", "a/b/c", true),
            ("a/#", "a", true),
            ("+/+", "/b", true),
            ("#", "a/b", true),
            ("a", "a/", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn a_pool_shares_everything_but_cancel() {
        let topics = Topics::new("glmd", "n1", Some(("g", "p")));
        let filters = topics.filters();
        assert_eq!(filters.len(), 9);
        assert!(filters.contains(&"$share/g/glmd/pool/p/request/infill".to_owned()));
        assert_eq!(
            topics.asked("glmd/pool/p/request/chat"),
            Some(Asked::Op(Op::Chat))
        );
        assert_eq!(topics.asked("glmd/n1/request/cancel"), Some(Asked::Cancel));
        assert_eq!(topics.asked("glmd/n2/request/infill"), None);
        assert_eq!(topics.asked("glmd/n1/request/infill/x"), None);
    }

    #[test]
    fn nobody_operates_a_daemon_that_does_not_allow_it() {
        let topic = "glmd/n1/admin/reload";
        let closed = Topics::new("glmd", "n1", None);
        assert_eq!(closed.asked(topic), None);
        assert!(!closed.filters().iter().any(|f| f.contains("admin")));
        let open = closed.with_admin(true);
        let reload = Asked::Operate(Operation::Reload);
        assert_eq!(open.asked(topic), Some(reload));
        assert_eq!(open.request(reload), topic);
        assert!(open.filters().contains(&topic.to_owned()));
        assert_eq!(open.asked("glmd/n1/admin/infill"), None);
        assert_eq!(open.asked("glmd/n1/request/reload"), None);
    }

    #[test]
    fn every_request_topic_is_understood() {
        let topics = Topics::new("glmd", "n1", None);
        for (_, asked) in OPERATIONS {
            assert_eq!(topics.asked(&topics.request(asked)), Some(asked));
        }
    }
}
