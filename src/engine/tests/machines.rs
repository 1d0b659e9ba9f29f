//! What is read from the machines that people have, and from broken ones.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module"
)]

use std::fs;
use std::path::{Path, PathBuf};

use glm_engine::memory::headroom::{Headroom, Weights, floor, headroom};
use glm_engine::memory::telemetry::{
    Detail, GroupEvents, GroupVersion, Machine, Root, Snapshot, Telemetry,
};
use glm_engine::units::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

const MACHINES: [(&str, &str); 5] = [
    (
        "raspberry-pi-os",
        include_str!("machines/raspberry-pi-os.txt"),
    ),
    ("jetson-hybrid", include_str!("machines/jetson-hybrid.txt")),
    ("debian-v2", include_str!("machines/debian-v2.txt")),
    (
        "container-limit-on-parent",
        include_str!("machines/container-limit-on-parent.txt"),
    ),
    ("docker-v1", include_str!("machines/docker-v1.txt")),
];

/// A file tree, written as `-- path --` before the text of each file.
struct Tree(TempDir);

impl Tree {
    fn of(name: &str) -> Self {
        let (_, text) = MACHINES.iter().find(|(n, _)| *n == name).unwrap();
        let tree = Self(tempfile::tempdir().unwrap());
        for (path, content) in files(text) {
            tree.write(path, content);
        }
        tree
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let place = self.0.path().join(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, content).unwrap();
    }

    fn remove(&self, path: &str) {
        let place = self.0.path().join(path);
        match place.is_dir() {
            true => fs::remove_dir_all(place).unwrap(),
            false => fs::remove_file(place).unwrap(),
        }
    }

    fn machine(&self) -> Machine {
        Machine::at(Root::at(self.0.path()))
    }

    fn snapshot(&self) -> Snapshot {
        self.machine().snapshot(Detail::Full)
    }
}

fn files(text: &str) -> Vec<(&str, &str)> {
    let mut files = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-- ") {
        let (path, after) = after.split_once(" --\n").unwrap();
        let end = after.find("\n-- ").map_or(after.len(), |end| end + 1);
        files.push((path, &after[..end]));
        rest = &after[end..];
    }
    files
}

const fn kib(count: u64) -> Bytes {
    Bytes(count * 1024)
}

fn mapped(bytes: Bytes) -> Weights {
    Weights {
        mapped: bytes,
        missing: Bytes(0),
    }
}

fn left(snapshot: &Snapshot, weights: Bytes) -> Headroom {
    headroom(snapshot, mapped(weights), Some(Bytes(0))).unwrap()
}

#[test]
fn raspberry_pi_os_has_neither_groups_nor_pressure() {
    let snapshot = Tree::of("raspberry-pi-os").snapshot();
    assert_eq!(snapshot.groups.version, None);
    assert!(snapshot.groups.levels.is_empty());
    assert_eq!((snapshot.pressure, snapshot.groups.pressure), (None, None));
    let counters = snapshot.counters.unwrap();
    assert_eq!((counters.refaults, counters.stalls), (311, 12));
    // All 400 MB of weights are resident, and still they are counted as available.
    let headroom = left(&snapshot, kib(400_000));
    assert_eq!(headroom.margin, kib(2_912_448 - 400_000).margin());
    assert_eq!(&*headroom.bound, "system");
    let heat = snapshot.heat;
    assert_eq!(heat.zones[0].temperature, 81_237);
    assert_eq!(heat.zones[0].throttles_at, None);
    assert_eq!(heat.zones[0].shuts_down_at, Some(110_000));
    assert_eq!(
        (heat.clocks[0].now, heat.clocks[0].most),
        (1_200_000, 1_800_000)
    );
}

#[test]
fn a_jetson_has_its_limit_in_version_1_and_its_pressure_in_version_2() {
    let snapshot = Tree::of("jetson-hybrid").snapshot();
    assert_eq!(snapshot.groups.version, Some(GroupVersion::V1));
    assert_eq!(snapshot.groups.levels.len(), 3);
    assert_eq!(snapshot.groups.levels[0].limit, Some(Bytes::mib(2048)));
    assert_eq!(snapshot.groups.levels[1].limit, None);
    let events = GroupEvents {
        max: 7,
        oom_kill: 1,
        ..GroupEvents::default()
    };
    assert_eq!(snapshot.groups.events, Some(events));
    assert_eq!(snapshot.groups.pressure.unwrap().some.percent, 2.5);
    assert_eq!(snapshot.pressure.unwrap().full.micros, 300_123);
    // Older kernels do not part refaults of files from others.
    assert_eq!(snapshot.counters.unwrap().refaults, 20_111);
    // 2048 MiB less what is charged for good: 1536 - 300 MiB. All weights are on the active list.
    let headroom = left(&snapshot, Bytes::mib(1000));
    assert_eq!(headroom.margin, Bytes::mib(2048 - 1236).margin());
    // A graphics processor that takes all memory is not charged to the group: the system says it.
    let mut taken = snapshot.clone();
    taken.system.as_mut().unwrap().available = Bytes::mib(1100);
    assert_eq!(
        left(&taken, Bytes::mib(1000)).margin,
        Bytes::mib(100).margin()
    );
    // A sensor that is switched off is no sensor.
    assert_eq!(snapshot.heat.zones.len(), 1);
    assert_eq!(snapshot.heat.zones[0].throttles_at, Some(97_000));
}

