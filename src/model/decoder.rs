//! The decoder: embedding, blocks, head.
//!
//! One implementation for every architecture, number format and device. Not here: reading logits back to the host
//! (`next`), batching tokens of several sequences (`runs`), choosing the next token (`generate`).

mod next;
mod runs;

pub use next::{LogitsRequest, Next, Pending};
pub use runs::Run;

use super::block::{Block, Stage};
use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::kv_cache::KvCache;
use super::names;
use super::runner::{EmbeddingAndHead, Runner, chunk_tokens};
use super::weights::LoadOptions;
use crate::backend::{Backend, Capabilities, Element, TopK};
use crate::error::Result;
use crate::quant::Activations;
use crate::task::{self, Control, Progress};
use next::Rows;
use runs::{Piece, chunks};

/// The logits that a forward pass returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// The logits of every token.
    All,
    /// The logits of the last token only.
    Last,
}

/// A causal language model on a device.
pub struct CausalLm<B: Backend> {
    runner: Runner<B>,
    ends: EmbeddingAndHead<B>,
    blocks: Vec<Block<B>>,
    activations: Activations,
    /// Logits of a chunk, `[tokens, vocab_size]`.
    logits: B::Buffer,
    /// `[rows, vocab_size]`: logits of every second step, if steps start before the logits of the previous step are
    /// read.
    logits_ahead: Option<Rows<B::Buffer>>,
    /// Results of argmax, `[tokens]`.
    largest: B::Buffer,
    /// Buffers for the last requested `k`.
    top_k: Option<Rows<TopK<B::Buffer>>>,
}

/// The activation precision in the options, or else that of the checkpoint's first linear module.
fn effective_activations(checkpoint: &Checkpoint, options: LoadOptions) -> Result<Activations> {
    match options.activations {
        Some(activations) => Ok(activations),
        None => Ok(checkpoint.module(&names::Linear::Q.module(0))?.activations()),
    }
}

impl<B: Backend> CausalLm<B> {
    /// Loads the whole model onto `backend`.
    ///
    /// # Errors
    /// Errors of reading, with the module named; `cancelled`.
    pub async fn load(
        backend: B,
        checkpoint: &Checkpoint,
        options: LoadOptions,
        control: &dyn Control,
    ) -> Result<Self> {
        let loaded = Self::load_all(backend, checkpoint, options, control).await;
        loaded.map_err(|error| error.within(checkpoint.name()))
    }

