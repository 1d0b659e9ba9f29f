//! Control groups: version 2, version 1 and both at once, with limits on any ancestor.
//!
//! `/proc/self/cgroup` names the group, `/proc/self/mountinfo` says where its
//! hierarchy is mounted and which part of it is. Inside a container the name
//! may be the host's: the mounted part is taken off its front, or, when the
//! name lies outside of what is mounted, the mount itself is the group.

use std::path::{Path, PathBuf};

use super::files::{Root, field};
use super::{Group, GroupEvents, GroupVersion, Groups};
use crate::units::Bytes;

/// Version 1 says "no limit" as the largest number of whole pages below 2^63. Pages have at most 64 KiB.
const UNLIMITED: u64 = (1 << 63) - (1 << 16);
/// Groups deeper than this are somebody's mistake; the kernel's own bound is far higher.
const DEEPEST: usize = 64;

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// The part of the hierarchy that is mounted.
    part: PathBuf,
    /// Where.
    point: PathBuf,
}

/// Where this machine's hierarchies are mounted; does not change while a process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hierarchies {
    v2: Option<Mount>,
    /// Whether groups of version 2 can have the memory controller.
    v2_can_limit: bool,
    v1_memory: Option<Mount>,
}

impl Hierarchies {
    /// Reads `/proc/self/mountinfo` (proc(5)).
    pub(super) fn read(root: &Root) -> Self {
        let mut found = Self::default();
        let text = root.text("/proc/self/mountinfo").unwrap_or_default();
        for line in text.lines() {
            let Some((before, after)) = line.split_once(" - ") else {
                continue;
            };
            let mut words = before.split(' ').skip(3);
            let (Some(part), Some(point)) = (words.next(), words.next()) else {
                continue;
            };
            let mut words = after.split(' ');
            let (kind, options) = (words.next(), words.nth(1).unwrap_or_default());
            let mount = || Mount {
                part: PathBuf::from(plain(part)),
                point: PathBuf::from(plain(point)),
            };
            // The first mount is the one that the system itself uses.
            match kind {
                Some("cgroup2") if found.v2.is_none() => found.v2 = Some(mount()),
                Some("cgroup")
                    if found.v1_memory.is_none() && options.split(',').any(|o| o == "memory") =>
                {
                    found.v1_memory = Some(mount());
                }
                _ => {}
            }
        }
        found.v2_can_limit = (found.v2.as_ref())
            .and_then(|mount| root.text(mount.point.join("cgroup.controllers")))
            .is_some_and(|all| all.split_whitespace().any(|one| one == "memory"));
        found
    }

    /// The groups of this process, from its own up to the mounted root.
    pub(super) fn groups(&self, root: &Root) -> Groups {
        let own = root.text("/proc/self/cgroup").unwrap_or_default();
        let mut groups = Groups::default();
        let unified = name(&own, "").zip(self.v2.as_ref());
        if let Some((name, mount)) = unified {
            let path = below(name, mount).join("memory.pressure");
            groups.pressure = super::process::pressure(root, &path);
            groups.pressure_file = groups.pressure.is_some().then_some(path);
        }
        if let Some((name, mount)) = name(&own, "memory").zip(self.v1_memory.as_ref()) {
            groups.version = Some(GroupVersion::V1);
            let levels = upwards(&below(name, mount), &mount.point);
            groups.levels = levels.iter().filter_map(|path| v1(root, path)).collect();
            groups.events = levels.first().and_then(|path| v1_events(root, path));
            v1_hidden(root, levels.first(), &mut groups.levels);
        } else if let Some((name, mount)) = unified {
            let levels = upwards(&below(name, mount), &mount.point);
            groups.levels = levels.iter().filter_map(|path| v2(root, path)).collect();
            groups.events = levels.first().and_then(|path| v2_events(root, path));
            // The root has no figures of its own; without the memory controller there are none at all.
            let counted = !groups.levels.is_empty() || self.v2_can_limit;
            groups.version = counted.then_some(GroupVersion::V2);
        }
        groups
    }
}

/// Name of the group in the hierarchy with `controller`; version 2 is the one without controllers.
fn name<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, name) = (parts.next()?, parts.next()?, parts.next()?);
        (controllers.split(',').any(|c| c == controller)).then_some(name)
    })
}

