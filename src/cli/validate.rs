//! `lowbit validate`: is the quantized model good? Floor 9.

use super::Outcome;
use super::device::note_cpu;
use super::open::{self, ModelArgs};
use super::perplexity::TextArgs;
use super::quantize::append;
use super::system;
use super::terminal::Terminal;
use crate::artifact::metrics::Metric;
use crate::artifact::records::read_quantization_record;
use crate::backend::any::AnyBackend;
use crate::error::{Context, Error, Result};
use crate::format::scratch::TempScratch;
use crate::model::Checkpoint;
use crate::plan::parse_bytes;
use crate::task::block_on;
use crate::tokenizer::HuggingFaceTokenizer;
use crate::validate::benchmark::parse_jsonl;
use crate::validate::continuations::{self, Prompt};
use crate::validate::holding::{Execution, Holding, side_by_side_bytes};
use crate::validate::report::ValidationReport;
use crate::validate::run::{Surroundings, ValidateOptions, validate};
use crate::validate::verdict::{Limits, Status};
use crate::validate::windows::Dataset;
use indicatif::DecimalBytes;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Judge a quantized model against its original
#[derive(clap::Args)]
pub struct Args {
    /// The original checkpoint folder
    original: PathBuf,

    /// The quantized checkpoint folder
    quantized: PathBuf,

    #[command(flatten)]
    text: TextArgs,

    #[command(flatten)]
    measure: MeasureArgs,

    /// Write the report to a file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    model: ModelArgs,

    /// Append figures to a file as JSON lines
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

/// What to measure and by what to judge it.
#[derive(clap::Args)]
pub struct MeasureArgs {
    /// Prompts that both models continue, one a line [default: passages of the text]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// New tokens for each prompt
    #[arg(long, value_name = "N", default_value_t = ValidateOptions::MAX_TOKENS)]
    max_tokens: usize,

    /// Multiple-choice questions as JSON lines
    #[arg(long, value_name = "FILE")]
    benchmark: Option<PathBuf>,

    /// Rounds of the speed measurement; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = ValidateOptions::SPEED_ROUNDS)]
    speed_rounds: usize,

    #[command(flatten)]
    holding: HoldingArgs,

    /// Perplexity must increase by less than this share
    #[arg(long, value_name = "SHARE", default_value_t = Limits::default().max_perplexity_increase,
        allow_negative_numbers = true)]
    max_perplexity_increase: f64,

    /// Benchmark accuracy must drop by less than so many points
    #[arg(long, value_name = "POINTS", default_value_t = Limits::default().max_benchmark_drop_points,
        allow_negative_numbers = true)]
    max_benchmark_drop: f64,

    /// At most so many generation failures that the original does not show
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_new_failures)]
    max_new_failures: usize,

    /// Quantized layers must be so many times smaller than in f16 [default: by scheme, 3.4 for INT4]
    #[arg(long, value_name = "RATIO", allow_negative_numbers = true)]
    min_memory_ratio: Option<f64>,

    /// Decoding must be so many times faster
    #[arg(long, value_name = "RATIO", default_value_t = Limits::default().min_speed_ratio, allow_negative_numbers = true)]
    min_speed_ratio: f64,
}

/// How much of the two models is in memory at once.
#[derive(clap::Args, Default)]
pub struct HoldingArgs {
    /// Memory that two models may take, as 8GB; beyond it they run layer by layer [default: what is free]
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["layer_streamed", "side_by_side"])]
    memory: Option<String>,

    /// Hold one block at a time instead of two models, however much memory there is
    #[arg(long, conflicts_with = "side_by_side")]
    layer_streamed: bool,

    /// Hold both models, however little memory there is
    #[arg(long)]
    side_by_side: bool,
}

impl HoldingArgs {
    fn holding(&self) -> Result<Holding> {
        Ok(match &self.memory {
            Some(memory) => Holding::Within(parse_bytes(memory)?),
            None if self.layer_streamed => Holding::OneBlock,
            None if self.side_by_side => Holding::Both,
            None => system::available_memory().map_or(Holding::Both, Holding::Within),
        })
    }
}

impl Default for MeasureArgs {
    /// As without any option.
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            prompts: None,
            max_tokens: ValidateOptions::MAX_TOKENS,
            benchmark: None,
            speed_rounds: ValidateOptions::SPEED_ROUNDS,
            holding: HoldingArgs::default(),
            max_perplexity_increase: limits.max_perplexity_increase,
            max_benchmark_drop: limits.max_benchmark_drop_points,
            max_new_failures: limits.max_new_failures,
            min_memory_ratio: limits.min_memory_ratio,
            min_speed_ratio: limits.min_speed_ratio,
        }
    }
}

