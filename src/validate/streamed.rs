//! Scores two models that are too large to hold twice: one block of one model at a time, hidden states in scratch.
//!
//! The steps are those of [`walk::compare`](super::walk::compare) in another order, on the same chunks of tokens, so the
//! result is the same to the last bit: a memory budget never changes a figure. Hidden states are kept in f32. Floor 7.

use super::blockwise::Runner;
use super::walk::{Comparison, check_same_vocabulary, check_vocabulary, report};
use super::windows::{Dataset, Window, WindowOptions};
use crate::backend::Backend;
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::model::block::Block;
use crate::model::spill::Place;
use crate::model::{Checkpoint, LoadOptions};
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
    let mut a = Runner::new(original.0, original.1, options.context, new_backend()?)?;
    let mut b = Runner::new(quantized.0, quantized.1, options.context, new_backend()?)?;
    for (name, runner) in [(ORIGINAL, &mut a), (QUANTIZED, &mut b)] {
        run_blocks(runner, name, data, &windows, scratch, control).await?;
    }
    let mut comparison = Comparison::default();
    let (a_ends, b_ends) = (a.load_ends().await?, b.load_ends().await?);
    for (index, window) in windows.iter().enumerate() {
        report(control, "compare", index, windows.len(), data);
        let inputs = data.inputs(window).len();
        for first in (0..inputs).step_by(a.chunk) {
            task::checkpoint(control).await?;
            let count = a.chunk.min(inputs - first);
            let (first_blob, second_blob) = (blob(ORIGINAL, index), blob(QUANTIZED, index));
            let place = Place { scratch, blob: &first_blob, first };
            let rows = a.logits(&a_ends, count, place).await?;
            let others = b.logits(&b_ends, count, Place { blob: &second_blob, ..place }).await?;
            let vocab = original.0.config().vocab_size;
            for (offset, (row, other)) in rows.chunks(vocab).zip(others.chunks(vocab)).enumerate() {
                if let Some(target) = data.target(window, first + offset) {
                    comparison.add(row, other, target);
                }
            }
        }
        for name in [ORIGINAL, QUANTIZED] {
            scratch.delete(&blob(name, index)).await?;
        }
    }
    Ok(comparison)
}

/// The models' names, which keep their hidden states in scratch apart.
const ORIGINAL: &str = "original";
const QUANTIZED: &str = "quantized";

/// The name of a window's hidden states in scratch.
fn blob(name: &str, window: usize) -> String {
    format!("{name}-{window}")
}

/// Takes every window through all blocks; their outputs are in scratch then.
async fn run_blocks<B: Backend>(
    runner: &mut Runner<'_, B>,
    name: &str,
    data: &Dataset,
    windows: &[Window],
    scratch: &dyn Scratch,
    control: &dyn Control,
) -> Result<()> {
    let ends = runner.load_ends().await?;
    for (index, window) in windows.iter().enumerate() {
        let place = Place { scratch, blob: &blob(name, index), first: 0 };
        runner.embed(&ends, &data.inputs(window), place).await?;
    }
    drop(ends);
    let layers = runner.checkpoint.config().num_hidden_layers;
    for layer in 0..layers {
        report(control, name, layer, layers, data);
        let block = Block::load(&mut runner.backend, runner.checkpoint, layer, runner.options).await?;
        for (index, window) in windows.iter().enumerate() {
            let place = Place { scratch, blob: &blob(name, index), first: 0 };
            runner.through(&block, data.inputs(window).len(), place, place, control).await?;
        }
    }
    Ok(())
}
