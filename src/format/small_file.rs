//! Small files next to the weights: configurations, tokenizers, records.

use super::source::{SourceDir, read_whole};
use super::{foreign, json};
use crate::error::{Context, Error, Result};
use serde_json::Value;

/// The size limit of these files.
const MAX_BYTES: u64 = 64 << 20;

/// Reads a whole file of the folder; `None` if it does not exist.
///
/// # Errors
/// `invalid_checkpoint` above 64 MiB, and for foreign content such as a web page.
pub async fn read_file(dir: &dyn SourceDir, file: &str) -> Result<Option<Vec<u8>>> {
    let Some(source) = dir.open(file).await? else { return Ok(None) };
    let bytes = read_whole(source.as_ref(), MAX_BYTES).await?;
    foreign::refuse(&bytes).context_with(|| file)?;
    Ok(Some(bytes))
}

/// Reads a JSON file of the folder; `None` if it does not exist.
///
/// # Errors
/// As [`read_file`], and `invalid_checkpoint` for invalid JSON.
pub async fn read_json(dir: &dyn SourceDir, file: &str) -> Result<Option<Value>> {
    let Some(bytes) = read_file(dir, file).await? else { return Ok(None) };
    json::value(&bytes)
        .map(Some)
        .map_err(|error| Error::invalid_checkpoint(format!("{file}: expected JSON: {error}")))
}
