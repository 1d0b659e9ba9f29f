//! Products of quantised weights with one row, with AVX-512 VNNI.
//!
//! A single row is bound by memory, and what decides is how memory is read: the
//! prefetchers of a core follow a few long streams better than sixteen short
//! ones, and keep more reads under way than hints can. So the outputs of a task
//! are cut into four runs that are read from their start to their end, side by
//! side; hints only bridge the ends of pages and the time in which sums are
//! added up. A register holds 64 bytes of one output; integer sums of groups
//! are folded across the four streams and set aside until sixteen outputs are
//! there, which are then scaled and added in the order of groups like
//! everywhere else.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm_storeu_si128, _mm512_add_epi32,
    _mm512_and_si512, _mm512_castsi512_ps, _mm512_castsi512_si128, _mm512_cvtepi32_ps,
    _mm512_dpbusd_epi32, _mm512_extracti32x4_epi32, _mm512_fmadd_ps, _mm512_loadu_si512,
    _mm512_mul_ps, _mm512_permutex2var_epi32, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setr_epi32, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_srli_epi16, _mm512_storeu_ps, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::mem::MaybeUninit;

use super::avx512::turn_lines;
use super::quantised::Job;

/// Runs of outputs that are read side by side.
const STREAMS: usize = 4;
/// Outputs that are finished together: lanes of a register.
const LANES: usize = 16;
/// Outputs of each stream among them.
const TURNS: usize = LANES / STREAMS;
/// Bytes of a register.
const LINE: usize = 64;
/// Bytes that each stream is asked for in advance. Hardware prefetchers stop at
/// the end of a page; half a page is enough for the next one to be known by then.
const AHEAD: usize = 2048;
/// Groups whose sums are set aside: 32 KiB, and a row of 16384 columns in groups of 32.
const MOST: usize = 512;

/// Outputs of `from..to` that [`outputs`] computes, counted from `from`; the rest is for others.
pub(super) fn share(job: &Job<'_>, from: usize, to: usize) -> usize {
    let (weights, shape) = (job.weights, job.activations.shape);
    let fits = job.activations.rows == 1
        && weights.zero_points.is_none()
        && weights.row_bytes().is_multiple_of(LINE)
        // In smaller groups of four bits the sums cost more than the reading saves.
        && (weights.bits == 8 || quarters(weights.bits, shape.group) == 2)
        && shape.chunks * shape.groups <= MOST;
    if fits { (to - from) / LANES * LANES } else { 0 }
}

/// Quarters of a register, sixteen bytes each, that a group fills.
const fn quarters(bits: usize, group: usize) -> usize {
    group * bits / 8 / (LINE / 4)
}

