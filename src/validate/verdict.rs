//! The verdict: measurements and limits in, criteria and acceptance out.
//!
//! Five criteria, each one row of the report:
//!
//! - **Quality.** The perplexity increase is below its limit, or the benchmark's drop is. One of the two is enough, so
//!   there is one row, named after the deciding measurement. That is the one that passes, perplexity first; if none
//!   passes, perplexity.
//! - **Generation.** No failure that the original does not show on the same prompt.
//! - **Memory.** Over the quantized layers, f16 bytes / packed bytes (scales included) is at least the scheme's limit
//!   ([`scheme_memory_limit`]).
//! - **Speed.** Tokens per second relative to the fastest f16/f32 path. The row is inconclusive if the timing is too
//!   noisy, or if the original fits the last-level cache: memory bandwidth, which fewer bits save, is then not the
//!   limit.
//! - **Reading.** Both checkpoints are read completely, and their tokenizers and chat templates agree
//!   ([`reading`](super::reading)).
//!
//! `inconclusive` does not reject: a model is accepted if no criterion failed. A measurement that is not finite fails.
//! Everything is a pure function. Not here: measuring.

use super::measurements::{LayerMemory, Measurements};
use super::number;
use super::recommendation::recommend;
use crate::options::{Bounds, named, options};
use crate::quant::Coding;
use serde::{Deserialize, Serialize};

options! {
    /// The limits of the verdict.
    pub struct Limits {
        /// Perplexity may increase by less than this fraction
        pub max_perplexity_increase: f64 = 0.02, within Bounds::from(-1.0);
        /// Benchmark accuracy may drop by less than this many percentage points
        #[form(As("max-benchmark-drop"))]
        pub max_benchmark_drop_points: f64 = 2.0, within Bounds::from(-100.0);
        /// Allowed number of generation failures that the original does not show
        pub max_new_failures: usize = 0;
        /// Required ratio of f16 to packed bytes of the quantized layers [default: by scheme, 3.4 for INT4]
        pub min_memory_ratio: Option<f64> = None, within Bounds::from(0.0);
        /// Required decoding speed, as a multiple of the original's
        pub min_speed_ratio: f64 = 1.5, within Bounds::from(0.0);
    }
}

/// With fewer rounds, speed is inconclusive.
const MIN_SPEED_ROUNDS: usize = 5;

/// The smallest accepted memory ratio of a scheme, slightly below the ratio in this table:
///
/// | scheme | bits per weight, group 32 asymmetric | ratio to f16 | limit |
/// |---|---|---|---|
/// | INT8 | 8 + 16/32 (symmetric) | 1.88 | 1.85 |
/// | INT4 | 4 + 16/32 + 4/32 | 3.46 | 3.4 |
/// | INT3 | 3 + 16/32 + 3/32 | 4.45 | 4.4 |
/// | INT2 | 2 + 16/32 + 2/32 | 6.24 | 6.2 |
/// | ternary | 2 + 16/64 (one scale per row of 64) | 7.11 | 7.0 |
///
/// INT8 is an exception: with zero points in groups of 32, its ratio of 1.83 misses the limit.
pub fn scheme_memory_limit(scheme: Coding) -> f64 {
    match scheme.levels() {
        ..=3 => 7.0,
        4 => 6.2,
        5..=8 => 4.4,
        9..=16 => 3.4,
        _ => 1.85,
    }
}

named! {
    /// The result of a criterion
    pub enum Status {
        /// Within the limit
        Passed = "passed",
        /// Outside the limit, or not a finite number
        Failed = "failed",
        /// The measurement cannot tell; does not reject
        Inconclusive = "inconclusive",
    }
}

impl Status {
    fn of(passed: bool) -> Self {
        if passed { Self::Passed } else { Self::Failed }
    }
}

/// Names of criteria: stable, part of the report's schema.
pub mod criterion {
    /// Quality, decided by perplexity: `quantized / original - 1`.
    pub const PERPLEXITY_INCREASE: &str = "perplexity_increase";
    /// Quality, decided by the benchmark: the accuracy drop in points.
    pub const BENCHMARK_DROP_POINTS: &str = "benchmark_drop_points";
    /// The number of failures that only the quantized model shows.
    pub const NEW_GENERATION_FAILURES: &str = "new_generation_failures";
    /// f16 bytes / packed bytes.
    pub const MEMORY_RATIO: &str = "memory_ratio";
    /// Quantized / original tokens per second.
    pub const SPEED_RATIO: &str = "speed_ratio";
    /// The number of problems in reading the two checkpoints.
    pub const READING_PROBLEMS: &str = "reading_problems";
}

