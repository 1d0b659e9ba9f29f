//! Attention over paged keys and values: arguments, checks, and how work is cut.
//!
//! A call handles one layer of an open step. It rotates and writes the new keys
//! and values, then lets every row look at as many tokens of its sequence as it
//! may see. Causal models, bidirectional prefixes and mixes of prompts and
//! single tokens are the same code.
//!
//! Work is cut into tiles: some consecutive tokens of one sequence with some
//! query heads that share a key/value head. Softmax runs online over the blocks
//! of 32 keys (Milakov & Gimelshein 2018), each row by itself, so how tiles are
//! cut changes no bit.

mod tile;

use crate::error::{KernelError, expect_size};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::isa::Isa;
use crate::isa::Kernels;
use crate::kv::{BLOCK_TOKENS, KvCache, OpenStep};
use crate::parallel::Parallel;
use crate::shared::Output;
use crate::simd::scalar::Scalar;

/// What attention must know of a layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams<'a> {
    /// Query heads; a multiple of the key/value heads of the cache.
    pub heads: usize,
    /// Factor on scores.
    pub scale: f32,
    /// Rotation of queries and keys; `None` where the graph does it or no one.
    pub rotary: Option<Rotary<'a>>,
}

/// Rotary embedding (RoFormer, section 3.2.2) by tables.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<'a> {
    /// Pairing.
    pub style: RotaryStyle,
    /// Elements of a head that turn, for each position number; even.
    pub dims: usize,
    /// Whether the elements after the first `dims` turn by the second position number.
    pub two_dimensional: bool,
    /// Cosines `[positions, dims / 2]`.
    pub cos: &'a [f32],
    /// Sines `[positions, dims / 2]`.
    pub sin: &'a [f32],
}

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryStyle {
    /// `(i, i + dims / 2)`.
    Half,
    /// `(2i, 2i + 1)`.
    Interleaved,
}

/// Queries, keys and values of the rows of a step. `N` is the number of rows;
/// the output has the shape of the queries.
#[derive(Clone, Copy, Debug)]
pub enum Qkv<'a> {
    /// `[N, (heads + 2 kv_heads) head_dim]`: queries, keys, values.
    Packed(&'a [f32]),
    /// `[N, heads head_dim]`, `[N, kv_heads head_dim]` twice.
    Rows {
        /// Queries.
        q: &'a [f32],
        /// Keys.
        k: &'a [f32],
        /// Values.
        v: &'a [f32],
    },
    /// `[heads, N, head_dim]`, `[kv_heads, N, head_dim]` twice.
    Heads {
        /// Queries.
        q: &'a [f32],
        /// Keys.
        k: &'a [f32],
        /// Values.
        v: &'a [f32],
    },
}

/// Elements of heads of rows, wherever they lie.
#[derive(Clone, Copy, Debug)]
struct Strided<'a> {
    data: &'a [f32],
    first: usize,
    row: usize,
    head: usize,
}

impl<'a> Strided<'a> {
    /// The elements of one head of one row.
    fn of(&self, row: usize, head: usize, dim: usize) -> &'a [f32] {
        let at = self.first + row * self.row + head * self.head;
        &self.data[at..at + dim]
    }
}

/// Everything a tile needs.
struct Job<'a> {
    step: &'a OpenStep,
    geometry: &'a crate::kv::Geometry,
    /// Start of the mapping of the cache.
    memory: Memory,
    layer: usize,
    params: &'a AttentionParams<'a>,
    q: Strided<'a>,
    k: Strided<'a>,
    v: Strided<'a>,
    out: Output<'a, f32>,
    out_row: usize,
    out_head: usize,
}

/// Start of the memory of the cache, handed to the tasks of one call.
#[derive(Clone, Copy)]
struct Memory(*mut u8);

