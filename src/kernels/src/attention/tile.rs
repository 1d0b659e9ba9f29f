//! One tile of attention, written once for every instruction set.
//!
//! Rows of a tile go through the same operations in the same order whatever
//! tile they are in: scores add up element by element, weighted values token by
//! token. A row that sees less than its neighbours multiplies what it must not
//! see by zero.

use std::cell::Cell;

use super::{Job, Pass, RotaryStyle, Tile, blocks_of};
use crate::kv::{BLOCK_TOKENS, KvType, Segment};
use crate::simd::{self, Element, Simd};

/// Rows that are worth widening a block of keys and values to f32 for once,
/// rather than on every use.
const WIDEN_FROM: usize = 9;
/// Largest magnitude of an f16.
const F16_MAX: f32 = 65_504.0;
/// Below this the reciprocal of a scale overflows; such numbers become zeros.
const SMALLEST_SCALE: f32 = 1e-30;
/// Elements of the longest head with padding.
const LONGEST: usize = 256;

/// A cache line of floats.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    /// Working memory of the tiles that this thread runs.
    static SCRATCH: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Runs `tile`.
///
/// # Safety
/// The machine has the instruction set of `S`. No other task writes the keys
/// and values that this pass reads, or touches those that it writes.
#[inline(always)]
pub(super) unsafe fn run<S: Simd>(job: &Job<'_>, tile: &Tile, pass: Pass) {
    // SAFETY: the promises of the caller are those of the callees.
    unsafe {
        if pass != Pass::Attend {
            write::<S>(job, tile);
        }
        if pass != Pass::Write {
            match job.geometry.layout.dtype {
                KvType::F32 => attend::<S, f32>(job, tile),
                KvType::F16 => attend::<S, u16>(job, tile),
                KvType::Int8 => attend::<S, i8>(job, tile),
            }
        }
    }
}

/// Where the block with token `index` of the tile's sequence lies.
#[inline(always)]
fn segment(job: &Job<'_>, tile: &Tile, block: usize) -> Segment {
    let run = &job.step.runs[tile.run];
    let block = job.step.tables[run.table.clone()][block];
    job.geometry.segment(block, job.layer, tile.kv_head)
}

/// Rotates the keys of the rows and writes keys and values.
#[inline(always)]
unsafe fn write<S: Simd>(job: &Job<'_>, tile: &Tile) {
    let run = &job.step.runs[tile.run];
    let dim = job.geometry.layout.head_dim;
    let width = job.geometry.width;
    for row in tile.row..tile.row + tile.rows {
        let index = run.start + (row - run.rows.start);
        let at = segment(job, tile, index / BLOCK_TOKENS);
        let slot = index % BLOCK_TOKENS;
        let mut key = [0.0; LONGEST];
        key[..dim].copy_from_slice(job.k.of(row, tile.kv_head, dim));
        rotate(job, row, &mut key[..dim]);
        let mut value = [0.0; LONGEST];
        value[..dim].copy_from_slice(job.v.of(row, tile.kv_head, dim));
        let memory = job.memory.0;
        // SAFETY: the segment lies in a block that this step owns alone, the
        // slot is below 32 and elements below the width, so every address is
        // inside the segment; its type is the only one ever used there. The
        // buffers hold 256 elements, not less than the width.
        unsafe {
            match job.geometry.layout.dtype {
                KvType::F32 => {
                    let keys = memory.add(at.keys).cast::<f32>();
                    for (d, x) in key[..dim].iter().enumerate() {
                        keys.add(d * BLOCK_TOKENS + slot).write(*x);
                    }
                    let values = memory.add(at.values).cast::<f32>().add(slot * width);
                    values.copy_from_nonoverlapping(value.as_ptr(), width);
                }
                KvType::F16 => {
                    let keys = memory.add(at.keys).cast::<u16>();
                    for (d, x) in narrow::<S>(&key, width)[..dim].iter().enumerate() {
                        keys.add(d * BLOCK_TOKENS + slot).write(*x);
                    }
                    let values = memory.add(at.values).cast::<u16>().add(slot * width);
                    values.copy_from_nonoverlapping(narrow::<S>(&value, width).as_ptr(), width);
                }
                KvType::Int8 => {
                    let keys = memory.add(at.keys).cast::<i8>();
                    let (bytes, scale) = to_bytes(&key[..dim]);
                    for (d, x) in bytes[..dim].iter().enumerate() {
                        keys.add(d * BLOCK_TOKENS + slot).write(*x);
                    }
                    memory
                        .add(at.key_scales)
                        .cast::<f32>()
                        .add(slot)
                        .write(scale);
                    let (bytes, scale) = to_bytes(&value[..dim]);
                    let values = memory.add(at.values).cast::<i8>().add(slot * width);
                    values.copy_from_nonoverlapping(bytes.as_ptr(), width);
                    memory
                        .add(at.value_scales)
                        .cast::<f32>()
                        .add(slot)
                        .write(scale);
                }
            }
        }
    }
}

