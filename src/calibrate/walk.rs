//! Takes calibration samples through a model, one block at a time, stopping at every input of a linear layer.
//!
//! At each stop the caller learns what the layers there are given, and may replace their weights; the samples then go on
//! through the replaced ones. So every layer is calibrated with inputs that the layers before it, already quantized, really
//! make ("true-sequential"), and every step runs once. In memory: one block, one run of tokens, one statistic; all else is
//! in scratch. A walk that [follows the original](Walk::begin) takes the samples through the original blocks as well, and
//! says how far the inputs have drifted from those that the original model makes. Floor 7.

mod blobs;
mod parent;

pub use blobs::BLOBS;

use super::moments::MomentSums;
use super::samples::Samples;
use crate::backend::{Backend, Segment, Sums};
use crate::error::{Error, Result};
use crate::format::passing::Held;
use crate::format::scratch::Scratch;
use crate::model::block::{Block, Hidden, Position, Site, Workspace};
use crate::model::decoder::{Ends, RopeTable, chunk_tokens, new_hidden};
use crate::model::names::{self, Linear};
use crate::model::spill::{Carrier, Place};
use crate::model::weights::Replacement;
use crate::model::{Checkpoint, KvCache, LoadOptions, ModelConfig};
use crate::quant::{Activations, Drift, Hessian};
use crate::task::{self, Control, Progress};
use blobs::{Stream, activations};

/// Samples on their way through a model.
pub struct Walk<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    samples: &'a Samples,
    scratch: &'a dyn Scratch,
    backend: B,
    work: Workspace<B>,
    hidden: Hidden<B>,
    rope: RopeTable<B>,
    cache: KvCache<B>,
    carrier: Carrier,
    /// Longest window.
    context: usize,
    chunk: usize,
    block: Option<Block<B>>,
    /// Whether the samples also go through the original blocks.
    follows_original: bool,
    /// The same block as it is in the checkpoint.
    original: Option<Block<B>>,
    holds_blocks: bool,
    /// The block's tensors.
    held: Option<Held>,
    layer: usize,
    /// Where in the block the samples are; `None` before it.
    site: Option<Site>,
    /// Whether the residual streams before a block stay until they are known after it.
    kept: bool,
    /// What reports of progress call the work.
    phase: &'static str,
    /// Whether `absolute` is added up.
    measures_means: bool,
    /// Sum of the absolute values of each feature at the site, over all tokens.
    absolute: Vec<f64>,
}

/// Tokens of one sample that run together.
#[derive(Clone, Copy)]
struct Run {
    sample: usize,
    /// The first token's position in the sample.
    past: usize,
    count: usize,
    /// The first token's row in scratch, where the samples stand end to end.
    row: usize,
}

/// What is known of the inputs of the layers at a site.
pub struct Inputs {
    /// Which site.
    pub site: Site,
    /// Second moments of the inputs.
    pub hessian: Hessian,
    /// How far they are from the original model's, where the walk follows it.
    pub drift: Option<Drift>,
}

/// Calibration sees activations as they are.
const LOAD: LoadOptions =
    LoadOptions { activations: Some(Activations::F32), grid: None, dense_as_f16: false };

impl<'a, B: Backend> Walk<'a, B> {
    /// Puts the embeddings of all samples into scratch, unless a walk before has left more there. With `follows_original`
    /// the samples go through the original blocks too, for [`Inputs::drift`].
    ///
    /// # Errors
    /// `context_overflow` for samples longer than the model was made for, `invalid_argument` for unknown tokens, and
    /// whatever reading and scratch meet.
    pub async fn begin(
        checkpoint: &'a Checkpoint,
        samples: &'a Samples,
        mut backend: B,
        scratch: &'a dyn Scratch,
        start: Start,
        follows_original: bool,
        control: &dyn Control,
    ) -> Result<Self> {
        let config = checkpoint.config();
        // Nothing here depends on whether a token comes alone.
        backend.set_sums(Sums::Reordered);
        samples.check_vocabulary(config.vocab_size)?;
        let context = samples.windows.iter().map(Vec::len).max().unwrap_or(0);
        config.check_context(context)?;
        let chunk = chunk_tokens(config).min(context.max(1));
        let mut walk = Self {
            checkpoint,
            config,
            samples,
            scratch,
            work: Workspace::new(&mut backend, config, chunk)?,
            hidden: new_hidden(&mut backend, config, chunk)?,
            rope: RopeTable::default(),
            cache: KvCache::new(&mut backend, config, 1, 1, context)?,
            carrier: Carrier::default(),
            backend,
            context,
            chunk,
            block: None,
            follows_original,
            original: None,
            holds_blocks: false,
            held: None,
            layer: 0,
            site: None,
            kept: false,
            phase: "calibrate",
            measures_means: false,
            absolute: Vec::new(),
        };
        walk.kept = start != Start::Embed;
        match start {
            Start::GoOn(layer) => walk.layer = layer,
            Start::Embed | Start::EmbedKept => walk.embed(control).await?,
        }
        Ok(walk)
    }

