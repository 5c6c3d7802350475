//! Opens checkpoints, tokenizers and texts named on the command line.

use super::options::OptionArgs;
use super::terminal::Terminal;
use crate::api;
use crate::backend::any::AnyBackend;
use crate::backend::choice::DeviceOutcome;
use crate::error::{Context, Error, Result};
use crate::format::links::followed;
use crate::model::{CausalLm, Checkpoint};
use crate::request::LoadRequest;
use crate::tokenizer::HuggingFaceTokenizer;
use std::path::{Path, PathBuf};

/// Arguments of every command that runs a model.
#[derive(clap::Args, Default)]
pub struct ModelArgs {
    #[command(flatten)]
    pub tokenizer: TokenizerArgs,

    #[command(flatten)]
    pub load: OptionArgs<LoadRequest>,
}

/// The location of a separate tokenizer.
#[derive(clap::Args, Clone, Default)]
pub struct TokenizerArgs {
    /// Use the tokenizer of another folder
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
}

impl TokenizerArgs {
    /// The given folder.
    pub fn folder(&self) -> Option<&Path> {
        self.tokenizer.as_deref()
    }
}

/// Checks before any work that a file can be written, and leaves no file behind. Files inside the
/// folders that are yet to be `made` are not checked.
pub fn check_writable(file: Option<&PathBuf>, made: &[&Path]) -> Result<()> {
    let Some(file) = file.filter(|file| !made.iter().any(|folder| file.starts_with(folder))) else {
        return Ok(());
    };
    let is_new = !file.exists();
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(file);
    opened.context_with(|| file.display().to_string())?;
    if is_new {
        std::fs::remove_file(file).context_with(|| file.display().to_string())?;
    }
    Ok(())
}

/// Opens a checkpoint, a folder or a GGUF file, and prints its warnings.
pub async fn checkpoint(path: &Path, terminal: &Terminal) -> Result<Checkpoint> {
    let checkpoint = api::opening::checkpoint(path, terminal.open_options()).await?;
    for warning in checkpoint.warnings() {
        terminal.note(format_args!("warning: {}: {warning}", checkpoint.name()));
    }
    Ok(checkpoint)
}

/// Opens the checkpoint's tokenizer, or the given one.
pub async fn tokenizer(checkpoint: &Checkpoint, args: &TokenizerArgs) -> Result<HuggingFaceTokenizer> {
    api::opening::tokenizer(checkpoint, args.tokenizer.as_deref()).await
}

/// A loaded model.
pub struct Loaded {
    pub model: CausalLm<AnyBackend>,
    /// The reason for a fallback to the CPU.
    pub fallback_reason: Option<String>,
}

/// Loads a model onto the chosen device. With automatic choice, if the GPU cannot run the model, the
/// CPU does, and standard error has the reason.
pub async fn model(checkpoint: &Checkpoint, request: &LoadRequest, terminal: &Terminal) -> Result<Loaded> {
    let options = request.options();
    let load = async |backend| CausalLm::load(backend, checkpoint, options, terminal).await;
    let DeviceOutcome { result: model, fallback_reason } =
        request.device.run(|error| terminal.note_cpu(error), load).await?;
    for replaced in &model.capabilities().replaced {
        terminal.note(format!("note: {replaced}"));
    }
    Ok(Loaded { model, fallback_reason: fallback_reason.map(|error| error.to_string()) })
}

/// Reads a small file.
pub fn bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(followed(path)).context_with(|| path.display().to_string())
}

/// Reads a text file.
pub fn text(path: &Path) -> Result<String> {
    String::from_utf8(bytes(path)?)
        .map_err(|_| Error::invalid_argument(format!("{}: expected UTF-8 text", path.display())))
}