/// Turns a head of `row` by the positions of the row.
#[inline(always)]
fn rotate(job: &Job<'_>, row: usize, x: &mut [f32]) {
    let Some(rotary) = &job.params.rotary else {
        return;
    };
    let half = rotary.dims / 2;
    let parts = if rotary.two_dimensional { 2 } else { 1 };
    for (part, position) in job.step.rows[row].position[..parts].iter().enumerate() {
        let at = *position as usize * half;
        let (cos, sin) = (&rotary.cos[at..at + half], &rotary.sin[at..at + half]);
        let x = &mut x[part * rotary.dims..(part + 1) * rotary.dims];
        match rotary.style {
            RotaryStyle::Half => {
                let (first, second) = x.split_at_mut(half);
                for i in 0..half {
                    let (a, b) = (first[i], second[i]);
                    first[i] = a * cos[i] - b * sin[i];
                    second[i] = a * sin[i] + b * cos[i];
                }
            }
            RotaryStyle::Interleaved => {
                for (pair, (cos, sin)) in x.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * cos - b * sin;
                    pair[1] = a * sin + b * cos;
                }
            }
        }
    }
}

/// The first `width` elements as f16 bits, cut to its range.
#[inline(always)]
unsafe fn narrow<S: Simd>(x: &[f32; LONGEST], width: usize) -> [u16; LONGEST] {
    let mut bits = [0; LONGEST];
    // SAFETY: the width is a multiple of every vector and at most 256.
    unsafe {
        for at in (0..width).step_by(S::LANES) {
            let v = S::load(x.as_ptr().add(at));
            let v = S::max(S::min(v, S::splat(F16_MAX)), S::splat(-F16_MAX));
            S::store_f16(bits.as_mut_ptr().add(at), v);
        }
    }
    bits
}

/// Bytes and the scale to multiply them by. A head with a number that is not
/// finite gets a scale that is not a number, so that the fault shows.
#[inline(always)]
fn to_bytes(x: &[f32]) -> ([i8; LONGEST], f32) {
    let mut bytes = [0; LONGEST];
    // A sum finds what a maximum would hide: maxima pass over NaN.
    let bad = x.iter().any(|x| !x.is_finite());
    if bad {
        return (bytes, f32::NAN);
    }
    let largest = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    if largest < SMALLEST_SCALE {
        return (bytes, 0.0);
    }
    let inverse = 127.0 / largest;
    for (byte, x) in bytes.iter_mut().zip(x) {
        *byte = crate::matmul::nearest(x * inverse);
    }
    (bytes, largest / 127.0)
}

/// Pointers into the scratch of a tile.
struct Work {
    /// Rotated and scaled queries `[rows][dim]`.
    q: *mut f32,
    /// Scores, then weights `[rows][32]`.
    p: *mut f32,
    /// Weighted sums of values `[rows][width]`.
    sums: *mut f32,
    /// Keys and values of a block in f32.
    keys: *mut f32,
    values: *mut f32,
}

