//! What callers ask for: the options of every command, for all edges alike.
//!
//! Each command has a struct of options, made of those of the floors below and of what only a whole job has. The command
//! line and the modules of the npm package read the same structs, and nothing else; the package's types and the schemas of
//! its tools are written from them. Here too is what a request means to the floors below.
//!
//! Not here: where files come from and go to, which every edge finds in its own way.

#[cfg(feature = "train")]
mod assess;
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
pub use train::{Learns, Masters, TrainRequest, TrainedAs, TrainedScales};
pub use write::{ConvertRequest, DequantizeRequest, FloatType, Format, GgufType, Purpose};

use crate::backend::choice::DeviceRequest;
use crate::model::{LoadOptions, ModelConfig};
use crate::options::{Bounds, Bytes, options};
use crate::plan::PlanOptions;
use crate::quant::Activations;
use crate::validate::windows::WindowOptions;

/// The longest samples, contexts and windows that are taken without being asked for.
const LONGEST: usize = 2048;

options! {
    /// How a model is loaded.
    pub struct LoadRequest {
        /// Precision of the activations that meet the linear layers [default: what the checkpoint says, mostly f32]
        pub activations: Option<Activations> = None;
        /// Where it runs.
        #[form(Group)]
        pub device: DeviceRequest = DeviceRequest::default();
    }
}

impl LoadRequest {
    /// What that means to the model.
    pub(crate) fn options(&self) -> LoadOptions {
        LoadOptions { activations: self.activations, ..LoadOptions::default() }
    }
}

options! {
    /// How a text is cut into windows.
    pub struct WindowRequest {
        /// Tokens that the model sees at once [default: what the model was made for, at most 2048]
        pub context: Option<usize> = None, within Bounds::from(2.0);
        /// Tokens from the start of one window to the next [default: windows do not overlap]
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
    /// For what a plan of memory is made.
    pub struct PlanRequest {
        /// Memory that may be used, in bytes
        pub memory: Option<Bytes> = None;
        /// Tokens that the KV cache has room for [default: what the model was made for, at most 2048]
        pub context: Option<u64> = None, within Bounds::from(1.0);
    }
}

impl PlanRequest {
    /// What that means for a model of this configuration, or of a number of parameters alone.
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
