//! Quantizes and validates until quality is kept.
//!
//! [`search`] decides the attempts; this module runs them. Each attempt has a folder with its
//! `validation_report.json`, and `quantization_summary.json` lists all attempts so far. The host
//! provides folders, scratch, tokenizers and a clock, reads texts and shows results.

pub mod search;
#[cfg(feature = "train")]
pub mod training;

use super::budget::Budget;
use super::calibrated::Calibration;
use super::quantize::{QuantizeOutcome, quantize_calibrated};
use super::select::{Method, QuantizeOptions, plan_modules};
use crate::artifact::summary::{AttemptRecord, Outcome, SUMMARY_FILE, Summary, Variant};
use crate::backend::Backend;
use crate::calibrate::{SampleOptions, Samples};
use crate::error::{Context, Error, ErrorCode, Result};
use crate::format::scratch::Scratch;
use crate::format::sink::{SinkDir, write_whole};
use crate::model::{Checkpoint, LoadOptions, ModelConfig};
use crate::options::Options;
use crate::plan::{MemoryPlan, PlanOptions, Precision};
use crate::quant::{Bits, Granularity, Scheme};
use crate::recipe::{ModulePattern, Recipe, Rule};
use crate::sort;
use crate::task::{BoxFuture, Control};
use crate::tokenizer::TextCodec;
use crate::validate::report::ValidationReport;
use crate::validate::run::{RunContext, ValidateOptions, validate};
use crate::validate::speed::Clock;
use crate::validate::streamed;
use crate::validate::verdict::Status;
use crate::validate::windows::Dataset;
use search::{Attempt, Judged, Judgement, Next, Start, Target};
use serde::Serialize;

/// The report of an attempt, in its folder.
const REPORT_FILE: &str = "validation_report.json";

/// Default numbers of calibration samples to try.
pub const SAMPLES: [usize; 2] = [512, 2048];

/// A checkpoint to quantize, with its texts.
pub struct SearchCandidate<'a> {
    /// The unquantized checkpoint.
    pub checkpoint: &'a Checkpoint,
    /// Its tokenizer.
    pub codec: &'a dyn TextCodec,
    /// The held-out text in tokens.
    pub data: &'a Dataset,
    /// Validation options. `method` is ignored.
    pub validate: ValidateOptions,
    /// The concatenated calibration texts in tokens, without special tokens.
    pub calibration: &'a [u32],
    /// The BOS token of each calibration sample.
    pub bos_token_id: Option<u32>,
    /// Options for cutting samples. `samples` is ignored.
    pub cut: SampleOptions,
}

/// Options of the search.
#[derive(Clone, Debug)]
pub struct AutoOptions {
    /// [`Method::Gptq`] or [`Method::Awq`].
    pub method: Method,
    /// Initial precision, 4 or 8 bits; `None`: recommended by [`MemoryPlan`] for the size of each checkpoint.
    pub bits: Option<Bits>,
    /// Upper limit of mean bits per weight, instead of `bits`.
    pub target_bpw: Option<f64>,
    /// Available bytes, for the recommendation and as a limit of calibration.
    pub memory: Option<u64>,
    /// Numbers of calibration samples to try, ascending.
    pub samples: Vec<usize>,
}

impl Default for AutoOptions {
    fn default() -> Self {
        Self { method: Method::Gptq, bits: None, target_bpw: None, memory: None, samples: SAMPLES.to_vec() }
    }
}

/// Creates the folders of attempts.
pub trait Outputs {
    /// The parent folder, for the summary.
    fn summary(&self) -> &dyn SinkDir;

    /// Creates the folder of an attempt. `name` is a plain file name.
    fn create<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Box<dyn SinkDir>>>;
}

