//! What an export is asked for, and whether the model can have it.

use std::num::NonZero;

use glm::manifest::{self, Kept, Number};
use glm::{Family, ModelSpec};

use crate::graph::{self, Block, Plan, Precision, Quantisation, Scheme, Table};
use crate::{Error, Result};

/// Threads beyond which reading and writing are the limit.
const MOST_THREADS: usize = 8;

/// What an export is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Linear layers of the blocks.
    pub layers: Precision,
    /// Output head.
    pub head: Precision,
    /// Embedding table. A tied head in f32 keeps the table in f32 as well.
    pub embedding: Table,
    /// Name of the model; that of the output folder without.
    pub name: Option<String>,
    /// SPDX expression of the licence of the weights.
    pub license: Option<String>,
    /// Family, where the files do not tell.
    pub family: Option<Family>,
    /// Replace a model directory that is there.
    pub force: bool,
    /// Threads.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            layers: Precision::Full,
            head: Precision::Full,
            embedding: Table::Full,
            name: None,
            license: None,
            family: None,
            force: false,
            threads: threads.min(MOST_THREADS),
        }
    }
}

impl Options {
    /// The graph of a model; `tied` when its head is its embedding table.
    pub(super) fn plan(&self, spec: &ModelSpec, tied: bool) -> Result<Plan> {
        for (option, precision) in [("quant", self.layers), ("head", self.head)] {
            if let Precision::Quantised(how) = precision {
                check_block(option, how)?;
            }
        }
        if let Table::Quantised(how) = self.embedding {
            check_block("embedding", how)?;
            let block = how.stored_block(spec.hidden);
            if !spec.hidden.is_multiple_of(block) {
                return Err(Error::Option {
                    option: "embedding",
                    reason: format!(
                        "rows of {} weights are not whole blocks of {block}; \
                         keep the table as full or half, or choose another block",
                        spec.hidden
                    ),
                });
            }
        }
        Ok(graph::build(
            spec,
            &graph::Options {
                layers: self.layers,
                head: self.head,
                embedding: self.embedding,
                tied_head: tied,
                max_positions: spec.max_positions,
            },
        ))
    }

    /// The same for the manifest.
    pub(super) fn record(&self, tied: bool) -> manifest::Quantisation {
        let shared = tied && self.head == Precision::Full;
        let embedding = match self.embedding {
            Table::Half if !shared => plain(Number::F16),
            Table::Quantised(how) if !shared => integers(how),
            _ => plain(Number::F32),
        };
        manifest::Quantisation {
            layers: precision(self.layers),
            head: precision(self.head),
            embedding,
        }
    }
}

fn check_block(option: &'static str, how: Quantisation) -> Result<()> {
    match how.block {
        Block::Of(size) if size < 16 || !size.is_power_of_two() => Err(Error::Option {
            option,
            reason: format!("blocks of {size} are not a power of two of at least 16"),
        }),
        Block::Of(_) | Block::Row => Ok(()),
    }
}

fn precision(precision: Precision) -> Kept {
    match precision {
        Precision::Full => plain(Number::F32),
        Precision::Quantised(how) => integers(how),
    }
}

const fn plain(number: Number) -> Kept {
    Kept {
        number,
        block: None,
    }
}

fn integers(how: Quantisation) -> Kept {
    Kept {
        number: match how.scheme {
            Scheme::Int8 => Number::Int8,
            Scheme::Int4 => Number::Int4,
            Scheme::Int4ZeroPoint => Number::Int4Zp,
        },
        block: Some(match how.block {
            Block::Of(size) => manifest::Block::Of(size),
            Block::Row => manifest::Block::Row,
        }),
    }
}