#[inline(always)]
unsafe fn attend<S: Simd, E: Element>(job: &Job<'_>, tile: &Tile) {
    let dim = job.geometry.layout.head_dim;
    let width = job.geometry.width;
    let rows = tile.rows * tile.heads;
    let sizes = [
        rows * dim,
        rows * BLOCK_TOKENS,
        rows * width,
        dim * BLOCK_TOKENS,
        BLOCK_TOKENS * width,
    ]
    .map(|size| size.div_ceil(16));
    let mut lines = SCRATCH.take();
    lines.resize(sizes.iter().sum(), Line([0.0; 16]));
    let mut at = lines.as_mut_ptr();
    let mut next = |size: usize| {
        let part = at.cast::<f32>();
        // SAFETY: the sizes add up to the length of the scratch.
        at = unsafe { at.add(size) };
        part
    };
    let work = Work {
        q: next(sizes[0]),
        p: next(sizes[1]),
        sums: next(sizes[2]),
        keys: next(sizes[3]),
        values: next(sizes[4]),
    };
    // SAFETY: the scratch has room for what its parts are said to hold; the
    // rest is the promise of the caller.
    unsafe { attend_in::<S, E>(job, tile, &work) };
    SCRATCH.set(lines);
}

#[inline(always)]
unsafe fn attend_in<S: Simd, E: Element>(job: &Job<'_>, tile: &Tile, work: &Work) {
    let dim = job.geometry.layout.head_dim;
    let width = job.geometry.width;
    let rows = tile.rows * tile.heads;
    let visible = |row: usize| job.step.rows[tile.row + row / tile.heads].visible as usize;
    let most = (0..rows).map(visible).max().unwrap_or(0);
    let mut top = [f32::NEG_INFINITY; super::TILE_ROWS];
    let mut total = [0.0_f32; super::TILE_ROWS];
    // SAFETY: rows, blocks and slots stay inside the scratch and inside the
    // blocks of the sequence, whose first `most` tokens have been written.
    unsafe {
        prepare::<S>(job, tile, work);
        for block in 0..blocks_of(most) {
            let at = segment(job, tile, block);
            let memory = job.memory.0.cast_const();
            let start = block * BLOCK_TOKENS;
            let tokens = BLOCK_TOKENS.min(most - start);
            let keys = memory.add(at.keys).cast::<E>();
            let values = memory.add(at.values).cast::<E>();
            let is_bytes = job.geometry.layout.dtype == KvType::Int8;
            let scales = is_bytes.then(|| {
                (
                    memory.add(at.key_scales).cast::<f32>(),
                    memory.add(at.value_scales).cast::<f32>(),
                )
            });
            let sees = |row: usize| visible(row).saturating_sub(start).min(BLOCK_TOKENS);
            let widen = rows >= WIDEN_FROM && size_of::<E>() < size_of::<f32>();
            if widen {
                widened::<S, E>(keys, work.keys, dim * BLOCK_TOKENS);
                widened::<S, E>(values, work.values, tokens * width);
            }
            let mut row = 0;
            while row < rows {
                let count = group(rows - row);
                let some = (row..row + count).any(|row| sees(row) > 0);
                if some {
                    if widen {
                        scores::<S, f32>(work, row, count, dim, work.keys);
                    } else {
                        scores::<S, E>(work, row, count, dim, keys);
                    }
                    for row in row..row + count {
                        let p = work.p.add(row * BLOCK_TOKENS);
                        let sums = work.sums.add(row * width);
                        soften::<S>(
                            p,
                            sees(row),
                            scales,
                            &mut top[row],
                            &mut total[row],
                            sums,
                            width,
                        );
                    }
                    if widen {
                        weigh::<S, f32>(work, row, count, tokens, width, work.values);
                    } else {
                        weigh::<S, E>(work, row, count, tokens, width, values);
                    }
                }
                row += count;
            }
        }
        for (row, total) in total[..rows].iter().enumerate() {
            let step_row = tile.row + row / tile.heads;
            let head = tile.head + row % tile.heads;
            let at = step_row * job.out_row + head * job.out_head;
            let out = job.out.part(at, dim);
            let sums = std::slice::from_raw_parts(work.sums.add(row * width), dim);
            let factor = 1.0 / total;
            for (out, sum) in out.iter_mut().zip(sums) {
                // Adding zero makes one zero of two: what a row must not see
                // adds a zero of either sign.
                *out = sum * factor + 0.0;
            }
        }
    }
}

