//! Products of quantised weights with AVX-512 VNNI: sixteen outputs at a time.
//!
//! A chunk of 64 columns of sixteen outputs is turned so that a register holds
//! four columns of all of them. It then meets every row of activations, whose
//! four bytes are broadcast: a group of columns ends as sixteen exact sums that
//! need no further addition across lanes. Turning costs about forty cycles a
//! chunk, less than memory takes to deliver it, so one row and many rows run
//! the same code, and weights are never stored in another order.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T1, _mm_loadu_si128, _mm_prefetch, _mm512_and_si512,
    _mm512_castsi128_si512, _mm512_castsi512_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_inserti32x4, _mm512_loadu_si512, _mm512_mul_ps, _mm512_mullo_epi32,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_srli_epi16, _mm512_storeu_ps, _mm512_storeu_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use std::hint::black_box;

use super::activations::{CHUNK, Group, quantise};
use super::peak::{SHORT, total};
use super::quantised::Job;
use super::scalar;

/// Outputs at a time: lanes of a register.
const LANES: usize = 16;
/// Rows that share a turned chunk: their sums stay in an L1 cache beside it.
const ROWS: usize = 128;
/// Rows at a time: as many sums as it takes that none is waited for, and no
/// more than registers hold.
const TALL: usize = 8;

/// See [`quantise`].
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) unsafe fn quantise_group(x: &[f32], group: Group<'_>) {
    quantise(x, group);
}

/// See [`crate::Kernels::multiply_bytes`]: four products a lane.
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) unsafe fn multiply_bytes(rounds: usize) -> u64 {
    let a = black_box([_mm512_set1_epi8(1); 10]);
    let mut all = 0;
    for _ in 0..rounds.div_ceil(SHORT) {
        let mut sums = [_mm512_setzero_si512(); 10];
        for _ in 0..SHORT {
            // Another one in every round as far as the compiler knows, so no product is kept for the next.
            let w = black_box(_mm512_set1_epi8(1));
            for (sum, a) in sums.iter_mut().zip(a) {
                *sum = _mm512_dpbusd_epi32(*sum, w, a);
            }
        }
        for sum in sums {
            let mut lanes = [0_i32; 16];
            // SAFETY: sixteen numbers have room.
            unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sum) };
            all += total(&lanes);
        }
    }
    all
}

