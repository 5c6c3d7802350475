//! One transformer block: attention and a gated MLP, each behind a norm and added to the residual stream.
//!
//! A block is loaded, run and dropped independently, so a model larger than memory can run block by block.

#[cfg(feature = "train")]
mod backward;

#[cfg(feature = "train")]
pub use backward::{BackwardWorkspace, BlockParameters};

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::kv_cache::KvCache;
use super::names::{BlockNorm, Linear};
use super::runner::Runner;
use super::weights::{LoadOptions, Part, WeightSource, load_linear, load_norm};
use crate::backend::{Backend, Element, Norm, QkNorm, Segment};
use crate::error::{Error, Result};

/// The weights of one block on a device.
pub struct Block<B: Backend> {
    /// In the order of [`BlockNorm::ALL`]; `None` where the architecture has none.
    norms: [Option<Norm<B::Buffer>>; 6],
    /// By input, in the order of [`LinearInput::ALL`]: `q|k|v`, `o`, `gate|up`, `down`. `None` after a failed
    /// replacement.
    linears: [Option<B::Weight>; 4],
}

/// The hidden states of a run of tokens between two blocks. The last block's output stays in `delta` until the next
/// norm adds it to the residual stream, which saves a separate addition.
pub struct Hidden<B: Backend> {
    /// Residual stream, `[count, hidden_size]`.
    pub residual: B::Buffer,
    /// Output of the last block, not yet added to the residual stream, `[count, hidden_size]`.
    pub delta: B::Buffer,
    /// Whether `delta` is valid; `false` after the embedding.
    pub has_delta: bool,
    /// Number of tokens.
    pub count: usize,
}

/// Intermediate results of a run of tokens, allocated once for the longest run.
pub struct Workspace<B: Backend> {
    /// The largest number of tokens in a run.
    pub tokens: usize,
    pub(super) token_ids: B::Buffer,
    pub(super) normed: B::Buffer,
    qkv: B::Buffer,
    attended: B::Buffer,
    attended_normed: Option<B::Buffer>,
    /// Output of attention, to be added to the residual stream, `[tokens, hidden_size]`.
    pub attention_out: B::Buffer,
    /// Separate input of gate and up, if the input of q, k and v must be kept.
    mlp_normed: Option<B::Buffer>,
    gate_up: B::Buffer,
    gated: B::Buffer,
    gated_normed: Option<B::Buffer>,
}

/// Elements of [`Hidden`] and [`Workspace`] for one token.
pub fn elements_per_token(config: &ModelConfig) -> usize {
    let attended = config.num_attention_heads * config.head_dim;
    let sub_norms = if config.sub_norms { attended + config.intermediate_size } else { 0 };
    // The residual stream and its delta, the outputs of a norm and of attention, and the token's id.
    let vectors = 4 * config.hidden_size + 1;
    vectors + config.attention_shape(0).qkv_width() + attended + 3 * config.intermediate_size + sub_norms
}

impl<B: Backend> Workspace<B> {
    /// A workspace for runs of at most `tokens` tokens.
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
            mlp_normed: None,
            gate_up: buffer(2 * config.intermediate_size)?,
            gated: buffer(config.intermediate_size)?,
            gated_normed: if config.sub_norms { Some(buffer(config.intermediate_size)?) } else { None },
            token_ids: backend.buffer(Element::U32, tokens)?,
        })
    }
}

