//! Doing what the memory governor says.

use crate::control::{Admit, Load};
use crate::events;
use crate::inbox::Gate;
use crate::memory;
use crate::units::Moment;

use super::Engine;
use super::absence::Absence;

impl Engine {
    /// Asks the governor and follows.
    pub(super) fn govern(&mut self, now: Moment) {
        let load = self.load_now();
        let allowance = self.control.allow(now, &load);
        if allowance.level != self.allowance.level {
            events::level_changed(self.allowance.level, allowance.level);
        }
        self.allowance = allowance;
        self.inbox.lock().gate = match allowance.admit {
            Admit::From(lowest) => Gate::Open(lowest),
            Admit::Nobody => Gate::Shut,
        };
        if !allowance.loaded && self.loaded.is_some() {
            self.leave(Absence::Memory);
        }
        if !allowance.keep_prefixes {
            self.drop_prefixes();
        }
        if allowance.preempt_one && self.running.len() > 1 {
            self.preempt_least();
        }
        // A smaller pool: what was reserved from the larger one goes back to the queue.
        while self.running.len() > 1 && self.reserved_blocks() > allowance.blocks {
            self.preempt_least();
        }
        self.drop_excess_prefixes();
        if allowance.shrink
            && let Some(loaded) = &mut self.loaded
        {
            loaded.backend.shrink();
            memory::trim();
        }
    }

    /// Prefixes give way to a smaller pool, the oldest first.
    fn drop_excess_prefixes(&mut self) {
        let usable = self.usable_blocks();
        let Some(loaded) = &mut self.loaded else {
            return;
        };
        let blocks = loaded.info.capabilities.blocks;
        while blocks.saturating_sub(loaded.backend.memory().free_blocks) > usable {
            let Some(seq) = loaded.cache.drop_oldest() else {
                break;
            };
            loaded.backend.release(seq);
        }
    }

    fn load_now(&self) -> Load {
        let queued = self.inbox.lock().queue.len();
        let loaded = self.loaded.as_ref();
        Load {
            step_tokens: self.step_tokens,
            budget_used_up: self.step_tokens >= self.budget(),
            running: self.running.len(),
            queued,
            memory: loaded.map(|l| l.backend.memory()).unwrap_or_default(),
            block_bytes: loaded
                .map(|l| l.info.capabilities.block_bytes)
                .unwrap_or_default(),
            blocks: loaded.map_or(0, |l| l.info.capabilities.blocks),
            reserved_blocks: self.reserved_blocks(),
            loaded: loaded.is_some(),
        }
    }

    fn drop_prefixes(&mut self) {
        if let Some(loaded) = &mut self.loaded {
            for seq in loaded.cache.clear() {
                loaded.backend.release(seq);
            }
        }
    }

    /// Sends the newest request of the lowest priority back to the queue.
    fn preempt_least(&mut self) {
        let least = (self.running.iter().enumerate())
            .min_by_key(|(index, served)| (served.priority, std::cmp::Reverse(*index)));
        if let Some((index, _)) = least {
            self.preempt(index);
        }
    }
}
