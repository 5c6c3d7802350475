//! Keys and values of the positions that a model has seen.

use super::config::ModelConfig;
use crate::backend::{AttentionShape, Backend, Element, KvLayer, Segment};
use crate::error::{Error, ErrorCode, Result};

/// The cache of one sequence or of several, one layer of keys and values for each block.
///
/// Sequences are numbered from 0 and have room for equally many positions. They share the buffers of a layer, one run of
/// positions after the other, because a kernel can only be given so many buffers.
pub struct KvCache<B: Backend> {
    layers: Vec<KvLayer<B::Buffer>>,
    /// Positions seen of each sequence.
    lens: Vec<usize>,
    /// Positions of a sequence.
    capacity: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache of `sequences` sequences, with room for `capacity` positions each in each of `layers` layers.
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

    /// Sequences.
    pub fn sequences(&self) -> usize {
        self.lens.len()
    }

    /// Positions seen of a sequence.
    pub fn len(&self, sequence: usize) -> usize {
        self.lens[sequence]
    }

    /// Positions that there is room for in each sequence.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Positions that there is room for in all sequences.
    pub(super) fn positions(&self) -> usize {
        self.lens.len() * self.capacity
    }

    /// The next `count` tokens of a sequence, each of which sees what is before it.
    pub(super) fn next(&self, sequence: usize, count: usize) -> Segment {
        Segment { start: sequence * self.capacity, ..Segment::causal(self.lens[sequence], count) }
    }

    /// Says that so many tokens of a sequence have run through all blocks.
    pub(super) fn advance(&mut self, sequence: usize, count: usize) {
        self.lens[sequence] += count;
    }

    /// Keys and values of one layer.
    pub fn layer_mut(&mut self, layer: usize) -> &mut KvLayer<B::Buffer> {
        &mut self.layers[layer]
    }

    /// Forgets all positions of a sequence from `len` on; what stays need not be computed again.
    pub fn truncate(&mut self, sequence: usize, len: usize) {
        self.lens[sequence] = self.lens[sequence].min(len);
    }
}

impl ModelConfig {
    /// Refuses more positions than the model was made for.
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

    /// Head counts and sizes, for a cache of `capacity` positions in all.
    pub(crate) fn attention_shape(&self, capacity: usize) -> AttentionShape {
        AttentionShape {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            capacity,
        }
    }
}
