//! Training: the gradient of the loss by every parameter of a model.
//!
//! A forward pass keeps each block's input; on the way back a block is run once more and then backward, so that memory
//! grows with the number of blocks and not with what is inside them (Chen, Xu, Zhang, Guestrin, *Training Deep Nets with Sublinear Memory Cost*, 2016).
//! Derivatives are written by hand, step by step ([`Train`]); the decoder is the one that generates. Floor 7.

pub mod corpus;

use crate::backend::{Backend, Element, NO_INDEX, Segment, Train};
use crate::error::{Error, Result};
use crate::model::block::{Block, BlockParameters, Stage, Trained, Workspace};
use crate::model::runner::{EmbeddingAndHead, HeadParameters, Runner};
use crate::model::{Checkpoint, KvCache, LoadOptions, names};

/// A row of a batch: a sequence, and what follows each of its tokens.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Ids.
    pub tokens: &'a [u32],
    /// As many ids; [`NO_INDEX`] where the prediction does not count.
    pub targets: &'a [u32],
}

/// A model with the gradients of its parameters.
pub struct TrainedModel<B: Train> {
    runner: Runner<B>,
    ends: EmbeddingAndHead<B>,
    embedding: Trained<B>,
    /// `None` where it is the embedding.
    head: Option<Trained<B>>,
    final_norm: Trained<B>,
    blocks: Vec<(Block<B>, BlockParameters<B>)>,
    /// Of one block at a time.
    cache: KvCache<B>,
    embedding_name: String,
}

impl<B: Train> TrainedModel<B> {
    /// For batches of at most `rows` sequences of at most `context` tokens.
    ///
    /// # Errors
    /// `invalid_argument` for a checkpoint with quantized weights; `context_overflow` for more than the model was made for;
    /// whatever reading meets.
    pub async fn load(mut backend: B, checkpoint: &Checkpoint, rows: usize, context: usize) -> Result<Self> {
        let config = checkpoint.config();
        config.check_context(context)?;
        if checkpoint.is_quantized() {
            return Err(Error::invalid_argument(format!(
                "{}: expected floating-point weights but found the {} layout; dequantize it first",
                checkpoint.name(),
                checkpoint.layout().name()
            )));
        }
        let tokens = rows.checked_mul(context).filter(|&tokens| tokens > 0).ok_or_else(|| {
            Error::invalid_argument(format!("expected rows with tokens but found {rows} of {context}"))
        })?;
        let ends = EmbeddingAndHead::load(&mut backend, checkpoint, LoadOptions::EXACT).await?;
        let embedding_module = checkpoint.embedding_module();
        let embedding = Trained::matrix(&mut backend, checkpoint, embedding_module).await?;
        let head = if config.tie_word_embeddings {
            None
        } else {
            Some(Trained::matrix(&mut backend, checkpoint, names::HEAD).await?)
        };
        let norm = format!("{}.weight", names::FINAL_NORM);
        let final_norm = Trained::vector(&mut backend, checkpoint, &norm, config.hidden_size).await?;
        let mut blocks = Vec::new();
        for layer in 0..config.num_hidden_layers {
            let block = Block::load(&mut backend, checkpoint, layer, LoadOptions::EXACT).await?;
            blocks.push((block, BlockParameters::load(&mut backend, checkpoint, layer).await?));
        }
        let cache = KvCache::new(&mut backend, config, 1, rows, context)?;
        let work = Workspace::new(&mut backend, config, tokens)?.keeping_inputs(&mut backend, config)?;
        let mut runner = Runner::new(backend, config, tokens)?;
        runner.work = work;
        let embedding_name = format!("{embedding_module}.weight");
        Ok(Self { runner, ends, embedding, head, final_norm, blocks, cache, embedding_name })
    }