/// Stages of a block, in the order of the data flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before the block.
    Start,
    /// At the input of q, k and v.
    Qkv,
    /// At the input of the attention's output projection.
    O,
    /// After the attention's output projection. Its output is not yet added to the residual stream.
    AttentionOutput,
    /// At the input of gate and up. The residual stream includes the attention's output.
    GateUp,
    /// At the input of the down projection.
    Down,
    /// After the block. Its output is in [`Hidden::delta`].
    End,
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
        let mut block = Self { norms: [const { None }; 6], linears: [const { None }; 4] };
        for norm in BlockNorm::ALL.into_iter().filter(|norm| norm.is_in(config)) {
            let loaded = load_norm(backend, checkpoint, &norm.module(layer), norm.width(config)).await?;
            block.norms[norm as usize] = Some(loaded);
        }
        for input in LinearInput::ALL {
            block.replace(backend, checkpoint, layer, input, &[], options).await?;
        }
        Ok(block)
    }

    /// Runs the current tokens, those of `segments`, from one stage to another. Appends their keys and values to
    /// `layer` of `cache`.
    pub fn run(
        &self,
        runner: &mut Runner<B>,
        segments: &[Segment],
        cache: &mut KvCache<B>,
        layer: usize,
        (from, to): (Stage, Stage),
    ) -> Result<()> {
        let Runner { backend, config, hidden, work, rope } = runner;
        let count = hidden.count;
        let passes = |stage| from < stage && stage <= to;
        if passes(Stage::Qkv) {
            let delta = hidden.has_delta.then_some(&hidden.delta);
            let norm = self.norm(BlockNorm::Input).ok_or_else(incomplete)?;
            backend.add_rms_norm(&mut hidden.residual, delta, count, norm, &mut work.normed)?;
        }
        if passes(Stage::O) {
            let shape = config.attention_shape(cache.positions());
            let rope = rope.reserve(backend, config, cache.capacity())?;
            let cache = cache.layer_mut(layer);
            backend.linear(&work.normed, count, self.linear(LinearInput::Qkv)?, &mut work.qkv)?;
            let qk_norm = self.norm(BlockNorm::Query).zip(self.norm(BlockNorm::Key));
            let qk_norm = qk_norm.map(|(q, k)| QkNorm { q, k });
            backend.rope_and_append_kv(&mut work.qkv, segments, &shape, rope, qk_norm, cache.as_mut())?;
            backend.attention(&work.qkv, segments, &shape, cache.as_ref(), &mut work.attended)?;
            sub_norm(
                backend,
                self.norm(BlockNorm::AttentionSub),
                count,
                &mut work.attended,
                &mut work.attended_normed,
            )?;
        }
        if passes(Stage::AttentionOutput) {
            let attended = work.attended_normed.as_ref().unwrap_or(&work.attended);
            backend.linear(attended, count, self.linear(LinearInput::O)?, &mut work.attention_out)?;
        }
        if passes(Stage::GateUp) {
            let norm = self.norm(BlockNorm::PostAttention).ok_or_else(incomplete)?;
            let normed = work.mlp_normed.as_mut().unwrap_or(&mut work.normed);
            let attended = Some(&work.attention_out);
            backend.add_rms_norm(&mut hidden.residual, attended, count, norm, normed)?;
        }
        if passes(Stage::Down) {
            let normed = work.mlp_normed.as_ref().unwrap_or(&work.normed);
            backend.linear(normed, count, self.linear(LinearInput::GateUp)?, &mut work.gate_up)?;
            let (width, activation) = (config.intermediate_size, config.activation);
            backend.gate(&work.gate_up, count, width, activation, &mut work.gated)?;
            sub_norm(backend, self.norm(BlockNorm::MlpSub), count, &mut work.gated, &mut work.gated_normed)?;
        }
        if passes(Stage::End) {
            let gated = work.gated_normed.as_ref().unwrap_or(&work.gated);
            backend.linear(gated, count, self.linear(LinearInput::Down)?, &mut hidden.delta)?;
            hidden.has_delta = true;
        }
        Ok(())
    }

    fn norm(&self, norm: BlockNorm) -> Option<Norm<&B::Buffer>> {
        self.norms[norm as usize].as_ref().map(Norm::as_ref)
    }

    fn linear(&self, input: LinearInput) -> Result<&B::Weight> {
        self.linears[input as usize].as_ref().ok_or_else(incomplete)
    }

    /// Replaces the weights of the layers that read `input`: with those of `sources`, or with the checkpoint's for
    /// layers without a source. The old weights are dropped first, so that both never need memory at once. After a
    /// failure there are none.
    pub async fn replace(
        &mut self,
        backend: &mut B,
        checkpoint: &Checkpoint,
        layer: usize,
        input: LinearInput,
        sources: &[(Linear, WeightSource<'_>)],
        options: LoadOptions,
    ) -> Result<()> {
        let parts = input.linears().iter().map(|&linear| {
            let source = sources.iter().find(|(which, _)| *which == linear);
            Part::of(
                checkpoint,
                layer,
                linear,
                source.map_or(WeightSource::Checkpoint, |(_, source)| *source),
            )
        });
        let weight = &mut self.linears[input as usize];
        *weight = None;
        *weight = Some(load_linear(backend, checkpoint, &parts.collect::<Vec<_>>(), options).await?);
        Ok(())
    }
}

/// The inputs of a block's linear layers, in the order of the data flow. Calibration samples activations there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearInput {
    /// The input of q, k and v.
    Qkv,
    /// The input of the attention's output projection.
    O,
    /// The input of gate and up.
    GateUp,
    /// The input of the down projection.
    Down,
}

