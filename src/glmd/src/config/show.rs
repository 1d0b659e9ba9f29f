//! The merged configuration with the origin of every key, secrets left out.

use std::fmt::Write;

use toml::{Table, Value};

use super::{Loaded, Origin};

/// Parts of the names of keys whose value is nobody's business. Keys that end
/// in `_file` name a file and show it.
const SECRET: [&str; 4] = ["password", "secret", "token", "passphrase"];
/// What stands for a secret.
const REDACTED: &str = "\"<redacted>\"";

/// One `section.key = value  # origin` a line, as TOML.
#[must_use]
pub fn effective(loaded: &Loaded) -> String {
    let table = Table::try_from(&loaded.config).unwrap_or_default();
    let mut lines = Vec::new();
    flatten(&table, "", &mut lines);
    let width = lines
        .iter()
        .map(|(k, v)| k.len() + v.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for (key, value) in lines {
        let origin = loaded.origins.get(&key).unwrap_or(&Origin::Default);
        let pad = width - key.len() - value.len();
        let _ = writeln!(text, "{key} = {value}{:pad$}  # {origin}", "");
    }
    text
}

fn flatten(table: &Table, prefix: &str, lines: &mut Vec<(String, String)>) {
    for (key, value) in table {
        let dotted = match prefix {
            "" => key.clone(),
            _ => format!("{prefix}.{key}"),
        };
        match value {
            Value::Table(inner) => flatten(inner, &dotted, lines),
            _ if is_secret(key) => lines.push((dotted, REDACTED.to_owned())),
            Value::String(text) => {
                lines.push((dotted, Value::String(without_password(text)).to_string()));
            }
            other => lines.push((dotted, other.to_string())),
        }
    }
}

fn is_secret(key: &str) -> bool {
    // `tokens` are what models read.
    !key.ends_with("_file") && key.split('_').any(|word| SECRET.contains(&word))
}

/// A URL without the password that may stand in it.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let authority = rest.split('/').next().unwrap_or(rest);
    match authority.rsplit_once('@') {
        Some((user, _)) if user.contains(':') => {
            let name = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{name}:<redacted>{}", &rest[user.len()..])
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Config;

    #[test]
    fn every_key_is_shown_with_its_origin_and_reads_back() {
        let loaded = Loaded {
            config: Config::default(),
            origins: BTreeMap::from([(
                "queue.tokens".to_owned(),
                Origin::Flag("--set".to_owned()),
            )]),
        };
        let text = effective(&loaded);
        assert!(
            text.lines()
                .any(|l| l.starts_with("queue.tokens = 65536 ") && l.ends_with("# flag --set"))
        );
        assert!(
            text.lines()
                .any(|l| l.starts_with("http.socket = \"/run/glmd/glmd.sock\"")
                    && l.ends_with("# default"))
        );
        assert_eq!(
            toml::from_str::<Config>(&text).expect("TOML"),
            loaded.config
        );
    }

    #[test]
    fn secrets_are_not_shown() {
        assert!(is_secret("password") && is_secret("client_secret") && is_secret("token"));
        assert!(!is_secret("token_file") && !is_secret("step_tokens"));
        assert_eq!(
            without_password("mqtts://joe:pa@ss@host:8883/x"),
            "mqtts://joe:<redacted>@host:8883/x"
        );
        assert_eq!(without_password("mqtt://host/a:b@c"), "mqtt://host/a:b@c");
    }
}
