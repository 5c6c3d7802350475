//! The teacher: a model whose predictions another one learns.

use super::{BatchCapacity, Row};
use crate::backend::Train;
use crate::error::{Error, Result};
use crate::model::decoder::{Logits, Run};
use crate::model::{CausalLm, KvCache, ModelConfig};
use crate::task::Silent;

/// A model for inference only.
pub struct Teacher<B: Train> {
    model: CausalLm<B>,
    cache: KvCache<B>,
}

impl<B: Train> Teacher<B> {
    /// A teacher for batches of this size.
    ///
    /// # Errors
    /// `context_overflow` for a context longer than the model's; `out_of_memory`.
    pub fn new(mut model: CausalLm<B>, capacity: BatchCapacity) -> Result<Self> {
        let sequences = (capacity.tokens / capacity.context.max(1)).max(1);
        let cache = model.new_batch_cache(sequences, capacity.context)?;
        Ok(Self { model, cache })
    }

    /// Refuses a student with another vocabulary.
    ///
    /// # Errors
    /// `invalid_argument`
    pub fn check(&self, pupil: &ModelConfig) -> Result<()> {
        let (own, other) = (self.model.config().vocab_size, pupil.vocab_size);
        if own != other {
            return Err(Error::invalid_argument(format!(
                "expected a teacher with the student's vocabulary of {other} tokens but found one of {own}"
            )));
        }
        Ok(())
    }

    /// The teacher's logits of all tokens of a batch, `[tokens, vocab_size]`.
    ///
    /// # Errors
    /// `invalid_argument` for unknown tokens; errors of the device.
    pub async fn logits(&mut self, batch: &[Row<'_>]) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        let sequences = self.cache.sequences();
        for rows in batch.chunks(sequences) {
            (0..sequences).for_each(|sequence| self.cache.truncate(sequence, 0));
            let runs: Vec<Run<'_>> =
                rows.iter().enumerate().map(|(sequence, row)| Run { sequence, tokens: row.tokens }).collect();
            let each = |_, _, row: &[f32]| {
                logits.extend_from_slice(row);
                Ok(())
            };
            self.model.forward_runs(&runs, &mut self.cache, Logits::All, &Silent, each).await?;
        }
        Ok(logits)
    }
}
