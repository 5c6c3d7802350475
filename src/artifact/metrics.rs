//! `--metrics FILE`: metrics as JSON lines with stable names, for tracking many runs.

use serde::Serialize;

/// One metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// Stable name: `quantized_model_size_mb`, `perplexity`, ...
    pub name: &'static str,
    /// The value.
    pub value: f64,
    /// What was measured: a path or a module.
    pub subject: String,
}

impl Metric {
    /// All names that this crate writes. The README documents each.
    pub const NAMES: [&'static str; 17] = [
        "original_model_size_mb",
        "quantized_model_size_mb",
        "dequantized_model_size_mb",
        "compression_ratio",
        "bits_per_weight",
        "quantization_seconds",
        "layer_snr_db",
        "perplexity",
        "perplexity_increase",
        "kl_divergence_mean",
        "top1_agreement",
        "tokens_per_second",
        "dequantization_accuracy_retention",
        "gradient_flow_test_passed",
        "edge_of_chaos_assessment_completed",
        "edge_of_chaos_optimal_level",
        "gradient_variance_optimal",
    ];

    /// A metric of `subject`.
    pub fn new(name: &'static str, value: f64, subject: impl Into<String>) -> Self {
        debug_assert!(Self::NAMES.contains(&name), "{name} is not a documented metric");
        Self { name, value, subject: subject.into() }
    }
}

/// Metrics as JSON lines.
pub fn to_json_lines(metrics: &[Metric]) -> String {
    metrics.iter().map(|metric| serde_json::to_string(metric).expect("plain values") + "\n").collect()
}
