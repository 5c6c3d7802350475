//! The decoder: embedding, blocks, head.
//!
//! There is exactly one, for every architecture, number format and device. Not here: what of the logits comes back to the
//! host (`next`), how tokens of many sequences go together (`runs`), choosing the next token (`generate`). Floor 5.

mod next;
mod runs;

pub use next::{Next, Pending, Wanted};
pub use runs::Run;

use super::block::{Block, Hidden, Position, Workspace, elements_per_token};
use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::kv_cache::KvCache;
use super::names;
use super::weights::{LoadOptions, Part, load_linear, load_norm};
use crate::backend::{Backend, Capabilities, Element, Norm, TopK};
use crate::error::Result;
use crate::quant::Activations;
use crate::task::{self, Control, Progress};
use next::Rows;
use runs::{Piece, chunks};

/// Tokens that run through the blocks together.
const CHUNK_TOKENS: usize = 256;
/// Most logits that are held at once: 64 MiB. Chunks are shortened for large vocabularies.
const MOST_LOGITS: usize = 16 << 20;

/// Which logits a forward pass hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// Those after every token.
    All,
    /// Those after the last token only.
    Last,
}

/// A causal language model on a device.
pub struct CausalLm<B: Backend> {
    config: ModelConfig,
    backend: B,
    ends: Ends<B>,
    blocks: Vec<Block<B>>,
    activations: Activations,
    rope: RopeTable<B>,
    work: Workspace<B>,
    hidden: Hidden<B>,
    /// `[work.tokens, vocab_size]`
    logits: B::Buffer,
    /// `[rows, vocab_size]`: of every second step where steps begin before the last one's logits are known.
    logits_ahead: Option<Rows<B::Buffer>>,
    /// `[work.tokens]`
    largest: B::Buffer,
    /// Made for the last `k` that was asked for.
    top_k: Option<Rows<TopK<B::Buffer>>>,
}

/// What stands before the first block and after the last.
pub struct Ends<B: Backend> {
    /// Also the head where that is `None`.
    embedding: B::Weight,
    final_norm: Norm<B::Buffer>,
    head: Option<B::Weight>,
}

impl<B: Backend> Ends<B> {
    /// Loads embedding, last norm and head.
    pub async fn load(backend: &mut B, checkpoint: &Checkpoint, options: LoadOptions) -> Result<Self> {
        let exact = LoadOptions { activations: Some(Activations::F32), ..options };
        let config = checkpoint.config();
        let head = if config.tie_word_embeddings {
            None
        } else {
            Some(load_linear(backend, checkpoint, &[Part::table(names::HEAD)], exact).await?)
        };
        Ok(Self {
            embedding: load_linear(backend, checkpoint, &[Part::table(checkpoint.embedding_module())], exact)
                .await?,
            final_norm: load_norm(backend, checkpoint, names::FINAL_NORM, config.hidden_size).await?,
            head,
        })
    }

    /// Puts the embeddings of `tokens` into `hidden`.
    pub fn embed(
        &self,
        backend: &mut B,
        tokens: &[u32],
        hidden: &mut Hidden<B>,
        work: &mut Workspace<B>,
    ) -> Result<()> {
        backend.write_u32(&mut work.token_ids, tokens)?;
        self.embed_ids(backend, &work.token_ids, tokens.len(), hidden)
    }

    /// As [`Ends::embed`], of `count` tokens whose ids are on the device.
    fn embed_ids(
        &self,
        backend: &mut B,
        ids: &B::Buffer,
        count: usize,
        hidden: &mut Hidden<B>,
    ) -> Result<()> {
        backend.embed(ids, count, &self.embedding, &mut hidden.residual)?;
        hidden.has_delta = false;
        hidden.count = count;
        Ok(())
    }

    /// Logits of all tokens of `hidden`, `[count, vocab_size]`.
    pub fn head(
        &self,
        backend: &mut B,
        hidden: &mut Hidden<B>,
        work: &mut Workspace<B>,
        logits: &mut B::Buffer,
    ) -> Result<()> {
        let delta = hidden.has_delta.then_some(&hidden.delta);
        let count = hidden.count;
        backend.add_rms_norm(
            &mut hidden.residual,
            delta,
            count,
            self.final_norm.as_ref(),
            &mut work.normed,
        )?;
        backend.linear(&work.normed, count, self.head.as_ref().unwrap_or(&self.embedding), logits)
    }
}

