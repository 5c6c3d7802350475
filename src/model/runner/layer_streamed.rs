//! A model with one block in memory at a time. Texts run through it block by block, and their hidden states are kept in
//! a store.

use super::{EmbeddingAndHead, Runner, chunk_tokens};
use crate::backend::{Backend, Element, Segment};
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::model::block::{Block, LinearInput, Stage};
use crate::model::hidden_store::{HiddenStore, StoreSlot};
use crate::model::names::Linear;
use crate::model::weights::WeightSource;
use crate::model::{Checkpoint, KvCache, LoadOptions};
use crate::task::{self, Control};

/// Tokens of one text that run together.
#[derive(Clone, Copy)]
pub struct Chunk {
    /// Number of the text's tokens before the chunk.
    pub past: usize,
    /// Number of tokens.
    pub count: usize,
    /// The slot's row of the first token.
    pub row: usize,
}

/// The state of stored rows within a block, and the slots that hold them.
#[derive(Clone, Copy)]
pub struct StoredState<'s> {
    /// The input that the rows have reached; `None` before the block.
    pub input: Option<LinearInput>,
    /// The slot of the residual stream.
    pub residual: &'s str,
    /// The slot of the activations at the input.
    pub activations: &'s str,
}

/// Runs one text at a time through one block at a time.
pub struct LayerStreamed<'a, B: Backend> {
    /// The source of the weights.
    pub checkpoint: &'a Checkpoint,
    options: LoadOptions,
    /// The device and the current tokens.
    pub runner: Runner<B>,
    /// The storage of hidden states.
    pub store: HiddenStore<'a>,
    /// The keys and values of the current block and text.
    cache: KvCache<B>,
}

impl<'a, B: Backend> LayerStreamed<'a, B> {
    /// A model for texts of at most `context` tokens.
    ///
    /// # Errors
    /// `context_overflow` for more than the model supports.
    pub fn new(
        checkpoint: &'a Checkpoint,
        options: LoadOptions,
        context: usize,
        backend: B,
        scratch: &'a dyn Scratch,
    ) -> Result<Self> {
        let config = checkpoint.config();
        config.check_context(context)?;
        let mut runner = Runner::new(backend, config, chunk_tokens(config).min(context.max(1)))?;
        let cache = KvCache::new(&mut runner.backend, config, 1, 1, context)?;
        Ok(Self { checkpoint, options, runner, store: HiddenStore::new(scratch), cache })
    }

    /// The chunks of a text of `len` tokens whose first token has the row `row`.
    pub fn chunks(&self, len: usize, row: usize) -> impl Iterator<Item = Chunk> + use<B> {
        let most = self.runner.work.tokens;
        (0..len).step_by(most).map(move |past| Chunk { past, count: most.min(len - past), row: row + past })
    }

    /// Loads the embedding, the final norm and the head.
    pub async fn load_embedding_and_head(&mut self) -> Result<EmbeddingAndHead<B>> {
        EmbeddingAndHead::load(&mut self.runner.backend, self.checkpoint, self.options).await
    }

    /// Loads a block.
    pub async fn load_block(&mut self, layer: usize) -> Result<Block<B>> {
        Block::load(&mut self.runner.backend, self.checkpoint, layer, self.options).await
    }

    /// Replaces the weights of the layers of block `layer` that read `input`: see [`Block::replace`].
    pub async fn replace(
        &mut self,
        block: &mut Block<B>,
        layer: usize,
        input: LinearInput,
        sources: &[(Linear, WeightSource<'_>)],
    ) -> Result<()> {
        let Self { checkpoint, options, runner, .. } = self;
        block.replace(&mut runner.backend, checkpoint, layer, input, sources, *options).await
    }

    /// Stores the embeddings of a text in the slots, starting at `row`.
    pub async fn embed(
        &mut self,
        ends: &EmbeddingAndHead<B>,
        text: &[u32],
        row: usize,
        slots: &[&str],
        control: &dyn Control,
    ) -> Result<()> {
        for chunk in self.chunks(text.len(), row) {
            task::yield_point(control).await?;
            self.runner.embed(ends, &text[chunk.past..chunk.past + chunk.count])?;
            for slot in slots {
                self.save_residual(chunk, slot).await?;
            }
        }
        Ok(())
    }

    /// Runs a text of `len` tokens through a block, from the slot `from` to the slot `to`, which may be the same. The
    /// text starts at `row` in both.
    pub async fn run_block(
        &mut self,
        block: &Block<B>,
        len: usize,
        row: usize,
        (from, to): (&str, &str),
        control: &dyn Control,
    ) -> Result<()> {
        let waiting = StoredState { input: None, residual: from, activations: "" };
        for chunk in self.chunks(len, row) {
            task::yield_point(control).await?;
            self.run(block, chunk, waiting, Stage::End, |_| ()).await?;
            self.save_residual(chunk, to).await?;
        }
        Ok(())
    }

    /// Runs a chunk from its stored state to a stage of the block. `change` is first applied to its stored activations,
    /// if `from` is at an input.
    pub async fn run(
        &mut self,
        block: &Block<B>,
        chunk: Chunk,
        from: StoredState<'_>,
        to: Stage,
        change: impl FnOnce(&mut [f32]),
    ) -> Result<()> {
        let Self { runner, store, cache, .. } = self;
        let Chunk { past, count, row: first } = chunk;
        let Runner { backend, hidden, work, config, .. } = runner;
        let slot = StoreSlot { name: from.residual, first };
        match from.input {
            // From here, the next input is reached without the residual stream.
            Some(LinearInput::Qkv | LinearInput::GateUp) => hidden.count = count,
            None | Some(LinearInput::O | LinearInput::Down) => {
                store.load_hidden(backend, hidden, count, config.hidden_size, slot).await?;
            }
        }
        if let Some(input) = from.input {
            let slot = StoreSlot { name: from.activations, first };
            store.load(backend, work.at_mut(input), count, input.width(config), slot, change).await?;
        }
        let stages = (from.input.map_or(Stage::Start, LinearInput::stage), to);
        block.run(runner, &[Segment::causal(past, count)], cache, 0, stages)
    }

    /// Stores the residual stream of a chunk.
    pub async fn save_residual(&mut self, chunk: Chunk, slot: &str) -> Result<()> {
        let Runner { backend, hidden, config, .. } = &mut self.runner;
        let slot = StoreSlot { name: slot, first: chunk.row };
        self.store.save_hidden(backend, hidden, config.hidden_size, slot).await
    }

    /// Logits of a chunk that is stored after the last block, `[count, vocab_size]`.
    pub async fn logits(&mut self, ends: &EmbeddingAndHead<B>, chunk: Chunk, slot: &str) -> Result<Vec<f32>> {
        let Runner { backend, hidden, config, .. } = &mut self.runner;
        let mut found = vec![0.0; chunk.count * config.vocab_size];
        let slot = StoreSlot { name: slot, first: chunk.row };
        self.store.load_hidden(backend, hidden, chunk.count, config.hidden_size, slot).await?;
        let mut logits = backend.buffer(Element::F32, found.len())?;
        self.runner.head(ends, &mut logits)?;
        self.runner.backend.read(&logits, 0, &mut found).await?;
        Ok(found)
    }
}
