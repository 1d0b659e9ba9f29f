//! Speed of the kernels at the shapes of GLM-Edge-1.5B, beside what the memory
//! of the same machine delivers in the same minute.
//!
//! `cargo bench -p glm-kernels --bench kernels [-- decode|prefill|attention] [threads]`.
//! `GLMD_ISA` forces an instruction set. Every figure is the best of several
//! rounds, the measurements take turns, and one thread is measured by the time
//! of the processor, so that a busy machine spoils them little and alike.

use std::hint::black_box;
use std::time::{Duration, Instant};

use glm_kernels::{
    AttentionParams, Kernels, KvCache, KvLayout, KvType, Matrix, Parallel, Qkv, Quantised, Rotary,
    RotaryStyle, Scratch, StepRow, Team,
};
use memmap2::MmapMut;
use rustix::time::{ClockId, clock_gettime};

/// Outputs and inputs of the products of a layer.
const LAYER: [[usize; 2]; 4] = [[3072, 2048], [2048, 2048], [12288, 2048], [2048, 6144]];
/// Enough layers to leave every cache behind.
const LAYERS: usize = 4;
const ROUNDS: usize = 9;

struct Stored {
    shape: [usize; 2],
    bits: usize,
    block: usize,
    /// On a page of their own, as in a mapped file.
    values: MmapMut,
    scales: Vec<f32>,
}

impl Stored {
    fn new(shape: [usize; 2], bits: usize, block: usize, seed: &mut u64) -> Self {
        let [outputs, inputs] = shape;
        let mut random = || {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *seed
        };
        let mut values = MmapMut::map_anon(outputs * inputs / 8 * bits).expect("memory");
        for eight in values.chunks_exact_mut(8) {
            eight.copy_from_slice(&random().to_le_bytes());
        }
        Self {
            shape,
            bits,
            block,
            values,
            scales: vec![0.01; outputs * inputs / block],
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        let [outputs, inputs] = self.shape;
        let (values, scales) = (&self.values, &self.scales);
        let weights = Quantised::new(outputs, inputs, self.bits, self.block, values, scales);
        Matrix::Quantised(weights.expect("sizes fit"))
    }

    fn bytes(&self) -> usize {
        self.values.len() + size_of_val(&self.scales[..])
    }
}

fn model(bits: usize, block: usize) -> Vec<Stored> {
    let mut seed = 42;
    (0..LAYERS)
        .flat_map(|_| LAYER)
        .map(|shape| Stored::new(shape, bits, block, &mut seed))
        .collect()
}

/// Time that `work` takes: of the processor where it is one thread, so that
/// what else runs on the machine does not count; of the clock otherwise.
fn time(team: &Team, work: impl FnOnce()) -> Duration {
    if team.threads() > 1 {
        let start = Instant::now();
        work();
        return start.elapsed();
    }
    let spent = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::try_from(now).unwrap_or_default()
    };
    let start = spent();
    work();
    spent().saturating_sub(start)
}

/// Reads every cache line of `data` in several streams at once, as products do.
fn read(data: &[u64], par: &Team) {
    const PARTS: usize = 64;
    let part = data.len() / PARTS;
    par.run(PARTS, &|task| {
        let data = &data[task * part..(task + 1) * part];
        let streams: Vec<&[u64]> = data.chunks_exact(data.len() / 4).collect();
        let mut sums = [0_u64; 32];
        for at in (0..streams[0].len() / 8 * 8).step_by(8) {
            for (s, stream) in streams[..4].iter().enumerate() {
                let line: &[u64; 8] = stream[at..at + 8].try_into().expect("eight numbers");
                for (sum, x) in sums[s * 8..s * 8 + 8].iter_mut().zip(line) {
                    *sum ^= x;
                }
            }
        }
        black_box(sums);
    });
}

fn decode(kernels: Kernels, threads: usize) {
    let team = Team::new(threads).expect("threads");
    let data = vec![1_u64; 256 << 17];
    let bytes = size_of_val(&data[..]);
    let x: Vec<f32> = (0..16 * 6144_u32).map(|i| (i % 17) as f32 - 8.0).collect();
    let mut out = vec![0.0; 16 * 12288];
    let models = [(8, 32), (8, 128), (4, 32), (4, 128)].map(|(bits, block)| model(bits, block));
    let rows = [1, 2, 4, 8, 16];
    let mut best = vec![Duration::MAX; models.len() * rows.len()];
    let mut reading = Duration::MAX;
    let mut shares = vec![Vec::new(); best.len()];
    let mut scratch = Scratch::default();
    for _ in 0..ROUNDS {
        for (m, model) in models.iter().enumerate() {
            let size: usize = model.iter().map(Stored::bytes).sum();
            for (r, rows) in rows.iter().enumerate() {
                let before = time(&team, || read(&data, &team));
                let spent = time(&team, || {
                    for weights in model {
                        let [outputs, inputs] = weights.shape;
                        let (x, out) = (&x[..rows * inputs], &mut out[..rows * outputs]);
                        let weights = weights.matrix();
                        let done = kernels.matmul(&weights, x, out, &mut scratch, &team);
                        done.expect("sizes fit");
                    }
                });
                let after = time(&team, || read(&data, &team));
                let read = before.min(after);
                reading = reading.min(read);
                let at = m * rows_len() + r;
                best[at] = best[at].min(spent);
                let ideal = read.as_secs_f64() * size as f64 / bytes as f64;
                shares[at].push(ideal / spent.as_secs_f64());
            }
        }
    }
    let bandwidth = bytes as f64 / reading.as_secs_f64() / 1e9;
    println!("read bandwidth {bandwidth:.1} GB/s");
    println!("bits block rows |    ms  GB/s  GMAC/s | share of bandwidth: best, median of rounds");
    for (m, model) in models.iter().enumerate() {
        let size: usize = model.iter().map(Stored::bytes).sum();
        let weights: usize = model.iter().map(|w| w.shape[0] * w.shape[1]).sum();
        for (r, rows) in rows.iter().enumerate() {
            let at = m * rows_len() + r;
            let seconds = best[at].as_secs_f64();
            let rate = size as f64 / seconds / 1e9;
            shares[at].sort_by(f64::total_cmp);
            println!(
                "{:4} {:5} {:4} | {:5.1} {:5.1} {:7.0} | {:.2} {:.2}",
                model[0].bits,
                model[0].block,
                rows,
                seconds * 1e3,
                rate,
                (weights * rows) as f64 / seconds / 1e9,
                rate / bandwidth,
                shares[at][ROUNDS / 2],
            );
        }
    }
}

