//! What the machine leaves to it: memory, control groups, pressure and heat.

use glm_engine::memory::telemetry::GroupVersion;
use glm_engine::units::{Bytes, Level};
use glm_wire::status::Status;

use super::super::look::Seen;
use super::Topic;
use crate::commands::operate::bytes;

/// Share of the last ten seconds in which tasks wait for memory, in percent, from which on that is felt.
const FELT: f64 = 5.0;

pub(super) fn memory(seen: &Seen, topic: &mut Topic<'_>) {
    if let Some(status) = seen.daemon.status() {
        let what = format!(
            "glmd is at level {}: {}; headroom {}, weights {}, keys and values {}",
            status.level,
            status.level_reason,
            bytes(status.memory.headroom),
            bytes(status.memory.weights),
            bytes(status.memory.kv_resident),
        );
        match status.level == Level::Green.name() {
            true => topic.ok(what),
            false => topic.warning(what, shortage(status)),
        }
    }
    let Some(system) = seen.snapshot.system else {
        topic.warning(
            "the system does not tell how much memory there is, so nothing protects it",
            "mount /proc",
        );
        return;
    };
    let swap = match system.swap_total {
        Bytes(0) => "no swap".to_owned(),
        total => format!(
            "{} of {} swap free",
            bytes(system.swap_free.0),
            bytes(total.0)
        ),
    };
    topic.ok(format!(
        "{} of {} available, {swap}; source MemAvailable",
        bytes(system.available.0),
        bytes(system.total.0)
    ));
    let governed = &seen.governed;
    let left = governed.headroom.0;
    let what = format!(
        "a model here would have {}{} above a floor of {}, by {}: level {}",
        if left < 0 { "-" } else { "" },
        bytes(left.unsigned_abs()),
        bytes(governed.floor.0),
        governed.bound,
        seen.level.name()
    );
    match seen.level {
        Level::Green => topic.ok(what),
        _ if &*governed.bound == "system" => topic.warning(
            what,
            "end what takes memory (ps aux --sort=-rss | head), or take a smaller model",
        ),
        _ => topic.warning(
            what,
            "sudo systemctl set-property glmd MemoryMax= with more",
        ),
    }
}

fn shortage(status: &Status) -> &'static str {
    if status.level_reason.contains("hot") {
        "cool the processor"
    } else {
        "end what takes memory (ps aux --sort=-rss | head), lower model.kv_mib, or take a smaller model"
    }
}

pub(super) fn groups(seen: &Seen, topic: &mut Topic<'_>) {
    let groups = &seen.snapshot.groups;
    let version = match groups.version {
        Some(GroupVersion::V1) => "version 1",
        Some(GroupVersion::V2) => "version 2",
        None => {
            topic.note(
                "no control group tells of memory, so MemoryMax= has no effect here",
                "on a Raspberry Pi: append cgroup_enable=memory to the line in /boot/firmware/cmdline.txt and reboot",
            );
            return;
        }
    };
    let limited: Vec<String> = groups
        .levels
        .iter()
        .filter_map(|group| {
            let limit = group.limit?;
            Some(format!(
                "{} uses {} of {}",
                group.path,
                bytes(group.current.0),
                bytes(limit.0)
            ))
        })
        .collect();
    match limited.is_empty() {
        true => topic.ok(format!("{version}, without limits for this program")),
        false => topic.ok(format!("{version}: {}", limited.join("; "))),
    }
    if let Some(events) = groups.events
        && events.oom_kill > 0
    {
        topic.warning(
            format!(
                "{} processes of this group were killed for want of memory",
                events.oom_kill
            ),
            "journalctl -k -g oom tells which; raise MemoryMax= of their unit",
        );
    }
}

pub(super) fn pressure(seen: &Seen, topic: &mut Topic<'_>) {
    let (whose, pressure) = match (seen.snapshot.groups.pressure, seen.snapshot.pressure) {
        (Some(own), _) => ("tasks of this control group", own),
        (None, Some(system)) => ("tasks of the system", system),
        (None, None) => {
            topic.note(
                "the kernel does not tell of stalls (PSI); rates of /proc/vmstat are used, which is slower to notice",
                "append psi=1 to the kernel command line (Raspberry Pi: /boot/firmware/cmdline.txt) and reboot",
            );
            return;
        }
    };
    let what = format!(
        "{whose} waited for memory in {:.1} % of the last ten seconds",
        pressure.some.percent
    );
    match pressure.some.percent < FELT {
        true => topic.ok(what),
        false => topic.warning(what, "end what takes memory (ps aux --sort=-rss | head)"),
    }
}

pub(super) fn heat(seen: &Seen, topic: &mut Topic<'_>) {
    let heat = &seen.snapshot.heat;
    let slowed = heat.clocks.iter().find(|clock| clock.allowed < clock.most);
    if let Some(clock) = slowed {
        topic.warning(
            format!(
                "processors may run at {} of {} MHz",
                clock.allowed / 1000,
                clock.most / 1000
            ),
            "cool the processor, check its power supply, and see `cpupower frequency-info`",
        );
    }
    match heat.zones.iter().max_by_key(|zone| zone.temperature) {
        None => topic.ok("no temperature can be read here"),
        Some(zone) => {
            let what = format!("{} has {} °C", zone.name, zone.temperature / 1000);
            match zone.throttles_at {
                Some(at) if zone.temperature >= at => {
                    topic.warning(
                        what + ", where the kernel slows it down",
                        "cool the processor",
                    );
                }
                Some(at) => topic.ok(format!(
                    "{what}, it is slowed down from {} °C on",
                    at / 1000
                )),
                None => topic.ok(what),
            }
        }
    }
}
