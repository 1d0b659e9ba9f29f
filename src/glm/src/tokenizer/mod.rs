//! Text to token ids and back, for every tokenizer format of the family.
//!
//! | source | constructor |
//! |---|---|
//! | `tokenizer.json` | [`Tokenizer::from_json`] |
//! | `vocab.txt` (WordPiece) | [`Tokenizer::from_wordpiece`] |
//! | `vocab.json` + `merges.txt` | [`Tokenizer::from_byte_bpe`] |
//! | SentencePiece model, BPE or Unigram | [`Tokenizer::from_sentencepiece`] |
//! | tiktoken text file | [`Tokenizer::from_tiktoken`] |
//!
//! Every source becomes one `tokenizer.json` ([`Tokenizer::to_json`]) plus
//! [`TextRules`]; that pair is what an exported model carries.
//!
//! **Text never becomes control.** [`Tokenizer::encode_plain`] yields no
//! special token whatever the text says; special tokens are placed by id
//! ([`Tokenizer::special`]). Blanks are asked for explicitly
//! ([`Tokenizer::encode_with_masks`]).

mod json;
mod masks;
mod rules;
mod sentencepiece;
mod sources;
mod stream;

use std::collections::BTreeMap;

use tokenizers::AddedToken;

pub(crate) use masks::Split;
pub use masks::{MaskKind, Part, Piece, flatten};
pub use rules::{TextRules, polish_chatglm};
pub use sources::Additions;
pub use stream::Detokenizer;

use crate::spec::SpecialIds;
use crate::{Error, ModelSpec, Result, TokenId};
use json::{bad, id};
use stream::Spelling;

const JSON: &str = "tokenizer.json";

/// Spellings of the token for what a vocabulary cannot express.
const UNKNOWN: [&str; 3] = ["<unk>", "[UNK]", "<UNK>"];

/// A vocabulary with its rules. Cheap to share, free of state between calls.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    rules: TextRules,
    spelling: Spelling,
    /// Special tokens by the file's own id, that is without the rules' offset.
    specials: BTreeMap<u32, String>,
    /// Other tokens that are found whole in text.
    symbols: BTreeMap<u32, String>,
    unknown: Option<u32>,
    /// The space mark, when it goes before every text.
    mark: Option<u32>,
    size: usize,
}