const fn rows_len() -> usize {
    5
}

fn prefill(kernels: Kernels, threads: usize) {
    let team = Team::new(threads).expect("threads");
    println!("bits block rows |     ms  GMAC/s");
    for (bits, block) in [(8, 32), (8, 128), (4, 32), (4, 128)] {
        let mut seed = 1;
        let weights = LAYER.map(|shape| Stored::new(shape, bits, block, &mut seed));
        for rows in [32, 128, 512] {
            let x: Vec<f32> = (0..rows * 6144).map(|i| (i % 17) as f32 - 8.0).collect();
            let mut out = vec![0.0; rows * 12288];
            let mut scratch = Scratch::default();
            let mut best = Duration::MAX;
            for _ in 0..ROUNDS / 3 {
                best = best.min(time(&team, || {
                    for weights in &weights {
                        let [outputs, inputs] = weights.shape;
                        let (x, out) = (&x[..rows * inputs], &mut out[..rows * outputs]);
                        let weights = weights.matrix();
                        let done = kernels.matmul(&weights, x, out, &mut scratch, &team);
                        done.expect("sizes fit");
                    }
                }));
            }
            let macs: usize = LAYER.iter().map(|[o, i]| o * i * rows).sum();
            let seconds = best.as_secs_f64();
            println!(
                "{bits:4} {block:5} {rows:4} | {:6.1} {:7.0}",
                seconds * 1e3,
                macs as f64 / seconds / 1e9
            );
        }
    }
}

fn attention(kernels: Kernels, threads: usize) {
    const HEADS: usize = 16;
    const KV_HEADS: usize = 4;
    const DIM: usize = 128;
    let team = Team::new(threads).expect("threads");
    let table = vec![0.5; 4096 * DIM / 2];
    let params = AttentionParams {
        heads: HEADS,
        scale: 0.088,
        rotary: Some(Rotary {
            style: RotaryStyle::Interleaved,
            dims: DIM,
            two_dimensional: false,
            cos: &table,
            sin: &table,
        }),
    };
    println!("kv   sequences tokens new | ms a layer  GB/s of keys and values");
    for dtype in [KvType::F32, KvType::F16, KvType::Int8] {
        for (sequences, context, new) in [
            (1, 128, 1),
            (8, 128, 1),
            (1, 512, 1),
            (8, 512, 1),
            (1, 2048, 1),
            (8, 2048, 1),
            (1, 0, 128),
            (1, 0, 512),
        ] {
            let layout = KvLayout {
                layers: 1,
                kv_heads: KV_HEADS,
                head_dim: DIM,
                dtype,
                blocks: 8 * 2112 / 32,
            };
            let mut cache = KvCache::new(&layout).expect("room");
            let step = |cache: &mut KvCache, from: u32, count: u32| {
                let rows: Vec<StepRow> = (0..sequences as u64)
                    .flat_map(|seq| (from..from + count).map(move |index| (seq, index)))
                    .map(|(seq, index)| StepRow {
                        seq,
                        position: [index, 0],
                        visible: index + 1,
                    })
                    .collect();
                cache.begin(&rows).expect("room");
                let row = (HEADS + 2 * KV_HEADS) * DIM;
                let qkv: Vec<f32> = (0..rows.len() * row)
                    .map(|i| (i % 13) as f32 * 0.1 - 0.6)
                    .collect();
                let mut out = vec![0.0; rows.len() * HEADS * DIM];
                time(&team, || {
                    let done =
                        kernels.attention(cache, 0, &params, Qkv::Packed(&qkv), &mut out, &team);
                    done.expect("sizes fit");
                })
            };
            if context > 0 {
                step(&mut cache, 0, context);
                cache.commit();
            }
            let mut best = Duration::MAX;
            for _ in 0..ROUNDS * 3 {
                best = best.min(step(&mut cache, context, new));
                cache.rollback();
            }
            let tokens = (context + new) as usize;
            let bytes = sequences * tokens * KV_HEADS * 2 * DIM * dtype.size();
            println!(
                "{:4} {sequences:9} {context:6} {new:3} | {:10.3} {:5.1}",
                format!("{dtype:?}"),
                best.as_secs_f64() * 1e3,
                bytes as f64 / best.as_secs_f64() / 1e9
            );
        }
    }
}

/// A part of the benchmark and its name.
type Part = (&'static str, fn(Kernels, usize));

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let threads = words.iter().find_map(|word| word.parse().ok()).unwrap_or(1);
    let kernels = Kernels::from_env().expect("an instruction set of this machine");
    println!("{}, {threads} threads", kernels.isa());
    let parts: [Part; 3] = [
        ("decode", decode),
        ("prefill", prefill),
        ("attention", attention),
    ];
    let named = words
        .iter()
        .any(|word| parts.iter().any(|(name, _)| name == word));
    for (name, part) in parts {
        if !named || words.iter().any(|word| word == name) {
            part(kernels, threads);
        }
    }
}