impl LinearInput {
    /// In the order of the data flow.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];

    /// The modules that read this input, in the order of their concatenated outputs.
    pub fn linears(self) -> &'static [Linear] {
        match self {
            Self::Qkv => &[Linear::Q, Linear::K, Linear::V],
            Self::O => &[Linear::O],
            Self::GateUp => &[Linear::Gate, Linear::Up],
            Self::Down => &[Linear::Down],
        }
    }

    /// Number of features.
    pub fn width(self, config: &ModelConfig) -> usize {
        self.linears()[0].shape(config).1
    }

    /// The stage at which tokens have reached this input.
    pub fn stage(self) -> Stage {
        [Stage::Qkv, Stage::O, Stage::GateUp, Stage::Down][self as usize]
    }
}

impl<B: Backend> Workspace<B> {
    /// Keeps the inputs of all linear layers until the end of a block. Otherwise the input of gate and up overwrites
    /// the input of q, k and v.
    pub fn keeping_inputs(mut self, backend: &mut B, config: &ModelConfig) -> Result<Self> {
        self.mlp_normed = Some(backend.buffer(Element::F32, self.tokens * config.hidden_size)?);
        Ok(self)
    }

    /// The activations at an input, `[tokens, width]`.
    pub fn at(&self, input: LinearInput) -> &B::Buffer {
        match input {
            LinearInput::Qkv => &self.normed,
            LinearInput::O => self.attended_normed.as_ref().unwrap_or(&self.attended),
            LinearInput::GateUp => self.mlp_normed.as_ref().unwrap_or(&self.normed),
            LinearInput::Down => self.gated_normed.as_ref().unwrap_or(&self.gated),
        }
    }

    /// As [`at`](Self::at), to write activations and continue from there.
    pub fn at_mut(&mut self, input: LinearInput) -> &mut B::Buffer {
        match input {
            LinearInput::Qkv => &mut self.normed,
            LinearInput::O => self.attended_normed.as_mut().unwrap_or(&mut self.attended),
            LinearInput::GateUp => self.mlp_normed.as_mut().unwrap_or(&mut self.normed),
            LinearInput::Down => self.gated_normed.as_mut().unwrap_or(&mut self.gated),
        }
    }
}

/// BitNet's norm before an output projection. Does nothing for other architectures.
fn sub_norm<B: Backend>(
    backend: &mut B,
    norm: Option<Norm<&B::Buffer>>,
    count: usize,
    input: &mut B::Buffer,
    output: &mut Option<B::Buffer>,
) -> Result<()> {
    match (norm, output) {
        (Some(norm), Some(output)) => backend.add_rms_norm(input, None, count, norm, output),
        _ => Ok(()),
    }
}

fn incomplete() -> Error {
    Error::invalid_argument("expected a block with all its weights, but some failed to load")
}