/// Outputs `from..to` of every row.
///
/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) unsafe fn outputs(job: &Job<'_>, from: usize, to: usize) {
    if job.weights.outputs < LANES {
        return scalar::outputs(job, from, to);
    }
    for at in (from..to).step_by(LANES) {
        // The last outputs are computed with some before them, of which only
        // the wanted ones are stored.
        let first = at.min(job.weights.outputs - LANES);
        for row in (0..job.activations.rows).step_by(ROWS) {
            let rows = ROWS.min(job.activations.rows - row);
            let part = Part {
                first,
                skip: at - first,
                row,
                rows,
            };
            // SAFETY: sixteen outputs from `first` exist, and these rows.
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

/// Sixteen outputs of some rows.
#[derive(Clone, Copy, Debug)]
struct Part {
    first: usize,
    skip: usize,
    row: usize,
    rows: usize,
}

/// Bytes of a chunk, for weights of BITS.
const fn chunk_bytes(bits: usize) -> usize {
    CHUNK / 8 * bits
}

/// A chunk of sixteen outputs, turned, with the scales and zeros of its blocks.
#[derive(Clone, Copy, Debug)]
struct Turned {
    values: *const __m512i,
    scales: *const __m512,
    zeros: Option<*const __m512i>,
    /// What the same chunk of the next outputs takes in memory.
    next: *const u8,
}

/// Where the activations of the next rows lie in a chunk, and their sums.
#[derive(Clone, Copy, Debug)]
struct Rows {
    values: *const i32,
    scales: *const f32,
    starts: *const i32,
    sums: *mut __m512,
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn part_of<const BITS: usize, const GROUPS: usize>(job: &Job<'_>, part: Part) {
    let (weights, acts) = (job.weights, job.activations);
    let shape = acts.shape;
    let row_bytes = weights.row_bytes();
    let bytes = chunk_bytes(BITS);
    let blocks = weights.blocks();
    let mut sums = [const { std::mem::MaybeUninit::<__m512>::uninit() }; ROWS];
    for sum in &mut sums[..part.rows] {
        sum.write(_mm512_setzero_ps());
    }
    let sums = sums.as_mut_ptr().cast::<__m512>();
    let mut scales = [_mm512_setzero_ps(); LANES];
    let mut zeros = [_mm512_setzero_si512(); LANES];
    let mut filled = usize::MAX;
    // SAFETY: `Quantised` checked that values, scales and zero points have
    // whole rows; chunks that would pass the end of a row are copied first.
    // Activations hold whole chunks for every row.
    unsafe {
        let values = weights.values.as_ptr().add(part.first * row_bytes);
        let factors = weights.scales.as_ptr().add(part.first * blocks);
        for chunk in 0..shape.chunks {
            let at = chunk * bytes;
            let next = values.wrapping_add(LANES * (row_bytes + at));
            if part.rows < TALL {
                fetch(next, LANES * bytes);
            }
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
            // The block of the first group; its scale and those of the groups
            // after it are in the same sixteen.
            let block = (chunk * GROUPS) >> shape.block_shift;
            debug_assert!(block < blocks);
            if filled != block / LANES {
                filled = block / LANES;
                turn_scales(job, part.first, filled * LANES, &mut scales);
                if weights.zero_points.is_some() {
                    gather_zeros(job, part.first, filled * LANES, &mut zeros);
                }
            }
            let place = block % LANES;
            let turned = Turned {
                values: turned.as_ptr(),
                scales: scales.as_ptr().add(place),
                zeros: (weights.zero_points.is_some()).then(|| zeros.as_ptr().add(place)),
                next,
            };
            fetch(
                factors.wrapping_add(LANES * (blocks + block)).cast(),
                LANES * GROUPS * 4,
            );
            let groups = (chunk * acts.rows + part.row) * GROUPS;
            let mut rows = Rows {
                values: acts
                    .values
                    .as_ptr()
                    .add(groups * (CHUNK / GROUPS))
                    .cast::<i32>(),
                scales: acts.scales.as_ptr().add(groups),
                starts: acts.starts.as_ptr().add(groups),
                sums,
            };
            let mut left = part.rows;
            if left >= TALL {
                tile::<BITS, GROUPS, TALL, true>(turned, &mut rows);
                left -= TALL;
            }
            while left >= TALL {
                tile::<BITS, GROUPS, TALL, false>(turned, &mut rows);
                left -= TALL;
            }
            for _ in 0..left {
                tile::<BITS, GROUPS, 1, false>(turned, &mut rows);
            }
        }
        for row in 0..part.rows {
            let mut lanes = [0.0; LANES];
            _mm512_storeu_ps(lanes.as_mut_ptr(), *sums.add(row));
            job.store_lanes(part.row + row, part.first, part.skip, &lanes);
        }
    }
}

/// Adds a chunk to the sums of HEIGHT rows, and goes on to the rows after them.
///
/// With HINTS it asks for the same chunk of the next outputs, line by line
/// between products: a core has some twenty reads under way, and stops when it
/// is asked for more.
#[inline(always)]
unsafe fn tile<const BITS: usize, const GROUPS: usize, const HEIGHT: usize, const HINTS: bool>(
    turned: Turned,
    rows: &mut Rows,
) {
    // SAFETY: HEIGHT rows are there; registers need the features of the callers.
    unsafe {
        let mut totals = [_mm512_setzero_ps(); HEIGHT];
        for (row, total) in totals.iter_mut().enumerate() {
            *total = *rows.sums.add(row);
        }
        for group in 0..GROUPS {
            let quads = 16 / GROUPS;
            let mut dots = [_mm512_setzero_si512(); HEIGHT];
            for (row, dot) in dots.iter_mut().enumerate() {
                *dot = _mm512_set1_epi32(*rows.starts.add(row * GROUPS + group));
                if let Some(zeros) = turned.zeros {
                    *dot = _mm512_mullo_epi32(*dot, *zeros.add(group));
                }
            }
            for quad in group * quads..(group + 1) * quads {
                if HINTS && quad < chunk_bytes(BITS) * LANES / 64 {
                    _mm_prefetch::<_MM_HINT_T1>(turned.next.wrapping_add(quad * 64).cast());
                }
                let weights = *turned.values.add(quad);
                for (row, dot) in dots.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*rows.values.add(row * (CHUNK / 4) + quad));
                    *dot = _mm512_dpbusd_epi32(*dot, weights, x);
                }
            }
            let scales = *turned.scales.add(group);
            for (row, (total, dot)) in totals.iter_mut().zip(dots).enumerate() {
                let x = _mm512_set1_ps(*rows.scales.add(row * GROUPS + group));
                let worth = _mm512_mul_ps(scales, x);
                *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), worth, *total);
            }
        }
        for (row, total) in totals.into_iter().enumerate() {
            *rows.sums.add(row) = total;
        }
        rows.values = rows.values.add(HEIGHT * (CHUNK / 4));
        rows.scales = rows.scales.add(HEIGHT * GROUPS);
        rows.starts = rows.starts.add(HEIGHT * GROUPS);
        rows.sums = rows.sums.add(HEIGHT);
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

/// Registers of four columns of sixteen outputs, in the order of columns; for
/// weights of four bits every even one holds columns 0, 2, 4, 6 of eight and
/// the odd one after it columns 1, 3, 5, 7.
#[inline(always)]
unsafe fn turn<const BITS: usize>(from: *const u8, stride: usize) -> [__m512i; 16] {
    // SAFETY: sixteen rows of `chunk_bytes` from here are readable; registers
    // need the features of the callers.
    unsafe {
        let mut out = [_mm512_setzero_si512(); 16];
        if BITS == 8 {
            let pieces = turn_lines(|row| from.add(row * stride));
            for (piece, four) in pieces.into_iter().enumerate() {
                out[piece * 4..piece * 4 + 4].copy_from_slice(&four);
            }
        } else {
            let low = _mm512_set1_epi8(0x0f);
            for piece in 0..2 {
                for (i, x) in turn_piece(from.add(piece * 16), stride)
                    .into_iter()
                    .enumerate()
                {
                    let at = (piece * 4 + i) * 2;
                    out[at] = _mm512_and_si512(x, low);
                    out[at + 1] = _mm512_and_si512(_mm512_srli_epi16::<4>(x), low);
                }
            }
        }
        out
    }
}

/// Sixty-four bytes of sixteen rows as sixteen registers in fours, each with the
/// same four bytes of all rows.
#[inline(always)]
#[allow(
    clippy::needless_range_loop,
    reason = "the number means rows and places"
)]
pub(super) unsafe fn turn_lines(place: impl Fn(usize) -> *const u8) -> [[__m512i; 4]; 4] {
    // SAFETY: 64 bytes of sixteen rows from their places on are readable.
    unsafe {
        let row = |row: usize| _mm512_loadu_si512(place(row).cast());
        let mut pieces = [[_mm512_setzero_si512(); 4]; 4];
        // Sixteen bytes of rows k, 4 + k, 8 + k and 12 + k come together.
        for k in 0..4 {
            let (a, b, c, d) = (row(k), row(4 + k), row(8 + k), row(12 + k));
            let low = _mm512_shuffle_i32x4::<0x44>(a, b);
            let high = _mm512_shuffle_i32x4::<0xee>(a, b);
            let low_after = _mm512_shuffle_i32x4::<0x44>(c, d);
            let high_after = _mm512_shuffle_i32x4::<0xee>(c, d);
            pieces[0][k] = _mm512_shuffle_i32x4::<0x88>(low, low_after);
            pieces[1][k] = _mm512_shuffle_i32x4::<0xdd>(low, low_after);
            pieces[2][k] = _mm512_shuffle_i32x4::<0x88>(high, high_after);
            pieces[3][k] = _mm512_shuffle_i32x4::<0xdd>(high, high_after);
        }
        [
            turn_fours(pieces[0]),
            turn_fours(pieces[1]),
            turn_fours(pieces[2]),
            turn_fours(pieces[3]),
        ]
    }
}

