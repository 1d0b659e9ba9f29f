//! How exactly the weights of an exported model are kept.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the parts of a model are kept. Norms, biases and position tables are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantisation {
    /// The linear layers of the blocks.
    pub layers: Kept,
    /// The output head.
    pub head: Kept,
    /// The embedding table.
    pub embedding: Kept,
}

/// How a matrix is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Kind of number.
    pub number: Number,
    /// Which weights share a scale; integers have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<Block>,
}

/// Kinds of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Number {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// 8-bit integer, symmetric.
    Int8,
    /// 4-bit integer, symmetric.
    Int4,
    /// 4-bit integer with zero points.
    Int4Zp,
}

impl Number {
    /// Whether scales go with it.
    #[must_use]
    pub const fn is_integer(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4 | Self::Int4Zp)
    }
}

impl fmt::Display for Quantisation {
    /// `layers int8/32, head f32, embedding f16`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            layers,
            head,
            embedding,
        } = self;
        write!(f, "layers {layers}, head {head}, embedding {embedding}")
    }
}

impl fmt::Display for Kept {
    /// `int8/32`, `int4/row`, `f32`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.number {
            Number::F32 => "f32",
            Number::F16 => "f16",
            Number::Int8 => "int8",
            Number::Int4 => "int4",
            Number::Int4Zp => "int4-zp",
        })?;
        match self.block {
            None => Ok(()),
            Some(Block::Of(length)) => write!(f, "/{length}"),
            Some(Block::Row) => f.write_str("/row"),
        }
    }
}

/// Weights of a row that share a scale: a number of them, or `"row"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Block {
    /// Runs of this length.
    Of(usize),
    /// The whole row.
    Row,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Length(usize),
    Word(String),
}

impl TryFrom<Written> for Block {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        match written {
            Written::Length(length) => Ok(Self::Of(length)),
            Written::Word(word) if word == "row" => Ok(Self::Row),
            Written::Word(_) => Err("expected a number or \"row\""),
        }
    }
}

impl From<Block> for Written {
    fn from(block: Block) -> Self {
        match block {
            Block::Of(length) => Self::Length(length),
            Block::Row => Self::Word("row".to_owned()),
        }
    }
}

impl Quantisation {
    /// Whether every weight is kept in 32 bits.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        [self.layers, self.head, self.embedding]
            .iter()
            .all(|kept| kept.number == Number::F32)
    }

    /// The first key with a value that makes no sense, and why.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        for (key, kept) in [
            ("layers", self.layers),
            ("head", self.head),
            ("embedding", self.embedding),
        ] {
            let reason = match (kept.number.is_integer(), kept.block) {
                (true, None) => "needs `block`",
                (false, Some(_)) => "has a `block`, which only integers have",
                (true, Some(Block::Of(length))) if length < 16 || !length.is_power_of_two() => {
                    "has a `block` that is no power of two of at least 16"
                }
                _ => continue,
            };
            return Err((key, reason.to_owned()));
        }
        Ok(())
    }
}
