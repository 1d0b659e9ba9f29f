//! The memory of the cache: one mapping, and who owns which block of it.
//!
//! Pages of the mapping come into being when they are first written. A free
//! block that was written keeps its pages and is the first to be used again;
//! [`Blocks::shrink`] gives such pages back.

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

use super::layout::Geometry;
use crate::error::KernelError;

#[derive(Debug)]
pub(super) struct Blocks {
    map: MmapRaw,
    geometry: Geometry,
    /// Sequences and steps that hold a block.
    owners: Vec<u32>,
    /// Free blocks with pages.
    warm: Vec<u32>,
    /// Free blocks without pages.
    cold: Vec<u32>,
}

impl Blocks {
    pub(super) fn new(geometry: Geometry) -> Result<Self, KernelError> {
        let reserve = |source| KernelError::Reserve {
            bytes: geometry.total,
            source,
        };
        let map: MmapRaw = MmapOptions::new()
            .len(geometry.total)
            .no_reserve_swap()
            .map_anon()
            .map_err(reserve)?
            .into();
        // A huge page would hold parts of several blocks, and resident memory
        // would neither grow nor fall with them. Kernels without huge pages
        // refuse the advice and do not need it.
        let _ = map.advise(Advice::NoHugePage);
        let count = u32::try_from(geometry.layout.blocks).unwrap_or(u32::MAX);
        Ok(Self {
            map,
            geometry,
            owners: vec![0; geometry.layout.blocks],
            warm: Vec::new(),
            cold: (0..count).rev().collect(),
        })
    }

    pub(super) const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Start of the mapping.
    pub(super) fn start(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    pub(super) fn free(&self) -> usize {
        self.warm.len() + self.cold.len()
    }

    pub(super) fn used(&self) -> usize {
        self.owners.len() - self.free()
    }

    /// Blocks that have pages, used or not.
    pub(super) fn resident(&self) -> usize {
        self.owners.len() - self.cold.len()
    }

    /// A free block, now owned once.
    pub(super) fn take(&mut self) -> Option<u32> {
        let block = self.warm.pop().or_else(|| self.cold.pop())?;
        self.owners[block as usize] = 1;
        Some(block)
    }

    pub(super) fn is_shared(&self, block: u32) -> bool {
        self.owners[block as usize] > 1
    }

    pub(super) fn share(&mut self, block: u32) {
        self.owners[block as usize] += 1;
    }

    /// Takes one owner away.
    pub(super) fn release(&mut self, block: u32) {
        let owners = &mut self.owners[block as usize];
        debug_assert!(
            *owners > 0,
            "block {block} is released more often than held"
        );
        *owners = owners.saturating_sub(1);
        if *owners == 0 {
            self.warm.push(block);
        }
    }

    /// Copies a whole block.
    pub(super) fn copy(&mut self, from: u32, to: u32) {
        assert_ne!(from, to, "a block is copied to another one");
        let bytes = self.geometry.block;
        let offset = |block: u32| {
            assert!((block as usize) < self.owners.len());
            block as usize * bytes
        };
        let (from, to) = (offset(from), offset(to));
        // SAFETY: both blocks lie inside the mapping and are different; `&mut
        // self` keeps every other access away, since pointers into the mapping
        // are only made from a borrow of the cache.
        unsafe {
            let start = self.map.as_mut_ptr();
            std::ptr::copy_nonoverlapping(start.add(from), start.add(to), bytes);
        }
    }

    /// Gives the pages of free blocks back; returns how many bytes of blocks that were.
    pub(super) fn shrink(&mut self) -> usize {
        let mut warm = std::mem::take(&mut self.warm);
        warm.sort_unstable();
        let mut given = 0;
        for run in warm.chunk_by(|a, b| a + 1 == *b) {
            let bytes = run.len() * self.geometry.block;
            // SAFETY: nobody owns these blocks, so nothing reads what they
            // held; the next owner writes before it reads, and finds zeros.
            let done = unsafe {
                self.map.unchecked_advise_range(
                    UncheckedAdvice::DontNeed,
                    run[0] as usize * self.geometry.block,
                    bytes,
                )
            };
            if done.is_ok() {
                given += bytes;
                self.cold.extend(run.iter().rev());
            } else {
                self.warm.extend(run);
            }
        }
        given
    }
}
