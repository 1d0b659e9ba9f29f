//! A control group with a hard limit, made where this process may.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use glm_engine::memory::telemetry::{Detail, GroupVersion, Machine, Telemetry};
use glm_engine::units::Bytes;

/// Removed when it goes; its processes must be gone by then.
#[derive(Debug)]
pub struct Group {
    pub version: GroupVersion,
    memory: PathBuf,
    /// On a machine with both versions: the place in version 2, whose pressure is measured.
    unified: Option<PathBuf>,
    pub limit: Bytes,
}

impl Group {
    /// # Errors
    /// When control groups are missing or belong to somebody else.
    pub fn new(name: &str, limit: Bytes) -> io::Result<Self> {
        let groups = Machine::default().snapshot(Detail::Quick).groups;
        let top = groups
            .levels
            .last()
            .map(|level| PathBuf::from(&*level.path));
        let plain = || PathBuf::from("/sys/fs/cgroup");
        let (version, top) = match (groups.version, top) {
            (Some(version), Some(top)) => (version, top),
            // In the root of version 2 there are no figures.
            _ => (GroupVersion::V2, plain()),
        };
        let memory = top.join(name);
        fs::create_dir(&memory)?;
        let mut group = Self {
            version,
            memory,
            unified: None,
            limit,
        };
        let file = match version {
            GroupVersion::V1 => "memory.limit_in_bytes",
            GroupVersion::V2 => "memory.max",
        };
        fs::write(group.memory.join(file), limit.0.to_string())?;
        if version == GroupVersion::V1 {
            let unified = (groups.pressure_file)
                .and_then(|file| Some(file.parent()?.join(name)))
                .filter(|folder| fs::create_dir(folder).is_ok());
            group.unified = unified;
        }
        Ok(group)
    }

    /// Folders that a process writes itself into.
    pub fn folders(&self) -> Vec<PathBuf> {
        std::iter::once(self.memory.clone())
            .chain(self.unified.clone())
            .collect()
    }

    fn figure(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.memory.join(file)).unwrap_or_default();
        let mut lines = text.lines();
        let line = match key {
            "" => lines.next(),
            key => lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')),
        };
        line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }

    /// Left of the limit when page cache is dropped.
    pub fn free(&self) -> Bytes {
        let (current, inactive) = match self.version {
            GroupVersion::V1 => ("memory.usage_in_bytes", "total_inactive_file"),
            GroupVersion::V2 => ("memory.current", "inactive_file"),
        };
        let used = Bytes(self.figure(current, ""));
        self.limit
            .less(used.less(Bytes(self.figure("memory.stat", inactive))))
    }

    pub fn kills(&self) -> u64 {
        match self.version {
            GroupVersion::V1 => self.figure("memory.oom_control", "oom_kill"),
            GroupVersion::V2 => self.figure("memory.events", "oom_kill"),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in self.folders() {
            // The last process is taken out a moment after it was waited for.
            for _ in 0..50 {
                if fs::remove_dir(&folder).is_ok() || !folder.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Moves this process.
pub fn join(folders: &[String]) {
    for folder in folders {
        let file = Path::new(folder).join("cgroup.procs");
        fs::write(file, std::process::id().to_string()).expect("the supervisor made the group");
    }
}
