//! `lowbit generate`: continues a prompt.

use super::Outcome;
use super::open::{self, ModelArgs};
use super::options::OptionArgs;
use super::terminal::Terminal;
use crate::backend::any::AnyBackend;
use crate::error::Result;
use crate::generate::{GenerateOptions, Generation};
use crate::model::CausalLm;
use crate::task::block_on;
use crate::tokenizer::{HuggingFaceTokenizer, TextCodec};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Continue a prompt
#[derive(clap::Args)]
pub struct GenerateArgs {
    /// A checkpoint: a folder, or a GGUF file
    checkpoint: PathBuf,

    /// The prompt
    #[arg(long, value_name = "TEXT")]
    prompt: String,

    /// Use the prompt as a chat message, with the checkpoint's template
    #[arg(long)]
    chat: bool,

    #[command(flatten)]
    request: OptionArgs<GenerateOptions>,

    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Serialize)]
struct GenerateReport {
    text: String,
    token_ids: Vec<u32>,
    prompt_ids: Vec<u32>,
    finish_reason: &'static str,
    /// Decoding speed without the prompt. Null when only one token was generated.
    tokens_per_second: Option<f64>,
    prefill_seconds: f64,
    /// GPU dispatches for one token. Null on the CPU.
    dispatches_per_token: Option<f64>,
    checkpoint: String,
    activations: &'static str,
    device: String,
    /// The reason for a fallback to the CPU.
    fallback_reason: Option<String>,
}

pub fn run(args: &GenerateArgs, terminal: &Terminal) -> Result<Outcome> {
    let document = block_on(generate(args, terminal))?;
    if terminal.is_json() {
        terminal.result(&document, "")?;
    } else {
        terminal.print("\n")?;
        let speed =
            document.tokens_per_second.map_or_else(String::new, |speed| format!(", {speed:.1} tokens/s"));
        terminal.note(format!("[{} tokens, {}{speed}]", document.token_ids.len(), document.finish_reason));
    }
    Ok(Outcome::Done)
}

async fn generate(args: &GenerateArgs, terminal: &Terminal) -> Result<GenerateReport> {
    let checkpoint = open::checkpoint(&args.checkpoint, terminal).await?;
    let codec = open::tokenizer(&checkpoint, &args.model.tokenizer).await?;
    let prompt_ids = if args.chat {
        let message = json!({ "role": "user", "content": args.prompt });
        // The template contains all special tokens.
        codec.encode(&codec.apply_chat_template(&[message])?)?
    } else {
        codec.encode_prompt(&args.prompt)?
    };
    let open::Loaded { model, fallback_reason } =
        open::model(&checkpoint, &args.model.load.0, terminal).await?;
    let document = continue_prompt(model, &codec, prompt_ids, args, terminal).await?;
    Ok(GenerateReport { checkpoint: checkpoint.name().to_owned(), fallback_reason, ..document })
}

/// The document without the fields that only the caller knows.
async fn continue_prompt(
    mut model: CausalLm<AnyBackend>,
    codec: &HuggingFaceTokenizer,
    prompt_ids: Vec<u32>,
    args: &GenerateArgs,
    terminal: &Terminal,
) -> Result<GenerateReport> {
    let activations = model.activations().name();
    let device = model.capabilities().device.clone();

    // The terminal shows the prompt and its continuation as one text. JSON has the new text alone.
    let streams = !terminal.is_json();
    let options = GenerateOptions { continue_prompt: streams && !args.chat, ..args.request.0.clone() };
    let start = Instant::now();
    let mut generation = Generation::start(&mut model, codec, &prompt_ids, &options, terminal).await?;
    let prefill_seconds = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let (mut text, mut finish_reason) = (String::new(), "");
    let mut prompt_is_due = streams && !args.chat;
    while let Some(piece) = generation.next(terminal).await? {
        // Printed with the first token, so that standard output stays empty on errors.
        if std::mem::take(&mut prompt_is_due) {
            terminal.print(&args.prompt)?;
        }
        text.push_str(&piece.text);
        if streams {
            terminal.print(&piece.text)?;
        }
        finish_reason = piece.finished.map_or(finish_reason, |reason| reason.name());
    }
    let token_ids = generation.token_ids().to_vec();
    let dispatches_per_token = generation.dispatches_per_token();
    // Prefill produces the first token.
    let decoded = token_ids.len().saturating_sub(1);
    Ok(GenerateReport {
        text,
        tokens_per_second: (decoded > 0).then(|| decoded as f64 / start.elapsed().as_secs_f64()),
        token_ids,
        prompt_ids,
        finish_reason,
        prefill_seconds,
        dispatches_per_token,
        checkpoint: String::new(),
        activations,
        device,
        fallback_reason: None,
    })
}
