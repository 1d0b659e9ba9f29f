//! What the kernel says of the whole system and of this process: `/proc/meminfo`, `/proc/vmstat`,
//! `/proc/self/status`, `/proc/self/smaps_rollup` and PSI.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use super::files::{Root, field, kib};
use super::{Pressure, Process, Stalls, System, VmCounters};
use crate::units::Bytes;

/// `/proc/meminfo`.
pub(super) fn system(root: &Root) -> Option<System> {
    let text = root.text("/proc/meminfo")?;
    let figure = |key| kib(&text, key);
    let free = || {
        // Kernels before 3.14 do not say what is available; this is what `free` showed then.
        let cache = figure("Cached")?.less(figure("Shmem").unwrap_or_default());
        let more = figure("Buffers").unwrap_or_default();
        Some(figure("MemFree")?.plus(cache).plus(more))
    };
    Some(System {
        total: figure("MemTotal")?,
        available: figure("MemAvailable").or_else(free)?,
        swap_total: figure("SwapTotal").unwrap_or_default(),
        swap_free: figure("SwapFree").unwrap_or_default(),
    })
}

/// `/proc/vmstat`. Counters that a kernel is built without are 0, and so are their rates.
pub(super) fn counters(root: &Root) -> Option<VmCounters> {
    let text = root.text("/proc/vmstat")?;
    let sum = |prefix: &str| {
        text.lines()
            .filter(|line| line.starts_with(prefix))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .fold(0, u64::saturating_add)
    };
    // Any file named so has this one; without it the rest means nothing.
    field(&text, "pgfault")?;
    Some(VmCounters {
        // Kernels before 5.9 do not part files from anonymous memory.
        refaults: field(&text, "workingset_refault_file")
            .or_else(|| field(&text, "workingset_refault"))
            .unwrap_or(0),
        // One counter for each zone of memory.
        stalls: sum("allocstall"),
        major_faults: field(&text, "pgmajfault").unwrap_or(0),
        swapped_out: field(&text, "pswpout").unwrap_or(0),
        oom_kills: field(&text, "oom_kill").unwrap_or(0),
    })
}

/// `/proc/self/status`.
pub(super) fn process(root: &Root) -> Option<Process> {
    let text = root.text("/proc/self/status")?;
    let figure = |key| kib(&text, key);
    Some(Process {
        anonymous: figure("RssAnon")?,
        file: figure("RssFile")?,
        shared: figure("RssShmem").unwrap_or_default(),
        swapped: figure("VmSwap").unwrap_or_default(),
        locked: figure("VmLck").unwrap_or_default(),
        peak: figure("VmHWM")?,
        lazily_freed: Bytes(0),
    })
}

/// `LazyFree` of `/proc/self/smaps_rollup`: pages that still count as ours but are free for the taking.
/// Walks the page tables, so it is read rarely.
pub(super) fn lazily_freed(root: &Root) -> Option<Bytes> {
    kib(&root.text("/proc/self/smaps_rollup")?, "LazyFree")
}

/// Begins a new measurement of the peak: `VmHWM` becomes what is resident now (proc(5), `clear_refs`, 5).
pub(super) fn forget_peak(root: &Root) {
    let file = (root.place(Path::new("/proc/self/clear_refs")))
        .and_then(|place| OpenOptions::new().write(true).open(place).ok());
    if let Some(mut file) = file {
        // Where it is not allowed the peak only ever grows, and its readers cope with that.
        let _ = file.write_all(b"5");
    }
}

/// A PSI file: `/proc/pressure/memory`, or `memory.pressure` of a control group.
pub(super) fn pressure(root: &Root, path: impl AsRef<Path>) -> Option<Pressure> {
    let text = root.text(path)?;
    let stalls = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = |key: &str| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        };
        Some(Stalls {
            percent: value("avg10")?
                .parse()
                .ok()
                .filter(|p: &f64| p.is_finite())?,
            micros: value("total")?.parse().ok()?,
        })
    };
    Some(Pressure {
        some: stalls("some ")?,
        full: stalls("full ").unwrap_or_default(),
    })
}
