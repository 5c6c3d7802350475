//! Whole jobs: checkpoint in, folder out.
//!
//! `select` decides which module becomes what, `quantize` and `dequantize` do it tensor by tensor, and `convert` spells
//! what is quantized already in another way. Not here: options
//! as people type them (`cli`, `wasm`). Floor 8.

pub mod convert;
mod copy;
pub mod dequantize;
mod encode;
pub mod quantize;
pub mod select;

pub use quantize::{QuantizeOutcome, quantize, restore};
pub use select::{Method, ModulePlan, QuantizeOptions};