// SAFETY: a call holds the cache exclusively and its tasks either write the
// keys and values of different rows and heads or only read.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// Some rows of a run with some query heads of one key/value head.
#[derive(Clone, Copy, Debug)]
struct Tile {
    run: usize,
    /// First row of the step.
    row: usize,
    rows: usize,
    kv_head: usize,
    /// First query head.
    head: usize,
    heads: usize,
}

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Writes keys and values.
    Write,
    /// Looks at them.
    Attend,
    /// Both: nothing else writes what this tile looks at.
    Both,
}

/// Rows times heads of a tile: their queries, scores and sums fit in a common
/// L1 and L2 cache beside a block of keys and values.
const TILE_ROWS: usize = 32;

impl Kernels {
    /// Attention of one layer for the rows of the open step of `cache`.
    ///
    /// Shapes are those of [`Qkv`]; `out` is filled in the layout of the queries.
    ///
    /// # Errors
    /// When no step is open, sizes do not fit, or a position lies outside the
    /// tables of the rotation; nothing was written then.
    #[allow(clippy::too_many_arguments, reason = "each is a separate thing")]
    pub fn attention(
        self,
        cache: &mut KvCache,
        layer: usize,
        params: &AttentionParams<'_>,
        qkv: Qkv<'_>,
        out: &mut [f32],
        par: &dyn Parallel,
    ) -> Result<(), KernelError> {
        let memory = Memory(cache.start());
        let geometry = cache.geometry();
        let step = cache.open_step().ok_or(KernelError::NoStep)?;
        let layout = &geometry.layout;
        let n = step.rows.len();
        let dim = layout.head_dim;
        if layer >= layout.layers {
            return Err(KernelError::Outside {
                what: "layer",
                index: layer as u64,
                rows: layout.layers,
            });
        }
        if params.heads == 0 || !params.heads.is_multiple_of(layout.kv_heads) {
            return Err(KernelError::Unsupported {
                what: "heads",
                value: params.heads,
                reason: "it must be a multiple of kv_heads",
            });
        }
        check_rotary(params.rotary.as_ref(), dim, step)?;
        let [q, k, v] = strides(qkv, params.heads, layout.kv_heads, dim, n)?;
        let (out_row, out_head) = match qkv {
            Qkv::Heads { .. } => (dim, n * dim),
            Qkv::Packed(_) | Qkv::Rows { .. } => (params.heads * dim, dim),
        };
        expect_size("output", Some(n * params.heads * dim), out.len())?;
        let job = Job {
            step,
            geometry,
            memory,
            layer,
            params,
            q,
            k,
            v,
            out: Output::new(out),
            out_row,
            out_head,
        };
        let (tiles, alone) = cut(
            step,
            params.heads / layout.kv_heads,
            layout.kv_heads,
            par.threads(),
        );
        if alone {
            par.run(tiles.len(), &|task| {
                self.tile(&job, &tiles[task], Pass::Both);
            });
            return Ok(());
        }
        // Only the first tile of a key/value head writes its rows.
        let group = params.heads / layout.kv_heads;
        let writers: Vec<Tile> = (tiles.iter().copied())
            .filter(|tile| tile.head == tile.kv_head * group)
            .collect();
        par.run(writers.len(), &|task| {
            self.tile(&job, &writers[task], Pass::Write);
        });
        par.run(tiles.len(), &|task| {
            self.tile(&job, &tiles[task], Pass::Attend);
        });
        Ok(())
    }

