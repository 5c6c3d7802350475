//! Quantizes, runs, trains and validates language models on the user's machine.
//!
//! # Ten lines
//!
//! ```
//! use lowbit::{Bits, GenerateOptions, Granularity, LoadRequest, QuantizeRequest, ValidateRequest};
//! # fn main() -> lowbit::Result<()> {
//! # let place = std::env::temp_dir().join(format!("lowbit-doc-{}", std::process::id()));
//! # let (folder, output) = ("tests/fixtures/tale-llama", place.join("int4"));
//! # let unseen: String = std::fs::read_to_string("tests/fixtures/tale-llama/heldout.txt")?.chars().take(2000).collect();
//!
//! let original = lowbit::open(folder)?;
//! let four = QuantizeRequest::default().bits(Bits::Four).group_size(Granularity::Group(32));
//! let int4 = original.quantize(output, &four)?.checkpoint;
//!
//! let report = int4.validate(&original, &ValidateRequest::of(unseen))?;
//! println!("{} {}", report.perplexity.increase, report.recommendation);
//!
//! let mut model = int4.load(&LoadRequest::default())?;
//! let said = model.generate("Once upon a time", &GenerateOptions::default().max_tokens(40))?;
//! println!("{}", said.text);
//! # assert!(report.perplexity.increase < 0.05 && said.token_ids.len() == 40);
//! # std::fs::remove_dir_all(place)?;
//! # Ok(())
//! # }
//! ```
//!
//! [`open`] opens a Hugging Face folder or a GGUF file. Methods of [`Checkpoint`] and [`Model`] take requests, whose
//! fields document options, defaults and bounds. An [`Error`] has a stable [code](ErrorCode) and a message that names
//! the file, the tensor, what was expected and what was found.
//!
//! [`io`] provides weights that are not on disk. [`Control`] receives progress and cancels work.
//!
//! | feature | default | provides |
//! |---|---|---|
//! | `gpu` | yes | GPUs through wgpu |
//! | `tokenizer` | yes | text; without it only [`io`] and the options remain |
//! | `train` | yes | training |
//! | `cli` | no | the command line: `cargo install lowbit --features cli` |
//!
//! # Inside
//!
//! `format` reads bytes from disk, memory or elsewhere. Opening a checkpoint (`model`) reads its configuration and the
//! headers of its weight files, but not the weights. Its `layout` decodes packed tensors. `pipeline` quantizes one
//! matrix at a time, some rows at once (`quant`), and writes it in a layout. The one decoder (`model`) loads dense or
//! packed matrices onto a device (`backend`) and runs them. `generate` produces text. `validate` measures perplexity,
//! divergence, broken text, memory and speed, and gives a verdict with a recommendation.
//!
//! Internals are asynchronous, because a browser's files are. The public calls block.
//!
//! A file imports only from lower floors or from its own module (`tests/it/floors.rs`):
//!
//! | floor | | modules |
//! |---|---|---|
//! | 9 | edges | `api` (this façade), `cli`, `wasm` (the npm package) |
//! | 8 | whole jobs | `request`, `recipe`, `pipeline`, `plan` |
//! | 7 | judging and training | `calibrate`, `validate`, `artifact`, `train` |
//! | 6 | generation | `generate` |
//! | 5 | the model | `model`, `tokenizer` |
//! | 4 | devices | `backend` |
//! | 3 | layouts | `layout` |
//! | 2 | maths | `quant` |
//! | 1 | bytes | `format` |
//! | 0 | values | `error`, `dtype`, `shape`, `digest`, `options`, `parallel`, `sort`, `task` |

// Features decide which parts are used. The build with all features and `internals` has no dead code.
#![cfg_attr(not(all(feature = "cli", feature = "internals")), allow(dead_code, unused_imports))]
// WebAssembly has one thread, so `Arc` is not shared between threads there.
#![cfg_attr(target_arch = "wasm32", allow(clippy::arc_with_non_send_sync))]

#[cfg(all(feature = "tokenizer", not(target_os = "unknown")))]
mod api;
mod artifact;
mod backend;
mod calibrate;
#[cfg(feature = "cli")]
mod cli;
mod digest;
mod dtype;
mod error;
mod format;
mod generate;
mod layout;
mod model;
mod options;
mod parallel;
mod pipeline;
mod plan;
mod quant;
mod recipe;
mod request;
mod shape;
mod sort;
mod task;
mod tokenizer;
#[cfg(feature = "train")]
mod train;
mod validate;
#[cfg(all(target_arch = "wasm32", feature = "bindings"))]
mod wasm;

