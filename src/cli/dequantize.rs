//! `lowbit dequantize`: a quantized folder becomes an ordinary checkpoint again. Floor 9.

use super::Outcome;
use super::open::{self, ModelArgs};
use super::perplexity::WindowArgs;
use super::quantize::append;
use super::terminal::Terminal;
use crate::artifact::metrics::Metric;
use crate::backend::cpu::CpuBackend;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::Checkpoint;
use crate::pipeline::dequantize::{default_dtype, dequantize_checkpoint};
use crate::task::block_on;
use crate::validate::agreement::{self, Agreement, Forms};
use clap::ValueEnum;
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

    /// Type of the weights [default: f16; f32 where the quantized model rounds activations so that f16 would change its
    /// predictions]
    #[arg(long, value_enum)]
    dtype: Option<DtypeArg>,

    #[command(flatten)]
    agreement: AgreementArgs,

    /// Append figures to a file as JSON lines
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

/// `--dtype`
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DtypeArg {
    F16,
    F32,
}

impl From<DtypeArg> for DType {
    fn from(arg: DtypeArg) -> Self {
        match arg {
            DtypeArg::F16 => Self::F16,
            DtypeArg::F32 => Self::F32,
        }
    }
}

/// On what the models' predictions are compared.
#[derive(clap::Args)]
pub struct AgreementArgs {
    /// Compare predictions on this text
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    #[command(flatten)]
    windows: WindowArgs,

    /// The checkpoint that was quantized, to compare with too
    #[arg(long, value_name = "DIR", requires = "text")]
    original: Option<PathBuf>,

    /// The share of predictions that the dequantized model shall keep of the original's
    #[arg(long, value_name = "SHARE", default_value_t = 0.995, allow_negative_numbers = true)]
    min_retention: f64,
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
    agreement::check_share(args.agreement.min_retention)?;
    let document = block_on(async {
        let quantized = open::checkpoint(&args.checkpoint, terminal).await?;
        let dtype = match args.dtype {
            Some(dtype) => dtype.into(),
            None => default_dtype(&quantized)?,
        };
        let (record, agreement) = write(&quantized, &args.output, dtype, &args.agreement, terminal).await?;
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

/// Writes the dequantized folder and compares predictions where a text is given.
///
/// # Errors
/// Whatever dequantizing meets; an agreement below what is required.
pub async fn write(
    quantized: &Checkpoint,
    output: &Path,
    dtype: DType,
    args: &AgreementArgs,
    terminal: &Terminal,
) -> Result<(crate::artifact::records::DequantizationRecord, Option<Agreement>)> {
    let (sinks, existing) = open::output(output, Path::new(quantized.name()))?;
    let record = dequantize_checkpoint(quantized, dtype, &sinks, Some(&existing), terminal).await?;
    let agreement = match &args.text {
        Some(text) => Some(compare(quantized, output, text, args, terminal).await?),
        None => None,
    };
    Ok((record, agreement))
}

async fn compare(
    quantized: &Checkpoint,
    output: &Path,
    text: &Path,
    args: &AgreementArgs,
    terminal: &Terminal,
) -> Result<Agreement> {
    let codec = open::tokenizer(quantized, &ModelArgs::default()).await?;
    let data = open::dataset(text, &codec)?;
    let dequantized = open::checkpoint(output, terminal).await?;
    let original = match &args.original {
        Some(path) => Some(open::checkpoint(path, terminal).await?),
        None => None,
    };
    let forms = Forms { quantized, dequantized: &dequantized, original: original.as_ref() };
    let windows = args.windows.windows(quantized.config().max_position_embeddings);
    agreement::measure(forms, &data, &windows, args.min_retention, CpuBackend::new, terminal).await
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