/// Quantization-aware training, the last attempt, if the host supports it.
pub trait Trainer {
    /// Trains to `scheme` within its time limit, and writes a folder.
    fn train<'a>(
        &'a self,
        candidate: &'a SearchCandidate<'a>,
        scheme: Scheme,
        target: &'a dyn SinkDir,
        control: &'a dyn Control,
    ) -> BoxFuture<'a, Result<Trained>>;
}

/// The result of training.
pub struct Trained {
    /// The written output.
    pub outcome: QuantizeOutcome,
    /// Trained tokens.
    pub tokens: u64,
}

/// Events of a search.
pub enum Event<'a> {
    /// A checkpoint was ranked by its loss on the text.
    Ranked {
        /// Its name.
        name: &'a str,
        /// The loss of the whole text in nats.
        nats: f64,
    },
    /// The attempts of a checkpoint begin.
    Checkpoint {
        /// Its name.
        name: &'a str,
        /// The reason for the initial precision.
        reason: &'a str,
        /// Possible attempts, in order.
        attempts: &'a [Attempt],
    },
    /// An attempt begins.
    Attempt {
        /// The name of its folder.
        name: &'a str,
        /// Modules with more bits than the others.
        promoted: &'a [String],
    },
    /// An attempt was judged.
    Judged {
        /// The name of its folder.
        name: &'a str,
        /// The report.
        report: &'a ValidationReport,
        /// The judgement.
        judgement: Judgement,
    },
}

/// Resources of the host.
#[derive(Clone, Copy)]
pub struct AutoContext<'a> {
    /// The output folders.
    pub outputs: &'a dyn Outputs,
    /// Scratch space for hidden states and finished matrices.
    pub scratch: &'a dyn Scratch,
    /// The clock.
    pub clock: Clock<'a>,
    /// Progress and cancellation.
    pub control: &'a dyn Control,
    /// Receives events.
    pub tell: &'a dyn Fn(Event<'_>),
    /// Training, if the host supports it.
    pub trainer: Option<&'a dyn Trainer>,
}

/// The result of a search.
#[derive(Clone, Debug, Serialize)]
pub struct AutoOutcome {
    /// The written summary.
    pub summary: Summary,
    /// The reports of all attempts, in order.
    pub reports: Vec<ValidationReport>,
}

impl AutoOutcome {
    /// The folder of the accepted attempt.
    pub fn accepted(&self) -> Option<&str> {
        self.summary.outcome.as_ref()?.accepted.as_deref()
    }
}

