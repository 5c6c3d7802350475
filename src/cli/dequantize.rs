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
use crate::model::{CausalLm, Checkpoint, LoadOptions};
use crate::pipeline::dequantize::dequantize_checkpoint;
use crate::quant::Activations;
use crate::task::block_on;
use crate::validate::walk;
use crate::validate::windows::Dataset;
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

    /// Type of the weights
    #[arg(long, value_enum, default_value_t = DtypeArg::F16)]
    dtype: DtypeArg,

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
    #[arg(long, value_name = "SHARE", default_value_t = 0.995)]
    min_retention: f64,
}

/// Shares of positions at which two models predict the same next token.
#[derive(Clone, Debug, Serialize)]
pub struct Agreement {
    text: String,
    tokens: u64,
    /// Quantized against dequantized, at the activation precision of the quantized folder. Below `required` something is
    /// broken.
    quantized_dequantized: f64,
    /// The same with `f32` activations on both sides.
    quantized_dequantized_f32: f64,
    required: f64,
    /// Original against dequantized; null without an original.
    retention: Option<f64>,
    min_retention: f64,
    /// Whether the retention reaches its limit; a finding about the quantization, not about the way back.
    retained: Option<bool>,
}

/// What the two forms of one model must agree on: they differ by the rounding of products to the stored type.
const REQUIRED_AGREEMENT: f64 = 0.995;

#[derive(Serialize)]
struct Document {
    output: PathBuf,
    dtype: String,
    modules: usize,
    agreement: Option<Agreement>,
}

pub fn run(args: &Args, terminal: &Terminal) -> Result<Outcome> {
    let document = block_on(async {
        let quantized = open::checkpoint(&args.checkpoint, terminal).await?;
        let (record, agreement) =
            write(&quantized, &args.output, args.dtype.into(), &args.agreement, terminal).await?;
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
    let activations = load(quantized, None, terminal).await?.activations();
    let same = share(quantized, &dequantized, Some(activations), &data, args, terminal).await?;
    let in_f32 = if activations == Activations::F32 {
        same
    } else {
        share(quantized, &dequantized, Some(Activations::F32), &data, args, terminal).await?
    };
    if same.0 < REQUIRED_AGREEMENT {
        return Err(Error::invalid_checkpoint(format!(
            "expected quantized and dequantized model to agree on {REQUIRED_AGREEMENT} of all predictions but found {:.4}",
            same.0
        )));
    }
    let retention = match &args.original {
        Some(path) => {
            let original = open::checkpoint(path, terminal).await?;
            Some(share(&original, &dequantized, Some(Activations::F32), &data, args, terminal).await?.0)
        }
        None => None,
    };
    Ok(Agreement {
        text: data.name.clone(),
        tokens: same.1,
        quantized_dequantized: same.0,
        quantized_dequantized_f32: in_f32.0,
        required: REQUIRED_AGREEMENT,
        retention,
        min_retention: args.min_retention,
        retained: retention.map(|share| share >= args.min_retention),
    })
}

async fn load(
    checkpoint: &Checkpoint,
    activations: Option<Activations>,
    terminal: &Terminal,
) -> Result<CausalLm<CpuBackend>> {
    let options = LoadOptions { activations, ..LoadOptions::default() };
    CausalLm::load(CpuBackend::new(), checkpoint, options, terminal).await
}

/// The share of equal predictions, and over how many tokens.
async fn share(
    first: &Checkpoint,
    second: &Checkpoint,
    activations: Option<Activations>,
    data: &Dataset,
    args: &AgreementArgs,
    terminal: &Terminal,
) -> Result<(f64, u64)> {
    let windows = args.windows.windows(first.config().max_position_embeddings);
    let mut a = load(first, activations, terminal).await?;
    let mut b = load(second, activations, terminal).await?;
    let compared = walk::compare(&mut a, &mut b, data, &windows, terminal).await?;
    Ok((compared.divergence.top1_agreement(), compared.original.tokens()))
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
