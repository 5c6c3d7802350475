//! `lowbit dequantize`: a quantized folder becomes an ordinary checkpoint again. Floor 9.

use super::Outcome;
use super::open::{self, TokenizerArgs};
use super::options::OptionArgs;
use super::quantize::append;
use super::terminal::Terminal;
use crate::artifact::metrics::Metric;
use crate::backend::cpu::CpuBackend;
use crate::error::{Error, Result};
use crate::model::Checkpoint;
use crate::pipeline::dequantize::{default_dtype, dequantize_checkpoint};
use crate::request::DequantizeRequest;
use crate::task::block_on;
use crate::validate::agreement::{self, Agreement, Forms};
use crate::validate::windows::Dataset;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Make an ordinary checkpoint of a quantized one, for training to go on from
#[derive(clap::Args)]
pub struct Args {
    /// A quantized checkpoint folder
    checkpoint: PathBuf,

    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    #[command(flatten)]
    request: OptionArgs<DequantizeRequest>,

    /// Compare predictions on this text
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    /// The checkpoint that was quantized, to compare with too
    #[arg(long, value_name = "DIR", requires = "text")]
    original: Option<PathBuf>,

    /// Append figures to a file as JSON lines
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

#[derive(Serialize)]
struct Document {
    output: PathBuf,
    dtype: String,
    modules: usize,
    agreement: Option<Agreement>,
}

pub fn run(args: &Args, terminal: &Terminal) -> Result<Outcome> {
    open::check_writable(args.metrics.as_ref(), &[&args.output])?;
    args.request.0.check_comparison(args.text.is_some(), args.original.is_some())?;
    let document = block_on(async {
        let quantized = open::checkpoint(&args.checkpoint, terminal).await?;
        let dtype = match args.request.0.dtype {
            Some(dtype) => dtype.dtype(),
            None => default_dtype(&quantized)?,
        };
        let (sinks, existing) = open::output(&args.output, Path::new(quantized.name()))?;
        let record = dequantize_checkpoint(&quantized, dtype, &sinks, Some(&existing), terminal).await?;
        let agreement = match &args.text {
            Some(text) => Some(compare(&quantized, args, text, terminal).await?),
            None => None,
        };
        Ok::<_, Error>(Document {
            output: args.output.clone(),
            dtype: record.dtype,
            modules: record.modules.len(),
            agreement,
        })
    })?;
    if let Some(path) = &args.metrics
        && let Some(retention) = document.agreement.as_ref().and_then(|agreement| agreement.retention)
    {
        let subject = args.output.display().to_string();
        append(path, &[Metric::new("dequantization_accuracy_retention", retention, subject)])?;
    }
    let mut text = format!("{} modules in {}\n{}\n", document.modules, document.dtype, args.output.display());
    if let Some(agreement) = &document.agreement {
        text += &describe(agreement);
    }
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}

async fn compare(quantized: &Checkpoint, args: &Args, text: &Path, terminal: &Terminal) -> Result<Agreement> {
    let request = &args.request.0;
    let codec = open::tokenizer(quantized, &TokenizerArgs::default()).await?;
    let data = Dataset::new(text.display().to_string(), &open::text(text)?, &codec)?;
    let dequantized = open::checkpoint(&args.output, terminal).await?;
    let original = match &args.original {
        Some(path) => Some(open::checkpoint(path, terminal).await?),
        None => None,
    };
    let forms = Forms { quantized, dequantized: &dequantized, original: original.as_ref() };
    let windows = request.windows.windows(quantized.config());
    agreement::measure(forms, &data, &windows, request.min_retention, CpuBackend::new, terminal).await
}

/// The shares in words.
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
