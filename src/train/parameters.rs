//! All parameters of a model, and their initial values: a checkpoint's weights, or random ones.

use crate::backend::Train;
use crate::dtype::DType;
use crate::error::Result;
use crate::model::block::{BlockParameters, LinearInput};
use crate::model::names::{self, BlockNorm, Linear};
use crate::model::runner::EndParameters;
use crate::model::trained::{LinearParameters, MasterType, Parameter, Shape, Stored};
use crate::model::weights::{DenseRows, read_vector, vector_type};
use crate::model::{Checkpoint, ModelConfig};
use crate::quant::{ActivationGrid, Activations, ScaleType, Scheme};
use crate::task::Silent;
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng, SeedableRng};

/// Initial values of a model.
#[derive(Clone, Copy)]
pub enum Origin<'a> {
    /// The checkpoint's weights.
    Checkpoint(&'a Checkpoint),
    /// Random weights for this configuration.
    Random {
        /// The model's configuration.
        config: &'a ModelConfig,
        /// Equal seeds give equal weights on every machine.
        seed: u64,
    },
}

impl Origin<'_> {
    /// Unknown keys of the checkpoint's configuration files that are ignored.
    pub fn ignored_keys(&self) -> &[String] {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.ignored_keys(),
            Self::Random { .. } => &[],
        }
    }
}

/// The types in which parameters are stored and trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Precision {
    /// Scheme of the linear layers of the blocks; `None` leaves them in floating point.
    pub scheme: Option<Scheme>,
    /// Type of their scales.
    pub scale_type: ScaleType,
    /// Activations of the quantized layers.
    pub activations: Activations,
    /// How INT8 activations are rounded.
    pub grid: ActivationGrid,
    /// Type of everything else; `None` keeps the checkpoint's type, and random weights are `F16`.
    pub float: Option<DType>,
    /// Type of the optimizer's masters.
    pub master: MasterType,
}

impl Default for Precision {
    fn default() -> Self {
        Self {
            scheme: None,
            scale_type: ScaleType::F16,
            activations: Activations::F32,
            grid: ActivationGrid::default(),
            float: None,
            master: MasterType::Single,
        }
    }
}

/// The parameters of a whole model.
pub struct Parameters<B: Train> {
    /// Embedding, final norm and head.
    pub ends: EndParameters<B>,
    /// Block by block.
    pub blocks: Vec<BlockParameters<B>>,
}

/// Standard deviation of random weights (Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019).
const DEVIATION: f64 = 0.02;

impl<'a> Origin<'a> {
    /// The model's configuration.
    pub fn config(self) -> &'a ModelConfig {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.config(),
            Self::Random { config, .. } => config,
        }
    }
}

/// Reads or initializes parameters one after another.
struct Maker<'a, B> {
    backend: &'a mut B,
    origin: Origin<'a>,
    precision: Precision,
    random: Pcg64Mcg,
}

