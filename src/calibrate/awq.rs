//! Finds AWQ's scales for the layers that share an input, by what they do to the output of attention, MLP or layer.
//!
//! The maths is in [`quant::awq`](crate::quant::awq); here the weights are read, and the model is run with them. Floor 7.

use super::rows::quantize_rows;
use super::walk::Walk;
use crate::backend::Backend;
use crate::error::{Context, Result};
use crate::model::Checkpoint;
use crate::model::names::Linear;
use crate::model::weights::{DenseRows, RowMemory, WeightSource};
use crate::quant::awq::{
    AwqOutcome, AwqQuantizer, Candidate, Clipping, Measure, Moments, RATIOS, ScaleSearch,
};
use crate::quant::{PackedTensor, ScaleType, Scheme};
use crate::task::Control;
use std::cell::Cell;

/// A linear layer that is to be quantized.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Which of its block.
    pub linear: Linear,
    /// Its module in the checkpoint.
    pub module: &'a str,
    /// `(out_features, in_features)`
    pub shape: (usize, usize),
    /// What it becomes.
    pub scheme: Scheme,
}

/// What all layers of a site share.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    /// Where the weights are.
    pub checkpoint: &'a Checkpoint,
    /// The type of the groups' scales.
    pub scale_type: ScaleType,
    /// For the rows of one layer after the other.
    pub row_memory: &'a Cell<RowMemory>,
    /// Hears, and may cancel.
    pub control: &'a dyn Control,
}

/// Quantizes one layer, its columns multiplied by `scales`.
///
/// # Errors
/// Whatever reading and [`AwqQuantizer`] meet, with the module named.
pub async fn quantize(
    shared: Shared<'_>,
    target: &Target<'_>,
    scales: &[f32],
    clipping: Option<&Clipping>,
    measure: Measure<'_>,
) -> Result<AwqOutcome> {
    let Shared { checkpoint, scale_type, row_memory, control } = shared;
    let run = async {
        let mut quantizer =
            AwqQuantizer::new(target.scheme, target.shape, scales, measure, clipping, scale_type)?;
        let mut rows = DenseRows::new(checkpoint, target.module)?.with_memory(row_memory.take());
        quantize_rows(&mut rows, &mut quantizer, control, |_| ()).await?;
        row_memory.set(rows.into_memory());
        quantizer.finish()
    };
    run.await.context_with(|| format!("module `{}`", target.module))
}

/// Parts of the work on a site, in reports of progress: one for each candidate of scales, and one for what follows.
pub const SHARES: u64 = RATIOS as u64 + 1;

/// The best scales for `targets`, all layers of the site at which `walk` stands. `mean` is the mean of `|x|` there,
/// `moments` are of `x`, and `fit` makes of wanted scales those that can be folded. The block is left with some
/// candidate's weights, which want their input divided by its scales.
///
/// # Errors
/// As [`quantize`]'s, and whatever running the block meets.
pub async fn search<B: Backend>(
    walk: &mut Walk<'_, B>,
    shared: Shared<'_>,
    targets: &[Target<'_>],
    mean: Vec<f32>,
    moments: &Moments,
    fit: impl Fn(&mut [f32]) -> Result<()>,
) -> Result<Candidate> {
    let parent = walk.has_parent();
    if parent {
        walk.keep_parent_outputs(shared.control).await?;
    }
    let measure = if parent { Measure::Nothing } else { Measure::Error(moments) };
    let mut search = ScaleSearch::new(mean);
    let mut tried = 0;
    while let Some(mut candidate) = search.next_candidate() {
        walk.report_quantizing(tried, SHARES, targets[0].module, shared.control);
        tried += 1;
        fit(&mut candidate.scales)?;
        let mut loss = 0.0;
        let mut tensors: Vec<(Linear, PackedTensor)> = Vec::new();
        for target in targets {
            let outcome = quantize(shared, target, &candidate.scales, None, measure).await?;
            loss += outcome.error;
            tensors.push((target.linear, outcome.tensor));
        }
        if parent {
            let replaced: Vec<_> =
                tensors.iter().map(|(linear, tensor)| (*linear, WeightSource::Packed(tensor))).collect();
            walk.replace(&replaced).await?;
            loss = walk.parent_loss(&candidate.scales, search.least(), shared.control).await?;
        }
        search.report(loss);
    }
    let mut best = search.best();
    fit(&mut best.scales)?;
    Ok(best)
}
