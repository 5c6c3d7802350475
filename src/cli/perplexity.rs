//! `lowbit perplexity`: how well a model predicts a text. Floor 9.

use super::Outcome;
use super::open::{self, ModelArgs};
use super::terminal::Terminal;
use crate::error::{Error, ErrorCode, Result};
use crate::task::block_on;
use crate::validate::walk::score;
use crate::validate::windows::WindowOptions;
use serde::Serialize;
use std::path::PathBuf;

/// The longest context that is taken without being asked for.
const DEFAULT_CONTEXT: usize = 2048;

/// Measure how well a model predicts a text
#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint: a folder, or a GGUF file
    checkpoint: PathBuf,

    #[command(flatten)]
    text: TextArgs,

    #[command(flatten)]
    model: ModelArgs,
}

/// Which text, and how it is cut into windows.
#[derive(clap::Args)]
pub struct TextArgs {
    /// The text to predict
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,

    #[command(flatten)]
    pub window: WindowArgs,
}

/// How a text is cut.
#[derive(clap::Args, Default)]
pub struct WindowArgs {
    /// Tokens that the model sees at once [default: what the model was made for, at most 2048]
    #[arg(long, value_name = "N")]
    context: Option<usize>,

    /// Tokens from the start of one window to the next [default: windows do not overlap]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
}

impl From<PathBuf> for TextArgs {
    fn from(text: PathBuf) -> Self {
        Self { text, window: WindowArgs::default() }
    }
}

impl WindowArgs {
    /// The windows for a model of so many positions.
    pub fn windows(&self, max_position_embeddings: usize) -> WindowOptions {
        let context = self.context.unwrap_or(DEFAULT_CONTEXT.min(max_position_embeddings));
        WindowOptions { context, stride: self.stride }
    }
}

#[derive(Serialize)]
struct Document {
    perplexity: f64,
    tokens: u64,
    context: usize,
    stride: Option<usize>,
    text: String,
    text_sha256: String,
    checkpoint: String,
    activations: &'static str,
    device: String,
    /// Why it ran on the CPU although no device was asked for.
    why_cpu: Option<String>,
}

/// The sum, the precision of the activations, and the device.
fn finite(perplexity: f64) -> Result<f64> {
    if perplexity.is_finite() {
        return Ok(perplexity);
    }
    Err(Error::new(ErrorCode::NonFinite, "the model's logits are not finite, so it has no perplexity"))
}

pub fn run(args: &Args, terminal: &Terminal) -> Result<Outcome> {
    let document = block_on(async {
        let checkpoint = open::checkpoint(&args.checkpoint, terminal).await?;
        let codec = open::tokenizer(&checkpoint, &args.model).await?;
        let data = open::dataset(&args.text.text, &codec)?;
        let open::Loaded { mut model, why_cpu } = open::model(&checkpoint, &args.model, terminal).await?;
        let windows = args.text.window.windows(checkpoint.config().max_position_embeddings);
        let sum = score(&mut model, &data, &windows, terminal).await?;
        Ok::<_, Error>(Document {
            perplexity: finite(sum.perplexity())?,
            tokens: sum.tokens(),
            context: windows.context,
            stride: windows.stride,
            text: data.name,
            text_sha256: data.sha256,
            checkpoint: checkpoint.name().to_owned(),
            activations: model.activations().name(),
            device: model.capabilities().device.clone(),
            why_cpu,
        })
    })?;
    let text = format!(
        "perplexity {:.5} over {} tokens, context {}\n",
        document.perplexity, document.tokens, document.context
    );
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}
