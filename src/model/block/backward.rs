//! The backward pass of a block: the backward steps of its forward steps, in reverse order.

use super::{Block, LinearInput, incomplete};
use crate::backend::{Backend, BackwardStep, Element, HeadNorms, KvLayer, QkNorm, Segment, Train};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::model::kv_cache::KvCache;
use crate::model::names::BlockNorm;
use crate::model::runner::Runner;
use crate::model::trained::{self, LinearParameters, Parameter};

/// The parameters of a block.
pub struct BlockParameters<B: Train> {
    /// In the order of [`BlockNorm::ALL`]; `None` where the architecture has none.
    pub norms: [Option<Parameter<B>>; 6],
    /// By input, in the order of [`LinearInput::ALL`] and [`LinearInput::linears`].
    pub linears: [Vec<LinearParameters<B>>; 4],
}

impl<B: Train> BlockParameters<B> {
    /// All parameters, in a fixed order.
    pub fn all(&self) -> impl Iterator<Item = &Parameter<B>> {
        let layers = self.linears.iter().flatten();
        self.norms
            .iter()
            .flatten()
            .chain(layers.flat_map(|layer| [Some(&layer.weight), layer.bias.as_ref()]).flatten())
    }

    /// As [`all`](Self::all), mutably.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Parameter<B>> {
        let layers = self.linears.iter_mut().flatten();
        let layers = layers.flat_map(|layer| [Some(&mut layer.weight), layer.bias.as_mut()]).flatten();
        self.norms.iter_mut().flatten().chain(layers)
    }

    /// Builds the running weights of `block` from the parameters. After a failure, the block is incomplete.
    ///
    /// # Errors
    /// `non_finite` naming a tensor in which training produced NaN or infinity; errors of the device.
    pub async fn refresh_weights(
        &mut self,
        backend: &mut B,
        config: &ModelConfig,
        block: &mut Block<B>,
    ) -> Result<()> {
        for (norm, parameter) in block.norms.iter_mut().zip(&self.norms) {
            *norm = match parameter {
                Some(parameter) => Some(trained::norm(backend, parameter, config.rms_norm_eps).await?),
                None => None,
            };
        }
        for (linear, parameters) in block.linears.iter_mut().zip(&mut self.linears) {
            // The old weight is dropped first, so that both never need memory at once.
            *linear = None;
            *linear = Some(trained::weight(backend, parameters).await?);
        }
        Ok(())
    }

    /// Accumulates the gradient of a norm's weight, and adds the gradient with respect to its input to `dx`.
    fn norm(
        &mut self,
        backend: &mut B,
        block: &Block<B>,
        norm: BlockNorm,
        (x, dy, count): (&B::Buffer, &B::Buffer, usize),
        dx: &mut B::Buffer,
    ) -> Result<()> {
        let running = block.norm(norm).ok_or_else(incomplete)?;
        let Parameter { gradient, .. } = self.norms[norm as usize].as_mut().ok_or_else(incomplete)?;
        backend.backward(BackwardStep::RmsNorm { x, dy, count, norm: running, dx, dweight: gradient })
    }

    /// Accumulates the gradients of the layers that read an input, and writes the gradient with respect to the input to
    /// `dx`.
    fn input(
        &mut self,
        backend: &mut B,
        block: &Block<B>,
        input: LinearInput,
        (x, dy, count): (&B::Buffer, &B::Buffer, usize),
        dx: &mut B::Buffer,
    ) -> Result<()> {
        backend.backward(BackwardStep::Linear {
            x,
            dy,
            count,
            weight: block.linear(input)?,
            dx,
            parts: self.linears[input as usize].iter_mut().map(LinearParameters::gradient).collect(),
        })
    }
}

/// Intermediate gradients of a block's backward pass, allocated once for the longest run.
pub struct BackwardWorkspace<B: Train> {
    /// Gradients with respect to the inputs of linear layers, in the order of [`LinearInput::ALL`].
    inputs: [B::Buffer; 4],
    gate_up: B::Buffer,
    qkv: B::Buffer,
}

impl<B: Train> BackwardWorkspace<B> {
    /// A workspace for runs of at most `tokens` tokens.
    ///
    /// # Errors
    /// `out_of_memory`
    pub fn new(backend: &mut B, config: &ModelConfig, tokens: usize) -> Result<Self> {
        let mut buffer = |width: usize| backend.buffer(Element::F32, tokens * width);
        let [qkv, o, gate_up, down] = LinearInput::ALL.map(|input| buffer(input.width(config)));
        Ok(Self {
            inputs: [qkv?, o?, gate_up?, down?],
            gate_up: buffer(2 * config.intermediate_size)?,
            qkv: buffer(config.attention_shape(0).qkv_width())?,
        })
    }
}

