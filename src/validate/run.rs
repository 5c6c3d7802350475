//! The whole validation of a quantized checkpoint against its original: all measurements, then the report.

use super::benchmark::Item;
use super::continuations::{Continuation, Prompt, continue_all};
use super::failures;
use super::layers::{self, Layers};
use super::measurements::{
    BenchmarkMeasurement, Measurements, PerplexityMeasurement, Preparation, SpeedMeasurement,
};
use super::reading::{self, ReadingProblem};
use super::report::{self, OriginalModel, QuantizedModel, ReportSubject, ValidationReport, worst_layers};
use super::residency::{Execution, Residency, is_single_precision, side_by_side_bytes};
use super::speed::{self, Clock};
use super::verdict::Limits;
use super::walk::{self, Comparison};
use super::windows::{Dataset, WindowOptions};
use super::{choices, streamed};
use crate::backend::Backend;
use crate::error::Result;
use crate::format::scratch::Scratch;
use crate::model::{CausalLm, Checkpoint, LoadOptions};
use crate::options::Options;
use crate::quant::Activations;
use crate::task::Control;
use crate::tokenizer::TextCodec;

/// What to measure, and the limits.
#[derive(Clone, Debug)]
pub struct ValidateOptions {
    /// The quantization method, for the report.
    pub method: String,
    /// How the text is cut into windows.
    pub windows: WindowOptions,
    /// Texts that both models continue.
    pub prompts: Vec<Prompt>,
    /// New tokens for each prompt.
    pub max_tokens: usize,
    /// Multiple-choice questions; may be empty.
    pub benchmark: Vec<Item>,
    /// Rounds of the timing; 0 skips it.
    pub speed_rounds: usize,
    /// The device's last-level cache, if known.
    pub last_level_cache_bytes: Option<u64>,
    /// Precision of the activations of the quantized model; `None` follows the checkpoint.
    pub activations: Option<Activations>,
    /// The limits of the verdict.
    pub limits: Limits,
    /// How much of the models is in memory at once. If it is one block, speed is not measured, and the models generate
    /// one after the other.
    pub residency: Residency,
}

impl ValidateOptions {
    /// Default number of prompts: passages of the text, if no prompts are given.
    pub const PROMPTS: usize = 8;
    /// Tokens of each passage.
    pub const PROMPT_TOKENS: usize = 16;
    /// New tokens for each prompt: enough to show a loop.
    pub const MAX_TOKENS: usize = 64;
    /// Rounds of timing; the verdict needs at least 5.
    pub const SPEED_ROUNDS: usize = 7;
}

/// The dependencies of a run.
pub struct RunContext<'a> {
    /// The original's tokenizer, with which both models are measured.
    pub codec: &'a dyn TextCodec,
    /// The quantized checkpoint's tokenizer, to compare it, or why it cannot be read; `None` if it has none or is known to
    /// have the same.
    pub quantized_codec: Option<Result<&'a dyn TextCodec>>,
    /// For timing.
    pub clock: Clock<'a>,
    /// For hidden states, if the models run block by block.
    pub scratch: &'a dyn Scratch,
    /// Progress and cancellation.
    pub control: &'a dyn Control,
}

/// Measures both models and judges the result.
///
/// # Errors
/// Errors of reading and running. A bad result is not an error but a rejected report.
pub async fn validate<B: Backend>(
    original: &Checkpoint,
    quantized: &Checkpoint,
    data: &Dataset,
    options: &ValidateOptions,
    mut new_backend: impl FnMut() -> Result<B>,
    context: &RunContext<'_>,
) -> Result<ValidationReport> {
    options.limits.check()?;
    walk::check_same_vocabulary(original.config(), quantized.config())?;
    let reading = reading::problems(original, quantized, context.codec, context.quantized_codec.as_ref())?;
    let layers = layers::measure(original, quantized, context.control).await?;
    let timed = options.speed_rounds > 0;
    let needed = side_by_side_bytes(original, quantized, options.windows.context, timed)?;
    let execution = options.residency.execution(needed);
    let measured = match execution {
        Execution::LayerStreamed => {
            measure_streamed(original, quantized, data, options, &mut new_backend, context).await?
        }
        Execution::SideBySide => {
            measure_side_by_side(original, quantized, data, options, &mut new_backend, context).await?
        }
    };
    Ok(put_together(original, quantized, data, options, execution, layers, reading, measured))
}

/// The results of running both models.
struct Measured {
    comparison: Comparison,
    original: Continuations,
    quantized: Continuations,
    speed: Option<SpeedMeasurement>,
}

/// The results of one model on prompts and questions.
struct Continuations {
    continuations: Vec<Continuation>,
    /// Questions answered right.
    right: usize,
    activations: Activations,
}

