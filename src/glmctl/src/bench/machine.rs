//! What the machine can do and what the process takes of it.

use std::fs;
use std::hint::black_box;
use std::thread;
use std::time::Instant;

use glm_kernels::Kernels;

/// Larger than the caches of every board, small enough for the smallest.
const BUFFER: usize = 256 << 20;
/// Rounds of which the best counts: whatever disturbs one makes it longer.
const ROUNDS: usize = 8;

/// Bytes a second that `threads` threads read from memory, the best of some rounds.
pub fn read_bandwidth(threads: usize) -> f64 {
    let buffer: Vec<u64> = (0..BUFFER as u64 / 8).collect();
    let part = buffer.len().div_ceil(threads.max(1));
    (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            thread::scope(|scope| {
                for part in buffer.chunks(part) {
                    scope.spawn(|| black_box(sum(part)));
                }
            });
            a_second(BUFFER as u64, started)
        })
        .fold(0.0, f64::max)
}

/// Products of bytes a second that `threads` threads compute in registers, the best of some rounds.
pub fn peak_products(kernels: Kernels, threads: usize) -> f64 {
    /// Milliseconds on a fast core, beside which starting threads is little, and a tenth of a second on a slow one.
    const EACH: usize = 1 << 21;
    (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            let products: u64 = thread::scope(|scope| {
                let all: Vec<_> = (0..threads.max(1))
                    .map(|_| scope.spawn(|| kernels.multiply_bytes(black_box(EACH))))
                    .collect();
                all.into_iter().filter_map(|one| one.join().ok()).sum()
            });
            a_second(products, started)
        })
        .fold(0.0, f64::max)
}

#[allow(clippy::cast_precision_loss, reason = "counts are below 2^52")]
fn a_second(count: u64, started: Instant) -> f64 {
    count as f64 / started.elapsed().as_secs_f64().max(1e-9)
}

/// Sixteen sums side by side, so that adding never waits for adding.
fn sum(values: &[u64]) -> u64 {
    let mut sums = [0_u64; 16];
    let (blocks, rest) = values.as_chunks::<16>();
    for block in blocks {
        for (sum, value) in sums.iter_mut().zip(block) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter()
        .chain(rest)
        .fold(0, |sum, value| sum.wrapping_add(*value))
}

/// Anonymous memory of this process (heap, stacks, caches) in bytes; zero where `/proc/self/status` does not tell.
/// Mapped weights are not in it: the system can drop and read them again.
pub fn anonymous() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// Runnable processes of the last minute, on average: figures of a busy machine mean little.
pub fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}
