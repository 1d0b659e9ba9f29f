//! The pool: who holds which block, what a failed step leaves, and whether
//! memory comes back.

mod support;

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Mutex, PoisonError};

    use crate::support::Random;
    use glm_kernels::{
        AttentionParams, BLOCK_TOKENS, KernelError, Kernels, KvCache, KvLayout, KvType, Parallel,
        Qkv, Serial, StepRow,
    };

    const LAYOUT: KvLayout = KvLayout {
        layers: 2,
        kv_heads: 2,
        head_dim: 64,
        dtype: KvType::F16,
        blocks: 24,
    };

    fn rows(cache: &KvCache, seq: u64, count: usize) -> Vec<StepRow> {
        let start = cache.len(seq);
        (start..start + count)
            .map(|index| StepRow {
                seq,
                position: [0, 0],
                visible: u32::try_from(index + 1).unwrap(),
            })
            .collect()
    }

    /// Writes `mark` as every key and value, and gives the sum that attention
    /// to equal keys has: the mean of the values.
    fn fill(cache: &mut KvCache, count: usize, mark: f32, par: &dyn Parallel) -> f32 {
        let params = AttentionParams {
            heads: 2,
            scale: 0.0,
            rotary: None,
        };
        let qkv = vec![mark; count * 6 * 64];
        let mut out = vec![0.0; count * 2 * 64];
        for layer in 0..2 {
            let qkv = Qkv::Packed(&qkv);
            Kernels::detect()
                .attention(cache, layer, &params, qkv, &mut out, par)
                .unwrap();
        }
        out[out.len() - 1]
    }

    fn grow(cache: &mut KvCache, seq: u64, count: usize, mark: f32) -> f32 {
        let rows = rows(cache, seq, count);
        cache.begin(&rows).unwrap();
        let mean = fill(cache, count, mark, &Serial);
        cache.commit();
        mean
    }

    fn free(cache: &KvCache) -> usize {
        cache.memory().free_blocks
    }

    #[test]
    fn who_writes_into_a_shared_block_copies_it() {
        let mut cache = KvCache::new(&LAYOUT).unwrap();
        grow(&mut cache, 1, 40, 1.0);
        cache.fork(1, 2, 40).unwrap();
        cache.fork(1, 3, 32).unwrap();
        assert_eq!(free(&cache), 22, "a fork takes no block");
        // The mean of forty ones and one three.
        let mean = grow(&mut cache, 2, 1, 3.0);
        assert!((mean - 43.0 / 41.0).abs() < 1e-3, "{mean}");
        assert_eq!(free(&cache), 21, "the shared tail was copied");
        let mean = grow(&mut cache, 1, 1, 5.0);
        assert!((mean - 45.0 / 41.0).abs() < 1e-3, "{mean}");
        assert_eq!(free(&cache), 21, "the tail has one owner again");
        let mean = grow(&mut cache, 3, 1, 7.0);
        assert!((mean - 39.0 / 33.0).abs() < 1e-2, "{mean}");
        for seq in 1..=3 {
            cache.release(seq);
        }
        assert_eq!(free(&cache), LAYOUT.blocks);
        assert!(cache.is_empty());
    }

    #[test]
    fn a_step_that_does_not_happen_changes_nothing() {
        let mut cache = KvCache::new(&LAYOUT).unwrap();
        grow(&mut cache, 1, 33, 1.0);
        cache.fork(1, 2, 33).unwrap();
        let before = free(&cache);
        let two: Vec<StepRow> = [rows(&cache, 1, 40), rows(&cache, 2, 2)].concat();
        cache.begin(&two).unwrap();
        // Both copy the tail that they share, one needs a block more.
        assert_eq!(free(&cache), before - 3);
        fill(&mut cache, two.len(), 9.0, &Serial);
        cache.rollback();
        assert_eq!((cache.len(1), cache.len(2), free(&cache)), (33, 33, before));
        assert!(!cache.in_step());
        // What the step wrote is gone: the mean is still that of ones.
        assert!((grow(&mut cache, 1, 1, 1.0) - 1.0).abs() < 1e-3);

        let before = free(&cache);
        let many = rows(&cache, 9, (before + 1) * BLOCK_TOKENS);
        match cache.begin(&many) {
            Err(KernelError::OutOfBlocks { needed, free }) => {
                assert_eq!((needed, free), (before + 1, before));
            }
            other => panic!("{other:?}"),
        }
        let mut blind = rows(&cache, 1, 3);
        blind[1].visible = 35;
        assert_eq!(cache.begin(&blind).unwrap_err().code(), "kv_bad_step");
        blind[1].visible = 38;
        assert_eq!(cache.begin(&blind).unwrap_err().code(), "kv_bad_step");
        let parted = [rows(&cache, 1, 1), rows(&cache, 2, 1), rows(&cache, 1, 1)].concat();
        assert_eq!(cache.begin(&parted).unwrap_err().code(), "kv_bad_step");
        assert_eq!(free(&cache), before);
    }

    #[test]
    fn forks_that_make_no_sense_are_refused() {
        let mut cache = KvCache::new(&LAYOUT).unwrap();
        grow(&mut cache, 1, 3, 1.0);
        for (parent, child, tokens) in [(1, 1, 1), (2, 3, 0), (1, 2, 4)] {
            let refused = cache.fork(parent, child, tokens).unwrap_err();
            assert_eq!(refused.code(), "kv_bad_fork");
        }
        cache.truncate(1, 7);
        cache.truncate(5, 0);
        cache.release(5);
        assert_eq!(cache.len(1), 3);
    }

    struct Panics;

    impl Parallel for Panics {
        fn threads(&self) -> usize {
            2
        }

        fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
            task(tasks - 1);
            std::panic::resume_unwind(Box::new("a task failed"));
        }
    }

    #[test]
    fn a_panic_in_a_step_leaks_nothing() {
        let mut cache = KvCache::new(&LAYOUT).unwrap();
        grow(&mut cache, 1, 40, 1.0);
        cache.fork(1, 2, 40).unwrap();
        let before = free(&cache);
        for _ in 0..100 {
            let rows = rows(&cache, 2, 70);
            let died = catch_unwind(AssertUnwindSafe(|| {
                cache.begin(&rows).unwrap();
                fill(&mut cache, 70, 2.0, &Panics);
            }));
            assert!(died.is_err());
            assert_eq!(cache.len(2), 40);
        }
        cache.release(2);
        assert_eq!(free(&cache), before);
        assert!((grow(&mut cache, 1, 1, 1.0) - 1.0).abs() < 1e-3);
    }

    #[test]
    fn layouts_without_sense_or_room_are_refused() {
        for layout in [
            KvLayout {
                layers: 0,
                ..LAYOUT
            },
            KvLayout {
                kv_heads: 0,
                ..LAYOUT
            },
            KvLayout {
                head_dim: 0,
                ..LAYOUT
            },
            KvLayout {
                head_dim: 257,
                ..LAYOUT
            },
            KvLayout {
                blocks: 0,
                ..LAYOUT
            },
            KvLayout {
                layers: usize::MAX / 2,
                ..LAYOUT
            },
        ] {
            let refused = KvCache::new(&layout).unwrap_err();
            assert_eq!(refused.code(), "kernel_unsupported", "{layout:?}");
        }
        let huge = KvLayout {
            layers: 1 << 16,
            blocks: 1 << 26,
            ..LAYOUT
        };
        assert!(KvCache::new(&huge).is_err());
    }

    /// Held by a test that reads the memory of the process, which is one for all.
    static ALONE: Mutex<()> = Mutex::new(());

    /// Resident anonymous memory of this process in bytes.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
        let number = line.split_whitespace().nth(1).unwrap();
        number.parse::<usize>().unwrap() * 1024
    }

    /// Random life of a pool; every block is accounted for after every act.
    fn live(steps: usize, seed: u64) {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut random = Random(seed);
        let mut cache = KvCache::new(&LAYOUT).unwrap();
        let mut next = 0;
        let mut alive: Vec<u64> = Vec::new();
        let mut settled = 0;
        for step in 0..steps {
            match random.below(8) {
                0..=3 => {
                    let mut all = Vec::new();
                    for _ in 0..1 + random.below(3) {
                        let seq = match alive.len() {
                            0 => None,
                            n => alive.get(random.below(n + 1)).copied(),
                        };
                        let seq = seq.unwrap_or_else(|| {
                            next += 1;
                            next
                        });
                        if all.iter().all(|row: &StepRow| row.seq != seq) {
                            all.extend(rows(&cache, seq, 1 + random.below(50)));
                        }
                    }
                    let before = cache.memory();
                    if cache.begin(&all).is_err() {
                        assert_eq!(cache.memory(), before);
                        // Full: somebody has to go.
                        if let Some(seq) = alive.pop() {
                            cache.release(seq);
                        }
                        continue;
                    }
                    if step % 4 == 0 {
                        fill(&mut cache, all.len(), 1.0, &Serial);
                    }
                    if random.below(5) == 0 {
                        cache.rollback();
                        assert_eq!(cache.memory().free_blocks, before.free_blocks);
                    } else {
                        cache.commit();
                        for row in all {
                            if !alive.contains(&row.seq) {
                                alive.push(row.seq);
                            }
                        }
                    }
                }
                4 if !alive.is_empty() => {
                    let parent = alive[random.below(alive.len())];
                    next += 1;
                    let tokens = random.below(cache.len(parent) + 1);
                    cache.fork(parent, next, tokens).unwrap();
                    alive.push(next);
                }
                5 if !alive.is_empty() => {
                    let seq = alive[random.below(alive.len())];
                    cache.truncate(seq, random.below(cache.len(seq) + 1));
                }
                6 if !alive.is_empty() => {
                    cache.release(alive.swap_remove(random.below(alive.len())));
                }
                _ if step % 16 == 0 => {
                    let given = cache.shrink();
                    let memory = cache.memory();
                    assert!(given <= memory.free_blocks * memory.block);
                    assert_eq!(memory.resident, memory.used, "free blocks have no pages");
                }
                _ => {}
            }
            let memory = cache.memory();
            assert!(memory.used <= memory.resident);
            assert!(
                memory.used + memory.free_blocks * memory.block == LAYOUT.blocks * memory.block
            );
            if step == steps / 4 {
                settled = resident();
            }
        }
        for seq in alive {
            cache.release(seq);
        }
        assert_eq!(free(&cache), LAYOUT.blocks, "a block leaked");
        // The whole pool and what the allocator keeps may come on top, not more.
        let most = settled + LAYOUT.blocks * cache.memory().block + (4 << 20);
        assert!(resident() <= most, "{} bytes, then {}", settled, resident());
        cache.shrink();
        assert_eq!(cache.memory().resident, 0);
    }

    #[test]
    fn a_random_life_keeps_count_of_every_block() {
        live(4_000, 1);
    }

    #[test]
    #[ignore = "takes a minute"]
    fn a_long_random_life_keeps_memory_flat() {
        live(100_000, 2);
    }

    #[test]
    fn shrinking_gives_memory_back() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let layout = KvLayout {
            layers: 16,
            blocks: 64,
            ..LAYOUT
        };
        let mut cache = KvCache::new(&layout).unwrap();
        let before = resident();
        let params = AttentionParams {
            heads: 2,
            scale: 1.0,
            rotary: None,
        };
        // A block for each of many sequences: one that fills the pool is 64 times
        // the attention, which emulated processors need minutes for.
        let rows: Vec<StepRow> = (0..64)
            .flat_map(|seq| rows(&cache, seq, BLOCK_TOKENS))
            .collect();
        cache.begin(&rows).unwrap();
        let qkv = vec![1.0; rows.len() * 6 * 64];
        let mut out = vec![0.0; rows.len() * 2 * 64];
        for layer in 0..16 {
            let qkv = Qkv::Packed(&qkv);
            Kernels::detect()
                .attention(&mut cache, layer, &params, qkv, &mut out, &Serial)
                .unwrap();
        }
        cache.commit();
        let memory = cache.memory();
        assert!(
            resident() >= before + memory.used / 2,
            "the pool was written"
        );
        (0..64).for_each(|seq| cache.release(seq));
        assert_eq!(cache.memory().used, 0);
        let full = resident();
        assert_eq!(cache.shrink(), memory.used);
        // Other tests of this process allocate meanwhile; half is plain enough.
        assert!(
            full - resident() >= memory.used / 2,
            "{full} then {}",
            resident()
        );
        assert_eq!(cache.shrink(), 0);
    }
}
