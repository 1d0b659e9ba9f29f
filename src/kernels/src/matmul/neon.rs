//! Products of quantised weights with NEON: four outputs at a time.
//!
//! A product of sixteen signed bytes leaves four sums; those of four outputs
//! become one register by pairwise additions, which every NEON has, so weights
//! need no turning. Bytes are made signed by flipping their highest bit, halves
//! of bytes are small enough as they are.
//!
//! The dot products of Armv8.2 and the matrix products of Armv8.6 are written
//! as assembly because their intrinsics are not stable.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, vaddq_s32, vandq_u8, vcombine_s8, vcvtq_f32_s32,
    vdupq_n_f32, vdupq_n_s8, vdupq_n_s32, vdupq_n_u8, veorq_u8, vfmaq_f32, vget_high_s8,
    vget_low_s8, vld1q_f32, vld1q_s8, vld1q_s32, vld1q_u8, vld2q_s32, vmlal_high_s8, vmull_high_s8,
    vmull_s8, vmulq_f32, vmulq_s32, vpadalq_s16, vpaddlq_s16, vpaddq_s32, vreinterpretq_s8_s32,
    vreinterpretq_s8_u8, vshrq_n_u8, vst1q_f32, vst1q_s32, vsubq_s32, vuzp1q_s32, vuzp2q_s32,
};
use std::arch::asm;
use std::hint::black_box;
use std::mem::MaybeUninit;

use super::activations::CHUNK;
use super::peak::{SHORT, total};
use super::quantised::Job;
use super::scalar;

/// Outputs at a time: lanes of a register.
const LANES: usize = 4;
/// Rows that share a pass over the weights of four outputs.
const ROWS: usize = 128;
/// How far ahead weights are fetched: what memory delivers while it answers one request.
const AHEAD: usize = 512;

/// How bytes are multiplied.
///
/// # Safety
/// Every method needs the instructions of its type.
trait Bytes {
    /// Whether [`Bytes::block`] exists.
    const BLOCKS: bool;
    /// Adds sixteen products to four sums, whichever to which.
    unsafe fn dot(sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t;
    /// Adds the first four products to the first sum, and so on.
    unsafe fn dot_of_fours(sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t;
    /// Adds the products of two times eight weights with two times eight
    /// activations: `[w0 a0, w0 a1, w1 a0, w1 a1]`.
    unsafe fn block(sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t;
}

/// Armv8.0.
struct Plain;
/// Armv8.2 with dot products.
struct Dotprod;
/// Armv8.6 with matrix products of bytes.
struct I8mm;

// SAFETY of every block below: the caller has the instructions; nothing
// touches memory.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one reason for all, said above"
)]
impl Bytes for Plain {
    const BLOCKS: bool = false;

    #[inline(always)]
    unsafe fn dot(sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        unsafe {
            // Weights are at least -128, activations at least -127: two
            // products fit in 16 bits.
            let two = vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(a)), w, a);
            vpadalq_s16(sums, two)
        }
    }
    #[inline(always)]
    unsafe fn dot_of_fours(sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        unsafe {
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(a)));
            let high = vpaddlq_s16(vmull_high_s8(w, a));
            vaddq_s32(sums, vpaddq_s32(low, high))
        }
    }
    #[inline(always)]
    unsafe fn block(sums: int32x4_t, _: int8x16_t, _: int8x16_t) -> int32x4_t {
        sums
    }
}

#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one reason for all, said above"
)]
impl Bytes for Dotprod {
    const BLOCKS: bool = false;

    #[inline(always)]
    unsafe fn dot(mut sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        unsafe {
            asm!(
                "sdot {sums:v}.4s, {w:v}.16b, {a:v}.16b",
                sums = inout(vreg) sums,
                w = in(vreg) w,
                a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sums
    }
    #[inline(always)]
    unsafe fn dot_of_fours(sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        unsafe { Self::dot(sums, w, a) }
    }
    #[inline(always)]
    unsafe fn block(sums: int32x4_t, _: int8x16_t, _: int8x16_t) -> int32x4_t {
        sums
    }
}

#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one reason for all, said above"
)]
impl Bytes for I8mm {
    const BLOCKS: bool = true;

