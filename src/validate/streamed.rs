//! Scores two models that are too large to hold twice: one block of one model at a time, hidden states in scratch.
//!
//! The steps are those of [`walk::compare`](super::walk::compare) in another order, on the same chunks of tokens, so the
//! result is the same to the last bit: a memory budget never changes a figure. Hidden states are kept in f32. Floor 7.

use super::walk::{Comparison, check_same_vocabulary, check_vocabulary, report};
use super::windows::{Dataset, Window, WindowOptions};
use crate::backend::{Backend, Element};
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::model::block::{Block, Hidden, Position, Workspace};
use crate::model::decoder::{Ends, RopeTable, chunk_tokens, new_hidden};
use crate::model::spill::{self, Place};
use crate::model::{Checkpoint, KvCache, LoadOptions, ModelConfig};
use crate::task::{self, Control};

/// As [`walk::compare`](super::walk::compare), with at most one block in memory.
///
/// # Errors
/// As there, and whatever scratch meets.
pub async fn compare<B: Backend>(
    original: (&Checkpoint, LoadOptions),
    quantized: (&Checkpoint, LoadOptions),
    data: &Dataset,
    options: &WindowOptions,
    new_backend: &mut impl FnMut() -> Result<B>,
    scratch: &dyn Scratch,
    control: &dyn Control,
) -> Result<Comparison> {
    check_same_vocabulary(original.0.config(), quantized.0.config())?;
    check_vocabulary(data, original.0.config())?;
    let windows = data.windows(options)?;
    let (a, b) = (original.0, quantized.0);
    let mut a = Runner::new(a, original.1, "original", options.context, new_backend()?)?;
    let mut b = Runner::new(b, quantized.1, "quantized", options.context, new_backend()?)?;
    for runner in [&mut a, &mut b] {
        runner.run_blocks(data, &windows, scratch, control).await?;
    }
    let mut comparison = Comparison::default();
    let (a_ends, b_ends) = (a.load_ends().await?, b.load_ends().await?);
    for (index, window) in windows.iter().enumerate() {
        report(control, "compare", index, windows.len(), data);
        let inputs = data.inputs(window).len();
        for first in (0..inputs).step_by(a.chunk) {
            task::checkpoint(control).await?;
            let count = a.chunk.min(inputs - first);
            let rows = a.logits(&a_ends, index, first, count, scratch).await?;
            let others = b.logits(&b_ends, index, first, count, scratch).await?;
            let vocab = a.config.vocab_size;
            for (offset, (row, other)) in rows.chunks(vocab).zip(others.chunks(vocab)).enumerate() {
                if let Some(target) = data.target(window, first + offset) {
                    comparison.add(row, other, target);
                }
            }
        }
        for runner in [&a, &b] {
            scratch.delete(&runner.blob(index)).await?;
        }
    }
    Ok(comparison)
}

/// One model on its way through the text.
struct Runner<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    options: LoadOptions,
    /// Distinguishes the two models' hidden states in scratch.
    name: &'static str,
    config: &'a ModelConfig,
    context: usize,
    chunk: usize,
    backend: B,
    work: Workspace<B>,
    hidden: Hidden<B>,
    rope: RopeTable<B>,
}

impl<'a, B: Backend> Runner<'a, B> {
    fn new(
        checkpoint: &'a Checkpoint,
        options: LoadOptions,
        name: &'static str,
        context: usize,
        mut backend: B,
    ) -> Result<Self> {
        let config = checkpoint.config();
        config.check_context(context)?;
        let chunk = chunk_tokens(config);
        Ok(Self {
            checkpoint,
            options,
            name,
            config,
            context,
            chunk,
            work: Workspace::new(&mut backend, config, chunk)?,
            hidden: new_hidden(&mut backend, config, chunk)?,
            rope: RopeTable::default(),
            backend,
        })
    }

    /// The name of a window's hidden states in scratch.
    fn blob(&self, window: usize) -> String {
        format!("{}-{window}", self.name)
    }

    async fn load_ends(&mut self) -> Result<Ends<B>> {
        Ends::load(&mut self.backend, self.checkpoint, self.options).await
    }

    /// Takes every window through all blocks; their outputs are in scratch then.
    async fn run_blocks(
        &mut self,
        data: &Dataset,
        windows: &[Window],
        scratch: &dyn Scratch,
        control: &dyn Control,
    ) -> Result<()> {
        let ends = self.load_ends().await?;
        for (index, window) in windows.iter().enumerate() {
            let mut first = 0;
            for tokens in data.inputs(window).chunks(self.chunk) {
                ends.embed(&mut self.backend, tokens, &mut self.hidden, &mut self.work)?;
                self.store(index, first, scratch).await?;
                first += tokens.len();
            }
        }
        drop(ends);
        let mut cache = KvCache::new(&mut self.backend, self.config, 1, self.context)?;
        for layer in 0..self.config.num_hidden_layers {
            report(control, self.name, layer, self.config.num_hidden_layers, data);
            let block = Block::load(&mut self.backend, self.checkpoint, layer, self.options).await?;
            for (index, window) in windows.iter().enumerate() {
                let inputs = data.inputs(window).len();
                for first in (0..inputs).step_by(self.chunk) {
                    task::checkpoint(control).await?;
                    self.restore(index, first, self.chunk.min(inputs - first), scratch).await?;
                    self.forward(&block, first, &mut cache)?;
                    self.store(index, first, scratch).await?;
                }
            }
        }
        Ok(())
    }

    fn forward(&mut self, block: &Block<B>, past: usize, cache: &mut KvCache<B>) -> Result<()> {
        let rope = self.rope.reserve(&mut self.backend, self.config, self.context)?;
        let position = Position { past, capacity: self.context, rope, cache: cache.layer_mut(0) };
        block.forward(&mut self.backend, self.config, &mut self.hidden, &mut self.work, position)
    }

    /// Logits of some tokens of a window, `[count, vocab_size]`.
    async fn logits(
        &mut self,
        ends: &Ends<B>,
        window: usize,
        first: usize,
        count: usize,
        scratch: &dyn Scratch,
    ) -> Result<Vec<f32>> {
        self.restore(window, first, count, scratch).await?;
        let len = count * self.config.vocab_size;
        let mut logits = self.backend.buffer(Element::F32, len)?;
        ends.head(&mut self.backend, &mut self.hidden, &mut self.work, &mut logits)?;
        let mut host = vec![0.0; len];
        self.backend.read(&logits, 0, &mut host).await?;
        Ok(host)
    }

    async fn store(&mut self, window: usize, first: usize, scratch: &dyn Scratch) -> Result<()> {
        let place = Place { scratch, blob: &self.blob(window), first };
        spill::save_hidden(&mut self.backend, &self.hidden, self.config.hidden_size, place).await
    }

    async fn restore(
        &mut self,
        window: usize,
        first: usize,
        count: usize,
        scratch: &dyn Scratch,
    ) -> Result<()> {
        let place = Place { scratch, blob: &self.blob(window), first };
        let width = self.config.hidden_size;
        spill::load_hidden(&mut self.backend, &mut self.hidden, count, width, place).await
    }
}
