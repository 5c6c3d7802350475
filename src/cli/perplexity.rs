//! `lowbit perplexity`: measures the perplexity of a text.

use super::Outcome;
use super::open::{self, ModelArgs};
use super::options::OptionArgs;
use super::terminal::Terminal;
use crate::error::{Error, Result};
use crate::options::Texts;
use crate::request::PerplexityRequest;
use crate::task::block_on;
use serde::Serialize;
use std::path::PathBuf;

/// Measure the perplexity of a text
#[derive(clap::Args)]
pub struct PerplexityArgs {
    /// A checkpoint: a folder, or a GGUF file
    checkpoint: PathBuf,

    #[command(flatten)]
    text: TextArgs,

    #[command(flatten)]
    request: OptionArgs<PerplexityRequest>,

    #[command(flatten)]
    model: ModelArgs,
}

/// The text.
#[derive(clap::Args)]
pub struct TextArgs {
    /// The text to predict
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
}

impl TextArgs {
    /// The request with the text, named after its file.
    pub fn read(&self, request: &PerplexityRequest) -> Result<PerplexityRequest> {
        let texts = Texts(open::text(&self.text)?);
        Ok(PerplexityRequest { texts, name: Some(self.text.display().to_string()), ..request.clone() })
    }
}

#[derive(Serialize)]
struct PerplexityReport {
    perplexity: f64,
    tokens: u64,
    context: usize,
    stride: Option<usize>,
    text: String,
    text_sha256: String,
    checkpoint: String,
    activations: &'static str,
    device: String,
    /// The reason for a fallback to the CPU.
    fallback_reason: Option<String>,
}

pub fn run(args: &PerplexityArgs, terminal: &Terminal) -> Result<Outcome> {
    let document = block_on(async {
        let checkpoint = open::checkpoint(&args.checkpoint, terminal).await?;
        let codec = open::tokenizer(&checkpoint, &args.model.tokenizer).await?;
        let request = args.text.read(&args.request.0)?;
        let open::Loaded { mut model, fallback_reason } =
            open::model(&checkpoint, &args.model.load.0, terminal).await?;
        let found = request.run(&mut model, &codec, terminal).await?;
        Ok::<_, Error>(PerplexityReport {
            perplexity: found.perplexity,
            tokens: found.tokens,
            context: found.context,
            stride: found.stride,
            text: found.text,
            text_sha256: found.text_sha256,
            checkpoint: checkpoint.name().to_owned(),
            activations: model.activations().name(),
            device: model.capabilities().device.clone(),
            fallback_reason,
        })
    })?;
    let text = format!(
        "perplexity {:.5} over {} tokens, context {}\n",
        document.perplexity, document.tokens, document.context
    );
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}
