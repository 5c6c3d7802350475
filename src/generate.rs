//! Text generation: sampling tokens, stopping, and streaming text in whole characters.
//!
//! `generator` runs a model step by step for one prompt, `batch` for several. `sequence` combines `sampler`, `stop` and
//! `text_stream` for one text; these three know no model.

pub mod batch;
pub mod generator;
pub mod sampler;
mod sequence;
pub mod stop;
pub mod text_stream;

pub use batch::{Batch, BatchPrompt, Said};
pub use generator::{GenerateOptions, Generated, Generation, Piece, Session, generate};
pub use sampler::{Sampler, SamplerOptions};
pub use stop::{FinishReason, StopOptions, StopRules, StopStep};
pub use text_stream::{Detokenize, TextStream};
