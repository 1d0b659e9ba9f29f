//! What an export is asked for, and whether the model can have it.

use std::num::NonZero;

use glm::manifest::{self, Kept, Number};
use glm::{Family, ModelSpec};

use crate::graph::{self, Block, Fixed, Plan, Precision, Quantisation, Scheme, Table};
use crate::{Error, Result};

/// The model's own test prompts have Parts A of up to 25 tokens.
const LEAST_PROMPT: usize = 32;
/// Threads beyond which reading and writing are the limit.
const MOST_THREADS: usize = 8;
/// What the linear layers of calibrated graphs for NPUs are made of.
const NPU_INTEGERS: Precision = Precision::Quantised(Quantisation {
    scheme: Scheme::Int8,
    block: Block::Row,
});

/// What an exported graph is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Processors: steps of any size, fused operators.
    Cpu,
    /// NPUs: steps of fixed sizes in small operators. There is a graph for
    /// prompts and one for single tokens, with one file of weights. Numbers are
    /// floats, which the NPU's compiler rounds as it needs, unless there is
    /// text for calibration: then the linear layers are of integers.
    Npu {
        /// Tokens of a step of the first graph. Text that is read in both directions must fit in one.
        prompt: usize,
        /// Longest text, in tokens.
        context: usize,
    },
}

/// What an export is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it is made for.
    pub profile: Profile,
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
    /// NPUs: text, a sentence a line, that the ranges of activations are taken from. Linear layers and head then
    /// have INT8 weights with a scale for each row, and 16-bit activations.
    pub calibration: Option<String>,
    /// Replace a model directory that is there.
    pub force: bool,
    /// Threads.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            profile: Profile::Cpu,
            layers: Precision::Full,
            head: Precision::Full,
            embedding: Table::Full,
            name: None,
            license: None,
            family: None,
            calibration: None,
            force: false,
            threads: threads.min(MOST_THREADS),
        }
    }
}

impl Options {
    /// Text for calibration and the tokens of a step, where the graph is of integers for an NPU.
    pub(super) fn calibration(&self) -> Option<(&str, usize)> {
        match (self.profile, &self.calibration) {
            (Profile::Npu { prompt, .. }, Some(text)) => Some((text, prompt)),
            _ => None,
        }
    }

    /// How the linear layers and the head are kept.
    pub(super) const fn kept(&self) -> (Precision, Precision) {
        match (self.profile, &self.calibration) {
            (Profile::Npu { .. }, Some(_)) => (NPU_INTEGERS, NPU_INTEGERS),
            _ => (self.layers, self.head),
        }
    }

    /// Longest text of the exported model, in tokens.
    pub(super) fn context(&self, spec: &ModelSpec) -> usize {
        match self.profile {
            Profile::Cpu => spec.max_positions,
            Profile::Npu { context, .. } => context.min(spec.max_positions),
        }
    }

    /// The graph for single tokens, where the profile has one of its own.
    ///
    /// [`Options::plan`] has checked the sizes.
    pub(super) fn step_plan(&self, spec: &ModelSpec, tied: bool) -> Option<Plan> {
        let fixed = match self.profile {
            Profile::Cpu => None,
            Profile::Npu { .. } => Some(Fixed {
                tokens: 1,
                past: self.context(spec),
            }),
        };
        fixed.map(|fixed| self.build(spec, tied, Some(fixed)))
    }

    fn build(&self, spec: &ModelSpec, tied: bool, fixed: Option<Fixed>) -> Plan {
        let (layers, head) = self.kept();
        graph::build(
            spec,
            &graph::Options {
                layers,
                head,
                embedding: self.embedding,
                tied_head: tied,
                max_positions: spec.max_positions,
                fixed,
            },
        )
    }

    /// The sizes of an NPU's step, if they make sense and nothing is asked that it cannot have.
    fn fixed(&self, spec: &ModelSpec) -> Result<Option<Fixed>> {
        let refused = |option, reason: String| Err(Error::Option { option, reason });
        let Profile::Npu { prompt, .. } = self.profile else {
            return match self.calibration {
                Some(_) => refused("calibrate", "is for NPUs: add `--profile npu`".to_owned()),
                None => Ok(None),
            };
        };
        let full = self.layers == Precision::Full && self.head == Precision::Full;
        if !full || self.embedding != Table::Full {
            return refused(
                "quant",
                "graphs for NPUs keep floats, which the NPU's own compiler rounds, or have \
                 integers fitted to the text of `calibrate`; leave out `quant`, `head` and `embedding`"
                    .to_owned(),
            );
        }
        let past = self.context(spec);
        if !(LEAST_PROMPT..=past).contains(&prompt) {
            return refused(
                "prompt",
                format!("{prompt} tokens: expected {LEAST_PROMPT} to the {past} of the context"),
            );
        }
        Ok(Some(Fixed {
            tokens: prompt,
            past,
        }))
    }

    /// The graph of a model; `tied` when its head is its embedding table.
    pub(super) fn plan(&self, spec: &ModelSpec, tied: bool) -> Result<Plan> {
        let fixed = self.fixed(spec)?;
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
        Ok(self.build(spec, tied, fixed))
    }

    /// The same for the manifest.
    pub(super) fn record(&self, tied: bool) -> manifest::Quantisation {
        let (layers, head) = self.kept();
        let shared = tied && head == Precision::Full;
        let embedding = match self.embedding {
            Table::Half if !shared => plain(Number::F16),
            Table::Quantised(how) if !shared => integers(how),
            _ => plain(Number::F32),
        };
        manifest::Quantisation {
            layers: precision(layers),
            head: precision(head),
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
