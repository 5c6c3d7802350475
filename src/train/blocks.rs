//! Block-by-block training: each block alone learns to reproduce the original block's output, with inputs from the
//! trained blocks before it (Nagel, Amjad, van Baalen, Louizos, Blankevoort, *Up or Down? Adaptive Rounding for
//! Post-Training Quantization*, 2020, layer by layer; Li et al., *BRECQ*, 2021, block by block).
//!
//! In memory are one block with its training state and one batch; hidden states of all texts are in scratch.

use super::corpus::Sequence;
use super::optimizer::{Optimizer, OptimizerOptions, Trainable, zero_gradients};
use super::parameters::{Precision, of_block};
use super::schedule::Schedule;
use super::start::Start;
use super::state::StateFolder;
use super::{BatchCapacity, segments_of};
use crate::backend::{Backend, Element, Segment, Sums, Train};
use crate::error::{Error, ErrorCode, Result};
use crate::format::scratch::Scratch;
use crate::model::block::{BackwardWorkspace, Block, BlockParameters, Stage, Workspace};
use crate::model::hidden_store::{HiddenStore, StoreSlot};
use crate::model::runner::{EmbeddingAndHead, Runner};
use crate::model::trained::Parameter;
use crate::model::{Checkpoint, KvCache, LoadOptions};
use crate::task::{self, Control, Progress};

/// Scratch slots of the hidden states after the original's blocks, and after the trained ones.
const ORIGINAL: &str = "blocks-original";
const TRAINED: &str = "blocks-trained";

/// How each block is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockOptions {
    /// Steps and learning rate, restarted for each block.
    pub schedule: Schedule,
    /// The optimizer's settings.
    pub optimizer: OptimizerOptions,
    /// Whether scales are learned.
    pub learned_scales: bool,
}

/// The result of training a block. Losses are squared distances from the original's output, divided by that output's
/// squared norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockReport {
    /// Which block.
    pub layer: usize,
    /// Means over the first and the last tenth of the steps; `None` if an earlier run has trained the block.
    pub losses: Option<(f64, f64)>,
}

/// Trains the blocks of a model one after another.
pub struct BlockByBlock<'a, B: Train> {
    checkpoint: &'a Checkpoint,
    texts: &'a [Vec<Sequence>],
    precision: Precision,
    options: BlockOptions,
    runner: Runner<B>,
    store: HiddenStore<'a>,
    cache: KvCache<B>,
    back: BackwardWorkspace<B>,
    /// The block's input and the derivatives: `[tokens, hidden_size]`.
    input: B::Buffer,
    d: B::Buffer,
    /// The first row of each batch in scratch.
    rows: Vec<usize>,
    /// The next block.
    layer: usize,
    /// Where finished blocks are saved, and the key of everything that a block's result depends on.
    state: StateFolder<'a>,
    key: String,
}

/// The parameters of the current block, on the device.
struct OneBlock<'m, B: Train> {
    backend: &'m mut B,
    parameters: &'m mut BlockParameters<B>,
}

impl<B: Train> Trainable<B> for OneBlock<'_, B> {
    fn trained(&mut self) -> (&mut B, Vec<&mut Parameter<B>>) {
        (self.backend, self.parameters.all_mut().collect())
    }
}

