//! `lowbit convert --format gguf`: any checkpoint as one GGUF file. Floor 9.

use super::Args;
use crate::cli::terminal::Terminal;
use crate::cli::{Outcome, open};
use crate::error::{Error, Result};
use crate::format::gguf::TensorType;
use crate::format::sink::FsSinkDir;
use crate::model::Checkpoint;
use crate::pipeline::gguf::{GgufOptions, GgufReport, plan, write};
use crate::task::block_on;
use clap::ValueEnum;
use serde_json::json;
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

/// Where the file goes: the folder and its name. `-o X.gguf` names it, `-o X` the folder. What a killed run left on the way
/// to it goes.
///
/// # Errors
/// `invalid_argument` where there is a file of that name already.
pub fn new_file(output: &Path) -> Result<(PathBuf, String)> {
    let (folder, file) = place(output);
    let path = folder.join(&file);
    if path.exists() {
        return Err(Error::invalid_argument("the file is there already; choose another name")
            .context(path.display().to_string()));
    }
    FsSinkDir::at(&folder).remove_unfinished_of(&file)?;
    Ok((folder, file))
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

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<Outcome> {
    let (folder, file) = new_file(&args.output)?;
    let linear = args.gguf_type.unwrap_or(TypeArg::F16).into();
    let tables = if linear == TensorType::F32 { linear } else { TensorType::F16 };
    let report = block_on(async {
        let source = open::checkpoint(&args.checkpoint, terminal).await?;
        convert(&source, GgufOptions { linear, tables }, (&folder, &file), args.strict, terminal).await
    })?;
    show(&report, &folder.join(&file), terminal)
}

/// Writes the file, and says before what it cannot hold.
pub async fn convert(
    source: &Checkpoint,
    options: GgufOptions,
    (folder, file): (&Path, &str),
    strict: bool,
    terminal: &Terminal,
) -> Result<GgufReport> {
    let modules = plan(source, options, terminal).await?;
    for module in &modules {
        let Some(reason) = &module.reason else { continue };
        if strict {
            return Err(Error::unsupported_format(format!("module `{}`: {reason}", module.module)));
        }
        terminal.note(format_args!("{}: {} ({reason})", module.module, module.tensor_type));
    }
    let report = write(source, modules, &FsSinkDir::at(folder), file, terminal).await?;
    for remark in report.remarks() {
        terminal.note(remark);
    }
    Ok(report)
}

fn show(report: &GgufReport, path: &Path, terminal: &Terminal) -> Result<Outcome> {
    let largest = report.modules.iter().max_by(|a, b| a.max_abs_difference.total_cmp(&b.max_abs_difference));
    let largest = largest.filter(|module| module.max_abs_difference > 0.0);
    let document = json!({
        "output": path,
        "format": "gguf",
        "largest_weight_difference": largest.map_or(0.0, |module| module.max_abs_difference),
        "largest_weight_difference_in": largest.map(|module| &module.plan.module),
        "tokenizer_problem": report.tokenizer_problem.as_ref().map(ToString::to_string),
        "notes": report.notes,
        "modules": report.modules.iter().map(|module| json!({
            "name": module.plan.module,
            "to": module.plan.tensor_type.name(),
            "loss": module.plan.reason,
            "max_abs_difference": module.max_abs_difference,
        })).collect::<Vec<_>>(),
    });
    let exactness = match largest {
        None => "every weight is what it was".to_owned(),
        Some(module) => {
            format!(
                "the largest weight difference is {:.3e}, in {}",
                module.max_abs_difference, module.plan.module
            )
        }
    };
    let text = format!("{} matrices to gguf; {exactness}\n{}\n", report.modules.len(), path.display());
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
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
