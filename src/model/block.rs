//! One transformer block: attention and a gated MLP, each behind a norm and added to the residual stream.
//!
//! A block is loaded, run and dropped alone, so a model larger than memory runs block by block. Floor 5.

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::names::{BlockNorm, Linear};
use super::weights::{LoadOptions, Part, load_linear, load_norm};
use crate::backend::{Backend, Element, KvLayer, Norm, QkNorm};
use crate::error::Result;

/// The weights of one block on a device.
pub struct Block<B: Backend> {
    input_norm: Norm<B::Buffer>,
    /// `q|k|v`
    qkv: B::Weight,
    qk_norm: Option<QkNorm<B::Buffer>>,
    attention_sub_norm: Option<Norm<B::Buffer>>,
    o: B::Weight,
    post_attention_norm: Norm<B::Buffer>,
    /// `gate|up`
    gate_up: B::Weight,
    mlp_sub_norm: Option<Norm<B::Buffer>>,
    down: B::Weight,
}

/// The hidden states of a run of tokens between two blocks. The last block's output waits in `delta` until the next
/// norm adds it to the residual stream, so that adding costs no step of its own.
pub struct Hidden<B: Backend> {
    /// Residual stream, `[count, hidden_size]`.
    pub residual: B::Buffer,
    /// What the last block adds to it, `[count, hidden_size]`; nothing yet after the embedding.
    pub delta: B::Buffer,
    /// Whether `delta` holds anything.
    pub has_delta: bool,
    /// Tokens.
    pub count: usize,
}

/// Intermediate results of a run of tokens, allocated once for the longest run.
pub struct Workspace<B: Backend> {
    /// Most tokens of a run.
    pub tokens: usize,
    pub(super) token_ids: B::Buffer,
    pub(super) normed: B::Buffer,
    qkv: B::Buffer,
    attended: B::Buffer,
    attended_normed: Option<B::Buffer>,
    attention_out: B::Buffer,
    gate_up: B::Buffer,
    gated: B::Buffer,
    gated_normed: Option<B::Buffer>,
}

/// Elements of [`Hidden`] and [`Workspace`] for one token.
pub fn elements_per_token(config: &ModelConfig) -> usize {
    let attended = config.num_attention_heads * config.head_dim;
    let sub_norms = if config.sub_norms { attended + config.intermediate_size } else { 0 };
    // The residual stream and its delta, a norm's and attention's outputs, and the token's id.
    let vectors = 4 * config.hidden_size + 1;
    vectors + config.attention_shape(0).qkv_width() + attended + 3 * config.intermediate_size + sub_norms
}

impl<B: Backend> Workspace<B> {
    /// Room for runs of at most `tokens` tokens.
    pub fn new(backend: &mut B, config: &ModelConfig, tokens: usize) -> Result<Self> {
        let attended = config.num_attention_heads * config.head_dim;
        let mut buffer = |width: usize| backend.buffer(Element::F32, tokens * width);
        Ok(Self {
            tokens,
            normed: buffer(config.hidden_size)?,
            qkv: buffer(config.attention_shape(0).qkv_width())?,
            attended: buffer(attended)?,
            attended_normed: if config.sub_norms { Some(buffer(attended)?) } else { None },
            attention_out: buffer(config.hidden_size)?,
            gate_up: buffer(2 * config.intermediate_size)?,
            gated: buffer(config.intermediate_size)?,
            gated_normed: if config.sub_norms { Some(buffer(config.intermediate_size)?) } else { None },
            token_ids: backend.buffer(Element::U32, tokens)?,
        })
    }
}

/// Where a run of tokens stands in its sequence, and what it attends to.
pub struct Position<'a, B: Backend> {
    /// Position of the run's first token.
    pub past: usize,
    /// Positions that the cache has room for.
    pub capacity: usize,
    /// Cosines and sines, `[capacity, head_dim]`.
    pub rope: &'a B::Buffer,
    /// This block's keys and values.
    pub cache: &'a mut KvLayer<B::Buffer>,
}

