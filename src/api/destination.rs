//! Where an output goes on a disk: a folder, or a file in one.

use crate::artifact::output::refuse_foreign;
use crate::error::{Error, Result};
use crate::format::links::{canonical, followed};
use crate::format::sink::{FsSinkDir, SinkDir};
use crate::format::source::FsDir;
use crate::request::Format;
use crate::task::block_on;
use std::path::{Path, PathBuf};

/// Where an output goes.
pub struct Destination {
    /// The folder to write.
    pub sinks: FsSinkDir,
    /// The name of the file in it, where it is one.
    pub file: Option<String>,
    /// What is written, folder or file.
    pub path: PathBuf,
}

/// The folder to write, which is made with its first file where there is none.
///
/// # Errors
/// `invalid_argument` for a file, for the folder of the `source`, which the first file written would destroy, and for a
/// checkpoint of someone else.
pub fn folder(output: &Path, source: &Path) -> Result<FsSinkDir> {
    if followed(output).exists() {
        FsDir::open(output)?;
    }
    refuse_source(output, source)?;
    let sinks = FsSinkDir::at(output);
    block_on(refuse_foreign(sinks.existing().as_ref()))?;
    Ok(sinks)
}

/// Refuses to write over what is read. What is not on a disk is nowhere.
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

/// The folder of an output, or the file: `-o X.gguf` names it, `-o X` its folder. What a killed run left on the way to the
/// file goes.
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
