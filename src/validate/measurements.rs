//! Raw measurements of a validation run, and the figures derived from them alone.
//!
//! Not here: limits and the verdict.

use super::failures::PromptFailure;
use super::metrics::{median, percentile};
use super::reading::ReadingProblem;
use crate::quant::{Activations, Coding};

/// Perplexities on the same tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerplexityMeasurement {
    /// Of the original.
    pub original: f64,
    /// Of the quantized model.
    pub quantized: f64,
}

impl PerplexityMeasurement {
    /// `quantized / original - 1`.
    pub fn increase(&self) -> f64 {
        self.quantized / self.original - 1.0
    }
}

/// Right answers to the same questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchmarkMeasurement {
    /// Questions.
    pub items: usize,
    /// Questions that the original answers right.
    pub original_right: usize,
    /// Questions that the quantized model answers right.
    pub quantized_right: usize,
}

impl BenchmarkMeasurement {
    /// The drop of accuracy in percentage points; negative if it rises.
    pub fn drop_points(&self) -> f64 {
        (self.original_right as f64 - self.quantized_right as f64) * 100.0 / self.items as f64
    }
}

/// The bytes of one quantized layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerMemory {
    /// Its scheme.
    pub scheme: Coding,
    /// Its weights at two bytes each.
    pub f16_bytes: u64,
    /// Its codes, scales and zero points.
    pub packed_bytes: u64,
}

/// One round of a timing in which the two models take turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpeedRound {
    /// Of the original, on the fastest f16/f32 path of the device.
    pub original_tokens_per_second: f64,
    /// Of the quantized model, on the same device and threads.
    pub quantized_tokens_per_second: f64,
}

/// An interleaved timing.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeedMeasurement {
    /// Description of the device.
    pub device: String,
    /// One per round.
    pub rounds: Vec<SpeedRound>,
    /// The original's weight bytes.
    pub original_bytes: u64,
    /// The device's last-level cache, if known.
    pub last_level_cache_bytes: Option<u64>,
}

impl SpeedMeasurement {
    fn column(&self, of: impl Fn(&SpeedRound) -> f64) -> Vec<f64> {
        self.rounds.iter().map(of).collect()
    }

    /// The original's median tokens per second.
    pub fn original_tokens_per_second(&self) -> f64 {
        median(&self.column(|round| round.original_tokens_per_second))
    }

    /// The quantized model's median tokens per second.
    pub fn quantized_tokens_per_second(&self) -> f64 {
        median(&self.column(|round| round.quantized_tokens_per_second))
    }

    /// The quotient of the two medians.
    pub fn ratio(&self) -> f64 {
        self.quantized_tokens_per_second() / self.original_tokens_per_second()
    }

    /// The scatter of the rounds: the middle half of their ratios lies within `ratio() ± spread()`. Quartiles, so that
    /// one disturbed round does not invalidate the whole timing.
    pub fn spread(&self) -> f64 {
        let ratios =
            self.column(|round| round.quantized_tokens_per_second / round.original_tokens_per_second);
        let ratio = self.ratio();
        let (low, high) =
            ((percentile(&ratios, 25.0) - ratio).abs(), (percentile(&ratios, 75.0) - ratio).abs());
        if low > high || low.is_nan() { low } else { high }
    }

    /// Whether the original's weights fit the last-level cache.
    pub fn original_fits_cache(&self) -> bool {
        self.last_level_cache_bytes.is_some_and(|cache| self.original_bytes <= cache)
    }
}

/// How the codes were found. It decides what is still worth a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preparation {
    /// Weights were rounded, without data.
    Rounded,
    /// Activations of a calibration text were used.
    Calibrated,
    /// The model was trained with quantization in the loop.
    Trained,
}

impl Preparation {
    /// The preparation for a record's method; unknown methods count as rounding.
    pub fn of_method(name: &str) -> Self {
        match name {
            "gptq" | "awq" => Self::Calibrated,
            "qat" => Self::Trained,
            _ => Self::Rounded,
        }
    }
}

/// Everything that the verdict depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurements {
    /// The scheme of most layers.
    pub scheme: Coding,
    /// How the codes were found.
    pub preparation: Preparation,
    /// The precision of the activations.
    pub activations: Activations,
    /// On the validation text.
    pub perplexity: PerplexityMeasurement,
    /// The benchmark's results, if one was given.
    pub benchmark: Option<BenchmarkMeasurement>,
    /// Prompts that were continued.
    pub prompts: usize,
    /// Failures in those continuations.
    pub failures: Vec<PromptFailure>,
    /// The quantized layers.
    pub memory: Vec<LayerMemory>,
    /// `None` where it was not measured.
    pub speed: Option<SpeedMeasurement>,
    /// Names of the layers with the lowest SNR, worst first, for the recommendation. May be empty.
    pub worst_layers: Vec<String>,
    /// Problems in reading the two checkpoints.
    pub reading: Vec<ReadingProblem>,
}

impl Measurements {
    /// f16 bytes and packed bytes over the quantized layers.
    pub fn memory_bytes(&self) -> (u64, u64) {
        self.memory
            .iter()
            .fold((0, 0), |(f16, packed), layer| (f16 + layer.f16_bytes, packed + layer.packed_bytes))
    }

    /// How many times smaller the quantized layers are. NaN without any.
    pub fn memory_ratio(&self) -> f64 {
        let (f16, packed) = self.memory_bytes();
        f16 as f64 / packed as f64
    }

    /// Failures that the original does not show.
    pub fn new_failures(&self) -> usize {
        self.failures.iter().filter(|failure| !failure.original_also).count()
    }
}
