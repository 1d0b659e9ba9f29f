//! Small text files of the kernel below a root that tests can choose.
//!
//! Any of them may be missing, vanish between two reads or say something that
//! nobody expects. All of that is the same here: there is no figure.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use crate::units::Bytes;

/// Most bytes read of one file. The longest is the mount table of a container host.
const LONGEST: u64 = 1 << 20;

/// Where the file system of the machine begins: `/`, or a folder that looks like one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// This machine.
    #[must_use]
    pub fn host() -> Self {
        Self(PathBuf::from("/"))
    }

    /// A folder that holds `proc` and `sys`.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Where an absolute path lies; `None` when it leads out of the root.
    #[must_use]
    pub fn place(&self, path: &Path) -> Option<PathBuf> {
        let mut place = self.0.clone();
        for part in path.components() {
            match part {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => place.push(name),
                Component::ParentDir | Component::Prefix(_) => return None,
            }
        }
        Some(place)
    }

    /// Text of a file; what is no UTF-8 is replaced.
    pub(super) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let file = File::open(self.place(path.as_ref())?).ok()?;
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes).ok()?;
        Some(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(wrong) => String::from_utf8_lossy(wrong.as_bytes()).into_owned(),
        })
    }

    /// The one number in a file.
    pub(super) fn number<T: std::str::FromStr>(&self, path: impl AsRef<Path>) -> Option<T> {
        self.text(path)?.trim().parse().ok()
    }

    /// Names in a folder that begin with `prefix`, in order.
    pub(super) fn list(&self, folder: &str, prefix: &str) -> Vec<String> {
        let entries = (self.place(Path::new(folder))).and_then(|place| fs::read_dir(place).ok());
        let mut names: Vec<String> = entries
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect();
        names.sort_unstable();
        names
    }
}

/// The number behind `key` in lines of `key value`, where a colon may follow the key and a unit the value.
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(key)?;
        let rest = rest.strip_prefix(':').unwrap_or(rest);
        // A longer key begins like this one.
        rest.starts_with(char::is_whitespace)
            .then(|| rest.split_whitespace().next()?.parse().ok())?
    })
}

/// As [`field`], in units of 1024 bytes.
pub(super) fn kib(text: &str, key: &str) -> Option<Bytes> {
    let kib = field(text, key)?;
    Some(Bytes(kib.saturating_mul(1024)))
}
