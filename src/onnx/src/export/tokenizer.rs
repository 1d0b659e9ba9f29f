//! Which tokenizer files a checkpoint has, as one `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::Path;

use glm::tokenizer::{Additions, TextRules, Tokenizer};
use glm::{Family, TokenId};

use crate::source::{Config, read_small};
use crate::{Error, Result};

/// Longest tokenizer file that is read; that of GLM-4 has 20 MB.
const MAX_FILE: u64 = 128 << 20;
/// What the ids of the first ChatGLM-6B are shifted by: its first ones were image codes.
const IMAGE_TOKENS: u32 = 20_000;
/// Vocabulary rows of that release.
const IMAGE_ROWS: usize = 150_528;

/// A tokenizer and the file that carries it.
#[derive(Debug)]
pub(super) struct Converted {
    pub(super) tokenizer: Tokenizer,
    /// `tokenizer.json`.
    pub(super) json: Vec<u8>,
    /// Whether it was another kind of file before.
    pub(super) converted: bool,
}

/// Loads whatever the checkpoint has, `tokenizer.json` first.
///
/// # Errors
/// [`Error::Missing`] without a tokenizer, [`Error::Model`] for one that cannot be used.
pub(super) fn load(folder: &Path, config: &Config) -> Result<Converted> {
    let files = Files { folder };
    let rules = rules(config);
    if let Some(json) = files.read("tokenizer.json")? {
        let tokenizer = Tokenizer::from_json(&json, rules)?;
        return Ok(Converted {
            tokenizer,
            json,
            converted: false,
        });
    }
    let tokenizer = match config.spec.family {
        Family::Glm => original(&files, config)?,
        Family::ChatGlm => {
            const NAME: &str = "ice_text.model";
            Tokenizer::from_sentencepiece(NAME, &files.need(NAME)?, Additions::None, rules)?
        }
        family => {
            const NAME: &str = "tokenizer.model";
            let additions = match family {
                Family::ChatGlm2 => Additions::ChatGlm2,
                Family::ChatGlm3 => Additions::ChatGlm3,
                _ => Additions::Glm4,
            };
            Tokenizer::from_model_file(NAME, &files.need(NAME)?, additions)?
        }
    };
    let json = tokenizer.to_json()?.into_bytes();
    Ok(Converted {
        tokenizer,
        json,
        converted: true,
    })
}

/// Loads the tokenizer of a model directory; its manifest has the rules that the file cannot carry.
///
/// # Errors
/// As [`load`].
pub(super) fn load_exported(folder: &Path, rules: TextRules) -> Result<Converted> {
    let json = Files { folder }.need("tokenizer.json")?;
    let tokenizer = Tokenizer::from_json(&json, rules)?;
    Ok(Converted {
        tokenizer,
        json,
        converted: false,
    })
}

struct Files<'a> {
    folder: &'a Path,
}

impl Files<'_> {
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        read_small(&self.folder.join(name), MAX_FILE)
    }

    fn need(&self, name: &str) -> Result<Vec<u8>> {
        self.read(name)?.ok_or_else(|| Error::Missing {
            path: self.folder.join(name),
            hint: "the checkpoint needs its tokenizer: tokenizer.json, or what its family has \
                   instead"
                .to_owned(),
        })
    }
}

fn rules(config: &Config) -> TextRules {
    if config.spec.family != Family::ChatGlm {
        return TextRules::None;
    }
    let named = config
        .tokenizer
        .as_ref()
        .and_then(|settings| settings.get("num_image_tokens")?.as_u64())
        .and_then(|count| u32::try_from(count).ok());
    let id_offset = named.unwrap_or(match config.spec.vocab_rows {
        IMAGE_ROWS => IMAGE_TOKENS,
        _ => 0,
    });
    TextRules::ChatGlm { id_offset }
}

/// The vocabularies that the original GLM was trained with.
fn original(files: &Files<'_>, config: &Config) -> Result<Tokenizer> {
    let tokenizer = if let Some(bytes) = files.read("cog-pretrain.model")? {
        let rules = TextRules::LineSymbol;
        let additions = Additions::GlmChinese;
        Tokenizer::from_sentencepiece("cog-pretrain.model", &bytes, additions, rules)?
    } else if let Some(vocabulary) = files.read("vocab.json")? {
        // Only GLM-RoBERTa has no document mask beside this kind of vocabulary.
        let additions = match config.spec.special.gmask {
            Some(_) => Additions::Glm10b,
            None => Additions::GlmRoberta,
        };
        Tokenizer::from_byte_bpe(&vocabulary, &files.need("merges.txt")?, additions)?
    } else {
        Tokenizer::from_wordpiece(&files.need("vocab.txt")?, Additions::GlmBert)?
    };
    let Some(added) = files.read("added_tokens.json")? else {
        return Ok(tokenizer);
    };
    let path = files.folder.join("added_tokens.json");
    let added: BTreeMap<String, u32> =
        serde_json::from_slice(&added).map_err(|e| Error::malformed(&path, e.to_string()))?;
    let by_id = added.into_iter().map(|(text, id)| (TokenId(id), text));
    Ok(tokenizer.with_specials(&by_id.collect())?)
}
