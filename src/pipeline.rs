//! Whole jobs: checkpoint in, folder out.
//!
//! `select` decides which module becomes what, `quantize` and `dequantize` do it tensor by tensor, `calibrated` finds
//! codes with the help of samples first, `budget` chooses schemes that fit one, `auto` goes on until a result is good, and
//! `convert` spells what is quantized already in another way. All of them write by the plan and the loop of `output`. Not
//! here: options as people type them (`cli`, `wasm`).

#[cfg(feature = "train")]
pub mod assess;
pub mod auto;
pub mod budget;
pub mod calibrated;
pub mod convert;
pub mod dequantize;
mod encode;
mod float_type;
#[cfg(feature = "train")]
pub mod gradients;
mod output;
pub mod quantize;
pub mod select;
#[cfg(feature = "train")]
pub mod train;

pub use calibrated::Calibration;
pub use convert::{ConvertOptions, ConvertOutcome, convert, plan_conversion};
pub use quantize::{
    QuantizationPlan, QuantizeContext, QuantizeEvent, QuantizeOutcome, quantize, quantize_calibrated,
    quantize_checkpoint, restore,
};
pub use select::{Method, ModulePlan, QuantizeOptions};
