//! `lowbit quantize`: quantizes a checkpoint.

use super::Outcome;
use super::calibration::CalibrationFiles;
use super::open::{self, TokenizerArgs};
use super::options::OptionArgs;
use super::recipe;
use super::terminal::Terminal;
use crate::api::destination::{self, destination};
use crate::artifact::metrics::{Metric, to_json_lines};
use crate::error::{Context, Error, Result};
use crate::format::scratch::{KeptScratch, Scratch};
use crate::model::Checkpoint;
use crate::options::LocationGiven;
use crate::pipeline::dequantize::{default_dtype, dequantize_checkpoint};
use crate::pipeline::{QuantizeContext, QuantizeEvent, QuantizeOutcome};
use crate::quant::ColumnOrder;
use crate::request::{CalibrationHost, CalibrationRequest, Format, QuantizeRequest};
use crate::task::block_on;
use indicatif::DecimalBytes;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Quantize a checkpoint
#[derive(clap::Args)]
pub struct QuantizeArgs {
    /// A checkpoint: a folder, or a GGUF file
    checkpoint: PathBuf,

    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    #[command(flatten)]
    request: OptionArgs<QuantizeRequest>,

    /// Rules that set other bits, group size or method for some modules, or keep them; JSON, or TOML in *.toml
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,

    #[command(flatten)]
    calibration: CalibrationFiles,

    #[command(flatten)]
    cut: OptionArgs<CalibrationRequest>,

    #[command(flatten)]
    tokenizer: TokenizerArgs,

    /// gptq: other tools' name for --act-order group-index
    #[arg(long, conflicts_with = "act_order")]
    desc_act: bool,

    /// Calibrating methods: keep finished work in this folder, and resume from it after an interrupted run. The folder
    /// is removed at the end
    #[arg(long, value_name = "DIR", conflicts_with = "scratch")]
    resume: Option<PathBuf>,

    /// Also write the result as floating-point weights, to continue training from
    #[arg(long, value_name = "DIR")]
    also_dequantized: Option<PathBuf>,

