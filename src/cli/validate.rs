//! `lowbit validate`: validates a quantized model.

use super::Outcome;
use super::open::{self, TokenizerArgs};
use super::options::OptionArgs;
use super::perplexity::TextArgs;
use super::quantize::append;
use super::system;
use super::terminal::Terminal;
use crate::artifact::metrics::Metric;
use crate::error::{Context, Error, ErrorCode, Result};
use crate::format::scratch::TempScratch;
use crate::model::Checkpoint;
use crate::options::Options;
use crate::request::{Machine, MeasureOptions, ValidateRequest};
use crate::task::block_on;
use crate::validate::benchmark::parse_jsonl;
use crate::validate::report::ValidationReport;
use crate::validate::residency::{Execution, Residency, side_by_side_bytes};
use crate::validate::run::{RunContext, ValidateOptions};
use crate::validate::verdict::Status;
use indicatif::DecimalBytes;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Validate a quantized model against its original
#[derive(clap::Args)]
pub struct ValidateArgs {
    /// The original checkpoint folder
    original: PathBuf,

    /// The quantized checkpoint folder
    quantized: PathBuf,

    #[command(flatten)]
    text: TextArgs,

    #[command(flatten)]
    request: OptionArgs<ValidateRequest>,

    #[command(flatten)]
    files: MeasureFiles,

    /// Write the report to a file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    tokenizer: TokenizerArgs,

    /// Append metrics to a file as JSON lines
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

/// Measurements whose inputs are files.
#[derive(clap::Args, Default)]
pub struct MeasureFiles {
    /// Prompts for both models, one per line [default: passages of the text]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// Multiple-choice questions as JSON lines
    #[arg(long, value_name = "FILE")]
    benchmark: Option<PathBuf>,
}

impl MeasureFiles {
    /// The request with the files' contents.
    pub fn read(&self, request: &MeasureOptions) -> Result<MeasureOptions> {
        let mut request = request.clone();
        if let Some(path) = &self.prompts {
            let text = open::text(path)?;
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            request.prompts = lines.map(str::to_owned).collect();
            if request.prompts.is_empty() {
                return Err(Error::invalid_argument("expected prompts but found none"))
                    .context_with(|| path.display().to_string());
            }
        }
        if let Some(path) = &self.benchmark {
            let lines = open::text(path)?;
            // Errors name the file.
            parse_jsonl(lines.as_bytes()).context_with(|| path.display().to_string())?;
            request.benchmark = Some(lines);
        }
        Ok(request)
    }
}

/// Properties of this machine.
pub fn machine() -> Machine {
    Machine { free_bytes: system::available_memory(), last_level_cache_bytes: system::last_level_cache() }
}

pub fn run(args: &ValidateArgs, terminal: &Terminal) -> Result<Outcome> {
    open::check_writable(args.output.as_ref(), &[])?;
    open::check_writable(args.metrics.as_ref(), &[])?;
    let mut request = args.request.0.clone();
    request.measure.limits.check()?;
    request.text = args.text.read(&request.text)?;
    request.measure = args.files.read(&request.measure)?;
    let report = block_on(async {
        let original = open::checkpoint(&args.original, terminal).await?;
        let quantized = open::checkpoint(&args.quantized, terminal).await?;
        measure(&original, &quantized, &request, &args.tokenizer, terminal).await
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

/// Validates.
pub async fn measure(
    original: &Checkpoint,
    quantized: &Checkpoint,
    request: &ValidateRequest,
    tokenizer: &TokenizerArgs,
    terminal: &Terminal,
) -> Result<ValidationReport> {
    let codec = open::tokenizer(original, tokenizer).await?;
    // A given tokenizer is that of both.
    let other = match (tokenizer.folder().is_some(), open::tokenizer(quantized, tokenizer).await) {
        (true, _) => None,
        (false, Err(error)) if error.code() == ErrorCode::NotFound => None,
        (false, other) => Some(other),
    };
    let scratch = TempScratch::new()?;
    let start = Instant::now();
    let context = RunContext {
        codec: &codec,
        quantized_codec: other
            .as_ref()
            .map(|other| other.as_ref().map(|codec| codec as _).map_err(Clone::clone)),
        clock: &|| start.elapsed().as_secs_f64(),
        scratch: &scratch,
        control: terminal,
    };
    let tell = |options: &ValidateOptions| report_holding(original, quantized, options, terminal);
    request.run(original, quantized, machine(), &context, tell, |error| terminal.note_cpu(error)).await
}

/// Writes the report as `--json` prints it.
pub fn write_report(path: &Path, report: &ValidationReport) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(report)
        .map_err(|error| Error::new(crate::error::ErrorCode::Io, error.to_string()))?;
    json.push(b'\n');
    std::fs::write(path, json).context_with(|| path.display().to_string())
}

/// Notes when the models do not run side by side.
fn report_holding(
    original: &Checkpoint,
    quantized: &Checkpoint,
    options: &ValidateOptions,
    terminal: &Terminal,
) -> Result<()> {
    let timed = options.speed_rounds > 0;
    let needed = side_by_side_bytes(original, quantized, options.windows.context, timed)?;
    if options.residency.execution(needed) == Execution::LayerStreamed {
        let why = match options.residency {
            Residency::Within(memory) => format!(
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

/// Formats the report for people.
pub fn describe(report: &ValidationReport) -> String {
    let verdict = if report.accepted { "ACCEPTED" } else { "REJECTED" };
    let recommendation = report.recommendation.trim_start_matches("accepted: ");
    format!("{}{verdict}: {recommendation}\n", describe_measurements(report))
}

/// Formats the report without the verdict.
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
        let _ =
            writeln!(text, "  {} after {:?}: {}{also}", failure.kind.name(), failure.prompt, failure.detail);
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
