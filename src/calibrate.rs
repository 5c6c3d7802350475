//! Runs a model over sample texts to see what its linear layers are given.
//!
//! [`samples`] cuts texts into windows; [`walk`] takes them through the model block by block and hands out statistics, which
//! [`moments`] adds up, at each [`LinearInput`](crate::model::block::LinearInput), while the block's matrices are replaced one after the
//! other. [`method`] says what a method makes of them: [`gptq`], [`awq`] and [`rtn`] are there; what they found waits in
//! [`modules`]. [`rows`] brings weights to a quantizer. Not here: the maths (`quant`), and which modules are quantized how
//! (`pipeline`).

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
