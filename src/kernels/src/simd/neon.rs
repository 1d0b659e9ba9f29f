//! Four lanes: NEON of 64-bit ARM.

use std::arch::aarch64::{
    float32x4_t, vaddq_f32, vaddq_s32, vaddvq_f32, vbslq_f32, vcltq_u32, vcvt_f16_f32,
    vcvt_f32_f16, vcvtnq_s32_f32, vcvtq_f32_s32, vdup_n_u32, vdupq_n_f32, vdupq_n_s32, vdupq_n_u32,
    vfmaq_f32, vget_low_s16, vld1_u16, vld1q_f32, vld1q_u32, vmaxnmvq_f32, vmaxq_f32, vminq_f32,
    vmovl_s8, vmovl_s16, vmulq_f32, vreinterpret_f16_u16, vreinterpret_s8_u32,
    vreinterpret_u16_f16, vreinterpretq_f32_s32, vrndnq_f32, vshlq_n_s32, vst1_u16, vst1q_f32,
};

use super::Simd;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon;

// SAFETY of every block below: the caller has the instruction set and, where
// there is a pointer, four elements; the contract of `Simd` says both.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one reason for all, said above"
)]
impl Simd for Neon {
    const LANES: usize = 4;
    type F = float32x4_t;

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: float32x4_t) {
        unsafe { vst1q_f32(to, x) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> float32x4_t {
        unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, x: float32x4_t) {
        unsafe { vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(x))) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> float32x4_t {
        unsafe {
            let four = from.cast::<u32>().read_unaligned();
            let bytes = vreinterpret_s8_u32(vdup_n_u32(four));
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
        }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vminq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn round(x: float32x4_t) -> float32x4_t {
        unsafe { vrndnq_f32(x) }
    }
    #[inline(always)]
    unsafe fn exp2_of_whole(x: float32x4_t) -> float32x4_t {
        unsafe {
            let biased = vaddq_s32(vcvtnq_s32_f32(x), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn first(x: float32x4_t, count: usize, other: float32x4_t) -> float32x4_t {
        unsafe {
            let lanes = vld1q_u32([0, 1, 2, 3].as_ptr());
            let count = u32::try_from(count.min(4)).unwrap_or(4);
            vbslq_f32(vcltq_u32(lanes, vdupq_n_u32(count)), x, other)
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(x: float32x4_t) -> f32 {
        unsafe { vmaxnmvq_f32(x) }
    }
    #[inline(always)]
    unsafe fn reduce_add(x: float32x4_t) -> f32 {
        unsafe { vaddvq_f32(x) }
    }
}
