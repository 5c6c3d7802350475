//! `lowbit dequantize`: converts a quantized folder to a floating-point checkpoint.

use super::Outcome;
use super::open::{self, TokenizerArgs};
use super::options::OptionArgs;
use super::quantize::append;
use super::terminal::Terminal;
use crate::api::destination;
use crate::artifact::metrics::Metric;
use crate::artifact::records::Fallback;
use crate::backend::cpu::CpuBackend;
use crate::error::{Error, Result};
use crate::model::Checkpoint;
use crate::pipeline::dequantize::{default_dtype, dequantize_checkpoint, fall_back};
use crate::request::{DequantizeRequest, Purpose};
use crate::task::block_on;
use crate::validate::agreement::{self, Agreement, Forms};
use crate::validate::windows::Dataset;
use serde::Serialize;
use std::path::{Path, PathBuf};

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

    /// Prepare for training: write the original's weights if too few of its predictions are kept
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
}

pub fn run(args: &DequantizeArgs, terminal: &Terminal) -> Result<Outcome> {
    open::check_writable(args.metrics.as_ref(), &[&args.output])?;
    args.request.0.check_comparison(args.text.as_ref(), args.original.as_ref())?;
    let mut sizes = (0, 0);
    let document = block_on(async {
        let quantized = open::checkpoint(&args.checkpoint, terminal).await?;
        let dtype = match args.request.0.dtype {
            Some(dtype) => dtype.dtype(),
            None => default_dtype(&quantized)?,
        };
        let sinks = destination::folder(&args.output, Path::new(quantized.name()))?;
        let original = match &args.original {
            Some(path) => Some(open::checkpoint(path, terminal).await?),
            None => None,
        };
        let record = dequantize_checkpoint(&quantized, dtype, &sinks, terminal).await?;
        let mut document = DequantizeReport {
            output: args.output.clone(),
            dtype: record.dtype,
            modules: record.modules.len(),
            agreement: None,
            is_original: false,
        };
        if let Some(text) = &args.text {
            document.agreement = Some(compare(&quantized, original.as_ref(), args, text, terminal).await?);
        }
        if let (true, Some(original), Some(agreement)) = (args.for_training, &original, &document.agreement)
            && let (Some(false), Some(retention)) = (agreement.retained, agreement.retention)
        {
            let fallback = Fallback { retention, min_retention: agreement.min_retention };
            // Under another name it may be the output folder.
            destination::folder(&args.output, Path::new(original.name()))?;
            let written = fall_back(original, dtype, fallback, &sinks, terminal).await?;
            (document.modules, document.is_original) = (written.modules.len(), true);
        }
        sizes = (quantized.bytes(), open::checkpoint(&args.output, terminal).await?.bytes());
        Ok::<_, Error>(document)
    })?;
    if let Some(path) = &args.metrics {
        let subject = args.output.display().to_string();
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let mut metrics = vec![
            Metric::new("quantized_model_size_mb", mb(sizes.0), &subject),
            Metric::new("dequantized_model_size_mb", mb(sizes.1), &subject),
        ];
        let retention = document.agreement.as_ref().and_then(|agreement| agreement.retention);
        metrics
            .extend(retention.map(|share| Metric::new("dequantization_accuracy_retention", share, &subject)));
        append(path, &metrics)?;
    }
    let what = if document.is_original {
        "the original's weights"
    } else {
        &format!("{} modules", document.modules)
    };
    let mut text = format!("{what} in {}\n{}\n", document.dtype, args.output.display());
    if let Some(agreement) = &document.agreement {
        text += &describe(agreement);
    }
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}

async fn compare(
    quantized: &Checkpoint,
    original: Option<&Checkpoint>,
    args: &DequantizeArgs,
    text: &Path,
    terminal: &Terminal,
) -> Result<Agreement> {
    let request = &args.request.0;
    let codec = open::tokenizer(quantized, &TokenizerArgs::default()).await?;
    let data = Dataset::new(text.display().to_string(), &open::text(text)?, &codec)?;
    let dequantized = open::checkpoint(&args.output, terminal).await?;
    let forms = Forms { quantized, dequantized: &dequantized, original };
    let windows = request.windows.windows(quantized.config());
    let purpose = if args.for_training { Purpose::Training } else { Purpose::Use };
    let min_retention = request.retention_limit(purpose);
    agreement::measure(forms, &data, &windows, min_retention, CpuBackend::new, terminal).await
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
