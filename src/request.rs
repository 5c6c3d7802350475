//! Requests: the options of every command, shared by all edges.
//!
//! Each command has a struct of options, composed of its own and of lower floors' options. The command line and the npm
//! package's modules read these structs. The package's types and its JSON Schemas are generated from them.
//!
//! Files are not handled here: each edge opens sources and sinks itself.

#[cfg(feature = "train")]
mod assess;
mod dequantize;
#[cfg(feature = "train")]
mod gradients;
mod judge;
mod quantize;
mod run;
#[cfg(feature = "train")]
mod tasks;
#[cfg(test)]
mod tests;
#[cfg(feature = "train")]
mod train;
mod write;

#[cfg(feature = "train")]
pub use assess::AssessRequest;
pub use dequantize::DequantizeRequest;
#[cfg(feature = "train")]
pub(crate) use dequantize::Handoff;
pub(crate) use dequantize::{DequantizeContext, Dequantized};
#[cfg(feature = "train")]
pub use gradients::CheckGradientsRequest;
pub use judge::{
    AutoRequest, CompareRequest, LearningMethod, Machine, MeasureOptions, PerplexityRequest,
    ResidencyOptions, ValidateRequest,
};
pub use quantize::{CalibrationRequest, QuantizeRequest, TernaryScale, TextsOptions};
pub use run::{CalibrationHost, Perplexity};
#[cfg(feature = "train")]
pub use tasks::TasksRequest;
#[cfg(feature = "train")]
pub use train::{
    BatchRequest, LayersRequest, Masters, TrainRequest, TrainedScales, TrainedScheme, TrainingSignal,
};
pub use write::{ConvertRequest, FloatType, Format, GgufType};

use crate::backend::choice::DeviceRequest;
use crate::model::{LoadOptions, ModelConfig};
use crate::options::{Bounds, Bytes, options};
use crate::plan::PlanOptions;
use crate::quant::Activations;
use crate::validate::windows::WindowOptions;

/// Upper limit of the default length of samples, contexts and windows.
const LONGEST: usize = 2048;

options! {
    /// How a model is loaded.
    pub struct LoadRequest {
        /// Precision of the linear layers' input activations [default: the checkpoint's, usually f32]
        pub activations: Option<Activations> = None;
        /// The device.
        #[form(Group)]
        pub device: DeviceRequest = DeviceRequest::default();
    }
}

impl LoadRequest {
    /// The model's load options.
    pub(crate) fn options(&self) -> LoadOptions {
        LoadOptions { activations: self.activations, ..LoadOptions::default() }
    }
}

options! {
    /// How a text is cut into windows.
    pub struct WindowRequest {
        /// Tokens in a window [default: the model's context, at most 2048]
        pub context: Option<usize> = None, within Bounds::from(2.0);
        /// Tokens from the start of one window to the next [default: no overlap]
        pub stride: Option<usize> = None, within Bounds::from(1.0);
    }
}

impl WindowRequest {
    /// The windows for a model.
    pub(crate) fn windows(&self, config: &ModelConfig) -> WindowOptions {
        let usual = LONGEST.min(config.max_position_embeddings);
        WindowOptions { context: self.context.unwrap_or(usual), stride: self.stride }
    }
}

options! {
    /// The workload of a memory plan.
    pub struct PlanRequest {
        /// Available memory in bytes
        pub memory: Option<Bytes> = None;
        /// Tokens in the KV cache [default: the model's context, at most 2048]
        pub context: Option<u64> = None, within Bounds::from(1.0);
    }
}

impl PlanRequest {
    /// The plan's options. `config` is `None` for a plan from a parameter count.
    pub(crate) fn options(&self, config: Option<&ModelConfig>) -> PlanOptions {
        let usual = PlanOptions::default();
        let made_for = config.map_or(u64::MAX, |config| config.max_position_embeddings as u64);
        PlanOptions {
            memory: self.memory.map(|bytes| bytes.0),
            context: self.context.unwrap_or(usual.context.min(made_for)),
            ..usual
        }
    }
}