/// Outputs `from..from + count` of the only row; `count` is from [`share`].
///
/// # Safety
/// The machine has the features, and `share` gave `count`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) unsafe fn outputs(job: &Job<'_>, from: usize, count: usize) {
    let (bits, group) = (job.weights.bits, job.activations.shape.group);
    // SAFETY: as promised.
    unsafe {
        match (bits, quarters(bits, group)) {
            (8, 1) => streams::<8, 1>(job, from, count),
            (8, 2) => streams::<8, 2>(job, from, count),
            (8, _) => streams::<8, 4>(job, from, count),
            (_, _) => streams::<4, 2>(job, from, count),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn streams<const BITS: usize, const QUARTERS: usize>(
    job: &Job<'_>,
    from: usize,
    count: usize,
) {
    let (weights, acts) = (job.weights, job.activations);
    let row_bytes = weights.row_bytes();
    let blocks = weights.blocks();
    let run = count / STREAMS;
    // Scales of the next outputs are asked for little by little while these are read.
    let step = TURNS * blocks * 4 * LINE / row_bytes;
    let mut sums = [const { MaybeUninit::<i32>::uninit() }; MOST * LANES];
    let sums = sums.as_mut_ptr().cast::<i32>();
    let low = _mm512_set1_epi8(0x0f);
    let evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    // SAFETY: `Quantised` checked that values and scales have whole rows, which
    // are whole lines by `share`; activations hold as many columns.
    unsafe {
        let values = weights.values.as_ptr().add(from * row_bytes);
        let factors = weights.scales.as_ptr().add(from * blocks);
        let a = acts.values.as_ptr();
        let (starts, worths) = (acts.starts.as_ptr(), acts.scales.as_ptr());
        for first in (0..run).step_by(TURNS) {
            for turn in 0..TURNS {
                let mut at = [values; STREAMS];
                for (stream, at) in at.iter_mut().enumerate() {
                    *at = values.add((stream * run + first + turn) * row_bytes);
                }
                // Those of one stream lie together, and each turn asks for another stream's.
                let next = factors.wrapping_add((turn * run + first + TURNS) * blocks);
                let next = next.cast::<i8>();
                let sums = sums.add(turn * STREAMS);
                for line in 0..row_bytes / LINE {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line * step));
                    let mut dots = [_mm512_setzero_si512(); STREAMS];
                    if BITS == 8 {
                        let x = _mm512_loadu_si512(a.add(line * LINE).cast());
                        for (dot, at) in dots.iter_mut().zip(at) {
                            _mm_prefetch::<_MM_HINT_T1>(
                                at.wrapping_add(line * LINE + AHEAD).cast(),
                            );
                            let w = _mm512_loadu_si512(at.add(line * LINE).cast());
                            *dot = _mm512_dpbusd_epi32(*dot, w, x);
                        }
                    } else {
                        let x = a.add(line * 2 * LINE);
                        let (x, y) = (
                            _mm512_loadu_si512(x.cast()),
                            _mm512_loadu_si512(x.add(LINE).cast()),
                        );
                        let even = _mm512_permutex2var_epi32(x, evens, y);
                        let odd = _mm512_permutex2var_epi32(x, odds, y);
                        for (dot, at) in dots.iter_mut().zip(at) {
                            _mm_prefetch::<_MM_HINT_T1>(
                                at.wrapping_add(line * LINE + AHEAD).cast(),
                            );
                            let w = _mm512_loadu_si512(at.add(line * LINE).cast());
                            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(w), low);
                            *dot = _mm512_dpbusd_epi32(*dot, _mm512_and_si512(w, low), even);
                            *dot = _mm512_dpbusd_epi32(*dot, high, odd);
                        }
                    }
                    let mut sum = fold(dots);
                    let sums = sums.add(line * (4 / QUARTERS) * LANES);
                    match QUARTERS {
                        1 => {
                            _mm_storeu_si128(sums.cast(), _mm512_castsi512_si128(sum));
                            let quarter = _mm512_extracti32x4_epi32::<1>(sum);
                            _mm_storeu_si128(sums.add(LANES).cast(), quarter);
                            let quarter = _mm512_extracti32x4_epi32::<2>(sum);
                            _mm_storeu_si128(sums.add(2 * LANES).cast(), quarter);
                            let quarter = _mm512_extracti32x4_epi32::<3>(sum);
                            _mm_storeu_si128(sums.add(3 * LANES).cast(), quarter);
                        }
                        2 => {
                            sum = _mm512_add_epi32(sum, _mm512_shuffle_i32x4::<0xb1>(sum, sum));
                            _mm_storeu_si128(sums.cast(), _mm512_castsi512_si128(sum));
                            let quarter = _mm512_extracti32x4_epi32::<2>(sum);
                            _mm_storeu_si128(sums.add(LANES).cast(), quarter);
                        }
                        _ => {
                            sum = _mm512_add_epi32(sum, _mm512_shuffle_i32x4::<0xb1>(sum, sum));
                            sum = _mm512_add_epi32(sum, _mm512_shuffle_i32x4::<0x4e>(sum, sum));
                            _mm_storeu_si128(sums.cast(), _mm512_castsi512_si128(sum));
                        }
                    }
                }
            }
            let mut total = _mm512_setzero_ps();
            for tile in (0..blocks).step_by(LANES) {
                let there = LANES.min(blocks - tile);
                let scales = factors.add(first * blocks + tile);
                let scales = turn_scales(scales, run * blocks, blocks, there);
                let mut group = tile << acts.shape.block_shift;
                for scale in &scales.as_flattened()[..there] {
                    for _ in 0..1 << acts.shape.block_shift {
                        // The next outputs come while nothing else is read.
                        let stream = (group % STREAMS * run + first + TURNS) * row_bytes;
                        let ahead = values.wrapping_add(stream + group / STREAMS * LINE);
                        _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                        let begin = _mm512_set1_epi32(*starts.add(group));
                        let dot = _mm512_loadu_si512(sums.add(group * LANES).cast());
                        let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dot, begin));
                        let worth = _mm512_set1_ps(*worths.add(group));
                        let worth = _mm512_mul_ps(_mm512_castsi512_ps(*scale), worth);
                        total = _mm512_fmadd_ps(dot, worth, total);
                        group += 1;
                    }
                }
            }
            let mut lanes = [0.0; LANES];
            _mm512_storeu_ps(lanes.as_mut_ptr(), total);
            for stream in 0..STREAMS {
                let outputs: [f32; TURNS] =
                    std::array::from_fn(|turn| lanes[turn * STREAMS + stream]);
                job.store(0, from + stream * run + first, &outputs);
            }
        }
    }
}

/// Sums of four lanes each, in sixteen bytes: a quarter of the result has a quarter of each of the four.
#[inline(always)]
unsafe fn fold([a, b, c, d]: [__m512i; 4]) -> __m512i {
    // SAFETY: registers only.
    unsafe {
        let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
    }
}

/// Scales of up to sixteen blocks, one register a block; a lane is an output, as in the sums.
#[inline(always)]
unsafe fn turn_scales(
    from: *const f32,
    stream: usize,
    row: usize,
    there: usize,
) -> [[__m512i; 4]; 4] {
    let place = |lane: usize| from.wrapping_add(lane % STREAMS * stream + lane / STREAMS * row);
    // SAFETY: `there` scales exist for each of the sixteen outputs.
    unsafe {
        if there == LANES {
            turn_lines(|lane| place(lane).cast())
        } else {
            let mut copy = [[0.0_f32; LANES]; LANES];
            for (lane, copy) in copy.iter_mut().enumerate() {
                copy.as_mut_ptr()
                    .copy_from_nonoverlapping(place(lane), there);
            }
            turn_lines(|lane| copy[lane].as_ptr().cast())
        }
    }
}
