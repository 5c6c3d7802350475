//! The face for Rust programs: a checkpoint is opened, quantized, loaded, asked and judged, in calls that block until the work
//! is done.
//!
//! For programs that have files; what they have instead goes in through [`SourceDir`](crate::format::source::SourceDir) and out
//! through [`SinkDir`](crate::format::sink::SinkDir). Each call does what the command of its name does, by the same request.
//! Not here: options ([`request`](crate::request)), and the work.

mod checkpoint;
pub mod destination;
mod model;
pub mod opening;

pub use checkpoint::{Checkpoint, Written};
pub use model::{Message, Model, Pieces};

use crate::error::Result;
use std::path::Path;

/// Opens a checkpoint: a folder, or a GGUF file. Weights are not read yet.
///
/// # Errors
/// `not_found` where a file is missing; `unsupported_model` and `unsupported_format` for what lowbit does not do, by name;
/// `invalid_checkpoint` for files that contradict each other; `unfinished_output` for a folder whose writer was stopped.
pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
    Checkpoint::open(path.as_ref())
}