impl MeasureArgs {
    fn limits(&self) -> Limits {
        Limits {
            max_perplexity_increase: self.max_perplexity_increase,
            max_benchmark_drop_points: self.max_benchmark_drop,
            max_new_failures: self.max_new_failures,
            min_memory_ratio: self.min_memory_ratio,
            min_speed_ratio: self.min_speed_ratio,
            ..Limits::default()
        }
    }

    /// What to measure with a model of these texts, and by what to judge it.
    pub fn options(
        &self,
        original: &Checkpoint,
        data: &Dataset,
        codec: &HuggingFaceTokenizer,
        text: &TextArgs,
    ) -> Result<ValidateOptions> {
        let benchmark = match &self.benchmark {
            Some(path) => parse_jsonl(&open::bytes(path)?).context_with(|| path.display().to_string())?,
            None => Vec::new(),
        };
        Ok(ValidateOptions {
            method: "unknown".to_owned(),
            windows: text.window.windows(original.config().max_position_embeddings),
            prompts: self.prompts(data, codec)?,
            max_tokens: self.max_tokens,
            benchmark,
            speed_rounds: self.speed_rounds,
            last_level_cache_bytes: system::last_level_cache(),
            activations: None,
            limits: self.limits(),
            holding: self.holding.holding()?,
        })
    }

    /// The memory that was said to be free.
    pub fn memory(&self) -> Result<Option<u64>> {
        self.holding.memory.as_deref().map(parse_bytes).transpose()
    }

    fn prompts(&self, data: &Dataset, codec: &HuggingFaceTokenizer) -> Result<Vec<Prompt>> {
        let Some(path) = &self.prompts else {
            return continuations::from_dataset(
                data,
                ValidateOptions::PROMPTS,
                ValidateOptions::PROMPT_TOKENS,
                codec,
            );
        };
        let text = open::text(path)?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        continuations::from_texts(lines, codec).context_with(|| path.display().to_string())
    }
}

pub fn run(args: &Args, terminal: &Terminal) -> Result<Outcome> {
    open::check_writable(args.output.as_ref(), &[])?;
    open::check_writable(args.metrics.as_ref(), &[])?;
    args.measure.limits().validate()?;
    let report = block_on(async {
        let original = open::checkpoint(&args.original, terminal).await?;
        let quantized = open::checkpoint(&args.quantized, terminal).await?;
        measure(&original, &quantized, &args.text, &args.measure, &args.model, terminal).await
    })?;
    if let Some(path) = &args.output {
        write_report(path, &report)?;
    }
    if let Some(path) = &args.metrics {
        append(path, &metrics(&report))?;
    }
    terminal.result(&report, describe(&report))?;
    Ok(if report.accepted { Outcome::Done } else { Outcome::Rejected })
}

/// Measures and judges.
pub async fn measure(
    original: &Checkpoint,
    quantized: &Checkpoint,
    text: &TextArgs,
    measure: &MeasureArgs,
    model: &ModelArgs,
    terminal: &Terminal,
) -> Result<ValidationReport> {
    let codec = open::tokenizer(original, model).await?;
    let data = open::dataset(&text.text, &codec)?;
    let record = read_quantization_record(quantized.dir().as_ref()).await?;
    let mut options = measure.options(original, &data, &codec, text)?;
    options.activations = model.activations.map(Into::into);
    if let Some(record) = record {
        options.method = record.method;
    }
    report_holding(original, quantized, &options, terminal)?;
    let scratch = TempScratch::new()?;
    let start = Instant::now();
    let around = Surroundings {
        codec: &codec,
        clock: &|| start.elapsed().as_secs_f64(),
        scratch: &scratch,
        control: terminal,
    };
    let judge = async |backend: AnyBackend| {
        validate(original, quantized, &data, &options, || backend.another(), &around).await
    };
    let ran = model.device.request().run(|error| note_cpu(terminal, error), judge).await?;
    Ok(ran.result)
}

/// Writes a report as it is shown by `--json`.
pub fn write_report(path: &Path, report: &ValidationReport) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(report)
        .map_err(|error| Error::new(crate::error::ErrorCode::Io, error.to_string()))?;
    json.push(b'\n');
    std::fs::write(path, json).context_with(|| path.display().to_string())
}