    async fn load_all(
        mut backend: B,
        checkpoint: &Checkpoint,
        options: LoadOptions,
        control: &dyn Control,
    ) -> Result<Self> {
        let config = checkpoint.config();
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            control.progress(&Progress {
                phase: "load",
                done: layer as u64,
                total: config.num_hidden_layers as u64,
                item: checkpoint.name(),
            });
            task::yield_point(control).await?;
            blocks.push(Block::load(&mut backend, checkpoint, layer, options).await?);
        }
        let ends = EmbeddingAndHead::load(&mut backend, checkpoint, options).await?;
        let tokens = chunk_tokens(config);
        let mut runner = Runner::new(backend, config, tokens)?;
        Ok(Self {
            ends,
            blocks,
            activations: effective_activations(checkpoint, options)?,
            logits: runner.backend.buffer(Element::F32, tokens * config.vocab_size)?,
            logits_ahead: None,
            largest: runner.backend.buffer(Element::U32, tokens)?,
            top_k: None,
            runner,
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.runner.config
    }

    /// Precision of the activations in the linear layers of the blocks.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// The capabilities of the device.
    pub fn capabilities(&self) -> &Capabilities {
        self.runner.backend.capabilities()
    }

    /// An empty cache for one sequence of at most `capacity` positions.
    ///
    /// # Errors
    /// `context_overflow` if the model does not support so many.
    pub fn new_cache(&mut self, capacity: usize) -> Result<KvCache<B>> {
        self.new_batch_cache(1, capacity)
    }

    /// An empty cache for `sequences` sequences of at most `capacity` positions each.
    ///
    /// # Errors
    /// As [`CausalLm::new_cache`].
    pub fn new_batch_cache(&mut self, sequences: usize, capacity: usize) -> Result<KvCache<B>> {
        let Runner { backend, config, rope, .. } = &mut self.runner;
        config.check_context(capacity)?;
        rope.reserve(backend, config, capacity)?;
        KvCache::new(backend, config, self.blocks.len(), sequences, capacity)
    }

    /// Runs `tokens`, which continue the cache's only sequence, and calls `each(index, row)` with logits: `index` is
    /// the index in `tokens`, and `row` the `[vocab_size]` logits of the token that follows it. Calls are in order.
    ///
    /// # Errors
    /// `context_overflow` if the cache has no room for them, `invalid_argument` for a token outside the vocabulary,
    /// `cancelled`.
    pub async fn forward(
        &mut self,
        tokens: &[u32],
        cache: &mut KvCache<B>,
        wanted: Logits,
        control: &dyn Control,
        mut each: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let each = |_, index, row: &[f32]| each(index, row);
        self.forward_runs(&[Run::only(tokens)], cache, wanted, control, each).await
    }

    /// As [`CausalLm::forward`], for several sequences at once. `each(run, index, row)` is called for one run after the
    /// other.
    ///
    /// # Errors
    /// As [`CausalLm::forward`]; `invalid_argument` for a sequence that the cache does not have, or that occurs twice.
    pub async fn forward_runs(
        &mut self,
        runs: &[Run<'_>],
        cache: &mut KvCache<B>,
        wanted: Logits,
        control: &dyn Control,
        mut each: impl FnMut(usize, usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.check_runs(runs, cache)?;
        // If only the logits of the last tokens are wanted, these tokens run separately: the head is a large part of a
        // small model.
        let (without, with) = match wanted {
            Logits::All => Piece::split(runs, usize::MAX),
            Logits::Last => Piece::split(runs, 1),
        };
        self.run_without_head(without, cache, control).await?;
        let vocab = self.runner.config.vocab_size;
        let mut host = Vec::new();
        for chunk in chunks(with, self.runner.work.tokens) {
            task::yield_point(control).await?;
            self.run_blocks(&chunk, cache)?;
            self.runner.head(&self.ends, &mut self.logits)?;
            host.resize(self.runner.hidden.count * vocab, 0.0);
            self.runner.backend.read(&self.logits, 0, &mut host).await?;
            let mut rows = host.chunks_exact(vocab);
            for Piece { run, first, tokens, .. } in chunk {
                for (index, row) in (first..first + tokens.len()).zip(&mut rows) {
                    each(run, index, row)?;
                }
            }
        }
        Ok(())
    }

    /// Number of kernels that the device has run so far; `None` if the device does not count them.
    pub fn dispatches(&self) -> Option<u64> {
        self.runner.backend.dispatches()
    }

    async fn run_without_head(
        &mut self,
        pieces: Vec<Piece<'_>>,
        cache: &mut KvCache<B>,
        control: &dyn Control,
    ) -> Result<()> {
        for chunk in chunks(pieces, self.runner.work.tokens) {
            task::yield_point(control).await?;
            self.run_blocks(&chunk, cache)?;
            self.runner.backend.flush()?;
        }
        Ok(())
    }

    /// Runs at most one chunk of pieces through the blocks.
    fn run_blocks(&mut self, pieces: &[Piece<'_>], cache: &mut KvCache<B>) -> Result<()> {
        let tokens: Vec<u32> = pieces.iter().flat_map(|piece| piece.tokens).copied().collect();
        self.runner.embed(&self.ends, &tokens)?;
        self.run_embedded(pieces.iter().map(|piece| (piece.sequence, piece.tokens.len())), cache)
    }

    /// Runs embedded tokens through the blocks. `parts` lists sequences and their numbers of tokens.
    fn run_embedded(
        &mut self,
        parts: impl Iterator<Item = (usize, usize)> + Clone,
        cache: &mut KvCache<B>,
    ) -> Result<()> {
        let segments: Vec<_> = parts.clone().map(|(sequence, count)| cache.next(sequence, count)).collect();
        for (layer, block) in self.blocks.iter().enumerate() {
            block.run(&mut self.runner, &segments, cache, layer, (Stage::Start, Stage::End))?;
        }
        parts.for_each(|(sequence, count)| cache.advance(sequence, count));
        Ok(())
    }
}
