//! The KV cache: keys and values of past positions.

use super::config::ModelConfig;
use crate::backend::{AttentionShape, Backend, Element, KvLayer, Segment};
use crate::error::{Error, ErrorCode, Result};

/// The cache of one or several sequences, with one layer of keys and values per block.
///
/// Sequences are numbered from 0 and have the same capacity. They share the buffers of a layer, one range of positions
/// after the other, because a kernel can bind only a limited number of buffers.
pub struct KvCache<B: Backend> {
    layers: Vec<KvLayer<B::Buffer>>,
    /// Number of cached positions of each sequence.
    lens: Vec<usize>,
    /// Maximum number of positions of a sequence.
    capacity: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache of `layers` layers for `sequences` sequences of at most `capacity` positions each.
    ///
    /// # Errors
    /// `out_of_memory`.
    pub fn new(
        backend: &mut B,
        config: &ModelConfig,
        layers: usize,
        sequences: usize,
        capacity: usize,
    ) -> Result<Self> {
        let Some(positions) = sequences.checked_mul(capacity) else {
            return Err(Error::new(
                ErrorCode::OutOfMemory,
                format!("a cache of {sequences} sequences of {capacity} positions is larger than any memory"),
            ));
        };
        let len = config.attention_shape(positions).cache_len();
        let layer = |backend: &mut B| {
            Ok(KvLayer {
                keys: backend.buffer(Element::F32, len)?,
                values: backend.buffer(Element::F32, len)?,
            })
        };
        let layers = (0..layers).map(|_| layer(backend)).collect::<Result<_>>()?;
        Ok(Self { layers, lens: vec![0; sequences], capacity })
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.lens.len()
    }

    /// Number of cached positions of a sequence.
    pub fn len(&self, sequence: usize) -> usize {
        self.lens[sequence]
    }

    /// Maximum number of positions of each sequence.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Maximum number of positions of all sequences together.
    pub(super) fn positions(&self) -> usize {
        self.lens.len() * self.capacity
    }

    /// The segment of the next `count` tokens of a sequence, with causal attention.
    pub(super) fn next(&self, sequence: usize, count: usize) -> Segment {
        Segment { start: sequence * self.capacity, ..Segment::causal(self.lens[sequence], count) }
    }

    /// Records that `count` tokens of a sequence have run through all blocks.
    pub(super) fn advance(&mut self, sequence: usize, count: usize) {
        self.lens[sequence] += count;
    }

    /// Keys and values of one layer.
    pub fn layer_mut(&mut self, layer: usize) -> &mut KvLayer<B::Buffer> {
        &mut self.layers[layer]
    }

    /// Drops all positions of a sequence from `len` on. Earlier positions remain valid and need not be computed again.
    pub fn truncate(&mut self, sequence: usize, len: usize) {
        self.lens[sequence] = self.lens[sequence].min(len);
    }
}

impl ModelConfig {
    /// Refuses more positions than the model supports.
    ///
    /// # Errors
    /// `context_overflow`, with the limit.
    pub fn check_context(&self, positions: usize) -> Result<()> {
        let longest = self.max_position_embeddings;
        if positions <= longest {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::ContextOverflow,
            format!(
                "expected at most {longest} positions (max_position_embeddings) but {positions} are needed"
            ),
        ))
    }

    /// Numbers and sizes of the heads, for a cache of `capacity` positions in total.
    pub(crate) fn attention_shape(&self, capacity: usize) -> AttentionShape {
        AttentionShape {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            capacity,
        }
    }
}