/// Folder of the group `name`.
fn below(name: &str, mount: &Mount) -> PathBuf {
    let inside = Path::new(name).strip_prefix(&mount.part).ok();
    let plain = |path: &&Path| {
        path.components()
            .all(|part| matches!(part, std::path::Component::Normal(_)))
    };
    match inside.filter(plain) {
        Some(rest) if rest.as_os_str().is_empty() => mount.point.clone(),
        Some(rest) => mount.point.join(rest),
        None => mount.point.clone(),
    }
}

/// `from` and its parents up to `top`.
fn upwards(from: &Path, top: &Path) -> Vec<PathBuf> {
    from.ancestors()
        .take_while(|path| path.starts_with(top))
        .take(DEEPEST)
        .map(Path::to_path_buf)
        .collect()
}

fn v2(root: &Root, path: &Path) -> Option<Group> {
    let current = root.number(path.join("memory.current"))?;
    // `max` is no number, so it is no limit.
    let limit = |file: &str| root.number::<u64>(path.join(file)).map(Bytes);
    let limit = [limit("memory.max"), limit("memory.high")];
    let stat = root.text(path.join("memory.stat")).unwrap_or_default();
    let figure = |key| Bytes(field(&stat, key).unwrap_or(0));
    Some(Group {
        path: path.display().to_string().into(),
        limit: limit.into_iter().flatten().min(),
        current: Bytes(current),
        inactive_file: figure("inactive_file"),
        active_file: figure("active_file"),
        reclaimable_slab: figure("slab_reclaimable"),
        swapped: Bytes(root.number(path.join("memory.swap.current")).unwrap_or(0)),
    })
}

fn v2_events(root: &Root, path: &Path) -> Option<GroupEvents> {
    let text = root.text(path.join("memory.events"))?;
    let count = |key| field(&text, key).unwrap_or(0);
    Some(GroupEvents {
        high: count("high"),
        max: count("max"),
        oom: count("oom"),
        oom_kill: count("oom_kill"),
    })
}

fn v1(root: &Root, path: &Path) -> Option<Group> {
    let current = root.number(path.join("memory.usage_in_bytes"))?;
    let limit: Option<u64> = root.number(path.join("memory.limit_in_bytes"));
    let stat = root.text(path.join("memory.stat")).unwrap_or_default();
    // With the children, as the usage is.
    let figure = |key| Bytes(field(&stat, key).unwrap_or(0));
    Some(Group {
        path: path.display().to_string().into(),
        limit: limit.filter(|limit| *limit < UNLIMITED).map(Bytes),
        current: Bytes(current),
        inactive_file: figure("total_inactive_file"),
        active_file: figure("total_active_file"),
        // Kernel memory is counted apart in version 1.
        reclaimable_slab: Bytes(0),
        swapped: figure("total_swap"),
    })
}

/// In version 1 a group knows the tightest limit of its ancestors, even of those that a container does not see.
fn v1_hidden(root: &Root, own: Option<&PathBuf>, levels: &mut [Group]) {
    let hidden = own
        .and_then(|path| root.text(path.join("memory.stat")))
        .and_then(|stat| field(&stat, "hierarchical_memory_limit"))
        .filter(|limit| *limit < UNLIMITED)
        .map(Bytes);
    let seen = levels.iter().filter_map(|level| level.limit).min();
    if let (Some(hidden), Some(first)) = (hidden, levels.first_mut())
        && seen.is_none_or(|seen| hidden < seen)
    {
        first.limit = Some(hidden);
    }
}

fn v1_events(root: &Root, path: &Path) -> Option<GroupEvents> {
    let failures = root.number(path.join("memory.failcnt"))?;
    let control = root
        .text(path.join("memory.oom_control"))
        .unwrap_or_default();
    Some(GroupEvents {
        high: 0,
        max: failures,
        oom: 0,
        oom_kill: field(&control, "oom_kill").unwrap_or(0),
    })
}

/// A path of the mount table, where blanks and backslashes are octal escapes.
fn plain(word: &str) -> String {
    let mut plain = String::with_capacity(word.len());
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                plain.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
}
