//! What the machine says about memory and heat, as plain data.
//!
//! | module | what it reads |
//! |---|---|
//! | `files` | small text files of the kernel |
//! | `process` | the system and this process: `/proc`, PSI |
//! | `cgroup` | control groups, version 1 and 2 |
//! | `heat` | thermal zones and clock rates |
//!
//! Every figure is optional: Raspberry Pi OS has neither memory groups nor PSI,
//! a container hides zones, old kernels lack counters.

mod cgroup;
mod files;
mod heat;
mod process;

use std::fmt;
use std::path::PathBuf;

use crate::units::Bytes;

pub use files::Root;

/// The machine at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The whole system.
    pub system: Option<System>,
    /// Counters of the whole system.
    pub counters: Option<VmCounters>,
    /// This process.
    pub process: Option<Process>,
    /// Its control groups.
    pub groups: Groups,
    /// Time that tasks of the whole system wait for memory.
    pub pressure: Option<Pressure>,
    /// Temperatures and clock rates.
    pub heat: Heat,
}

/// The system's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// All of it.
    pub total: Bytes,
    /// What can be had without swapping. Counts clean pages of mapped files, our weights among them.
    pub available: Bytes,
    /// Swap space.
    pub swap_total: Bytes,
    /// Of this, unused.
    pub swap_free: Bytes,
}

/// Counts since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmCounters {
    /// Pages of files that were read again soon after they had been dropped.
    pub refaults: u64,
    /// Allocations that had to wait for reclaim.
    pub stalls: u64,
    /// Page faults that waited for a disk.
    pub major_faults: u64,
    /// Pages swapped out.
    pub swapped_out: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
}

/// Memory of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Resident, and backed by no file.
    pub anonymous: Bytes,
    /// Resident pages of files: program, libraries, weights.
    pub file: Bytes,
    /// Resident shared memory.
    pub shared: Bytes,
    /// Swapped out.
    pub swapped: Bytes,
    /// Locked into memory; not available to anybody.
    pub locked: Bytes,
    /// Most that was ever resident, or since the peak was last forgotten.
    pub peak: Bytes,
    /// Part of the anonymous memory that the kernel takes when it needs it.
    pub lazily_freed: Bytes,
}

impl Process {
    /// What is resident.
    #[must_use]
    pub const fn resident(&self) -> Bytes {
        self.anonymous.plus(self.file).plus(self.shared)
    }

    /// Memory that this process alone keeps busy. Grows with a leak even when the leak is swapped out.
    #[must_use]
    pub const fn footprint(&self) -> Bytes {
        self.anonymous.less(self.lazily_freed).plus(self.swapped)
    }
}

/// Version of the control groups that limit memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GroupVersion {
    /// One hierarchy for each controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// The control groups of this process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Groups {
    /// Which version can limit memory; `None` when none can.
    pub version: Option<GroupVersion>,
    /// Those with figures, from the process's own upwards.
    pub levels: Vec<Group>,
    /// Events of the own group.
    pub events: Option<GroupEvents>,
    /// Time that tasks of the own group wait for memory.
    pub pressure: Option<Pressure>,
    /// Where that is read and where a trigger can be set, below the root.
    pub pressure_file: Option<PathBuf>,
}

/// One control group; amounts include the groups below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Its folder.
    pub path: Box<str>,
    /// The tighter of `memory.max` and `memory.high`; `None` when it has neither.
    pub limit: Option<Bytes>,
    /// Charged to it, page cache included.
    pub current: Bytes,
    /// Page cache that was not used lately: reclaimed first.
    pub inactive_file: Bytes,
    /// The other page cache.
    pub active_file: Bytes,
    /// Kernel memory that can be reclaimed.
    pub reclaimable_slab: Bytes,
    /// Swapped out.
    pub swapped: Bytes,
}

/// How often a control group came to its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupEvents {
    /// It was slowed down above `memory.high`.
    pub high: u64,
    /// It reached its hard limit and something had to be reclaimed.
    pub max: u64,
    /// Nothing could be reclaimed.
    pub oom: u64,
    /// A process of it was killed.
    pub oom_kill: u64,
}

