//! What is different since the last look at the daemon: the messages of `event`. Pure.

use serde_json::{Value, json};

/// What subscribers of `event` care for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    level: String,
    refused: u64,
    /// Name and SHA-256, both null where nothing is loaded.
    model: [Value; 2],
}

impl Look {
    /// From what `info` and `stats` say.
    #[must_use]
    pub fn new(info: &Value, stats: &Value) -> Self {
        let model = &info["model"];
        Self {
            level: stats["level"].as_str().unwrap_or_default().to_owned(),
            refused: stats["requests"]["refused"].as_u64().unwrap_or_default(),
            model: [model["id"].clone(), model["sha256"].clone()],
        }
    }

    /// One message for each thing that changed since `before`.
    #[must_use]
    pub fn news(&self, before: &Self) -> Vec<Value> {
        let mut news = Vec::new();
        if self.level != before.level {
            news.push(json!({"type": "level", "from": before.level, "to": self.level}));
        }
        if self.model != before.model {
            let [id, sha256] = &self.model;
            news.push(json!({"type": "model", "id": id, "sha256": sha256}));
        }
        // It falls when the daemon starts anew, which is not news of this kind.
        if self.refused > before.refused {
            let count = self.refused - before.refused;
            news.push(json!({"type": "refused", "count": count, "level": self.level}));
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(level: &str, refused: u64, model: Option<&str>) -> Look {
        let info = json!({"model": model.map(|id| json!({"id": id, "sha256": "ab"}))});
        Look::new(
            &info,
            &json!({"level": level, "requests": {"refused": refused}}),
        )
    }

    #[test]
    fn only_what_changed_is_news() {
        let calm = look("green", 3, Some("a"));
        assert!(calm.news(&calm).is_empty());
        let worse = look("red", 5, Some("a"));
        assert_eq!(
            worse.news(&calm),
            [
                json!({"type": "level", "from": "green", "to": "red"}),
                json!({"type": "refused", "count": 2, "level": "red"}),
            ]
        );
        assert_eq!(look("green", 0, Some("a")).news(&calm), [] as [Value; 0]);
    }

    #[test]
    fn a_model_that_comes_or_goes_is_news() {
        let (with, without) = (look("green", 0, Some("a")), look("green", 0, None));
        let none = json!({"type": "model", "id": null, "sha256": null});
        assert_eq!(without.news(&with), [none]);
        let some = json!({"type": "model", "id": "a", "sha256": "ab"});
        assert_eq!(with.news(&without), [some]);
    }
}
