//! Training: a model whose forward pass uses the weights as they will be stored.
//!
//! The forward pass saves the activations of the first blocks, as many as fit. For the other blocks it saves only the
//! input, and the backward pass runs the block again first (activation checkpointing). Memory then grows with the
//! number of blocks, not with the activations inside them (Chen, Xu, Zhang, Guestrin, *Training Deep Nets with
//! Sublinear Memory Cost*, 2016).
//! Derivatives are written by hand for each step ([`Train`]). The decoder is the one that generation uses.

mod activations;
pub mod assess;
pub mod blocks;
pub mod corpus;
pub mod curriculum;
pub mod gradients;
pub mod memory;
pub mod noise;
pub mod optimizer;
pub mod parameters;
pub mod run;
pub mod schedule;
pub mod start;
pub mod state;
pub mod tasks;
pub mod teacher;

use crate::backend::{Backend, Element, NO_INDEX, Segment, Sums, Train};
use crate::error::{Error, Result};
use crate::model::block::{BackwardWorkspace, Block, Stage, Workspace};
use crate::model::runner::{
    EmbeddingAndHead, LossSums, Objective, Predictions, Runner, TeacherLogits, needs_refresh,
};
pub use crate::model::trained::{MasterType, Parameter, Stored};
use crate::model::{KvCache, ModelConfig};
use activations::BlockActivations;
use optimizer::Trainable;
pub use parameters::{Origin, Parameters, Precision};
use teacher::Teacher;

/// A row of a batch: a sequence and the targets of its tokens. Rows do not attend to each other.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// As many ids; [`NO_INDEX`] masks a prediction.
    pub targets: &'a [u32],
}

/// The batch size that a model allocates buffers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchCapacity {
    /// Tokens of a batch, all rows together.
    pub tokens: usize,
    /// Tokens of the longest row.
    pub context: usize,
}

/// The training loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossWeights {
    /// Weight of the cross-entropy with the text.
    pub cross_entropy: f32,
    /// Weight of the divergence from a teacher's predictions.
    pub divergence: f32,
    /// Divides the logits of both models before the divergence.
    pub temperature: f32,
}

impl LossWeights {
    /// Cross-entropy alone.
    pub const TEXT: Self = Self { cross_entropy: 1.0, divergence: 0.0, temperature: 1.0 };
    /// Divergence from the teacher alone.
    pub const TEACHER: Self = Self { cross_entropy: 0.0, divergence: 1.0, temperature: 1.0 };

    /// The weighted sum of both losses.
    pub fn loss(&self, sums: LossSums) -> f64 {
        sums.cross_entropy.map_or(0.0, |sum| sum * f64::from(self.cross_entropy))
            + sums.divergence.map_or(0.0, |sum| sum * f64::from(self.divergence))
    }
}

/// A model in training.
pub struct TrainedModel<B: Train> {
    runner: Runner<B>,
    /// `None` after [`TrainedModel::refresh_weights`] has failed.
    ends: Option<EmbeddingAndHead<B>>,
    blocks: Vec<Block<B>>,
    parameters: Parameters<B>,
    /// One layer for each block whose activations are saved, and one that all others share.
    cache: KvCache<B>,
    kept: Vec<BlockActivations<B>>,
    /// The input of each block.
    inputs: Vec<B::Buffer>,
    back: BackwardWorkspace<B>,
    predictions: Predictions<B>,
    capacity: BatchCapacity,
}

/// The segments of rows packed one after another, and the tokens of all rows.
fn segments_of<'a>(rows: impl Iterator<Item = &'a [u32]>) -> (Vec<Segment>, Vec<u32>) {
    let (mut segments, mut all) = (Vec::new(), Vec::new());
    for tokens in rows {
        segments.push(Segment { start: all.len(), ..Segment::causal(0, tokens.len()) });
        all.extend_from_slice(tokens);
    }
    (segments, all)
}

