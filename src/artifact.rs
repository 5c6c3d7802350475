//! What this crate writes: output folders that are either complete or marked as incomplete, and the records in them.
//!
//! Not here: which weights are written and how they were quantized (`pipeline`).

pub mod metrics;
pub mod output;
pub mod records;
pub mod summary;

pub use output::OutputFolder;
pub use records::{QuantizationRecord, SourceRecord};
