//! The request of `train` and `qat`.

use super::quantize::TernaryScale;
use super::write::{FloatType, Format};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::options::{Bounds, Bytes, Options, named, options};
use crate::pipeline::train::{StartCodes, TrainOptions};
use crate::quant::{Activations, Bits, Granularity, Scheme};
use crate::train::optimizer::OptimizerOptions;
use crate::train::schedule::{Decay, Schedule};
use crate::train::{BatchCapacity, LossWeights, MasterType};

named! {
    /// Training schemes of linear layers.
    #[derive(Default)]
    pub enum TrainedScheme {
        /// Floating point
        #[default]
        None = "none",
        /// -1, 0 and 1 with INT8 activations, as in BitNet
        Ternary = "ternary",
        /// 2-bit codes
        Two = "2",
        /// 3-bit codes
        Three = "3",
        /// 4-bit codes
        Four = "4",
        /// 8-bit codes
        Eight = "8",
    }
}

named! {
    /// How scales are determined.
    pub enum TrainedScales {
        /// Computed from the weights after every step
        Nearest = "nearest",
        /// Learned like the weights
        Learned = "learned",
    }
}

named! {
    /// Types of the master weights.
    #[derive(Default)]
    pub enum Masters {
        /// 4 bytes a weight
        #[default]
        F32 = "f32",
        /// 2 bytes a weight, with stochastic rounding
        Bf16 = "bf16",
    }
}

/// The source of the training signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainingSignal {
    /// Texts alone.
    Texts,
    /// A teacher's predictions.
    Teacher,
}

/// Default tokens of a row.
const USUAL_CONTEXT: usize = 256;
/// Default tokens of a batch.
const USUAL_TOKENS: usize = 1024;

options! {
    /// How the linear layers of the blocks are trained.
    pub struct LayersRequest {
        /// Scheme in which the blocks' linear layers are trained and stored
        pub bits: TrainedScheme = TrainedScheme::None;
        /// Weights per scale; -1: a whole row [default: 128, and -1 for 8 bits]
        pub group_size: Option<Granularity> = None;
        /// Weights per ternary scale [default: tensor]
        pub ternary_scale: Option<TernaryScale> = None;
        /// How scales are determined [default: nearest for ternary weights, learned for others]
        pub scales: Option<TrainedScales> = None;
        /// Precision of quantized layers' input activations [default: int8 for ternary weights, f32 for others]
        pub activations: Option<Activations> = None;
    }
}

options! {
    /// The size of a batch.
    pub struct BatchRequest {
        /// Tokens in a row [default: the model's context, at most 256]
        pub context: Option<usize> = None, within Bounds::from(2.0);
        /// Tokens in a batch, at least one row [default: 1024, or one row if that is longer]
        pub batch_tokens: Option<usize> = None, within Bounds::from(2.0);
    }
}