    #[inline(always)]
    unsafe fn dot(sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        unsafe { Dotprod::dot(sums, w, a) }
    }
    #[inline(always)]
    unsafe fn dot_of_fours(sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        unsafe { Dotprod::dot(sums, w, a) }
    }
    #[inline(always)]
    unsafe fn block(mut sums: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
        unsafe {
            asm!(
                "smmla {sums:v}.4s, {w:v}.16b, {a:v}.16b",
                sums = inout(vreg) sums,
                w = in(vreg) w,
                a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sums
    }
}

/// See [`crate::Kernels::multiply_bytes`].
///
/// # Safety
/// The machine has the feature.
#[target_feature(enable = "neon")]
pub(super) unsafe fn multiply_bytes(rounds: usize) -> u64 {
    // SAFETY: the feature is that of the products.
    unsafe { multiply_bytes_of::<Plain>(rounds) }
}

/// See [`crate::Kernels::multiply_bytes`].
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn multiply_bytes_dotprod(rounds: usize) -> u64 {
    // SAFETY: the features are those of the products.
    unsafe { multiply_bytes_of::<Dotprod>(rounds) }
}

/// See [`crate::Kernels::multiply_bytes`].
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn multiply_bytes_i8mm(rounds: usize) -> u64 {
    // SAFETY: the features are those of the products.
    unsafe { multiply_bytes_of::<I8mm>(rounds) }
}

/// # Safety
/// The machine has the instructions of `B`.
#[inline(always)]
unsafe fn multiply_bytes_of<B: Bytes>(rounds: usize) -> u64 {
    // SAFETY: the promise of the caller; four numbers have room.
    unsafe {
        let one = vdupq_n_s8(1);
        let a = black_box([one; 10]);
        let mut all = 0;
        for _ in 0..rounds.div_ceil(SHORT) {
            let mut sums = [vdupq_n_s32(0); 10];
            for _ in 0..SHORT {
                // Another one in every round as far as the compiler knows, so no product is kept for the next.
                let w = black_box(one);
                for (sum, a) in sums.iter_mut().zip(a) {
                    *sum = if B::BLOCKS {
                        B::block(*sum, w, a)
                    } else {
                        B::dot(*sum, w, a)
                    };
                }
            }
            for sum in sums {
                let mut lanes = [0_i32; 4];
                vst1q_s32(lanes.as_mut_ptr(), sum);
                all += total(&lanes);
            }
        }
        all
    }
}

/// Outputs `from..to` of every row.
///
/// # Safety
/// The machine has the feature.
#[target_feature(enable = "neon")]
pub(super) unsafe fn outputs(job: &Job<'_>, from: usize, to: usize) {
    // SAFETY: the feature is that of the products.
    unsafe { outputs_of::<Plain>(job, from, to) }
}

/// Outputs `from..to` of every row.
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn outputs_dotprod(job: &Job<'_>, from: usize, to: usize) {
    // SAFETY: the features are those of the products.
    unsafe { outputs_of::<Dotprod>(job, from, to) }
}

/// Outputs `from..to` of every row.
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn outputs_i8mm(job: &Job<'_>, from: usize, to: usize) {
    // SAFETY: the features are those of the products.
    unsafe { outputs_of::<I8mm>(job, from, to) }
}

#[inline(always)]
unsafe fn outputs_of<B: Bytes>(job: &Job<'_>, from: usize, to: usize) {
    if job.weights.outputs < LANES {
        return scalar::outputs(job, from, to);
    }
    for at in (from..to).step_by(LANES) {
        // The last outputs are computed with some before them, of which only
        // the wanted ones are stored.
        let first = at.min(job.weights.outputs - LANES);
        for row in (0..job.activations.rows).step_by(ROWS) {
            let part = Part {
                first,
                skip: at - first,
                row,
                rows: ROWS.min(job.activations.rows - row),
            };
            // SAFETY: four outputs from `first` exist, and these rows.
            unsafe {
                match (job.weights.bits, job.activations.shape.groups) {
                    (8, 1) => part_of::<B, 8, 1>(job, part),
                    (8, 2) => part_of::<B, 8, 2>(job, part),
                    (8, _) => part_of::<B, 8, 4>(job, part),
                    (_, 1) => part_of::<B, 4, 1>(job, part),
                    (_, 2) => part_of::<B, 4, 2>(job, part),
                    (_, _) => part_of::<B, 4, 4>(job, part),
                }
            }
        }
    }
}

/// Four outputs of some rows.
#[derive(Clone, Copy, Debug)]
struct Part {
    first: usize,
    skip: usize,
    row: usize,
    rows: usize,
}

/// What the rows of a chunk share: weights, and scales and zeros by group.
struct Chunk<const GROUPS: usize> {
    weights: [[int8x16_t; 4]; LANES],
    scales: [float32x4_t; GROUPS],
    /// What a start is multiplied by; `None` where it is taken as it is.
    zeros: Option<[int32x4_t; GROUPS]>,
    /// Whether sums start at zero: signed bytes whose zero is the middle.
    plain: bool,
}

#[inline(always)]
unsafe fn part_of<B: Bytes, const BITS: usize, const GROUPS: usize>(job: &Job<'_>, part: Part) {
    let (weights, acts) = (job.weights, job.activations);
    let shape = acts.shape;
    let row_bytes = weights.row_bytes();
    let bytes = CHUNK / 8 * BITS;
    let blocks = weights.blocks();
    // SAFETY: `Quantised` checked that values, scales and zero points have
    // whole rows; chunks that would pass the end of a row are copied first.
    // Activations hold whole chunks for every row. Sums are written before
    // they are read.
    unsafe {
        let mut sums = [const { MaybeUninit::<float32x4_t>::uninit() }; ROWS];
        for sum in &mut sums[..part.rows] {
            sum.write(vdupq_n_f32(0.0));
        }
        let sums = sums.as_mut_ptr().cast::<float32x4_t>();
        let values = weights.values.as_ptr().add(part.first * row_bytes);
        let mut chunk = Chunk::<GROUPS> {
            weights: [[vreinterpretq_s8_u8(vdupq_n_u8(0)); 4]; LANES],
            scales: [vdupq_n_f32(0.0); GROUPS],
            zeros: weights.zero_points.map(|_| [vdupq_n_s32(0); GROUPS]),
            plain: BITS == 8 && weights.zero_points.is_none(),
        };
        let mut filled = usize::MAX;
        for number in 0..shape.chunks {
            let at = number * bytes;
            if at + bytes <= row_bytes {
                fetch(values.add(at), row_bytes, at);
                load::<BITS>(values.add(at), row_bytes, &mut chunk.weights);
            } else {
                let mut tail = [0_u8; LANES * CHUNK];
                for (output, tail) in tail.chunks_exact_mut(CHUNK).enumerate() {
                    let rest = values.add(output * row_bytes + at);
                    tail.as_mut_ptr()
                        .copy_from_nonoverlapping(rest, row_bytes - at);
                }
                load::<BITS>(tail.as_ptr(), CHUNK, &mut chunk.weights);
            }
            let block = (number * GROUPS) >> shape.block_shift;
            if filled != block {
                filled = block;
                for group in 0..GROUPS.min(blocks - block) {
                    let mut scales = [0.0; LANES];
                    let mut zeros = [0; LANES];
                    for output in 0..LANES {
                        let row = part.first + output;
                        scales[output] =
                            *weights.scales.get_unchecked(row * blocks + block + group);
                        if chunk.zeros.is_some() {
                            zeros[output] = i32::from(weights.zero(row, block + group));
                        }
                    }
                    chunk.scales[group] = vld1q_f32(scales.as_ptr());
                    if let Some(of_groups) = &mut chunk.zeros {
                        // Signed weights are 128 less.
                        let middle = vdupq_n_s32(if BITS == 8 { 128 } else { 0 });
                        of_groups[group] = vsubq_s32(vld1q_s32(zeros.as_ptr()), middle);
                    }
                }
            }
            let place = number * acts.rows + part.row;
            let a = acts.values.as_ptr().add(place * CHUNK);
            let scales = acts.scales.as_ptr().add(place * GROUPS);
            let starts = acts.starts.as_ptr().add(place * GROUPS);
            let mut row = 0;
            while B::BLOCKS && row + 2 <= part.rows {
                let dots = two_rows::<B, BITS, GROUPS>(&chunk, a.add(row * CHUNK));
                for (r, dots) in dots.into_iter().enumerate() {
                    let at = (row + r) * GROUPS;
                    let sum = sums.add(row + r);
                    *sum = add(&chunk, dots, scales.add(at), starts.add(at), *sum);
                }
                row += 2;
            }
            while row < part.rows {
                let dots = one_row::<B, BITS, GROUPS>(&chunk, a.add(row * CHUNK));
                let at = row * GROUPS;
                let sum = sums.add(row);
                *sum = add(&chunk, dots, scales.add(at), starts.add(at), *sum);
                row += 1;
            }
        }
        for row in 0..part.rows {
            let mut lanes = [0.0; LANES];
            vst1q_f32(lanes.as_mut_ptr(), *sums.add(row));
            job.store(part.row + row, part.first + part.skip, &lanes[part.skip..]);
        }
    }
}

/// Adds the groups of a chunk to the sums of four outputs.
#[inline(always)]
unsafe fn add<const GROUPS: usize>(
    chunk: &Chunk<GROUPS>,
    dots: [int32x4_t; GROUPS],
    scales: *const f32,
    starts: *const i32,
    mut sum: float32x4_t,
) -> float32x4_t {
    // SAFETY: scales and starts of the groups of a row.
    unsafe {
        for (group, dot) in dots.into_iter().enumerate() {
            let start = vdupq_n_s32(*starts.add(group));
            let dot = match &chunk.zeros {
                Some(zeros) => vaddq_s32(dot, vmulq_s32(start, zeros[group])),
                None if chunk.plain => dot,
                None => vaddq_s32(dot, start),
            };
            let worth = vmulq_f32(chunk.scales[group], vdupq_n_f32(*scales.add(group)));
            sum = vfmaq_f32(sum, vcvtq_f32_s32(dot), worth);
        }
        sum
    }
}

/// Activations of a row in the order of the registers of the weights.
#[inline(always)]
unsafe fn activations<const BITS: usize>(a: *const i8) -> [int8x16_t; 4] {
    // SAFETY: 64 activations from here are readable.
    unsafe {
        if BITS == 8 {
            [
                vld1q_s8(a),
                vld1q_s8(a.add(16)),
                vld1q_s8(a.add(32)),
                vld1q_s8(a.add(48)),
            ]
        } else {
            // Fours of even and of odd columns stand in turn.
            let (first, second) = (vld2q_s32(a.cast()), vld2q_s32(a.add(32).cast()));
            [
                vreinterpretq_s8_s32(first.0),
                vreinterpretq_s8_s32(first.1),
                vreinterpretq_s8_s32(second.0),
                vreinterpretq_s8_s32(second.1),
            ]
        }
    }
}

/// Exact sums of the groups of a chunk for one row.
#[inline(always)]
unsafe fn one_row<B: Bytes, const BITS: usize, const GROUPS: usize>(
    chunk: &Chunk<GROUPS>,
    a: *const i8,
) -> [int32x4_t; GROUPS] {
    // SAFETY: the promise of the caller.
    unsafe {
        let zero = vdupq_n_s32(0);
        let a = activations::<BITS>(a);
        let w = &chunk.weights;
        let mut dots = [zero; GROUPS];
        if BITS == 4 && GROUPS == 4 {
            // A register holds two groups: the halves of its sums.
            for half in 0..2 {
                let mut sums = [zero; LANES];
                for (sums, w) in sums.iter_mut().zip(w) {
                    *sums = B::dot_of_fours(*sums, w[half * 2], a[half * 2]);
                    *sums = B::dot_of_fours(*sums, w[half * 2 + 1], a[half * 2 + 1]);
                }
                let (low, high) = (vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3]));
                dots[half * 2] = vuzp1q_s32(low, high);
                dots[half * 2 + 1] = vuzp2q_s32(low, high);
            }
            return dots;
        }
        let registers = 4 / GROUPS;
        for (group, dot) in dots.iter_mut().enumerate() {
            let mut sums = [zero; LANES];
            for (sums, w) in sums.iter_mut().zip(w) {
                for i in group * registers..(group + 1) * registers {
                    *sums = B::dot(*sums, w[i], a[i]);
                }
            }
            let (low, high) = (vpaddq_s32(sums[0], sums[1]), vpaddq_s32(sums[2], sums[3]));
            *dot = vpaddq_s32(low, high);
        }
        dots
    }
}

