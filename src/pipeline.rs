//! Whole jobs, from a checkpoint to an output folder.
//!
//! `select` plans each module. `quantize` and `dequantize` write tensor by tensor. `calibrated` finds codes with
//! calibration samples. `budget` chooses schemes for a target size. `auto` searches until a result is accepted.
//! `convert` changes the layout of quantized weights. `train` trains, `assess` and `gradients` check what will be
//! trained. All outputs go through `output`. The options of commands are in `request`.

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
