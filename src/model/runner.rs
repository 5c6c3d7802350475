//! Runs tokens through a model. A [`Runner`] holds the device, the hidden states and the workspace, but neither weights
//! nor cache.
//!
//! [`CausalLm`](super::CausalLm) has all its blocks loaded; [`LayerStreamed`] loads one at a time. Not here: the steps
//! of a block (`block`) and the use of the logits (`decoder`).

#[cfg(feature = "train")]
mod backward;
mod layer_streamed;

#[cfg(feature = "train")]
pub use backward::{EndParameters, LossSums, Objective, Predictions, TeacherLogits, needs_refresh, zero};
pub use layer_streamed::{Chunk, LayerStreamed, StoredState};

use super::block::{Hidden, Workspace, elements_per_token};
use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::names;
use super::rope::RopeTable;
use super::weights::{LoadOptions, Part, load_linear, load_norm};
use crate::backend::{Backend, Element, Norm};
use crate::error::Result;
use crate::quant::Activations;

/// Maximum number of tokens in a chunk, which runs through the blocks together.
const CHUNK_TOKENS: usize = 256;
/// Maximum number of logits in memory at once: 64 MiB. Large vocabularies shorten chunks.
const MOST_LOGITS: usize = 16 << 20;

/// Number of tokens in a chunk: as many as keep the logits within the limit, and at most the model's context.
pub fn chunk_tokens(config: &ModelConfig) -> usize {
    longest_chunk(config.vocab_size).min(config.max_position_embeddings)
}

/// As [`chunk_tokens`], without the model's limit of positions.
pub fn longest_chunk(vocab_size: usize) -> usize {
    CHUNK_TOKENS.min(MOST_LOGITS / vocab_size.max(1)).max(1)
}

/// Bytes of the keys and values of all layers for `context` positions.
pub fn cache_bytes(config: &ModelConfig, context: usize) -> u64 {
    let elements = config.attention_shape(context).cache_len() as u64;
    elements.saturating_mul(2 * 4 * config.num_hidden_layers as u64)
}

/// Bytes of a run besides weights and cache: hidden states, workspace, and logits, which exist on the device and on the
/// host.
pub fn working_bytes(config: &ModelConfig) -> u64 {
    let elements = elements_per_token(config) + 2 * config.vocab_size;
    chunk_tokens(config) as u64 * 4 * elements as u64
}

/// The embedding before the first block, and the final norm and head after the last block.
pub struct EmbeddingAndHead<B: Backend> {
    /// Also the head if `head` is `None`.
    embedding: B::Weight,
    pub(super) final_norm: Norm<B::Buffer>,
    head: Option<B::Weight>,
}

impl<B: Backend> EmbeddingAndHead<B> {
    /// Loads the embedding, the final norm and the head.
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

/// Runs tokens through embedding, blocks and head.
pub struct Runner<B: Backend> {
    /// The device.
    pub backend: B,
    /// The model's configuration.
    pub config: ModelConfig,
    /// The hidden states of the current tokens.
    pub hidden: Hidden<B>,
    /// Intermediate results within a block.
    pub work: Workspace<B>,
    pub(super) rope: RopeTable<B>,
}

impl<B: Backend> Runner<B> {
    /// A runner for runs of at most `tokens` tokens.
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

    /// Embeds `tokens`, which become the current tokens in front of the first block.
    pub fn embed(&mut self, ends: &EmbeddingAndHead<B>, tokens: &[u32]) -> Result<()> {
        self.backend.write_u32(&mut self.work.token_ids, tokens)?;
        self.embed_ids(ends, None, tokens.len())
    }

    /// As [`Runner::embed`], for `count` tokens whose ids are on the device: in `ids`, or else those of the last
    /// [`Runner::embed`].
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

    /// Logits of the current tokens after the last block, `[count, vocab_size]`.
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
