//! Numbers from a seed, and threads for tests.

#![allow(dead_code, reason = "each test uses some of it")]

use glm_kernels::Parallel;

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    #[allow(clippy::cast_possible_truncation, reason = "the rest is below `bound`")]
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Within -1..1.
    #[allow(clippy::cast_precision_loss, reason = "23 bits are exact")]
    pub fn float(&mut self) -> f32 {
        (self.next() >> 41) as f32 / (1_u32 << 22) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    #[allow(clippy::cast_possible_truncation, reason = "any eight bits will do")]
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// Three threads made for every call.
#[derive(Debug)]
pub struct Threads;

impl Parallel for Threads {
    fn threads(&self) -> usize {
        3
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for thread in 0..3 {
                scope.spawn(move || (thread..tasks).step_by(3).for_each(task));
            }
        });
    }
}
