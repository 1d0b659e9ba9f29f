//! The one ONNX Runtime of this process.
//!
//! A process loads one libonnxruntime and keeps it: it cannot be taken out
//! again, and probing a library costs a child process. Both are done once.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;
use ort::memory::DeviceType;

use crate::backend::library::{Candidate, Prober, Search};

/// The environment of the library that was loaded first.
static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);
/// What the last search came to, and for which candidates.
static SEARCHED: Mutex<Option<(Vec<Candidate>, Search)>> = Mutex::new(None);

/// Looks for a library that loads; the same question is answered from memory.
pub(super) fn search(prober: &Prober, candidates: Vec<Candidate>) -> Search {
    let mut searched = SEARCHED.lock().unwrap_or_else(PoisonError::into_inner);
    match searched.as_ref() {
        Some((asked, search)) if *asked == candidates => search.clone(),
        _ => {
            let search = prober.search(candidates.clone());
            *searched = Some((candidates, search.clone()));
            search
        }
    }
}

/// The environment of `library`.
///
/// # Errors
/// With the loader's message, or when another library is loaded already.
pub(super) fn environment(library: &Path) -> Result<Environment, String> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((path, environment)) = loaded.as_ref() {
        return if path == library {
            Ok(environment.clone())
        } else {
            Err(format!(
                "{} is loaded already; {} needs a restart",
                path.display(),
                library.display()
            ))
        };
    }
    let failed = |error: &dyn Display| format!("{}: {error}", library.display());
    let environment = ort::init_from(library)
        .map_err(|error| failed(&error))?
        .with_telemetry(false)
        .build()
        .map_err(|error| failed(&error))?;
    *loaded = Some((library.to_owned(), environment.clone()));
    Ok(environment)
}

/// Execution providers of the library and the devices that they find here, such as
/// `CPUExecutionProvider (CPU, Arm)`.
pub(super) fn providers(environment: &Environment) -> Vec<String> {
    let mut names: Vec<String> = environment
        .devices()
        .filter_map(|device| {
            let hardware = device.hardware_device();
            let kind = match hardware.ty() {
                DeviceType::CPU => "CPU",
                DeviceType::GPU => "GPU",
                DeviceType::NPU => "NPU",
                _ => "other",
            };
            let maker = match hardware.vendor() {
                Ok(vendor) if !vendor.is_empty() => format!(", {vendor}"),
                _ => String::new(),
            };
            Some(format!("{} ({kind}{maker})", device.ep().ok()?))
        })
        .collect();
    // The same device may be found twice.
    names.sort();
    names.dedup();
    names
}