/// Pressure stall information.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waits.
    pub some: Stalls,
    /// All tasks wait.
    pub full: Stalls,
}

/// Time spent waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stalls {
    /// Share of the last ten seconds, in percent.
    pub percent: f64,
    /// Since boot, in microseconds.
    pub micros: u64,
}

/// Temperatures and clock rates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heat {
    /// Places where it is measured.
    pub zones: Vec<Zone>,
    /// Groups of processors with one clock.
    pub clocks: Vec<Clockrate>,
}

/// A place where temperature is measured; in thousandths of a degree Celsius.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// What it is: `cpu-thermal`.
    pub name: Box<str>,
    /// How hot it is.
    pub temperature: i64,
    /// From here on the kernel slows the processor down.
    pub throttles_at: Option<i64>,
    /// Here the machine shuts down.
    pub shuts_down_at: Option<i64>,
}

/// Clock rate of a group of processors, in kHz.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clockrate {
    /// Now.
    pub now: u64,
    /// The kernel allows at most this now.
    pub allowed: u64,
    /// The hardware can do at most this.
    pub most: u64,
}

/// How much to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Detail {
    /// What changes fast and is cheap to read.
    Quick,
    /// Also temperatures and what walks page tables.
    Full,
}

/// Looks at a machine: this one, or a simulated one.
pub trait Telemetry: Send + fmt::Debug {
    /// The machine now. Figures that are not looked at are as they were before.
    fn snapshot(&mut self, detail: Detail) -> Snapshot;

    /// Begins a new measurement of [`Process::peak`].
    fn forget_peak(&mut self) {}
}

/// A Linux machine, read through its `/proc` and `/sys`.
#[derive(Debug)]
pub struct Machine {
    root: Root,
    hierarchies: cgroup::Hierarchies,
    heat: Heat,
    lazily_freed: Bytes,
    /// For systems without `/proc/meminfo`.
    plain: Option<sysinfo::System>,
}

impl Machine {
    /// The machine whose file system begins at `root`.
    #[must_use]
    pub fn at(root: Root) -> Self {
        Self {
            hierarchies: cgroup::Hierarchies::read(&root),
            plain: None,
            root,
            heat: Heat::default(),
            lazily_freed: Bytes(0),
        }
    }
}

impl Default for Machine {
    /// This machine, whatever its system.
    fn default() -> Self {
        let mut machine = Self::at(Root::host());
        machine.plain = sysinfo::System::new().ok();
        machine
    }
}

/// The plain figures, of any system that sysinfo knows. Of its control group figures none is used: it
/// counts page cache as used.
fn plain(system: &mut sysinfo::System) -> Option<System> {
    system.refresh_memory();
    Some(System {
        total: Bytes(system.total_memory()),
        available: Bytes(system.available_memory()),
        swap_total: Bytes(system.total_swap()),
        swap_free: Bytes(system.free_swap()),
    })
    .filter(|found| found.total.0 > 0)
}

impl Telemetry for Machine {
    fn snapshot(&mut self, detail: Detail) -> Snapshot {
        let root = &self.root;
        if detail == Detail::Full {
            self.heat = heat::read(root);
            self.lazily_freed = process::lazily_freed(root).unwrap_or_default();
        }
        Snapshot {
            system: process::system(root).or_else(|| self.plain.as_mut().and_then(plain)),
            counters: process::counters(root),
            process: process::process(root).map(|process| Process {
                // Read earlier than the rest, so it may say more than there is now.
                lazily_freed: self.lazily_freed.min(process.anonymous),
                ..process
            }),
            groups: self.hierarchies.groups(root),
            pressure: process::pressure(root, "/proc/pressure/memory"),
            heat: self.heat.clone(),
        }
    }

    fn forget_peak(&mut self) {
        process::forget_peak(&self.root);
    }
}