impl<B: Train> Maker<'_, B> {
    /// A matrix; `deviation` is the standard deviation of random values.
    async fn matrix(
        &mut self,
        module: &str,
        (rows, cols): (usize, usize),
        scheme: Option<Scheme>,
        deviation: f64,
    ) -> Result<Parameter<B>> {
        let (dtype, values) = match self.origin {
            Origin::Checkpoint(checkpoint) => {
                let stored = DenseRows::new(checkpoint, module)?;
                let (dtype, mut values) = (stored.dtype(), Vec::new());
                let take = |_, rows: &[f32]| {
                    values.extend_from_slice(rows);
                    Ok(())
                };
                stored.for_each(&Silent, take).await?;
                (dtype, values)
            }
            Origin::Random { .. } => {
                (DType::F16, (0..rows * cols).map(|_| (self.normal() * deviation) as f32).collect())
            }
        };
        let Precision { scale_type, activations, grid, float, master, .. } = self.precision;
        let stored = match scheme {
            Some(scheme) => Stored::Packed { scheme, scale_type, activations, grid },
            None => Stored::Float(float.unwrap_or(dtype)),
        };
        let tensor = format!("{module}.weight");
        Parameter::new(self.backend, tensor, Shape::Matrix(rows, cols), stored, master, &values)
    }

    /// A vector; random initialization fills it with `value`.
    async fn vector(&mut self, tensor: String, len: usize, value: f32) -> Result<Parameter<B>> {
        let (dtype, values) = match self.origin {
            Origin::Checkpoint(checkpoint) => {
                (vector_type(checkpoint, &tensor, len)?, read_vector(checkpoint, &tensor, len).await?)
            }
            Origin::Random { .. } => (DType::F16, vec![value; len]),
        };
        let stored = Stored::Float(self.precision.float.unwrap_or(dtype));
        // Vectors are small, and half precision is too coarse for values near 1.
        Parameter::new(self.backend, tensor, Shape::Vector(len), stored, MasterType::Single, &values)
    }

    async fn linear(
        &mut self,
        module: &str,
        shape: (usize, usize),
        bias: bool,
        deviation: f64,
    ) -> Result<LinearParameters<B>> {
        let weight = self.matrix(module, shape, self.precision.scheme, deviation).await?;
        let bias = if bias { Some(self.vector(format!("{module}.bias"), shape.0, 0.0).await?) } else { None };
        Ok(LinearParameters { weight, bias })
    }

    /// A token table (embedding or head), which stays in floating point.
    async fn table(&mut self, module: &str, shape: (usize, usize)) -> Result<LinearParameters<B>> {
        Ok(LinearParameters { weight: self.matrix(module, shape, None, DEVIATION).await?, bias: None })
    }

    /// The parameters of a block.
    async fn block(&mut self, layer: usize) -> Result<BlockParameters<B>> {
        let config = self.origin.config();
        // Layers that add to the residual stream start smaller, the more of them there are.
        let adding = DEVIATION / libm::sqrt(2.0 * config.num_hidden_layers as f64);
        let mut norms = [const { None }; 6];
        for norm in BlockNorm::ALL.into_iter().filter(|norm| norm.is_in(config)) {
            let tensor = format!("{}.weight", norm.module(layer));
            norms[norm as usize] = Some(self.vector(tensor, norm.width(config), 1.0).await?);
        }
        let mut linears = [const { Vec::new() }; 4];
        for input in LinearInput::ALL {
            for linear in input.linears() {
                let adds = matches!(linear, Linear::O | Linear::Down);
                let (module, shape) = (linear.module(layer), linear.shape(config));
                let deviation = if adds { adding } else { DEVIATION };
                let made = self.linear(&module, shape, linear.has_bias(config), deviation).await?;
                linears[input as usize].push(made);
            }
        }
        Ok(BlockParameters { norms, linears })
    }

    /// A sample of the standard normal distribution, by Box and Muller.
    fn normal(&mut self) -> f64 {
        // 53 bits, never 0.
        let mut uniform = || ((self.random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let (radius, angle) = (uniform(), uniform());
        libm::sqrt(-2.0 * libm::log(radius)) * libm::cos(std::f64::consts::TAU * angle)
    }
}

/// Reads the parameters of one block.
///
/// # Errors
/// As [`Parameters::new`].
pub async fn of_block<B: Train>(
    backend: &mut B,
    checkpoint: &Checkpoint,
    layer: usize,
    precision: Precision,
) -> Result<BlockParameters<B>> {
    let origin = Origin::Checkpoint(checkpoint);
    Maker { backend, origin, precision, random: Pcg64Mcg::seed_from_u64(0) }.block(layer).await
}

impl<B: Train> Parameters<B> {
    /// Reads the parameters from a checkpoint, or initializes them at random.
    ///
    /// # Errors
    /// `invalid_argument` for quantized weights; `non_finite` naming a tensor with NaN or infinity; errors of reading.
    pub async fn new(backend: &mut B, origin: Origin<'_>, precision: Precision) -> Result<Self> {
        let config = origin.config();
        let (seed, embedding) = match origin {
            Origin::Checkpoint(checkpoint) => (0, checkpoint.embedding_module()),
            Origin::Random { seed, .. } => (seed, names::EMBEDDING),
        };
        let mut maker = Maker { backend, origin, precision, random: Pcg64Mcg::seed_from_u64(seed) };
        let table = (config.vocab_size, config.hidden_size);
        let embedding = maker.table(embedding, table).await?;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            blocks.push(maker.block(layer).await?);
        }
        let norm = maker.vector(format!("{}.weight", names::FINAL_NORM), config.hidden_size, 1.0).await?;
        let head =
            if config.tie_word_embeddings { None } else { Some(maker.table(names::HEAD, table).await?) };
        Ok(Self { ends: EndParameters { embedding, norm, head }, blocks })
    }

    /// All parameters, in a fixed order.
    pub fn all(&self) -> impl Iterator<Item = &Parameter<B>> {
        let EndParameters { embedding, norm, head } = &self.ends;
        let blocks = self.blocks.iter().flat_map(BlockParameters::all);
        let last = [Some(norm), head.as_ref().map(|head| &head.weight)].into_iter().flatten();
        std::iter::once(&embedding.weight).chain(blocks).chain(last)
    }

    /// The same, mutable.
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Parameter<B>> {
        let EndParameters { embedding, norm, head } = &mut self.ends;
        let blocks = self.blocks.iter_mut().flat_map(BlockParameters::all_mut);
        let last = [Some(norm), head.as_mut().map(|head| &mut head.weight)].into_iter().flatten();
        std::iter::once(&mut embedding.weight).chain(blocks).chain(last)
    }
}
