//! Where the configuration comes from: files, environment, command line; later wins.
//!
//! Every source is checked alone against [`Config`] before it is merged, so
//! that a mistake is told with the file and line, variable or flag it is in.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{BadValue, Config};

/// Most bytes of a file: a thousand times what the longest configuration has.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Start of the names of environment variables.
const PREFIX: &str = "GLMD_";
/// Stands between section and key in the names of environment variables.
const SEPARATOR: &str = "__";

/// Where the value of a key was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In a file.
    File(PathBuf),
    /// In an environment variable.
    Environment(String),
    /// On the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => path.display().fmt(f),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A source has an unknown key, a wrong type or bad syntax.
    #[error("{origin}: {reason}")]
    Malformed {
        /// The source.
        origin: Origin,
        /// Key, line and mistake.
        reason: String,
    },
    /// A value cannot work.
    #[error("{origin}: `{key}` {reason}")]
    Unusable {
        /// Where it was written.
        origin: Origin,
        /// Dotted name of the key.
        key: &'static str,
        /// What is wrong and what to write instead.
        reason: String,
    },
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The file; `FILE.d/*.toml` follows in the order of the names.
    pub file: PathBuf,
    /// Whether the file was asked for by name, so that it must be there.
    pub required: bool,
    /// Environment variables, all of them.
    pub environment: Vec<(String, String)>,
    /// From the command line: the flag, the dotted key and the value.
    pub flags: Vec<(String, String, String)>,
}

/// The merged configuration and where each key came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Dotted key to source; keys that are not there have their default.
    pub origins: BTreeMap<String, Origin>,
}

struct Layer {
    origin: Origin,
    table: Table,
}

/// Reads and merges every source.
///
/// # Errors
/// The first mistake, with the source it is in.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut layers = files(sources)?;
    layers.extend(environment(&sources.environment)?);
    for (flag, key, value) in &sources.flags {
        let path: Vec<&str> = key.split('.').collect();
        layers.push(assignment(Origin::Flag(flag.clone()), &path, value)?);
    }
    let mut merged = Table::new();
    let mut origins = BTreeMap::new();
    for layer in layers {
        merge(&mut merged, layer.table, "", &layer.origin, &mut origins);
    }
    let origin_of = |key: &str| origins.get(key).cloned().unwrap_or(Origin::Default);
    // A section with keys that must be there may be complete only after the merge.
    let config: Config =
        merged
            .try_into()
            .map_err(|e: toml::de::Error| ConfigError::Malformed {
                origin: origins.values().last().cloned().unwrap_or(Origin::Default),
                reason: e.to_string().trim_end().to_owned(),
            })?;
    config
        .validate()
        .map_err(|BadValue { key, reason }| ConfigError::Unusable {
            origin: origin_of(key),
            key,
            reason,
        })?;
    Ok(Loaded { config, origins })
}

/// The file and its drop-ins.
fn files(sources: &Sources) -> Result<Vec<Layer>, ConfigError> {
    let mut layers = Vec::new();
    let unreadable = |path: &Path, e: &std::io::Error| ConfigError::Unreadable {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    match std::fs::metadata(&sources.file) {
        Ok(_) => layers.push(file(&sources.file)?),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !sources.required => {}
        Err(e) => return Err(unreadable(&sources.file, &e)),
    }
    let mut folder = sources.file.clone().into_os_string();
    folder.push(".d");
    let folder = PathBuf::from(folder);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(layers),
        Err(e) => return Err(unreadable(&folder, &e)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| unreadable(&folder, &e))?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|e| e == "toml") && !hidden {
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        layers.push(file(&path)?);
    }
    Ok(layers)
}

fn file(path: &Path) -> Result<Layer, ConfigError> {
    let unreadable = |reason: String| ConfigError::Unreadable {
        path: path.to_owned(),
        reason,
    };
    let opened = std::fs::File::open(path).map_err(|e| unreadable(e.to_string()))?;
    let mut text = String::new();
    let read = opened
        .take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|e| unreadable(e.to_string()))?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(unreadable(format!("larger than {MAX_FILE_BYTES} bytes")));
    }
    let origin = Origin::File(path.to_owned());
    let malformed = |e: &toml::de::Error| ConfigError::Malformed {
        origin: origin.clone(),
        reason: e.to_string().trim_end().to_owned(),
    };
    let table: Table = toml::from_str(&text).map_err(|e| malformed(&e))?;
    check::<FromText<'_>>(&table, FromText(&text)).map_err(|e| malformed(&e))?;
    Ok(Layer { origin, table })
}

/// Variables such as `GLMD_HTTP__SOCKET`. Those without two underscores belong to other programs.
fn environment(variables: &[(String, String)]) -> Result<Vec<Layer>, ConfigError> {
    let mut ours: Vec<_> = variables
        .iter()
        .filter(|(name, _)| name.starts_with(PREFIX) && name[PREFIX.len()..].contains(SEPARATOR))
        .collect();
    ours.sort();
    ours.into_iter()
        .map(|(name, value)| {
            let key = name[PREFIX.len()..].to_ascii_lowercase();
            let path: Vec<&str> = key.split(SEPARATOR).collect();
            assignment(Origin::Environment(name.clone()), &path, value)
        })
        .collect()
}

