//! Runs calibration samples through a model, one block at a time, stopping at each input of linear layers.
//!
//! At each stop the caller gets the statistics of the input and may replace the weights of the layers that read it. The
//! samples continue through the replaced weights. Every layer is therefore calibrated on the outputs of the quantized
//! layers before it ("true-sequential"), and every step runs once. Memory holds one block, one chunk of tokens and the
//! statistics of one input. Everything else is in scratch.
//!
//! A walk that measures a [drift](Statistics::drift) also runs the samples through the original blocks, and then holds
//! two blocks.

mod parent;
mod slots;

pub use slots::slots;

use super::moments::MomentSums;
use super::samples::Samples;
use crate::backend::{Backend, Sums};
use crate::error::{Error, ErrorCode, Result};
use crate::format::passing::ResidentTensors;
use crate::format::scratch::Scratch;
use crate::model::block::{Block, LinearInput, Stage};
use crate::model::hidden_store::{HiddenStore, StoreSlot};
use crate::model::names::{self, Linear};
use crate::model::runner::{Chunk, LayerStreamed, Runner, StoredState};
use crate::model::weights::WeightSource;
use crate::model::{Checkpoint, LoadOptions};
use crate::quant::{Drift, Hessian};
use crate::task::{self, Control, Progress};
use slots::Stream;

/// Optional statistics of linear layers' inputs, besides their second moments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Statistics {
    /// The drift from the inputs in the original model. The samples then also run through that model.
    pub drift: bool,
    /// The mean absolute value of each feature.
    pub mean_absolute: bool,
}

/// Options of a walk.
#[derive(Clone, Copy, Debug)]
pub struct WalkOptions {
    /// The start of the walk.
    pub start: Start,
    /// The statistics to measure.
    pub statistics: Statistics,
    /// Whether the stored bytes of the current block stay in memory, for callers that read its weights again.
    pub holds_blocks: bool,
    /// The phase in progress reports.
    pub phase: &'static str,
}

/// A run of samples through a model.
pub struct Walk<'a, B: Backend> {
    model: LayerStreamed<'a, B>,
    samples: &'a Samples,
    options: WalkOptions,
    /// By [`Stream`]: the current block with replaced weights, and the same block of the checkpoint.
    blocks: [Option<Block<B>>; 2],
    /// The stored tensors of the current block, if they are kept.
    held: Option<ResidentTensors>,
    layer: usize,
    /// The position of the samples in the block; `None` before its first input.
    input: Option<LinearInput>,
}

/// The statistics of one input.
pub struct InputStatistics {
    /// The input.
    pub input: LinearInput,
    /// Its second moments.
    pub hessian: Hessian,
    /// Its drift from the original model's input, if requested.
    pub drift: Option<Drift>,
    /// The mean absolute value of each feature, if requested.
    pub mean_absolute: Option<Vec<f32>>,
}

impl<'a, B: Backend> Walk<'a, B> {
    /// Starts a walk. Writes the embeddings of all samples to scratch, unless it continues an earlier walk.
    ///
    /// # Errors
    /// `context_overflow` for samples longer than the model's context, `invalid_argument` for unknown tokens, and
    /// errors of reading and of scratch.
    pub async fn begin(
        checkpoint: &'a Checkpoint,
        samples: &'a Samples,
        mut backend: B,
        scratch: &'a dyn Scratch,
        options: WalkOptions,
        control: &dyn Control,
    ) -> Result<Self> {
        // Statistics do not need the same bits for a token alone and in a batch.
        backend.set_sums(Sums::Reordered);
        samples.check_vocabulary(checkpoint.config().vocab_size)?;
        let context = samples.windows.iter().map(Vec::len).max().unwrap_or(0);
        let model = LayerStreamed::new(checkpoint, LoadOptions::EXACT, context, backend, scratch)?;
        let mut walk =
            Self { model, samples, options, blocks: [None, None], held: None, layer: 0, input: None };
        match options.start {
            Start::GoOn(layer) => walk.layer = layer,
            Start::Embed | Start::EmbedKept => walk.embed(control).await?,
        }
        Ok(walk)
    }

    async fn embed(&mut self, control: &dyn Control) -> Result<()> {
        let ends = self.model.load_embedding_and_head().await?;
        let slots: Vec<&str> =
            self.streams().iter().map(|&stream| stream.before(0, self.options.start.keeps())).collect();
        for slot in &slots {
            self.model.store.scratch.delete(slot).await?;
        }
        let mut row = 0;
        for window in &self.samples.windows {
            self.model.embed(&ends, window, row, &slots, control).await?;
            row += window.len();
        }
        Ok(())
    }