impl<B: Backend> Block<B> {
    /// Loads block `layer`.
    pub async fn load(
        backend: &mut B,
        checkpoint: &Checkpoint,
        layer: usize,
        options: LoadOptions,
    ) -> Result<Self> {
        let config = checkpoint.config();
        let part = |linear: Linear| Part { module: linear.module(layer), bias: linear.has_bias(config) };
        let qkv = [Linear::Q, Linear::K, Linear::V].map(part);
        let gate_up = [Linear::Gate, Linear::Up].map(part);
        let mut loader = Loader { backend, checkpoint, layer };
        Ok(Self {
            input_norm: loader.norm(BlockNorm::Input).await?,
            qk_norm: if config.qk_norm {
                Some(QkNorm {
                    q: loader.norm(BlockNorm::Query).await?,
                    k: loader.norm(BlockNorm::Key).await?,
                })
            } else {
                None
            },
            attention_sub_norm: loader.optional_norm(BlockNorm::AttentionSub).await?,
            post_attention_norm: loader.norm(BlockNorm::PostAttention).await?,
            mlp_sub_norm: loader.optional_norm(BlockNorm::MlpSub).await?,
            qkv: load_linear(loader.backend, checkpoint, &qkv, options).await?,
            o: load_linear(loader.backend, checkpoint, &[part(Linear::O)], options).await?,
            gate_up: load_linear(loader.backend, checkpoint, &gate_up, options).await?,
            down: load_linear(loader.backend, checkpoint, &[part(Linear::Down)], options).await?,
        })
    }

    /// Runs the tokens of `hidden` through the block and appends their keys and values to the cache.
    pub fn forward(
        &self,
        backend: &mut B,
        config: &ModelConfig,
        hidden: &mut Hidden<B>,
        work: &mut Workspace<B>,
        position: Position<'_, B>,
    ) -> Result<()> {
        let Position { past, capacity, rope, cache } = position;
        let shape = config.attention_shape(capacity);
        let count = hidden.count;

        let delta = hidden.has_delta.then_some(&hidden.delta);
        backend.add_rms_norm(&mut hidden.residual, delta, count, &self.input_norm, &mut work.normed)?;
        backend.linear(&work.normed, count, &self.qkv, &mut work.qkv)?;
        backend.rope_and_append_kv(&mut work.qkv, count, past, &shape, rope, self.qk_norm.as_ref(), cache)?;
        backend.attention(&work.qkv, count, past, &shape, cache, &mut work.attended)?;
        let attended = sub_norm(
            backend,
            &self.attention_sub_norm,
            count,
            &mut work.attended,
            &mut work.attended_normed,
        )?;
        backend.linear(attended, count, &self.o, &mut work.attention_out)?;

        let delta = Some(&work.attention_out);
        backend.add_rms_norm(
            &mut hidden.residual,
            delta,
            count,
            &self.post_attention_norm,
            &mut work.normed,
        )?;
        backend.linear(&work.normed, count, &self.gate_up, &mut work.gate_up)?;
        backend.gate(&work.gate_up, count, config.intermediate_size, config.activation, &mut work.gated)?;
        let gated = sub_norm(backend, &self.mlp_sub_norm, count, &mut work.gated, &mut work.gated_normed)?;
        backend.linear(gated, count, &self.down, &mut hidden.delta)?;
        hidden.has_delta = true;
        Ok(())
    }
}

/// BitNet's norm before an output projection; other architectures pass their input through.
fn sub_norm<'a, B: Backend>(
    backend: &mut B,
    norm: &Option<Norm<B::Buffer>>,
    count: usize,
    input: &'a mut B::Buffer,
    output: &'a mut Option<B::Buffer>,
) -> Result<&'a B::Buffer> {
    match (norm, output) {
        (Some(norm), Some(output)) => {
            backend.add_rms_norm(input, None, count, norm, output)?;
            Ok(output)
        }
        _ => Ok(input),
    }
}

struct Loader<'a, B: Backend> {
    backend: &'a mut B,
    checkpoint: &'a Checkpoint,
    layer: usize,
}

impl<B: Backend> Loader<'_, B> {
    async fn norm(&mut self, norm: BlockNorm) -> Result<Norm<B::Buffer>> {
        let width = norm.width(self.checkpoint.config());
        load_norm(self.backend, self.checkpoint, &norm.module(self.layer), width).await
    }

    async fn optional_norm(&mut self, norm: BlockNorm) -> Result<Option<Norm<B::Buffer>>> {
        if self.checkpoint.config().sub_norms { Ok(Some(self.norm(norm).await?)) } else { Ok(None) }
    }
}