    async fn embed(&mut self, control: &dyn Control) -> Result<()> {
        let ends = Ends::load(&mut self.backend, self.checkpoint, LOAD).await?;
        for &stream in self.streams() {
            self.scratch.delete(self.residual_before(0, stream)).await?;
        }
        for run in self.runs() {
            task::checkpoint(control).await?;
            let tokens = &self.samples.windows[run.sample][run.past..run.past + run.count];
            ends.embed(&mut self.backend, tokens, &mut self.hidden, &mut self.work)?;
            for &stream in self.streams() {
                self.save_hidden(run, self.residual_before(0, stream)).await?;
            }
        }
        Ok(())
    }

    /// Gives the work another name than `calibrate` in reports of progress.
    #[must_use]
    pub fn in_phase(self, phase: &'static str) -> Self {
        Self { phase, ..self }
    }

    /// Whether [`mean_absolute`](Self::mean_absolute) will be asked for.
    #[must_use]
    pub fn measuring_means(self, wanted: bool) -> Self {
        Self { measures_means: wanted, ..self }
    }

    /// Whether the stored bytes of each block stay in memory while the samples are in it, for who reads its weights again.
    #[must_use]
    pub fn holding_blocks(self, wanted: bool) -> Self {
        Self { holds_blocks: wanted, ..self }
    }

    /// Loads the next block; the samples stand in front of it.
    pub async fn enter_block(&mut self, layer: usize) -> Result<()> {
        self.held = None;
        if self.holds_blocks {
            let store = self.checkpoint.store();
            let of_block = names::block(layer);
            let tensors = store.names().filter(|name| name.starts_with(&of_block)).map(str::to_owned);
            self.held = Some(store.hold(tensors));
        }
        self.block = Some(Block::load(&mut self.backend, self.checkpoint, layer, LOAD).await?);
        if self.follows_original {
            self.original = Some(Block::load(&mut self.backend, self.checkpoint, layer, LOAD).await?);
        }
        self.layer = layer;
        self.site = None;
        Ok(())
    }

    /// Takes all samples to the next site of the block, and returns what they are there.
    ///
    /// # Errors
    /// `non_finite` where the activations are no numbers: the model, or what was made of it, is broken.
    pub async fn next_site(&mut self, control: &dyn Control) -> Result<Inputs> {
        let site = match self.site {
            None => Site::Attention,
            Some(site) => Site::ALL[Site::ALL.iter().position(|&other| other == site).unwrap_or(0) + 1],
        };
        let width = site.width(self.config);
        if self.follows_original {
            self.move_original(site, control).await?;
        }
        let mut moments = MomentSums::new(&mut self.backend, self.chunk, width, self.follows_original)?;
        self.absolute = vec![0.0; width];
        let mut original = Carrier::default();
        for run in self.runs() {
            self.report_moving(site, run, Stream::Quantized, control);
            task::checkpoint(control).await?;
            self.bring_back(run, Stream::Quantized).await?;
            self.step(site, run.past, Stream::Quantized)?;
            self.backend.flush()?;
            self.keep_residual(site, run, Stream::Quantized).await?;
            let blob = activations(site, Stream::Quantized);
            let place = Place { scratch: self.scratch, blob, first: run.row };
            let rows =
                self.carrier.save(&mut self.backend, self.work.at(site), run.count, width, place).await?;
            if self.measures_means {
                for row in rows.chunks_exact(width) {
                    for (sum, value) in self.absolute.iter_mut().zip(row) {
                        *sum += f64::from(value.abs());
                    }
                }
            }
            if self.follows_original {
                let blob = activations(site, Stream::Original);
                let place = Place { scratch: self.scratch, blob, first: run.row };
                let original = original.fetch(run.count, width, place).await?;
                moments.join(&mut self.backend, rows, original)?;
            }
            for tile in 0..moments.tiles() {
                task::checkpoint(control).await?;
                moments.add(&mut self.backend, tile, run.count, self.work.at(site))?;
            }
            self.backend.flush()?;
        }
        self.site = Some(site);
        let (hessian, drift) = moments.read(&mut self.backend, self.samples.tokens()).await?;
        if !hessian.is_finite() {
            return Err(Error::new(
                crate::error::ErrorCode::NonFinite,
                format!("the inputs of {} are not finite on the calibration samples", self.module(site)),
            ));
        }
        Ok(Inputs { site, hessian, drift })
    }

