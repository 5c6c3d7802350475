//! The loss of a batch, and the backward pass through the head and the embedding.

use super::{EmbeddingAndHead, Runner};
use crate::backend::{Backend, BackwardStep, Element, Train};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::model::trained::{self, LinearParameters, Parameter};

/// The trained parameters outside the blocks: embedding, final norm and head.
pub struct EndParameters<B: Train> {
    /// `[vocab_size, hidden_size]`; also the head if `head` is `None`.
    pub embedding: LinearParameters<B>,
    /// `[hidden_size]`
    pub norm: Parameter<B>,
    /// `[vocab_size, hidden_size]`
    pub head: Option<LinearParameters<B>>,
}

/// The training objective of a batch.
pub struct Objective<'a, B: Train> {
    /// `[count]`: target ids, or [`NO_INDEX`](crate::backend::NO_INDEX) for tokens without a loss.
    pub targets: &'a [u32],
    /// Weight of the cross-entropy.
    pub cross_entropy: f32,
    /// Weight of the divergence from a teacher's predictions, and these predictions.
    pub teacher: Option<(f32, TeacherLogits<'a, B>)>,
    /// Factor of each token's loss in the gradient.
    pub share: f32,
}

/// A teacher's predictions for the current tokens.
pub struct TeacherLogits<'a, B: Train> {
    /// `[count, vocab_size]`
    pub logits: &'a B::Buffer,
    /// Divisor of both the teacher's and the model's logits.
    pub temperature: f32,
}

/// Logits of a batch and their gradients, allocated once for the largest batch.
pub struct Predictions<B: Train> {
    /// `[count, vocab_size]`
    logits: B::Buffer,
    /// Gradient, `[count, vocab_size]`
    dlogits: B::Buffer,
}

impl<B: Train> Predictions<B> {
    /// Buffers for `tokens` tokens.
    ///
    /// # Errors
    /// `out_of_memory`
    pub fn new(backend: &mut B, config: &ModelConfig, tokens: usize) -> Result<Self> {
        let mut buffer = || backend.buffer(Element::F32, tokens * config.vocab_size);
        Ok(Self { logits: buffer()?, dlogits: buffer()? })
    }
}

/// Sums over the tokens with a loss, in nats; `None` for a loss that the objective does not use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Sum of the cross-entropy.
    pub cross_entropy: Option<f64>,
    /// Sum of the divergence from the teacher.
    pub divergence: Option<f64>,
}

impl<B: Train> EndParameters<B> {
    /// Builds the running weights from the parameters. The old weights are dropped first.
    ///
    /// # Errors
    /// `non_finite` naming a tensor in which training produced NaN or infinity; errors of the device.
    pub async fn refresh_weights(
        &mut self,
        backend: &mut B,
        config: &ModelConfig,
        ends: &mut Option<EmbeddingAndHead<B>>,
    ) -> Result<()> {
        *ends = None;
        let head = match &mut self.head {
            Some(head) => Some(trained::weight(backend, std::slice::from_mut(head)).await?),
            None => None,
        };
        let embedding = trained::weight(backend, std::slice::from_mut(&mut self.embedding)).await?;
        let final_norm = trained::norm(backend, &self.norm, config.rms_norm_eps).await?;
        *ends = Some(EmbeddingAndHead { embedding, final_norm, head });
        Ok(())
    }
}

impl<B: Train> Runner<B> {
    /// The most likely next token after each of the current tokens.
    ///
    /// # Errors
    /// Errors of the device.
    pub async fn greedy_predictions(
        &mut self,
        ends: &EmbeddingAndHead<B>,
        predictions: &mut Predictions<B>,
    ) -> Result<Vec<u32>> {
        let (count, vocabulary) = (self.hidden.count, self.config.vocab_size);
        self.head(ends, &mut predictions.logits)?;
        let mut ids = self.backend.buffer(Element::U32, count)?;
        self.backend.argmax(&predictions.logits, count, vocabulary, &mut ids)?;
        let mut found = vec![0; count];
        self.backend.read_u32(&ids, 0, &mut found).await?;
        Ok(found)
    }

