//! Runs one or two models over a text, window by window, and scores their predictions.
//!
//! Two models run side by side, chunk by chunk in turn, so that at most one chunk's logits are held.

use super::metrics::{DivergenceSum, PairedDifference, PerplexitySum, negative_log_likelihood};
use super::windows::{Dataset, WindowOptions};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::decoder::Logits;
use crate::model::runner::chunk_tokens;
use crate::model::{CausalLm, ModelConfig};
use crate::task::{Control, Progress};

/// Predictions of two models on the same tokens.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Perplexity of the first.
    pub original: PerplexitySum,
    /// Perplexity of the second.
    pub quantized: PerplexitySum,
    /// Distance of the second's predictions from the first's, over the scored tokens.
    pub divergence: DivergenceSum,
    /// The per-token difference of losses, second minus first.
    pub loss: PairedDifference,
}

impl Comparison {
    /// Adds the logits of both models for one scored token.
    pub(super) fn add(&mut self, original: &[f32], quantized: &[f32], target: u32) {
        let first = negative_log_likelihood(original, target as usize);
        let second = negative_log_likelihood(quantized, target as usize);
        self.original.add(first);
        self.quantized.add(second);
        self.loss.add(first, second);
        self.divergence.add(original, quantized);
    }
}

/// Scores `data` with one model.
///
/// # Errors
/// `context_overflow` for a context longer than the model's; `cancelled`. Logits that are not finite are no error: they
/// make the sum NaN.
pub async fn score<B: Backend>(
    model: &mut CausalLm<B>,
    data: &Dataset,
    options: &WindowOptions,
    control: &dyn Control,
) -> Result<PerplexitySum> {
    check_vocabulary(data, model.config())?;
    let windows = data.windows(options)?;
    let mut cache = model.new_cache(options.context)?;
    let mut sum = PerplexitySum::default();
    for (done, window) in windows.iter().enumerate() {
        report(control, "perplexity", done, windows.len(), data);
        cache.truncate(0, 0);
        model
            .forward(&data.inputs(window), &mut cache, Logits::All, control, |index, logits| {
                if let Some(target) = data.target(window, index) {
                    sum.add(negative_log_likelihood(logits, target as usize));
                }
                Ok(())
            })
            .await?;
    }
    Ok(sum)
}

/// Scores `data` with two models side by side.
///
/// # Errors
/// As [`score`]; `invalid_argument` for models with different vocabularies.
pub async fn compare<B: Backend>(
    original: &mut CausalLm<B>,
    quantized: &mut CausalLm<B>,
    data: &Dataset,
    options: &WindowOptions,
    control: &dyn Control,
) -> Result<Comparison> {
    check_same_vocabulary(original.config(), quantized.config())?;
    check_vocabulary(data, original.config())?;
    let windows = data.windows(options)?;
    let mut caches = (original.new_cache(options.context)?, quantized.new_cache(options.context)?);
    let (mut comparison, mut rows, vocab) = (Comparison::default(), Vec::new(), original.config().vocab_size);
    for (done, window) in windows.iter().enumerate() {
        report(control, "compare", done, windows.len(), data);
        caches.0.truncate(0, 0);
        caches.1.truncate(0, 0);
        let mut first = 0;
        for chunk in data.inputs(window).chunks(chunk_tokens(original.config())) {
            rows.clear();
            let collect = |_, logits: &[f32]| {
                rows.extend_from_slice(logits);
                Ok(())
            };
            original.forward(chunk, &mut caches.0, Logits::All, control, collect).await?;
            let compare = |index: usize, logits: &[f32]| {
                if let Some(target) = data.target(window, first + index) {
                    comparison.add(&rows[index * vocab..][..vocab], logits, target);
                }
                Ok(())
            };
            quantized.forward(chunk, &mut caches.1, Logits::All, control, compare).await?;
            first += chunk.len();
        }
    }
    Ok(comparison)
}

/// Refuses two models with different vocabularies.
pub(super) fn check_same_vocabulary(original: &ModelConfig, quantized: &ModelConfig) -> Result<()> {
    if original.vocab_size != quantized.vocab_size {
        return Err(Error::invalid_argument(format!(
            "expected two models of one vocabulary but found {} and {} tokens",
            original.vocab_size, quantized.vocab_size
        )));
    }
    Ok(())
}

/// Refuses a text that was tokenized for another model.
pub(super) fn check_vocabulary(data: &Dataset, config: &ModelConfig) -> Result<()> {
    match data.tokens.iter().find(|&&token| token as usize >= config.vocab_size) {
        None => Ok(()),
        Some(token) => Err(Error::invalid_argument(format!(
            "{}: found token {token} but the model knows {} tokens",
            data.name, config.vocab_size
        ))),
    }
}

pub(super) fn report(control: &dyn Control, phase: &str, done: usize, total: usize, data: &Dataset) {
    control.progress(&Progress { phase, done: done as u64, total: total as u64, item: &data.name });
}