/// Exact sums of the groups of a chunk for two rows.
#[inline(always)]
unsafe fn two_rows<B: Bytes, const BITS: usize, const GROUPS: usize>(
    chunk: &Chunk<GROUPS>,
    a: *const i8,
) -> [[int32x4_t; GROUPS]; 2] {
    // SAFETY: the promise of the caller.
    unsafe {
        let zero = vdupq_n_s32(0);
        let rows = [activations::<BITS>(a), activations::<BITS>(a.add(CHUNK))];
        let w = &chunk.weights;
        let mut dots = [[zero; GROUPS]; 2];
        for group in 0..GROUPS {
            // Products of outputs 0 and 1, and of 2 and 3, with both rows.
            let mut sums = [zero; 2];
            let (from, to) = if BITS == 4 && GROUPS == 4 {
                (group / 2 * 2, group / 2 * 2 + 2)
            } else {
                (group * 4 / GROUPS, (group + 1) * 4 / GROUPS)
            };
            for i in from..to {
                let low = join_low(rows[0][i], rows[1][i]);
                let high = join_high(rows[0][i], rows[1][i]);
                for (pair, sums) in sums.iter_mut().enumerate() {
                    let (first, second) = (w[pair * 2][i], w[pair * 2 + 1][i]);
                    if BITS == 4 && GROUPS == 4 {
                        *sums = if group % 2 == 0 {
                            B::block(*sums, join_low(first, second), low)
                        } else {
                            B::block(*sums, join_high(first, second), high)
                        };
                    } else {
                        *sums = B::block(*sums, join_low(first, second), low);
                        *sums = B::block(*sums, join_high(first, second), high);
                    }
                }
            }
            dots[0][group] = vuzp1q_s32(sums[0], sums[1]);
            dots[1][group] = vuzp2q_s32(sums[0], sums[1]);
        }
        dots
    }
}