/// Rows that go through the inner loops together.
#[inline(always)]
const fn group(left: usize) -> usize {
    match left {
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Fills the queries and clears the sums.
#[inline(always)]
unsafe fn prepare<S: Simd>(job: &Job<'_>, tile: &Tile, work: &Work) {
    let dim = job.geometry.layout.head_dim;
    let width = job.geometry.width;
    for row in 0..tile.rows * tile.heads {
        let step_row = tile.row + row / tile.heads;
        let head = tile.head + row % tile.heads;
        // SAFETY: the scratch holds this row.
        let (q, sums) = unsafe {
            (
                std::slice::from_raw_parts_mut(work.q.add(row * dim), dim),
                std::slice::from_raw_parts_mut(work.sums.add(row * width), width),
            )
        };
        q.copy_from_slice(job.q.of(step_row, head, dim));
        rotate(job, step_row, q);
        for x in q {
            *x *= job.params.scale;
        }
        sums.fill(0.0);
    }
}

/// Copies `count` elements as f32; whole vectors, as every block is padded.
#[inline(always)]
unsafe fn widened<S: Simd, E: Element>(from: *const E, to: *mut f32, count: usize) {
    for at in (0..count).step_by(S::LANES) {
        // SAFETY: both hold `count` elements, a multiple of the lanes.
        unsafe { S::store(to.add(at), E::load::<S>(from.add(at))) };
    }
}

/// Scores of `count` rows against the 32 keys of a block.
#[inline(always)]
unsafe fn scores<S: Simd, E: Element>(
    work: &Work,
    row: usize,
    count: usize,
    dim: usize,
    keys: *const E,
) {
    // SAFETY: the rows are inside the scratch.
    unsafe {
        let q = work.q.add(row * dim).cast_const();
        let p = work.p.add(row * BLOCK_TOKENS);
        // As many accumulators as registers allow.
        match (S::LANES, count) {
            (4, 4) => scores_of::<S, E, 4, 4>(q, dim, keys, p),
            (4, 2) => scores_of::<S, E, 2, 8>(q, dim, keys, p),
            (4, _) => scores_of::<S, E, 1, 8>(q, dim, keys, p),
            (_, 4) => scores_of::<S, E, 4, 2>(q, dim, keys, p),
            (_, 2) => scores_of::<S, E, 2, 2>(q, dim, keys, p),
            (_, _) => scores_of::<S, E, 1, 2>(q, dim, keys, p),
        }
    }
}

#[inline(always)]
unsafe fn scores_of<S: Simd, E: Element, const ROWS: usize, const VECTORS: usize>(
    q: *const f32,
    dim: usize,
    keys: *const E,
    p: *mut f32,
) {
    // SAFETY: `q` holds ROWS rows of `dim`, `p` ROWS rows of 32, `keys` `dim`
    // rows of 32, which VECTORS vectors divide.
    unsafe {
        for token in (0..BLOCK_TOKENS).step_by(VECTORS * S::LANES) {
            let mut sums = [[S::splat(0.0); VECTORS]; ROWS];
            for d in 0..dim {
                let mut key = [S::splat(0.0); VECTORS];
                for (v, key) in key.iter_mut().enumerate() {
                    *key = E::load::<S>(keys.add(d * BLOCK_TOKENS + token + v * S::LANES));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = S::splat(*q.add(r * dim + d));
                    for (sum, key) in sums.iter_mut().zip(key) {
                        *sum = S::fma(x, key, *sum);
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (v, sum) in sums.iter().enumerate() {
                    S::store(p.add(r * BLOCK_TOKENS + token + v * S::LANES), *sum);
                }
            }
        }
    }
}

/// Turns the scores of a row into weights of its values and takes them into
/// the running maximum and total; a row that sees nothing gets zeros.
#[inline(always)]
unsafe fn soften<S: Simd>(
    p: *mut f32,
    sees: usize,
    scales: Option<(*const f32, *const f32)>,
    top: &mut f32,
    total: &mut f32,
    sums: *mut f32,
    width: usize,
) {
    // SAFETY: `p` and the scales hold 32 elements, `sums` holds `width`; both
    // are multiples of the lanes.
    unsafe {
        let zero = S::splat(0.0);
        if sees == 0 {
            for at in (0..BLOCK_TOKENS).step_by(S::LANES) {
                S::store(p.add(at), zero);
            }
            return;
        }
        let lowest = S::splat(f32::NEG_INFINITY);
        let mut most = lowest;
        for at in (0..BLOCK_TOKENS).step_by(S::LANES) {
            let mut x = S::load(p.add(at));
            if let Some((keys, _)) = scales {
                x = S::mul(x, S::load(keys.add(at)));
            }
            x = S::first(x, sees.saturating_sub(at), lowest);
            S::store(p.add(at), x);
            most = S::max(most, x);
        }
        let most = top.max(S::reduce_max(most));
        if most > *top {
            // The first block scales zeros, by e^-inf.
            let factor = (*top - most).exp();
            *total *= factor;
            let factor = S::splat(factor);
            for at in (0..width).step_by(S::LANES) {
                S::store(sums.add(at), S::mul(S::load(sums.add(at)), factor));
            }
            *top = most;
        }
        let mut sum = zero;
        let shift = S::splat(-*top);
        for at in (0..BLOCK_TOKENS).step_by(S::LANES) {
            let x = simd::exp::<S>(S::add(S::load(p.add(at)), shift));
            let x = S::first(x, sees.saturating_sub(at), zero);
            sum = S::add(sum, x);
            let x = match scales {
                // Slots that nobody wrote may hold anything.
                Some((_, values)) => {
                    let scale = S::first(S::load(values.add(at)), sees.saturating_sub(at), zero);
                    S::mul(x, scale)
                }
                None => x,
            };
            S::store(p.add(at), x);
        }
        *total += S::reduce_add(sum);
    }
}

/// Adds the weighted values of `tokens` tokens to the sums of `count` rows.
#[inline(always)]
unsafe fn weigh<S: Simd, E: Element>(
    work: &Work,
    row: usize,
    count: usize,
    tokens: usize,
    width: usize,
    values: *const E,
) {
    // SAFETY: the rows are inside the scratch.
    unsafe {
        let p = work.p.add(row * BLOCK_TOKENS).cast_const();
        let sums = work.sums.add(row * width);
        match count {
            4 => weigh_of::<S, E, 4>(p, tokens, width, values, sums),
            2 => weigh_of::<S, E, 2>(p, tokens, width, values, sums),
            _ => weigh_of::<S, E, 1>(p, tokens, width, values, sums),
        }
    }
}

#[inline(always)]
unsafe fn weigh_of<S: Simd, E: Element, const ROWS: usize>(
    p: *const f32,
    tokens: usize,
    width: usize,
    values: *const E,
    sums: *mut f32,
) {
    // SAFETY: elements stay below the width, a multiple of the lanes.
    unsafe {
        let mut at = 0;
        // Two vectors leave room for four rows in sixteen registers.
        let wide = if S::LANES == 8 { 2 } else { 4 };
        while at + wide * S::LANES <= width {
            if wide == 2 {
                weigh_at::<S, E, ROWS, 2>(p, tokens, width, values.add(at), sums.add(at));
            } else {
                weigh_at::<S, E, ROWS, 4>(p, tokens, width, values.add(at), sums.add(at));
            }
            at += wide * S::LANES;
        }
        while at < width {
            weigh_at::<S, E, ROWS, 1>(p, tokens, width, values.add(at), sums.add(at));
            at += S::LANES;
        }
    }
}

#[inline(always)]
unsafe fn weigh_at<S: Simd, E: Element, const ROWS: usize, const VECTORS: usize>(
    p: *const f32,
    tokens: usize,
    width: usize,
    values: *const E,
    sums: *mut f32,
) {
    // SAFETY: VECTORS vectors from here lie inside the width.
    unsafe {
        let mut acc = [[S::splat(0.0); VECTORS]; ROWS];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = S::load(sums.add(r * width + v * S::LANES));
            }
        }
        for token in 0..tokens {
            let mut value = [S::splat(0.0); VECTORS];
            for (v, value) in value.iter_mut().enumerate() {
                *value = E::load::<S>(values.add(token * width + v * S::LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = S::splat(*p.add(r * BLOCK_TOKENS + token));
                for (acc, value) in acc.iter_mut().zip(value) {
                    *acc = S::fma(x, value, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                S::store(sums.add(r * width + v * S::LANES), *acc);
            }
        }
    }
}