/// The number of unmasked predictions in a batch.
pub fn counted(batch: &[Row<'_>]) -> usize {
    batch.iter().flat_map(|row| row.targets).filter(|&&target| target != NO_INDEX).count()
}

impl<B: Train> TrainedModel<B> {
    /// A model whose parameters start at `origin`.
    ///
    /// # Errors
    /// As [`Parameters::new`]; `context_overflow` for a context longer than the model's; `invalid_argument` for no
    /// capacity.
    pub async fn new(
        mut backend: B,
        origin: Origin<'_>,
        precision: Precision,
        capacity: BatchCapacity,
    ) -> Result<Self> {
        let config = origin.config();
        config.check_context(capacity.context)?;
        if capacity.context == 0 || capacity.tokens < capacity.context {
            return Err(Error::invalid_argument(format!(
                "expected a batch of at least one row of tokens but found {} tokens for rows of {}",
                capacity.tokens, capacity.context
            )));
        }
        let parameters = Parameters::new(&mut backend, origin, precision).await?;
        // Rows are packed one after another, so none starts beyond `capacity.tokens`.
        let blocks: Vec<_> = parameters.blocks.iter().map(|_| Block::empty()).collect();
        let kept = BlockActivations::of_blocks(&mut backend, config, capacity.tokens, blocks.len())?;
        let sequences = capacity.tokens.div_ceil(capacity.context);
        let layers = (kept.len() + 1).min(blocks.len());
        let cache = KvCache::new(&mut backend, config, layers, sequences, capacity.context)?;
        let len = capacity.tokens * config.hidden_size;
        let inputs = blocks.iter().map(|_| backend.buffer(Element::F32, len)).collect::<Result<_>>()?;
        let back = BackwardWorkspace::new(&mut backend, config, capacity.tokens)?;
        let predictions = Predictions::new(&mut backend, config, capacity.tokens)?;
        let work =
            Workspace::new(&mut backend, config, capacity.tokens)?.keeping_inputs(&mut backend, config)?;
        let mut runner = Runner::new(backend, config, capacity.tokens)?;
        runner.work = work;
        // Batches of different sizes need not give the same bits.
        runner.backend.set_sums(Sums::Whole);
        let mut model =
            Self { runner, ends: None, blocks, parameters, cache, kept, inputs, back, predictions, capacity };
        model.refresh_weights().await?;
        Ok(model)
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.runner.config
    }

    /// The batch size that buffers are allocated for.
    pub fn capacity(&self) -> BatchCapacity {
        self.capacity
    }

    /// Device and parameters. Changed parameters take effect after [`TrainedModel::refresh_weights`].
    pub fn parts(&mut self) -> (&mut B, &mut Parameters<B>) {
        (&mut self.runner.backend, &mut self.parameters)
    }

    /// Makes the running weights from the master weights: quantized and rounded as they will be stored.
    ///
    /// # Errors
    /// `non_finite` naming a tensor that training made NaN or infinite; errors of the device.
    pub async fn refresh_weights(&mut self) -> Result<()> {
        let Self { runner: Runner { backend, config, .. }, ends, blocks, parameters, .. } = self;
        parameters.ends.refresh_weights(backend, config, ends).await?;
        for (block, parameters) in blocks.iter_mut().zip(&mut parameters.blocks) {
            parameters.refresh_weights(backend, config, block).await?;
        }
        Ok(())
    }

    /// Sets all gradients to 0.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn zero_gradients(&mut self) -> Result<()> {
        optimizer::zero_gradients(self)
    }

    /// Adds `share` times the gradient of `goal`'s loss to the parameters' gradients, and returns the losses summed
    /// over unmasked predictions. For learned scales the gradient is that of the dequantized weights until
    /// [`TrainedModel::finish_gradients`] is called.
    ///
    /// # Errors
    /// `invalid_argument` for more tokens than there is room for, for rows that are empty or too long, for a number of
    /// targets other than that of tokens, for a batch without an unmasked prediction, and for a divergence without a
    /// teacher; errors of the device.
    pub async fn backward(
        &mut self,
        batch: &[Row<'_>],
        loss_weights: LossWeights,
        teacher: Option<&mut Teacher<B>>,
        share: f32,
    ) -> Result<LossSums> {
        let (segments, tokens, targets) = self.laid_out(batch)?;
        let taught = self.taught(batch, loss_weights, teacher).await?;
        let Self { runner, ends, blocks, parameters, cache, kept, inputs, back, predictions, .. } = self;
        let ends = ends.as_ref().ok_or_else(needs_refresh)?;
        let len = tokens.len() * runner.config.hidden_size;
        // The cache layer of all blocks whose activations are not saved.
        let shared = kept.len();
        runner.embed(ends, &tokens)?;
        for (layer, (block, input)) in blocks.iter().zip(inputs.iter_mut()).enumerate() {
            let mut kept = kept.get_mut(layer);
            if let Some(kept) = &mut kept {
                std::mem::swap(&mut kept.work, &mut runner.work);
            }
            let at = layer.min(shared);
            block.run(runner, &segments, cache, at, (Stage::Start, Stage::Qkv))?;
            copy(&mut runner.backend, &runner.hidden.residual, input, len).await?;
            block.run(runner, &segments, cache, at, (Stage::Qkv, Stage::End))?;
            if let Some(kept) = kept {
                std::mem::swap(&mut kept.work, &mut runner.work);
                copy(&mut runner.backend, &runner.hidden.residual, &mut kept.residual, len).await?;
            }
        }
        let objective = objective(loss_weights, &targets, taught.as_ref(), share);
        let (losses, mut d) =
            runner.losses_backward(ends, &objective, predictions, &mut parameters.ends).await?;
        let blocks = blocks.iter().zip(&mut parameters.blocks).zip(inputs.iter());
        for (layer, ((block, parameters), input)) in blocks.enumerate().rev() {
            let at = layer.min(shared);
            match kept.get_mut(layer) {
                Some(kept) => kept.swap(runner),
                None => {
                    copy(&mut runner.backend, input, &mut runner.hidden.residual, len).await?;
                    runner.hidden.has_delta = false;
                    block.run(runner, &segments, cache, at, (Stage::Start, Stage::Down))?;
                }
            }
            block.backward(runner, &segments, (cache, at), input, parameters, (back, &mut d))?;
        }
        runner.embed_backward(&tokens, &d, &mut parameters.ends.embedding.weight)?;
        Ok(losses)
    }

    /// The losses summed over unmasked predictions, without gradients.
    ///
    /// # Errors
    /// As [`TrainedModel::backward`].
    pub async fn losses(
        &mut self,
        batch: &[Row<'_>],
        loss_weights: LossWeights,
        teacher: Option<&mut Teacher<B>>,
    ) -> Result<LossSums> {
        let (segments, tokens, targets) = self.laid_out(batch)?;
        let taught = self.taught(batch, loss_weights, teacher).await?;
        self.forward(&segments, &tokens)?;
        let Self { runner, ends, predictions, .. } = self;
        let ends = ends.as_ref().ok_or_else(needs_refresh)?;
        runner.losses(ends, &objective(loss_weights, &targets, taught.as_ref(), 0.0), predictions).await
    }

    /// The logits of all tokens, `[tokens, vocab_size]`.
    ///
    /// # Errors
    /// As [`TrainedModel::backward`].
    pub async fn logits(&mut self, batch: &[Row<'_>]) -> Result<Vec<f32>> {
        let (segments, tokens, _) = self.laid_out(batch)?;
        self.forward(&segments, &tokens)?;
        let ends = self.ends.as_ref().ok_or_else(needs_refresh)?;
        let mut found = vec![0.0; tokens.len() * self.runner.config.vocab_size];
        let mut logits = self.runner.backend.buffer(Element::F32, found.len())?;
        self.runner.head(ends, &mut logits)?;
        self.runner.backend.read(&logits, 0, &mut found).await?;
        Ok(found)
    }

    /// The most likely next token at each position.
    ///
    /// # Errors
    /// As [`TrainedModel::backward`].
    pub async fn greedy_predictions(&mut self, batch: &[Row<'_>]) -> Result<Vec<u32>> {
        let (segments, tokens, _) = self.laid_out(batch)?;
        self.forward(&segments, &tokens)?;
        let ends = self.ends.as_ref().ok_or_else(needs_refresh)?;
        self.runner.greedy_predictions(ends, &mut self.predictions).await
    }

    /// Runs tokens through all blocks.
    fn forward(&mut self, segments: &[Segment], tokens: &[u32]) -> Result<()> {
        let Self { runner, ends, blocks, cache, .. } = self;
        runner.embed(ends.as_ref().ok_or_else(needs_refresh)?, tokens)?;
        blocks.iter().try_for_each(|block| block.run(runner, segments, cache, 0, (Stage::Start, Stage::End)))
    }

    /// The teacher's logits of a batch; `None` where the goal has no divergence.
    async fn taught(
        &mut self,
        batch: &[Row<'_>],
        loss_weights: LossWeights,
        teacher: Option<&mut Teacher<B>>,
    ) -> Result<Option<B::Buffer>> {
        if loss_weights.divergence == 0.0 {
            return Ok(None);
        }
        let Some(teacher) = teacher else {
            return Err(Error::invalid_argument("expected a teacher for the divergence but found none"));
        };
        let logits = teacher.logits(batch).await?;
        let mut buffer = self.runner.backend.buffer(Element::F32, logits.len())?;
        self.runner.backend.write_f32(&mut buffer, &logits)?;
        Ok(Some(buffer))
    }

    /// Segments, tokens and targets of a batch.
    fn laid_out(&self, batch: &[Row<'_>]) -> Result<(Vec<Segment>, Vec<u32>, Vec<u32>)> {
        let BatchCapacity { tokens: most, context } = self.capacity;
        for (index, Row { tokens, targets }) in batch.iter().enumerate() {
            let count = tokens.len();
            if count == 0 || count > context || targets.len() != count {
                return Err(Error::invalid_argument(format!(
                    "row {index}: expected from 1 to {context} tokens and as many targets but found {count} and {}",
                    targets.len()
                )));
            }
        }
        let (segments, all) = segments_of(batch.iter().map(|row| row.tokens));
        let wanted = batch.iter().flat_map(|row| row.targets).copied().collect();
        if all.len() > most {
            return Err(Error::invalid_argument(format!(
                "expected at most {most} tokens in a batch but found {}",
                all.len()
            )));
        }
        if counted(batch) == 0 {
            return Err(Error::invalid_argument(
                "expected a prediction that counts but all targets are masked",
            ));
        }
        Ok((segments, all, wanted))
    }

    /// Converts the gradients of dequantized weights into gradients of master weights and learned scales. Call it once,
    /// after the gradients of all batches are accumulated.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn finish_gradients(&mut self) -> Result<()> {
        optimizer::finish_gradients(self)
    }

    /// The gradient of every parameter, with its tensor's name. That of learned scales is named like the stored tensor,
    /// `.weight_scale`.
    ///
    /// # Errors
    /// Errors of the device.
    pub async fn gradients(&mut self) -> Result<Vec<(String, Vec<f32>)>> {
        let mut gradients = Vec::new();
        let backend = &mut self.runner.backend;
        for parameter in self.parameters.all() {
            let mut gradient = vec![0.0; parameter.len()];
            backend.read(&parameter.gradient, 0, &mut gradient).await?;
            gradients.push((parameter.tensor.clone(), gradient));
            if let Some(scales) = parameter.scales.as_ref().filter(|scales| scales.learned) {
                let mut gradient = vec![0.0; scales.grid.scales()];
                backend.read(&scales.gradient, 0, &mut gradient).await?;
                gradients.push((format!("{}_scale", parameter.tensor), gradient));
            }
        }
        Ok(gradients)
    }
}

impl<B: Train> Trainable<B> for TrainedModel<B> {
    fn trained(&mut self) -> (&mut B, Vec<&mut Parameter<B>>) {
        (&mut self.runner.backend, self.parameters.all_mut().collect())
    }
}

fn objective<'a, B: Train>(
    loss_weights: LossWeights,
    targets: &'a [u32],
    taught: Option<&'a B::Buffer>,
    share: f32,
) -> Objective<'a, B> {
    let LossWeights { cross_entropy, divergence, temperature } = loss_weights;
    let teacher = taught.map(|logits| (divergence, TeacherLogits { logits, temperature }));
    Objective { targets, cross_entropy, teacher, share }
}

/// Copies the first `len` elements of a buffer.
async fn copy<B: Train>(backend: &mut B, from: &B::Buffer, to: &mut B::Buffer, len: usize) -> Result<()> {
    if let Some(values) = backend.in_memory(from, len) {
        return backend.write_f32(to, values);
    }
    let mut values = vec![0.0; len];
    backend.read(from, 0, &mut values).await?;
    backend.write_f32(to, &values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::CpuBackend;
    use crate::task::block_on;
    use serde_json::json;

    #[test]
    fn blocks_that_are_kept_and_those_that_run_once_more_give_the_same() {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 20, "max_position_embeddings": 8,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "float32",
        });
        let config = ModelConfig::from_json(&config).unwrap();
        let capacity = BatchCapacity { tokens: 16, context: 8 };
        let rows = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]];
        let batch = rows.each_ref().map(|row| Row { tokens: &row[..7], targets: &row[1..] });
        let found = [3, 1, 0].map(|kept| {
            let origin = Origin::Random { config: &config, seed: 1 };
            let model = TrainedModel::new(CpuBackend::new(), origin, Precision::default(), capacity);
            let mut model = block_on(model).unwrap();
            assert_eq!(model.kept.len(), 3);
            model.kept.truncate(kept);
            // Twice: the saved buffers are swapped with the runner's.
            for _ in 0..2 {
                block_on(model.backward(&batch, LossWeights::TEXT, None, 1.0)).unwrap();
            }
            block_on(model.gradients()).unwrap()
        });
        assert_eq!(found[0], found[1]);
        assert_eq!(found[0], found[2]);
    }
}
