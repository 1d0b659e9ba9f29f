//! What every family calls its tensors.

use glm::spec::TensorLayout;

use super::Checkpoint;
use crate::graph::{Matrix, NormId};
use crate::{Error, Result};

/// Names of the modules of a checkpoint: a module has a `.weight` and may have a `.bias`.
#[derive(Clone, Debug)]
pub(super) struct Names {
    layout: TensorLayout,
    /// What stands before the names that a layout uses: `transformer.`, `model.` or whatever
    /// wrapped the model when it was saved.
    prefix: String,
    /// Name of the embedding, which a few tools move.
    embedding: String,
    /// Whether gate and up are one tensor.
    fused_mlp: bool,
}

impl Names {
    /// Finds out which of its names a layout goes by in a checkpoint.
    pub(super) fn find(checkpoint: &Checkpoint, layout: TensorLayout) -> Result<Self> {
        let (prefixes, embeddings): (&[&str], &[&str]) = match layout {
            // Released bare, as `glm.` by the task classes, in `module.` by trainers.
            TensorLayout::Glm => (
                &["", "glm.", "module.", "model."],
                &["word_embeddings", "transformer.word_embeddings"],
            ),
            TensorLayout::ChatGlm => (&["transformer.", ""], &["word_embeddings"]),
            TensorLayout::Encoder => (&["transformer.", ""], &["embedding.word_embeddings"]),
            TensorLayout::Transformers => (
                &[
                    "model.",
                    "",
                    "model.language_model.",
                    "language_model.model.",
                ],
                &["embed_tokens"],
            ),
        };
        let all = prefixes
            .iter()
            .flat_map(|prefix| embeddings.iter().map(move |name| (*prefix, *name)));
        let mut first = None;
        for (prefix, name) in all {
            let embedding = format!("{prefix}{name}");
            if checkpoint.get(&format!("{embedding}.weight")).is_some() {
                let gate = format!("{prefix}layers.0.mlp.gate_proj.weight");
                return Ok(Self {
                    layout,
                    prefix: prefix.to_owned(),
                    embedding,
                    fused_mlp: checkpoint.get(&gate).is_none(),
                });
            }
            first.get_or_insert(embedding);
        }
        Err(Error::MissingTensor {
            path: checkpoint.folder().to_owned(),
            tensor: format!("{}.weight", first.unwrap_or_default()),
        })
    }

    /// What stands before the number of a layer.
    pub(super) fn layers(&self) -> String {
        let layers = match self.layout {
            TensorLayout::Glm => "transformer.layers.",
            TensorLayout::ChatGlm | TensorLayout::Transformers => "layers.",
            TensorLayout::Encoder => "encoder.layers.",
        };
        format!("{}{layers}", self.prefix)
    }

    /// Candidates for the output head, where the layout stores one.
    pub(super) fn heads(&self) -> Vec<String> {
        let own = |name: &str| format!("{}{name}", self.prefix);
        match self.layout {
            TensorLayout::Glm => vec!["lm_head".to_owned()],
            TensorLayout::ChatGlm => vec!["lm_head".to_owned()],
            TensorLayout::Encoder => vec![own("output_layer")],
            TensorLayout::Transformers => {
                vec!["lm_head".to_owned(), "language_model.lm_head".to_owned()]
            }
        }
    }

    /// Modules whose rows, one after the other, are those of a matrix; candidates for a
    /// single module where tools disagree on its name.
    pub(super) fn matrix(&self, matrix: Matrix) -> Modules {
        let own = |name: &str| format!("{}{name}", self.prefix);
        let one = |layer: usize, name: &str| {
            Modules::Joined(vec![format!("{}{layer}.{name}", self.layers())])
        };
        let modern = self.layout == TensorLayout::Transformers;
        match matrix {
            Matrix::Embedding => Modules::Joined(vec![self.embedding.clone()]),
            Matrix::Head => Modules::AnyOf(self.heads()),
            Matrix::Positions => Modules::Joined(vec![own("transformer.position_embeddings")]),
            // SwissArmyTransformer moves the table into a mixin.
            Matrix::BlockPositions => Modules::AnyOf(vec![
                own("transformer.block_position_embeddings"),
                own("mixins.block_position_embedding.block_position_embeddings"),
            ]),
            Matrix::Qkv(n) if modern => Modules::Joined(
                ["q_proj", "k_proj", "v_proj"]
                    .map(|part| format!("{}{n}.self_attn.{part}", self.layers()))
                    .to_vec(),
            ),
            Matrix::Qkv(n) => one(n, &format!("{}.query_key_value", self.attention())),
            Matrix::AttentionOutput(n) if modern => one(n, "self_attn.o_proj"),
            Matrix::AttentionOutput(n) => one(n, &format!("{}.dense", self.attention())),
            Matrix::MlpIn(n) if modern && !self.fused_mlp => Modules::Joined(
                ["gate_proj", "up_proj"]
                    .map(|part| format!("{}{n}.mlp.{part}", self.layers()))
                    .to_vec(),
            ),
            Matrix::MlpIn(n) if modern => one(n, "mlp.gate_up_proj"),
            Matrix::MlpIn(n) => one(n, "mlp.dense_h_to_4h"),
            Matrix::MlpOut(n) if modern => one(n, "mlp.down_proj"),
            Matrix::MlpOut(n) => one(n, "mlp.dense_4h_to_h"),
        }
    }

    fn attention(&self) -> &'static str {
        match self.layout {
            TensorLayout::Encoder => "self_attention",
            _ => "attention",
        }
    }

    /// Module of a norm.
    pub(super) fn norm(&self, norm: NormId) -> String {
        let layer = |n: usize, name: &str| format!("{}{n}.{name}", self.layers());
        match norm {
            NormId::Attention(n) => layer(n, "input_layernorm"),
            NormId::AfterAttention(n) => layer(n, "post_self_attn_layernorm"),
            // The name tells of the order, not of the place: it is the norm before the MLP.
            NormId::Mlp(n) => layer(n, "post_attention_layernorm"),
            NormId::AfterMlp(n) => layer(n, "post_mlp_layernorm"),
            NormId::Final => {
                let name = match self.layout {
                    TensorLayout::Glm => "transformer.final_layernorm",
                    TensorLayout::ChatGlm => "final_layernorm",
                    TensorLayout::Encoder => "encoder.final_layernorm",
                    TensorLayout::Transformers => "norm",
                };
                format!("{}{name}", self.prefix)
            }
        }
    }
}

/// Modules of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Modules {
    /// Their rows follow each other.
    Joined(Vec<String>),
    /// The first of them that is there.
    AnyOf(Vec<String>),
}
