//! The small files beside the weights: configurations, tokenizers, records. Floor 1.

use super::source::{SourceDir, read_whole};
use crate::error::{Error, Result};
use serde_json::Value;

/// No such file is larger than this.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a file of the folder whole; `None` when it is not there.
///
/// # Errors
/// `invalid_checkpoint` above 64 MiB.
pub async fn read_file(dir: &dyn SourceDir, file: &str) -> Result<Option<Vec<u8>>> {
    match dir.open(file).await? {
        Some(source) => read_whole(source.as_ref(), MAX_BYTES).await.map(Some),
        None => Ok(None),
    }
}

/// Reads a JSON file of the folder; `None` when it is not there.
///
/// # Errors
/// `invalid_checkpoint` for what is no JSON.
pub async fn read_json(dir: &dyn SourceDir, file: &str) -> Result<Option<Value>> {
    let Some(bytes) = read_file(dir, file).await? else { return Ok(None) };
    let json = serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid_checkpoint(format!("{file}: expected JSON: {error}")))?;
    Ok(Some(json))
}