    fn tile(self, job: &Job<'_>, tile: &Tile, pass: Pass) {
        match self.isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a value of `Kernels` proves that the machine has the set.
            Isa::Avx512Vnni => unsafe { avx512(job, tile, pass) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { avx2(job, tile, pass) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => unsafe { neon(job, tile, pass) },
            // SAFETY: arrays need no instruction set.
            _ => unsafe { tile::run::<Scalar>(job, tile, pass) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn avx512(job: &Job<'_>, tile: &Tile, pass: Pass) {
    // SAFETY: the features are those of the vectors.
    unsafe { tile::run::<crate::simd::avx512::Avx512>(job, tile, pass) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(job: &Job<'_>, tile: &Tile, pass: Pass) {
    // SAFETY: the features are those of the vectors.
    unsafe { tile::run::<crate::simd::avx2::Avx2>(job, tile, pass) }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon(job: &Job<'_>, tile: &Tile, pass: Pass) {
    // SAFETY: the features are those of the vectors.
    unsafe { tile::run::<crate::simd::neon::Neon>(job, tile, pass) }
}

/// Cuts the step into tiles; whether each sequence has one tile a key/value head.
fn cut(step: &OpenStep, group: usize, kv_heads: usize, threads: usize) -> (Vec<Tile>, bool) {
    // Few sequences with few key/value heads (multi-query models) leave threads
    // idle: then heads that share keys are parted, at the price of reading the
    // keys twice.
    let wide = step.runs.len() * kv_heads;
    let parts = (threads.div_ceil(wide.max(1))).clamp(1, group);
    let heads = group.div_ceil(parts).min(TILE_ROWS);
    let rows = (TILE_ROWS / heads).max(1);
    let mut tiles = Vec::new();
    let mut alone = heads == group;
    for (index, run) in step.runs.iter().enumerate() {
        alone &= run.rows.len() <= rows;
        for row in run.rows.clone().step_by(rows) {
            for kv_head in 0..kv_heads {
                for head in (0..group).step_by(heads) {
                    tiles.push(Tile {
                        run: index,
                        row,
                        rows: rows.min(run.rows.end - row),
                        kv_head,
                        head: kv_head * group + head,
                        heads: heads.min(group - head),
                    });
                }
            }
        }
    }
    (tiles, alone)
}

fn strides<'a>(
    qkv: Qkv<'a>,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    n: usize,
) -> Result<[Strided<'a>; 3], KernelError> {
    let part = |data, first, row, head| Strided {
        data,
        first,
        row,
        head,
    };
    match qkv {
        Qkv::Packed(data) => {
            let row = (heads + 2 * kv_heads) * dim;
            expect_size("packed queries, keys and values", Some(n * row), data.len())?;
            Ok([0, heads, heads + kv_heads].map(|first| part(data, first * dim, row, dim)))
        }
        Qkv::Rows { q, k, v } | Qkv::Heads { q, k, v } => {
            expect_size("queries", Some(n * heads * dim), q.len())?;
            expect_size("keys", Some(n * kv_heads * dim), k.len())?;
            expect_size("values", Some(n * kv_heads * dim), v.len())?;
            Ok(if matches!(qkv, Qkv::Rows { .. }) {
                [
                    part(q, 0, heads * dim, dim),
                    part(k, 0, kv_heads * dim, dim),
                    part(v, 0, kv_heads * dim, dim),
                ]
            } else {
                [q, k, v].map(|data| part(data, 0, dim, n * dim))
            })
        }
    }
}

fn check_rotary(
    rotary: Option<&Rotary<'_>>,
    dim: usize,
    step: &OpenStep,
) -> Result<(), KernelError> {
    let Some(rotary) = rotary else {
        return Ok(());
    };
    let turning = if rotary.two_dimensional {
        rotary.dims.saturating_mul(2)
    } else {
        rotary.dims
    };
    if rotary.dims == 0 || !rotary.dims.is_multiple_of(2) || turning > dim {
        return Err(KernelError::Unsupported {
            what: "rotary dims",
            value: rotary.dims,
            reason: "it must be even, at least 2, and fit the head",
        });
    }
    expect_size("sines", Some(rotary.cos.len()), rotary.sin.len())?;
    let half = rotary.dims / 2;
    let positions = rotary.cos.len() / half;
    expect_size("cosines", Some(positions * half), rotary.cos.len())?;
    let numbers = if rotary.two_dimensional { 2 } else { 1 };
    for row in &step.rows {
        for position in &row.position[..numbers] {
            if *position as usize >= positions {
                return Err(KernelError::Outside {
                    what: "position",
                    index: u64::from(*position),
                    rows: positions,
                });
            }
        }
    }
    Ok(())
}

/// Blocks that hold `tokens`.
const fn blocks_of(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}
