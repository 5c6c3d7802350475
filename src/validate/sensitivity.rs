//! Sensitivity: the loss in a model's predictions when one linear layer alone is changed.
//!
//! The error of a layer's own output says little about this, because later layers may damp or amplify it. Each change
//! is therefore followed to the end of the model. The text unchanged and one more stream of hidden states per change
//! run through the blocks side by side, with one block in memory at a time. At the end the streams' predictions are
//! compared. With `L` blocks of 7 layers this takes the work of about `3.5 L^2` blocks on few tokens, less than
//! calibration.

use super::metrics::kl_divergence;
use crate::backend::Backend;
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::model::block::{Block, LinearInput};
use crate::model::names::Linear;
use crate::model::runner::LayerStreamed;
use crate::model::weights::WeightSource;
use crate::model::{Checkpoint, LoadOptions};
use crate::quant::QuantizedTensor;
use crate::task::{self, Control, Progress};

/// Most texts, and tokens of each. Mean divergences over 512 tokens rank layers well enough; the cost grows with each
/// token.
const TEXTS: usize = 4;
const TEXT_TOKENS: usize = 128;

/// Multiplications of the head per stream and text; with a large vocabulary only the last tokens are compared.
const HEAD_WORK: usize = 1 << 29;
const LEAST_COMPARED: usize = 16;

/// The sensitivity of the predictions to one change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSensitivity {
    /// The block.
    pub layer: usize,
    /// The linear layer in it.
    pub linear: Linear,
    /// Mean divergence of the predictions from the unchanged model's, in nats per token.
    pub divergence: f64,
}

/// Measures the sensitivity of each layer for which `change` returns other weights, on the beginnings of the first few
/// `texts`.
///
/// # Errors
/// Errors of `change`, of running the model and of scratch; `cancelled`.
pub async fn measure<B: Backend>(
    checkpoint: &Checkpoint,
    texts: &[Vec<u32>],
    mut change: impl AsyncFnMut(usize, Linear) -> Result<Option<QuantizedTensor>>,
    backend: B,
    scratch: &dyn Scratch,
    control: &dyn Control,
) -> Result<Vec<LayerSensitivity>> {
    let mut row = 0;
    let beginnings = texts.iter().take(TEXTS).map(|text| {
        let text = &text[..text.len().min(TEXT_TOKENS)];
        row += text.len();
        (row - text.len(), text)
    });
    let texts: Vec<(usize, &[u32])> = beginnings.collect();
    let context = texts.iter().map(|(_, text)| text.len()).max().unwrap_or(0);
    let model = LayerStreamed::new(checkpoint, LoadOptions::EXACT, context, backend, scratch)?;
    let mut streams = Streams { model, texts };
    let ends = streams.model.load_embedding_and_head().await?;
    for &(row, text) in &streams.texts {
        streams.model.embed(&ends, text, row, &[&slot(UNCHANGED)], control).await?;
    }
    drop(ends);
    let layers = checkpoint.config().num_hidden_layers;
    let mut changes: Vec<(usize, Linear)> = Vec::new();
    for layer in 0..layers {
        let mut block = streams.model.load_block(layer).await?;
        for earlier in 1..=changes.len() {
            streams.run_block(&block, earlier, earlier, control).await?;
        }
        for input in LinearInput::ALL {
            let mut any = false;
            for &linear in input.linears() {
                control.progress(&Progress {
                    phase: "sensitivity",
                    done: layer as u64,
                    total: layers as u64,
                    item: &linear.module(layer),
                });
                let Some(tensor) = change(layer, linear).await? else { continue };
                any = true;
                changes.push((layer, linear));
                let sources = [(linear, WeightSource::Packed(&tensor))];
                streams.model.replace(&mut block, layer, input, &sources).await?;
                streams.run_block(&block, UNCHANGED, changes.len(), control).await?;
            }
            if any {
                streams.model.replace(&mut block, layer, input, &[]).await?;
            }
        }
        streams.run_block(&block, UNCHANGED, UNCHANGED, control).await?;
    }
    let divergences = streams.divergences(changes.len(), control).await?;
    for stream in 0..=changes.len() {
        scratch.delete(&slot(stream)).await?;
    }
    let found = changes.into_iter().zip(divergences);
    Ok(found.map(|((layer, linear), divergence)| LayerSensitivity { layer, linear, divergence }).collect())
}

/// The stream of the unchanged model; those of the changes follow.
const UNCHANGED: usize = 0;

fn slot(stream: usize) -> String {
    format!("sensitivity-{stream}")
}

/// The streams of hidden states, one per change. Each has a slot with all texts end to end.
struct Streams<'a, B: Backend> {
    model: LayerStreamed<'a, B>,
    /// Each text with the row of its first token.
    texts: Vec<(usize, &'a [u32])>,
}

impl<B: Backend> Streams<'_, B> {
    /// Runs stream `from` through a block and saves it as stream `to`.
    async fn run_block(
        &mut self,
        block: &Block<B>,
        from: usize,
        to: usize,
        control: &dyn Control,
    ) -> Result<()> {
        let (from, to) = (slot(from), slot(to));
        for &(row, text) in &self.texts {
            self.model.run_block(block, text.len(), row, (&from, &to), control).await?;
        }
        Ok(())
    }

    /// The mean divergence of each changed stream's predictions from the unchanged one's.
    async fn divergences(&mut self, changes: usize, control: &dyn Control) -> Result<Vec<f64>> {
        let ends = self.model.load_embedding_and_head().await?;
        let config = self.model.checkpoint.config();
        let vocab = config.vocab_size;
        let most = (HEAD_WORK / (vocab * config.hidden_size).max(1)).max(LEAST_COMPARED);
        let (mut sums, mut total) = (vec![0.0; changes], 0);
        for &(row, text) in &self.texts {
            let from = text.len().saturating_sub(most);
            for chunk in self.model.chunks(text.len() - from, row + from) {
                let expected = self.model.logits(&ends, chunk, &slot(UNCHANGED)).await?;
                total += chunk.count;
                for (stream, sum) in (1..).zip(&mut sums) {
                    task::yield_point(control).await?;
                    let found = self.model.logits(&ends, chunk, &slot(stream)).await?;
                    let pairs = expected.chunks_exact(vocab).zip(found.chunks_exact(vocab));
                    *sum += pairs.map(|(expected, found)| kl_divergence(expected, found)).sum::<f64>();
                }
            }
        }
        Ok(sums.into_iter().map(|sum| sum / total.max(1) as f64).collect())
    }
}
