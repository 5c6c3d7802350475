//! A model of which one block is in memory at a time: texts go through it block by block, hidden states wait in scratch.
//! Floor 7.

use crate::backend::{Backend, Element, Segment};
use crate::error::Result;
use crate::model::block::{Block, Hidden, Position, Workspace};
use crate::model::decoder::{Ends, RopeTable, chunk_tokens, new_hidden};
use crate::model::spill::{Carrier, Place};
use crate::model::{Checkpoint, KvCache, LoadOptions};
use crate::task::{self, Control};

/// What a block needs beside itself, for one text at a time.
pub(super) struct Runner<'a, B: Backend> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) options: LoadOptions,
    pub(super) backend: B,
    /// Tokens that run together.
    pub(super) chunk: usize,
    context: usize,
    work: Workspace<B>,
    hidden: Hidden<B>,
    rope: RopeTable<B>,
    /// Of the block at hand.
    cache: KvCache<B>,
    carrier: Carrier,
}

impl<'a, B: Backend> Runner<'a, B> {
    /// For texts of at most `context` tokens.
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        options: LoadOptions,
        context: usize,
        mut backend: B,
    ) -> Result<Self> {
        let config = checkpoint.config();
        config.check_context(context)?;
        let chunk = chunk_tokens(config);
        Ok(Self {
            checkpoint,
            options,
            chunk,
            context,
            work: Workspace::new(&mut backend, config, chunk)?,
            hidden: new_hidden(&mut backend, config, chunk)?,
            rope: RopeTable::default(),
            cache: KvCache::new(&mut backend, config, 1, 1, context)?,
            carrier: Carrier::default(),
            backend,
        })
    }

    pub(super) async fn load_ends(&mut self) -> Result<Ends<B>> {
        Ends::load(&mut self.backend, self.checkpoint, self.options).await
    }

    /// Puts the embeddings of a text to `to`, its first token's place.
    pub(super) async fn embed(&mut self, ends: &Ends<B>, text: &[u32], to: Place<'_>) -> Result<()> {
        for (index, tokens) in text.chunks(self.chunk).enumerate() {
            ends.embed(&mut self.backend, tokens, &mut self.hidden, &mut self.work)?;
            self.store(Place { first: to.first + index * self.chunk, ..to }).await?;
        }
        Ok(())
    }

    /// Takes a text of `len` tokens, which begins at `from`, through a block; its output begins at `to`.
    pub(super) async fn through(
        &mut self,
        block: &Block<B>,
        len: usize,
        from: Place<'_>,
        to: Place<'_>,
        control: &dyn Control,
    ) -> Result<()> {
        for past in (0..len).step_by(self.chunk) {
            task::checkpoint(control).await?;
            self.bring_back(self.chunk.min(len - past), Place { first: from.first + past, ..from }).await?;
            let config = self.checkpoint.config();
            let Self { backend, work, hidden, rope, cache, context, .. } = self;
            let rope = rope.reserve(backend, config, *context)?;
            let segments = &[Segment::causal(past, hidden.count)];
            let position = Position { segments, capacity: *context, rope, cache: cache.layer_mut(0) };
            block.forward(backend, config, hidden, work, position)?;
            self.store(Place { first: to.first + past, ..to }).await?;
        }
        Ok(())
    }

    /// Logits of `count` tokens, of which the first is at `from`: `[count, vocab_size]`.
    pub(super) async fn logits(&mut self, ends: &Ends<B>, count: usize, from: Place<'_>) -> Result<Vec<f32>> {
        self.bring_back(count, from).await?;
        let mut found = vec![0.0; count * self.checkpoint.config().vocab_size];
        let mut logits = self.backend.buffer(Element::F32, found.len())?;
        ends.head(&mut self.backend, &mut self.hidden, &mut self.work, &mut logits)?;
        self.backend.read(&logits, 0, &mut found).await?;
        Ok(found)
    }

    async fn store(&mut self, place: Place<'_>) -> Result<()> {
        let width = self.checkpoint.config().hidden_size;
        self.carrier.save_hidden(&mut self.backend, &self.hidden, width, place).await
    }

    async fn bring_back(&mut self, count: usize, place: Place<'_>) -> Result<()> {
        let width = self.checkpoint.config().hidden_size;
        self.carrier.load_hidden(&mut self.backend, &mut self.hidden, count, width, place).await
    }
}