/// Runs the attempts of each candidate until one is accepted. Candidates are ranked by their loss on the text. Models
/// are calibrated on the backends of the first function and validated on those of the second.
///
/// # Errors
/// `invalid_argument` for invalid options and quantized checkpoints, before any work;
/// errors of quantizing and validating. A bad result is a rejection, not an error.
pub async fn auto<B: Backend>(
    candidates: &[SearchCandidate<'_>],
    options: &AutoOptions,
    new_backend: impl Fn() -> Result<B>,
    context: &AutoContext<'_>,
) -> Result<AutoOutcome> {
    for candidate in candidates {
        // Errors of all candidates are reported before the work.
        CandidatePlan::of(candidate, options, context.trainer.is_some())?;
    }
    let candidates = ranked(candidates, &new_backend, context).await?;
    let starts =
        candidates.iter().map(|candidate| CandidatePlan::of(candidate, options, context.trainer.is_some()));
    let starts = starts.collect::<Result<Vec<_>>>()?;
    let attempts: Vec<usize> = starts.iter().map(|start| start.attempts.len()).collect();
    let mut run = Run { context, summary: Summary::new(Vec::new()), reports: Vec::new() };
    let mut last: Option<(Judged, QuantizeOutcome)> = None;
    loop {
        let (checkpoint, attempt) = match search::next(&attempts, last.as_ref().map(|(tried, _)| *tried)) {
            Next::Try { checkpoint, attempt } => (checkpoint, attempt),
            Next::Accept => return run.end(true).await,
            Next::Reject => return run.end(false).await,
        };
        let (candidate, start) = (candidates[checkpoint], &starts[checkpoint]);
        let before = last.as_ref().filter(|(tried, _)| tried.checkpoint == checkpoint);
        if before.is_none() {
            let name = candidate.checkpoint.name();
            (context.tell)(Event::Checkpoint { name, reason: &start.reason, attempts: &start.attempts });
        }
        let trial = Trial {
            candidate,
            attempt: start.attempts[attempt],
            options,
            before: before.map(|(_, outcome)| outcome),
        };
        let (judgement, outcome) = run.attempt(&trial, &new_backend).await?;
        last = Some((Judged { checkpoint, attempt, judgement }, outcome));
    }
}

/// Ranks the candidates by the original's loss on the text, because a better original usually gives a better result.
async fn ranked<'c, 'd, B: Backend>(
    candidates: &'c [SearchCandidate<'d>],
    new_backend: &impl Fn() -> Result<B>,
    context: &AutoContext<'_>,
) -> Result<Vec<&'c SearchCandidate<'d>>> {
    if candidates.len() < 2 {
        return Ok(candidates.iter().collect());
    }
    let mut all = Vec::new();
    for candidate in candidates {
        let SearchCandidate { checkpoint, data, validate, .. } = candidate;
        let one = (*checkpoint, LoadOptions::default());
        let sum =
            streamed::score(one, data, &validate.windows, new_backend()?, context.scratch, context.control);
        let nats = sum.await?.nats();
        (context.tell)(Event::Ranked { name: checkpoint.name(), nats });
        all.push((if nats.is_finite() { nats } else { f64::INFINITY }, candidate));
    }
    sort::sort_by(&mut all, |a, b| a.0.total_cmp(&b.0));
    Ok(all.into_iter().map(|(_, candidate)| candidate).collect())
}

/// The attempts of a candidate.
struct CandidatePlan {
    reason: String,
    attempts: Vec<Attempt>,
}

impl CandidatePlan {
    fn of(candidate: &SearchCandidate<'_>, options: &AutoOptions, trains: bool) -> Result<Self> {
        if !options.method.is_calibrated() {
            return Err(Error::invalid_argument(format!(
                "expected a calibrated method, gptq or awq, but found {}",
                options.method.name()
            )));
        }
        if options.samples.is_empty() || options.samples.contains(&0) {
            return Err(Error::invalid_argument("expected numbers of calibration samples above 0"));
        }
        candidate.validate.limits.check()?;
        let config = candidate.checkpoint.config();
        let (begin, reason) = match (options.target_bpw, options.bits) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid_argument(
                    "expected initial bits or a target in bits per weight, not both",
                ));
            }
            (Some(target), None) => {
                (Start::BitsPerWeight(target), format!("at most {target} bits per weight were requested"))
            }
            (None, Some(bits @ (Bits::Four | Bits::Eight))) => {
                (Start::Bits(bits), format!("INT{} was requested", bits.get()))
            }
            (None, Some(bits)) => {
                return Err(Error::invalid_argument(format!(
                    "expected 4 or 8 bits but found {}",
                    bits.get()
                )));
            }
            (None, None) => {
                let (bits, reason) = recommended(config, options)?;
                (Start::Bits(bits), reason)
            }
        };
        let SampleOptions { sequence_length, .. } = candidate.cut;
        let available =
            Samples::available(candidate.calibration.len(), candidate.bos_token_id, sequence_length);
        let trained = if trains { search::trained_scheme(begin) } else { None };
        let attempts = search::planned_attempts(begin, &options.samples, available, trained);
        for &attempt in attempts.iter().filter(|attempt| !matches!(attempt.target, Target::Trained(_))) {
            // Errors are reported before hours of work.
            let trial = Trial { candidate, attempt, options, before: None };
            plan_modules(candidate.checkpoint, &trial.quantize_options(&[])?)?;
        }
        Ok(Self { reason, attempts })
    }
}