/// One key and its value as text: TOML where the key wants a number or a list, else a string.
fn assignment(origin: Origin, path: &[&str], text: &str) -> Result<Layer, ConfigError> {
    let nest = |value: Value| {
        path.iter().rev().fold(value, |inner, key| {
            Value::Table(Table::from_iter([((*key).to_owned(), inner)]))
        })
    };
    let as_toml = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"));
    let candidates = as_toml.into_iter().chain([Value::String(text.to_owned())]);
    let mut first = None;
    for value in candidates {
        let Value::Table(table) = nest(value) else {
            break;
        };
        match check(&table, FromTable(&table)) {
            Ok(()) => return Ok(Layer { origin, table }),
            Err(e) => {
                first.get_or_insert(e);
            }
        }
    }
    let reason = first.map_or_else(
        || "a key is needed, such as http.socket".to_owned(),
        |e| e.message().to_owned(),
    );
    Err(ConfigError::Malformed {
        origin,
        reason: format!("`{}`: {reason}", path.join(".")),
    })
}

/// A source that can be read as a [`Config`].
trait Readable {
    fn read(self) -> Result<Config, toml::de::Error>;
}

/// A file, so that mistakes have lines.
struct FromText<'a>(&'a str);
/// Values without a text.
struct FromTable<'a>(&'a Table);

impl Readable for FromText<'_> {
    fn read(self) -> Result<Config, toml::de::Error> {
        toml::from_str(self.0)
    }
}

impl Readable for FromTable<'_> {
    fn read(self) -> Result<Config, toml::de::Error> {
        self.0.clone().try_into()
    }
}

/// Whether a source alone has only known keys of the right types.
///
/// `http.tcp` has keys without a default, which may come from different
/// sources; a part of it is checked with the rest filled in.
fn check<R: Readable>(table: &Table, source: R) -> Result<(), toml::de::Error> {
    let tcp = table.get("http").and_then(|http| http.get("tcp"));
    let Some(Value::Table(tcp)) = tcp else {
        return source.read().map(drop);
    };
    let mut filled = table.clone();
    let mut whole = Table::from_iter([
        ("listen".to_owned(), Value::String("127.0.0.1:1".to_owned())),
        ("token_file".to_owned(), Value::String(String::new())),
    ]);
    whole.extend(tcp.clone());
    if let Some(Value::Table(http)) = filled.get_mut("http") {
        http.insert("tcp".to_owned(), Value::Table(whole));
    }
    match FromTable(&filled).read() {
        Ok(_) => Ok(()),
        // The text gives a better message when it fails for the same reason.
        Err(e) => source.read().map(drop).and(Err(e)),
    }
}