    /// The mean loss of the predictions that count, in nats, and adds its derivatives to the gradients.
    ///
    /// # Errors
    /// `invalid_argument` for rows that are more or longer than announced, that are empty, whose targets are not as many
    /// as their tokens, and for a batch without a prediction that counts; what goes wrong on the device.
    pub async fn backward(&mut self, batch: &[Row<'_>]) -> Result<f64> {
        let (segments, counted) = self.segments(batch)?;
        let tokens: Vec<u32> = batch.iter().flat_map(|row| row.tokens).copied().collect();
        let targets: Vec<u32> = batch.iter().flat_map(|row| row.targets).copied().collect();
        let Self { runner, ends, blocks, cache, .. } = self;
        let (count, width) = (tokens.len(), runner.config.hidden_size);
        let mut x = vec![0.0; count * width];
        let mut delta = x.clone();
        // The input of each block, and of what comes after them.
        let mut inputs = Vec::with_capacity(blocks.len());
        runner.embed(ends, &tokens)?;
        runner.backend.read(&runner.hidden.residual, 0, &mut x).await?;
        for (block, _) in blocks.iter() {
            let mut input = runner.backend.buffer(Element::F32, x.len())?;
            runner.backend.write_f32(&mut input, &x)?;
            inputs.push(input);
            take_up(runner, &x)?;
            block.run(runner, &segments, cache, 0, (Stage::Start, Stage::End))?;
            // Attention's output is in the residual stream already, the MLP's is not.
            runner.backend.read(&runner.hidden.residual, 0, &mut x).await?;
            runner.backend.read(&runner.hidden.delta, 0, &mut delta).await?;
            for (x, delta) in x.iter_mut().zip(&delta) {
                *x += delta;
            }
        }
        take_up(runner, &x)?;
        let Self { embedding, head, final_norm, .. } = self;
        let parameters = HeadParameters { head: head.as_mut().unwrap_or(embedding), norm: final_norm };
        let share = 1.0 / counted as f32;
        let (losses, mut d) = runner.loss_backward(ends, &targets, share, parameters).await?;
        for ((block, parameters), input) in blocks.iter_mut().zip(&inputs).rev() {
            runner.backend.read(input, 0, &mut x).await?;
            take_up(runner, &x)?;
            block.backward(runner, &segments, cache, input, parameters, &mut d)?;
        }
        runner.embed_backward(&tokens, &d, &mut self.embedding)?;
        Ok(losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / counted as f64)
    }

    /// Where the rows of a batch stand, and how many predictions count.
    fn segments(&self, batch: &[Row<'_>]) -> Result<(Vec<Segment>, usize)> {
        let (rows, context) = (self.cache.sequences(), self.cache.capacity());
        if batch.len() > rows {
            return Err(Error::invalid_argument(format!(
                "expected at most {rows} rows but found {}",
                batch.len()
            )));
        }
        let mut segments = Vec::new();
        for (index, Row { tokens, targets }) in batch.iter().enumerate() {
            let count = tokens.len();
            if count == 0 || count > context || targets.len() != count {
                return Err(Error::invalid_argument(format!(
                    "row {index}: expected from 1 to {context} tokens and as many targets but found {count} and {}",
                    targets.len()
                )));
            }
            segments.push(Segment { start: index * context, ..Segment::causal(0, count) });
        }
        let counted = batch.iter().flat_map(|row| row.targets).filter(|&&target| target != NO_INDEX).count();
        if counted == 0 {
            return Err(Error::invalid_argument(
                "expected a prediction that counts but all targets are masked",
            ));
        }
        Ok((segments, counted))
    }

    /// The gradient of every parameter, with its tensor's name.
    ///
    /// # Errors
    /// What goes wrong on the device.
    pub async fn gradients(&mut self) -> Result<Vec<(String, Vec<f32>)>> {
        let mut named = vec![(self.embedding_name.clone(), &self.embedding)];
        for (layer, (_, parameters)) in self.blocks.iter().enumerate() {
            named.extend(parameters.named(layer));
        }
        named.push((format!("{}.weight", names::FINAL_NORM), &self.final_norm));
        named.extend(self.head.as_ref().map(|head| (format!("{}.weight", names::HEAD), head)));
        let mut gradients = Vec::with_capacity(named.len());
        for (name, trained) in named {
            let mut gradient = vec![0.0; trained.len];
            self.runner.backend.read(&trained.gradient, 0, &mut gradient).await?;
            gradients.push((name, gradient));
        }
        Ok(gradients)
    }
}

/// Puts the tokens at hand in front of a block whose input is `x`.
fn take_up<B: Train>(runner: &mut Runner<B>, x: &[f32]) -> Result<()> {
    runner.hidden.has_delta = false;
    runner.backend.write_f32(&mut runner.hidden.residual, x)
}
