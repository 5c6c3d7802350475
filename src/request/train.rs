//! Training: from where, what for, how fast.

use super::quantize::TernaryScale;
use super::write::{FloatType, Format};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::options::{Bounds, Bytes, Options, named, options};
use crate::pipeline::train::{StartCodes, TrainOptions};
use crate::quant::{Activations, Bits, Granularity, Scheme};
use crate::train::optimizer::OptimizerOptions;
use crate::train::schedule::{Decay, Schedule};
use crate::train::{Goal, MasterType, Room};

named! {
    /// What linear layers are trained as.
    #[derive(Default)]
    pub enum TrainedAs {
        /// Floating point
        #[default]
        None = "none",
        /// -1, 0 and 1 with INT8 activations, as BitNet has them
        Ternary = "ternary",
        /// Codes of 2 bits
        Two = "2",
        /// Codes of 3 bits
        Three = "3",
        /// Codes of 4 bits
        Four = "4",
        /// Codes of 8 bits
        Eight = "8",
    }
}

named! {
    /// Where the scales of codes come from.
    pub enum TrainedScales {
        /// From the weights, after every step
        Nearest = "nearest",
        /// They are learned as the weights are
        Learned = "learned",
    }
}

named! {
    /// In what the optimizer keeps parameters.
    #[derive(Default)]
    pub enum Masters {
        /// 4 bytes
        #[default]
        F32 = "f32",
        /// 2 bytes, rounded up or down at random
        Bf16 = "bf16",
    }
}

/// What a model learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learns {
    /// Texts alone.
    FromTexts,
    /// What another model says of them.
    FromTeacher,
}

/// Tokens of a row where nothing else is asked for.
const USUAL_CONTEXT: usize = 256;
/// Tokens of a batch, likewise.
const USUAL_TOKENS: usize = 1024;

options! {
    /// What is trained, and how.
    pub struct TrainRequest {
        /// What the linear layers of the blocks are trained as, and stored
        pub bits: TrainedAs = TrainedAs::None;
        /// Weights that share a scale; -1: a whole row [default: 128, and -1 for 8 bits]
        pub group_size: Option<Granularity> = None;
        /// What a ternary scale is for [default: tensor]
        pub ternary_scale: Option<TernaryScale> = None;
        /// Where scales come from [default: nearest for ternary weights, learned for others]
        pub scales: Option<TrainedScales> = None;
        /// Precision of the activations that quantized layers meet [default: int8 for ternary weights, f32 for others]
        pub activations: Option<Activations> = None;
        /// Type of weights in floating point [default: the checkpoint's, and f16 for a new model]
        pub dtype: Option<FloatType> = None;
        /// In what the optimizer keeps the weights
        pub masters: Masters = Masters::F32;
        /// At which codes quantized layers begin [default: gptq where a checkpoint's scales are learned, else nearest]
        pub start: Option<StartCodes> = None;
        /// Steps of each block alone, whose output learns to be the original's, before the whole model's: one block at a time is in memory
        pub block_steps: u64 = 0;
        /// The highest learning rate of those [default: that of the whole model]
        pub block_rate: Option<f64> = None, within Bounds::above(0.0);
        /// Steps [default: 1000, and with a teacher 400]; 0 with blocks that are trained alone
        pub steps: Option<u64> = None;
        /// Tokens that the model sees at once [default: what it was made for, at most 256]
        pub context: Option<usize> = None, within Bounds::from(2.0);
        /// Tokens of a batch, a row at least [default: 1024, or a row where that has more]
        pub batch_tokens: Option<usize> = None, within Bounds::from(2.0);
        /// Batches whose gradients are added up for a step
        pub accumulate: usize = 1, within Bounds::from(1.0);
        /// The highest learning rate [default: 1e-3; with a teacher 5e-4 for 3 bits, 2e-4 for 4 and 1e-4 for 8]
        pub learning_rate: Option<f64> = None, within Bounds::above(0.0);
        /// Steps in which it grows evenly [default: a twentieth of all]
        pub warmup: Option<u64> = None;
        /// How it falls
        pub decay: Decay = Decay::Cosine;
        /// To which share of it the rate falls
        pub last_rate: f64 = 0.1, within Bounds::from(0.0).up_to(1.0);
        /// How much slower or faster than weights scales are learned [default: 1]
        pub scale_rate: Option<f64> = None, within Bounds::above(0.0);
        /// How much of the rate matrices lose at each step
        pub weight_decay: f64 = 0.1, within Bounds::from(0.0);
        /// The longest gradient; a longer one is made as short
        pub clip: f64 = 1.0, within Bounds::above(0.0);
        /// In what order the text is seen, and with what a new model begins
        pub seed: u64 = 0;
        /// How much the teacher's predictions count; what is left of 1 is the text's [default: 1 with a teacher]
        pub teacher_share: Option<f32> = None, within Bounds::from(0.0).up_to(1.0);
        /// By what the logits of both are divided before they are compared [default: 1]
        pub temperature: Option<f32> = None, within Bounds::above(0.0);
        /// Steps from one look at the held-out text to the next [default: a tenth of all]
        pub evaluate_every: Option<u64> = None, within Bounds::from(1.0);
        /// Steps after which the state is kept [default: a tenth of all]
        pub keep_every: Option<u64> = None, within Bounds::from(1.0);
        /// The layout to write [default: compressed-tensors, and bitnet for ternary weights with one scale a tensor]
        pub format: Option<Format> = None;
        /// Do not start where more memory than this would be needed, in bytes
        pub memory: Option<Bytes> = None;
    }
}