#[test]
fn a_service_under_debian_has_its_own_limits() {
    let snapshot = Tree::of("debian-v2").snapshot();
    assert_eq!(snapshot.groups.version, Some(GroupVersion::V2));
    let own = &snapshot.groups.levels[0];
    // The tighter of `memory.high` and `memory.max`.
    assert_eq!(own.limit, Some(Bytes::mib(2048)));
    assert_eq!(own.swapped, Bytes::mib(8));
    assert_eq!(snapshot.groups.levels[1].limit, None, "`max` is no limit");
    let events = snapshot.groups.events.unwrap();
    assert_eq!((events.high, events.max, events.oom), (42, 3, 1));
    assert_eq!(snapshot.groups.pressure.unwrap().full.percent, 5.0);
    let process = snapshot.process.unwrap();
    assert_eq!(process.footprint(), kib(200_000 - 50_000 + 8192));
    // Not `limit - current` (512 MiB): cache that nobody needs does not count.
    let headroom = left(&snapshot, Bytes(0));
    assert_eq!(headroom.margin, Bytes::mib(2048 - 1536 + 500 + 10).margin());
    // Weights that fit the active list are charged already; they are locked here besides.
    assert_eq!(left(&snapshot, Bytes::mib(574)).margin, headroom.margin);
    // Weights that must be partly on the inactive list are no free memory.
    let mut unlocked = snapshot;
    unlocked.process.as_mut().unwrap().locked = Bytes(0);
    assert_eq!(
        left(&unlocked, Bytes::mib(674)).margin,
        // The active list holds 602,112,000 bytes of the 674 MiB.
        headroom.margin.less(Bytes(674 * 1_048_576 - 602_112_000))
    );
}

#[test]
fn the_root_of_version_2_has_no_figures_but_its_groups_can_have_limits() {
    let tree = Tree::of("debian-v2");
    tree.write("proc/self/cgroup", "0::/\n");
    let snapshot = tree.snapshot();
    assert_eq!(snapshot.groups.version, Some(GroupVersion::V2));
    assert!(snapshot.groups.levels.is_empty());
    assert_eq!(&*left(&snapshot, Bytes(0)).bound, "system");
    // A kernel that was started without the controller.
    tree.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n");
    assert_eq!(tree.snapshot().groups.version, None);
}

#[test]
fn a_limit_on_a_parent_counts() {
    let tree = Tree::of("container-limit-on-parent");
    let snapshot = tree.snapshot();
    assert_eq!(snapshot.groups.levels.len(), 3);
    let headroom = left(&snapshot, Bytes(0));
    assert_eq!(headroom.margin, Bytes(1_073_741_824 - 600_000_000).margin());
    assert!(
        headroom.bound.ends_with("/run/my groups/pod7"),
        "{headroom:?}"
    );
    // With its own floor: 4 % of the limit would be less than the smallest.
    let with_floor = glm_engine::memory::headroom::headroom(&snapshot, mapped(Bytes(0)), None);
    assert_eq!(with_floor.unwrap().floor, Bytes::mib(64));
}

#[test]
fn a_limit_that_a_container_cannot_see_counts() {
    let snapshot = Tree::of("docker-v1").snapshot();
    assert_eq!(snapshot.groups.levels[0].limit, Some(Bytes::mib(512)));
    assert_eq!(
        left(&snapshot, Bytes(0)).margin,
        Bytes(536_870_912 - 200_000_000).margin()
    );
}

#[test]
fn weights_that_are_not_read_yet_are_promised_memory() {
    let snapshot = Tree::of("container-limit-on-parent").snapshot();
    let none = left(&snapshot, Bytes(0)).margin;
    // 100,000 KiB of files are resident at most, none of it on the inactive list of the parent.
    assert_eq!(left(&snapshot, kib(150_000)).margin, none.less(kib(50_000)));
    let unloaded = Weights {
        mapped: Bytes(0),
        missing: Bytes::mib(300),
    };
    assert_eq!(
        headroom(&snapshot, unloaded, Some(Bytes(0)))
            .unwrap()
            .margin,
        none.less(Bytes::mib(300))
    );
}