    /// Loads a block. The samples are before it.
    pub async fn enter_block(&mut self, layer: usize) -> Result<()> {
        self.held = None;
        if self.options.holds_blocks {
            let store = self.model.checkpoint.store();
            let of_block = names::block(layer);
            let tensors = store.names().filter(|name| name.starts_with(&of_block)).map(str::to_owned);
            self.held = Some(store.hold(tensors));
        }
        for &stream in self.streams() {
            self.blocks[stream as usize] = Some(self.model.load_block(layer).await?);
        }
        (self.layer, self.input) = (layer, None);
        Ok(())
    }

    /// Runs all samples to the next input of the block, and returns its statistics.
    ///
    /// # Errors
    /// `non_finite` if activations are not finite: the model or its quantized part is broken.
    pub async fn next_input(&mut self, control: &dyn Control) -> Result<InputStatistics> {
        let input = match self.input {
            None => LinearInput::Qkv,
            Some(input) => LinearInput::ALL[input as usize + 1],
        };
        let Statistics { drift: follows, mean_absolute: measures_means } = self.options.statistics;
        let width = input.width(&self.model.runner.config);
        if follows {
            for (sample, chunk) in self.chunks() {
                self.advance(input, sample, chunk, Stream::Original, control).await?;
                let LayerStreamed { runner: Runner { backend, work, .. }, store, .. } = &mut self.model;
                let slot = StoreSlot { name: Stream::Original.activations(input), first: chunk.row };
                store.save(backend, work.at(input), chunk.count, width, slot).await?;
            }
        }
        let tokens = self.model.runner.work.tokens;
        let mut moments = MomentSums::new(&mut self.model.runner.backend, tokens, width, follows)?;
        let mut absolute = vec![0.0; if measures_means { width } else { 0 }];
        let mut original = HiddenStore::new(self.model.store.scratch);
        for (sample, chunk) in self.chunks() {
            self.advance(input, sample, chunk, Stream::Quantized, control).await?;
            let LayerStreamed { runner: Runner { backend, work, .. }, store, .. } = &mut self.model;
            let slot = |stream: Stream| StoreSlot { name: stream.activations(input), first: chunk.row };
            let (rows, count) = (work.at(input), chunk.count);
            let values = store.save(backend, rows, count, width, slot(Stream::Quantized)).await?;
            if measures_means {
                for row in values.chunks_exact(width) {
                    for (sum, value) in absolute.iter_mut().zip(row) {
                        *sum += f64::from(value.abs());
                    }
                }
            }
            if follows {
                let original = original.fetch(count, width, slot(Stream::Original)).await?;
                moments.join(backend, values, original)?;
            }
            for tile in 0..moments.tiles() {
                task::yield_point(control).await?;
                moments.add(backend, tile, count, rows)?;
            }
            backend.flush()?;
        }
        self.input = Some(input);
        let tokens = self.samples.tokens();
        let (hessian, drift) = moments.read(&mut self.model.runner.backend, tokens).await?;
        if !hessian.is_finite() {
            return Err(Error::new(
                ErrorCode::NonFinite,
                format!("the inputs of {} are not finite on the calibration samples", self.module(input)),
            ));
        }
        let mean = |sum: f64| (sum / tokens.max(1) as f64) as f32;
        let mean_absolute = measures_means.then(|| absolute.into_iter().map(mean).collect());
        Ok(InputStatistics { input, hessian, drift, mean_absolute })
    }

    /// Runs a chunk to `input` in one of the models. Saves the residual stream after attention, where it has changed.
    async fn advance(
        &mut self,
        input: LinearInput,
        sample: usize,
        chunk: Chunk,
        stream: Stream,
        control: &dyn Control,
    ) -> Result<()> {
        self.report_moving(input, sample, stream, control);
        task::yield_point(control).await?;
        let from = self.waiting(stream);
        let block = self.blocks[stream as usize].as_ref().ok_or_else(no_block)?;
        self.model.run(block, chunk, from, input.stage(), |_| ()).await?;
        self.model.runner.backend.flush()?;
        if input == LinearInput::GateUp {
            self.model.save_residual(chunk, stream.inside(self.options.start.keeps())).await?;
        }
        Ok(())
    }