/// What the options, or else the checkpoint's first linear module, say.
fn effective_activations(checkpoint: &Checkpoint, options: LoadOptions) -> Result<Activations> {
    match options.activations {
        Some(activations) => Ok(activations),
        None => Ok(checkpoint.module(&names::Linear::Q.module(0))?.activations()),
    }
}

/// Cosines and sines for as many positions as were needed so far.
pub struct RopeTable<B: Backend> {
    table: Option<B::Buffer>,
    positions: usize,
}

impl<B: Backend> Default for RopeTable<B> {
    fn default() -> Self {
        Self { table: None, positions: 0 }
    }
}

impl<B: Backend> RopeTable<B> {
    /// The table, with at least `positions` rows.
    pub fn reserve(&mut self, backend: &mut B, config: &ModelConfig, positions: usize) -> Result<&B::Buffer> {
        if self.table.is_none() || self.positions < positions {
            let values = config.rope.table(config.head_dim, positions);
            let mut buffer = backend.buffer(Element::F32, values.len())?;
            backend.write_f32(&mut buffer, &values)?;
            self.positions = positions;
            self.table = Some(buffer);
        }
        Ok(self.table.as_ref().expect("just made"))
    }
}

/// Tokens that run together, so that their logits stay within bounds.
pub fn chunk_tokens(config: &ModelConfig) -> usize {
    longest_chunk(config.vocab_size).min(config.max_position_embeddings)
}

/// [`chunk_tokens`] of a model without a limit of positions.
pub fn longest_chunk(vocab_size: usize) -> usize {
    CHUNK_TOKENS.min(MOST_LOGITS / vocab_size.max(1)).max(1)
}

/// Bytes of keys and values of all layers for `context` positions.
pub fn cache_bytes(config: &ModelConfig, context: usize) -> u64 {
    let elements = config.attention_shape(context).cache_len() as u64;
    elements.saturating_mul(2 * 4 * config.num_hidden_layers as u64)
}

/// Bytes of everything else that a run holds beside weights and cache: hidden states and what becomes of them within a
/// block, and logits, on the device and once more where they are read.
pub fn working_bytes(config: &ModelConfig) -> u64 {
    let elements = elements_per_token(config) + 2 * config.vocab_size;
    chunk_tokens(config) as u64 * 4 * elements as u64
}

/// Room for the hidden states of at most `tokens` tokens.
pub fn new_hidden<B: Backend>(backend: &mut B, config: &ModelConfig, tokens: usize) -> Result<Hidden<B>> {
    Ok(Hidden {
        residual: backend.buffer(Element::F32, tokens * config.hidden_size)?,
        delta: backend.buffer(Element::F32, tokens * config.hidden_size)?,
        has_delta: false,
        count: 0,
    })
}

