//! Quantizes, runs and validates language models where the user is.
//!
//! # The way the data goes
//!
//! Bytes come from a [`SourceDir`](format::source::SourceDir): a folder on disk, in memory, or wherever else. A
//! [`Checkpoint`](model::Checkpoint) reads its configuration and the headers of its weight files, never the weights; its
//! [`Layout`](layout::Layout) knows how the folder spells them.
//!
//! From there two ways part. [`pipeline::quantize`](pipeline::quantize()) reads one matrix at a time, some rows at once, finds codes for it
//! ([`quant`]), and writes it to a [`SinkDir`](format::sink::SinkDir) as a [`layout`] spells it. And
//! [`CausalLm::load`](model::CausalLm::load) brings the same matrices, dense or packed, to a [`Backend`](backend::Backend), and runs them.
//!
//! A model speaks through [`generate`](mod@generate), and is judged by [`validate`]: perplexity, divergence from its original, broken text,
//! memory, speed, and a verdict that says what to try next. The way back, from codes to floating point and from there to the
//! same codes, is in [`pipeline::dequantize`].
//!
//! Everything that waits is asynchronous, because a browser's files are; native callers block at the edge with
//! `task::block_on`. Long work is given a [`Control`](task::Control) that hears of progress and can cancel.
//!
//! # Floors
//!
//! A file imports only from lower floors or from its own module; a test keeps it so.
//!
//! 0. values: [`error`], [`dtype`], [`shape`], [`digest`], [`options`], [`order`], [`parallel`], [`task`]
//! 1. bytes: [`format`](mod@format)
//! 2. maths: [`quant`]
//! 3. spellings: [`layout`]
//! 4. devices: [`backend`]
//! 5. the model: [`model`], [`tokenizer`]
//! 6. speaking: [`generate`](mod@generate)
//! 7. judging and training: [`calibrate`], [`validate`], [`artifact`], and with the feature of that name `train`
//! 8. whole jobs: [`request`], [`recipe`], [`pipeline`], [`plan`]
//! 9. edges: the command line, and the modules of the npm package

#[cfg(all(feature = "tokenizer", not(target_os = "unknown")))]
pub mod api;
pub mod artifact;
pub mod backend;
pub mod calibrate;
#[cfg(feature = "cli")]
pub mod cli;
pub mod digest;
pub mod dtype;
pub mod error;
pub mod format;
pub mod generate;
pub mod layout;
pub mod model;
pub mod options;
pub mod order;
pub mod parallel;
pub mod pipeline;
pub mod plan;
pub mod quant;
pub mod recipe;
pub mod request;
pub mod shape;
pub mod task;
pub mod tokenizer;
#[cfg(feature = "train")]
pub mod train;
pub mod validate;
#[cfg(all(target_arch = "wasm32", feature = "bindings"))]
pub mod wasm;

pub use error::{Error, ErrorCode, Result};
