//! A block, backward: its forward steps run once more, and then each of them in the opposite order. Floor 5.

use super::{Block, LinearInput, Stage, incomplete};
use crate::backend::{
    Backend, BackwardStep, Columns, Element, HeadNorms, KvLayer, Norm, QkNorm, Segment, Train,
};
use crate::error::Result;
use crate::model::kv_cache::KvCache;
use crate::model::names::{BlockNorm, Linear};
use crate::model::runner::Runner;
use crate::model::weights::{DenseRows, read_vector};
use crate::model::{Checkpoint, ModelConfig};
use crate::task::Silent;

/// A parameter that is trained, and the derivative of the loss by it, in buffers of one length.
pub struct Trained<B: Train> {
    /// As the backward steps multiply by it, in `f32`.
    pub value: B::Buffer,
    /// The sum over what ran backward since it was 0.
    pub gradient: B::Buffer,
    /// Elements of each.
    pub len: usize,
}

impl<B: Train> Trained<B> {
    fn new(backend: &mut B, values: &[f32]) -> Result<Self> {
        let mut value = backend.buffer(Element::F32, values.len())?;
        backend.write_f32(&mut value, values)?;
        Ok(Self { value, gradient: backend.buffer(Element::F32, values.len())?, len: values.len() })
    }

    /// The weight of a linear layer or a table.
    ///
    /// # Errors
    /// `invalid_argument` where it is quantized; whatever reading meets.
    pub async fn matrix(backend: &mut B, checkpoint: &Checkpoint, module: &str) -> Result<Self> {
        let mut values = Vec::new();
        let take = |_, rows: &[f32]| {
            values.extend_from_slice(rows);
            Ok(())
        };
        DenseRows::new(checkpoint, module)?.for_each(&Silent, take).await?;
        Self::new(backend, &values)
    }

    /// A norm's weight or a bias.
    ///
    /// # Errors
    /// Whatever reading meets.
    pub async fn vector(backend: &mut B, checkpoint: &Checkpoint, tensor: &str, len: usize) -> Result<Self> {
        Self::new(backend, &read_vector(checkpoint, tensor, len).await?)
    }
}

/// The parameters of a block.
pub struct BlockParameters<B: Train> {
    /// In the order of [`BlockNorm::ALL`].
    norms: [Option<Trained<B>>; 6],
    /// In the order of [`Linear::ALL`]: weight, and bias where there is one.
    linears: Vec<(Trained<B>, Option<Trained<B>>)>,
}

impl<B: Train> BlockParameters<B> {
    /// Reads those of block `layer`.
    ///
    /// # Errors
    /// `invalid_argument` where a weight is quantized; whatever reading meets.
    pub async fn load(backend: &mut B, checkpoint: &Checkpoint, layer: usize) -> Result<Self> {
        let config = checkpoint.config();
        let mut norms = [const { None }; 6];
        for norm in BlockNorm::ALL.into_iter().filter(|norm| norm.is_in(config)) {
            let tensor = format!("{}.weight", norm.module(layer));
            norms[norm as usize] =
                Some(Trained::vector(backend, checkpoint, &tensor, norm.width(config)).await?);
        }
        let mut linears = Vec::new();
        for linear in Linear::ALL {
            let module = linear.module(layer);
            let weight = Trained::matrix(backend, checkpoint, &module).await?;
            let bias = if linear.has_bias(config) {
                let tensor = format!("{module}.bias");
                Some(Trained::vector(backend, checkpoint, &tensor, linear.shape(config).0).await?)
            } else {
                None
            };
            linears.push((weight, bias));
        }
        Ok(Self { norms, linears })
    }

    /// All of them with their tensors' names.
    pub fn named(&self, layer: usize) -> Vec<(String, &Trained<B>)> {
        let mut named = Vec::new();
        for (norm, trained) in BlockNorm::ALL.into_iter().zip(&self.norms) {
            named.extend(trained.as_ref().map(|trained| (format!("{}.weight", norm.module(layer)), trained)));
        }
        for (linear, (weight, bias)) in Linear::ALL.into_iter().zip(&self.linears) {
            let module = linear.module(layer);
            named.push((format!("{module}.weight"), weight));
            named.extend(bias.as_ref().map(|bias| (format!("{module}.bias"), bias)));
        }
        named
    }

    /// Adds the derivatives by the weight of a norm, and to `dx` those by its input.
    fn norm(
        &mut self,
        backend: &mut B,
        norm: BlockNorm,
        config: &ModelConfig,
        (x, dy, count): (&B::Buffer, &B::Buffer, usize),
        dx: &mut B::Buffer,
    ) -> Result<()> {
        let width = norm.width(config);
        let Trained { value, gradient, .. } = self.norms[norm as usize].as_mut().ok_or_else(incomplete)?;
        let norm = Norm { weight: &*value, width, epsilon: config.rms_norm_eps };
        backend.backward(BackwardStep::RmsNorm { x, dy, count, norm, dx, dweight: gradient })
    }