impl<'a, B: Train> BlockByBlock<'a, B> {
    /// Writes the embeddings of all batches into scratch.
    ///
    /// # Errors
    /// `context_overflow` for a context longer than the model's; errors of reading and of scratch.
    pub async fn begin(
        mut backend: B,
        (checkpoint, precision): (&'a Checkpoint, Precision),
        (texts, capacity): (&'a [Vec<Sequence>], BatchCapacity),
        options: BlockOptions,
        scratch: &'a dyn Scratch,
        (state, key): (StateFolder<'a>, String),
    ) -> Result<Self> {
        let config = checkpoint.config();
        config.check_context(capacity.context)?;
        backend.set_sums(Sums::Whole);
        let len = capacity.tokens * config.hidden_size;
        let cache = KvCache::new(
            &mut backend,
            config,
            1,
            capacity.tokens.div_ceil(capacity.context),
            capacity.context,
        )?;
        let back = BackwardWorkspace::new(&mut backend, config, capacity.tokens)?;
        let (input, d) = (backend.buffer(Element::F32, len)?, backend.buffer(Element::F32, len)?);
        let work =
            Workspace::new(&mut backend, config, capacity.tokens)?.keeping_inputs(&mut backend, config)?;
        let mut runner = Runner::new(backend, config, capacity.tokens)?;
        runner.work = work;
        let (store, rows) = (HiddenStore::new(scratch), Vec::new());
        let mut blocks = Self {
            checkpoint,
            texts,
            precision,
            options,
            runner,
            store,
            cache,
            back,
            input,
            d,
            rows,
            layer: 0,
            state,
            key,
        };
        blocks.embed().await?;
        Ok(blocks)
    }

    async fn embed(&mut self) -> Result<()> {
        let Self { checkpoint, texts, runner, store, rows, .. } = self;
        let ends = EmbeddingAndHead::load(&mut runner.backend, checkpoint, LoadOptions::EXACT).await?;
        for slot in [ORIGINAL, TRAINED] {
            store.scratch.delete(slot).await?;
        }
        let (width, mut first) = (runner.config.hidden_size, 0);
        for batch in texts.iter() {
            let (_, tokens) = segments_of(batch.iter().map(|row| row.tokens.as_slice()));
            runner.embed(&ends, &tokens)?;
            for name in [ORIGINAL, TRAINED] {
                let slot = StoreSlot { name, first };
                store.save_hidden(&mut runner.backend, &runner.hidden, width, slot).await?;
            }
            rows.push(first);
            first += tokens.len();
        }
        Ok(())
    }

    /// Trains the next block from `start` unless an earlier run has saved it, then runs the texts through it.
    ///
    /// # Errors
    /// `non_finite` naming the block whose loss is not finite; `cancelled`; errors of the device and the folder.
    pub async fn train(&mut self, start: Start<'_>, control: &dyn Control) -> Result<BlockReport> {
        let layer = self.layer;
        let Self { runner: Runner { backend, config, .. }, checkpoint, precision, options, .. } = self;
        let mut parameters = of_block(backend, checkpoint, layer, *precision).await?;
        let mut block = Block::empty();
        let mut of = OneBlock { backend, parameters: &mut parameters };
        start.initialize(&mut of, options.learned_scales).await?;
        let is_kept = self.state.restore_block(&mut of, layer, &self.key).await?;
        let optimizer = if is_kept { None } else { Some(Optimizer::new(&mut of, options.optimizer)?) };
        parameters.refresh_weights(backend, config, &mut block).await?;
        self.original(control).await?;
        let mut losses = None;
        if let Some(optimizer) = optimizer {
            losses = Some(self.steps(&mut block, &mut parameters, optimizer, control).await?);
            let mut of = OneBlock { backend: &mut self.runner.backend, parameters: &mut parameters };
            self.state.keep_block(&mut of, layer, &self.key).await?;
        }
        self.run_block(&block, TRAINED, control).await?;
        self.layer += 1;
        Ok(BlockReport { layer, losses })
    }

    /// Runs all steps of the current block. Returns the mean losses of the first and the last tenth.
    async fn steps(
        &mut self,
        block: &mut Block<B>,
        parameters: &mut BlockParameters<B>,
        mut optimizer: Optimizer<B>,
        control: &dyn Control,
    ) -> Result<(f64, f64)> {
        let BlockOptions { schedule, .. } = self.options;
        let (layer, steps) = (self.layer, schedule.steps);
        let layers = self.runner.config.num_hidden_layers as u64;
        let mut losses = Vec::new();
        for step in 0..steps {
            task::yield_point(control).await?;
            let done = layer as u64 * steps + step;
            control.progress(&Progress { phase: "train blocks", done, total: layers * steps, item: "" });
            let batch = (step % self.texts.len().max(1) as u64) as usize;
            let loss = self.backward(block, parameters, batch).await?;
            if !loss.is_finite() {
                return Err(Error::new(
                    ErrorCode::NonFinite,
                    format!("block {layer}, step {}: expected a finite loss but found {loss}", step + 1),
                ));
            }
            losses.push(loss);
            let Runner { backend, config, .. } = &mut self.runner;
            optimizer.step(&mut OneBlock { backend, parameters }, schedule.at(step)).await?;
            parameters.refresh_weights(backend, config, block).await?;
        }
        let tenth = losses.len().div_ceil(10);
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        Ok((mean(&losses[..tenth]), mean(&losses[losses.len() - tenth..])))
    }

    /// Removes the hidden states from scratch.
    ///
    /// # Errors
    /// Errors of scratch.
    pub async fn end(self) -> Result<()> {
        for slot in [ORIGINAL, TRAINED] {
            self.store.scratch.delete(slot).await?;
        }
        Ok(())
    }

    /// Runs the texts through the original's block.
    async fn original(&mut self, control: &dyn Control) -> Result<()> {
        let backend = &mut self.runner.backend;
        let block = Block::load(backend, self.checkpoint, self.layer, LoadOptions::EXACT).await?;
        self.run_block(&block, ORIGINAL, control).await
    }

    async fn run_block(&mut self, block: &Block<B>, slot: &str, control: &dyn Control) -> Result<()> {
        for batch in 0..self.texts.len() {
            task::yield_point(control).await?;
            let segments = self.load(batch, slot).await?;
            let Self { runner, cache, store, rows, .. } = self;
            block.run(runner, &segments, cache, 0, (Stage::Start, Stage::End))?;
            let (width, slot) = (runner.config.hidden_size, StoreSlot { name: slot, first: rows[batch] });
            store.save_hidden(&mut runner.backend, &runner.hidden, width, slot).await?;
        }
        Ok(())
    }

    /// Loads a batch's hidden states as the block's input.
    async fn load(&mut self, batch: usize, slot: &str) -> Result<Vec<Segment>> {
        let (segments, tokens) = segments_of(self.texts[batch].iter().map(|row| row.tokens.as_slice()));
        let Runner { backend, hidden, config, .. } = &mut self.runner;
        let slot = StoreSlot { name: slot, first: self.rows[batch] };
        self.store.load_hidden(backend, hidden, tokens.len(), config.hidden_size, slot).await?;
        Ok(segments)
    }

    /// Sets the gradients to those of one batch's loss, and returns the loss.
    async fn backward(
        &mut self,
        block: &Block<B>,
        parameters: &mut BlockParameters<B>,
        batch: usize,
    ) -> Result<f64> {
        zero_gradients(&mut OneBlock { backend: &mut self.runner.backend, parameters: &mut *parameters })?;
        let segments = self.load(batch, TRAINED).await?;
        let Self { runner, cache, store, back, input, d, rows, .. } = self;
        let (count, width) = (runner.hidden.count, runner.config.hidden_size);
        let len = count * width;
        let mut found = vec![0.0; len];
        runner.backend.read(&runner.hidden.residual, 0, &mut found).await?;
        runner.backend.write_f32(input, &found)?;
        block.run(runner, &segments, cache, 0, (Stage::Start, Stage::End))?;
        let mut change = vec![0.0; len];
        runner.backend.read(&runner.hidden.residual, 0, &mut found).await?;
        runner.backend.read(&runner.hidden.delta, 0, &mut change).await?;
        let slot = StoreSlot { name: ORIGINAL, first: rows[batch] };
        let wanted = store.fetch(count, width, slot).await?;
        let (mut off, mut all) = (0.0, 0.0);
        for ((found, change), wanted) in found.iter_mut().zip(&change).zip(wanted.iter()) {
            *found += change - wanted;
            off += f64::from(*found) * f64::from(*found);
            all += f64::from(*wanted) * f64::from(*wanted);
        }
        let share = (2.0 / all.max(f64::MIN_POSITIVE)) as f32;
        found.iter_mut().for_each(|found| *found *= share);
        runner.backend.write_f32(d, &found)?;
        block.backward(runner, &segments, (cache, 0), input, parameters, (back, d))?;
        Ok(off / all.max(f64::MIN_POSITIVE))
    }
}
