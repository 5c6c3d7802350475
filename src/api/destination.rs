//! Outputs on disk: a folder, or a file in one.

use crate::artifact::output::refuse_foreign;
use crate::error::{Error, Result};
use crate::format::links::{canonical, followed};
use crate::format::sink::{FsSinkDir, SinkDir};
use crate::format::source::FsDir;
use crate::request::Format;
use crate::task::block_on;
use std::path::{Path, PathBuf};

/// The location of an output.
pub struct Destination {
    /// The folder to write.
    pub sinks: FsSinkDir,
    /// The file's name, for a file.
    pub file: Option<String>,
    /// The path of the folder or file.
    pub path: PathBuf,
}

/// The output folder. It is created with its first file.
///
/// # Errors
/// `invalid_argument` for a file, for another tool's checkpoint, and for the `source` folder, which writing would
/// destroy.
pub fn folder(output: &Path, source: &Path) -> Result<FsSinkDir> {
    if followed(output).exists() {
        FsDir::open(output)?;
    }
    refuse_source(output, source)?;
    let sinks = FsSinkDir::at(output);
    block_on(refuse_foreign(sinks.existing().as_ref()))?;
    Ok(sinks)
}

/// Refuses to write over the source. Sources that are not on disk cannot conflict.
///
/// # Errors
/// `invalid_argument`.
pub fn refuse_source(output: &Path, source: &Path) -> Result<()> {
    match (canonical(output), canonical(source)) {
        (Ok(real), Ok(source)) if real == source => {
            let reason = "the output folder is the source; choose another folder";
            Err(Error::invalid_argument(reason).context(output.display().to_string()))
        }
        _ => Ok(()),
    }
}

/// The output folder or file: `-o X.gguf` is a file, `-o X` its folder. Deletes the unfinished file of a killed run.
///
/// # Errors
/// As [`folder`]'s, for a folder; `io`.
pub fn destination(output: &Path, source: &Path, format: Option<Format>) -> Result<Destination> {
    if format != Some(Format::Gguf) {
        let sinks = folder(output, source)?;
        return Ok(Destination { sinks, file: None, path: output.to_owned() });
    }
    let (folder, file) = place(output);
    let sinks = FsSinkDir::at(&folder);
    sinks.remove_unfinished_of(&file)?;
    let path = folder.join(&file);
    Ok(Destination { sinks, file: Some(file), path })
}

fn place(output: &Path) -> (PathBuf, String) {
    let named = output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    match (named, output.file_name()) {
        (true, Some(file)) => {
            let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
            (folder.unwrap_or(Path::new(".")).to_owned(), file.to_string_lossy().into_owned())
        }
        _ => (output.to_owned(), "model.gguf".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_a_file_or_a_folder() {
        for (output, folder, file) in [
            ("model.gguf", ".", "model.gguf"),
            ("out/tale.GGUF", "out", "tale.GGUF"),
            ("out", "out", "model.gguf"),
            ("out/v1.5", "out/v1.5", "model.gguf"),
        ] {
            assert_eq!(place(Path::new(output)), (PathBuf::from(folder), file.to_owned()), "{output}");
        }
    }
}