    /// Adds the derivatives by the weights of the layers that read an input, and gives those by the input.
    fn input(
        &mut self,
        backend: &mut B,
        input: LinearInput,
        config: &ModelConfig,
        (x, dy, count): (&B::Buffer, &B::Buffer, usize),
    ) -> Result<B::Buffer> {
        let cols = input.width(config);
        let stride = input.linears().iter().map(|linear| linear.shape(config).0).sum();
        let mut dx = backend.buffer(Element::F32, count * cols)?;
        let mut first = 0;
        for &linear in input.linears() {
            let len = linear.shape(config).0;
            let columns = Columns { first, len, stride };
            let (weight, bias) = &mut self.linears[linear as usize];
            backend.backward(BackwardStep::Linear {
                x,
                dy,
                columns,
                count,
                cols,
                weight: &weight.value,
                dx: &mut dx,
                dweight: &mut weight.gradient,
                dbias: bias.as_mut().map(|bias| &mut bias.gradient),
            })?;
            first += len;
        }
        Ok(dx)
    }
}

impl<B: Train> Block<B> {
    /// Takes `d`, the derivatives of the loss by the block's output, `[tokens, hidden_size]`, to those by its input, in place, and
    /// adds those by its parameters. `x` is the input of the tokens of `segments`, which begin with their sequences;
    /// their keys and values go to layer 0 of `cache`. The workspace keeps all inputs
    /// ([`keeping_inputs`](super::Workspace::keeping_inputs)).
    ///
    /// # Errors
    /// What goes wrong on the device.
    pub fn backward(
        &self,
        runner: &mut Runner<B>,
        segments: &[Segment],
        cache: &mut KvCache<B>,
        x: &B::Buffer,
        parameters: &mut BlockParameters<B>,
        d: &mut B::Buffer,
    ) -> Result<()> {
        self.run(runner, segments, cache, 0, (Stage::Start, Stage::Down))?;
        let Runner { backend, config, hidden, work, rope } = runner;
        let count = hidden.count;

        // The MLP.
        let mut wide =
            parameters.input(backend, LinearInput::Down, config, (work.at(LinearInput::Down), d, count))?;
        wide = through_sub_norm(backend, parameters, BlockNorm::MlpSub, config, (&work.gated, wide, count))?;
        let (width, activation) = (config.intermediate_size, config.activation);
        let mut gated = backend.buffer(Element::F32, count * 2 * width)?;
        let gate_up = &work.gate_up;
        backend.backward(BackwardStep::Gate {
            gate_up,
            dy: &wide,
            count,
            width,
            activation,
            dx: &mut gated,
        })?;
        let input = LinearInput::GateUp;
        let normed = parameters.input(backend, input, config, (work.at(input), &gated, count))?;
        parameters.norm(backend, BlockNorm::PostAttention, config, (&hidden.residual, &normed, count), d)?;

        // Attention.
        let mut attended =
            parameters.input(backend, LinearInput::O, config, (work.at(LinearInput::O), d, count))?;
        attended = through_sub_norm(
            backend,
            parameters,
            BlockNorm::AttentionSub,
            config,
            (&work.attended, attended, count),
        )?;
        let shape = config.attention_shape(cache.positions());
        let mut qkv = backend.buffer(Element::F32, count * shape.qkv_width())?;
        let rope = rope.reserve(backend, config, cache.capacity())?;
        let KvLayer { keys, values } = cache.layer_mut(0).as_ref();
        let cached = KvLayer { keys, values };
        backend.backward(BackwardStep::Attention {
            qkv: &work.qkv,
            segments,
            shape,
            cache: cached,
            dy: &attended,
            dx: &mut qkv,
        })?;
        let mut before = None;
        if config.qk_norm {
            // Rotation took their place.
            let mut made = backend.buffer(Element::F32, count * shape.qkv_width())?;
            backend.linear(&work.normed, count, self.linear(LinearInput::Qkv)?, &mut made)?;
            before = Some(made);
        }
        let [_, _, query, key, ..] = &mut parameters.norms;
        let norms = match (&before, query, key) {
            (Some(made), Some(q), Some(k)) => {
                let norm = |weight| Norm { weight, width: config.head_dim, epsilon: config.rms_norm_eps };
                Some(HeadNorms {
                    qkv: made,
                    norms: QkNorm { q: norm(&q.value), k: norm(&k.value) },
                    dq: &mut q.gradient,
                    dk: &mut k.gradient,
                })
            }
            _ => None,
        };
        backend.backward(BackwardStep::Rope { dx: &mut qkv, segments, shape, rope, norms })?;
        let normed = parameters.input(backend, LinearInput::Qkv, config, (&work.normed, &qkv, count))?;
        parameters.norm(backend, BlockNorm::Input, config, (x, &normed, count), d)
    }
}

/// `d` before BitNet's norm in front of an output projection, where there is one; `x` is what it normalizes.
fn through_sub_norm<B: Train>(
    backend: &mut B,
    parameters: &mut BlockParameters<B>,
    norm: BlockNorm,
    config: &ModelConfig,
    (x, d, count): (&B::Buffer, B::Buffer, usize),
) -> Result<B::Buffer> {
    if !norm.is_in(config) {
        return Ok(d);
    }
    let mut before = backend.buffer(Element::F32, count * norm.width(config))?;
    parameters.norm(backend, norm, config, (x, &d, count), &mut before)?;
    Ok(before)
}
