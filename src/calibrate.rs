//! Calibration: runs a model over sample texts, measures the inputs of its linear layers, and quantizes the layers.
//!
//! - [`samples`] cuts texts into windows.
//! - [`walk`] runs them through the model block by block. It returns the statistics of each
//!   [`LinearInput`](crate::model::block::LinearInput), and the block's matrices are replaced one after the other.
//! - [`moments`] accumulates the statistics on the device.
//! - [`method`] is the interface of the methods: [`gptq`], [`awq`] and [`rtn`].
//! - [`modules`] stores the results in scratch.
//! - [`rows`] streams weights to a quantizer.
//!
//! The maths is in `quant`. `pipeline` chooses the method of each module.

pub mod awq;
pub mod gptq;
pub mod method;
pub mod modules;
pub mod moments;
pub mod rows;
pub mod rtn;
pub mod samples;
pub mod walk;

pub use method::CalibrationRecord;
pub use samples::{SampleOptions, Samples};
pub use walk::{InputStatistics, Start, Statistics, Walk, WalkOptions};