/// Sixteen bytes of sixteen rows as four registers.
#[inline(always)]
unsafe fn turn_piece(from: *const u8, stride: usize) -> [__m512i; 4] {
    // SAFETY: sixteen bytes of sixteen rows from here are readable.
    unsafe {
        let row = |row: usize| _mm_loadu_si128(from.add(row * stride).cast());
        // Lane group L of register k is row 4 L + k.
        let gather = |k: usize| {
            let x = _mm512_castsi128_si512(row(k));
            let x = _mm512_inserti32x4::<1>(x, row(4 + k));
            let x = _mm512_inserti32x4::<2>(x, row(8 + k));
            _mm512_inserti32x4::<3>(x, row(12 + k))
        };
        turn_fours([gather(0), gather(1), gather(2), gather(3)])
    }
}

/// Turns four by four words in each quarter of four registers.
#[inline(always)]
unsafe fn turn_fours([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: registers only.
    unsafe {
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}

/// Scales of sixteen blocks from `block` on, one register a block.
#[inline(always)]
unsafe fn turn_scales(job: &Job<'_>, first: usize, block: usize, out: &mut [__m512; LANES]) {
    let blocks = job.weights.blocks();
    let there = LANES.min(blocks - block);
    // SAFETY: rows of `blocks` scales exist for sixteen outputs from `first`.
    unsafe {
        let from = job.weights.scales.as_ptr().add(first * blocks + block);
        let mut copy = [0.0_f32; LANES * LANES];
        let (from, stride) = if there == LANES {
            (from, blocks)
        } else {
            for (output, copy) in copy.chunks_exact_mut(LANES).enumerate() {
                copy.as_mut_ptr()
                    .copy_from_nonoverlapping(from.add(output * blocks), there);
            }
            (copy.as_ptr(), LANES)
        };
        let pieces = turn_lines(|output| from.add(output * stride).cast());
        for (out, x) in out.iter_mut().zip(pieces.as_flattened()) {
            *out = _mm512_castsi512_ps(*x);
        }
    }
}

/// Zero points of sixteen blocks from `block` on, one register a block.
#[inline(never)]
#[target_feature(enable = "avx512f")]
unsafe fn gather_zeros(job: &Job<'_>, first: usize, block: usize, out: &mut [__m512i; LANES]) {
    let there = LANES.min(job.weights.blocks() - block);
    for (i, out) in out[..there].iter_mut().enumerate() {
        let zeros: [i32; LANES] =
            std::array::from_fn(|output| i32::from(job.weights.zero(first + output, block + i)));
        // SAFETY: sixteen numbers.
        *out = unsafe { _mm512_loadu_si512(zeros.as_ptr().cast()) };
    }
}
