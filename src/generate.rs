//! From logits to text: choosing tokens, deciding when to stop, and streaming text that is always whole.
//!
//! `generator` runs a model step by step for one prompt, `batch` for several; `sequence` is what one text needs of the other
//! three, which see slices of logits, token ids and pieces of text.

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
