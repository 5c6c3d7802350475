//! `lowbit compare`: continues prompts with two models.

use super::Outcome;
use super::open::{self, TokenizerArgs};
use super::options::OptionArgs;
use super::terminal::Terminal;
use crate::error::Result;
use crate::request::CompareRequest;
use crate::task::block_on;
use crate::validate::continuations::{Pair, continue_all, from_texts, pair};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Continue prompts with two models
#[derive(clap::Args)]
pub struct CompareArgs {
    /// A checkpoint: a folder, or a GGUF file
    a: PathBuf,

    /// Another checkpoint with the same vocabulary
    b: PathBuf,

    #[command(flatten)]
    request: OptionArgs<CompareRequest>,

    #[command(flatten)]
    tokenizer: TokenizerArgs,
}

pub fn run(args: &CompareArgs, terminal: &Terminal) -> Result<Outcome> {
    let pairs = block_on(pairs(&args.a, &args.b, &args.request.0, &args.tokenizer, terminal))?;
    terminal.result(&pairs, describe(&pairs))?;
    Ok(Outcome::Done)
}

/// Continues every prompt with both models.
pub async fn pairs(
    a: &Path,
    b: &Path,
    request: &CompareRequest,
    tokenizer: &TokenizerArgs,
    terminal: &Terminal,
) -> Result<Vec<Pair>> {
    let prompts: Vec<&str> = request.prompts.iter().map(String::as_str).collect();
    let mut continued = Vec::new();
    for path in [a, b] {
        let checkpoint = open::checkpoint(path, terminal).await?;
        let codec = open::tokenizer(&checkpoint, tokenizer).await?;
        let prompts = from_texts(prompts.iter().copied(), &codec)?;
        let mut model = open::model(&checkpoint, &request.load, terminal).await?.model;
        continued.push(continue_all(&mut model, &codec, &prompts, request.max_tokens, terminal).await?);
    }
    let second = continued.pop().unwrap_or_default();
    let first = continued.pop().unwrap_or_default();
    Ok(pair(&prompts, first, second))
}

/// The texts, one above the other.
pub fn describe(pairs: &[Pair]) -> String {
    let mut text = String::new();
    for pair in pairs {
        let difference = match pair.first_difference {
            Some(token) => format!("they differ from token {}", token + 1),
            None => "they are the same".to_owned(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "> {}  [{difference}]", pair.prompt);
        let _ = writeln!(text, "A: {}\nB: {}\n", pair.a.text.trim(), pair.b.text.trim());
    }
    text
}
