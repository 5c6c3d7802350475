//! `lowbit convert`: a checkpoint in another layout. Floor 9.

pub mod gguf;

use super::Outcome;
use super::format::OutputFormatArg;
use super::open;
use super::terminal::Terminal;
use crate::error::{Error, Result};
use crate::layout::TargetLayout;
use crate::pipeline::{ConvertOptions, convert, plan_conversion};
use crate::task::block_on;
use gguf::destination;
use serde_json::json;
use std::path::PathBuf;

/// Spell a checkpoint as other tools do, with the same codes, scales and zero points where it is quantized
#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint: a folder, quantized except for gguf, or a GGUF file
    checkpoint: PathBuf,

    /// The folder to write, or the file X.gguf
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// The layout to write
    #[arg(long, value_enum, value_name = "LAYOUT")]
    format: OutputFormatArg,

    /// For gguf: what floating-point matrices of the blocks become [default: f16]
    #[arg(long, value_enum, value_name = "TYPE")]
    gguf_type: Option<gguf::TypeArg>,

    /// Fail where anything would be lost
    #[arg(long)]
    strict: bool,
}

pub fn run(args: &Args, terminal: &Terminal) -> Result<Outcome> {
    let layout: TargetLayout = args.format.into();
    let is_file = layout == TargetLayout::Gguf;
    if args.gguf_type.is_some() && !is_file {
        return Err(Error::invalid_argument("--gguf-type belongs to --format gguf"));
    }
    let to = destination(&args.output, &args.checkpoint, is_file)?;
    let gguf_type = args.gguf_type.map(Into::into);
    let options = ConvertOptions { layout, strict: args.strict, gguf_type, file: to.file.clone() };
    let (plan, outcome) = block_on(async {
        let source = open::checkpoint(&args.checkpoint, terminal).await?;
        let plan = plan_conversion(&source, &options, terminal).await?;
        for note in plan.notes() {
            terminal.note(note);
        }
        let outcome = convert(&source, &plan, &to.sinks, Some(&to.existing), terminal).await?;
        for note in &outcome.notes {
            terminal.note(note);
        }
        Ok::<_, Error>((plan, outcome))
    })?;
    let notes = [plan.remarks(), &outcome.notes].concat();
    let largest = outcome.largest_difference();
    let largest = largest.map(|(difference, index)| (difference, plan.modules[index].module.as_str()));
    let document = json!({
        "output": to.path,
        "format": outcome.record.format,
        "scheme": outcome.record.scheme,
        "bits_per_weight": outcome.record.bits_per_weight,
        "largest_weight_difference": largest.map_or(0.0, |(difference, _)| difference),
        "largest_weight_difference_in": largest.map(|(_, module)| module),
        "tokenizer_problem": outcome.tokenizer_problem.as_ref().map(ToString::to_string),
        "notes": notes,
        "modules": plan.modules.iter().zip(&outcome.differences).map(|(module, difference)| json!({
            "name": module.module,
            "from": module.from.map(|scheme| scheme.to_string()),
            "to": module.becomes(),
            "loss": module.loss,
            "max_abs_difference": difference,
        })).collect::<Vec<_>>(),
    });
    let exactness = match largest {
        None => "every weight is what it was".to_owned(),
        Some((difference, module)) => {
            let lossy = plan.losses().count();
            format!(
                "the largest weight difference is {difference:.3e}, in {module}; {lossy} modules lost something"
            )
        }
    };
    let (count, format) = (plan.modules.len(), &outcome.record.format);
    let text = format!("{count} modules to {format}; {exactness}\n{}\n", to.path.display());
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}
