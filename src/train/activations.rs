//! Block activations saved for the backward pass.

use crate::backend::{Element, Train};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::model::block::{Workspace, elements_per_token};
use crate::model::runner::Runner;

/// Most bytes of saved activations; blocks beyond it run again in the backward pass. A model of ten million parameters
/// takes a good quarter of it for a thousand tokens.
const MOST_BYTES: usize = 512 << 20;

/// Elements per token in a block whose activations are saved, keys and values included.
pub(super) fn elements(config: &ModelConfig) -> usize {
    elements_per_token(config) + 2 * config.attention_shape(1).cache_len()
}

/// The number of blocks, at most `blocks`, whose activations for `tokens` tokens fit [`MOST_BYTES`].
pub(super) fn count(config: &ModelConfig, tokens: usize, blocks: usize) -> usize {
    let bytes = tokens.saturating_mul(elements(config) * size_of::<f32>());
    blocks.min(MOST_BYTES.checked_div(bytes).unwrap_or(0))
}

/// Activations of one block for the current batch.
pub(super) struct BlockActivations<B: Train> {
    pub(super) work: Workspace<B>,
    /// The residual stream after attention.
    pub(super) residual: B::Buffer,
}

impl<B: Train> BlockActivations<B> {
    /// Room for `tokens` tokens of as many blocks as fit, at most `blocks`.
    pub(super) fn of_blocks(
        backend: &mut B,
        config: &ModelConfig,
        tokens: usize,
        blocks: usize,
    ) -> Result<Vec<Self>> {
        (0..count(config, tokens, blocks))
            .map(|_| {
                let residual = backend.buffer(Element::F32, tokens * config.hidden_size)?;
                let work = Workspace::new(backend, config, tokens)?.keeping_inputs(backend, config)?;
                Ok(Self { work, residual })
            })
            .collect()
    }

    /// Swaps the buffers with the runner's. Both are the same size, and what the runner held is no longer needed.
    pub(super) fn swap(&mut self, runner: &mut Runner<B>) {
        std::mem::swap(&mut self.work, &mut runner.work);
        std::mem::swap(&mut self.residual, &mut runner.hidden.residual);
    }
}