    /// Takes all samples to the site in the original model.
    async fn move_original(&mut self, site: Site, control: &dyn Control) -> Result<()> {
        for run in self.runs() {
            self.report_moving(site, run, Stream::Original, control);
            task::checkpoint(control).await?;
            self.bring_back(run, Stream::Original).await?;
            self.step(site, run.past, Stream::Original)?;
            self.backend.flush()?;
            self.keep_residual(site, run, Stream::Original).await?;
            let blob = activations(site, Stream::Original);
            let place = Place { scratch: self.scratch, blob, first: run.row };
            let width = site.width(self.config);
            self.carrier.save(&mut self.backend, self.work.at(site), run.count, width, place).await?;
        }
        Ok(())
    }

    /// The mean of the absolute value of each feature at the site where the samples stand, in a walk that
    /// [measures](Self::measuring_means) it; else zeros.
    pub fn mean_absolute(&self) -> Vec<f32> {
        let tokens = self.samples.tokens().max(1) as f64;
        self.absolute.iter().map(|sum| (sum / tokens) as f32).collect()
    }

    /// Replaces matrices that read the site where the samples stand. They go on through the new ones. After a failure
    /// there is no block.
    pub async fn replace(&mut self, site: Site, replaced: &[(Linear, Replacement<'_>)]) -> Result<()> {
        let Some(block) = self.block.take() else {
            return Err(Error::invalid_argument("expected a block that was entered"));
        };
        let block =
            block.replace(&mut self.backend, self.checkpoint, self.layer, site, replaced, LOAD).await?;
        self.block = Some(block);
        Ok(())
    }

    /// Takes all samples through the rest of the block.
    pub async fn leave_block(&mut self, control: &dyn Control) -> Result<()> {
        for &stream in self.streams() {
            for run in self.runs() {
                task::checkpoint(control).await?;
                self.bring_back(run, stream).await?;
                let block = if stream == Stream::Original { &self.original } else { &self.block };
                if let Some(block) = block {
                    block.finish(&mut self.backend, &mut self.hidden, &mut self.work)?;
                }
                self.save_hidden(run, self.residual_before(self.layer + 1, stream)).await?;
            }
        }
        (self.block, self.original, self.held) = (None, None, None);
        self.site = None;
        // Until then they are written over: the system takes longer over a new file than over an old one.
        if self.layer + 1 == self.config.num_hidden_layers {
            for &stream in self.streams() {
                for site in [Site::Mlp, Site::Down] {
                    self.scratch.delete(activations(site, stream)).await?;
                }
            }
        }
        Ok(())
    }

    fn streams(&self) -> &'static [Stream] {
        if self.follows_original { &[Stream::Original, Stream::Quantized] } else { &[Stream::Quantized] }
    }

    /// Every run of tokens, sample by sample.
    fn runs(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut row = 0;
        for (sample, window) in self.samples.windows.iter().enumerate() {
            for past in (0..window.len()).step_by(self.chunk) {
                let count = self.chunk.min(window.len() - past);
                runs.push(Run { sample, past, count, row });
                row += count;
            }
        }
        runs
    }

    /// Tells how far the work at `site` is: `steps` of [`STEPS_OF_SITE`], half of which are for the samples on their way
    /// and half for what is made of the layers there.
    fn report(&self, site: Site, steps: u64, item: &str, control: &dyn Control) {
        let sites = Site::ALL.len();
        let place = (self.layer * sites + site as usize) as u64;
        control.progress(&Progress {
            phase: self.phase,
            done: place * STEPS_OF_SITE + steps,
            total: (self.config.num_hidden_layers * sites) as u64 * STEPS_OF_SITE,
            item,
        });
    }

    /// Tells that a run of tokens is on its way to `site`: where the walk follows the original, that way is gone first.
    fn report_moving(&self, site: Site, run: Run, stream: Stream, control: &dyn Control) {
        let (samples, ways) = (self.samples.windows.len(), self.streams().len());
        let gone = run.sample + if stream == Stream::Quantized { (ways - 1) * samples } else { 0 };
        let steps = STEPS_OF_SITE / 2 * gone as u64 / (ways * samples) as u64;
        self.report(site, steps, &self.module(site), control);
    }

    /// Tells that `done` of `total` parts of the work on the layers at `site` are done, now on `item`.
    pub fn report_quantizing(&self, site: Site, done: u64, total: u64, item: &str, control: &dyn Control) {
        let half = STEPS_OF_SITE / 2;
        self.report(site, half + (half * done.min(total)).checked_div(total).unwrap_or(0), item, control);
    }

    /// The first module that reads the site.
    fn module(&self, site: Site) -> String {
        site.linears()[0].module(self.layer)
    }

    /// From the site before to `site`.
    fn step(&mut self, site: Site, past: usize, stream: Stream) -> Result<()> {
        let Self { config, backend, work, hidden, rope, cache, context, .. } = self;
        let block = if stream == Stream::Original { &self.original } else { &self.block };
        let Some(block) = block else {
            return Err(Error::invalid_argument("expected a block that was entered"));
        };
        match site {
            Site::Attention => block.to_attention(backend, hidden, work),
            Site::Output => {
                let rope = rope.reserve(backend, config, *context)?;
                let segments = &[Segment::causal(past, hidden.count)];
                let position = Position { segments, capacity: *context, rope, cache: cache.layer_mut(0) };
                block.to_output(backend, config, hidden.count, work, position)
            }
            Site::Mlp => block.to_mlp(backend, hidden, work),
            Site::Down => block.to_down(backend, config, hidden.count, work),
        }
    }

    /// Brings a run back to where it stands: its residual stream, and its activations at the last site.
    async fn bring_back(&mut self, run: Run, stream: Stream) -> Result<()> {
        self.bring_back_divided(run, stream, None).await
    }

    /// The same, with each activation divided by its feature's scale.
    async fn bring_back_divided(&mut self, run: Run, stream: Stream, scales: Option<&[f32]>) -> Result<()> {
        let (scratch, width) = (self.scratch, self.config.hidden_size);
        let residual = Place { scratch, blob: self.residual(stream), first: run.row };
        let Self { backend, carrier, hidden, work, .. } = self;
        match self.site {
            // The way to the next site leads past the residual stream.
            Some(Site::Attention | Site::Mlp) => hidden.count = run.count,
            None | Some(Site::Output | Site::Down) => {
                carrier.load_hidden(backend, hidden, run.count, width, residual).await?;
            }
        }
        let Some(site) = self.site else { return Ok(()) };
        let place = Place { scratch, blob: activations(site, stream), first: run.row };
        let width = site.width(self.config);
        let divide = |rows: &mut [f32]| {
            let Some(scales) = scales else { return };
            for row in rows.chunks_exact_mut(width) {
                for (value, scale) in row.iter_mut().zip(scales) {
                    *value /= scale;
                }
            }
        };
        carrier.load_changed(backend, work.at_mut(site), run.count, width, place, divide).await
    }

    /// Keeps the residual stream of a run at `site`, where it is another one than before.
    async fn keep_residual(&mut self, site: Site, run: Run, stream: Stream) -> Result<()> {
        if site != Site::Mlp {
            return Ok(());
        }
        self.save_hidden(run, self.residual_inside(stream)).await
    }

    /// The blob of the residual streams where the samples stand.
    fn residual(&self, stream: Stream) -> &'static str {
        match self.site {
            None | Some(Site::Attention | Site::Output) => self.residual_before(self.layer, stream),
            Some(Site::Mlp | Site::Down) => self.residual_inside(stream),
        }
    }

    /// The blob of the residual streams before block `layer`.
    fn residual_before(&self, layer: usize, stream: Stream) -> &'static str {
        let blobs = stream.blobs();
        if self.kept { blobs.residual_between[layer % 2] } else { blobs.residual }
    }

    /// The blob of the residual streams after a block's attention.
    fn residual_inside(&self, stream: Stream) -> &'static str {
        let blobs = stream.blobs();
        if self.kept { blobs.residual_inside } else { blobs.residual }
    }

    async fn save_hidden(&mut self, run: Run, blob: &str) -> Result<()> {
        let place = Place { scratch: self.scratch, blob, first: run.row };
        self.carrier.save_hidden(&mut self.backend, &self.hidden, self.config.hidden_size, place).await
    }
}

/// Steps of the work at one site, in reports of progress.
const STEPS_OF_SITE: u64 = 1000;

/// Where a walk begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the embeddings of the samples.
    Embed,
    /// The same, and so that another walk can [`GoOn`](Self::GoOn) in front of the last block that was entered, at the
    /// price of two more copies of the residual streams in scratch.
    EmbedKept,
    /// In front of this block, with what a walk that began with [`EmbedKept`](Self::EmbedKept) has left in scratch.
    GoOn(usize),
}
