//! What a step takes at least on this machine, attention apart: the roofline that figures are held to.

use glm::ModelSpec;
use glm_kernels::Kernels;
use glm_onnx::graph::{self, Matrix, Options, Source};

use super::machine;

/// What a step costs at least.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Bytes of weights that it reads: all but tables of which it takes a few rows.
    pub bytes: u64,
    /// Products of the layers for each of its tokens.
    pub each_token: u64,
    /// Products of the head for each token whose logits are wanted.
    pub each_answer: u64,
}

impl Work {
    /// That of a model.
    pub fn of(spec: &ModelSpec, options: &Options) -> Self {
        let mut work = Self::default();
        for constant in &graph::build(spec, options).constants {
            let table = |matrix: &Matrix| {
                matches!(
                    matrix,
                    Matrix::Embedding | Matrix::Positions | Matrix::BlockPositions
                )
            };
            match &constant.source {
                Source::Rotation(_) => continue,
                Source::Matrix(matrix) if table(matrix) => continue,
                Source::Values(matrix, quantisation) => {
                    let products = constant.bytes() * 8 / quantisation.bits() as u64;
                    match matrix {
                        Matrix::Head => work.each_answer += products,
                        matrix if table(matrix) => {}
                        _ => work.each_token += products,
                    }
                }
                _ => {}
            }
            work.bytes += constant.bytes();
        }
        work
    }
}

/// Tokens of a step, and those whose logits are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    tokens: usize,
    answers: usize,
}

impl Step {
    /// A prompt, whose last token is answered.
    pub const fn prompt(tokens: usize) -> Self {
        Self { tokens, answers: 1 }
    }

    /// Texts that are continued by a token each.
    pub const fn texts(tokens: usize) -> Self {
        Self {
            tokens,
            answers: tokens,
        }
    }
}

/// What bounds a step.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes that memory delivers in a second.
    pub bytes_s: f64,
    /// Products of bytes that the processor computes in a second, in registers.
    pub products_s: f64,
}

impl Bounds {
    /// Those of `threads` threads.
    pub fn measure(kernels: Kernels, threads: usize) -> Self {
        Self {
            bytes_s: machine::read_bandwidth(threads),
            products_s: machine::peak_products(kernels, threads),
        }
    }

    /// Seconds that a step takes at least: those of reading or those of multiplying.
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub fn least(self, work: Work, step: Step) -> f64 {
        let layers = work.each_token * step.tokens as u64;
        let head = work.each_answer * step.answers as u64;
        (work.bytes as f64 / self.bytes_s).max((layers + head) as f64 / self.products_s)
    }
}