/// Says so where the models do not run side by side.
fn report_holding(
    original: &Checkpoint,
    quantized: &Checkpoint,
    options: &ValidateOptions,
    terminal: &Terminal,
) -> Result<()> {
    let timed = options.speed_rounds > 0;
    let needed = side_by_side_bytes(original, quantized, options.windows.context, timed)?;
    if options.holding.execution(needed) == Execution::LayerStreamed {
        let why = match options.holding {
            Holding::Within(memory) => format!(
                "the models need about {} side by side and {} are free",
                DecimalBytes(needed),
                DecimalBytes(memory)
            ),
            _ => "as asked for".to_owned(),
        };
        terminal.note(format!("running layer by layer, without measuring speed: {why}"));
    }
    Ok(())
}

fn metrics(report: &ValidationReport) -> Vec<Metric> {
    let subject = &report.quantized.path;
    let mut metrics = vec![
        Metric::new("perplexity", report.perplexity.quantized, subject),
        Metric::new("perplexity_increase", report.perplexity.increase, subject),
        Metric::new("kl_divergence_mean", report.divergence.kl_mean, subject),
        Metric::new("top1_agreement", report.divergence.top1_agreement, subject),
        Metric::new("compression_ratio", report.memory.ratio, subject),
        Metric::new("bits_per_weight", report.quantized.bits_per_weight, subject),
    ];
    if let Some(speed) = &report.speed {
        metrics.push(Metric::new("tokens_per_second", speed.quantized_tokens_per_second, subject));
    }
    metrics
}

/// The report in words.
pub fn describe(report: &ValidationReport) -> String {
    let verdict = if report.accepted { "ACCEPTED" } else { "REJECTED" };
    let recommendation = report.recommendation.trim_start_matches("accepted: ");
    format!("{}{verdict}: {recommendation}\n", describe_measurements(report))
}

/// The report in words, without the verdict.
pub fn describe_measurements(report: &ValidationReport) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{}: {} {}, {:.2} bits a weight, {} activations",
        report.quantized.path,
        report.quantized.method,
        report.quantized.scheme,
        report.quantized.bits_per_weight,
        report.quantized.activations
    );
    let _ = writeln!(
        text,
        "perplexity {:.4} -> {:.4} ({:+.2}%) over {} tokens; KL {:.5} (p99 {:.4}); same top token {:.2}%",
        report.perplexity.original,
        report.perplexity.quantized,
        100.0 * report.perplexity.increase,
        report.dataset.tokens,
        report.divergence.kl_mean,
        report.divergence.kl_p99,
        100.0 * report.divergence.top1_agreement
    );
    if let Some(benchmark) = &report.benchmark {
        let _ = writeln!(
            text,
            "benchmark {:.1}% -> {:.1}% of {} items",
            100.0 * benchmark.original,
            100.0 * benchmark.quantized,
            benchmark.items
        );
    }
    if let Some(speed) = &report.speed {
        let _ = writeln!(
            text,
            "{:.0} -> {:.0} tokens/s ({:.2}x, spread {:.2}) on {}",
            speed.original_tokens_per_second,
            speed.quantized_tokens_per_second,
            speed.ratio,
            speed.spread,
            speed.device
        );
    }
    let mut worst: Vec<_> = report.layers.iter().collect();
    worst.sort_by(|a, b| a.snr_db.total_cmp(&b.snr_db));
    for layer in worst.iter().take(3) {
        let _ = writeln!(text, "  {} {}: {:.1} dB", layer.name, layer.scheme, layer.snr_db);
    }
    for failure in &report.generation.failures {
        let also = if failure.original_also { " (the original too)" } else { "" };
        let _ = writeln!(
            text,
            "  {} after {:?}: {}{also}",
            failure.kind.as_str(),
            failure.prompt,
            failure.detail
        );
    }
    for criterion in &report.criteria {
        let status = match criterion.status {
            Status::Passed => "passed",
            Status::Failed => "FAILED",
            Status::Inconclusive => "inconclusive",
        };
        let value =
            if criterion.value.is_finite() { format!("{:.4}", criterion.value) } else { "no figure".into() };
        let _ = writeln!(text, "  {status:12} {} = {value} (limit {})", criterion.name, criterion.limit);
    }
    text
}