/// The recommended precision for the model's size, with the reason.
fn recommended(config: &ModelConfig, options: &AutoOptions) -> Result<(Bits, String)> {
    let usual = PlanOptions::default();
    let context = usual.context.min(config.max_position_embeddings as u64).max(1);
    let plan = MemoryPlan::new(config.into(), &PlanOptions { memory: options.memory, context, ..usual })?;
    let bits = if plan.recommendation.precision == Precision::Int4 { Bits::Four } else { Bits::Eight };
    Ok((bits, plan.recommendation.reason))
}

/// An attempt to run.
struct Trial<'a> {
    candidate: &'a SearchCandidate<'a>,
    attempt: Attempt,
    options: &'a AutoOptions,
    /// The checkpoint's previous attempt.
    before: Option<&'a QuantizeOutcome>,
}

impl Trial<'_> {
    /// Modules promoted by mixed precision.
    fn promoted(&self) -> Vec<String> {
        let (Target::Mixed(_), Some(before)) = (self.attempt.target, self.before) else { return Vec::new() };
        let weights = |name: &str| {
            let shape = self.candidate.checkpoint.module(name).map(|module| module.shape());
            shape.map_or(0, |(rows, cols)| rows as u64 * cols as u64)
        };
        search::worst_modules(&before.record.modules, weights)
    }

    fn quantize_options(&self, promoted: &[String]) -> Result<QuantizeOptions> {
        let usual = PlanOptions::default();
        let bits = match self.attempt.target {
            Target::Bits(bits) | Target::Mixed(bits) => bits,
            Target::BitsPerWeight(_) | Target::Trained(_) => Bits::Four,
        };
        let granularity: Granularity = if bits == Bits::Eight { usual.int8 } else { usual.int4 };
        let mut options = match self.options.method {
            Method::Awq => QuantizeOptions::new(Method::Awq, Scheme::symmetric(bits, granularity)),
            _ => QuantizeOptions::new(Method::Gptq, Scheme::symmetric(bits, granularity)),
        };
        if let Target::BitsPerWeight(bits) = self.attempt.target {
            options.target = Some(Budget::BitsPerWeight(bits));
        }
        options.memory = self.options.memory;
        if !promoted.is_empty() {
            let modules = promoted.iter().map(|name| ModulePattern::try_from(name.clone()));
            let modules = modules.collect::<Result<_, _>>().map_err(Error::invalid_argument)?;
            let rule = match bits {
                Bits::Eight => Rule { modules, keep: true, ..Rule::default() },
                _ => Rule { modules, bits: Some(8), ..Rule::default() },
            };
            options.recipe = Some(Recipe { rules: vec![rule] });
        }
        Ok(options)
    }

    fn samples(&self) -> Result<Samples> {
        let SearchCandidate { calibration, bos_token_id, cut, checkpoint, .. } = self.candidate;
        let samples = Samples::new(
            calibration,
            *bos_token_id,
            &SampleOptions { samples: self.attempt.samples, ..*cut },
        )?;
        samples.check_vocabulary(checkpoint.config().vocab_size)?;
        Ok(samples)
    }
}

/// The state of a search.
struct Run<'a> {
    context: &'a AutoContext<'a>,
    summary: Summary,
    reports: Vec<ValidationReport>,
}