impl Tokenizer {
    /// From the bytes of a `tokenizer.json` and the rules of the manifest.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the file is damaged or of a kind that no GLM uses.
    pub fn from_json(bytes: &[u8], rules: TextRules) -> Result<Self> {
        let inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| bad(JSON, e.to_string()))?;
        Self::new(inner, rules)
    }

    /// From a lower-case BERT `vocab.txt`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming the line.
    pub fn from_wordpiece(vocab: &[u8], additions: Additions) -> Result<Self> {
        Self::from_document(&sources::wordpiece(vocab, additions)?, TextRules::None)
    }

    /// From `vocab.json` and `merges.txt` of GPT-2 or RoBERTa.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming the file and the line.
    pub fn from_byte_bpe(vocab: &[u8], merges: &[u8], additions: Additions) -> Result<Self> {
        Self::from_document(
            &sources::byte_bpe(vocab, merges, additions)?,
            TextRules::None,
        )
    }

    /// From a SentencePiece model; `file` is its name for messages.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the file is damaged or of another type than BPE or Unigram.
    pub fn from_sentencepiece(
        file: &str,
        bytes: &[u8],
        additions: Additions,
        rules: TextRules,
    ) -> Result<Self> {
        Self::from_document(&sentencepiece::convert(file, bytes, additions)?, rules)
    }

    /// From a tiktoken file, which older GLM-4 checkpoints call `tokenizer.model`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming the line.
    pub fn from_tiktoken(bytes: &[u8], additions: Additions) -> Result<Self> {
        Self::from_document(&sources::tiktoken(bytes, additions)?, TextRules::None)
    }

    /// From a `tokenizer.model` of either kind: SentencePiece (ChatGLM2/3) or tiktoken (GLM-4).
    ///
    /// # Errors
    /// As the two constructors that it chooses between.
    pub fn from_model_file(file: &str, bytes: &[u8], additions: Additions) -> Result<Self> {
        if sentencepiece::is_sentencepiece(bytes) {
            Self::from_sentencepiece(file, bytes, additions, TextRules::None)
        } else {
            Self::from_tiktoken(bytes, additions)
        }
    }

    /// The same vocabulary with special tokens of a checkpoint's own behind it,
    /// such as those of `added_tokens.json`. Tokens that it has already are left as they are.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for an id that another token has, or that leaves a gap.
    pub fn with_specials(self, tokens: &BTreeMap<TokenId, String>) -> Result<Self> {
        const FILE: &str = "added_tokens.json";
        let offset = self.rules.id_offset();
        let mut inner = self.inner;
        for (id, token) in tokens {
            if inner.token_to_id(token).is_some() {
                continue;
            }
            inner
                .add_special_tokens([AddedToken::from(token.clone(), true)])
                .map_err(|e| bad(FILE, e.to_string()))?;
            let given = inner.token_to_id(token).map(|given| given + offset);
            if given != Some(id.0) {
                let next = given.map_or_else(|| "none".to_owned(), |id| id.to_string());
                return Err(bad(
                    FILE,
                    format!("gives `{token}` the id {id}, the next free id is {next}"),
                ));
            }
        }
        Self::new(inner, self.rules)
    }

    fn from_document(document: &serde_json::Value, rules: TextRules) -> Result<Self> {
        let bytes = serde_json::to_vec(document).map_err(|e| bad(JSON, e.to_string()))?;
        Self::from_json(&bytes, rules)
    }

    fn new(mut inner: tokenizers::Tokenizer, rules: TextRules) -> Result<Self> {
        // Files differ in which tokens they call special; by name these always are.
        let missed: Vec<AddedToken> = inner
            .get_added_tokens_decoder()
            .into_values()
            .filter(|t| !t.special && sentencepiece::is_control_name(&t.content))
            .map(|t| AddedToken::from(t.content, true))
            .collect();
        inner
            .add_special_tokens(missed)
            .map_err(|e| bad(JSON, e.to_string()))?;
        inner
            .with_padding(None)
            .with_truncation(None)
            .map_err(|e| bad(JSON, e.to_string()))?;
        inner.set_encode_special_tokens(true);
        let spelling = Spelling::of(inner.get_decoder())?;
        let mut specials = BTreeMap::new();
        let mut symbols = BTreeMap::new();
        for (id, token) in inner.get_added_tokens_decoder() {
            match token.special {
                true => specials.insert(id, token.content),
                false => symbols.insert(id, token.content),
            };
        }
        let unknown = UNKNOWN.iter().find_map(|t| inner.token_to_id(t));
        let mark = match spelling {
            Spelling::Metaspace { dummy_prefix: true } => inner.token_to_id("\u{2581}"),
            _ => None,
        };
        let highest = inner.get_vocab(true).into_values().max();
        let Some(highest) = highest else {
            return Err(bad(JSON, "has no tokens"));
        };
        let Some(size) = (highest as usize + 1).checked_add(rules.id_offset() as usize) else {
            return Err(bad(JSON, "ids are too large"));
        };
        id(JSON, size)?;
        Ok(Self {
            inner,
            rules,
            spelling,
            specials,
            symbols,
            unknown,
            mark,
            size,
        })
    }

    /// The canonical file. [`rules`](Self::rules) must travel with it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the vocabulary cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        self.inner
            .to_string(false)
            .map_err(|e| bad(JSON, e.to_string()))
    }

    /// The rules around the vocabulary.
    #[must_use]
    pub const fn rules(&self) -> TextRules {
        self.rules
    }

    /// Highest id + 1.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Ids of plain text. No special token comes out, whatever the text says.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for text that the vocabulary cannot express at all.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<TokenId>> {
        let text = self.rules.before(text);
        let mut ids = Vec::new();
        self.encode_into(&text, &mut ids)?;
        let offset = self.rules.id_offset();
        // Within bounds: the highest id plus the offset was checked on construction.
        Ok(ids.into_iter().map(|id| TokenId(id + offset)).collect())
    }

    fn encode_into(&self, text: &str, out: &mut Vec<u32>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| bad(JSON, format!("cannot encode the text: {e}")))?;
        let ids = encoding.get_ids();
        let found: Vec<u32> = ids
            .iter()
            .copied()
            .filter(|id| self.is_control(*id))
            .collect();
        if found.is_empty() {
            // SentencePiece puts its mark before everything; the normaliser
            // cannot do so for a symbol that stands alone.
            if let ([only], Some(mark)) = (ids, self.mark)
                && self.symbols.contains_key(only)
            {
                out.push(mark);
            }
            out.extend_from_slice(ids);
            return Ok(());
        }
        // The vocabulary itself reads a special token's name as that token:
        // cut inside the name, so that it is spelled out.
        match self.cut(text, &found) {
            Some(cut) => {
                self.encode_into(&text[..cut], out)?;
                self.encode_into(&text[cut..], out)
            }
            None => Ok(()),
        }
    }

    fn is_control(&self, id: u32) -> bool {
        self.specials.contains_key(&id) && self.unknown != Some(id)
    }

    /// Where to cut a text that yields these special tokens; `None` when it is one character.
    fn cut(&self, text: &str, found: &[u32]) -> Option<usize> {
        let name = found
            .iter()
            .filter_map(|id| text.find(self.specials.get(id)?.as_str()))
            .min();
        let start = name.unwrap_or(text.len() / 2);
        let mut borders = text.char_indices().map(|(at, _)| at).skip(1).peekable();
        let first = borders.peek().copied();
        borders.find(|at| *at > start).or(first)
    }

    /// Text of a whole sequence; special tokens have none. Equals the stream of [`Detokenizer`].
    #[must_use]
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let mut stream = Detokenizer::default();
        let mut text: String = ids.iter().map(|id| stream.push(self, *id)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// Id of a special token by its exact name, such as `<sop>`. Ordinary pieces are not found.
    #[must_use]
    pub fn special(&self, name: &str) -> Option<TokenId> {
        let offset = self.rules.id_offset();
        self.specials
            .iter()
            .find(|(_, text)| *text == name)
            .map(|(id, _)| TokenId(id + offset))
    }

    /// Whether a token is special: placed by id, never by text.
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.raw(id)
            .is_some_and(|raw| self.specials.contains_key(&raw))
    }

    /// Every special token.
    pub fn special_ids(&self) -> impl Iterator<Item = TokenId> + '_ {
        let offset = self.rules.id_offset();
        self.specials.keys().map(move |id| TokenId(id + offset))
    }

    /// Names of the special tokens.
    pub fn special_names(&self) -> impl Iterator<Item = &str> {
        self.specials.values().map(String::as_str)
    }

    /// A token as the vocabulary spells it (`▁the`, `Ġthe`, `##ing`), for display.
    #[must_use]
    pub fn token_text(&self, id: TokenId) -> Option<String> {
        self.piece(id)
    }

    /// Whether a token goes on inside the word before it: WordPiece's `##ing`.
    #[must_use]
    pub fn continues_word(&self, id: TokenId) -> bool {
        match &self.spelling {
            Spelling::WordPiece { mark, .. } => {
                (self.piece(id)).is_some_and(|p| p.len() > mark.len() && p.starts_with(mark))
            }
            Spelling::ByteLevel | Spelling::Metaspace { .. } => false,
        }
    }

    /// Whether a word's first token carries the space before it, which is then part of the word's text
    /// (byte-level vocabularies: ` great` and `great` are different tokens).
    #[must_use]
    pub const fn space_is_text(&self) -> bool {
        matches!(self.spelling, Spelling::ByteLevel)
    }

    /// Bytes that a token adds inside a text, which may end in the middle of a character; `None` for
    /// tokens that are not text.
    #[must_use]
    pub fn token_bytes(&self, id: TokenId) -> Option<Vec<u8>> {
        if self.is_special(id) || self.is_unknown(id) {
            return None;
        }
        Some(Detokenizer::bytes(self, id)).filter(|bytes| !bytes.is_empty())
    }

    /// Whether every text can be written to the letter; WordPiece keeps no spaces.
    #[must_use]
    pub const fn keeps_spaces(&self) -> bool {
        !matches!(self.spelling, Spelling::WordPiece { .. })
    }

    /// Whether this is the token for what the vocabulary cannot express.
    #[must_use]
    pub fn is_unknown(&self, id: TokenId) -> bool {
        self.unknown.is_some() && self.raw(id) == self.unknown
    }

    /// The ids with a meaning: those of the model's description, completed by this vocabulary.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the two disagree: files of different revisions.
    pub fn specials(&self, spec: &ModelSpec) -> Result<SpecialIds> {
        let mut own = SpecialIds::default();
        own.complete(|name| self.special(name));
        let mut ids = spec.special.clone();
        for (name, model, file) in [
            ("[gMASK]", ids.gmask, own.gmask),
            ("[sMASK]", ids.smask, own.smask),
            ("<sop>", ids.sop, own.sop),
            ("<eop>", ids.eop, own.eop),
            ("<|user|>", ids.user, own.user),
            ("<|assistant|>", ids.assistant, own.assistant),
        ] {
            if let (Some(model), Some(file)) = (model, file)
                && model != file
            {
                return Err(bad(
                    "tokenizer",
                    format!(
                        "{name} has id {file}, the model was trained with {model}; \
                         weights, configuration and tokenizer must be of one revision"
                    ),
                ));
            }
        }
        ids.complete(|name| self.special(name));
        ids.tokenizer_size = Some(self.size.max(ids.tokenizer_size.unwrap_or(0)));
        Ok(ids)
    }

    /// Refuses a model whose embedding table has fewer rows than this vocabulary has ids.
    ///
    /// # Errors
    /// [`Error::VocabularyTooSmall`] naming the token of the highest id.
    pub fn check_vocab(&self, rows: usize) -> Result<()> {
        if self.size <= rows {
            return Ok(());
        }
        let id = TokenId(id(JSON, self.size - 1)?);
        Err(Error::VocabularyTooSmall {
            token: self.token_text(id).unwrap_or_default(),
            id,
            rows,
        })
    }

    fn raw(&self, id: TokenId) -> Option<u32> {
        id.0.checked_sub(self.rules.id_offset())
    }

    fn piece(&self, id: TokenId) -> Option<String> {
        self.inner.id_to_token(self.raw(id)?)
    }

    fn added_text(&self, id: TokenId) -> Option<String> {
        self.symbols.get(&self.raw(id)?).cloned()
    }

    const fn spelling(&self) -> &Spelling {
        &self.spelling
    }
}
