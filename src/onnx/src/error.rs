//! The one error type of this crate.

use std::path::{Path, PathBuf};

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a checkpoint folder and a model directory.
#[expect(
    clippy::error_impl_error,
    reason = "one error enum a crate, named as `std::io::Error` is"
)]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that the checkpoint must have is not there.
    #[error("{}: not found; {hint}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Where to get it from.
        hint: String,
    },
    /// A checkpoint file breaks its own format.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the offset or field.
        reason: String,
    },
    /// A pickle asks for something other than tensors.
    #[error("{}: the pickle names `{global}`, which is not a tensor; nothing was executed", path.display())]
    ForbiddenGlobal {
        /// The file.
        path: PathBuf,
        /// `module.name` that was refused.
        global: String,
    },
    /// A tensor that the model needs is not in the checkpoint.
    #[error("{}: tensor `{tensor}` is missing", path.display())]
    MissingTensor {
        /// Checkpoint folder or file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor disagrees with the configuration or holds values that cannot be used.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor {
        /// File that holds it.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// What is wrong: shapes expected and found, or the first bad value.
        reason: String,
    },
    /// An option of the export does not fit the model.
    #[error("`{option}`: {reason}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// What is wrong and what is accepted.
        reason: String,
    },
    /// An exported file is not what its manifest says.
    #[error("{}: {reason}; export or download the model again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Sizes or hashes, expected and found.
        reason: String,
    },
    /// Whoever watched the progress asked for an end.
    #[error("stopped; nothing was left behind")]
    Cancelled,
    /// The model description or tokenizer is not usable.
    #[error(transparent)]
    Model(#[from] glm::Error),
}

impl Error {
    /// Wraps an I/O error with the path it happened at.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.as_ref().to_owned(),
            source,
        }
    }

    /// A file that breaks its format.
    pub fn malformed(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.as_ref().to_owned(),
            reason: reason.into(),
        }
    }

    /// A tensor that disagrees with the configuration.
    pub fn tensor(
        path: impl AsRef<Path>,
        tensor: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self::Tensor {
            path: path.as_ref().to_owned(),
            tensor: tensor.into(),
            reason: reason.into(),
        }
    }

    /// Stable name of the kind of error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Missing { .. } => "file_missing",
            Self::Malformed { .. } => "malformed_file",
            Self::ForbiddenGlobal { .. } => "forbidden_pickle",
            Self::MissingTensor { .. } => "tensor_missing",
            Self::Tensor { .. } => "bad_tensor",
            Self::Option { .. } => "bad_option",
            Self::Corrupt { .. } => "corrupt_model",
            Self::Cancelled => "cancelled",
            Self::Model(e) => e.code(),
        }
    }

    /// Exit status for command-line programs, after `sysexits.h`: 74 when the
    /// system failed, 64 for a wrong option, 65 when the input is at fault; 130
    /// after an interruption, as shells report it.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Io { .. } => 74,
            Self::Option { .. } => 64,
            Self::Cancelled => 130,
            _ => 65,
        }
    }
}