impl TrainRequest {
    /// A checkpoint's own predictions learned in a scheme; `None` for one that is not trained to.
    pub fn to_scheme(scheme: Scheme) -> Option<Self> {
        let (bits, granularity, _) = scheme.as_integer()?;
        let bits = match bits {
            Bits::Two => TrainedAs::Two,
            Bits::Three => TrainedAs::Three,
            Bits::Four => TrainedAs::Four,
            Bits::Eight => TrainedAs::Eight,
        };
        Some(Self { bits, group_size: Some(granularity), ..Self::default() })
    }

    /// What it means to the job, for a model.
    ///
    /// # Errors
    /// `invalid_argument` for options that contradict each other.
    pub fn options(&self, config: &ModelConfig, learns: Learns) -> Result<TrainOptions> {
        self.check()?;
        let has_teacher = learns == Learns::FromTeacher;
        let refuse = |reason: &str| Err(Error::invalid_argument(reason));
        let bits = match self.bits {
            TrainedAs::None | TrainedAs::Ternary => None,
            TrainedAs::Two => Some(Bits::Two),
            TrainedAs::Three => Some(Bits::Three),
            TrainedAs::Four => Some(Bits::Four),
            TrainedAs::Eight => Some(Bits::Eight),
        };
        let is_ternary = self.bits == TrainedAs::Ternary;
        if bits.is_none() && self.group_size.is_some() {
            return refuse("a group size belongs to codes of 2, 3, 4 or 8 bits");
        }
        if !is_ternary && self.ternary_scale.is_some() {
            return refuse("a ternary scale belongs to ternary weights");
        }
        if self.bits == TrainedAs::None
            && (self.scales.is_some() || self.activations.is_some() || self.format.is_some())
        {
            return refuse("scales, activations and a layout belong to quantized weights; give bits");
        }
        if self.bits != TrainedAs::None && self.dtype.is_some() {
            return refuse(
                "a type of weights in floating point belongs to no bits: beside codes it is one of 16 bits",
            );
        }
        let granularity = match (bits, self.ternary_scale.unwrap_or_default()) {
            (Some(bits), _) => self.group_size.unwrap_or(bits.usual_granularity()),
            (None, TernaryScale::Tensor) => Granularity::Tensor,
            (None, TernaryScale::Channel) => Granularity::Channel,
        };
        if self.bits == TrainedAs::None && (self.start.is_some() || self.block_steps > 0) {
            return refuse(
                "codes to begin at and blocks of their own belong to quantized weights; give bits",
            );
        }
        if is_ternary && self.start == Some(StartCodes::Gptq) {
            return refuse("GPTQ finds codes of 2, 3, 4 or 8 bits, no ternary ones");
        }
        if self.block_steps == 0 && self.block_rate.is_some() {
            return refuse("a learning rate of blocks belongs to steps of blocks");
        }
        if !has_teacher && (self.teacher_share.is_some() || self.temperature.is_some()) {
            return refuse("the share of a teacher and the temperature belong to a teacher");
        }
        let share = self.teacher_share.unwrap_or(if has_teacher { 1.0 } else { 0.0 });
        let context = self.context.unwrap_or(USUAL_CONTEXT.min(config.max_position_embeddings));
        let steps = self.steps.unwrap_or(if has_teacher { 400 } else { 1000 });
        if steps == 0 && self.block_steps == 0 {
            return refuse("expected at least one step, of the whole model or of its blocks");
        }
        let usual_rate = match bits {
            Some(Bits::Three) if has_teacher => 5e-4,
            Some(Bits::Four) if has_teacher => 2e-4,
            Some(Bits::Eight) if has_teacher => 1e-4,
            _ => 1e-3,
        };
        let learned = self.scales.map_or(bits.is_some(), |scales| scales == TrainedScales::Learned);
        if !learned && self.start == Some(StartCodes::Gptq) {
            return refuse(
                "codes that GPTQ finds have scales of their own, which can only be learned; give no other scales",
            );
        }
        if !learned && self.scale_rate.is_some() {
            return refuse("the rate of scales belongs to scales that are learned");
        }
        let batch_tokens = self.batch_tokens.unwrap_or(USUAL_TOKENS.max(context));
        if batch_tokens < context {
            return Err(Error::invalid_argument(format!(
                "expected a batch of a row at least, {context} tokens, but found {batch_tokens}"
            )));
        }
        let schedule = Schedule {
            decay: self.decay,
            steps,
            warmup: self.warmup.unwrap_or(steps / 20),
            peak: self.learning_rate.unwrap_or(usual_rate),
            last: self.last_rate,
            weight_decay: self.weight_decay,
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
            activations: self.activations.unwrap_or(if is_ternary {
                Activations::Int8
            } else {
                Activations::F32
            }),
            float: self.dtype.map(FloatType::dtype),
            masters: match self.masters {
                Masters::F32 => MasterType::Single,
                Masters::Bf16 => MasterType::Half,
            },
            room: Room { tokens: batch_tokens, context },
            accumulate: self.accumulate,
            schedule,
            optimizer: OptimizerOptions {
                longest: self.clip,
                scale_rate: self.scale_rate.unwrap_or(1.0),
                seed: self.seed,
                ..OptimizerOptions::default()
            },
            goal: Goal {
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