#[inline(always)]
unsafe fn join_low(a: int8x16_t, b: int8x16_t) -> int8x16_t {
    // SAFETY: registers only.
    unsafe { vcombine_s8(vget_low_s8(a), vget_low_s8(b)) }
}

#[inline(always)]
unsafe fn join_high(a: int8x16_t, b: int8x16_t) -> int8x16_t {
    // SAFETY: registers only.
    unsafe { vcombine_s8(vget_high_s8(a), vget_high_s8(b)) }
}

/// Weights of a chunk of four outputs: signed bytes in the order of columns, or
/// even columns of 32, then the odd ones, twice.
#[inline(always)]
unsafe fn load<const BITS: usize>(
    from: *const u8,
    stride: usize,
    out: &mut [[int8x16_t; 4]; LANES],
) {
    // SAFETY: four rows of a chunk from here are readable.
    unsafe {
        for (output, out) in out.iter_mut().enumerate() {
            let row = from.add(output * stride);
            if BITS == 8 {
                let middle = vdupq_n_u8(0x80);
                for (i, out) in out.iter_mut().enumerate() {
                    *out = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(row.add(i * 16)), middle));
                }
            } else {
                let low = vdupq_n_u8(0x0f);
                for i in 0..2 {
                    let x: uint8x16_t = vld1q_u8(row.add(i * 16));
                    out[i * 2] = vreinterpretq_s8_u8(vandq_u8(x, low));
                    out[i * 2 + 1] = vreinterpretq_s8_u8(vshrq_n_u8::<4>(x));
                }
            }
        }
    }
}

/// Asks for weights some way ahead: further on in their rows or, at the end of
/// them, at the start of the next four rows.
#[inline(always)]
unsafe fn fetch(values: *const u8, row_bytes: usize, at: usize) {
    let ahead = if at + AHEAD < row_bytes {
        AHEAD
    } else {
        AHEAD + (LANES - 1) * row_bytes
    };
    for output in 0..LANES {
        let wanted = values.wrapping_add(output * row_bytes + ahead);
        // SAFETY: a hint is never a fault, whatever the address.
        unsafe {
            asm!(
                "prfm pldl1strm, [{wanted}]",
                wanted = in(reg) wanted,
                options(nostack, preserves_flags)
            );
        }
    }
}