/// Load options of the original and the quantized model.
fn load_options(options: &ValidateOptions) -> (LoadOptions, LoadOptions) {
    let quantized = LoadOptions { activations: options.activations, ..LoadOptions::default() };
    (LoadOptions::default(), quantized)
}

async fn measure_side_by_side<B: Backend>(
    original: &Checkpoint,
    quantized: &Checkpoint,
    data: &Dataset,
    options: &ValidateOptions,
    new_backend: &mut impl FnMut() -> Result<B>,
    context: &RunContext<'_>,
) -> Result<Measured> {
    let control = context.control;
    let (first, second) = load_options(options);
    let mut a = CausalLm::load(new_backend()?, original, first, control).await?;
    let mut b = CausalLm::load(new_backend()?, quantized, second, control).await?;
    let comparison = walk::compare(&mut a, &mut b, data, &options.windows, control).await?;
    let (by_original, by_quantized) =
        (speak(&mut a, options, context).await?, speak(&mut b, options, context).await?);
    let mut speed = None;
    if options.speed_rounds > 0 {
        // The fastest floating-point path counts: F16 weights are half the bytes of F32 ones.
        let mut half = None;
        if is_single_precision(original)? {
            let load = LoadOptions { dense_as_f16: true, ..first };
            half = Some(CausalLm::load(new_backend()?, original, load, control).await?);
        }
        let mut originals: Vec<_> = std::iter::once(&mut a).chain(half.as_mut()).collect();
        let rounds =
            speed::measure(&mut originals, &mut b, options.speed_rounds, context.clock, control).await?;
        speed = Some(SpeedMeasurement {
            device: b.capabilities().device.clone(),
            rounds,
            original_bytes: original.bytes(),
            last_level_cache_bytes: options.last_level_cache_bytes,
        });
    }
    Ok(Measured { comparison, original: by_original, quantized: by_quantized, speed })
}

/// As [`measure_side_by_side`], with one model at a time; for the text one block at a time.
async fn measure_streamed<B: Backend>(
    original: &Checkpoint,
    quantized: &Checkpoint,
    data: &Dataset,
    options: &ValidateOptions,
    new_backend: &mut impl FnMut() -> Result<B>,
    context: &RunContext<'_>,
) -> Result<Measured> {
    let (first, second) = load_options(options);
    let comparison = streamed::compare(
        (original, first),
        (quantized, second),
        data,
        &options.windows,
        new_backend,
        context.scratch,
        context.control,
    )
    .await?;
    let mut alone = async |checkpoint: &Checkpoint, load: LoadOptions| {
        let mut model = CausalLm::load(new_backend()?, checkpoint, load, context.control).await?;
        speak(&mut model, options, context).await
    };
    let (by_original, by_quantized) = (alone(original, first).await?, alone(quantized, second).await?);
    Ok(Measured { comparison, original: by_original, quantized: by_quantized, speed: None })
}

/// Continues the prompts and answers the questions.
async fn speak<B: Backend>(
    model: &mut CausalLm<B>,
    options: &ValidateOptions,
    context: &RunContext<'_>,
) -> Result<Continuations> {
    let (codec, control) = (context.codec, context.control);
    Ok(Continuations {
        continuations: continue_all(model, codec, &options.prompts, options.max_tokens, control).await?,
        right: choices::answer_all(model, codec, &options.benchmark, control).await?,
        activations: model.activations(),
    })
}

fn put_together(
    original: &Checkpoint,
    quantized: &Checkpoint,
    data: &Dataset,
    options: &ValidateOptions,
    execution: Execution,
    layers: Layers,
    reading: Vec<ReadingProblem>,
    measured: Measured,
) -> ValidationReport {
    let Comparison { original: first, quantized: second, divergence, .. } = &measured.comparison;
    let scheme = layers.main_scheme().expect("measuring refuses checkpoints without quantized layers");
    let failures = options
        .prompts
        .iter()
        .zip(measured.original.continuations.iter().zip(&measured.quantized.continuations))
        .flat_map(|(prompt, (a, b))| failures::compare(&prompt.text, &b.text, &a.failures, &b.failures))
        .collect();
    let measurements = Measurements {
        scheme,
        preparation: Preparation::of_method(&options.method),
        activations: measured.quantized.activations,
        perplexity: PerplexityMeasurement { original: first.perplexity(), quantized: second.perplexity() },
        benchmark: (!options.benchmark.is_empty()).then_some(BenchmarkMeasurement {
            items: options.benchmark.len(),
            original_right: measured.original.right,
            quantized_right: measured.quantized.right,
        }),
        prompts: options.prompts.len(),
        failures,
        memory: layers.memory.clone(),
        speed: measured.speed,
        worst_layers: worst_layers(&layers.layers),
        reading,
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
            activations: measured.quantized.activations.name().to_owned(),
        },
        execution,
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