    /// Replaces the weights of layers that read the current input. The samples continue through the new weights.
    pub async fn replace(&mut self, sources: &[(Linear, WeightSource<'_>)]) -> Result<()> {
        let (Some(block), Some(input)) = (&mut self.blocks[Stream::Quantized as usize], self.input) else {
            return Err(no_block());
        };
        self.model.replace(block, self.layer, input, sources).await
    }

    /// Runs all samples through the rest of the block.
    pub async fn leave_block(&mut self, control: &dyn Control) -> Result<()> {
        for &stream in self.streams() {
            let (from, to) =
                (self.waiting(stream), stream.before(self.layer + 1, self.options.start.keeps()));
            for (_, chunk) in self.chunks() {
                task::yield_point(control).await?;
                let block = self.blocks[stream as usize].as_ref().ok_or_else(no_block)?;
                self.model.run(block, chunk, from, Stage::End, |_| ()).await?;
                self.model.save_residual(chunk, to).await?;
            }
        }
        (self.blocks, self.held, self.input) = ([None, None], None, None);
        // Deleted only after the last block: overwriting an old file is faster than writing a new one.
        if self.layer + 1 == self.model.runner.config.num_hidden_layers {
            for &stream in self.streams() {
                for input in [LinearInput::GateUp, LinearInput::Down] {
                    self.model.store.scratch.delete(stream.activations(input)).await?;
                }
            }
        }
        Ok(())
    }

    fn streams(&self) -> &'static [Stream] {
        let both = &[Stream::Original, Stream::Quantized];
        if self.options.statistics.drift { both } else { &both[1..] }
    }

    /// All chunks of tokens, each with the index of its sample. The rows of samples are contiguous in scratch.
    fn chunks(&self) -> Vec<(usize, Chunk)> {
        let mut row = 0;
        let mut chunks = Vec::new();
        for (sample, window) in self.samples.windows.iter().enumerate() {
            chunks.extend(self.model.chunks(window.len(), row).map(|chunk| (sample, chunk)));
            row += window.len();
        }
        chunks
    }

    /// Reports progress at `input`: `steps` of [`STEPS_OF_INPUT`]. Half of them are for running the samples, half for
    /// quantizing the layers.
    fn report(&self, input: LinearInput, steps: u64, item: &str, control: &dyn Control) {
        let inputs = LinearInput::ALL.len();
        let place = (self.layer * inputs + input as usize) as u64;
        control.progress(&Progress {
            phase: self.options.phase,
            done: place * STEPS_OF_INPUT + steps,
            total: (self.model.runner.config.num_hidden_layers * inputs) as u64 * STEPS_OF_INPUT,
            item,
        });
    }

    /// Reports that a sample is running to `input`. With a drift, the samples run through the original block first.
    fn report_moving(&self, input: LinearInput, sample: usize, stream: Stream, control: &dyn Control) {
        let (samples, ways) = (self.samples.windows.len(), self.streams().len());
        let gone = sample + if stream == Stream::Quantized { (ways - 1) * samples } else { 0 };
        let steps = STEPS_OF_INPUT / 2 * gone as u64 / (ways * samples) as u64;
        self.report(input, steps, &self.module(input), control);
    }

    /// Reports that `done` of `total` parts of quantizing the layers at the current input are done, with `item` in
    /// progress.
    pub fn report_quantizing(&self, done: u64, total: u64, item: &str, control: &dyn Control) {
        let (half, Some(input)) = (STEPS_OF_INPUT / 2, self.input) else { return };
        self.report(input, half + (half * done.min(total)).checked_div(total).unwrap_or(0), item, control);
    }

    /// The first module that reads the input.
    fn module(&self, input: LinearInput) -> String {
        input.linears()[0].module(self.layer)
    }

    /// The position of the samples, and its slots in scratch.
    fn waiting(&self, stream: Stream) -> StoredState<'static> {
        let kept = self.options.start.keeps();
        let residual = match self.input {
            None | Some(LinearInput::Qkv | LinearInput::O) => stream.before(self.layer, kept),
            Some(LinearInput::GateUp | LinearInput::Down) => stream.inside(kept),
        };
        let activations = self.input.map_or("", |input| stream.activations(input));
        StoredState { input: self.input, residual, activations }
    }
}

fn no_block() -> Error {
    Error::invalid_argument("expected a loaded block but found none")
}

/// Progress steps of one input.
const STEPS_OF_INPUT: u64 = 1000;

/// The start of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// From the embeddings of the samples.
    Embed,
    /// From the embeddings, so that another walk can [`GoOn`](Self::GoOn) before the last block that was entered. Costs
    /// two more copies of the residual streams in scratch.
    EmbedKept,
    /// Before this block, from the scratch of a walk that started with [`EmbedKept`](Self::EmbedKept).
    GoOn(usize),
}

impl Start {
    /// Whether the residual streams before a block stay in scratch until those after it are written.
    fn keeps(self) -> bool {
        self != Self::Embed
    }
}
