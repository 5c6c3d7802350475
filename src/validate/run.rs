//! The whole validation of a quantized checkpoint against its original: every measurement, then the report. Floor 7.

use super::benchmark::Item;
use super::continuations::{Continuation, Prompt, continue_all};
use super::failures;
use super::layers::{self, Layers};
use super::measurements::{
    BenchmarkMeasurement, Measurements, PerplexityMeasurement, Preparation, SpeedMeasurement,
};
use super::report::{self, OriginalModel, QuantizedModel, ReportSubject, ValidationReport, worst_layers};
use super::speed::{self, Clock};
use super::verdict::Limits;
use super::walk::{self, Comparison};
use super::windows::{Dataset, WindowOptions};
use super::{choices, streamed};
use crate::backend::Backend;
use crate::dtype::DType;
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::layout::ModuleStorage;
use crate::model::names::Linear;
use crate::model::{CausalLm, Checkpoint, LoadOptions};
use crate::quant::Activations;
use crate::task::Control;
use crate::tokenizer::TextCodec;

/// What to measure, and by what to judge it.
#[derive(Clone, Debug)]
pub struct ValidateOptions {
    /// How the codes were found, for the report.
    pub method: String,
    /// How the text is cut.
    pub windows: WindowOptions,
    /// Texts that both models continue.
    pub prompts: Vec<Prompt>,
    /// New tokens for each prompt.
    pub max_tokens: usize,
    /// Multiple-choice questions; may be empty.
    pub benchmark: Vec<Item>,
    /// Rounds of the timing; 0 leaves speed out.
    pub speed_rounds: usize,
    /// The device's last-level cache, where it is known.
    pub last_level_cache_bytes: Option<u64>,
    /// Precision of the activations of the quantized model; `None` follows the checkpoint.
    pub activations: Option<Activations>,
    /// By what the measurements are judged.
    pub limits: Limits,
    /// Hold one block at a time instead of two models. Speed is then left out, and the models generate one after the other.
    pub layer_streamed: bool,
}

/// Everything that the measurements need from outside.
pub struct Surroundings<'a> {
    /// The tokenizer of both models.
    pub codec: &'a dyn TextCodec,
    /// For timing.
    pub clock: Clock<'a>,
    /// For hidden states, where the models run block by block.
    pub scratch: &'a dyn Scratch,
    /// Progress and cancellation.
    pub control: &'a dyn Control,
}

/// Measures and judges.
///
/// # Errors
/// Whatever reading and running meet; a bad result is no error but a rejected report.
pub async fn validate<B: Backend>(
    original: &Checkpoint,
    quantized: &Checkpoint,
    data: &Dataset,
    options: &ValidateOptions,
    mut new_backend: impl FnMut() -> B,
    around: &Surroundings<'_>,
) -> Result<ValidationReport> {
    options.limits.validate()?;
    walk::check_same_vocabulary(original.config(), quantized.config())?;
    let layers = layers::measure(original, quantized, around.control).await?;
    let measured = if options.layer_streamed {
        measure_streamed(original, quantized, data, options, &mut new_backend, around).await?
    } else {
        measure_side_by_side(original, quantized, data, options, &mut new_backend, around).await?
    };
    Ok(put_together(original, quantized, data, options, layers, measured))
}

/// What running the two models gave.
struct Measured {
    comparison: Comparison,
    continuations: (Vec<Continuation>, Vec<Continuation>),
    right: (usize, usize),
    speed: Option<SpeedMeasurement>,
    activations: Activations,
}

async fn measure_side_by_side<B: Backend>(
    original: &Checkpoint,
    quantized: &Checkpoint,
    data: &Dataset,
    options: &ValidateOptions,
    new_backend: &mut impl FnMut() -> B,
    around: &Surroundings<'_>,
) -> Result<Measured> {
    let control = around.control;
    let mut a = CausalLm::load(new_backend(), original, LoadOptions::default(), control).await?;
    let load = LoadOptions { activations: options.activations, ..LoadOptions::default() };
    let mut b = CausalLm::load(new_backend(), quantized, load, control).await?;
    let comparison = walk::compare(&mut a, &mut b, data, &options.windows, control).await?;
    let (prompts, tokens) = (&options.prompts, options.max_tokens);
    let continuations = (
        continue_all(&mut a, around.codec, prompts, tokens, control).await?,
        continue_all(&mut b, around.codec, prompts, tokens, control).await?,
    );
    let right = (
        choices::answer_all(&mut a, around.codec, &options.benchmark, control).await?,
        choices::answer_all(&mut b, around.codec, &options.benchmark, control).await?,
    );
    let mut speed = None;
    if options.speed_rounds > 0 {
        // The fastest floating-point path counts: half precision moves half the bytes of single precision.
        let mut half = None;
        if is_single_precision(original)? {
            let load = LoadOptions { dense_as_f16: true, ..LoadOptions::default() };
            half = Some(CausalLm::load(new_backend(), original, load, control).await?);
        }
        let mut originals: Vec<_> = std::iter::once(&mut a).chain(half.as_mut()).collect();
        let rounds =
            speed::measure(&mut originals, &mut b, options.speed_rounds, around.clock, control).await?;
        speed = Some(SpeedMeasurement {
            device: b.capabilities().device.clone(),
            rounds,
            original_bytes: original.bytes(),
            last_level_cache_bytes: options.last_level_cache_bytes,
        });
    }
    Ok(Measured { comparison, continuations, right, speed, activations: b.activations() })
}

