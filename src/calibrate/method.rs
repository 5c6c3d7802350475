//! The interface of calibrated methods: the statistics that a method needs, and the quantization of the layers that
//! read one input.
//!
//! Methods are [`Gptq`](super::gptq::Gptq) and [`Awq`](super::awq::Awq). [`Uncalibrated`](super::rtn::Uncalibrated) quantizes
//! layers that need no statistics: later layers are calibrated on their quantized outputs. `pipeline` chooses the
//! method of each module.

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

/// The result of a calibrated method for one module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CalibrationRecord {
    /// The method that was used: the requested one, or `rtn` if that fails or has the larger output error.
    pub method: String,
    /// Squared error of the module's output on the calibration samples, as a share of its squared output.
    pub output_error: Option<f64>,
    /// The same for rounding to nearest.
    pub rtn_output_error: Option<f64>,
    /// GPTQ: the damping, as a share of the Hessian's mean diagonal.
    pub damping: Option<f32>,
    /// AWQ: the exponent of the mean input in the column scales; absent without scaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f32>,
    /// AWQ: whether the ranges of groups were clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clipped: Option<bool>,
    /// Why another method was used than the requested one, or why a part of it was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A matrix to quantize.
#[derive(Clone, Copy, Debug)]
pub struct ModuleTarget<'a> {
    /// The module in the output.
    pub module: &'a str,
    /// The module in the source checkpoint.
    pub source: &'a str,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// The target scheme.
    pub scheme: Scheme,
}

/// The context that all layers of a model share.
#[derive(Clone, Copy)]
pub struct LayerContext<'a> {
    /// The source of the weights.
    pub checkpoint: &'a Checkpoint,
    /// The stored type of scales.
    pub scale_type: ScaleType,
    /// Receives progress, and may cancel.
    pub control: &'a dyn Control,
}

/// The layers that read one input. The samples have reached this input.
pub struct InputContext<'i, 'w, B: Backend> {
    /// The walk. The samples continue through the layers that the method returns.
    pub walk: &'i mut Walk<'w, B>,
    /// The shared context.
    pub context: LayerContext<'i>,
    /// The index of the block.
    pub layer: usize,
    /// The statistics of the input.
    pub statistics: &'i InputStatistics,
    /// The layers to quantize, at least one.
    pub targets: &'i [(Linear, ModuleTarget<'i>)],
    /// The results of earlier layers. The method may replace some of them.
    pub modules: &'i mut CalibratedModules<'w>,
}

/// A quantized layer.
pub struct QuantizedLayer {
    /// The layer within its block.
    pub linear: Linear,
    /// The quantized matrix.
    pub tensor: QuantizedTensor,
    /// The calibration record; `None` without calibration.
    pub record: Option<CalibrationRecord>,
    /// The column scales, if any. The preceding norm or layer is divided by them.
    pub scales: Option<Vec<f32>>,
    /// The weight error, without the column scales.
    pub error: WeightError,
}

impl QuantizedLayer {
    /// The weights that the samples continue through.
    pub fn source(&self) -> (Linear, WeightSource<'_>) {
        let scaled = |scales| WeightSource::Scaled(&self.tensor, scales);
        (self.linear, self.scales.as_deref().map_or(WeightSource::Packed(&self.tensor), scaled))
    }
}

/// A method that is called at each input of linear layers, in the order of the data flow.
pub trait CalibratedMethod {
    /// The statistics that the method needs.
    fn wants(&self) -> Statistics;

    /// Quantizes layers that read one input.
    ///
    /// # Errors
    /// Errors of reading weights, running the model and quantizing, with the name of the module.
    fn quantize_input<B: Backend>(
        &self,
        input: InputContext<'_, '_, B>,
    ) -> impl Future<Output = Result<Vec<QuantizedLayer>>>;
}