#[cfg(all(feature = "tokenizer", not(target_os = "unknown")))]
pub use api::{Checkpoint, Message, Model, Pieces, Written, open, open_with};
pub use backend::GateActivation;
pub use backend::choice::{DeviceChoice, DeviceRequest};
#[cfg(feature = "cli")]
#[doc(hidden)]
pub use cli::main as command_line;
pub use error::{Error, ErrorCode, Result};
pub use generate::{FinishReason, GenerateOptions, Generated, Piece, SamplerOptions};
pub use layout::{GptqZeros, OpenOptions};
pub use model::rope::{RopeConfig, RopeScaling};
pub use model::{Architecture, ModelConfig};
pub use options::{Bytes, Given, LocationGiven, Texts};
pub use quant::{
    Activations, Bits, ColumnOrder, GptqOptions, Granularity, Method, ReferenceInputs, ScaleRule,
};
pub use recipe::{ModulePattern, Recipe, Rule};
pub use request::{
    CalibrationRequest, ConvertRequest, DequantizeRequest, FloatType, Format, GgufType, LoadRequest,
    MeasureOptions, Perplexity, PerplexityRequest, QuantizeRequest, ResidencyOptions, TernaryScale,
    TextsOptions, ValidateRequest, WindowRequest,
};
pub use task::{Control, Progress, Silent};
#[cfg(feature = "tokenizer")]
pub use tokenizer::HuggingFaceTokenizer;
pub use tokenizer::TextCodec;
pub use validate::verdict::Limits;

/// Sources and sinks that are not folders on disk.
pub mod io {
    pub use crate::format::sink::{ByteSink, MemorySinkDir, SinkDir};
    pub use crate::format::source::{ByteSource, MemoryDir, MemorySource, SourceDir};
    #[cfg(not(target_os = "unknown"))]
    pub use crate::format::{
        sink::FsSinkDir,
        source::{FileSource, FsDir},
    };
    pub use crate::task::{BoxFuture, Shareable};
}

/// Reports of validations and records of written weights.
pub mod report {
    pub use crate::artifact::records::{
        DequantizationRecord, DequantizedModule, Fallback, ModuleRecord, QuantizationRecord, SourceRecord,
        TensorReference,
    };
    pub use crate::calibrate::method::CalibrationRecord;
    pub use crate::validate::agreement::Agreement;
    pub use crate::validate::failures::{FailureKind, PromptFailure};
    pub use crate::validate::reading::{ReadingProblem, ReadingProblemKind};
    pub use crate::validate::report::{
        Benchmark, Dataset, Divergence, Generation, Layer, Memory, OriginalModel, Perplexity, QuantizedModel,
        Speed, ValidationReport,
    };
    pub use crate::validate::residency::Execution;
    pub use crate::validate::verdict::{Criterion, Status};
}

/// Internals for this project's tests, without any stability.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    pub mod artifact {
        pub use crate::artifact::*;
    }
    pub mod backend {
        pub use crate::backend::*;
    }
    pub mod calibrate {
        pub use crate::calibrate::*;
    }
    pub mod digest {
        pub use crate::digest::*;
    }
    pub mod dtype {
        pub use crate::dtype::*;
    }
    pub mod error {
        pub use crate::error::*;
    }
    pub mod format {
        pub use crate::format::*;
    }
    pub mod generate {
        pub use crate::generate::*;
    }
    pub mod layout {
        pub use crate::layout::*;
    }
    pub mod model {
        pub use crate::model::*;
    }
    pub mod options {
        pub use crate::options::*;
    }
    pub mod sort {
        pub use crate::sort::*;
    }
    pub mod parallel {
        pub use crate::parallel::*;
    }
    pub mod pipeline {
        pub use crate::pipeline::*;
    }
    pub mod plan {
        pub use crate::plan::*;
    }
    pub mod quant {
        pub use crate::quant::*;
    }
    pub mod recipe {
        pub use crate::recipe::*;
    }
    pub mod request {
        pub use crate::request::*;
    }
    pub mod shape {
        pub use crate::shape::*;
    }
    pub mod task {
        pub use crate::task::*;
    }
    pub mod tokenizer {
        pub use crate::tokenizer::*;
    }
    #[cfg(feature = "train")]
    pub mod train {
        pub use crate::train::*;
    }
    pub mod validate {
        pub use crate::validate::*;
    }
}
