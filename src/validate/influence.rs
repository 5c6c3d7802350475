//! What a model's predictions lose when one of its linear layers alone is changed: how much each layer matters.
//!
//! The error of a layer's own output says little of that: what comes after it may damp or magnify it. So each change is
//! followed to the end of the model: the text as it is, and one more stream of hidden states for every change made so far, go
//! through the blocks side by side, one block in memory at a time, and the streams' predictions are compared at the end. With
//! `L` blocks of 7 layers that is about `3.5 L^2` blocks' work on few tokens: less than calibrating takes. Floor 7.

use super::metrics::kl_divergence;
use crate::backend::{Backend, Element};
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::model::block::{Block, Hidden, Position, Site, Workspace};
use crate::model::decoder::{Ends, RopeTable, chunk_tokens, new_hidden};
use crate::model::names::Linear;
use crate::model::spill::{self, Place};
use crate::model::weights::Replacement;
use crate::model::{Checkpoint, KvCache, LoadOptions, ModelConfig};
use crate::quant::{Activations, PackedTensor};
use crate::task::{self, Control, Progress};
use std::ops::Range;

/// The texts that are read at most, and tokens of each. Mean divergences of 512 tokens rank layers well enough; the price
/// grows with every one of them.
const TEXTS: usize = 4;
const TEXT_TOKENS: usize = 128;

/// Multiplications of the head for each stream and text: of large vocabularies only the last tokens are compared.
const HEAD_WORK: usize = 1 << 29;
const LEAST_COMPARED: usize = 16;

const LOAD: LoadOptions =
    LoadOptions { activations: Some(Activations::F32), grid: None, dense_as_f16: false };

/// What the predictions lose by one change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Influence {
    /// The block.
    pub layer: usize,
    /// The layer in it.
    pub linear: Linear,
    /// Mean divergence of the predictions from the unchanged model's, in nats a token.
    pub divergence: f64,
}

/// Measures the influence of each layer that `change` gives other weights for, on the beginnings of the first of `texts`.
///
/// # Errors
/// Whatever `change`, running the model and scratch meet; `cancelled`.
pub async fn influence<B: Backend>(
    checkpoint: &Checkpoint,
    texts: &[Vec<u32>],
    mut change: impl AsyncFnMut(usize, Linear) -> Result<Option<PackedTensor>>,
    backend: B,
    scratch: &dyn Scratch,
    control: &dyn Control,
) -> Result<Vec<Influence>> {
    let mut streams = Streams::new(checkpoint, texts, backend, scratch)?;
    streams.embed().await?;
    let layers = checkpoint.config().num_hidden_layers;
    let mut changes: Vec<(usize, Linear)> = Vec::new();
    for layer in 0..layers {
        let mut block = Block::load(&mut streams.backend, checkpoint, layer, LOAD).await?;
        for earlier in 1..=changes.len() {
            streams.through(&block, earlier, earlier, control).await?;
        }
        for site in Site::ALL {
            let mut any = false;
            for &linear in site.linears() {
                control.progress(&Progress {
                    phase: "influence",
                    done: layer as u64,
                    total: layers as u64,
                    item: &linear.module(layer),
                });
                let Some(tensor) = change(layer, linear).await? else { continue };
                any = true;
                changes.push((layer, linear));
                let replaced = [(linear, Replacement::Packed(&tensor))];
                block.replace(&mut streams.backend, checkpoint, layer, site, &replaced, LOAD).await?;
                streams.through(&block, UNCHANGED, changes.len(), control).await?;
            }
            if any {
                block.replace(&mut streams.backend, checkpoint, layer, site, &[], LOAD).await?;
            }
        }
        streams.through(&block, UNCHANGED, UNCHANGED, control).await?;
    }
    let divergences = streams.divergences(changes.len(), control).await?;
    for stream in 0..=changes.len() {
        scratch.delete(&blob(stream)).await?;
    }
    let found = changes.into_iter().zip(divergences);
    Ok(found.map(|((layer, linear), divergence)| Influence { layer, linear, divergence }).collect())
}

/// The stream of the model as it is; the changes' follow.
const UNCHANGED: usize = 0;

fn blob(stream: usize) -> String {
    format!("influence-{stream}")
}

/// The texts on their way through the model, once for each change. In scratch each stream has the texts end to end.
struct Streams<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    texts: Vec<&'a [u32]>,
    scratch: &'a dyn Scratch,
    backend: B,
    work: Workspace<B>,
    hidden: Hidden<B>,
    rope: RopeTable<B>,
    cache: KvCache<B>,
    context: usize,
    chunk: usize,
}

