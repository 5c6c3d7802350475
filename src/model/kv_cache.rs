//! Keys and values of the positions that a model has seen.
//!
//! Floor 5.

use super::config::ModelConfig;
use crate::backend::{AttentionShape, Backend, Element, KvLayer};
use crate::error::{Error, ErrorCode, Result};

/// The cache of one sequence, one layer of keys and values for each block.
pub struct KvCache<B: Backend> {
    pub(super) layers: Vec<KvLayer<B::Buffer>>,
    pub(super) len: usize,
    capacity: usize,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache with room for `capacity` positions in each of `layers` layers.
    pub fn new(backend: &mut B, config: &ModelConfig, layers: usize, capacity: usize) -> Result<Self> {
        let len = config.attention_shape(capacity).cache_len();
        let layer = |backend: &mut B| {
            Ok(KvLayer {
                keys: backend.buffer(Element::F32, len)?,
                values: backend.buffer(Element::F32, len)?,
            })
        };
        Ok(Self { layers: (0..layers).map(|_| layer(backend)).collect::<Result<_>>()?, len: 0, capacity })
    }

    /// Positions seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Keys and values of one layer, for whoever runs blocks singly.
    pub fn layer_mut(&mut self, layer: usize) -> &mut KvLayer<B::Buffer> {
        &mut self.layers[layer]
    }

    /// Forgets all positions from `len` on; what stays need not be computed again.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
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

    /// Head counts and sizes, for a cache of `capacity` positions.
    pub fn attention_shape(&self, capacity: usize) -> AttentionShape {
        AttentionShape {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            capacity,
        }
    }
}
