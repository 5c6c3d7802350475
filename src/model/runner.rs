//! Runs tokens through a model: a device, and what a run holds beside weights and cache.
//!
//! [`CausalLm`](super::CausalLm) has all its blocks loaded; [`LayerStreamed`] has one at a time. Not here: a block's steps
//! (`block`), and what comes of the logits (`decoder`).

#[cfg(feature = "train")]
mod backward;
mod layer_streamed;

#[cfg(feature = "train")]
pub use backward::{EndParameters, LossSums, Objective, Predictions, Teaching, needs_refresh, zero};
pub use layer_streamed::{Chunk, LayerStreamed, Waiting};

use super::block::{Hidden, Workspace, elements_per_token};
use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::names;
use super::rope::RopeTable;
use super::weights::{LoadOptions, Part, load_linear, load_norm};
use crate::backend::{Backend, Element, Norm};
use crate::error::Result;
use crate::quant::Activations;

/// Tokens that run through the blocks together.
const CHUNK_TOKENS: usize = 256;
/// Most logits that are held at once: 64 MiB. Chunks are shortened for large vocabularies.
const MOST_LOGITS: usize = 16 << 20;

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

/// What stands before the first block and after the last.
pub struct EmbeddingAndHead<B: Backend> {
    /// Also the head where that is `None`.
    embedding: B::Weight,
    pub(super) final_norm: Norm<B::Buffer>,
    head: Option<B::Weight>,
}

impl<B: Backend> EmbeddingAndHead<B> {
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
}

/// Takes runs of tokens through embedding, blocks and head.
pub struct Runner<B: Backend> {
    /// The device.
    pub backend: B,
    /// What the model is.
    pub config: ModelConfig,
    /// The tokens at hand.
    pub hidden: Hidden<B>,
    /// What becomes of them in a block.
    pub work: Workspace<B>,
    pub(super) rope: RopeTable<B>,
}

impl<B: Backend> Runner<B> {
    /// For runs of at most `tokens` tokens.
    pub fn new(mut backend: B, config: &ModelConfig, tokens: usize) -> Result<Self> {
        let width = config.hidden_size;
        Ok(Self {
            config: config.clone(),
            work: Workspace::new(&mut backend, config, tokens)?,
            hidden: Hidden {
                residual: backend.buffer(Element::F32, tokens * width)?,
                delta: backend.buffer(Element::F32, tokens * width)?,
                has_delta: false,
                count: 0,
            },
            rope: RopeTable::default(),
            backend,
        })
    }

    /// Takes up `tokens`: from now on they are at hand, in front of the first block.
    pub fn embed(&mut self, ends: &EmbeddingAndHead<B>, tokens: &[u32]) -> Result<()> {
        self.backend.write_u32(&mut self.work.token_ids, tokens)?;
        self.embed_ids(ends, None, tokens.len())
    }

    /// As [`Runner::embed`], of `count` tokens whose ids are on the device: those that were written last, or others.
    pub fn embed_ids(
        &mut self,
        ends: &EmbeddingAndHead<B>,
        ids: Option<&B::Buffer>,
        count: usize,
    ) -> Result<()> {
        let Self { backend, work, hidden, .. } = self;
        let ids = ids.unwrap_or(&work.token_ids);
        backend.embed(ids, count, &ends.embedding, &mut hidden.residual)?;
        (hidden.has_delta, hidden.count) = (false, count);
        Ok(())
    }

    /// Logits of the tokens at hand, which are behind the last block: `[count, vocab_size]`.
    pub fn head(&mut self, ends: &EmbeddingAndHead<B>, logits: &mut B::Buffer) -> Result<()> {
        let Self { backend, hidden, work, .. } = self;
        let (delta, count) = (hidden.has_delta.then_some(&hidden.delta), hidden.count);
        let norm = ends.final_norm.as_ref();
        backend.add_rms_norm(&mut hidden.residual, delta, count, norm, &mut work.normed)?;
        backend.linear(&work.normed, count, ends.head.as_ref().unwrap_or(&ends.embedding), logits)
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::backend::Segment;
    use crate::backend::cpu::CpuBackend;
    use crate::format::source::FsDir;
    use crate::model::KvCache;
    use crate::model::block::{Block, LinearInput, Stage};
    use crate::task::block_on;
    use std::sync::Arc;

    #[test]
    fn a_block_can_keep_the_inputs_of_all_its_layers() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tale-llama");
        let checkpoint = block_on(Checkpoint::open(Arc::new(FsDir::open(folder).unwrap()))).unwrap();
        let (config, tokens) = (checkpoint.config(), [3, 4, 5]);
        let segments = [Segment::causal(0, tokens.len())];
        let mut runner = Runner::new(CpuBackend::new(), config, tokens.len()).unwrap();
        let mut cache = KvCache::new(&mut runner.backend, config, 1, 1, tokens.len()).unwrap();
        let options = LoadOptions::default();
        let ends = block_on(EmbeddingAndHead::load(&mut runner.backend, &checkpoint, options)).unwrap();
        let block = block_on(Block::load(&mut runner.backend, &checkpoint, 0, options)).unwrap();
        let at = |runner: &mut Runner<CpuBackend>, input: LinearInput| {
            let mut values = vec![0.0; tokens.len() * input.width(config)];
            block_on(runner.backend.read(runner.work.at(input), 0, &mut values)).unwrap();
            values
        };
        runner.embed(&ends, &tokens).unwrap();
        let mut from = Stage::Start;
        let stops = LinearInput::ALL.map(|input| {
            block.run(&mut runner, &segments, &mut cache, 0, (from, input.stage())).unwrap();
            from = input.stage();
            at(&mut runner, input)
        });
        let work = Workspace::new(&mut runner.backend, config, tokens.len()).unwrap();
        runner.work = work.keeping_inputs(&mut runner.backend, config).unwrap();
        runner.embed(&ends, &tokens).unwrap();
        block.run(&mut runner, &segments, &mut cache, 0, (Stage::Start, Stage::End)).unwrap();
        assert_eq!(LinearInput::ALL.map(|input| at(&mut runner, input)), stops);
        assert_ne!(stops[0], stops[2]);
    }
}
