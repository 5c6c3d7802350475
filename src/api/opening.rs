//! Opens checkpoints and their tokenizers by paths.

use crate::error::{Context, Result};
use crate::format::links::followed;
use crate::format::source::{FileSource, FsDir, SourceDir};
use crate::layout::OpenOptions;
use crate::model::Checkpoint;
use crate::tokenizer::HuggingFaceTokenizer;
use std::path::Path;
use std::sync::Arc;

/// Opens a checkpoint, a folder or a GGUF file.
///
/// # Errors
/// As [`Checkpoint::open_with`] and [`Checkpoint::open_gguf_with`].
pub async fn checkpoint(path: &Path, options: &OpenOptions) -> Result<Checkpoint> {
    if followed(path).is_file() {
        Checkpoint::open_gguf_with(Arc::new(FileSource::open(path)?), options).await
    } else {
        Checkpoint::open_with(Arc::new(FsDir::open(path)?), options).await
    }
}

/// Opens the tokenizer of a checkpoint: that of `folder`, or else its own.
///
/// # Errors
/// As [`HuggingFaceTokenizer::open_with`] and [`HuggingFaceTokenizer::fit`]; why a GGUF file's own one cannot be used.
pub async fn tokenizer(checkpoint: &Checkpoint, folder: Option<&Path>) -> Result<HuggingFaceTokenizer> {
    let config = checkpoint.config();
    let dir: Arc<dyn SourceDir> = match (folder, checkpoint.tokenizer_problem()) {
        (Some(path), _) => Arc::new(FsDir::open(path)?),
        (None, Some(problem)) => return Err(problem.clone()),
        (None, None) => checkpoint.dir().clone(),
    };
    let mut codec =
        HuggingFaceTokenizer::open_with(dir.as_ref(), config.bos_token_id, checkpoint.allow_unknown())
            .await?;
    codec.fit(config.vocab_size).context_with(|| dir.name().to_owned())?;
    Ok(codec)
}
