//! Measures candidate weights by the output of their parent module, attention or MLP, against its earlier output.

use super::slots::{PARENT, Stream};
use super::{Walk, no_block};
use crate::backend::{Backend, Sums};
use crate::error::Result;
use crate::model::block::{LinearInput, Stage};
use crate::model::hidden_store::{HiddenStore, StoreSlot};
use crate::model::runner::{Chunk, LayerStreamed, Runner};
use crate::task::{self, Control};

/// Tokens of a parent run. Samples are whole, so there may be more.
const PARENT_TOKENS: usize = 4096;

/// The last stage of the parent module that starts at `input`; `None` if the layer is its own parent.
fn end_of_parent(input: LinearInput) -> Option<Stage> {
    match input {
        LinearInput::Qkv => Some(Stage::AttentionOutput),
        LinearInput::GateUp => Some(Stage::End),
        LinearInput::O | LinearInput::Down => None,
    }
}

impl<B: Backend> Walk<'_, B> {
    /// Runs the parent module at the current input on the first samples, with the block's present weights, and stores
    /// the outputs as the reference. `false` if the layer is its own parent.
    pub async fn keep_parent_outputs(&mut self, control: &dyn Control) -> Result<bool> {
        if self.input.and_then(end_of_parent).is_none() {
            return Ok(false);
        }
        self.model.store.scratch.delete(PARENT).await?;
        for chunk in self.parent_chunks() {
            task::yield_point(control).await?;
            let end = self.run_parent(chunk, None).await?;
            let (store, backend, output, width) = output(&mut self.model, end);
            store.save(backend, output, chunk.count, width, slot(chunk)).await?;
        }
        Ok(true)
    }

    /// The mean squared difference of the parent's outputs from the reference, with the input divided by `scales`,
    /// `[width]`. Stops early above `least`; the value is then a lower bound.
    pub async fn parent_loss(&mut self, scales: &[f32], least: f64, control: &dyn Control) -> Result<f64> {
        let width = self.model.runner.config.hidden_size;
        let chunks = self.parent_chunks();
        let count = chunks.iter().map(|chunk| chunk.count * width).sum::<usize>().max(1) as f64;
        let mut reader = HiddenStore::new(self.model.store.scratch);
        let mut loss = 0.0;
        for chunk in chunks {
            task::yield_point(control).await?;
            let end = self.run_parent(chunk, Some(scales)).await?;
            let kept = reader.fetch(chunk.count, width, slot(chunk)).await?;
            let (store, backend, output, width) = output(&mut self.model, end);
            let output = store.rows(backend, output, chunk.count, width).await?;
            loss += squared_distance(output, kept) / count;
            if loss > least {
                break;
            }
        }
        Ok(loss)
    }

    /// The chunks of the first samples with at least [`PARENT_TOKENS`] tokens.
    fn parent_chunks(&self) -> Vec<Chunk> {
        let mut tokens = 0;
        let enough = self.samples.windows.iter().position(|window| {
            tokens += window.len();
            tokens >= PARENT_TOKENS
        });
        let chunks = self.chunks().into_iter();
        chunks
            .filter(|(sample, _)| enough.is_none_or(|last| *sample <= last))
            .map(|(_, chunk)| chunk)
            .collect()
    }

    /// Runs the parent module on a chunk, with the input divided by `scales`. Returns its last stage.
    async fn run_parent(&mut self, chunk: Chunk, scales: Option<&[f32]>) -> Result<Stage> {
        let end = self.input.and_then(end_of_parent).ok_or_else(no_block)?;
        let (waiting, width) = (self.waiting(Stream::Quantized), scales.map_or(1, <[f32]>::len));
        let block = self.blocks[Stream::Quantized as usize].as_ref().ok_or_else(no_block)?;
        let divide = |rows: &mut [f32]| {
            let Some(scales) = scales else { return };
            for row in rows.chunks_exact_mut(width) {
                for (value, scale) in row.iter_mut().zip(scales) {
                    *value /= scale;
                }
            }
        };
        // Quantization changes the outputs far more than coarse sums do.
        self.model.runner.backend.set_sums(Sums::Coarse);
        let done = self.model.run(block, chunk, waiting, end, divide).await;
        self.model.runner.backend.set_sums(Sums::Reordered);
        done.map(|()| end)
    }
}

fn slot(chunk: Chunk) -> StoreSlot<'static> {
    StoreSlot { name: PARENT, first: chunk.row }
}

/// The output buffer of a parent that ends at `end`, its width, and what is needed to read it.
fn output<'m, 'a, B: Backend>(
    model: &'m mut LayerStreamed<'a, B>,
    end: Stage,
) -> (&'m mut HiddenStore<'a>, &'m mut B, &'m B::Buffer, usize) {
    let LayerStreamed { store, runner: Runner { backend, work, hidden, config, .. }, .. } = model;
    let output = if end == Stage::End { &hidden.delta } else { &work.attention_out };
    (store, backend, output, config.hidden_size)
}

/// The sum of squared differences.
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    /// Independent partial sums, because each addition waits for the previous one of its sum.
    const SUMS: usize = 16;
    let mut sums = [0.0; SUMS];
    for (a, b) in a.chunks(SUMS).zip(b.chunks(SUMS)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(a - b) * f64::from(a - b);
        }
    }
    sums.iter().sum()
}
