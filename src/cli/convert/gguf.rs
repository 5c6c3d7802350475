//! `--format gguf`: the file that is written, and its types. Floor 9.

use crate::cli::open;
use crate::error::Result;
use crate::format::gguf::TensorType;
use crate::format::sink::FsSinkDir;
use crate::format::source::FsDir;
use clap::ValueEnum;
use std::path::{Path, PathBuf};

/// `--gguf-type`
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(non_camel_case_types, reason = "the names of the format")]
pub enum TypeArg {
    #[value(name = "f32")]
    F32,
    #[value(name = "f16")]
    F16,
    #[value(name = "bf16")]
    BF16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q4_1")]
    Q4_1,
    /// Rows of 256 columns
    #[value(name = "q4_k")]
    Q4_K,
    /// Ternary; rows of 256 columns
    #[value(name = "tq2_0")]
    TQ2_0,
}

impl From<TypeArg> for TensorType {
    fn from(arg: TypeArg) -> Self {
        match arg {
            TypeArg::F32 => Self::F32,
            TypeArg::F16 => Self::F16,
            TypeArg::BF16 => Self::BF16,
            TypeArg::Q8_0 => Self::Q8_0,
            TypeArg::Q4_0 => Self::Q4_0,
            TypeArg::Q4_1 => Self::Q4_1,
            TypeArg::Q4_K => Self::Q4_K,
            TypeArg::TQ2_0 => Self::TQ2_0,
        }
    }
}

/// Where an output goes.
pub struct Destination {
    /// The folder to write.
    pub sinks: FsSinkDir,
    /// The same folder to read from.
    pub existing: FsDir,
    /// The name of the file in it, where it is one.
    pub file: Option<String>,
    /// What is written, folder or file.
    pub path: PathBuf,
}

/// The folder of an output, or the file: `-o X.gguf` names it, `-o X` its folder. What a killed run left on the way to the
/// file goes.
///
/// # Errors
/// As [`open::output`]'s, for a folder; `io`.
pub fn destination(output: &Path, source: &Path, is_file: bool) -> Result<Destination> {
    if !is_file {
        let (sinks, existing) = open::output(output, source)?;
        return Ok(Destination { sinks, existing, file: None, path: output.to_owned() });
    }
    let (folder, file) = place(output);
    let sinks = FsSinkDir::at(&folder);
    sinks.remove_unfinished_of(&file)?;
    let (path, existing) = (folder.join(&file), FsDir::at(&folder));
    Ok(Destination { sinks, existing, file: Some(file), path })
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

    #[test]
    fn types_are_spelled_as_the_format_spells_them_in_small_letters() {
        for arg in TypeArg::value_variants() {
            let name = arg.to_possible_value().unwrap().get_name().to_owned();
            assert_eq!(name, TensorType::from(*arg).name().to_lowercase());
        }
    }
}
