//! `lowbit convert`: a quantized checkpoint in another layout. Floor 9.

pub mod gguf;

use super::Outcome;
use super::format::OutputFormatArg;
use super::open;
use super::terminal::Terminal;
use crate::error::{Error, Result};
use crate::pipeline::convert::{convert, largest_difference, plan_conversion};
use crate::task::block_on;
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
    let format = match args.format {
        OutputFormatArg::Gguf => return gguf::run(args, terminal),
        OutputFormatArg::Packed(_) if args.gguf_type.is_some() => {
            return Err(Error::invalid_argument("--gguf-type belongs to --format gguf"));
        }
        OutputFormatArg::Packed(format) => format,
    };
    let (record, plan, difference) = block_on(async {
        let source = open::checkpoint(&args.checkpoint, terminal).await?;
        let plan = plan_conversion(&source, format.into(), args.strict, terminal).await?;
        for note in &plan.notes {
            terminal.note(note);
        }
        for module in &plan.modules {
            if let Some(loss) = &module.loss {
                terminal.note(format_args!("{}: {loss}", module.module));
            }
        }
        let (sinks, existing) = open::output(&args.output, &args.checkpoint)?;
        let record = convert(&source, &plan, &sinks, Some(&existing), terminal).await?;
        let converted = open::checkpoint(&args.output, terminal).await?;
        let difference = largest_difference(&source, &converted, terminal).await?;
        Ok::<_, Error>((record, plan, difference))
    })?;
    let lossy = plan.modules.iter().filter(|module| module.loss.is_some()).count();
    let (largest, module) = difference;
    let document = json!({
        "output": args.output,
        "format": record.format,
        "scheme": record.scheme,
        "bits_per_weight": record.bits_per_weight,
        "largest_weight_difference": largest,
        "largest_weight_difference_in": if module.is_empty() { None } else { Some(&module) },
        "notes": plan.notes,
        "modules": plan.modules.iter().map(|module| json!({
            "name": module.module,
            "from": module.from.to_string(),
            "to": module.to.map_or_else(|| "f16".to_owned(), |format| format.scheme.to_string()),
            "loss": module.loss,
        })).collect::<Vec<_>>(),
    });
    let exactness = if module.is_empty() {
        "every weight is what it was".to_owned()
    } else {
        format!("the largest weight difference is {largest:.3e}, in {module}; {lossy} modules lost something")
    };
    let text = format!(
        "{} modules to {}; {exactness}\n{}\n",
        plan.modules.len(),
        record.format,
        args.output.display()
    );
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}
