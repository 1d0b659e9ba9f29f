//! Which instruction set runs, found out once and handed on as a value.

use std::fmt;
use std::str::FromStr;

use crate::error::KernelError;

/// Environment variable that names the instruction set to use.
pub const ISA_VARIABLE: &str = "GLMD_ISA";

/// Sets of instructions that kernels are written for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// No vector instruction named; every machine.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512Vnni,
    /// NEON, as on every 64-bit ARM (Cortex-A53, A72).
    Neon,
    /// NEON with the four-way dot product (Cortex-A76 of the Raspberry Pi 5, Neoverse N1).
    NeonDotprod,
    /// NEON with INT8 matrix products (Cortex-A78AE and later, Neoverse V1).
    NeonI8mm,
}

impl Isa {
    /// Every set, whether this machine has it or not.
    pub const ALL: [Self; 6] = [
        Self::Scalar,
        Self::Avx2,
        Self::Avx512Vnni,
        Self::Neon,
        Self::NeonDotprod,
        Self::NeonI8mm,
    ];

    /// Name for configuration, status and [`ISA_VARIABLE`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Neon => "neon",
            Self::NeonDotprod => "neon-dotprod",
            Self::NeonI8mm => "neon-i8mm",
        }
    }

    /// Whether this machine has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => {
                Self::Neon.is_available() && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => {
                Self::NeonDotprod.is_available() && std::arch::is_aarch64_feature_detected!("i8mm")
            }
            _ => false,
        }
    }

    /// Every set that this machine has, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect()
    }

    /// The fastest set that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        Self::ALL
            .into_iter()
            .rev()
            .find(|isa| isa.is_available())
            .unwrap_or(Self::Scalar)
    }

    pub(crate) fn names_of(list: &[Self]) -> String {
        let names: Vec<&str> = list.iter().map(|isa| isa.name()).collect();
        names.join(", ")
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = KernelError;

    fn from_str(name: &str) -> Result<Self, KernelError> {
        Self::ALL
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| KernelError::UnknownIsa(name.to_owned()))
    }
}

/// The kernels of one instruction set that this machine is known to have.
///
/// ```
/// let kernels = glm_kernels::Kernels::detect();
/// assert!(kernels.isa().is_available());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernels {
    isa: Isa,
}

impl Kernels {
    /// The fastest that this machine runs.
    #[must_use]
    pub fn detect() -> Self {
        Self { isa: Isa::detect() }
    }

    /// Those of `isa`.
    ///
    /// # Errors
    /// [`KernelError::MissingIsa`] when this machine lacks it.
    pub fn with_isa(isa: Isa) -> Result<Self, KernelError> {
        if isa.is_available() {
            Ok(Self { isa })
        } else {
            Err(KernelError::MissingIsa(isa))
        }
    }

    /// Those that [`ISA_VARIABLE`] names, or the fastest where it is unset or empty.
    ///
    /// # Errors
    /// [`KernelError::UnknownIsa`] and [`KernelError::MissingIsa`].
    pub fn from_env() -> Result<Self, KernelError> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::with_isa(name.parse()?),
            _ => Ok(Self::detect()),
        }
    }

    /// What they are written for.
    #[must_use]
    pub const fn isa(self) -> Isa {
        self.isa
    }
}
