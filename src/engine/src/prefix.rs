//! Prompts that were read before: an index of the sequences kept for reuse.
//!
//! A causal prefix is good for every prompt that begins with it, so whole
//! blocks are compared by a chain of hashes (each covers all before it) and
//! the longest match wins. What is read in both directions (Part A) depends on
//! every one of its tokens and is good for an exact match only. A hash only
//! finds the candidate; the tokens themselves decide.
//!
//! The index owns no memory: it tells which sequences of the backend to fork
//! and which to release. Bounded in tokens, least recently used goes first.

use std::hash::{DefaultHasher, Hash, Hasher};

use glm::Tokens;

use crate::backend::SeqId;
use crate::request::Placed;
use crate::status::CacheStatus;

/// Most prefixes, whatever their length: a look-up visits all of them.
const MOST_ENTRIES: usize = 64;

/// A kept sequence.
#[derive(Debug)]
struct Entry {
    seq: SeqId,
    tokens: Vec<Placed>,
    bidirectional: usize,
    chain: Vec<u64>,
    used: u64,
}

/// The index of kept sequences.
#[derive(Debug)]
pub struct PrefixCache {
    entries: Vec<Entry>,
    block_tokens: usize,
    limit: Tokens,
    held: usize,
    clock: u64,
}

/// A prefix that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Sequence to fork.
    pub seq: SeqId,
    /// How many of its tokens.
    pub tokens: usize,
}

impl PrefixCache {
    /// An empty cache of at most `limit` tokens; causal prefixes match in steps of `block_tokens`.
    #[must_use]
    pub const fn new(block_tokens: usize, limit: Tokens) -> Self {
        Self {
            entries: Vec::new(),
            block_tokens,
            limit,
            held: 0,
            clock: 0,
        }
    }

    /// Longest kept prefix of `tokens`, at most `most` long.
    pub fn find(&mut self, tokens: &[Placed], bidirectional: usize, most: usize) -> Option<Hit> {
        if self.entries.is_empty() {
            return None;
        }
        self.clock += 1;
        let (index, tokens) = match bidirectional {
            0 => self.find_causal(tokens, most)?,
            whole => self.find_whole(tokens.get(..whole)?, most)?,
        };
        let entry = &mut self.entries[index];
        entry.used = self.clock;
        Some(Hit {
            seq: entry.seq,
            tokens,
        })
    }

    /// How much of a sequence is worth keeping: whole blocks as far as the limit allows, or exactly Part A.
    #[must_use]
    pub const fn keepable(&self, length: usize, bidirectional: usize) -> usize {
        let most = match length < self.limit.0 {
            true => length,
            false => self.limit.0,
        };
        match bidirectional {
            0 => most - most % self.block_tokens,
            whole if whole <= most => whole,
            _ => 0,
        }
    }

    /// Whether every token is already held by a kept sequence.
    #[must_use]
    pub fn holds(&self, tokens: &[Placed], bidirectional: usize) -> bool {
        let most = tokens.len();
        let found = match bidirectional {
            0 => self.find_causal(tokens, most),
            _ => self.find_whole(tokens, most),
        };
        found.is_some_and(|(_, held)| held == most)
    }

    /// Keeps a sequence that holds exactly `tokens`; returns the sequences to release for it.
    pub fn keep(&mut self, seq: SeqId, tokens: Vec<Placed>, bidirectional: usize) -> Vec<SeqId> {
        self.clock += 1;
        let chain = chain(&tokens, self.block_tokens);
        // A prefix of the new one adds nothing: it is found inside.
        let mut gone = self.drop_if(|old| {
            old.bidirectional == 0 && bidirectional == 0 && tokens.starts_with(&old.tokens)
        });
        self.held += tokens.len();
        self.entries.push(Entry {
            seq,
            tokens,
            bidirectional,
            chain,
            used: self.clock,
        });
        while self.held > self.limit.0 || self.entries.len() > MOST_ENTRIES {
            gone.extend(self.drop_oldest());
        }
        gone
    }

    /// Gives up the least recently used sequence.
    pub fn drop_oldest(&mut self) -> Option<SeqId> {
        let (index, _) = (self.entries.iter().enumerate()).min_by_key(|(_, e)| e.used)?;
        let entry = self.entries.swap_remove(index);
        self.held -= entry.tokens.len();
        Some(entry.seq)
    }

    /// Gives up everything.
    pub fn clear(&mut self) -> Vec<SeqId> {
        self.drop_if(|_| true)
    }

    /// How much is held.
    #[must_use]
    pub const fn status(&self) -> CacheStatus {
        CacheStatus {
            entries: self.entries.len(),
            tokens: self.held,
        }
    }

    fn drop_if(&mut self, gone: impl Fn(&Entry) -> bool) -> Vec<SeqId> {
        let dropped: Vec<Entry> = self.entries.extract_if(.., |e| gone(e)).collect();
        self.held -= dropped.iter().map(|e| e.tokens.len()).sum::<usize>();
        dropped.into_iter().map(|e| e.seq).collect()
    }

    fn find_causal(&self, tokens: &[Placed], most: usize) -> Option<(usize, usize)> {
        let wanted = chain(tokens, self.block_tokens);
        (self.entries.iter().enumerate())
            .filter(|(_, e)| e.bidirectional == 0)
            .map(|(index, e)| {
                let blocks = (e.chain.iter().zip(&wanted))
                    .take_while(|(a, b)| a == b)
                    .count();
                let length = (blocks * self.block_tokens).min(most - most % self.block_tokens);
                (index, length)
            })
            .filter(|(index, length)| {
                *length > 0 && self.entries[*index].tokens[..*length] == tokens[..*length]
            })
            .max_by_key(|(index, length)| (*length, self.entries[*index].used))
    }

    fn find_whole(&self, part: &[Placed], most: usize) -> Option<(usize, usize)> {
        if part.len() > most {
            return None;
        }
        (self.entries.iter())
            .position(|e| e.bidirectional == part.len() && e.tokens == part)
            .map(|index| (index, part.len()))
    }
}

/// Hash of the first block, of the first two, and so on; an unfinished block has none.
fn chain(tokens: &[Placed], block: usize) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    tokens
        .chunks_exact(block)
        .map(|block| {
            block.hash(&mut hasher);
            hasher.finish()
        })
        .collect()
}
