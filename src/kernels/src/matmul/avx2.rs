//! Products of quantised weights with AVX2: eight outputs at a time.
//!
//! As with AVX-512, a chunk of 64 columns is turned so that a register holds
//! four columns of all outputs. There is no product of unsigned and signed bytes
//! that sums up in 32 bits here: pairs are summed up in 16 bits, which only
//! holds them when weights are at most 128. Bytes are therefore made signed and
//! their sign moved to the activations.

use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T1, _mm_loadu_si128, _mm_prefetch, _mm256_abs_epi8, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_and_si256, _mm256_castsi128_si256, _mm256_cvtepi32_ps,
    _mm256_fmadd_ps, _mm256_inserti128_si256, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_mullo_epi32, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_sign_epi8, _mm256_srli_epi16, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_epi32,
    _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
    _mm256_xor_si256,
};

use std::hint::black_box;

use super::activations::{CHUNK, Group, quantise};
use super::peak::{SHORT, total};
use super::quantised::Job;
use super::scalar;

/// Outputs at a time: lanes of a register.
const LANES: usize = 8;
/// Rows that share a turned chunk.
const ROWS: usize = 128;

/// See [`quantise`].
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn quantise_group(x: &[f32], group: Group<'_>) {
    quantise(x, group);
}

/// See [`crate::Kernels::multiply_bytes`]: products of bytes in pairs that are summed up in 16 bits.
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply_bytes(rounds: usize) -> u64 {
    let a = black_box([_mm256_set1_epi8(1); 6]);
    let one = _mm256_set1_epi16(1);
    let mut all = 0;
    for _ in 0..rounds.div_ceil(SHORT) {
        let mut sums = [_mm256_setzero_si256(); 6];
        for _ in 0..SHORT {
            // Another one in every round as far as the compiler knows, so no product is kept for the next.
            let w = black_box(_mm256_set1_epi8(1));
            for (sum, a) in sums.iter_mut().zip(a) {
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(w, a));
            }
        }
        for sum in sums {
            let mut lanes = [0_i32; 8];
            let wide = _mm256_madd_epi16(sum, one);
            // SAFETY: eight numbers have room.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), wide) };
            all += total(&lanes);
        }
    }
    all
}

/// Outputs `from..to` of every row.
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn outputs(job: &Job<'_>, from: usize, to: usize) {
    if job.weights.outputs < LANES {
        return scalar::outputs(job, from, to);
    }
    for at in (from..to).step_by(LANES) {
        let first = at.min(job.weights.outputs - LANES);
        for row in (0..job.activations.rows).step_by(ROWS) {
            let rows = ROWS.min(job.activations.rows - row);
            let part = Part {
                first,
                skip: at - first,
                row,
                rows,
            };
            // SAFETY: eight outputs from `first` exist, and these rows.
            unsafe {
                match (job.weights.bits, job.activations.shape.groups) {
                    (8, 1) => part_of::<8, 1>(job, part),
                    (8, 2) => part_of::<8, 2>(job, part),
                    (8, _) => part_of::<8, 4>(job, part),
                    (_, 1) => part_of::<4, 1>(job, part),
                    (_, 2) => part_of::<4, 2>(job, part),
                    (_, _) => part_of::<4, 4>(job, part),
                }
            }
        }
    }
}

/// Eight outputs of some rows.
#[derive(Clone, Copy, Debug)]
struct Part {
    first: usize,
    skip: usize,
    row: usize,
    rows: usize,
}

