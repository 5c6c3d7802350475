//! One transformer block: attention and a gated MLP, each behind a norm and added to the residual stream.
//!
//! A block is loaded, run and dropped alone, so a model larger than memory runs block by block. Floor 5.

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::names::{BlockNorm, Linear};
use super::weights::{LoadOptions, Part, Replacement, load_linear, load_norm};
use crate::backend::{Backend, Element, KvLayer, Norm, QkNorm, Segment};
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

/// Where the tokens of a run stand in their sequences, and what they attend to.
pub struct Position<'a, B: Backend> {
    /// Whose tokens they are.
    pub segments: &'a [Segment],
    /// Positions that the cache has room for, those of all its sequences together.
    pub capacity: usize,
    /// Cosines and sines of at least as many positions as the longest sequence has, `[positions, head_dim]`.
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
        let parts = |site: Site| {
            let linears = site.linears().iter();
            linears.map(|&linear| Part::of(checkpoint, layer, linear)).collect::<Vec<_>>()
        };
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
            qkv: load_linear(loader.backend, checkpoint, &parts(Site::Attention), options).await?,
            o: load_linear(loader.backend, checkpoint, &parts(Site::Output), options).await?,
            gate_up: load_linear(loader.backend, checkpoint, &parts(Site::Mlp), options).await?,
            down: load_linear(loader.backend, checkpoint, &parts(Site::Down), options).await?,
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
        self.to_attention(backend, hidden, work)?;
        self.to_output(backend, config, hidden.count, work, position)?;
        self.to_mlp(backend, hidden, work)?;
        self.to_down(backend, config, hidden.count, work)?;
        self.finish(backend, hidden, work)
    }

    /// From `hidden` to the input of q, k and v: [`Site::Attention`].
    pub fn to_attention(
        &self,
        backend: &mut B,
        hidden: &mut Hidden<B>,
        work: &mut Workspace<B>,
    ) -> Result<()> {
        let delta = hidden.has_delta.then_some(&hidden.delta);
        backend.add_rms_norm(
            &mut hidden.residual,
            delta,
            hidden.count,
            self.input_norm.as_ref(),
            &mut work.normed,
        )
    }

    /// From there to the input of the output projection: [`Site::Output`].
    pub fn to_output(
        &self,
        backend: &mut B,
        config: &ModelConfig,
        count: usize,
        work: &mut Workspace<B>,
        position: Position<'_, B>,
    ) -> Result<()> {
        let Position { segments, capacity, rope, cache } = position;
        let shape = config.attention_shape(capacity);
        backend.linear(&work.normed, count, &self.qkv, &mut work.qkv)?;
        let qk_norm = self.qk_norm.as_ref().map(QkNorm::as_ref);
        backend.rope_and_append_kv(&mut work.qkv, segments, &shape, rope, qk_norm, cache.as_mut())?;
        backend.attention(&work.qkv, segments, &shape, cache.as_ref(), &mut work.attended)?;
        sub_norm(backend, &self.attention_sub_norm, count, &mut work.attended, &mut work.attended_normed)
    }

    /// From there to the attention's output alone, which [`Workspace::attention_out`] then is; the residual stream stays.
    pub fn attention_out(&self, backend: &mut B, count: usize, work: &mut Workspace<B>) -> Result<()> {
        let attended = work.attended_normed.as_ref().unwrap_or(&work.attended);
        backend.linear(attended, count, &self.o, &mut work.attention_out)
    }

    /// From there to the input of gate and up: [`Site::Mlp`]. The residual stream of `hidden` takes in the attention.
    pub fn to_mlp(&self, backend: &mut B, hidden: &mut Hidden<B>, work: &mut Workspace<B>) -> Result<()> {
        let count = hidden.count;
        self.attention_out(backend, count, work)?;
        let (delta, norm) = (Some(&work.attention_out), self.post_attention_norm.as_ref());
        backend.add_rms_norm(&mut hidden.residual, delta, count, norm, &mut work.normed)
    }

    /// From there to the input of the down projection: [`Site::Down`].
    pub fn to_down(
        &self,
        backend: &mut B,
        config: &ModelConfig,
        count: usize,
        work: &mut Workspace<B>,
    ) -> Result<()> {
        backend.linear(&work.normed, count, &self.gate_up, &mut work.gate_up)?;
        backend.gate(&work.gate_up, count, config.intermediate_size, config.activation, &mut work.gated)?;
        sub_norm(backend, &self.mlp_sub_norm, count, &mut work.gated, &mut work.gated_normed)
    }

    /// From there to the block's output, which waits in `hidden.delta`.
    pub fn finish(&self, backend: &mut B, hidden: &mut Hidden<B>, work: &mut Workspace<B>) -> Result<()> {
        let gated = work.gated_normed.as_ref().unwrap_or(&work.gated);
        backend.linear(gated, hidden.count, &self.down, &mut hidden.delta)?;
        hidden.has_delta = true;
        Ok(())
    }

    /// Puts other values in the place of the matrices that read `site`: those of `replaced`, and for its other modules
    /// the checkpoint's. The old ones are dropped first, so that both never need room at once.
    pub async fn replace(
        mut self,
        backend: &mut B,
        checkpoint: &Checkpoint,
        layer: usize,
        site: Site,
        replaced: &[(Linear, Replacement<'_>)],
        options: LoadOptions,
    ) -> Result<Self> {
        let parts: Vec<Part<'_>> = site
            .linears()
            .iter()
            .map(|&linear| {
                let replacement =
                    replaced.iter().find(|(which, _)| *which == linear).map(|(_, replacement)| *replacement);
                Part { replacement, ..Part::of(checkpoint, layer, linear) }
            })
            .collect();
        // Nothing is read before the old ones are gone.
        let weight = load_linear(backend, checkpoint, &parts, options);
        match site {
            Site::Attention => {
                drop(self.qkv);
                self.qkv = weight.await?;
            }
            Site::Output => {
                drop(self.o);
                self.o = weight.await?;
            }
            Site::Mlp => {
                drop(self.gate_up);
                self.gate_up = weight.await?;
            }
            Site::Down => {
                drop(self.down);
                self.down = weight.await?;
            }
        }
        Ok(self)
    }
}

/// The inputs of a block's linear layers, in the order of the data flow: where calibration looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// Of q, k and v.
    Attention,
    /// Of the attention's output projection.
    Output,
    /// Of gate and up.
    Mlp,
    /// Of the down projection.
    Down,
}

