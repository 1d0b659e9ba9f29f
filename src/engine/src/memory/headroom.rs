//! How much memory is left above the floor.
//!
//! ```text
//! group(level) = limit - (current - inactive_file - reclaimable_slab) - our weights that this counts as reclaimable
//! system       = MemAvailable - (weights we need - weights locked)
//! headroom     = min(system - floor(MemTotal), group - floor(limit) for every group with a limit)
//! ```
//!
//! The formula for a group is LXCFS's for "available" memory, applied to every
//! ancestor. The correction for weights is ours: they are clean pages of a
//! mapped file, so the kernel counts them as free for the taking, while every
//! step reads all of them. Taking them would mean reading them from the disk
//! once a token.

use crate::backend::MemoryUse;
use crate::memory::telemetry::{Group, Process, Snapshot};
use crate::units::{Bytes, Margin};

/// Least memory that is left alone: a quarter of what the smallest board has, and enough for a shell to log in.
const SMALLEST_FLOOR: Bytes = Bytes::mib(64);
/// Share of the memory that is left alone, in percent.
const FLOOR_PERCENT: u64 = 4;

/// Memory that is left, and what ends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headroom {
    /// Left above the floor when the weights are in memory; negative when the floor is broken.
    pub margin: Margin,
    /// Left alone.
    pub floor: Bytes,
    /// What ends it: `system`, or the path of a control group.
    pub bound: Box<str>,
}

/// Weights of the model, loaded or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// Mapped from a file.
    pub mapped: Bytes,
    /// Not in memory now, and needed as soon as the model comes back: the part that is copied.
    pub missing: Bytes,
}

impl Weights {
    /// Of a loaded model.
    #[must_use]
    pub const fn loaded(memory: &MemoryUse) -> Self {
        Self {
            mapped: memory.mapped,
            missing: Bytes(0),
        }
    }

    /// Of a model that held `memory` before it was unloaded.
    #[must_use]
    pub const fn unloaded(memory: &MemoryUse) -> Self {
        Self {
            mapped: memory.mapped,
            missing: memory.weights.less(memory.mapped),
        }
    }
}

/// The floor where there are `total` bytes.
#[must_use]
pub fn floor(total: Bytes) -> Bytes {
    // A group of 100 MiB must not be all floor.
    let percent = Bytes(total.0 / 100 * FLOOR_PERCENT);
    percent.max(SMALLEST_FLOOR).min(Bytes(total.0 / 4))
}

/// The headroom; `None` when the machine says nothing about memory.
///
/// `least` replaces the computed floor.
#[must_use]
pub fn headroom(snapshot: &Snapshot, weights: Weights, least: Option<Bytes>) -> Option<Headroom> {
    let process = snapshot.process.unwrap_or_default();
    let bound = |left: Margin, total: Bytes, bound: &str| {
        let floor = least.unwrap_or_else(|| floor(total));
        Headroom {
            margin: left.less(floor).less(weights.missing),
            floor,
            bound: bound.into(),
        }
    };
    let system = snapshot.system.map(|system| {
        let needed = weights.mapped.less(process.locked);
        bound(system.available.over(needed), system.total, "system")
    });
    let groups = snapshot.groups.levels.iter().filter_map(|group| {
        let limit = group.limit?;
        let used = used_for_good(group, weights, &process);
        Some(bound(limit.over(used), limit, &group.path))
    });
    system
        .into_iter()
        .chain(groups)
        .min_by_key(|headroom| headroom.margin)
}

/// What is charged to a group and cannot be had back without harm.
fn used_for_good(group: &Group, weights: Weights, process: &Process) -> Bytes {
    let reclaimable = group.inactive_file.plus(group.reclaimable_slab);
    // Pages of weights are charged once they were read; which list they are on the kernel does not say,
    // so they count as recently used as far as there is room on that list.
    let resident = weights.mapped.min(process.file);
    let idle = resident.less(group.active_file).min(group.inactive_file);
    let to_come = weights.mapped.less(resident);
    let needed = idle.plus(to_come).less(process.locked);
    group.current.less(reclaimable).plus(needed)
}
