//! Vectors of f32, one implementation an instruction set.
//!
//! Attention and the plain products are written once over [`Simd`] and compiled
//! for each set: a function with `#[target_feature]` calls the generic code,
//! whose every part is `#[inline(always)]`, so the intrinsics end up in a
//! function that has their features. The scalar implementation is the safe
//! twin that all others are tested against.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;

/// Lanes of f32.
///
/// # Safety
/// Every method needs the instruction set of its type; those with pointers
/// need as many readable or writable elements as there are lanes. No alignment
/// is needed beyond that of the element.
#[allow(
    clippy::missing_safety_doc,
    reason = "one contract for all, said above"
)]
pub(crate) trait Simd: Copy {
    /// Lanes of a vector.
    const LANES: usize;
    /// A vector.
    type F: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, x: Self::F);
    /// f16, as bits.
    unsafe fn load_f16(from: *const u16) -> Self::F;
    /// To f16, as bits; numbers within the range of f16 or infinite.
    unsafe fn store_f16(to: *mut u16, x: Self::F);
    unsafe fn load_i8(from: *const i8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// Nearest whole numbers.
    unsafe fn round(x: Self::F) -> Self::F;
    /// `2^x` of whole numbers within -126..=127.
    unsafe fn exp2_of_whole(x: Self::F) -> Self::F;
    /// `x` in the first `count` lanes, `other` in those after.
    unsafe fn first(x: Self::F, count: usize, other: Self::F) -> Self::F;
    unsafe fn reduce_max(x: Self::F) -> f32;
    unsafe fn reduce_add(x: Self::F) -> f32;
}

/// An element that a vector of f32 is loaded from.
pub(crate) trait Element: Copy {
    /// # Safety
    /// As for [`Simd`].
    unsafe fn load<S: Simd>(from: *const Self) -> S::F;
    /// As f32.
    fn get(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F {
        // SAFETY: the promise of the caller.
        unsafe { S::load(from) }
    }
}

/// Bits of an f16.
impl Element for u16 {
    #[inline(always)]
    fn get(self) -> f32 {
        half::f16::from_bits(self).to_f32()
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F {
        // SAFETY: the promise of the caller.
        unsafe { S::load_f16(from) }
    }
}

impl Element for i8 {
    #[inline(always)]
    fn get(self) -> f32 {
        f32::from(self)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F {
        // SAFETY: the promise of the caller.
        unsafe { S::load_i8(from) }
    }
}

/// `e^x` for `x` not above 0, within 2 units in the last place; below -87 it is about `1e-38`.
///
/// Range reduction by `ln 2` in two parts and a polynomial of degree six
/// (Cephes, `expf`).
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the promise of the caller; nothing here touches memory.
    unsafe {
        let x = S::max(x, S::splat(-87.3));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut y = S::splat(1.987_569_1e-4);
        for c in [
            1.398_199_9e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            5e-1,
        ] {
            y = S::fma(y, r, S::splat(c));
        }
        let y = S::fma(S::mul(y, r), r, S::add(r, S::splat(1.0)));
        S::mul(y, S::exp2_of_whole(n))
    }
}
