//! The end of a process that has runtimes written in C++ in it.

use std::io::Write as _;

/// Ends the process with `status`, at once.
///
/// A process that ends by itself first runs the destructors of its libraries. A thread that is just then in ONNX
/// Runtime, such as one that loads a model which nobody waits for any more, meets objects that are gone and takes
/// the process down by SIGSEGV or SIGABRT, which a service manager counts as a crash. Nothing here needs them: files
/// are whole when they have their names.
pub fn leave(status: u8) -> ! {
    // Whoever reads may be gone.
    let _ = std::io::stdout().flush();
    // SAFETY: takes no pointer and does not return.
    unsafe { libc::_exit(status.into()) }
}
