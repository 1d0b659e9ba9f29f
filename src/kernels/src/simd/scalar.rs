//! Vectors as arrays: every machine, and the twin of the SIMD code in tests.

use half::f16;

use super::Simd;

/// Lanes of the arrays.
const LANES: usize = 8;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

/// `a b + c`, rounded once where the machine can do that quickly.
#[inline(always)]
pub(crate) fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_arch = "arm") {
        a * b + c
    } else {
        a.mul_add(b, c)
    }
}

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl Simd for Scalar {
    const LANES: usize = LANES;
    type F = [f32; LANES];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: eight readable elements by the promise of the caller.
        each(|i| unsafe { from.add(i).read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: eight writable elements by the promise of the caller.
            unsafe { to.add(i).write_unaligned(x) }
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        // SAFETY: eight readable elements by the promise of the caller.
        each(|i| f16::from_bits(unsafe { from.add(i).read_unaligned() }).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, x: Self::F) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: eight writable elements by the promise of the caller.
            unsafe { to.add(i).write_unaligned(f16::from_f32(x).to_bits()) }
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self::F {
        // SAFETY: eight readable elements by the promise of the caller.
        each(|i| f32::from(unsafe { from.add(i).read() }))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| fused(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i].min(b[i]))
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        each(|i| x[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn exp2_of_whole(x: Self::F) -> Self::F {
        // Adding 1.5 * 2^23 leaves the number in the low bits of the sum.
        each(|i| {
            let whole = (x[i] + 12_582_912.0).to_bits();
            f32::from_bits(whole.wrapping_add(127) << 23)
        })
    }
    #[inline(always)]
    unsafe fn first(x: Self::F, count: usize, other: Self::F) -> Self::F {
        each(|i| if i < count { x[i] } else { other[i] })
    }
    #[inline(always)]
    unsafe fn reduce_max(x: Self::F) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn reduce_add(x: Self::F) -> f32 {
        ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
    }
}
