//! Quantizes, runs and validates language models where the user is.

pub mod artifact;
pub mod backend;
pub mod digest;
pub mod dtype;
pub mod error;
pub mod format;
pub mod generate;
pub mod layout;
pub mod model;
pub mod pipeline;
pub mod plan;
pub mod quant;
pub mod shape;
pub mod task;
pub mod tokenizer;
pub mod validate;

pub use error::{Error, ErrorCode, Result};
