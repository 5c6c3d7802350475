//! `lowbit requantize`: rounds dequantized weights, possibly trained further, back to their quantization grid.

use super::Outcome;
use super::open::{self, TokenizerArgs};
use super::terminal::Terminal;
use crate::api::destination;
use crate::backend::cpu::CpuBackend;
use crate::error::{Error, Result};
use crate::model::{CausalLm, LoadOptions};
use crate::pipeline::quantize::restore;
use crate::request::WindowRequest;
use crate::task::block_on;
use crate::validate::walk;
use crate::validate::windows::Dataset;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Round dequantized weights, possibly trained further, back to their quantization grid; unchanged weights get their
/// original codes
#[derive(clap::Args)]
pub struct RequantizeArgs {
    /// A folder that `lowbit dequantize` wrote, with its quantization_metadata.json
    checkpoint: PathBuf,

    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// Compare predictions before and after on this text
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
}

pub fn run(args: &RequantizeArgs, terminal: &Terminal) -> Result<Outcome> {
    let (outcome, compared) = block_on(async {
        let dense = open::checkpoint(&args.checkpoint, terminal).await?;
        let sinks = destination::folder(&args.output, Path::new(dense.name()))?;
        let outcome = restore(&dense, &sinks, terminal).await?;
        let mut compared = None;
        if let Some(path) = &args.text {
            let codec = open::tokenizer(&dense, &TokenizerArgs::default()).await?;
            let data = Dataset::new(path.display().to_string(), &open::text(path)?, &codec)?;
            let requantized = open::checkpoint(&args.output, terminal).await?;
            let windows = WindowRequest::default().windows(dense.config());
            let load = async |checkpoint| {
                CausalLm::load(CpuBackend::new(), checkpoint, LoadOptions::default(), terminal).await
            };
            let (mut before, mut after) = (load(&dense).await?, load(&requantized).await?);
            compared = Some(walk::compare(&mut before, &mut after, &data, &windows, terminal).await?);
        }
        Ok::<_, Error>((outcome, compared))
    })?;
    let modules = outcome.modules.len();
    let figures = compared.as_ref().map(|compared| {
        json!({
            "tokens": compared.original.tokens(),
            "perplexity_before": compared.original.perplexity(),
            "perplexity": compared.quantized.perplexity(),
            "same_predictions": compared.divergence.top1_agreement(),
        })
    });
    let document = json!({
        "output": args.output,
        "modules": modules,
        "scheme": outcome.record.scheme,
        "format": outcome.record.format,
        "bits_per_weight": outcome.record.bits_per_weight,
        "comparison": figures,
    });
    let mut text = format!(
        "{modules} modules to {}, {:.2} bits a weight\n{}\n",
        outcome.record.scheme,
        outcome.record.bits_per_weight,
        args.output.display()
    );
    if let Some(compared) = &compared {
        text += &format!(
            "perplexity {:.4} before, {:.4} after; equal predictions {:.2}% of {} tokens\n",
            compared.original.perplexity(),
            compared.quantized.perplexity(),
            100.0 * compared.divergence.top1_agreement(),
            compared.original.tokens()
        );
    }
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}
