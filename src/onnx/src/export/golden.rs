//! Golden logits of an exported model.

use glm::manifest::{Golden, GoldenPrompt};
use glm::spec::Visibility;
use glm::{ModelSpec, Position, TokenId};

use super::{Options, Profile, Stage, Watch, tell};
use crate::Result;
use crate::graph::Precision;
use crate::reference::{Prompt, Reference, Rounding, Wanted};
use crate::weights::Weights;

/// A runtime may round a few times what the reference rounds once: it may
/// quantise operands in other groups, and approximate `exp` and `erf`.
const ROUNDING_MARGIN: f32 = 3.0;
/// Share of the largest logit that the order of sums may make out.
const SUM_SHARE: f32 = 2e-3;
/// Lengths of the prompts: one within a block of a paged cache, one across two.
const LENGTHS: [usize; 2] = [7, 37];

/// Computes them from weights as they were written.
///
/// Each prompt runs twice: exactly, which gives the logits, and rounded as
/// runtimes do, which tells how far off a sound one may be.
pub(super) fn compute(
    spec: &ModelSpec,
    weights: &dyn Weights,
    options: &Options,
    watch: Watch<'_>,
) -> Result<Golden> {
    let exact = prompts(spec);
    let rounding = Rounding {
        layers: options.layers != Precision::Full || options.profile != Profile::Cpu,
        head: options.head != Precision::Full || options.profile != Profile::Cpu,
        cache: true,
    };
    let rounded = exact
        .iter()
        .cloned()
        .map(|prompt| Prompt { rounding, ..prompt });
    let both: Vec<Prompt> = exact.iter().cloned().chain(rounded).collect();
    let layers = spec.layers as u64;
    let reference = Reference::new(spec, weights, options.threads);
    let rows = reference.logits(&both, Wanted::Last, |done| {
        tell(watch, Stage::Golden, done as u64, layers)
    })?;
    let (rows, rounded) = rows.split_at(exact.len());
    let largest = |values: &[f32]| values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let mut tolerance = 0.0_f32;
    for (row, rounded) in rows.iter().zip(rounded) {
        let off: Vec<f32> = row.iter().zip(rounded).map(|(a, b)| a - b).collect();
        let allowed = ROUNDING_MARGIN * largest(&off) + SUM_SHARE * largest(row);
        tolerance = tolerance.max(allowed);
    }
    let prompts = exact.into_iter().zip(rows).map(|(prompt, row)| {
        GoldenPrompt::new(prompt.ids, &prompt.positions, prompt.bidirectional, row)
    });
    Ok(Golden {
        // A model whose weights are all zero has only zero logits.
        tolerance: tolerance.max(f32::MIN_POSITIVE),
        prompts: prompts.collect(),
    })
}

/// Prompts of ids all over the vocabulary, in the form that the family reads:
/// blanks with pieces where it fills them, plain text elsewhere.
fn prompts(spec: &ModelSpec) -> Vec<Prompt> {
    let mut lengths = LENGTHS
        .map(|length| length.min(spec.max_positions))
        .to_vec();
    lengths.dedup();
    let prompts = lengths.into_iter().map(|length| match spec.visibility() {
        Visibility::Causal => causal(spec, length),
        Visibility::PrefixLm => prefix_lm(spec, length),
    });
    prompts.collect()
}

/// The `n`-th of ids that are spread over the vocabulary (Fibonacci hashing).
fn spread(spec: &ModelSpec, n: usize) -> TokenId {
    let ids = spec.special.tokenizer_size.unwrap_or(spec.vocab_rows);
    let ids = ids.clamp(1, spec.vocab_rows) as u64;
    let hash = (n as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    TokenId(u32::try_from(hash % ids).unwrap_or_default())
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn causal(spec: &ModelSpec, length: usize) -> Prompt {
    Prompt {
        ids: (0..length).map(|n| spread(spec, n)).collect(),
        positions: (0..length).map(|n| Position::context(number(n))).collect(),
        bidirectional: 0,
        rounding: Rounding::default(),
    }
}

/// Two thirds are given text with a blank in its middle, the rest is its piece
/// so far (GLM, section 2.1).
fn prefix_lm(spec: &ModelSpec, length: usize) -> Prompt {
    let special = &spec.special;
    let given = (2 * length).div_ceil(3);
    let blank = given / 2;
    let id = |n: usize| {
        let placed = match n {
            0 => special.cls,
            n if n == blank => special.mask.or(special.gmask),
            n if n + 1 == given => special.part_a_end,
            n if n == given => special.sop,
            _ => None,
        };
        placed.unwrap_or_else(|| spread(spec, n))
    };
    let position = |n: usize| match n.checked_sub(given) {
        None => Position::context(number(n)),
        Some(offset) => Position::piece(number(blank), number(offset + 1)),
    };
    Prompt {
        ids: (0..length).map(id).collect(),
        positions: (0..length).map(position).collect(),
        bidirectional: given,
        rounding: Rounding::default(),
    }
}
