//! Quantization as pure maths: schemes, codings, packed tensors, and methods.
//!
//! It knows no files, models or devices, so every method is tested on small matrices.

pub mod awq;
pub mod builder;
pub mod codings;
pub mod column_order;
pub mod dequantize;
pub mod gptq;
pub mod hessian;
pub(crate) mod linalg;
mod method;
pub mod packed_tensor;
pub mod packing;
pub mod qparams;
pub mod regroup;
pub(crate) mod row_queue;
pub mod rtn;
mod scale_search;
pub mod scheme;
pub mod stats;
pub mod ternary;

pub use builder::PackedBuilder;
pub use codings::{Coded, Coding, Format, QuantizedRows, QuantizedTensor, Section};
pub use gptq::{ColumnOrder, GptqOptions, GptqOutcome, GptqQuantizer, ReferenceInputs, ScaleRule};
pub use hessian::{Drift, Hessian};
pub use method::Method;
pub use packed_tensor::{PackedTensor, Scales};
pub use qparams::{QParams, ScaleType};
pub use row_queue::RowQuantizer;
pub use rtn::{ParamsEncoder, RtnQuantizer, encode_with_params, to_nearest};
pub use scheme::{ActivationGrid, Activations, Bits, Granularity, Scheme};
pub use stats::WeightError;
pub use ternary::TernaryQuantizer;
