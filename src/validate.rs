//! Judges a quantized model by measurements: what is measured, what counts as a failure, and the verdict.
//!
//! - `run` measures everything and assembles the report.
//! - `walk`, `layers`, `continuations`, `choices` and `speed` measure one thing each.
//! - `streamed` compares models too large to hold both in memory.
//! - `kernels` times single steps of a device.
//! - `agreement` compares a quantized model with its dequantized form.
//! - `sensitivity` measures how much each layer matters.
//! - The rest are pure functions of logits, texts and figures, so that the verdict can be tested with injected
//!   measurements.

pub mod agreement;
pub mod benchmark;
pub mod choices;
pub mod continuations;
pub mod failures;
pub mod kernels;
pub mod layers;
pub mod measurements;
pub mod metrics;
mod number;
pub mod reading;
mod recommendation;
pub mod report;
pub mod residency;
pub mod run;
pub mod sensitivity;
pub mod speed;
pub mod streamed;
pub mod verdict;
pub mod walk;
pub mod windows;