impl<'a, B: Backend> Streams<'a, B> {
    fn new(
        checkpoint: &'a Checkpoint,
        texts: &'a [Vec<u32>],
        mut backend: B,
        scratch: &'a dyn Scratch,
    ) -> Result<Self> {
        let config = checkpoint.config();
        let texts: Vec<&[u32]> =
            texts.iter().take(TEXTS).map(|text| &text[..text.len().min(TEXT_TOKENS)]).collect();
        let context = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        config.check_context(context)?;
        let chunk = chunk_tokens(config).min(context.max(1));
        Ok(Self {
            checkpoint,
            config,
            texts,
            scratch,
            work: Workspace::new(&mut backend, config, chunk)?,
            hidden: new_hidden(&mut backend, config, chunk)?,
            rope: RopeTable::default(),
            cache: KvCache::new(&mut backend, config, 1, context)?,
            backend,
            context,
            chunk,
        })
    }

    /// The first row of each text, and its tokens.
    fn texts(&self) -> Vec<(usize, &'a [u32])> {
        let mut row = 0;
        let place = |&text: &&'a [u32]| {
            row += text.len();
            (row - text.len(), text)
        };
        self.texts.iter().map(place).collect()
    }

    async fn embed(&mut self) -> Result<()> {
        let ends = Ends::load(&mut self.backend, self.checkpoint, LOAD).await?;
        for (row, text) in self.texts() {
            for (index, tokens) in text.chunks(self.chunk).enumerate() {
                ends.embed(&mut self.backend, tokens, &mut self.hidden, &mut self.work)?;
                self.store(UNCHANGED, row + index * self.chunk).await?;
            }
        }
        Ok(())
    }

    /// Takes the stream `from` through a block, to be the stream `to`.
    async fn through(
        &mut self,
        block: &Block<B>,
        from: usize,
        to: usize,
        control: &dyn Control,
    ) -> Result<()> {
        for (row, text) in self.texts() {
            for past in (0..text.len()).step_by(self.chunk) {
                task::checkpoint(control).await?;
                self.bring_back(from, row + past, self.chunk.min(text.len() - past)).await?;
                let Self { config, backend, work, hidden, rope, cache, context, .. } = self;
                let rope = rope.reserve(backend, config, *context)?;
                let position = Position { past, capacity: *context, rope, cache: cache.layer_mut(0) };
                block.forward(backend, config, hidden, work, position)?;
                self.store(to, row + past).await?;
            }
        }
        Ok(())
    }

    /// The mean divergence of the predictions of each of `changes` streams from those of the unchanged one.
    async fn divergences(&mut self, changes: usize, control: &dyn Control) -> Result<Vec<f64>> {
        let ends = Ends::load(&mut self.backend, self.checkpoint, LOAD).await?;
        let vocab = self.config.vocab_size;
        let most = (HEAD_WORK / (vocab * self.config.hidden_size).max(1)).max(LEAST_COMPARED);
        let (mut sums, mut count) = (vec![0.0; changes], 0);
        for (row, text) in self.texts() {
            let first = text.len() - text.len().min(most);
            for from in (first..text.len()).step_by(self.chunk) {
                let rows = row + from..row + text.len().min(from + self.chunk);
                let expected = self.logits(&ends, UNCHANGED, rows.clone()).await?;
                count += rows.len();
                for (stream, sum) in (1..).zip(&mut sums) {
                    task::checkpoint(control).await?;
                    let found = self.logits(&ends, stream, rows.clone()).await?;
                    let pairs = expected.chunks_exact(vocab).zip(found.chunks_exact(vocab));
                    *sum += pairs.map(|(expected, found)| kl_divergence(expected, found)).sum::<f64>();
                }
            }
        }
        Ok(sums.into_iter().map(|sum| sum / count.max(1) as f64).collect())
    }

    /// Logits, `[rows, vocab_size]`.
    async fn logits(&mut self, ends: &Ends<B>, stream: usize, rows: Range<usize>) -> Result<Vec<f32>> {
        self.bring_back(stream, rows.start, rows.len()).await?;
        let mut found = vec![0.0; rows.len() * self.config.vocab_size];
        let mut logits = self.backend.buffer(Element::F32, found.len())?;
        ends.head(&mut self.backend, &mut self.hidden, &mut self.work, &mut logits)?;
        self.backend.read(&logits, 0, &mut found).await?;
        Ok(found)
    }

    async fn store(&mut self, stream: usize, row: usize) -> Result<()> {
        let place = Place { scratch: self.scratch, blob: &blob(stream), first: row };
        spill::save_hidden(&mut self.backend, &self.hidden, self.config.hidden_size, place).await
    }

    async fn bring_back(&mut self, stream: usize, row: usize, count: usize) -> Result<()> {
        let place = Place { scratch: self.scratch, blob: &blob(stream), first: row };
        let width = self.config.hidden_size;
        spill::load_hidden(&mut self.backend, &mut self.hidden, count, width, place).await
    }
}
