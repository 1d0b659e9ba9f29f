//! The libonnxruntime of this machine, and the child of a test that tries it out.
#![allow(dead_code, reason = "each test target uses a part")]

use std::ffi::OsString;
use std::path::PathBuf;

use glm_engine::backend::library::{PROBE_VARIABLE, Prober, answer_probe};

/// The other half of every test here: the child that loads the library.
#[test]
fn answers_when_it_is_the_child() {
    let is_child = std::env::var_os(PROBE_VARIABLE).is_some();
    assert_eq!(answer_probe().is_some(), is_child);
}

/// Tries a library out in this program, which then runs that test alone.
pub fn prober() -> Prober {
    let test = concat!(module_path!(), "::answers_when_it_is_the_child");
    // Tests are named without their crate.
    let (_, test) = test.split_once("::").unwrap();
    let arguments = ["--exact", test, "--nocapture"];
    let program = std::env::current_exe().unwrap();
    Prober::new(program, arguments.map(OsString::from).to_vec())
}

/// The library, where `make` or somebody else has named one.
pub fn working() -> Option<PathBuf> {
    let path = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from)?;
    path.is_file().then_some(path)
}

/// The same for tests that have nothing to do without it, which is said.
pub fn needed() -> Option<PathBuf> {
    let path = working();
    if path.is_none() {
        eprintln!("skipped: ORT_DYLIB_PATH names no libonnxruntime");
    }
    path
}
