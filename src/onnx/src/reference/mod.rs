//! The forward pass of every family in plain f32, one layer at a time.
//!
//! Slow and simple: it says what an exported graph must compute. Weights are
//! read row by row and forgotten, so a model that fills the memory of a machine
//! can be run on it. The exporter takes golden logits from here, tests compare
//! it with implementations of others.

mod math;

use std::collections::BTreeMap;

use glm::spec::{Activation, Norm, PositionEncoding, Residual, Rotary, RotaryStyle};
use glm::{ModelSpec, Position, TokenId};

use crate::calibration::Observer;
use crate::graph::{Matrix, NormId, Rotation, Vector, rotation_rows};
use crate::quantise::rows_of_a_piece;
use crate::weights::Weights;
use crate::{Result, parallel};

/// Tokens of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Tokens.
    pub ids: Vec<TokenId>,
    /// Where they stand.
    pub positions: Vec<Position>,
    /// Length of the prefix whose tokens all see each other.
    pub bidirectional: usize,
    /// What a runtime would round on the way.
    pub rounding: Rounding,
}

/// What small runtimes round beside the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rounding {
    /// Operands of the linear layers of the blocks, to 8 bits a token.
    pub layers: bool,
    /// Operands of the head, to 8 bits a token.
    pub head: bool,
    /// Keys and values, to f16.
    pub cache: bool,
}

/// Of which tokens logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Of all.
    All,
    /// Of the last of each prompt.
    Last,
}

/// A model that can be run.
pub struct Reference<'a> {
    spec: &'a ModelSpec,
    weights: &'a dyn Weights,
    threads: usize,
    observer: Option<&'a Observer>,
}

impl std::fmt::Debug for Reference<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reference")
            .field("family", &self.spec.family)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// One prompt within the packed rows.
struct Part<'a> {
    prompt: &'a Prompt,
    first: usize,
}

impl Part<'_> {
    fn len(&self) -> usize {
        self.prompt.ids.len()
    }

    /// Keys that token `row` of the prompt sees (GLM, section 2.1).
    fn visible(&self, row: usize) -> usize {
        self.prompt.bidirectional.max(row + 1)
    }
}

impl<'a> Reference<'a> {
    /// A model of these weights.
    #[must_use]
    pub const fn new(spec: &'a ModelSpec, weights: &'a dyn Weights, threads: usize) -> Self {
        Self {
            spec,
            weights,
            threads,
            observer: None,
        }
    }

