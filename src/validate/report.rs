//! `validation_report.json`: measurements and verdict as one JSON document, schema `lowbit.validation/1`.
//!
//! Field order is part of the schema. A number that is not finite is written as null, and null is read as NaN: JSON has
//! no NaN, and the report of a broken model must still be valid JSON. Not here: measuring, and writing the file.

use super::failures::PromptFailure;
use super::measurements::Measurements;
use super::number;
use super::reading::ReadingProblem;
use super::residency::Execution;
use super::verdict::{Criterion, Limits, judge};
use crate::sort;
use serde::{Deserialize, Serialize};

/// The schema of written reports.
pub const SCHEMA: &str = "lowbit.validation/1";

/// The whole report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the types of the fields are documented")]
pub struct ValidationReport {
    /// `lowbit.validation/1`.
    pub schema: String,
    pub original: OriginalModel,
    pub quantized: QuantizedModel,
    /// `side-by-side` or `layer-streamed`.
    pub execution: Execution,
    pub dataset: Dataset,
    pub perplexity: Perplexity,
    pub divergence: Divergence,
    /// Null without a benchmark.
    pub benchmark: Option<Benchmark>,
    pub layers: Vec<Layer>,
    pub memory: Memory,
    /// Null if speed was not measured.
    pub speed: Option<Speed>,
    pub generation: Generation,
    /// Problems in reading the two checkpoints. Reports of earlier versions have none.
    #[serde(default)]
    pub reading: Vec<ReadingProblem>,
    pub criteria: Vec<Criterion>,
    /// Whether no criterion failed.
    pub accepted: bool,
    /// What to try next.
    pub recommendation: String,
}

/// The model that was quantized.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginalModel {
    /// As given.
    pub path: String,
    /// Weights and biases; a tied table counts once.
    pub parameters: u64,
    /// Of its weight files.
    pub bytes: u64,
}

/// The quantized model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizedModel {
    /// As given.
    pub path: String,
    /// `rtn`, `ternary`, ...
    pub method: String,
    /// The scheme of most weights, such as `int4-g32-sym`.
    pub scheme: String,
    /// Mean over the quantized layers, scales and zero points included.
    #[serde(with = "number")]
    pub bits_per_weight: f64,
    /// Of its weight files.
    pub bytes: u64,
    /// `f32` or `int8`.
    pub activations: String,
}

/// The validation text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dataset {
    /// Its file name.
    pub name: String,
    /// Scored tokens.
    pub tokens: u64,
    /// SHA-256 of the text's bytes, in hexadecimal.
    pub sha256: String,
}

/// Perplexities on the validation text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub struct Perplexity {
    #[serde(with = "number")]
    pub original: f64,
    #[serde(with = "number")]
    pub quantized: f64,
    /// `quantized / original - 1`.
    #[serde(with = "number")]
    pub increase: f64,
}

/// Distance of the predictions from the original's, over the scored tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Mean KL divergence in nats.
    #[serde(with = "number")]
    pub kl_mean: f64,
    /// Its 99th percentile.
    #[serde(with = "number")]
    pub kl_p99: f64,
    /// The fraction of positions where both predict the same token.
    #[serde(with = "number")]
    pub top1_agreement: f64,
}

/// Accuracies on a multiple-choice benchmark, from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub struct Benchmark {
    /// Questions.
    pub items: usize,
    #[serde(with = "number")]
    pub original: f64,
    #[serde(with = "number")]
    pub quantized: f64,
    /// `100 * (original - quantized)`.
    #[serde(with = "number")]
    pub drop_points: f64,
}

/// Weight errors of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// The module, such as `model.layers.0.mlp.up_proj`.
    pub name: String,
    /// Such as `int4-g32-sym`.
    pub scheme: String,
    /// Signal-to-noise ratio of the weights; null (infinite) if they are exact.
    #[serde(with = "number")]
    pub snr_db: f64,
    /// The largest absolute error of a weight.
    #[serde(with = "number")]
    pub max_abs_error: f64,
}

/// Bytes over the quantized layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// At f16.
    pub original_bytes: u64,
    /// Codes, scales and zero points.
    pub quantized_bytes: u64,
    /// `original_bytes / quantized_bytes`.
    #[serde(with = "number")]
    pub ratio: f64,
}

