//! `quantization_summary.json`: several variants of one model side by side.

use serde::{Deserialize, Serialize};

/// The file's name.
pub const SUMMARY_FILE: &str = "quantization_summary.json";

/// All variants of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// `lowbit.summary/1`
    pub schema: String,
    /// In the order in which they were made.
    pub variants: Vec<Variant>,
    /// The result of a search for a good variant; absent without a search and while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// The result of a search for a good variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The name of the accepted attempt; null if none is good.
    pub accepted: Option<String>,
    /// What to do next.
    pub recommendation: String,
}

/// The search attempt that a variant comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// The name of its folder beside the summary.
    pub name: String,
    /// The source checkpoint.
    pub checkpoint: String,
    /// Calibration samples.
    pub samples: usize,
    /// Their tokens.
    pub tokens: u64,
    /// Modules that got more bits than the others.
    pub promoted: Vec<String>,
    /// Criteria of its report that failed.
    pub failed: Vec<String>,
    /// Whether quality and generation are within the limits. Memory and speed do not count here.
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
    /// Mean over the quantized layers, scales and zero points included.
    pub bits_per_weight: f64,
    /// Of its weight files.
    pub bytes: u64,
    /// Null if it is not finite.
    pub perplexity: Option<f64>,
    /// `quantized / original - 1`; null if it is not finite.
    pub perplexity_increase: Option<f64>,
    /// Median; null if it was not measured.
    pub tokens_per_second: Option<f64>,
    /// Whether the validation accepted it.
    pub accepted: bool,
    /// What to try next.
    pub recommendation: String,
    /// The search attempt, if it is one of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptRecord>,
}

impl Summary {
    /// A summary of `variants`, without an outcome.
    pub fn new(variants: Vec<Variant>) -> Self {
        Self { schema: "lowbit.summary/1".to_owned(), variants, outcome: None }
    }
}