options! {
    /// Options of training.
    pub struct TrainRequest {
        /// How linear layers are trained.
        #[form(Group)]
        pub layers: LayersRequest = LayersRequest::default();
        /// Type of floating-point weights [default: the checkpoint's, and f16 for a new model]
        pub dtype: Option<FloatType> = None;
        /// Type of the master weights
        pub masters: Masters = Masters::F32;
        /// Initial codes of quantized layers [default: gptq if a checkpoint's scales are learned, else nearest]
        pub start: Option<StartCodes> = None;
        /// Steps of training each block alone to reproduce the original's output, before end-to-end training; holds one
        /// block in memory
        pub block_steps: u64 = 0;
        /// Peak learning rate of block steps [default: that of end-to-end training]
        pub block_rate: Option<f64> = None, within Bounds::above(0.0);
        /// Steps of end-to-end training [default: 1000, and 400 with a teacher]; 0 is possible with block steps
        pub steps: Option<u64> = None;
        /// The size of a batch.
        #[form(Group)]
        pub batch: BatchRequest = BatchRequest::default();
        /// Batches per step (gradient accumulation)
        pub accumulate: usize = 1, within Bounds::from(1.0);
        /// Peak learning rate [default: 1e-3; with a teacher 5e-4 for 3 bits, 2e-4 for 4 and 1e-4 for 8]
        pub learning_rate: Option<f64> = None, within Bounds::above(0.0);
        /// Warmup steps, in which the rate grows linearly [default: 5% of all]
        pub warmup: Option<u64> = None;
        /// Schedule of the learning rate
        pub decay: Decay = Decay::Cosine;
        /// Final learning rate as a share of the peak
        pub last_rate: f64 = 0.01, within Bounds::from(0.0).up_to(1.0);
        /// Learning rate of scales relative to that of weights [default: 1]
        pub scale_rate: Option<f64> = None, within Bounds::above(0.0);
        /// Weight decay of matrices [default: 0.1, and 0 with a teacher]
        pub weight_decay: Option<f64> = None, within Bounds::from(0.0);
        /// Largest gradient norm; larger gradients are clipped to it
        pub clip: f64 = 1.0, within Bounds::above(0.0);
        /// Seed of the order of texts and of a new model's weights
        pub seed: u64 = 0;
        /// Weight of the teacher's predictions in the loss; the rest is the text's [default: 1 with a teacher]
        pub teacher_share: Option<f32> = None, within Bounds::from(0.0).up_to(1.0);
        /// Temperature of both models' logits in distillation [default: 1]
        pub temperature: Option<f32> = None, within Bounds::above(0.0);
        /// Steps between evaluations on the held-out text [default: 10% of all]
        pub evaluate_every: Option<u64> = None, within Bounds::from(1.0);
        /// Steps between saved states [default: 10% of all]
        pub keep_every: Option<u64> = None, within Bounds::from(1.0);
        /// The layout to write [default: compressed-tensors; bitnet for ternary weights with one scale per tensor]
        pub format: Option<Format> = None;
        /// Refuse to start if more bytes of memory are needed
        pub memory: Option<Bytes> = None;
    }
}

impl TrainRequest {
    /// Self-distillation to a scheme. `None` if the scheme cannot be trained.
    pub fn to_scheme(scheme: Scheme) -> Option<Self> {
        let (bits, granularity, _) = scheme.as_integer()?;
        let bits = match bits {
            Bits::Two => TrainedScheme::Two,
            Bits::Three => TrainedScheme::Three,
            Bits::Four => TrainedScheme::Four,
            Bits::Eight => TrainedScheme::Eight,
        };
        let layers = LayersRequest { bits, group_size: Some(granularity), ..LayersRequest::default() };
        Some(Self { layers, ..Self::default() })
    }