/// Median generation speeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub struct Speed {
    pub device: String,
    #[serde(with = "number")]
    pub original_tokens_per_second: f64,
    #[serde(with = "number")]
    pub quantized_tokens_per_second: f64,
    /// Quantized / original.
    #[serde(with = "number")]
    pub ratio: f64,
    /// The middle half of the rounds lies within `ratio ± spread`.
    #[serde(with = "number")]
    pub spread: f64,
}

/// The result of generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Prompts that were continued.
    pub prompts: usize,
    /// Failures of the quantized model.
    pub failures: Vec<PromptFailure>,
}

/// The parts of a report that do not affect the verdict.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the types of the fields are documented")]
pub struct ReportSubject {
    pub original: OriginalModel,
    pub quantized: QuantizedModel,
    pub execution: Execution,
    pub dataset: Dataset,
    pub divergence: Divergence,
    pub layers: Vec<Layer>,
}

impl ValidationReport {
    /// Judges the measurements and assembles the report.
    pub(crate) fn new(subject: ReportSubject, measurements: &Measurements, limits: &Limits) -> Self {
        let verdict = judge(measurements, limits);
        let (original_bytes, quantized_bytes) = measurements.memory_bytes();
        let share = |right: usize, items: usize| right as f64 / items as f64;
        Self {
            schema: SCHEMA.to_owned(),
            original: subject.original,
            quantized: subject.quantized,
            execution: subject.execution,
            dataset: subject.dataset,
            perplexity: Perplexity {
                original: measurements.perplexity.original,
                quantized: measurements.perplexity.quantized,
                increase: measurements.perplexity.increase(),
            },
            divergence: subject.divergence,
            benchmark: measurements.benchmark.map(|benchmark| Benchmark {
                items: benchmark.items,
                original: share(benchmark.original_right, benchmark.items),
                quantized: share(benchmark.quantized_right, benchmark.items),
                drop_points: benchmark.drop_points(),
            }),
            layers: subject.layers,
            memory: Memory { original_bytes, quantized_bytes, ratio: measurements.memory_ratio() },
            speed: measurements.speed.as_ref().map(|speed| Speed {
                device: speed.device.clone(),
                original_tokens_per_second: speed.original_tokens_per_second(),
                quantized_tokens_per_second: speed.quantized_tokens_per_second(),
                ratio: speed.ratio(),
                spread: speed.spread(),
            }),
            generation: Generation { prompts: measurements.prompts, failures: measurements.failures.clone() },
            reading: measurements.reading.clone(),
            criteria: verdict.criteria,
            accepted: verdict.accepted,
            recommendation: verdict.recommendation,
        }
    }
}

