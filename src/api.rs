//! The blocking Rust API: open, quantize, convert, load, generate, validate.
//!
//! It works on paths. Other sources and outputs implement [`SourceDir`](crate::format::source::SourceDir) and
//! [`SinkDir`](crate::format::sink::SinkDir). Each method runs the same request as the command of that name. The
//! options are in [`request`](crate::request).

mod checkpoint;
pub mod destination;
mod model;
pub mod opening;

pub use checkpoint::{Checkpoint, Written};
pub use model::{Message, Model, Pieces};

use crate::error::Result;
use crate::layout::OpenOptions;
use std::path::Path;

/// Opens a checkpoint: a folder, or a GGUF file. Weights are not read yet.
///
/// # Errors
/// `not_found` for a missing file; `unsupported_model` and `unsupported_format` for unsupported features, by name;
/// `invalid_checkpoint` for files that contradict each other; `unfinished_output` for a folder whose writer was
/// stopped.
pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
    open_with(path, &OpenOptions::default())
}

/// As [`open`], with options for what the files do not specify.
///
/// # Errors
/// As [`open`].
pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Checkpoint> {
    Checkpoint::open(path.as_ref(), options)
}
