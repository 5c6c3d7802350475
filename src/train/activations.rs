//! What becomes of tokens inside of blocks, kept for the way back.

use crate::backend::{Element, Train};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::model::block::{Workspace, elements_per_token};
use crate::model::runner::Runner;

/// Most bytes that are kept; blocks beyond them run once more on the way back. A model of ten million parameters takes a
/// good quarter of them for a thousand tokens.
const MOST_BYTES: usize = 512 << 20;

/// Elements of a token in a block that is kept, its keys and values among them.
pub(super) fn elements(config: &ModelConfig) -> usize {
    elements_per_token(config) + 2 * config.attention_shape(1).cache_len()
}

/// Of how many of so many blocks what is inside is kept.
pub(super) fn count(config: &ModelConfig, tokens: usize, blocks: usize) -> usize {
    let bytes = tokens.saturating_mul(elements(config) * size_of::<f32>());
    blocks.min(MOST_BYTES.checked_div(bytes).unwrap_or(0))
}

/// What a block has made of the tokens at hand.
pub(super) struct BlockActivations<B: Train> {
    pub(super) work: Workspace<B>,
    /// The residual stream, with what attention adds.
    pub(super) residual: B::Buffer,
}

impl<B: Train> BlockActivations<B> {
    /// Room for `tokens` tokens of as many blocks as there is memory for, at most `blocks`.
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

    /// Exchanges it with what the runner has: one is as good as the other for what comes.
    pub(super) fn swap(&mut self, runner: &mut Runner<B>) {
        std::mem::swap(&mut self.work, &mut runner.work);
        std::mem::swap(&mut self.residual, &mut runner.hidden.residual);
    }
}
