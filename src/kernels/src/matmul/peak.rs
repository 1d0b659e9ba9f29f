//! How fast a core multiplies bytes at most: the bound of products that do not wait for memory.

use std::hint::black_box;

#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::isa::{Isa, Kernels};

/// Rounds after which sums of 16 bits are added up: each adds two to a lane.
pub(super) const SHORT: usize = 8192;

impl Kernels {
    /// Multiplies bytes in registers, with the instruction that the products of this set are written for and
    /// nothing beside it, and returns how many products that were; the caller looks at the clock. A round is some
    /// hundred products or more.
    ///
    /// All operands are one and the sums are the answer, so that it tells what was really computed.
    #[must_use]
    pub fn multiply_bytes(self, rounds: usize) -> u64 {
        match self.isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the set was found on this machine.
            Isa::Avx512Vnni => unsafe { avx512::multiply_bytes(rounds) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { avx2::multiply_bytes(rounds) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::Neon => unsafe { neon::multiply_bytes(rounds) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::NeonDotprod => unsafe { neon::multiply_bytes_dotprod(rounds) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::NeonI8mm => unsafe { neon::multiply_bytes_i8mm(rounds) },
            _ => plain(rounds),
        }
    }
}

/// The plain code, in whatever the compiler makes of it.
fn plain(rounds: usize) -> u64 {
    const LANES: usize = 64;
    let a = black_box([1_i8; LANES]);
    let mut sums = [0_i32; LANES];
    let mut all = 0;
    for _ in 0..rounds.div_ceil(SHORT) {
        for _ in 0..SHORT {
            let w = black_box(1_i8);
            for (sum, a) in sums.iter_mut().zip(a) {
                *sum += i32::from(a) * i32::from(w);
            }
        }
        all += total(&std::mem::replace(&mut sums, [0; LANES]));
    }
    all
}

/// Sum of sums, none of which is negative.
pub(super) fn total(sums: &[i32]) -> u64 {
    sums.iter().map(|sum| u64::from(sum.unsigned_abs())).sum()
}
