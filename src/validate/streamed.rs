//! Scores two models that are too large to hold both: one block of one model at a time, hidden states in scratch.
//!
//! The steps are those of [`walk::compare`](super::walk::compare) in another order, on the same chunks of tokens. The
//! result is bit-identical, so a memory budget never changes a figure. Hidden states are in F32.

use super::metrics::{PerplexitySum, negative_log_likelihood};
use super::walk::{Comparison, check_same_vocabulary, check_vocabulary, report};
use super::windows::{Dataset, Window, WindowOptions};
use crate::backend::Backend;
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::model::runner::LayerStreamed;
use crate::model::{Checkpoint, LoadOptions};
use crate::task::{self, Control};

/// As [`walk::compare`](super::walk::compare), with at most one block in memory.
///
/// # Errors
/// As there, and errors of scratch.
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
    let mut a = LayerStreamed::new(original.0, original.1, options.context, new_backend()?, scratch)?;
    let mut b = LayerStreamed::new(quantized.0, quantized.1, options.context, new_backend()?, scratch)?;
    for (name, model) in [(ORIGINAL, &mut a), (QUANTIZED, &mut b)] {
        run_blocks(model, name, data, &windows, control).await?;
    }
    let mut comparison = Comparison::default();
    let (a_ends, b_ends) = (a.load_embedding_and_head().await?, b.load_embedding_and_head().await?);
    for (index, window) in windows.iter().enumerate() {
        report(control, "compare", index, windows.len(), data);
        let slots = [ORIGINAL, QUANTIZED].map(|name| slot(name, index));
        for chunk in a.chunks(data.inputs(window).len(), 0) {
            task::yield_point(control).await?;
            let rows = a.logits(&a_ends, chunk, &slots[0]).await?;
            let others = b.logits(&b_ends, chunk, &slots[1]).await?;
            let vocab = original.0.config().vocab_size;
            for (index, (row, other)) in (chunk.past..).zip(rows.chunks(vocab).zip(others.chunks(vocab))) {
                if let Some(target) = data.target(window, index) {
                    comparison.add(row, other, target);
                }
            }
        }
        for slot in slots {
            scratch.delete(&slot).await?;
        }
    }
    Ok(comparison)
}

/// As [`walk::score`](super::walk::score), with at most one block in memory.
///
/// # Errors
/// As there, and errors of scratch.
pub async fn score<B: Backend>(
    (checkpoint, load): (&Checkpoint, LoadOptions),
    data: &Dataset,
    options: &WindowOptions,
    backend: B,
    scratch: &dyn Scratch,
    control: &dyn Control,
) -> Result<PerplexitySum> {
    check_vocabulary(data, checkpoint.config())?;
    let windows = data.windows(options)?;
    let mut model = LayerStreamed::new(checkpoint, load, options.context, backend, scratch)?;
    run_blocks(&mut model, ORIGINAL, data, &windows, control).await?;
    let (ends, vocab) = (model.load_embedding_and_head().await?, checkpoint.config().vocab_size);
    let mut sum = PerplexitySum::default();
    for (index, window) in windows.iter().enumerate() {
        report(control, "perplexity", index, windows.len(), data);
        let slot = slot(ORIGINAL, index);
        for chunk in model.chunks(data.inputs(window).len(), 0) {
            task::yield_point(control).await?;
            let rows = model.logits(&ends, chunk, &slot).await?;
            for (index, row) in (chunk.past..).zip(rows.chunks(vocab)) {
                if let Some(target) = data.target(window, index) {
                    sum.add(negative_log_likelihood(row, target as usize));
                }
            }
        }
        scratch.delete(&slot).await?;
    }
    Ok(sum)
}

/// Prefixes of the two models' slots in scratch.
const ORIGINAL: &str = "original";
const QUANTIZED: &str = "quantized";

/// The slot of a window's hidden states.
fn slot(name: &str, window: usize) -> String {
    format!("{name}-{window}")
}

/// Runs every window through all blocks; their outputs end up in scratch.
async fn run_blocks<B: Backend>(
    model: &mut LayerStreamed<'_, B>,
    name: &str,
    data: &Dataset,
    windows: &[Window],
    control: &dyn Control,
) -> Result<()> {
    let ends = model.load_embedding_and_head().await?;
    for (index, window) in windows.iter().enumerate() {
        model.embed(&ends, &data.inputs(window), 0, &[&slot(name, index)], control).await?;
    }
    drop(ends);
    let layers = model.checkpoint.config().num_hidden_layers;
    for layer in 0..layers {
        report(control, name, layer, layers, data);
        let block = model.load_block(layer).await?;
        for (index, window) in windows.iter().enumerate() {
            let slot = slot(name, index);
            model.run_block(&block, data.inputs(window).len(), 0, (&slot, &slot), control).await?;
        }
    }
    Ok(())
}
