//! What a method is that finds codes with the help of samples: which statistics it wants, and what it makes of the layers
//! that read one input.
//!
//! [`Gptq`](super::gptq::Gptq) and [`Awq`](super::awq::Awq) are two; [`Direct`](super::rtn::Direct) takes the layers that need
//! no statistics, because those after them are calibrated on their quantized outputs. Not here: which module is made how
//! (`pipeline`).

use super::modules::CalibratedModules;
use super::walk::{InputStatistics, Statistics, Walk};
use crate::backend::Backend;
use crate::error::Result;
use crate::model::Checkpoint;
use crate::model::names::Linear;
use crate::model::weights::WeightSource;
use crate::quant::{QuantizedTensor, ScaleType, Scheme, WeightError};
use crate::task::Control;
use serde::{Deserialize, Serialize};

/// How a calibrated method did on one module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// The method that was kept: the one asked for, or `rtn` where that leaves less error.
    pub method: String,
    /// Squared error of the module's output on the calibration samples, as a share of its squared output.
    pub output_error: Option<f64>,
    /// The same, rounded to nearest.
    pub rtn_output_error: Option<f64>,
    /// Share of the mean diagonal that was added to the Hessian's diagonal.
    pub damping: Option<f32>,
    /// AWQ: the exponent of the mean input that columns were scaled by; absent where they were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f32>,
    /// AWQ: whether the ranges of groups were clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clipped: Option<bool>,
    /// Why another method than the one asked for was kept, or a part of it left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A matrix that is to be quantized.
#[derive(Clone, Copy, Debug)]
pub struct ModuleTarget<'a> {
    /// Its module in the output.
    pub module: &'a str,
    /// Its module in the checkpoint.
    pub source: &'a str,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// What it becomes.
    pub scheme: Scheme,
}

/// What all layers of a model share.
#[derive(Clone, Copy)]
pub struct LayerContext<'a> {
    /// Where the weights are.
    pub checkpoint: &'a Checkpoint,
    /// The type of the groups' scales.
    pub scale_type: ScaleType,
    /// Hears, and may cancel.
    pub control: &'a dyn Control,
}

/// Layers that read one input, at which the samples are.
pub struct InputContext<'i, 'w, B: Backend> {
    /// The model; the samples go on through what the method returns.
    pub walk: &'i mut Walk<'w, B>,
    /// Where the weights are.
    pub context: LayerContext<'i>,
    /// The block.
    pub layer: usize,
    /// What is known of the input.
    pub statistics: &'i InputStatistics,
    /// The layers that the method is to quantize, at least one.
    pub targets: &'i [(Linear, ModuleTarget<'i>)],
    /// What was made of the layers before. Some of it may be made anew.
    pub modules: &'i mut CalibratedModules<'w>,
}

/// A layer that a method has quantized.
pub struct QuantizedLayer {
    /// Which of its block.
    pub linear: Linear,
    /// Its codes.
    pub tensor: QuantizedTensor,
    /// How they were found, where samples helped.
    pub record: Option<CalibrationRecord>,
    /// What its columns were multiplied by, where they were: what comes before is divided by it.
    pub scales: Option<Vec<f32>>,
    /// The error of its weights, without those scales.
    pub error: WeightError,
}

impl QuantizedLayer {
    /// What samples go on through.
    pub fn source(&self) -> (Linear, WeightSource<'_>) {
        let scaled = |scales| WeightSource::Scaled(&self.tensor, scales);
        (self.linear, self.scales.as_deref().map_or(WeightSource::Packed(&self.tensor), scaled))
    }
}

/// A method that is called at one input of linear layers after the other, in the order of the data flow.
pub trait CalibratedMethod {
    /// What it has to know of the inputs.
    fn wants(&self) -> Statistics;

    /// Quantizes layers that read one input.
    ///
    /// # Errors
    /// Whatever reading weights, running the model and quantizing meet, with the module named.
    fn quantize_input<B: Backend>(
        &self,
        input: InputContext<'_, '_, B>,
    ) -> impl Future<Output = Result<Vec<QuantizedLayer>>>;
}