#[inline]
#[target_feature(enable = "avx2,fma")]
#[allow(
    clippy::needless_range_loop,
    reason = "a number is a place in two arrays"
)]
unsafe fn part_of<const BITS: usize, const GROUPS: usize>(job: &Job<'_>, part: Part) {
    let (weights, acts) = (job.weights, job.activations);
    let shape = acts.shape;
    let row_bytes = weights.row_bytes();
    let bytes = CHUNK / 8 * BITS;
    let blocks = weights.blocks();
    let zeros = weights.zero_points.is_some();
    let mut sums = [const { std::mem::MaybeUninit::<__m256>::uninit() }; ROWS];
    for sum in &mut sums[..part.rows] {
        sum.write(_mm256_setzero_ps());
    }
    let sums = sums.as_mut_ptr().cast::<__m256>();
    let mut scales = [0.0_f32; 4 * LANES];
    let mut zero = [0_i32; 4 * LANES];
    let mut filled = usize::MAX;
    // SAFETY: `Quantised` checked that values, scales and zero points have
    // whole rows; chunks that would pass the end of a row are copied first.
    // Activations hold whole chunks for every row.
    unsafe {
        let values = weights.values.as_ptr().add(part.first * row_bytes);
        let factors = weights.scales.as_ptr().add(part.first * blocks);
        for chunk in 0..shape.chunks {
            let at = chunk * bytes;
            let next = LANES * (row_bytes + at);
            fetch(values.wrapping_add(next), LANES * bytes);
            let next = LANES * (blocks + ((chunk * GROUPS) >> shape.block_shift));
            fetch(factors.wrapping_add(next).cast(), LANES * GROUPS * 4);
            let turned = if at + bytes <= row_bytes {
                turn::<BITS>(values.add(at), row_bytes)
            } else {
                let mut tail = [0_u8; LANES * CHUNK];
                for (output, tail) in tail.chunks_exact_mut(CHUNK).enumerate() {
                    let rest = values.add(output * row_bytes + at);
                    tail.as_mut_ptr()
                        .copy_from_nonoverlapping(rest, row_bytes - at);
                }
                turn::<BITS>(tail.as_ptr(), CHUNK)
            };
            // Groups of a chunk: their blocks are aligned fours, twos or ones.
            let block = (chunk * GROUPS) >> shape.block_shift;
            if filled != block {
                filled = block;
                for group in 0..GROUPS.min(blocks - block) {
                    for output in 0..LANES {
                        let row = (part.first + output) * blocks;
                        scales[group * LANES + output] = weights.scales[row + block + group];
                        if zeros {
                            let z = weights.zero(part.first + output, block + group);
                            zero[group * LANES + output] = i32::from(z);
                        }
                    }
                }
            }
            let mut magnitudes = turned;
            if BITS == 8 {
                for x in &mut magnitudes {
                    *x = _mm256_abs_epi8(*x);
                }
            }
            let groups = (chunk * acts.rows + part.row) * GROUPS;
            let mut a = acts
                .values
                .as_ptr()
                .add(groups * (CHUNK / GROUPS))
                .cast::<i32>();
            let mut scale = acts.scales.as_ptr().add(groups);
            let mut start = acts.starts.as_ptr().add(groups);
            let mut sum = sums;
            for _ in 0..part.rows {
                let mut total = *sum;
                for group in 0..GROUPS {
                    let quads = 16 / GROUPS;
                    let begin = _mm256_set1_epi32(*start.add(group));
                    let mut dot = match (BITS, zeros) {
                        // Signed weights are 128 less.
                        (8, false) => _mm256_setzero_si256(),
                        (_, false) => begin,
                        (_, true) => {
                            let z = _mm256_loadu_si256(zero.as_ptr().add(group * LANES).cast());
                            let middle = _mm256_set1_epi32(if BITS == 8 { 128 } else { 0 });
                            _mm256_mullo_epi32(begin, _mm256_sub_epi32(z, middle))
                        }
                    };
                    let ones = _mm256_set1_epi16(1);
                    let first = group * quads;
                    if BITS == 8 {
                        for quad in first..first + quads {
                            let x = _mm256_set1_epi32(*a.add(quad));
                            let x = _mm256_sign_epi8(x, turned[quad]);
                            let pairs = _mm256_maddubs_epi16(magnitudes[quad], x);
                            dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
                        }
                    } else {
                        // Eight pairs of at most 2 * 15 * 127 fit in 16 bits.
                        for eight in (first..first + quads).step_by(8) {
                            let mut pairs = _mm256_setzero_si256();
                            for quad in eight..(eight + 8).min(first + quads) {
                                let x = _mm256_set1_epi32(*a.add(quad));
                                let two = _mm256_maddubs_epi16(turned[quad], x);
                                pairs = _mm256_add_epi16(pairs, two);
                            }
                            dot = _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, ones));
                        }
                    }
                    let worth = _mm256_mul_ps(
                        _mm256_loadu_ps(scales.as_ptr().add(group * LANES)),
                        _mm256_set1_ps(*scale.add(group)),
                    );
                    total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), worth, total);
                }
                *sum = total;
                sum = sum.add(1);
                a = a.add(CHUNK / 4);
                scale = scale.add(GROUPS);
                start = start.add(GROUPS);
            }
        }
        for row in 0..part.rows {
            let mut lanes = [0.0; LANES];
            _mm256_storeu_ps(lanes.as_mut_ptr(), *sums.add(row));
            job.store_lanes(part.row + row, part.first, part.skip, &lanes);
        }
    }
}

/// Asks for `bytes` of memory for the second-level cache.
///
/// A chunk asks for the part of the next outputs that has its place: rows lie
/// one behind the other, so memory is read in order however many rows are used
/// at once, and what is asked for arrives before its turn. The address may lie
/// behind the weights; asking reads nothing.
#[inline(always)]
fn fetch(from: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        // SAFETY: a hint is never a fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(line).cast()) };
    }
}

/// Registers of four columns of eight outputs: signed bytes in the order of
/// columns, or halves of bytes, columns 0, 2, 4, 6 of eight before 1, 3, 5, 7.
#[inline(always)]
unsafe fn turn<const BITS: usize>(from: *const u8, stride: usize) -> [__m256i; 16] {
    // SAFETY: eight rows of a chunk from here are readable; registers need the
    // features of the callers.
    unsafe {
        let mut out = [_mm256_setzero_si256(); 16];
        if BITS == 8 {
            let middle = _mm256_set1_epi8(i8::MIN);
            for piece in 0..4 {
                for (i, x) in turn_piece(from.add(piece * 16), stride)
                    .into_iter()
                    .enumerate()
                {
                    out[piece * 4 + i] = _mm256_xor_si256(x, middle);
                }
            }
        } else {
            let low = _mm256_set1_epi8(0x0f);
            for piece in 0..2 {
                for (i, x) in turn_piece(from.add(piece * 16), stride)
                    .into_iter()
                    .enumerate()
                {
                    let at = (piece * 4 + i) * 2;
                    out[at] = _mm256_and_si256(x, low);
                    out[at + 1] = _mm256_and_si256(_mm256_srli_epi16::<4>(x), low);
                }
            }
        }
        out
    }
}

/// Sixteen bytes of eight rows as four registers, each with the same four
/// bytes of all rows.
#[inline(always)]
unsafe fn turn_piece(from: *const u8, stride: usize) -> [__m256i; 4] {
    // SAFETY: sixteen bytes of eight rows from here are readable.
    unsafe {
        let row = |row: usize| _mm_loadu_si128(from.add(row * stride).cast());
        let gather =
            |k: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row(k)), row(4 + k));
        let (a, b, c, d) = (gather(0), gather(1), gather(2), gather(3));
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(ab_high, cd_high),
            _mm256_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}
