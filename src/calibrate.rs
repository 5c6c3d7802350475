//! Runs a model over sample texts to see what its linear layers are given.
//!
//! [`samples`] cuts texts into windows; [`walk`] takes them through the model block by block and hands out statistics, which
//! [`moments`] adds up, at each [`LinearInput`](crate::model::block::LinearInput), while the block's matrices are replaced one after the
//! other; [`awq`] runs the block with one candidate of scales after the other. [`rows`] brings weights to a quantizer. Not here:
//! what is made of the statistics (`quant`), and which modules are quantized how (`pipeline`). Floor 7.

pub mod awq;
pub mod moments;
pub mod rows;
pub mod samples;
pub mod walk;

pub use samples::{SampleOptions, Samples};
pub use walk::{InputStatistics, Start, Statistics, Walk, WalkOptions};