impl<B: Train> Block<B> {
    /// A block without weights; [`BlockParameters::refresh_weights`] sets them.
    pub fn empty() -> Self {
        Self { norms: [const { None }; 6], linears: [const { None }; 4] }
    }
}

impl<B: Train> Block<B> {
    /// Runs the block backward. Replaces `d`, the gradient with respect to the block's output, `[tokens, hidden_size]`,
    /// by the gradient with respect to its input, and accumulates the gradients of its parameters.
    ///
    /// `x` is the block's input for the tokens of `segments`. Each segment starts at the beginning of its sequence.
    /// Runner and `layer` of `cache` must be in the state after a run to [`Stage::Down`](super::Stage::Down), with a
    /// workspace that keeps all inputs ([`keeping_inputs`](super::Workspace::keeping_inputs)).
    ///
    /// # Errors
    /// Errors of the device.
    pub fn backward(
        &self,
        runner: &mut Runner<B>,
        segments: &[Segment],
        (cache, layer): (&mut KvCache<B>, usize),
        x: &B::Buffer,
        parameters: &mut BlockParameters<B>,
        (back, d): (&mut BackwardWorkspace<B>, &mut B::Buffer),
    ) -> Result<()> {
        let Runner { backend, config, hidden, work, rope } = runner;
        let count = hidden.count;
        let BackwardWorkspace { inputs: [normed, attended, mlp_normed, gated], gate_up, qkv } = back;

        // The MLP.
        let input = LinearInput::Down;
        parameters.input(backend, self, input, (work.at(input), d, count), gated)?;
        let before = self.through_sub_norm(
            (backend, config),
            parameters,
            BlockNorm::MlpSub,
            (&work.gated, gated, count),
        )?;
        let (width, activation) = (config.intermediate_size, config.activation);
        backend.backward(BackwardStep::Gate {
            gate_up: &work.gate_up,
            dy: before.as_ref().unwrap_or(gated),
            count,
            width,
            activation,
            dx: gate_up,
        })?;
        let input = LinearInput::GateUp;
        parameters.input(backend, self, input, (work.at(input), gate_up, count), mlp_normed)?;
        let norm = BlockNorm::PostAttention;
        parameters.norm(backend, self, norm, (&hidden.residual, mlp_normed, count), d)?;

        // Attention.
        let input = LinearInput::O;
        parameters.input(backend, self, input, (work.at(input), d, count), attended)?;
        let before = self.through_sub_norm(
            (backend, config),
            parameters,
            BlockNorm::AttentionSub,
            (&work.attended, attended, count),
        )?;
        let shape = config.attention_shape(cache.positions());
        let rope = rope.reserve(backend, config, cache.capacity())?;
        let KvLayer { keys, values } = cache.layer_mut(layer).as_ref();
        let cached = KvLayer { keys, values };
        backend.backward(BackwardStep::Attention {
            qkv: &work.qkv,
            segments,
            shape,
            cache: cached,
            dy: before.as_ref().unwrap_or(attended),
            dx: qkv,
        })?;
        let mut before = None;
        if config.qk_norm {
            // Rotation has overwritten q and k, so they are computed again.
            let mut made = backend.buffer(Element::F32, count * shape.qkv_width())?;
            backend.linear(&work.normed, count, self.linear(LinearInput::Qkv)?, &mut made)?;
            before = Some(made);
        }
        let [_, _, query, key, ..] = &mut parameters.norms;
        let norms = match (&before, query, key, self.norm(BlockNorm::Query), self.norm(BlockNorm::Key)) {
            (Some(qkv), Some(query), Some(key), Some(q), Some(k)) => Some(HeadNorms {
                qkv,
                norms: QkNorm { q, k },
                dq: &mut query.gradient,
                dk: &mut key.gradient,
            }),
            _ => None,
        };
        backend.backward(BackwardStep::Rope { dx: qkv, segments, shape, rope, norms })?;
        let input = LinearInput::Qkv;
        parameters.input(backend, self, input, (work.at(input), qkv, count), normed)?;
        parameters.norm(backend, self, BlockNorm::Input, (x, normed, count), d)
    }

    /// The gradient with respect to the input `x` of BitNet's norm before an output projection. `None` if the
    /// architecture has no such norm.
    fn through_sub_norm(
        &self,
        (backend, config): (&mut B, &ModelConfig),
        parameters: &mut BlockParameters<B>,
        norm: BlockNorm,
        (x, d, count): (&B::Buffer, &B::Buffer, usize),
    ) -> Result<Option<B::Buffer>> {
        if !norm.is_in(config) {
            return Ok(None);
        }
        let mut before = backend.buffer(Element::F32, count * norm.width(config))?;
        parameters.norm(backend, self, norm, (x, d, count), &mut before)?;
        Ok(Some(before))
    }
}
