//! The recommendation of a verdict: depends on what failed, on the scheme, and on what was already tried.
//!
//! Not here: the verdict itself.

use super::measurements::{Measurements, Preparation};
use super::verdict::{Criterion, Status, criterion};
use crate::quant::{Activations, Granularity};

/// Perplexity increase above which calibrating INT4 is not worth a first try. Calibration recovers only a part of the
/// loss (on LLaMA-7B, GPTQ turns 10.7% into 7.2%), which cannot reach a limit of a few percent from here.
const SEVERE_INCREASE: f64 = 0.25;

/// Most layers that are named.
const NAMED_LAYERS: usize = 3;

/// The recommendation for these measurements and their criteria.
pub(super) fn recommend(measurements: &Measurements, criteria: &[Criterion]) -> String {
    let status = |name: &str| criteria.iter().find(|row| row.name == name).map(|row| row.status);
    let failed = |name: &str| status(name) == Some(Status::Failed);
    let quality = failed(criterion::PERPLEXITY_INCREASE) || failed(criterion::BENCHMARK_DROP_POINTS);
    let generation = failed(criterion::NEW_GENERATION_FAILURES);

    let mut advice = Vec::new();
    if !measurements.perplexity.original.is_finite() {
        advice.push(
            "the original itself has no finite perplexity on this text: try another checkpoint or another text"
                .to_owned(),
        );
    } else if quality || generation {
        advice.push(better_quality(measurements));
    }
    if failed(criterion::READING_PROBLEMS) {
        advice.push(as_read(measurements));
    }
    if failed(criterion::MEMORY_RATIO) {
        advice.push(smaller(measurements));
    }
    if failed(criterion::SPEED_RATIO) {
        advice.push(
            "it is not fast enough on this device: try another device, or keep it where memory matters more than speed"
                .to_owned(),
        );
    }
    if advice.is_empty() {
        advice.push("accepted: nothing has to be changed".to_owned());
    }
    if status(criterion::SPEED_RATIO) == Some(Status::Inconclusive) {
        advice.extend(why_speed_is_open(measurements));
    }
    advice.join("; ")
}

fn better_quality(measurements: &Measurements) -> String {
    let increase = measurements.perplexity.increase();
    let severe = increase.is_nan() || increase > SEVERE_INCREASE;
    let coding = measurements.scheme;
    match coding.levels() {
        ..=3 => ternary(measurements),
        4..=8 => few_bits(measurements, coding.code_bits()),
        9..=16 => int4(measurements, coding.granularity(), severe),
        _ => int8(measurements, coding.granularity()),
    }
}

fn ternary(measurements: &Measurements) -> String {
    let times = measurements.perplexity.quantized / measurements.perplexity.original;
    match measurements.preparation {
        Preparation::Trained => {
            "train longer with ternary weights in the loop (QAT), take another checkpoint that was \
                                 trained for them, or use INT4"
                .to_owned()
        }
        _ => format!(
            "ternary weights without training fail on a model that was trained in floating point (perplexity \
             {times:.1} times the original's): it needs quantization-aware training (QAT), or another checkpoint that \
             was trained ternary; without training use INT4 or INT8"
        ),
    }
}

fn few_bits(measurements: &Measurements, bits: u32) -> String {
    let first = match measurements.preparation {
        Preparation::Rounded => "calibrate (GPTQ or AWQ)".to_owned(),
        Preparation::Calibrated => "train with quantization in the loop (QAT)".to_owned(),
        Preparation::Trained => "train longer (QAT)".to_owned(),
    };
    format!("{bits} bits are too few here: {first}, {}, or use INT4", mixed(measurements, "INT4 or INT8"))
}

fn int4(measurements: &Measurements, granularity: Granularity, severe: bool) -> String {
    if severe {
        return format!(
            "INT4 costs too much on this model: use INT8, or try {} first",
            mixed(measurements, "INT8")
        );
    }
    let first = match measurements.preparation {
        Preparation::Rounded => "calibrate (GPTQ or AWQ)",
        Preparation::Calibrated => "use more calibration text, of the kind that the model will read",
        Preparation::Trained => "train longer (QAT)",
    };
    let coarse = !matches!(granularity, Granularity::Group(size) if size <= 32);
    let groups = if coarse { ", use groups of 32" } else { "" };
    format!("{first}{groups}, then try {}; if that is not enough, use INT8", mixed(measurements, "INT8"))
}

fn int8(measurements: &Measurements, granularity: Granularity) -> String {
    let mut tries = Vec::new();
    if measurements.activations == Activations::Int8 {
        tries.push("keep the activations in f32".to_owned());
    }
    if !matches!(granularity, Granularity::Group(_)) {
        tries.push("use a scale for each group of 128 weights".to_owned());
    }
    tries.push(mixed(measurements, "f16"));
    format!("INT8 rarely costs this much: {}, or take another checkpoint", tries.join(", "))
}

/// `mixed precision with INT8 for a, b and c`.
fn mixed(measurements: &Measurements, precision: &str) -> String {
    let layers = &measurements.worst_layers[..measurements.worst_layers.len().min(NAMED_LAYERS)];
    let names = match layers {
        [] => "the layers with the lowest SNR".to_owned(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    };
    format!("mixed precision with {precision} for {names}")
}

fn as_read(measurements: &Measurements) -> String {
    let details: Vec<&str> =
        measurements.reading.iter().take(NAMED_LAYERS).map(|problem| problem.detail.as_str()).collect();
    format!(
        "the two checkpoints are not read completely and alike ({}): quantize the original again with its own files, or \
         find out what these tensors do",
        details.join("; ")
    )
}

fn smaller(measurements: &Measurements) -> String {
    if measurements.memory.is_empty() {
        return "no layer was quantized: the memory ratio cannot be judged".to_owned();
    }
    format!(
        "the quantized layers are only {:.2} times smaller than in f16: use larger groups or symmetric codes, or fewer \
         bits",
        measurements.memory_ratio()
    )
}

fn why_speed_is_open(measurements: &Measurements) -> Option<String> {
    let speed = measurements.speed.as_ref()?;
    Some(if speed.original_fits_cache() {
        "speed is inconclusive, because the original fits the last-level cache".to_owned()
    } else {
        "speed is inconclusive: repeat the timing with more rounds on an idle machine".to_owned()
    })
}
