//! How many threads a step gets, and on which processors.
//!
//! [`read`] asks the system: the processors that this process may run on, how
//! strong each is, and how much time its control group grants. [`decide`]
//! turns that into a number. Decoding waits for memory and every part of a
//! step for its slowest thread, so a weak processor beside strong ones makes a
//! step longer rather than shorter: on a machine with big and little cores
//! only the big ones are used.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Capacity that the kernel gives the strongest processor of a machine.
const FULL: u32 = 1024;

/// What the system says about processors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Processors {
    /// Processors that this process may run on; empty when the system does not tell.
    pub allowed: Vec<usize>,
    /// Strength of each, 1024 for the strongest; processors of one kind only are often left out.
    pub capacity: BTreeMap<usize, u32>,
    /// Processor time that the control group grants, in processors.
    pub quota: Option<f64>,
}

/// What a step gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Threads {
    /// Threads of one step, the engine's own included; at least 1.
    pub count: usize,
    /// Processors to stay on; empty where all are alike.
    pub cpus: Vec<usize>,
}

/// Chooses threads for a machine; `wanted` is what the configuration asks for.
///
/// A processor is big when it has at least half the strength of the strongest
/// allowed one. A quota counts down to whole processors: threads that share
/// what is left over are stopped in turn, and a step waits for each of them.
#[must_use]
pub fn decide(processors: &Processors, wanted: Option<usize>) -> Threads {
    let strength = |cpu: &usize| processors.capacity.get(cpu).copied().unwrap_or(FULL);
    let strongest = processors
        .allowed
        .iter()
        .map(strength)
        .max()
        .unwrap_or(FULL);
    let big: Vec<usize> = processors
        .allowed
        .iter()
        .copied()
        .filter(|cpu| strength(cpu) * 2 >= strongest)
        .collect();
    let cpus = if big.len() < processors.allowed.len() && wanted.is_none_or(|n| n <= big.len()) {
        big.clone()
    } else {
        Vec::new()
    };
    let granted = processors.quota.map_or(usize::MAX, whole);
    let count = wanted.unwrap_or_else(|| big.len().min(granted));
    Threads {
        count: count.max(1),
        cpus,
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from float saturates, and below one it is one"
)]
const fn whole(quota: f64) -> usize {
    quota as usize
}

/// Reads what the system says; `root` is `/` but in tests.
///
/// What cannot be read is left out: a container often hides part of it.
#[must_use]
pub fn read(root: &Path) -> Processors {
    let status = text(&root.join("proc/self/status")).unwrap_or_default();
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .map(list)
        .unwrap_or_default();
    let capacity = allowed
        .iter()
        .filter_map(|cpu| {
            let file = format!("sys/devices/system/cpu/cpu{cpu}/cpu_capacity");
            Some((*cpu, text(&root.join(file))?.trim().parse().ok()?))
        })
        .collect();
    Processors {
        allowed,
        capacity,
        quota: quota(root),
    }
}

/// `0-3,5` as numbers; what is no number is left out.
fn list(text: &str) -> Vec<usize> {
    // More processors than the kernel supports would only be a broken file.
    const MOST: usize = 8192;
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse()) {
            cpus.extend((first..=last).take(MOST));
        }
    }
    cpus
}

/// Reads the quota of one control group.
type Reader = fn(&Path) -> Option<f64>;

/// The smallest quota of this process's control group and of the groups around it.
fn quota(root: &Path) -> Option<f64> {
    let groups = text(&root.join("proc/self/cgroup"))?;
    let mount = root.join("sys/fs/cgroup");
    let mut smallest: Option<f64> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        // Version 2 names no controllers and is mounted at the top, or beside version 1.
        let (mounts, read): (Vec<PathBuf>, Reader) = if controllers.is_empty() {
            (vec![mount.clone(), mount.join("unified")], version_2)
        } else if controllers.split(',').any(|name| name == "cpu") {
            (vec![mount.join(controllers), mount.join("cpu")], version_1)
        } else {
            continue;
        };
        for mount in mounts {
            let group = Path::new(group.trim_start_matches('/'));
            for group in group.ancestors() {
                if let Some(quota) = read(&mount.join(group)) {
                    smallest = Some(smallest.map_or(quota, |other| other.min(quota)));
                }
            }
        }
    }
    smallest
}

/// `cpu.max`: quota and period in microseconds, or `max`.
fn version_2(group: &Path) -> Option<f64> {
    let text = text(&group.join("cpu.max"))?;
    let (quota, period) = text.trim().split_once(' ')?;
    share(quota.parse().ok()?, period.parse().ok()?)
}

/// `cpu.cfs_quota_us` (-1 without a limit) and `cpu.cfs_period_us`.
fn version_1(group: &Path) -> Option<f64> {
    let number = |file: &str| text(&group.join(file))?.trim().parse().ok();
    share(number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?)
}

fn share(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}
