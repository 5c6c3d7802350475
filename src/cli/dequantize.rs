//! `lowbit dequantize`: converts a quantized folder to a floating-point checkpoint.

use super::Outcome;
use super::open::{self, TokenizerArgs};
use super::options::OptionArgs;
use super::quantize::append;
use super::terminal::Terminal;
use crate::api::destination;
use crate::artifact::metrics::Metric;
use crate::artifact::records::DequantizationRecord;
use crate::error::{Error, Result};
use crate::model::Checkpoint;
use crate::options::Texts;
use crate::request::{DequantizeContext, DequantizeRequest, Dequantized};
use crate::task::block_on;
use crate::validate::agreement::Agreement;
use serde::Serialize;
use std::path::{Path, PathBuf};
#[cfg(feature = "train")]
use {
    super::check_gradients::describe as describe_gradients, crate::request::Handoff,
    crate::train::gradients::GradientReport,
};

/// Dequantize to a floating-point checkpoint
#[derive(clap::Args)]
pub struct DequantizeArgs {
    /// A quantized checkpoint folder
    checkpoint: PathBuf,

    /// Output folder
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    #[command(flatten)]
    request: OptionArgs<DequantizeRequest>,

    /// Compare predictions on this text
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    /// The original checkpoint, for a second comparison
    #[arg(long, value_name = "DIR", requires = "text")]
    original: Option<PathBuf>,

    /// Prepare for training: write the original's weights if too few of its predictions are kept, and check gradients
    #[cfg(feature = "train")]
    #[arg(long, requires = "text", requires = "original")]
    for_training: bool,

    /// Append metrics to a file as JSON lines
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

#[derive(Serialize)]
struct DequantizeReport {
    output: PathBuf,
    dtype: String,
    modules: usize,
    agreement: Option<Agreement>,
    /// Whether the original's weights were written.
    is_original: bool,
    /// The check of the written model's gradients, for training.
    #[cfg(feature = "train")]
    gradients: Option<GradientReport>,
}

impl DequantizeReport {
    fn new(output: &Path, record: DequantizationRecord, agreement: Option<Agreement>) -> Self {
        Self {
            output: output.to_owned(),
            dtype: record.dtype,
            modules: record.modules.len(),
            agreement,
            is_original: record.fallback.is_some(),
            #[cfg(feature = "train")]
            gradients: None,
        }
    }

    /// Whether the gradients passed their check, if there was one, and its report for people.
    fn gradients(&self) -> Option<(bool, String)> {
        #[cfg(feature = "train")]
        return self.gradients.as_ref().map(|report| (report.passed, describe_gradients(report)));
        #[cfg(not(feature = "train"))]
        None
    }
}

pub fn run(args: &DequantizeArgs, terminal: &Terminal) -> Result<Outcome> {
    open::check_writable(args.metrics.as_ref(), &[&args.output])?;
    let mut request = args.request.0.clone();
    if let Some(text) = &args.text {
        request.texts = Texts(open::text(text)?);
        request.name = Some(text.display().to_string());
    }
    let (report, sizes) = block_on(async {
        let quantized = open::checkpoint(&args.checkpoint, terminal).await?;
        let sinks = destination::folder(&args.output, Path::new(quantized.name()))?;
        let original = match &args.original {
            Some(path) => Some(open::checkpoint(path, terminal).await?),
            None => None,
        };
        if let Some(original) = &original {
            destination::refuse_source(&args.output, Path::new(original.name()))?;
        }
        let codec = match args.text {
            Some(_) => Some(open::tokenizer(&quantized, &TokenizerArgs::default()).await?),
            None => None,
        };
        let context = DequantizeContext {
            original: original.as_ref(),
            codec: codec.as_ref().map(|codec| codec as _),
            target: &sinks,
            control: terminal,
        };
        let report = dequantize(args, &request, &quantized, &context).await?;
        let written = open::checkpoint(&args.output, terminal).await?;
        Ok::<_, Error>((report, [quantized.bytes(), written.bytes()]))
    })?;
    if let Some(path) = &args.metrics {
        append(path, &metrics(&report, sizes))?;
    }
    let what =
        if report.is_original { "the original's weights" } else { &format!("{} modules", report.modules) };
    let mut text = format!("{what} in {}\n{}\n", report.dtype, args.output.display());
    if let Some(agreement) = &report.agreement {
        text += &describe(agreement);
    }
    let mut outcome = Outcome::Done;
    if let Some((passed, told)) = report.gradients() {
        text += &format!("gradients: {told}");
        if !passed {
            outcome = Outcome::Rejected;
        }
    }
    terminal.result(&report, text)?;
    Ok(outcome)
}

async fn dequantize(
    args: &DequantizeArgs,
    request: &DequantizeRequest,
    quantized: &Checkpoint,
    context: &DequantizeContext<'_>,
) -> Result<DequantizeReport> {
    #[cfg(feature = "train")]
    if args.for_training {
        let Handoff { record, agreement, gradients } = request.hand_off(quantized, context).await?;
        let report = DequantizeReport::new(&args.output, record, Some(agreement));
        return Ok(DequantizeReport { gradients: Some(gradients), ..report });
    }
    let Dequantized { record, agreement } = request.run(quantized, context).await?;
    Ok(DequantizeReport::new(&args.output, record, agreement))
}

fn metrics(report: &DequantizeReport, sizes: [u64; 2]) -> Vec<Metric> {
    let subject = report.output.display().to_string();
    let [quantized, dequantized] = sizes.map(|bytes| bytes as f64 / 1e6);
    let retention = report.agreement.as_ref().and_then(|agreement| agreement.retention);
    let passed = report.gradients().map(|(passed, _)| f64::from(u8::from(passed)));
    [
        ("quantized_model_size_mb", Some(quantized)),
        ("dequantized_model_size_mb", Some(dequantized)),
        ("dequantization_accuracy_retention", retention),
        ("gradient_flow_test_passed", passed),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some(Metric::new(name, value?, &subject)))
    .collect()
}

/// Formats the shares for people.
pub fn describe(agreement: &Agreement) -> String {
    let percent = |share: f64| format!("{:.2}%", 100.0 * share);
    let mut text = format!(
        "equal predictions over {} tokens: quantized and dequantized {} ({} with f32 activations)",
        agreement.tokens,
        percent(agreement.quantized_dequantized),
        percent(agreement.quantized_dequantized_f32)
    );
    if let Some(retention) = agreement.retention {
        text += &format!("; original and dequantized {}", percent(retention));
        if retention < agreement.min_retention {
            text += &format!(", below the limit of {}", percent(agreement.min_retention));
        }
    }
    text + "\n"
}
