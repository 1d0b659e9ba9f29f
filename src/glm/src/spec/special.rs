//! Token ids that carry meaning rather than text.

use serde::{Deserialize, Serialize};

use crate::{Error, Result, TokenId};

/// The special ids of a model. An id is `None` where the family has no such token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpecialIds {
    /// Fills unused places of a batch.
    pub pad: Option<TokenId>,
    /// Opens Part A of an original GLM.
    pub cls: Option<TokenId>,
    /// Closes Part A of an original GLM, unless it ends in a document mask.
    ///
    /// GLM was trained with the end-of-text token here; the Hugging Face
    /// tokenizer of the BERT-vocabulary models writes `[SEP]` instead.
    pub part_a_end: Option<TokenId>,
    /// `[MASK]`: a short blank.
    pub mask: Option<TokenId>,
    /// `[sMASK]`: a sentence.
    pub smask: Option<TokenId>,
    /// `[gMASK]`: the rest of a document.
    pub gmask: Option<TokenId>,
    /// Start of a piece.
    pub sop: Option<TokenId>,
    /// End of a piece.
    pub eop: Option<TokenId>,
    /// `<|system|>`.
    pub system: Option<TokenId>,
    /// `<|user|>`.
    pub user: Option<TokenId>,
    /// `<|assistant|>`.
    pub assistant: Option<TokenId>,
    /// `<|observation|>`: the result of a tool.
    pub observation: Option<TokenId>,
    /// Ids that end an answer, besides `eop`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub eos: Vec<TokenId>,
    /// Ids that must never be sampled although the tokenizer has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub banned: Vec<TokenId>,
    /// Number of ids that the tokenizer has; rows from here on are padding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer_size: Option<usize>,
}

/// Spellings of each special token among the families' tokenizers.
const SPELLINGS: [(Slot, &[&str]); 11] = [
    (Slot::Cls, &["[CLS]"]),
    (Slot::Mask, &["[MASK]"]),
    (Slot::Smask, &["[sMASK]"]),
    (Slot::Gmask, &["[gMASK]"]),
    (Slot::Sop, &["<|startofpiece|>", "<sop>", "sop"]),
    (Slot::Eop, &["<|endofpiece|>", "<eop>", "eop"]),
    (Slot::System, &["<|system|>"]),
    (Slot::User, &["<|user|>"]),
    (Slot::Assistant, &["<|assistant|>"]),
    (Slot::Observation, &["<|observation|>"]),
    (Slot::Pad, &["[PAD]", "[pad]", "<pad>", "<|endoftext|>"]),
];

#[derive(Clone, Copy)]
enum Slot {
    Pad,
    Cls,
    Mask,
    Smask,
    Gmask,
    Sop,
    Eop,
    System,
    User,
    Assistant,
    Observation,
}

impl SpecialIds {
    fn slot(&mut self, slot: Slot) -> &mut Option<TokenId> {
        match slot {
            Slot::Pad => &mut self.pad,
            Slot::Cls => &mut self.cls,
            Slot::Mask => &mut self.mask,
            Slot::Smask => &mut self.smask,
            Slot::Gmask => &mut self.gmask,
            Slot::Sop => &mut self.sop,
            Slot::Eop => &mut self.eop,
            Slot::System => &mut self.system,
            Slot::User => &mut self.user,
            Slot::Assistant => &mut self.assistant,
            Slot::Observation => &mut self.observation,
        }
    }

    /// Fills ids that the configuration left open from the tokenizer's own special tokens.
    /// `lookup` maps the text of a special token to its id.
    pub fn complete(&mut self, lookup: impl Fn(&str) -> Option<TokenId>) {
        for (slot, spellings) in SPELLINGS {
            let found = spellings.iter().find_map(|s| lookup(s));
            let place = self.slot(slot);
            *place = place.or(found);
        }
    }

    /// Every id that stands for something else than text.
    pub fn all(&self) -> impl Iterator<Item = TokenId> + '_ {
        [
            self.pad,
            self.cls,
            self.part_a_end,
            self.mask,
            self.smask,
            self.gmask,
            self.sop,
            self.eop,
            self.system,
            self.user,
            self.assistant,
            self.observation,
        ]
        .into_iter()
        .flatten()
        .chain(self.eos.iter().copied())
        .chain(self.banned.iter().copied())
    }

    /// The mask ids the model has.
    pub fn masks(&self) -> impl Iterator<Item = TokenId> {
        [self.mask, self.smask, self.gmask].into_iter().flatten()
    }

    /// Whether an id ends an answer.
    #[must_use]
    pub fn ends_answer(&self, id: TokenId) -> bool {
        self.eop == Some(id) || self.eos.contains(&id)
    }

    /// Refuses ids that the embedding table does not have: a checkpoint whose
    /// weights and configuration come from different revisions.
    ///
    /// # Errors
    /// [`Error::Config`] naming the id.
    pub fn check(&self, vocab_rows: usize) -> Result<()> {
        match self.all().find(|id| id.index() >= vocab_rows) {
            None => Ok(()),
            Some(id) => Err(Error::Config {
                key: "vocab_size".to_owned(),
                reason: format!(
                    "special token id {id} does not fit {vocab_rows} vocabulary rows; \
                     weights, tokenizer and configuration must be of one revision"
                ),
            }),
        }
    }
}