impl Site {
    /// In the order of the data flow.
    pub const ALL: [Self; 4] = [Self::Attention, Self::Output, Self::Mlp, Self::Down];

    /// The modules that read it; their outputs stand side by side in this order.
    pub fn linears(self) -> &'static [Linear] {
        match self {
            Self::Attention => &[Linear::Q, Linear::K, Linear::V],
            Self::Output => &[Linear::O],
            Self::Mlp => &[Linear::Gate, Linear::Up],
            Self::Down => &[Linear::Down],
        }
    }

    /// Features.
    pub fn width(self, config: &ModelConfig) -> usize {
        self.linears()[0].shape(config).1
    }
}

impl<B: Backend> Workspace<B> {
    /// What attention adds to the residual stream, `[tokens, hidden_size]`.
    pub fn attention_out(&self) -> &B::Buffer {
        &self.attention_out
    }

    /// The activations at `site`, `[tokens, width]`.
    pub fn at(&self, site: Site) -> &B::Buffer {
        match site {
            Site::Attention | Site::Mlp => &self.normed,
            Site::Output => self.attended_normed.as_ref().unwrap_or(&self.attended),
            Site::Down => self.gated_normed.as_ref().unwrap_or(&self.gated),
        }
    }

    /// The same, to go on from activations that were kept.
    pub fn at_mut(&mut self, site: Site) -> &mut B::Buffer {
        match site {
            Site::Attention | Site::Mlp => &mut self.normed,
            Site::Output => self.attended_normed.as_mut().unwrap_or(&mut self.attended),
            Site::Down => self.gated_normed.as_mut().unwrap_or(&mut self.gated),
        }
    }
}

/// BitNet's norm before an output projection; other architectures have none.
fn sub_norm<B: Backend>(
    backend: &mut B,
    norm: &Option<Norm<B::Buffer>>,
    count: usize,
    input: &mut B::Buffer,
    output: &mut Option<B::Buffer>,
) -> Result<()> {
    match (norm, output) {
        (Some(norm), Some(output)) => backend.add_rms_norm(input, None, count, norm.as_ref(), output),
        _ => Ok(()),
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
