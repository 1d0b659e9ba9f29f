//! The one error type of this crate.

use crate::isa::Isa;

/// Why a kernel or the pool refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice or a count does not fit the shapes it came with.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// What was measured.
        what: &'static str,
        /// Its size by the other arguments.
        expected: usize,
        /// Its size.
        found: usize,
    },
    /// A size that no kernel here handles.
    #[error("{what} {value} is not supported: {reason}")]
    Unsupported {
        /// What has the value.
        what: &'static str,
        /// The value.
        value: usize,
        /// What would be.
        reason: &'static str,
    },
    /// This machine lacks an instruction set.
    #[error("this machine has no {0}; it has {list}", list = Isa::names_of(&Isa::available()))]
    MissingIsa(Isa),
    /// No instruction set has this name.
    #[error("`{0}` names no instruction set; known are {list}", list = Isa::names_of(&Isa::ALL))]
    UnknownIsa(String),
    /// The step needs more blocks than are free. Nothing changed.
    #[error("the key/value cache has {free} free blocks, the step needs {needed}")]
    OutOfBlocks {
        /// Blocks that the step needs.
        needed: usize,
        /// Blocks that are free.
        free: usize,
    },
    /// The rows of a step break its rules.
    #[error("the step is not runnable: {0}")]
    BadStep(String),
    /// Attention was called outside a step.
    #[error("no step is open on the key/value cache")]
    NoStep,
    /// A sequence cannot be forked so.
    #[error("cannot fork: {0}")]
    BadFork(String),
    /// A position or a row lies outside a table.
    #[error("{what} {index} lies outside a table of {rows} rows")]
    Outside {
        /// What was looked up.
        what: &'static str,
        /// Its number.
        index: u64,
        /// Rows of the table.
        rows: usize,
    },
    /// The system gave no address space for the pool.
    #[error("cannot reserve {bytes} bytes for the key/value cache: {source}")]
    Reserve {
        /// Size of the reservation.
        bytes: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

impl KernelError {
    /// Stable name of the kind.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Shape { .. } => "kernel_shape",
            Self::Unsupported { .. } => "kernel_unsupported",
            Self::MissingIsa(_) => "isa_missing",
            Self::UnknownIsa(_) => "isa_unknown",
            Self::OutOfBlocks { .. } => "kv_out_of_blocks",
            Self::BadStep(_) => "kv_bad_step",
            Self::NoStep => "kv_no_step",
            Self::BadFork(_) => "kv_bad_fork",
            Self::Outside { .. } => "kernel_index_outside",
            Self::Reserve { .. } => "kv_reserve",
        }
    }
}

/// `Ok` when `found` is `expected`.
pub(crate) fn expect_size(
    what: &'static str,
    expected: Option<usize>,
    found: usize,
) -> Result<(), KernelError> {
    if expected == Some(found) {
        Ok(())
    } else {
        Err(KernelError::Shape {
            what,
            expected: expected.unwrap_or(usize::MAX),
            found,
        })
    }
}
