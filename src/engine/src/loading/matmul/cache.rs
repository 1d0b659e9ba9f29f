//! What a warm-up found out, kept for the next start: one small file a model.
//!
//! A file that is broken, of another model, library, processor or version of
//! this program is as good as none: the next warm-up writes over it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::verdict::Measurement;

/// Longest file that is read; real ones have 2 KiB.
const MOST: u64 = 64 << 10;
/// Characters of a hash in a name: 64 bits.
const NAME: usize = 16;
/// Lines of `/proc/cpuinfo` that tell what a processor is; the others tell how it is just now.
const WHAT: [&str; 8] = [
    "model name",
    "CPU implementer",
    "CPU architecture",
    "CPU variant",
    "CPU part",
    "CPU revision",
    "flags",
    "Features",
];

/// What times belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Key {
    /// Version of this program, whose kernels were timed.
    pub(super) glmd: String,
    /// Hash over the hashes of the model's files.
    pub(super) model: String,
    /// What libonnxruntime says of its build.
    pub(super) onnxruntime: String,
    /// The processor, and the instruction set of our kernels.
    pub(super) cpu: String,
    /// Threads of a step.
    pub(super) threads: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: Key,
    measurement: Measurement,
}

/// The times of `key` in `folder`, where they are there and whole.
pub(super) fn find(folder: &Path, key: &Key) -> Option<Measurement> {
    let mut text = Vec::new();
    let file = File::open(path(folder, key)).ok()?;
    file.take(MOST).read_to_end(&mut text).ok()?;
    let entry: Entry = serde_json::from_slice(&text).ok()?;
    let whole = entry.key == *key && entry.measurement.speedup().is_some();
    whole.then_some(entry.measurement)
}

/// Keeps the times of `key` in `folder`, which is made if it is not there.
///
/// # Errors
/// When the disk does not take them.
pub(super) fn keep(folder: &Path, key: &Key, measurement: &Measurement) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let path = path(folder, key);
    let entry = Entry {
        key: key.clone(),
        measurement: measurement.clone(),
    };
    // Under a name of its own first: two daemons may share the folder, and either may end at any time.
    let part = path.with_extension(format!("{}.part", process::id()));
    let written = File::create(&part)
        .and_then(|mut file| file.write_all(&serde_json::to_vec(&entry)?))
        .and_then(|()| fs::rename(&part, &path));
    if written.is_err() {
        // It may not be there.
        let _ = fs::remove_file(part);
    }
    written
}

fn path(folder: &Path, key: &Key) -> PathBuf {
    let model: String = (key.model.chars())
        .filter(char::is_ascii_alphanumeric)
        .take(NAME)
        .collect();
    folder.join(format!("matmul-{model}.json"))
}

/// Name and hash of the processor that `cpuinfo` describes, with all kinds of cores that it has.
pub(super) fn cpu(cpuinfo: &str, isa: &str) -> String {
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        (WHAT.contains(&name.trim())).then(|| (name.trim().to_owned(), value.trim().to_owned()))
    };
    let fields: BTreeSet<(String, String)> = cpuinfo.lines().filter_map(field).collect();
    let named = |(name, _): &&(String, String)| matches!(&**name, "model name" | "CPU part");
    let names: Vec<&str> = (fields.iter().filter(named))
        .map(|(_, value)| &**value)
        .collect();
    let mut hash = Sha256::new();
    for (name, value) in &fields {
        hash.update(format!("{name}: {value}\n"));
    }
    let hash = hash.finalize();
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{} {isa} {}", names.join("+"), &hash[..NAME])
}

#[cfg(test)]
mod tests {
    use super::super::verdict::tests::timed;
    use super::*;

    fn key() -> Key {
        Key {
            glmd: "0.1.0".to_owned(),
            model: "0123456789abcdef0123".to_owned(),
            onnxruntime: "git-branch=rel-1.32.0".to_owned(),
            cpu: "0xd0b neon-dotprod 0011".to_owned(),
            threads: 4,
        }
    }

    #[test]
    fn times_come_back_for_the_same_model_library_and_processor_only() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("glmd");
        let key = key();
        assert_eq!(find(&cache, &key), None);
        let first = timed(0.5, true);
        keep(&cache, &key, &first).unwrap();
        assert_eq!(find(&cache, &key), Some(first));
        let other = |change: &dyn Fn(&mut Key)| {
            let mut key = key.clone();
            change(&mut key);
            find(&cache, &key)
        };
        assert_eq!(other(&|key| key.glmd.push('1')), None);
        assert_eq!(other(&|key| key.model.push('1')), None);
        assert_eq!(other(&|key| key.model = "other".to_owned()), None);
        assert_eq!(other(&|key| key.onnxruntime.push('1')), None);
        assert_eq!(other(&|key| key.cpu.push('1')), None);
        assert_eq!(other(&|key| key.threads = 2), None);
        let second = timed(2.0, false);
        keep(&cache, &key, &second).unwrap();
        assert_eq!(find(&cache, &key), Some(second));
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1, "nothing is left");
    }

    #[test]
    fn broken_files_are_as_good_as_none_and_are_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let key = key();
        keep(folder.path(), &key, &timed(0.5, true)).unwrap();
        let path = path(folder.path(), &key);
        let whole = fs::read(&path).unwrap();
        let mut partly = timed(0.5, true);
        partly.samples[0].times.pop();
        let mut zero = timed(0.5, true);
        (zero.samples.iter_mut()).for_each(|sample| sample.count = 0.0);
        let untimed = |measurement| {
            let key = key.clone();
            serde_json::to_vec(&Entry { key, measurement }).unwrap()
        };
        for broken in [
            Vec::new(),
            whole[..whole.len() / 2].to_vec(),
            b"{}".to_vec(),
            b"\xff\x00".to_vec(),
            untimed(partly),
            untimed(zero),
        ] {
            fs::write(&path, broken).unwrap();
            assert_eq!(find(folder.path(), &key), None);
        }
        keep(folder.path(), &key, &timed(0.5, true)).unwrap();
        assert!(find(folder.path(), &key).is_some());
        // A folder where the file should be, and a file where the folder should be.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(find(folder.path(), &key), None);
        assert!(keep(folder.path(), &key, &timed(0.5, true)).is_err());
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(find(&file, &key), None);
        assert!(keep(&file, &key, &timed(0.5, true)).is_err());
    }

    #[test]
    fn a_processor_is_what_it_is_and_not_how_it_is_just_now() {
        let pi =
            "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n";
        let name = cpu(pi, "neon-dotprod");
        assert!(name.starts_with("0xd0b neon-dotprod "), "{name}");
        assert_eq!(
            cpu(&pi.replace("108.00", "54.00"), "neon-dotprod"),
            name,
            "speed is not kind"
        );
        assert_ne!(cpu(&pi.replace(" asimddp", ""), "neon-dotprod"), name);
        assert_ne!(cpu(pi, "neon"), name);
        let both = cpu(&format!("{pi}\n{}", pi.replace("0xd0b", "0xd05")), "neon");
        assert!(both.starts_with("0xd05+0xd0b neon "), "{both}");
    }
}