/// The names of the layers by SNR, lowest first, for [`Measurements::worst_layers`].
pub fn worst_layers(layers: &[Layer]) -> Vec<String> {
    let mut order: Vec<&Layer> = layers.iter().filter(|layer| !layer.snr_db.is_nan()).collect();
    sort::sort_by(&mut order, |a, b| a.snr_db.total_cmp(&b.snr_db));
    order.into_iter().map(|layer| layer.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::failures::FailureKind;
    use super::super::verdict::tests::passing;
    use super::*;
    use crate::validate::measurements::BenchmarkMeasurement;

    fn subject() -> ReportSubject {
        let layer = |name: &str, snr_db| Layer {
            name: name.to_owned(),
            scheme: "int4-g32-sym".into(),
            snr_db,
            max_abs_error: 0.25,
        };
        ReportSubject {
            original: OriginalModel { path: "base".into(), parameters: 1000, bytes: 2000 },
            quantized: QuantizedModel {
                path: "small".into(),
                method: "rtn".into(),
                scheme: "int4-g32-sym".into(),
                bits_per_weight: 4.5,
                bytes: 700,
                activations: "f32".into(),
            },
            execution: Execution::SideBySide,
            dataset: Dataset { name: "text.txt".into(), tokens: 12, sha256: "ab".into() },
            divergence: Divergence { kl_mean: 0.5, kl_p99: 0.75, top1_agreement: 0.875 },
            layers: vec![layer("exact", f64::INFINITY), layer("a", 20.0), layer("b", 10.0)],
        }
    }

    #[test]
    fn the_document_is_exactly_the_schema() {
        let mut measurements = passing();
        measurements.failures = vec![PromptFailure {
            prompt: "Once".into(),
            kind: FailureKind::RepetitionLoop,
            detail: "d".into(),
            original_also: true,
            text: "the the the".into(),
        }];
        let report = ValidationReport::new(subject(), &measurements, &Limits::default());
        let expected = concat!(
            r#"{"schema":"lowbit.validation/1","original":{"path":"base","parameters":1000,"bytes":2000},"#,
            r#""quantized":{"path":"small","method":"rtn","scheme":"int4-g32-sym","bits_per_weight":4.5,"bytes":700,"activations":"f32"},"#,
            r#""execution":"side-by-side","#,
            r#""dataset":{"name":"text.txt","tokens":12,"sha256":"ab"},"#,
            r#""perplexity":{"original":8.0,"quantized":8.125,"increase":0.015625},"#,
            r#""divergence":{"kl_mean":0.5,"kl_p99":0.75,"top1_agreement":0.875},"#,
            r#""benchmark":null,"#,
            r#""layers":[{"name":"exact","scheme":"int4-g32-sym","snr_db":null,"max_abs_error":0.25},"#,
            r#"{"name":"a","scheme":"int4-g32-sym","snr_db":20.0,"max_abs_error":0.25},"#,
            r#"{"name":"b","scheme":"int4-g32-sym","snr_db":10.0,"max_abs_error":0.25}],"#,
            r#""memory":{"original_bytes":3500,"quantized_bytes":1000,"ratio":3.5},"#,
            r#""speed":{"device":"cpu","original_tokens_per_second":10.0,"quantized_tokens_per_second":20.0,"ratio":2.0,"spread":0.0},"#,
            r#""generation":{"prompts":10,"failures":[{"prompt":"Once","kind":"repetition_loop","detail":"d","original_also":true,"text":"the the the"}]},"#,
            r#""reading":[],"#,
            r#""criteria":[{"name":"perplexity_increase","limit":0.02,"value":0.015625,"status":"passed"},"#,
            r#"{"name":"new_generation_failures","limit":0.0,"value":0.0,"status":"passed"},"#,
            r#"{"name":"memory_ratio","limit":3.4,"value":3.5,"status":"passed"},"#,
            r#"{"name":"speed_ratio","limit":1.5,"value":2.0,"status":"passed"},"#,
            r#"{"name":"reading_problems","limit":0.0,"value":0.0,"status":"passed"}],"#,
            r#""accepted":true,"recommendation":"accepted: nothing has to be changed"}"#
        );
        assert_eq!(serde_json::to_string(&report).unwrap(), expected);
        let back: ValidationReport = serde_json::from_str(expected).unwrap();
        assert!(back.layers[0].snr_db.is_nan());
        assert_eq!(back.criteria, report.criteria);
    }

    #[test]
    fn a_benchmark_appears_when_there_is_one() {
        let mut measurements = passing();
        measurements.benchmark =
            Some(BenchmarkMeasurement { items: 4, original_right: 3, quantized_right: 2 });
        let report = ValidationReport::new(subject(), &measurements, &Limits::default());
        let benchmark = serde_json::to_string(&report.benchmark).unwrap();
        assert_eq!(benchmark, r#"{"items":4,"original":0.75,"quantized":0.5,"drop_points":25.0}"#);
    }

    #[test]
    fn a_broken_model_still_gives_a_document() {
        let mut measurements = passing();
        measurements.perplexity.quantized = f64::NAN;
        measurements.speed = None;
        let report = ValidationReport::new(subject(), &measurements, &Limits::default());
        let text = serde_json::to_string(&report).unwrap();
        assert!(text.contains(r#""quantized":null,"increase":null"#) && text.contains(r#""speed":null"#));
        let back: ValidationReport = serde_json::from_str(&text).unwrap();
        assert!(!back.accepted && back.perplexity.increase.is_nan());
    }

    #[test]
    fn the_worst_layers_come_first() {
        assert_eq!(worst_layers(&subject().layers), ["b", "a", "exact"]);
    }
}
