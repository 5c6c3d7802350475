//! What a model's predictions lose when one of its linear layers alone is changed: how much each layer matters.
//!
//! The error of a layer's own output says little of that: what comes after it may damp or magnify it. So each change is
//! followed to the end of the model: the text as it is, and one more stream of hidden states for every change made so far, go
//! through the blocks side by side, one block in memory at a time, and the streams' predictions are compared at the end. With
//! `L` blocks of 7 layers that is about `3.5 L^2` blocks' work on few tokens: less than calibrating takes. Floor 7.

use super::blockwise::Runner;
use super::metrics::kl_divergence;
use crate::backend::Backend;
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::model::block::{Block, Site};
use crate::model::names::Linear;
use crate::model::spill::Place;
use crate::model::weights::Replacement;
use crate::model::{Checkpoint, LoadOptions};
use crate::quant::{Activations, PackedTensor};
use crate::task::{self, Control, Progress};

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
        let mut block = Block::load(&mut streams.runner.backend, checkpoint, layer, LOAD).await?;
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
                let backend = &mut streams.runner.backend;
                block = block.replace(backend, checkpoint, layer, site, &replaced, LOAD).await?;
                streams.through(&block, UNCHANGED, changes.len(), control).await?;
            }
            if any {
                let backend = &mut streams.runner.backend;
                block = block.replace(backend, checkpoint, layer, site, &[], LOAD).await?;
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
    runner: Runner<'a, B>,
    /// Each with the row of its first token.
    texts: Vec<(usize, &'a [u32])>,
    scratch: &'a dyn Scratch,
}

impl<'a, B: Backend> Streams<'a, B> {
    fn new(
        checkpoint: &'a Checkpoint,
        texts: &'a [Vec<u32>],
        backend: B,
        scratch: &'a dyn Scratch,
    ) -> Result<Self> {
        let mut row = 0;
        let beginnings = texts.iter().take(TEXTS).map(|text| {
            let text = &text[..text.len().min(TEXT_TOKENS)];
            row += text.len();
            (row - text.len(), text)
        });
        let texts: Vec<(usize, &[u32])> = beginnings.collect();
        let context = texts.iter().map(|(_, text)| text.len()).max().unwrap_or(0);
        Ok(Self { runner: Runner::new(checkpoint, LOAD, context, backend)?, texts, scratch })
    }

    async fn embed(&mut self) -> Result<()> {
        let ends = self.runner.load_ends().await?;
        for &(first, text) in &self.texts {
            let to = Place { scratch: self.scratch, blob: &blob(UNCHANGED), first };
            self.runner.embed(&ends, text, to).await?;
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
        let (from, to) = (blob(from), blob(to));
        for &(first, text) in &self.texts {
            let place = |blob| Place { scratch: self.scratch, blob, first };
            self.runner.through(block, text.len(), place(&from), place(&to), control).await?;
        }
        Ok(())
    }

    /// The mean divergence of the predictions of each of `changes` streams from those of the unchanged one.
    async fn divergences(&mut self, changes: usize, control: &dyn Control) -> Result<Vec<f64>> {
        let ends = self.runner.load_ends().await?;
        let config = self.runner.checkpoint.config();
        let (vocab, chunk) = (config.vocab_size, self.runner.chunk);
        let most = (HEAD_WORK / (vocab * config.hidden_size).max(1)).max(LEAST_COMPARED);
        let (mut sums, mut total) = (vec![0.0; changes], 0);
        for &(row, text) in &self.texts {
            for from in (text.len().saturating_sub(most)..text.len()).step_by(chunk) {
                let count = chunk.min(text.len() - from);
                let unchanged = blob(UNCHANGED);
                let place = Place { scratch: self.scratch, blob: &unchanged, first: row + from };
                let expected = self.runner.logits(&ends, count, place).await?;
                total += count;
                for (stream, sum) in (1..).zip(&mut sums) {
                    task::checkpoint(control).await?;
                    let found =
                        self.runner.logits(&ends, count, Place { blob: &blob(stream), ..place }).await?;
                    let pairs = expected.chunks_exact(vocab).zip(found.chunks_exact(vocab));
                    *sum += pairs.map(|(expected, found)| kl_divergence(expected, found)).sum::<f64>();
                }
            }
        }
        Ok(sums.into_iter().map(|sum| sum / total.max(1) as f64).collect())
    }
}