#[test]
fn floors_suit_the_size() {
    assert_eq!(floor(Bytes::mib(100)), Bytes::mib(25));
    assert_eq!(floor(Bytes::mib(1024)), Bytes::mib(64));
    assert_eq!(floor(Bytes(100 << 30)), Bytes(4 << 30));
}

#[test]
fn files_that_vanish_are_figures_that_are_missing() {
    for (name, text) in MACHINES {
        let all = Tree::of(name).snapshot();
        for (path, _) in files(text) {
            let tree = Tree::of(name);
            let mut machine = tree.machine();
            tree.remove(path);
            let snapshot = machine.snapshot(Detail::Full);
            if path != "proc/meminfo" {
                assert_eq!(snapshot.system, all.system, "{name} without {path}");
            }
            if !path.starts_with("proc/self") && !path.contains("memory") {
                assert_eq!(snapshot.groups, all.groups, "{name} without {path}");
            }
        }
    }
    // The whole group goes: a service that was moved while it ran.
    let tree = Tree::of("debian-v2");
    let mut machine = tree.machine();
    tree.remove("sys/fs/cgroup/system.slice/glmd.service");
    let snapshot = machine.snapshot(Detail::Quick);
    assert_eq!(snapshot.groups.levels.len(), 1);
    assert_eq!(&*left(&snapshot, Bytes(0)).bound, "system");
    tree.remove("sys");
    tree.remove("proc");
    assert_eq!(machine.snapshot(Detail::Full), Snapshot::default());
    assert_eq!(headroom(&Snapshot::default(), mapped(Bytes(1)), None), None);
}

#[test]
fn a_name_that_leads_out_of_the_root_leads_nowhere() {
    let tree = Tree::of("container-limit-on-parent");
    tree.write("proc/self/cgroup", "0::/../../../etc\n");
    let snapshot = tree.snapshot();
    // The mounted root itself, which has no limit.
    assert_eq!(snapshot.groups.levels.len(), 1);
    assert!(
        Root::at("/nowhere")
            .place(Path::new("/a/../../etc"))
            .is_none()
    );
    assert_eq!(
        Root::at("/x").place(Path::new("/proc/stat")),
        Some(PathBuf::from("/x/proc/stat"))
    );
}

#[test]
fn this_machine_can_be_read() {
    let snapshot = Machine::default().snapshot(Detail::Full);
    let system = snapshot.system.unwrap();
    assert!(system.available.0 > 0 && system.available <= system.total);
    let process = snapshot.process.unwrap();
    assert!(process.anonymous.0 > 0 && process.resident() <= system.total);
    // What sysinfo says of the same machine; caches move a little between the two.
    let mut other = sysinfo::System::new().unwrap();
    other.refresh_memory();
    assert_eq!(system.total.0, other.total_memory());
    let apart = system.available.0.abs_diff(other.available_memory());
    assert!(apart < system.total.0 / 20, "{apart}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn garbage_is_no_figure_and_no_panic(
        machine in 0..MACHINES.len(),
        file in any::<prop::sample::Index>(),
        garbage in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            Just(b"18446744073709551615\n".to_vec()),
            Just(b"MemTotal: 18446744073709551615 kB\nMemAvailable: -1 kB\n".to_vec()),
            Just(b"0::\n\n:::\n4:memory\n - - \n".to_vec()),
            Just(b"some avg10=NaN total=x\nfull\n".to_vec()),
        ],
        weights in any::<u64>(),
    ) {
        let (name, text) = MACHINES[machine];
        let tree = Tree::of(name);
        let files = files(text);
        let (path, _) = files[file.index(files.len())];
        tree.write(path, garbage);
        let snapshot = tree.snapshot();
        let _ = headroom(&snapshot, mapped(Bytes(weights)), None);
    }

    /// More memory used by others never leaves us more; a tighter limit neither.
    #[test]
    fn headroom_falls_with_what_is_used(
        available in 0u64..1 << 40,
        current in 0u64..1 << 40,
        limit in 0u64..1 << 40,
        more in 0u64..1 << 30,
        weights in 0u64..1 << 32,
    ) {
        let mut snapshot = Tree::of("debian-v2").snapshot();
        let system = snapshot.system.as_mut().unwrap();
        system.available = Bytes(available);
        let group = &mut snapshot.groups.levels[0];
        (group.current, group.limit) = (Bytes(current), Some(Bytes(limit)));
        let before = headroom(&snapshot, mapped(Bytes(weights)), None).unwrap();
        let mut worse = snapshot.clone();
        worse.groups.levels[0].current.0 += more;
        worse.system.as_mut().unwrap().available = Bytes(available).less(Bytes(more));
        let after = headroom(&worse, mapped(Bytes(weights)), None).unwrap();
        prop_assert!(after.margin <= before.margin);
        let heavier = headroom(&snapshot, mapped(Bytes(weights + more)), None).unwrap();
        prop_assert!(heavier.margin <= before.margin);
    }
}
