//! Temperatures and clock rates: `/sys/class/thermal` and cpufreq.

use super::files::Root;
use super::{Clockrate, Heat, Zone};

/// Sensors that are switched off or broken report numbers outside of these, in millidegrees.
const SANE: std::ops::RangeInclusive<i64> = -40_000..=150_000;
/// Trip points below this are placeholders of the firmware: nothing is throttled at 30 degrees.
const LOWEST_TRIP: i64 = 45_000;
/// Most trip points looked at in one zone.
const TRIPS: usize = 16;

pub(super) fn read(root: &Root) -> Heat {
    Heat {
        zones: (root.list("/sys/class/thermal", "thermal_zone").iter())
            .filter_map(|name| zone(root, &format!("/sys/class/thermal/{name}")))
            .collect(),
        clocks: (root
            .list("/sys/devices/system/cpu/cpufreq", "policy")
            .iter())
        .filter_map(|name| clock(root, &format!("/sys/devices/system/cpu/cpufreq/{name}")))
        .collect(),
    }
}

fn zone(root: &Root, folder: &str) -> Option<Zone> {
    let temperature = root
        .number(format!("{folder}/temp"))
        .filter(|t| SANE.contains(t))?;
    let kind = root.text(format!("{folder}/type")).unwrap_or_default();
    let mut zone = Zone {
        name: kind.trim().into(),
        temperature,
        throttles_at: None,
        shuts_down_at: None,
    };
    for trip in 0..TRIPS {
        let Some(kind) = root.text(format!("{folder}/trip_point_{trip}_type")) else {
            break;
        };
        let at = root.number::<i64>(format!("{folder}/trip_point_{trip}_temp"));
        let Some(at) = at.filter(|at| (LOWEST_TRIP..=*SANE.end()).contains(at)) else {
            continue;
        };
        let place = match kind.trim() {
            "passive" | "hot" => &mut zone.throttles_at,
            "critical" => &mut zone.shuts_down_at,
            _ => continue,
        };
        *place = Some(place.map_or(at, |lowest: i64| lowest.min(at)));
    }
    Some(zone)
}

fn clock(root: &Root, folder: &str) -> Option<Clockrate> {
    let read = |file: &str| root.number::<u64>(format!("{folder}/{file}"));
    let most = read("cpuinfo_max_freq").filter(|most| *most > 0)?;
    Some(Clockrate {
        now: read("scaling_cur_freq")?,
        allowed: read("scaling_max_freq").unwrap_or(most),
        most,
    })
}