    /// Append figures to a file as JSON lines
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

impl QuantizeArgs {
    /// The request with the recipe and the calibration options.
    fn request(&self) -> Result<QuantizeRequest> {
        let mut request = self.request.0.clone();
        if self.desc_act {
            request.gptq.act_order = ColumnOrder::GroupIndex;
        }
        request.recipe = self.recipe.as_deref().map(recipe::read).transpose()?;
        request.resume = LocationGiven(self.resume.is_some());
        request.calibration = self.calibration.is_given().then(|| self.cut.0.clone());
        let texts = self.calibration.cut(&self.cut.0.texts);
        let cut = CalibrationRequest { texts, ..self.cut.0.clone() };
        if request.calibration.is_none() && cut != CalibrationRequest::default() {
            return Err(Error::invalid_argument("expected --calibration texts with the options of samples"));
        }
        Ok(request)
    }
}

pub fn run(args: &QuantizeArgs, terminal: &Terminal) -> Result<Outcome> {
    let mut request = args.request()?;
    request.options()?;
    if args.also_dequantized.is_some() && request.format == Some(Format::Gguf) {
        return Err(Error::invalid_argument(
            "--also-dequantized needs a folder format, not gguf; dequantize a folder in a separate step",
        ));
    }
    let folders: Vec<&Path> = [Some(&args.output), args.also_dequantized.as_ref()]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
        .collect();
    open::check_writable(args.metrics.as_ref(), &folders)?;
    if let Some(path) = &args.also_dequantized {
        if *path == args.output {
            return Err(Error::invalid_argument("--output and --also-dequantized name the same folder"));
        }
        destination::folder(path, &args.checkpoint)?;
    }
    let start = Instant::now();
    let (outcome, source_bytes, output) = block_on(async {
        let checkpoint = open::checkpoint(&args.checkpoint, terminal).await?;
        let to = destination(&args.output, &args.checkpoint, request.format)?;
        request.file = to.file.clone();
        let context =
            QuantizeContext { target: &to.sinks, tell: &|told| show(&told, terminal), control: terminal };
        let outcome = quantize(args, &request, &checkpoint, &context, terminal).await?;
        Ok::<_, Error>((outcome, checkpoint.bytes(), to.path))
    })?;
    for note in &outcome.notes {
        terminal.note(note);
    }
    let seconds = start.elapsed().as_secs_f64();
    if let Some(path) = &args.also_dequantized {
        block_on(async {
            let quantized = open::checkpoint(&output, terminal).await?;
            // It may be the folder that was just written, by another name.
            destination::folder(path, &output)?;
            let sinks = destination::folder(path, &args.checkpoint)?;
            let dtype = default_dtype(&quantized)?;
            dequantize_checkpoint(&quantized, dtype, &sinks, terminal).await
        })?;
    }
    if let Some(path) = &args.metrics {
        append(path, &metrics(&outcome, source_bytes, seconds, &output))?;
    }
    let document = json!({
        "output": output,
        "method": outcome.record.method,
        "scheme": outcome.record.scheme,
        "format": outcome.record.format,
        "bits_per_weight": outcome.record.bits_per_weight,
        "original_bytes": source_bytes,
        "quantized_bytes": outcome.bytes,
        "seconds": seconds,
        "planned_memory": outcome.planned_memory,
        "modules": outcome.modules.iter().map(|(name, scheme, error)| json!({
            "name": name,
            "scheme": scheme.to_string(),
            "snr_db": error.snr_db(),
            "max_abs_error": error.max_abs_error(),
            "sparsity": error.sparsity(),
            "calibration": outcome.record.modules.iter().find(|m| &m.name == name).map(|m| &m.calibration),
        })).collect::<Vec<_>>(),
    });
    let text = format!(
        "{} modules to {}, {:.2} bits a weight; {} bytes became {} in {seconds:.1} s\n{}\n",
        outcome.modules.len(),
        schemes(&outcome),
        outcome.record.bits_per_weight,
        source_bytes,
        outcome.bytes,
        output.display()
    );
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}

/// Quantizes on the requested device.
async fn quantize(
    args: &QuantizeArgs,
    request: &QuantizeRequest,
    checkpoint: &Checkpoint,
    context: &QuantizeContext<'_>,
    terminal: &Terminal,
) -> Result<QuantizeOutcome> {
    let samples = match &request.calibration {
        None => None,
        Some(calibration) => {
            Some(args.calibration.samples(checkpoint, calibration, &args.tokenizer, terminal).await?)
        }
    };
    let scratch: Box<dyn Scratch> = match &args.resume {
        Some(path) => Box::new(KeptScratch::open(path)?),
        None => Box::new(args.calibration.scratch()?),
    };
    let host = CalibrationHost {
        samples: samples.as_ref(),
        scratch: scratch.as_ref(),
        heap_bytes: None,
        on_cpu: &|error| terminal.note_cpu(error),
    };
    let done = request.run(checkpoint, context, &host).await?;
    if let Some(path) = &args.resume {
        // This fails, and the folder stays, if it holds other files.
        let _ = std::fs::remove_dir(path);
    }
    Ok(done)
}

/// Notes what will be done, and the memory that it needs.
fn show(told: &QuantizeEvent<'_>, terminal: &Terminal) {
    for note in told.notes() {
        terminal.note(note);
    }
    if let QuantizeEvent::Plan(plan) = told
        && let Some(needed) = plan.memory()
    {
        terminal.note(format_args!(
            "needs about {} of memory and {} of scratch space",
            DecimalBytes(needed.peak_bytes),
            DecimalBytes(needed.scratch_bytes)
        ));
    }
}

/// The scheme, or each scheme with its number of modules.
fn schemes(outcome: &QuantizeOutcome) -> String {
    if outcome.record.scheme != "mixed" {
        return outcome.record.scheme.clone();
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (_, scheme, _) in &outcome.modules {
        *counts.entry(scheme.to_string()).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(scheme, count)| format!("{scheme} ({count})")).collect();
    counts.join(", ")
}

fn metrics(outcome: &QuantizeOutcome, source_bytes: u64, seconds: f64, output: &Path) -> Vec<Metric> {
    let subject = output.display().to_string();
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let mut metrics = vec![
        Metric::new("original_model_size_mb", mb(source_bytes), &subject),
        Metric::new("quantized_model_size_mb", mb(outcome.bytes), &subject),
        Metric::new("compression_ratio", source_bytes as f64 / outcome.bytes as f64, &subject),
        Metric::new("bits_per_weight", outcome.record.bits_per_weight, &subject),
        Metric::new("quantization_seconds", seconds, &subject),
    ];
    for (name, _, error) in &outcome.modules {
        if let Some(snr) = error.snr_db() {
            metrics.push(Metric::new("layer_snr_db", snr, name));
        }
    }
    metrics
}

/// Appends figures to a file of JSON lines.
pub fn append(path: &Path, metrics: &[Metric]) -> Result<()> {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(to_json_lines(metrics).as_bytes()))
        .context_with(|| path.display().to_string())
}
