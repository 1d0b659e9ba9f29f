//! Threads follow affinity, quota and the strength of processors.
#![allow(
    clippy::tests_outside_test_module,
    reason = "an integration test is a test module as a whole"
)]

use std::fs;
use std::path::Path;

use glm_engine::backend::threads::{Processors, Threads, decide, read};

fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn threads(files: &[(&str, &str)]) -> Threads {
    decide(&read(system(files).path()), None)
}

fn alike(count: usize) -> Threads {
    Threads {
        count,
        cpus: Vec::new(),
    }
}

const FOUR: (&str, &str) = (
    "proc/self/status",
    "Name:\tglmd\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3\n",
);

#[test]
fn every_allowed_processor_gets_a_thread() {
    assert_eq!(threads(&[FOUR]), alike(4));
    let some = ("proc/self/status", "Cpus_allowed_list:\t0,2-3,7\n");
    let read = read(system(&[some]).path());
    assert_eq!(read.allowed, [0, 2, 3, 7]);
}

#[test]
fn only_big_cores_are_used_where_the_kernel_tells_them() {
    // RK3588: four A55, then four A76.
    let mut files = vec![("proc/self/status", "Cpus_allowed_list:\t0-7\n")];
    let paths: Vec<String> = (0..8)
        .map(|cpu| format!("sys/devices/system/cpu/cpu{cpu}/cpu_capacity"))
        .collect();
    for (cpu, path) in paths.iter().enumerate() {
        files.push((path, if cpu < 4 { "414\n" } else { "1024\n" }));
    }
    let expected = Threads {
        count: 4,
        cpus: vec![4, 5, 6, 7],
    };
    assert_eq!(threads(&files), expected);
    // Whoever asks for more threads than there are big cores gets all cores.
    let processors = read(system(&files).path());
    assert_eq!(decide(&processors, Some(6)), alike(6));
    // An affinity of little cores only: then they are what there is.
    files[0].1 = "Cpus_allowed_list:\t0-3\n";
    assert_eq!(threads(&files), alike(4));
}

#[test]
fn a_quota_of_version_2_counts_down_whatever_group_sets_it() {
    let group = ("proc/self/cgroup", "0::/system.slice/glmd.service\n");
    let own = "sys/fs/cgroup/system.slice/glmd.service/cpu.max";
    let above = "sys/fs/cgroup/system.slice/cpu.max";
    assert_eq!(threads(&[FOUR, group, (own, "max 100000\n")]), alike(4));
    assert_eq!(threads(&[FOUR, group, (own, "250000 100000\n")]), alike(2));
    let both = [
        FOUR,
        group,
        (own, "300000 100000\n"),
        (above, "50000 100000\n"),
    ];
    assert_eq!(threads(&both), alike(1));
}

#[test]
fn a_quota_of_version_1_counts_too() {
    let group = (
        "proc/self/cgroup",
        "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
    );
    let quota = "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us";
    let period = "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us";
    assert_eq!(
        threads(&[FOUR, group, (quota, "300000"), (period, "100000")]),
        alike(3)
    );
    assert_eq!(
        threads(&[FOUR, group, (quota, "-1"), (period, "100000")]),
        alike(4)
    );
    // Inside a container the group is mounted as the top.
    let top = "sys/fs/cgroup/cpu/cpu.cfs_quota_us";
    let top_period = "sys/fs/cgroup/cpu/cpu.cfs_period_us";
    assert_eq!(
        threads(&[FOUR, group, (top, "200000"), (top_period, "100000")]),
        alike(2)
    );
}

#[test]
fn a_system_that_tells_nothing_gets_one_thread() {
    assert_eq!(threads(&[]), alike(1));
    assert_eq!(decide(&Processors::default(), Some(0)), alike(1));
    let broken = [
        ("proc/self/status", "Cpus_allowed_list:\tmany\n"),
        ("proc/self/cgroup", "no group\n0::/a\n"),
        ("sys/fs/cgroup/a/cpu.max", "lots\n"),
    ];
    assert_eq!(threads(&broken), alike(1));
}

#[test]
fn this_machine_gets_at_least_one_thread() {
    let threads = decide(&read(Path::new("/")), None);
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    assert!((1..=most).contains(&threads.count), "{threads:?}");
}