/// One row of the verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Criterion {
    /// `perplexity_increase`, `benchmark_drop_points`, `new_generation_failures`, `memory_ratio`, `speed_ratio` or
    /// `reading_problems`.
    pub name: String,
    /// The limit of the value.
    #[serde(with = "number")]
    pub limit: f64,
    /// The measured value; NaN (null in JSON) if not measured.
    #[serde(with = "number")]
    pub value: f64,
    /// The result.
    pub status: Status,
}

impl Criterion {
    fn new(name: &str, limit: f64, value: f64, status: Status) -> Self {
        Self { name: name.to_owned(), limit, value, status }
    }
}

/// The result of judging measurements.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Quality, generation, memory, speed, reading.
    pub criteria: Vec<Criterion>,
    /// Whether no criterion failed.
    pub accepted: bool,
    /// What to do next, in a sentence or two.
    pub recommendation: String,
}

/// Judges the measurements by the limits.
pub fn judge(measurements: &Measurements, limits: &Limits) -> Verdict {
    let criteria = vec![
        quality(measurements, limits),
        generation(measurements, limits),
        memory(measurements, limits),
        speed(measurements, limits),
        reading(measurements),
    ];
    let accepted = criteria.iter().all(|criterion| criterion.status != Status::Failed);
    let recommendation = recommend(measurements, &criteria);
    Verdict { criteria, accepted, recommendation }
}

fn quality(measurements: &Measurements, limits: &Limits) -> Criterion {
    let perplexity = measurements.perplexity;
    let increase = perplexity.increase();
    // A perplexity is a finite number of at least 1. Anything else means a broken model, whatever the ratio or the
    // benchmark says.
    let sound = [perplexity.original, perplexity.quantized].iter().all(|p| p.is_finite() && *p >= 1.0);
    let limit = limits.max_perplexity_increase;
    let by_perplexity = Criterion::new(
        criterion::PERPLEXITY_INCREASE,
        limit,
        increase,
        Status::of(sound && increase < limit),
    );
    if by_perplexity.status == Status::Passed {
        return by_perplexity;
    }
    let limit = limits.max_benchmark_drop_points;
    let drop = measurements.benchmark.map(|benchmark| benchmark.drop_points());
    match drop.filter(|&drop| sound && drop.is_finite() && drop < limit) {
        Some(drop) => Criterion::new(criterion::BENCHMARK_DROP_POINTS, limit, drop, Status::Passed),
        None => by_perplexity,
    }
}

fn generation(measurements: &Measurements, limits: &Limits) -> Criterion {
    let name = criterion::NEW_GENERATION_FAILURES;
    let limit = limits.max_new_failures as f64;
    if measurements.prompts == 0 {
        return Criterion::new(name, limit, f64::NAN, Status::Inconclusive);
    }
    let failures = measurements.new_failures();
    Criterion::new(name, limit, failures as f64, Status::of(failures <= limits.max_new_failures))
}

fn memory(measurements: &Measurements, limits: &Limits) -> Criterion {
    let limit = limits.min_memory_ratio.unwrap_or_else(|| memory_limit(measurements));
    let ratio = measurements.memory_ratio();
    Criterion::new(criterion::MEMORY_RATIO, limit, ratio, Status::of(ratio.is_finite() && ratio >= limit))
}

/// The ratio of all layers together if each just reaches its scheme's limit.
fn memory_limit(measurements: &Measurements) -> f64 {
    let of = |layer: &LayerMemory| scheme_memory_limit(layer.scheme);
    let Some(first) = measurements.memory.first().map(of) else {
        return scheme_memory_limit(measurements.scheme);
    };
    if measurements.memory.iter().all(|layer| of(layer) == first) {
        return first;
    }
    let allowed: f64 = measurements.memory.iter().map(|layer| layer.f16_bytes as f64 / of(layer)).sum();
    measurements.memory_bytes().0 as f64 / allowed
}

fn reading(measurements: &Measurements) -> Criterion {
    let problems = measurements.reading.len();
    Criterion::new(criterion::READING_PROBLEMS, 0.0, problems as f64, Status::of(problems == 0))
}

fn speed(measurements: &Measurements, limits: &Limits) -> Criterion {
    let limit = limits.min_speed_ratio;
    let Some(speed) = &measurements.speed else {
        return Criterion::new(criterion::SPEED_RATIO, limit, f64::NAN, Status::Inconclusive);
    };
    let (ratio, spread) = (speed.ratio(), speed.spread());
    let few = speed.rounds.len() < MIN_SPEED_ROUNDS;
    let status = if !speed.rounds.is_empty() && (!ratio.is_finite() || !spread.is_finite()) {
        Status::Failed
    } else if few || speed.original_fits_cache() || (ratio - limit).abs() <= spread {
        Status::Inconclusive
    } else {
        Status::of(ratio >= limit)
    };
    Criterion::new(criterion::SPEED_RATIO, limit, ratio, status)
}

#[cfg(test)]
pub(super) mod tests;
