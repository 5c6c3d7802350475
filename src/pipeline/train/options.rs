//! Options of training, and the resulting precision of parameters.

use crate::dtype::DType;
use crate::error::Result;
use crate::layout::{PackedFormat, TargetLayout};
use crate::options::named;
use crate::pipeline::select::QuantizeOptions;
use crate::quant::{Activations, Bits, Granularity, Method, ScaleType, Scheme};
use crate::train::optimizer::OptimizerOptions;
use crate::train::schedule::Schedule;
use crate::train::{BatchCapacity, LossWeights, MasterType, Origin, Precision};
use serde_json::{Map, Value, json};

named! {
    /// Initial codes of quantized layers.
    pub enum StartCodes {
        /// Weights rounded to nearest
        Nearest = "nearest",
        /// GPTQ's codes, calibrated on the training texts
        Gptq = "gptq",
    }
}

/// Options of training.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Bits of linear layers' codes; `None`: ternary or floating point.
    pub bits: Option<Bits>,
    /// Whether linear layers are ternary.
    pub is_ternary: bool,
    /// Granularity of scales.
    pub granularity: Granularity,
    /// Initial codes; `None`: GPTQ's for codes with learned scales, otherwise rounded to nearest.
    pub start: Option<StartCodes>,
    /// Schedule of training each block alone; `None`: no such stage.
    pub blocks: Option<Schedule>,
    /// Whether scales are learned. Otherwise they are computed from the weights after every step.
    pub learned_scales: bool,
    /// Precision of quantized layers' inputs.
    pub activations: Activations,
    /// Type of floating-point weights without quantization; `None`: the checkpoint's types, and F16 for a new model.
    pub float: Option<DType>,
    /// Type of the master weights.
    pub masters: MasterType,
    /// Tokens in a batch, and in a row.
    pub capacity: BatchCapacity,
    /// Batches per step.
    pub accumulate: usize,
    /// Steps and learning rates.
    pub schedule: Schedule,
    /// Options of the optimizer.
    pub optimizer: OptimizerOptions,
    /// The loss.
    pub loss_weights: LossWeights,
    /// Seed of the order of texts and of a new model's weights.
    pub seed: u64,
    /// Steps between evaluations on the held-out text.
    pub evaluate_every: u64,
    /// Steps between saved states.
    pub keep_every: u64,
    /// The layout to write; `None`: the best one for the scheme.
    pub layout: Option<TargetLayout>,
    /// Limit of memory in bytes.
    pub memory: Option<u64>,
}

impl TrainOptions {
    /// The scheme of linear layers; `None`: floating point.
    pub fn scheme(&self) -> Option<Scheme> {
        match self.bits {
            Some(bits) => Some(Scheme::symmetric(bits, self.granularity)),
            None => self.is_ternary.then(|| Scheme::ternary(self.granularity)),
        }
    }

    /// The initial codes of a model with weights.
    pub(super) fn start(&self) -> StartCodes {
        let usual = match self.bits {
            Some(_) if self.learned_scales => StartCodes::Gptq,
            _ => StartCodes::Nearest,
        };
        self.start.unwrap_or(usual)
    }

    /// The equivalent options of quantizing.
    pub(super) fn quantize_options(&self, file: Option<&str>) -> Option<QuantizeOptions> {
        let options = match self.bits {
            Some(bits) => QuantizeOptions::new(Method::Rtn, Scheme::symmetric(bits, self.granularity)),
            None if self.is_ternary => QuantizeOptions::ternary(self.granularity),
            None => return None,
        };
        let (layout, activations) = (self.layout, self.activations);
        Some(QuantizeOptions { layout, activations, file: file.map(str::to_owned), ..options })
    }

    /// The precision of parameters. Next to quantized layers all other weights have one 16-bit type, which every
    /// layout's loader accepts and some require.
    pub(in super::super) fn precision(&self, origin: Origin<'_>) -> Result<Precision> {
        let mut precision = Precision { float: self.float, master: self.masters, ..Precision::default() };
        let (Some(scheme), Some(options)) = (self.scheme(), self.quantize_options(None)) else {
            return Ok(precision);
        };
        let float = match origin {
            Origin::Checkpoint(checkpoint) => {
                let table = format!("{}.weight", checkpoint.embedding_module());
                match checkpoint.store().require(&table)?.dtype {
                    DType::BF16 => DType::BF16,
                    _ => DType::F16,
                }
            }
            Origin::Random { .. } => DType::F16,
        };
        let layout = options.target_layout();
        let usual = PackedFormat { coding: scheme.into(), scale_type: ScaleType::F16, reordered: false };
        precision.scheme = Some(scheme);
        precision.float = Some(float);
        precision.activations = self.activations;
        precision.grid = layout.activation_grid();
        if layout == TargetLayout::BitNet {
            precision.scale_type = ScaleType::from_dtype(float).unwrap_or_default();
        } else {
            precision.scale_type = layout.own_format(usual).scale_type;
        }
        Ok(precision)
    }

    /// The options under their command-line names, for the record.
    pub(super) fn parameters(&self) -> Map<String, Value> {
        let Schedule { decay, steps, warmup, peak, last, weight_decay } = self.schedule;
        let parameters = json!({
            "scheme": self.scheme().map(|scheme| scheme.to_string()),
            "activations": self.activations,
            "start": self.start(),
            "block_steps": self.blocks.map_or(0, |schedule| schedule.steps),
            "block_rate": self.blocks.map(|schedule| schedule.peak),
            "format": self.layout.map(TargetLayout::name),
            "dtype": self.float.map(|dtype| dtype.to_string().to_lowercase()),
            "scales": if self.learned_scales { "learned" } else { "nearest" },
            "masters": if self.masters == MasterType::Half { "bf16" } else { "f32" },
            "context": self.capacity.context,
            "batch_tokens": self.capacity.tokens,
            "accumulate": self.accumulate,
            "steps": steps,
            "warmup": warmup,
            "decay": decay,
            "learning_rate": peak,
            "last_rate": last,
            "weight_decay": weight_decay,
            "scale_rate": self.optimizer.scale_rate,
            "clip": self.optimizer.max_gradient_norm,
            "cross_entropy": self.loss_weights.cross_entropy,
            "teacher_share": self.loss_weights.divergence,
            "temperature": self.loss_weights.temperature,
            "seed": self.seed,
        });
        let Value::Object(parameters) = parameters else { unreachable!("an object was written above") };
        parameters
    }
}
