//! Unpacks an archive: plain files at plain paths, and no more of them than there is room for.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use glm::manifest;
use tar::{Archive, EntryType};

use crate::failure::{Failure, Result};
use crate::progress::Bar;

use super::install::make_room;

/// Folders around a file; a model directory has one for its held-out sets, and one around it.
const DEEPEST: usize = 4;
/// Files of an archive; a model has about ten.
const MOST_FILES: usize = 1000;

/// Unpacks `archive` into `folder`, which is empty; returns where in it the model is.
pub fn unpack(archive: &Path, folder: &Path, bar: &Bar) -> Result<PathBuf> {
    let name = archive.display().to_string();
    let fault = |e| Failure::io(&name, e);
    let bad = |reason: String| Failure::BadInput(format!("{name}: {reason}"));
    let mut file = File::open(archive).map_err(fault)?;
    let total = file.metadata().map_err(fault)?.len();
    let mut magic = [0; 2];
    let compressed = file.read_exact(&mut magic).is_ok()
        && matches!(&magic, b"\x1f\x8b" | b"\x28\xb5" | b"BZ" | b"\xfd7");
    if compressed {
        return Err(bad(
            "is compressed; unpack it to a plain tar first (gunzip, unxz, unzstd)".to_owned(),
        ));
    }
    let file = File::open(archive).map_err(fault)?;
    let mut tar = Archive::new(BufReader::new(file));
    let (mut files, mut written) = (0, 0_u64);
    for entry in tar.entries().map_err(fault)? {
        let mut entry = entry.map_err(|e| bad(format!("is no tar archive, or is cut off: {e}")))?;
        match entry.header().entry_type() {
            // `tar` is told to look for holes by some, and their size is what comes out of them.
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {}
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            kind => {
                let path = entry.path().map_err(fault)?.display().to_string();
                return Err(bad(format!("{path} is no plain file ({kind:?})")));
            }
        }
        let path = entry.path().map_err(fault)?.into_owned();
        let place =
            inside(&path).ok_or_else(|| bad(format!("{} leads elsewhere", path.display())))?;
        files += 1;
        if files > MOST_FILES {
            return Err(bad(format!("has more than {MOST_FILES} files")));
        }
        make_room(folder, entry.size())?;
        let place = folder.join(place);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(fault)?;
        }
        let mut out =
            File::create_new(&place).map_err(|e| Failure::io(place.display().to_string(), e))?;
        loop {
            let count = io::copy(&mut entry.by_ref().take(PIECE), &mut out)
                .map_err(|e| Failure::io(place.display().to_string(), e))?;
            written += count;
            if bar.at("unpack", written.min(total), total).is_break() {
                return Err(Failure::Interrupted);
            }
            if count < PIECE {
                break;
            }
        }
        out.sync_all().map_err(fault)?;
    }
    root(folder).ok_or_else(|| {
        bad(format!(
            "holds no {}: not a model directory",
            manifest::FILE
        ))
    })
}

/// Bytes between two looks at the bar.
const PIECE: u64 = 4 << 20;

/// A path that stays where it is put.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => plain.push(name),
            _ => return None,
        }
    }
    let depth = plain.components().count();
    (1..=DEEPEST).contains(&depth).then_some(plain)
}

/// The folder with the manifest: this one, or the one in it.
fn root(folder: &Path) -> Option<PathBuf> {
    let has = |folder: &Path| folder.join(manifest::FILE).is_file();
    if has(folder) {
        return Some(folder.to_owned());
    }
    let mut inner = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()));
    inner.find(|path| has(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in ["/etc/passwd", "../x", "a/../../x", "", ".", "a/b/c/d/e"] {
            assert_eq!(inside(Path::new(path)), None, "{path}");
        }
        assert_eq!(inside(Path::new("./m/glm.json")), Some("m/glm.json".into()));
    }
}