fn is_single_precision(checkpoint: &Checkpoint) -> Result<bool> {
    let storage = checkpoint.module(&Linear::Q.module(0))?;
    Ok(matches!(storage, ModuleStorage::Dense { dtype: DType::F32, .. }))
}

/// As [`measure_side_by_side`], with one model at a time, and for the text one block at a time.
async fn measure_streamed<B: Backend>(
    original: &Checkpoint,
    quantized: &Checkpoint,
    data: &Dataset,
    options: &ValidateOptions,
    new_backend: &mut impl FnMut() -> B,
    around: &Surroundings<'_>,
) -> Result<Measured> {
    let comparison = streamed::compare(
        (original, LoadOptions::default()),
        (quantized, LoadOptions { activations: options.activations, ..LoadOptions::default() }),
        data,
        &options.windows,
        new_backend,
        around.scratch,
        around.control,
    )
    .await?;
    let mut continuations = Vec::new();
    let mut right = Vec::new();
    let mut activations = Activations::F32;
    for (checkpoint, wanted) in [(original, None), (quantized, options.activations)] {
        let load = LoadOptions { activations: wanted, ..LoadOptions::default() };
        let mut model = CausalLm::load(new_backend(), checkpoint, load, around.control).await?;
        let (codec, control) = (around.codec, around.control);
        continuations
            .push(continue_all(&mut model, codec, &options.prompts, options.max_tokens, control).await?);
        right.push(choices::answer_all(&mut model, codec, &options.benchmark, control).await?);
        activations = model.activations();
    }
    let second = continuations.pop().unwrap_or_default();
    let first = continuations.pop().unwrap_or_default();
    Ok(Measured {
        comparison,
        continuations: (first, second),
        right: (right[0], right[1]),
        speed: None,
        activations,
    })
}

fn put_together(
    original: &Checkpoint,
    quantized: &Checkpoint,
    data: &Dataset,
    options: &ValidateOptions,
    layers: Layers,
    measured: Measured,
) -> ValidationReport {
    let Comparison { original: first, quantized: second, divergence } = &measured.comparison;
    let scheme = layers.main_scheme().expect("measuring refuses checkpoints without quantized layers");
    let failures = options
        .prompts
        .iter()
        .zip(measured.continuations.0.iter().zip(&measured.continuations.1))
        .flat_map(|(prompt, (a, b))| failures::compare(&prompt.text, &a.failures, &b.failures))
        .collect();
    let measurements = Measurements {
        scheme,
        preparation: Preparation::Rounded,
        activations: measured.activations,
        perplexity: PerplexityMeasurement { original: first.perplexity(), quantized: second.perplexity() },
        benchmark: (!options.benchmark.is_empty()).then_some(BenchmarkMeasurement {
            items: options.benchmark.len(),
            original_right: measured.right.0,
            quantized_right: measured.right.1,
        }),
        prompts: options.prompts.len(),
        failures,
        memory: layers.memory.clone(),
        speed: measured.speed,
        worst_layers: worst_layers(&layers.layers),
    };
    let subject = ReportSubject {
        original: OriginalModel {
            path: original.name().to_owned(),
            parameters: original.config().parameter_count(),
            bytes: original.bytes(),
        },
        quantized: QuantizedModel {
            path: quantized.name().to_owned(),
            method: options.method.clone(),
            scheme: scheme.to_string(),
            bits_per_weight: layers.bits_per_weight(),
            bytes: quantized.bytes(),
            activations: measured.activations.name().to_owned(),
        },
        dataset: report::Dataset {
            name: data.name.clone(),
            tokens: first.tokens(),
            sha256: data.sha256.clone(),
        },
        divergence: report::Divergence {
            kl_mean: divergence.kl_mean(),
            kl_p99: divergence.kl_p99(),
            top1_agreement: divergence.top1_agreement(),
        },
        layers: layers.layers,
    };
    ValidationReport::new(subject, &measurements, &options.limits)
}