impl<B: Backend> CausalLm<B> {
    /// Loads the whole model onto `backend`.
    ///
    /// # Errors
    /// Whatever reading meets, with the module named; `cancelled`.
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
        let config = checkpoint.config().clone();
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            control.progress(&Progress {
                phase: "load",
                done: layer as u64,
                total: config.num_hidden_layers as u64,
                item: checkpoint.name(),
            });
            task::checkpoint(control).await?;
            blocks.push(Block::load(&mut backend, checkpoint, layer, options).await?);
        }
        let ends = Ends::load(&mut backend, checkpoint, options).await?;
        let tokens = chunk_tokens(&config);
        Ok(Self {
            ends,
            blocks,
            activations: effective_activations(checkpoint, options)?,
            rope: RopeTable::default(),
            work: Workspace::new(&mut backend, &config, tokens)?,
            hidden: new_hidden(&mut backend, &config, tokens)?,
            logits: backend.buffer(Element::F32, tokens * config.vocab_size)?,
            logits_ahead: None,
            largest: backend.buffer(Element::U32, tokens)?,
            top_k: None,
            config,
            backend,
        })
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Precision of the activations that meet the linear layers of the blocks.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// What the device can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.backend.capabilities()
    }

    /// An empty cache of one sequence with room for `capacity` positions.
    ///
    /// # Errors
    /// `context_overflow` when the model was not made for so many.
    pub fn new_cache(&mut self, capacity: usize) -> Result<KvCache<B>> {
        self.new_batch_cache(1, capacity)
    }

    /// An empty cache of `sequences` sequences with room for `capacity` positions each.
    ///
    /// # Errors
    /// As [`CausalLm::new_cache`].
    pub fn new_batch_cache(&mut self, sequences: usize, capacity: usize) -> Result<KvCache<B>> {
        self.config.check_context(capacity)?;
        self.rope.reserve(&mut self.backend, &self.config, capacity)?;
        KvCache::new(&mut self.backend, &self.config, self.blocks.len(), sequences, capacity)
    }

    /// Runs `tokens`, which follow what the cache of one sequence has seen, and hands out logits: `each(index, row)` is
    /// called with the index of a token in `tokens` and the `[vocab_size]` logits of what follows it, in order.
    ///
    /// # Errors
    /// `context_overflow` when the cache has no room for them, `invalid_argument` for a token outside the vocabulary,
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

    /// As [`CausalLm::forward`], with tokens of several sequences at once: `each(run, index, row)` is called for each run
    /// in turn.
    ///
    /// # Errors
    /// As [`CausalLm::forward`]; `invalid_argument` for a sequence that the cache does not have, or that comes twice.
    pub async fn forward_runs(
        &mut self,
        runs: &[Run<'_>],
        cache: &mut KvCache<B>,
        wanted: Logits,
        control: &dyn Control,
        mut each: impl FnMut(usize, usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.check_runs(runs, cache)?;
        // Last tokens run apart when only their logits are wanted: the head is a large part of a small model.
        let (without, with) = match wanted {
            Logits::All => Piece::split(runs, usize::MAX),
            Logits::Last => Piece::split(runs, 1),
        };
        self.run_without_head(without, cache, control).await?;
        let vocab = self.config.vocab_size;
        let mut host = Vec::new();
        for chunk in chunks(with, self.work.tokens) {
            task::checkpoint(control).await?;
            self.run_blocks(&chunk, cache)?;
            self.ends.head(&mut self.backend, &mut self.hidden, &mut self.work, &mut self.logits)?;
            host.resize(self.hidden.count * vocab, 0.0);
            self.backend.read(&self.logits, 0, &mut host).await?;
            let mut rows = host.chunks_exact(vocab);
            for Piece { run, first, tokens, .. } in chunk {
                for (index, row) in (first..first + tokens.len()).zip(&mut rows) {
                    each(run, index, row)?;
                }
            }
        }
        Ok(())
    }

    /// Kernels that the device has run so far; `None` where it has none.
    pub fn dispatches(&self) -> Option<u64> {
        self.backend.dispatches()
    }

    async fn run_without_head(
        &mut self,
        pieces: Vec<Piece<'_>>,
        cache: &mut KvCache<B>,
        control: &dyn Control,
    ) -> Result<()> {
        for chunk in chunks(pieces, self.work.tokens) {
            task::checkpoint(control).await?;
            self.run_blocks(&chunk, cache)?;
            self.backend.flush()?;
        }
        Ok(())
    }

    /// Runs pieces, at most a chunk, through the blocks.
    fn run_blocks(&mut self, pieces: &[Piece<'_>], cache: &mut KvCache<B>) -> Result<()> {
        let tokens: Vec<u32> = pieces.iter().flat_map(|piece| piece.tokens).copied().collect();
        self.ends.embed(&mut self.backend, &tokens, &mut self.hidden, &mut self.work)?;
        self.run_embedded(pieces.iter().map(|piece| (piece.sequence, piece.tokens.len())), cache)
    }

    /// Runs what is embedded through the blocks: sequences, and the tokens of each.
    fn run_embedded(
        &mut self,
        parts: impl Iterator<Item = (usize, usize)> + Clone,
        cache: &mut KvCache<B>,
    ) -> Result<()> {
        let Self { config, backend, blocks, rope, work, hidden, .. } = self;
        let segments: Vec<_> = parts.clone().map(|(sequence, count)| cache.next(sequence, count)).collect();
        let (segments, capacity) = (&segments, cache.positions());
        let rope = rope.reserve(backend, config, cache.capacity())?;
        for (block, cache) in blocks.iter().zip(&mut cache.layers) {
            block.forward(backend, config, hidden, work, Position { segments, capacity, rope, cache })?;
        }
        parts.for_each(|(sequence, count)| cache.advance(sequence, count));
        Ok(())
    }
}
