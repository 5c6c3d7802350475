//! `lowbit quantize --format gguf`: the folder that quantizing makes is a step on the way to one file. Floor 9.
//!
//! The file takes over the codes; what a type of the format cannot hold is said, as by `convert`.

use crate::cli::convert::gguf::{convert, new_file};
use crate::cli::open;
use crate::cli::terminal::Terminal;
use crate::error::Result;
use crate::format::gguf::TensorType;
use crate::format::sink::FsSinkDir;
use crate::pipeline::gguf::{GgufOptions, GgufReport};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The file that will be written, and the folder on the way to it, which goes when this is dropped.
pub(super) struct OnTheWay {
    folder: PathBuf,
    file: String,
    temporary: TempDir,
}

impl OnTheWay {
    /// Makes the folder, beside the file.
    pub(super) fn begin(output: &Path) -> Result<Self> {
        let (folder, file) = new_file(output)?;
        let temporary = FsSinkDir::at(&folder).unfinished_folder(&file)?;
        Ok(Self { folder, file, temporary })
    }

    /// The folder that quantizing writes.
    pub(super) fn quantized(&self) -> PathBuf {
        self.temporary.path().join("quantized")
    }

    /// The file.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(&self.file)
    }

    /// Writes the file from the folder.
    pub(super) async fn finish(&self, strict: bool, terminal: &Terminal) -> Result<GgufReport> {
        let quantized = open::checkpoint(&self.quantized(), terminal).await?;
        // What is not quantized: layers that a recipe keeps, and tables.
        let options = GgufOptions { linear: TensorType::F16, tables: TensorType::F16 };
        convert(&quantized, options, (&self.folder, &self.file), strict, terminal).await
    }
}