    /// The losses of the current tokens, which are after the last block, and the gradient with respect to the logits.
    ///
    /// # Errors
    /// Errors of the device.
    pub async fn losses(
        &mut self,
        ends: &EmbeddingAndHead<B>,
        objective: &Objective<'_, B>,
        predictions: &mut Predictions<B>,
    ) -> Result<LossSums> {
        let (count, vocabulary) = (self.hidden.count, self.config.vocab_size);
        let Predictions { logits, dlogits } = predictions;
        self.head(ends, logits)?;
        let backend = &mut self.backend;
        zero(backend, dlogits, count * vocabulary)?;
        let mut targets = backend.buffer(Element::U32, count)?;
        backend.write_u32(&mut targets, objective.targets)?;
        let (logits, targets) = (&*logits, &targets);
        let mut losses = backend.buffer(Element::F32, count)?;
        let mut sums = LossSums::default();
        if objective.cross_entropy != 0.0 {
            backend.backward(BackwardStep::CrossEntropy {
                logits,
                targets,
                count,
                vocabulary,
                share: objective.share * objective.cross_entropy,
                dlogits,
                losses: &mut losses,
            })?;
            sums.cross_entropy = Some(sum(backend, &losses, count).await?);
        }
        if let Some((weight, TeacherLogits { logits: teacher, temperature })) = &objective.teacher {
            backend.backward(BackwardStep::Distill {
                logits,
                teacher,
                targets,
                count,
                vocabulary,
                temperature: *temperature,
                share: objective.share * weight,
                dlogits,
                losses: &mut losses,
            })?;
            sums.divergence = Some(sum(backend, &losses, count).await?);
        }
        Ok(sums)
    }

    /// The losses, and the gradient with respect to the last block's output, `[count, hidden_size]`. Accumulates the
    /// gradients of head and norm.
    ///
    /// # Errors
    /// Errors of the device.
    pub async fn losses_backward(
        &mut self,
        ends: &EmbeddingAndHead<B>,
        objective: &Objective<'_, B>,
        predictions: &mut Predictions<B>,
        parameters: &mut EndParameters<B>,
    ) -> Result<(LossSums, B::Buffer)> {
        let sums = self.losses(ends, objective, predictions).await?;
        let Self { backend, hidden, work, config, .. } = self;
        let (count, width) = (hidden.count, config.hidden_size);
        let EndParameters { embedding, norm, head } = parameters;
        let mut normed = backend.buffer(Element::F32, count * width)?;
        backend.backward(BackwardStep::Linear {
            x: &work.normed,
            dy: &predictions.dlogits,
            count,
            weight: ends.head.as_ref().unwrap_or(&ends.embedding),
            dx: &mut normed,
            parts: vec![head.as_mut().unwrap_or(embedding).gradient()],
        })?;
        let mut d = backend.buffer(Element::F32, count * width)?;
        backend.backward(BackwardStep::RmsNorm {
            x: &hidden.residual,
            dy: &normed,
            count,
            norm: ends.final_norm.as_ref(),
            dx: &mut d,
            dweight: &mut norm.gradient,
        })?;
        Ok((sums, d))
    }

    /// Adds `d`, the gradient with respect to the embeddings of `tokens`, to the gradient of the table.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn embed_backward(&mut self, tokens: &[u32], d: &B::Buffer, table: &mut Parameter<B>) -> Result<()> {
        let backend = &mut self.backend;
        let mut ids = backend.buffer(Element::U32, tokens.len())?;
        backend.write_u32(&mut ids, tokens)?;
        backend.backward(BackwardStep::Embed {
            tokens: &ids,
            dx: d,
            count: tokens.len(),
            rows: table.rows,
            width: table.cols,
            dtable: &mut table.gradient,
        })
    }
}

/// Sets the first `len` elements of a buffer to 0.
///
/// # Errors
/// Errors of the device.
pub fn zero<B: Train>(backend: &mut B, buffer: &mut B::Buffer, len: usize) -> Result<()> {
    if let Some(elements) = backend.in_memory_mut(buffer, len) {
        elements.fill(0.0);
        return Ok(());
    }
    backend.write_f32(buffer, &vec![0.0; len])
}

async fn sum<B: Train>(backend: &mut B, losses: &B::Buffer, count: usize) -> Result<f64> {
    let mut found = vec![0.0; count];
    backend.read(losses, 0, &mut found).await?;
    Ok(found.iter().map(|&loss| f64::from(loss)).sum())
}

/// The error for weights that are missing because their upload failed.
pub fn needs_refresh() -> Error {
    Error::invalid_argument(
        "expected a model with all its parameters on the device, but some failed to upload",
    )
}
