//! Typed access to `config.json`: every refusal names the key.

use serde_json::Value;

use crate::{Error, Result, TokenId};

/// Largest size that a key may have. No GLM comes near it, and products of
/// three such sizes still fit 64 bits.
const MAX_SIZE: u64 = 1 << 21;

/// A `config.json` whose keys are read one by one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys<'a>(pub &'a Value);

impl<'a> Keys<'a> {
    /// Wraps the document.
    pub fn new(config: &'a Value) -> Result<Self> {
        if config.is_object() {
            Ok(Self(config))
        } else {
            Err(bad("config.json", "must be a JSON object"))
        }
    }

    /// The value of a key; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    /// Whether a key is present.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A size of at least 1.
    pub fn size(&self, key: &str) -> Result<usize> {
        match self.opt_size(key)? {
            Some(n) => Ok(n),
            None => Err(bad(key, "is missing; a whole number is needed")),
        }
    }

    /// A size of at least 1, when the key is present.
    pub fn opt_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(usize::try_from(n).ok()),
            _ => Err(bad(
                key,
                format!("is {value}; a whole number from 1 to {MAX_SIZE} is needed"),
            )),
        }
    }

    /// The first present size among several spellings of one key.
    pub fn size_of(&self, spellings: &[&str]) -> Result<usize> {
        for key in spellings {
            if let Some(n) = self.opt_size(key)? {
                return Ok(n);
            }
        }
        self.size(spellings.first().copied().unwrap_or_default())
    }

    /// A finite number, or `default` when the key is absent.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(x),
            _ => Err(bad(key, format!("is {value}; a number is needed"))),
        }
    }

    /// A number above 0, or `default` when the key is absent.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        let x = self.number_or(key, default)?;
        if x > 0.0 {
            Ok(x)
        } else {
            Err(bad(key, format!("is {x}; it must be above 0")))
        }
    }

    /// A truth value, or `default` when the key is absent.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        value
            .as_bool()
            .ok_or_else(|| bad(key, format!("is {value}; true or false is needed")))
    }

    /// A text, when the key is present.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_str()
            .map(Some)
            .ok_or_else(|| bad(key, format!("is {value}; a text is needed")))
    }

    /// A token id, when the key is present. -1 is an older way to say "none".
    pub fn id(&self, key: &str) -> Result<Option<TokenId>> {
        Ok(self.ids(key)?.first().copied())
    }

    /// One or several token ids.
    pub fn ids(&self, key: &str) -> Result<Vec<TokenId>> {
        let one = |v: &Value| -> Result<Option<TokenId>> {
            if v.as_i64() == Some(-1) {
                return Ok(None);
            }
            match v.as_u64().and_then(|n| u32::try_from(n).ok()) {
                Some(id) => Ok(Some(TokenId(id))),
                None => Err(bad(key, format!("is {v}; a token id is needed"))),
            }
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items.iter().filter_map(|v| one(v).transpose()).collect(),
            Some(value) => Ok(one(value)?.into_iter().collect()),
        }
    }

    /// Refuses a key unless it is absent or has the one value that is supported.
    pub fn require(&self, key: &str, wanted: &Value, hint: &str) -> Result<()> {
        match self.get(key) {
            Some(value) if value != wanted => Err(unsupported(key, value, hint)),
            _ => Ok(()),
        }
    }
}

/// A key that cannot be used.
pub(super) fn bad(key: &str, reason: impl Into<String>) -> Error {
    Error::Config {
        key: key.to_owned(),
        reason: reason.into(),
    }
}

/// A key whose value rules the model out.
pub(super) fn unsupported(key: &str, value: &Value, hint: impl Into<String>) -> Error {
    Error::UnsupportedModel {
        key: key.to_owned(),
        value: value.to_string(),
        hint: hint.into(),
    }
}