    /// Lets `observer` see what the linear layers read and make.
    #[must_use]
    pub const fn seen_by(mut self, observer: &'a Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Logits of each prompt, `[tokens or 1, vocab_rows]`.
    ///
    /// `after` is called with the number of layers that are done.
    ///
    /// # Errors
    /// Of the weights, and whatever `after` returns.
    ///
    /// # Panics
    /// When a prompt has not one position a token, a position behind the
    /// tables of the model, or an id behind its embedding table.
    pub fn logits(
        &self,
        prompts: &[Prompt],
        wanted: Wanted,
        mut after: impl FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let mut parts = Vec::with_capacity(prompts.len());
        let mut tokens = 0;
        for prompt in prompts {
            assert_eq!(prompt.ids.len(), prompt.positions.len());
            parts.push(Part {
                prompt,
                first: tokens,
            });
            tokens += prompt.ids.len();
        }
        let mut stream = Stream {
            residual: self.embed(&parts)?,
            delta: None,
            alpha: match self.spec.residual {
                Residual::PostNorm { alpha } => Some(math::narrow(alpha)),
                Residual::PreNorm | Residual::Sandwich => None,
            },
        };
        for layer in 0..self.spec.layers {
            let x = self.enter(&mut stream, NormId::Attention(layer))?;
            let x = self.attention(layer, x, &parts)?;
            stream.delta = Some(self.leave(x, NormId::AfterAttention(layer))?);
            let x = self.enter(&mut stream, NormId::Mlp(layer))?;
            let x = self.mlp(layer, x, &parts)?;
            stream.delta = Some(self.leave(x, NormId::AfterMlp(layer))?);
            after(layer + 1)?;
        }
        let x = self.enter(&mut stream, NormId::Final)?;
        self.head(&x, &parts, wanted)
    }

    fn embed(&self, parts: &[Part<'_>]) -> Result<Vec<f32>> {
        let mut x = Vec::new();
        let mut known: BTreeMap<(Matrix, usize), Vec<f32>> = BTreeMap::new();
        let mut row = |matrix: Matrix, index: usize| -> Result<Vec<f32>> {
            if let Some(row) = known.get(&(matrix, index)) {
                return Ok(row.clone());
            }
            let mut row = Vec::new();
            self.weights.rows(matrix, index..index + 1, &mut row)?;
            assert_eq!(row.len(), self.spec.hidden, "{matrix:?} has no row {index}");
            known.insert((matrix, index), row.clone());
            Ok(row)
        };
        for part in parts {
            for (id, position) in part.prompt.ids.iter().zip(&part.prompt.positions) {
                let mut sum = row(Matrix::Embedding, id.index())?;
                if let PositionEncoding::Learned { .. } = self.spec.positions {
                    for (matrix, index) in [
                        (Matrix::Positions, position.first),
                        (Matrix::BlockPositions, position.second),
                    ] {
                        math::add(&mut sum, &row(matrix, index as usize)?);
                    }
                }
                x.extend(sum);
            }
        }
        Ok(x)
    }

    /// Adds what is pending to the residual and normalises.
    fn enter(&self, stream: &mut Stream, norm: NormId) -> Result<Vec<f32>> {
        if let Some(delta) = stream.delta.take() {
            math::add(&mut stream.residual, &delta);
        }
        let x = self.norm(stream.residual.clone(), norm)?;
        if let Some(alpha) = stream.alpha {
            stream.residual.clone_from(&x);
            math::scale(&mut stream.residual, alpha);
        }
        Ok(x)
    }

    /// The norm on the way out, where the family has one.
    fn leave(&self, x: Vec<f32>, norm: NormId) -> Result<Vec<f32>> {
        match self.spec.residual {
            Residual::Sandwich => self.norm(x, norm),
            Residual::PreNorm | Residual::PostNorm { .. } => Ok(x),
        }
    }

    fn norm(&self, mut x: Vec<f32>, norm: NormId) -> Result<Vec<f32>> {
        let weight = self.weights.vector(Vector::NormWeight(norm))?;
        match self.spec.norm {
            Norm::LayerNorm { eps } => {
                let bias = self.weights.vector(Vector::NormBias(norm))?;
                math::layer_norm(&mut x, &weight, &bias, eps);
            }
            Norm::RmsNorm { eps } => math::rms_norm(&mut x, &weight, eps),
        }
        Ok(x)
    }

    /// `x W^T + b` for all tokens, `[tokens, outputs]`.
    fn linear(&self, matrix: Matrix, x: &[f32], bias: bool) -> Result<Vec<f32>> {
        let (outputs, inputs) = self.weights.shape(matrix);
        let tokens = x.len() / inputs;
        let rows = rows_of_a_piece(inputs).min(outputs.div_ceil(self.threads.max(1)));
        let pieces = parallel::map(self.threads, outputs.div_ceil(rows), |piece| {
            let range = piece * rows..((piece + 1) * rows).min(outputs);
            let mut weights = Vec::new();
            self.weights.rows(matrix, range, &mut weights)?;
            Ok(math::product(x, &weights, inputs))
        })?;
        let bias = match bias {
            true => self.weights.vector(Vector::Bias(matrix))?,
            false => vec![0.0; outputs],
        };
        // A piece is `[tokens, its outputs]`.
        let mut y = Vec::with_capacity(tokens * outputs);
        for token in 0..tokens {
            for piece in &pieces {
                let width = piece.len() / tokens;
                y.extend_from_slice(&piece[token * width..(token + 1) * width]);
            }
        }
        if let Some(observer) = self.observer {
            observer.see(matrix, x, &y);
        }
        for row in y.chunks_exact_mut(outputs) {
            math::add(row, &bias);
        }
        Ok(y)
    }

    fn attention(&self, layer: usize, mut x: Vec<f32>, parts: &[Part<'_>]) -> Result<Vec<f32>> {
        let spec = self.spec;
        round_rows(&mut x, parts, |rounding| rounding.layers);
        let mut qkv = self.linear(Matrix::Qkv(layer), &x, spec.biases.qkv)?;
        let (d, width) = (spec.head_dim, spec.qkv_rows());
        let turning = (spec.heads + spec.kv_heads) * d;
        if let PositionEncoding::Rotary(rotary) = spec.positions {
            let rows = qkv.chunks_exact_mut(width);
            for (row, position) in rows.zip(parts.iter().flat_map(|p| &p.prompt.positions)) {
                let angles = Angles::new(&rotary, *position);
                for head in row[..turning].chunks_exact_mut(d) {
                    angles.turn(head);
                }
            }
        }
        for part in parts.iter().filter(|part| part.prompt.rounding.cache) {
            for row in
                qkv[part.first * width..(part.first + part.len()) * width].chunks_exact_mut(width)
            {
                math::round_to_f16(&mut row[spec.heads * d..]);
            }
        }
        let scale = math::narrow(spec.attention_scale());
        let group = spec.heads / spec.kv_heads;
        let mut out = Vec::with_capacity(x.len() / spec.hidden * spec.heads * d);
        for part in parts {
            let rows = &qkv[part.first * width..(part.first + part.len()) * width];
            let keys = |head: usize, n: usize| &rows[n * width + (spec.heads + head) * d..][..d];
            let values = |head: usize, n: usize| {
                &rows[n * width + (spec.heads + spec.kv_heads + head) * d..][..d]
            };
            for row in 0..part.len() {
                let visible = part.visible(row);
                for head in 0..spec.heads {
                    let query = &rows[row * width + head * d..][..d];
                    let mut weights: Vec<f32> = (0..visible)
                        .map(|n| math::dot(query, keys(head / group, n)) * scale)
                        .collect();
                    math::softmax(&mut weights);
                    let mut sum = vec![0.0; d];
                    for (n, weight) in weights.iter().enumerate() {
                        math::add_scaled(&mut sum, values(head / group, n), *weight);
                    }
                    out.extend(sum);
                }
            }
        }
        round_rows(&mut out, parts, |rounding| rounding.layers);
        self.linear(Matrix::AttentionOutput(layer), &out, spec.biases.linear)
    }

    fn mlp(&self, layer: usize, mut x: Vec<f32>, parts: &[Part<'_>]) -> Result<Vec<f32>> {
        let spec = self.spec;
        round_rows(&mut x, parts, |rounding| rounding.layers);
        let mut inner = self.linear(Matrix::MlpIn(layer), &x, spec.biases.linear)?;
        match spec.activation {
            Activation::GeluErf => inner.iter_mut().for_each(|x| *x = math::gelu_erf(*x)),
            Activation::GeluTanh => inner.iter_mut().for_each(|x| *x = math::gelu_tanh(*x)),
            Activation::Silu => {
                inner = inner
                    .chunks_exact(2 * spec.ffn)
                    .flat_map(|row| {
                        let (gate, up) = row.split_at(spec.ffn);
                        gate.iter().zip(up).map(|(gate, up)| math::silu(*gate) * up)
                    })
                    .collect();
            }
        }
        round_rows(&mut inner, parts, |rounding| rounding.layers);
        self.linear(Matrix::MlpOut(layer), &inner, spec.biases.linear)
    }

    fn head(&self, x: &[f32], parts: &[Part<'_>], wanted: Wanted) -> Result<Vec<Vec<f32>>> {
        let hidden = self.spec.hidden;
        let mut rows = Vec::new();
        for part in parts {
            let first = match wanted {
                Wanted::All => 0,
                Wanted::Last => part.len().saturating_sub(1),
            };
            let own = (part.first + first) * hidden..(part.first + part.len()) * hidden;
            let start = rows.len();
            rows.extend_from_slice(&x[own]);
            if part.prompt.rounding.head {
                rows[start..]
                    .chunks_exact_mut(hidden)
                    .for_each(math::round_to_8_bits);
            }
        }
        let mut logits = self.linear(Matrix::Head, &rows, false)?;
        let mut split = Vec::with_capacity(parts.len());
        for part in parts {
            let count = match wanted {
                Wanted::All => part.len(),
                Wanted::Last => part.len().min(1),
            };
            let rest = logits.split_off(count * self.spec.vocab_rows);
            split.push(std::mem::replace(&mut logits, rest));
        }
        Ok(split)
    }
}

/// The residual stream: what is carried, what is still to be added to it, and
/// the factor on what is carried in post-norm models.
struct Stream {
    residual: Vec<f32>,
    delta: Option<Vec<f32>>,
    alpha: Option<f32>,
}

/// Rounds the rows of the prompts that ask for it.
fn round_rows(x: &mut [f32], parts: &[Part<'_>], asked: impl Fn(Rounding) -> bool) {
    let tokens: usize = parts.iter().map(Part::len).sum();
    let width = x.len() / tokens.max(1);
    for part in parts.iter().filter(|part| asked(part.prompt.rounding)) {
        x[part.first * width..(part.first + part.len()) * width]
            .chunks_exact_mut(width)
            .for_each(math::round_to_8_bits);
    }
}

/// Cosines and sines of one token, and which elements of a head turn together.
struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    style: RotaryStyle,
}

impl Angles {
    /// Under two position numbers the first half of the pairs turns by the
    /// first and the second half by the second.
    fn new(rotary: &Rotary, position: Position) -> Self {
        let row =
            |table: fn(Rotary) -> Rotation, at: u32| rotation_rows(table(*rotary), at as usize, 1);
        let both = |table: fn(Rotary) -> Rotation| {
            let mut row_of_table = row(table, position.first);
            if rotary.two_dimensional {
                row_of_table.extend(row(table, position.second));
            }
            row_of_table
        };
        Self {
            cos: both(Rotation::Cosines),
            sin: both(Rotation::Sines),
            style: rotary.style,
        }
    }

    fn turn(&self, head: &mut [f32]) {
        let pairs = self.cos.len();
        for (pair, (cos, sin)) in self.cos.iter().zip(&self.sin).enumerate() {
            let (a, b) = match self.style {
                RotaryStyle::HalfSplit => (pair, pair + pairs),
                RotaryStyle::Interleaved => (2 * pair, 2 * pair + 1),
            };
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
        }
    }
}