/// Lays `over` on `under`; lists are replaced, not joined.
fn merge(
    under: &mut Table,
    over: Table,
    prefix: &str,
    origin: &Origin,
    origins: &mut BTreeMap<String, Origin>,
) {
    for (key, value) in over {
        let dotted = match prefix {
            "" => key.clone(),
            _ => format!("{prefix}.{key}"),
        };
        match (under.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => {
                merge(below, above, &dotted, origin, origins);
            }
            (_, Value::Table(above)) => {
                let mut fresh = Table::new();
                merge(&mut fresh, above, &dotted, origin, origins);
                under.insert(key, Value::Table(fresh));
            }
            (_, value) => {
                origins.insert(dotted, origin.clone());
                under.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(folder: &Path) -> Sources {
        Sources {
            file: folder.join("glmd.toml"),
            required: false,
            environment: Vec::new(),
            flags: Vec::new(),
        }
    }

    fn written(text: &str) -> (tempfile::TempDir, Sources) {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("glmd.toml"), text).expect("written");
        let sources = sources(folder.path());
        (folder, sources)
    }

    #[test]
    fn nothing_written_means_defaults() {
        let folder = tempfile::tempdir().expect("a folder");
        let loaded = load(&sources(folder.path())).expect("defaults");
        assert_eq!(loaded.config, Config::default());
        assert!(loaded.origins.is_empty());
        let missing = Sources {
            required: true,
            ..sources(folder.path())
        };
        assert!(matches!(
            load(&missing),
            Err(ConfigError::Unreadable { .. })
        ));
    }

    #[test]
    fn later_sources_win_and_each_key_knows_where_it_came_from() {
        let (folder, mut sources) =
            written("[queue]\nrequests = 1\ntokens = 2\n[log]\nlevel = 'warn'");
        let drop_ins = folder.path().join("glmd.toml.d");
        std::fs::create_dir(&drop_ins).expect("a folder");
        std::fs::write(drop_ins.join("20.toml"), "queue.requests = 20").expect("written");
        std::fs::write(drop_ins.join("10.toml"), "queue.requests = 10").expect("written");
        std::fs::write(drop_ins.join("30.toml~"), "nonsense").expect("written");
        sources.environment = vec![
            ("GLMD_QUEUE__TOKENS".into(), "30".into()),
            ("GLMD_MODEL__PATH".into(), "123".into()),
            ("GLMD_SOCKET".into(), "the client's".into()),
        ];
        sources.flags = vec![("--log-level".into(), "log.level".into(), "debug".into())];
        let loaded = load(&sources).expect("good");
        assert_eq!(loaded.config.queue.requests, 20);
        assert_eq!(loaded.config.queue.tokens, 30);
        // A number is a fine folder name.
        assert_eq!(loaded.config.model.path, PathBuf::from("123"));
        assert_eq!(loaded.config.log.level, "debug");
        let origin = |key: &str| loaded.origins[key].to_string();
        assert!(origin("queue.requests").ends_with("glmd.toml.d/20.toml"));
        assert_eq!(
            origin("queue.tokens"),
            "environment variable GLMD_QUEUE__TOKENS"
        );
        assert_eq!(origin("log.level"), "flag --log-level");
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let (_folder, sources) = written("[http]\nconnections = 3\nsockte = '/run/x'\n");
        let told = load(&sources).expect_err("unknown key").to_string();
        assert!(told.contains("glmd.toml"), "{told}");
        assert!(told.contains("sockte") && told.contains("line 3"), "{told}");

        let (_folder, mut sources) = written("");
        sources.environment = vec![("GLMD_HTTP__CONECTIONS".into(), "3".into())];
        let told = load(&sources).expect_err("unknown key").to_string();
        assert!(
            told.contains("GLMD_HTTP__CONECTIONS") && told.contains("conections"),
            "{told}"
        );

        sources.environment = vec![("GLMD_QUEUE__REQUESTS".into(), "many".into())];
        let told = load(&sources).expect_err("wrong type").to_string();
        assert!(told.contains("queue.requests"), "{told}");

        sources.environment = vec![("GLMD_QUEUE__REQUESTS".into(), "0".into())];
        let told = load(&sources).expect_err("unusable").to_string();
        assert!(
            told.contains("GLMD_QUEUE__REQUESTS") && told.contains("at least 1"),
            "{told}"
        );
    }

    #[test]
    fn an_accelerator_is_named_with_its_library() {
        let (_folder, mut sources) = written(
            "[model.provider]\nname = 'qnn'\npartial = true\n\
             [model.provider.options]\nbackend_path = '/opt/libQnnHtp.so'",
        );
        let told = load(&sources).expect_err("no library").to_string();
        assert!(told.contains("model.provider.library"), "{told}");
        sources.environment = vec![("GLMD_MODEL__PROVIDER__LIBRARY".into(), "/opt/q.so".into())];
        let model = load(&sources).expect("whole").config.model;
        let provider = model.accelerator().expect("known").expect("one");
        assert!(provider.partial && provider.options.contains_key("backend_path"));
        sources
            .environment
            .push(("GLMD_MODEL__PROVIDER__NAME".into(), "npu".into()));
        let told = load(&sources).expect_err("no such provider").to_string();
        assert!(told.contains("model.provider.name"), "{told}");
    }

    #[test]
    fn products_are_measured_unless_a_kernel_is_named() {
        use glm_engine::loading::Matmul;

        let only = |sources: &Sources| {
            let model = load(sources).expect("good").config.model;
            model.matmul_options(None).only
        };
        let (_folder, mut sources) = written("[model]\nthreads = 2");
        assert_eq!(only(&sources), None);
        for (name, matmul) in [
            ("measured", None),
            ("glmd", Some(Matmul::Glmd)),
            ("onnxruntime", Some(Matmul::OnnxRuntime)),
        ] {
            sources.environment = vec![("GLMD_MODEL__MATMUL".into(), name.into())];
            assert_eq!(only(&sources), matmul, "{name}");
        }
        sources.environment = vec![("GLMD_MODEL__MATMUL".into(), "mlas".into())];
        let told = load(&sources).expect_err("no such kernel").to_string();
        assert!(
            told.contains("GLMD_MODEL__MATMUL") && told.contains("`measured`"),
            "{told}"
        );
    }

    #[test]
    fn tcp_is_loopback_with_a_token_and_may_be_put_together() {
        let (_folder, mut sources) = written("http.tcp.listen = '127.0.0.1:8080'");
        assert!(load(&sources).is_err(), "no token file");
        sources.environment = vec![("GLMD_HTTP__TCP__TOKEN_FILE".into(), "/run/t".into())];
        let tcp = load(&sources).expect("whole").config.http.tcp.expect("tcp");
        assert_eq!(tcp.token_file, PathBuf::from("/run/t"));
        sources
            .environment
            .push(("GLMD_HTTP__TCP__LISTEN".into(), "0.0.0.0:80".into()));
        let told = load(&sources).expect_err("everybody").to_string();
        assert!(told.contains("loopback"), "{told}");
        let (_folder, sources) = written("[http.tcp]\nlisten = '127.0.0.1:8080'\ntoken = 'x'");
        let told = load(&sources)
            .expect_err("a secret in the file")
            .to_string();
        assert!(told.contains("token"), "{told}");
    }
}
