//! `quantization_summary.json`: several variants of one model side by side.

use serde::{Deserialize, Serialize};

/// The file's name.
pub const SUMMARY_FILE: &str = "quantization_summary.json";

/// Every variant that was made of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// `lowbit.summary/1`
    pub schema: String,
    /// In the order in which they were made.
    pub variants: Vec<Variant>,
    /// How a search for a good one ended; absent where there was none, or while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// How a search for a good variant ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The name of the attempt that is good; null where none is.
    pub accepted: Option<String>,
    /// What to do now.
    pub recommendation: String,
}

/// What an attempt was that a variant comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// The name of its folder beside the summary.
    pub name: String,
    /// The checkpoint that it was made from.
    pub checkpoint: String,
    /// Calibration samples.
    pub samples: usize,
    /// Their tokens.
    pub tokens: u64,
    /// Modules that got more bits than the others.
    pub promoted: Vec<String>,
    /// Criteria of its report that failed.
    pub failed: Vec<String>,
    /// Whether quality and generation are within the limits: memory and speed do not count here.
    pub good: bool,
}

/// One variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// Its folder.
    pub path: String,
    /// `rtn`, `ternary`, ...
    pub method: String,
    /// As `int4-g32-sym`.
    pub scheme: String,
    /// Over the quantized layers, with scales and zero points.
    pub bits_per_weight: f64,
    /// Of its weight files.
    pub bytes: u64,
    /// Null where it is not finite.
    pub perplexity: Option<f64>,
    /// `quantized / original - 1`; null where it is not finite.
    pub perplexity_increase: Option<f64>,
    /// Median; null where it was not measured.
    pub tokens_per_second: Option<f64>,
    /// The verdict.
    pub accepted: bool,
    /// What to try next.
    pub recommendation: String,
    /// Where it is one of several attempts to find a good variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptRecord>,
}

impl Summary {
    /// A summary of these.
    pub fn new(variants: Vec<Variant>) -> Self {
        Self { schema: "lowbit.summary/1".to_owned(), variants, outcome: None }
    }
}
