//! Whole jobs: checkpoint in, folder out.
//!
//! `select` decides which module becomes what, `quantize` and `dequantize` do it tensor by tensor. Not here: options
//! as people type them (`cli`, `wasm`). Floor 8.

mod copy;
pub mod dequantize;
mod encode;
pub mod quantize;
pub mod select;

pub use quantize::{QuantizeOutcome, quantize, restore};
pub use select::{Method, ModulePlan, QuantizeOptions};