    /// The job's options, for a model.
    ///
    /// # Errors
    /// `invalid_argument` for options that contradict each other.
    pub fn options(&self, config: &ModelConfig, learns: TrainingSignal) -> Result<TrainOptions> {
        self.check()?;
        let has_teacher = learns == TrainingSignal::Teacher;
        let refuse = |reason: &str| Err(Error::invalid_argument(reason));
        let LayersRequest { bits: scheme, group_size, ternary_scale, scales, activations } = self.layers;
        let bits = match scheme {
            TrainedScheme::None | TrainedScheme::Ternary => None,
            TrainedScheme::Two => Some(Bits::Two),
            TrainedScheme::Three => Some(Bits::Three),
            TrainedScheme::Four => Some(Bits::Four),
            TrainedScheme::Eight => Some(Bits::Eight),
        };
        let is_ternary = scheme == TrainedScheme::Ternary;
        if bits.is_none() && group_size.is_some() {
            return refuse("a group size requires codes of 2, 3, 4 or 8 bits");
        }
        if !is_ternary && ternary_scale.is_some() {
            return refuse("a ternary scale requires ternary weights");
        }
        if scheme == TrainedScheme::None
            && (scales.is_some() || activations.is_some() || self.format.is_some())
        {
            return refuse("scales, activations and a layout require quantized weights; give bits");
        }
        if scheme != TrainedScheme::None && self.dtype.is_some() {
            return refuse(
                "a floating-point type of weights requires unquantized weights; next to codes it is a 16-bit type",
            );
        }
        let granularity = match (bits, ternary_scale.unwrap_or_default()) {
            (Some(bits), _) => group_size.unwrap_or(bits.usual_granularity()),
            (None, TernaryScale::Tensor) => Granularity::Tensor,
            (None, TernaryScale::Channel) => Granularity::Channel,
        };
        if scheme == TrainedScheme::None && (self.start.is_some() || self.block_steps > 0) {
            return refuse("initial codes and block steps require quantized weights; give bits");
        }
        if is_ternary && self.start == Some(StartCodes::Gptq) {
            return refuse("GPTQ finds codes of 2, 3, 4 or 8 bits, not ternary ones");
        }
        if self.block_steps == 0 && self.block_rate.is_some() {
            return refuse("a learning rate of block steps requires block steps");
        }
        if !has_teacher && (self.teacher_share.is_some() || self.temperature.is_some()) {
            return refuse("a teacher's share and a temperature require a teacher");
        }
        let share = self.teacher_share.unwrap_or(if has_teacher { 1.0 } else { 0.0 });
        let context = self.batch.context.unwrap_or(USUAL_CONTEXT.min(config.max_position_embeddings));
        let steps = self.steps.unwrap_or(if has_teacher { 400 } else { 1000 });
        if steps == 0 && self.block_steps == 0 {
            return refuse("expected at least one step, end-to-end or of blocks");
        }
        let usual_rate = match bits {
            Some(Bits::Three) if has_teacher => 5e-4,
            Some(Bits::Four) if has_teacher => 2e-4,
            Some(Bits::Eight) if has_teacher => 1e-4,
            _ => 1e-3,
        };
        let learned = scales.map_or(bits.is_some(), |scales| scales == TrainedScales::Learned);
        if !learned && self.start == Some(StartCodes::Gptq) {
            return refuse(
                "GPTQ's codes have their own scales, which must be learned; expected no other choice of scales",
            );
        }
        if !learned && self.scale_rate.is_some() {
            return refuse("a learning rate of scales requires learned scales");
        }
        let batch_tokens = self.batch.batch_tokens.unwrap_or(USUAL_TOKENS.max(context));
        if batch_tokens < context {
            return Err(Error::invalid_argument(format!(
                "expected a batch of at least one row, {context} tokens, but found {batch_tokens}"
            )));
        }
        let schedule = Schedule {
            decay: self.decay,
            steps,
            warmup: self.warmup.unwrap_or(steps / 20),
            peak: self.learning_rate.unwrap_or(usual_rate),
            last: self.last_rate,
            // The teacher's weights are the aim. Decay would pull away from them.
            weight_decay: self.weight_decay.unwrap_or(if has_teacher { 0.0 } else { 0.1 }),
        };
        let blocks = Schedule {
            steps: self.block_steps,
            warmup: self.block_steps / 20,
            peak: self.block_rate.unwrap_or(schedule.peak),
            ..schedule
        };
        Ok(TrainOptions {
            bits,
            start: self.start,
            blocks: (self.block_steps > 0).then_some(blocks),
            granularity,
            is_ternary,
            learned_scales: learned,
            activations: activations.unwrap_or(if is_ternary { Activations::Int8 } else { Activations::F32 }),
            float: self.dtype.map(FloatType::dtype),
            masters: match self.masters {
                Masters::F32 => MasterType::Single,
                Masters::Bf16 => MasterType::Half,
            },
            capacity: BatchCapacity { tokens: batch_tokens, context },
            accumulate: self.accumulate,
            schedule,
            optimizer: OptimizerOptions {
                max_gradient_norm: self.clip,
                scale_rate: self.scale_rate.unwrap_or(1.0),
                seed: self.seed,
                ..OptimizerOptions::default()
            },
            loss_weights: LossWeights {
                cross_entropy: 1.0 - share,
                divergence: share,
                temperature: self.temperature.unwrap_or(1.0),
            },
            seed: self.seed,
            evaluate_every: self.evaluate_every.unwrap_or((steps / 10).max(1)),
            keep_every: self.keep_every.unwrap_or((steps / 10).max(1)),
            layout: self.format.map(Format::layout),
            memory: self.memory.map(|bytes| bytes.0),
        })
    }
}
