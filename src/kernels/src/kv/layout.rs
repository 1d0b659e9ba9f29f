//! Where keys and values lie inside a block.

use crate::error::KernelError;

/// Tokens of a block: a cache line of f16 keys for one element of a head, and
/// little waste at the end of short sequences.
pub const BLOCK_TOKENS: usize = 32;
/// Values of a token are padded to whole vectors of the widest instruction set.
const WIDTH: usize = 16;
/// Largest head: the scratch of a tile of queries stays within a common L2 cache.
const MAX_HEAD: usize = 256;
/// Blocks start on the largest page that Linux uses on ARM, so that each can be given back alone.
const PAGE: usize = 64 * 1024;

/// How exactly keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats; larger numbers become the largest.
    F16,
    /// Bytes with an f32 scale for every token and head.
    Int8,
}

impl KvType {
    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::Int8 => 1,
        }
    }
}

/// Shape of a key/value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Attention layers.
    pub layers: usize,
    /// Key and value heads of a layer.
    pub kv_heads: usize,
    /// Elements of a head, 1..=256.
    pub head_dim: usize,
    /// Element type.
    pub dtype: KvType,
    /// Blocks of [`BLOCK_TOKENS`] tokens.
    pub blocks: usize,
}

impl KvLayout {
    /// Bytes of one block over all layers, as reserved.
    ///
    /// # Errors
    /// When a size is 0 or not supported.
    pub fn block_bytes(&self) -> Result<usize, KernelError> {
        Geometry::new(self).map(|geometry| geometry.block)
    }
}

/// The layout in bytes. A block holds `[layer][kv head]` segments, a segment
/// keys `[head_dim][32]`, values `[32][width]` and, for INT8, the scales of 32
/// keys and 32 values.
///
/// Keys lie element by element so that one vector holds the same element of
/// many tokens: scores need no sum across a vector.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) layout: KvLayout,
    /// Elements between two tokens of values; the surplus is zero.
    pub(crate) width: usize,
    /// Byte offsets in a segment.
    values: usize,
    key_scales: usize,
    value_scales: usize,
    /// Bytes of a segment.
    segment: usize,
    /// Bytes from one block to the next.
    pub(crate) block: usize,
    /// Bytes of all blocks.
    pub(crate) total: usize,
}

/// Byte offsets of one segment from the start of the mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) keys: usize,
    pub(crate) values: usize,
    pub(crate) key_scales: usize,
    pub(crate) value_scales: usize,
}

impl Geometry {
    pub(crate) fn new(layout: &KvLayout) -> Result<Self, KernelError> {
        let refuse = |what, value, reason| KernelError::Unsupported {
            what,
            value,
            reason,
        };
        let some = "it must be at least 1";
        for (what, value) in [
            ("layers", layout.layers),
            ("kv_heads", layout.kv_heads),
            ("blocks", layout.blocks),
        ] {
            if value == 0 {
                return Err(refuse(what, value, some));
            }
        }
        if layout.head_dim == 0 || layout.head_dim > MAX_HEAD {
            return Err(refuse(
                "head_dim",
                layout.head_dim,
                "it must be within 1..=256",
            ));
        }
        if u32::try_from(layout.blocks).is_err() {
            return Err(refuse("blocks", layout.blocks, "it must be below 2^32"));
        }
        let size = layout.dtype.size();
        let width = layout.head_dim.next_multiple_of(WIDTH);
        // Keys of 32 bytes a row keep the values aligned only for wide types.
        let values = (layout.head_dim * BLOCK_TOKENS * size).next_multiple_of(64);
        let key_scales = values + BLOCK_TOKENS * width * size;
        let scales = match layout.dtype {
            KvType::Int8 => BLOCK_TOKENS * size_of::<f32>(),
            KvType::F32 | KvType::F16 => 0,
        };
        let value_scales = key_scales + scales;
        let segment = value_scales + scales;
        let block = segment
            .checked_mul(layout.layers)
            .and_then(|bytes| bytes.checked_mul(layout.kv_heads))
            .and_then(|bytes| bytes.checked_next_multiple_of(PAGE));
        let total = block
            .and_then(|block| block.checked_mul(layout.blocks))
            .filter(|total| isize::try_from(*total).is_ok());
        let (Some(block), Some(total)) = (block, total) else {
            return Err(refuse(
                "blocks",
                layout.blocks,
                "the cache would exceed the address space",
            ));
        };
        Ok(Self {
            layout: *layout,
            width,
            values,
            key_scales,
            value_scales,
            segment,
            block,
            total,
        })
    }

    /// Where the keys and values of one head and layer lie in `block`.
    pub(crate) fn segment(&self, block: u32, layer: usize, kv_head: usize) -> Segment {
        debug_assert!(layer < self.layout.layers && kv_head < self.layout.kv_heads);
        let start =
            block as usize * self.block + (layer * self.layout.kv_heads + kv_head) * self.segment;
        Segment {
            keys: start,
            values: start + self.values,
            key_scales: start + self.key_scales,
            value_scales: start + self.value_scales,
        }
    }
}