impl Run<'_> {
    async fn attempt<B: Backend>(
        &mut self,
        trial: &Trial<'_>,
        new_backend: &impl Fn() -> Result<B>,
    ) -> Result<(Judgement, QuantizeOutcome)> {
        let AutoContext { outputs, scratch, clock, control, tell, trainer } = *self.context;
        let Trial { candidate, attempt, .. } = *trial;
        let name = format!("{}-{}", self.reports.len() + 1, attempt.name());
        let promoted = trial.promoted();
        tell(Event::Attempt { name: &name, promoted: &promoted });
        let target = outputs.create(&name).await?;
        let (outcome, windows, tokens) = match (attempt.target, trainer) {
            (Target::Trained(scheme), Some(trainer)) => {
                let Trained { outcome, tokens } =
                    trainer.train(candidate, scheme, target.as_ref(), control).await?;
                (outcome, 0, tokens)
            }
            _ => {
                let samples = trial.samples()?;
                let calibration = Calibration { samples: &samples, new_backend, scratch };
                let options = trial.quantize_options(&promoted)?;
                let checkpoint = candidate.checkpoint;
                let outcome =
                    quantize_calibrated(checkpoint, &options, calibration, target.as_ref(), control).await?;
                (outcome, samples.windows.len(), samples.tokens())
            }
        };
        let quantized = Checkpoint::open(target.existing()).await?;
        let judged = ValidateOptions { method: outcome.record.method.clone(), ..candidate.validate.clone() };
        // Tokenizer and template are copies of the original's.
        let needs = RunContext { codec: candidate.codec, quantized_codec: None, clock, scratch, control };
        let report =
            validate(candidate.checkpoint, &quantized, candidate.data, &judged, new_backend, &needs).await?;
        write_json(target.as_ref(), REPORT_FILE, &report).await?;
        let judgement = search::judge(&report);
        tell(Event::Judged { name: &name, report: &report, judgement });
        let attempt = AttemptRecord {
            name,
            checkpoint: candidate.checkpoint.name().to_owned(),
            samples: windows,
            tokens,
            promoted,
            failed: failed(&report),
            good: judgement == Judgement::Good,
        };
        self.summary.variants.push(Variant { attempt: Some(attempt), ..variant(&report) });
        self.reports.push(report);
        // Save results before continuing.
        write_json(outputs.summary(), SUMMARY_FILE, &self.summary).await?;
        Ok((judgement, outcome))
    }

    async fn end(mut self, accepted: bool) -> Result<AutoOutcome> {
        let (Some(last), Some(variant)) = (self.reports.last(), self.summary.variants.last()) else {
            return Err(Error::invalid_argument("expected a checkpoint and a calibration text to try"));
        };
        let name = variant.attempt.as_ref().map(|attempt| attempt.name.clone());
        let recommendation = if accepted {
            "accepted: quality and generation are within the limits".to_owned()
        } else {
            search::recommend(self.reports.len(), last)
        };
        self.summary.outcome = Some(Outcome { accepted: name.filter(|_| accepted), recommendation });
        write_json(self.context.outputs.summary(), SUMMARY_FILE, &self.summary).await?;
        Ok(AutoOutcome { summary: self.summary, reports: self.reports })
    }
}

async fn write_json(sinks: &dyn SinkDir, file: &str, value: &impl Serialize) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::new(ErrorCode::Io, format!("{file}: {error}")))?;
    bytes.push(b'\n');
    write_whole(sinks, file, &bytes).await.context_with(|| sinks.name().to_owned())
}

/// The names of the criteria that failed.
fn failed(report: &ValidationReport) -> Vec<String> {
    let failed = report.criteria.iter().filter(|row| row.status == Status::Failed);
    failed.map(|row| row.name.clone()).collect()
}

/// Converts a report to a line of the summary.
pub fn variant(report: &ValidationReport) -> Variant {
    let finite = |value: f64| value.is_finite().then_some(value);
    Variant {
        path: report.quantized.path.clone(),
        method: report.quantized.method.clone(),
        scheme: report.quantized.scheme.clone(),
        bits_per_weight: report.quantized.bits_per_weight,
        bytes: report.quantized.bytes,
        perplexity: finite(report.perplexity.quantized),
        perplexity_increase: finite(report.perplexity.increase),
        tokens_per_second: report.speed.as_ref().and_then(|speed| finite(speed.quantized_tokens_per_second)),
        accepted: report.accepted,
        recommendation: report.recommendation.clone(),
        attempt: None,
    }
}
