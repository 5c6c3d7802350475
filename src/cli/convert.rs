//! `lowbit convert`: converts a checkpoint to another layout.

use super::Outcome;
use super::open;
use super::options::OptionArgs;
use super::terminal::Terminal;
use crate::api::destination::destination;
use crate::error::{Error, Result};
use crate::pipeline::convert::ConversionPlan;
use crate::request::ConvertRequest;
use crate::task::block_on;
use serde_json::json;
use std::path::PathBuf;

/// Convert a checkpoint to another tool's format; quantized modules keep their codes, scales and zero points
#[derive(clap::Args)]
pub struct ConvertArgs {
    /// A checkpoint: a folder (quantized, unless the output is gguf), or a GGUF file
    checkpoint: PathBuf,

    /// The folder to write, or the file X.gguf
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    #[command(flatten)]
    request: OptionArgs<ConvertRequest>,
}

pub fn run(args: &ConvertArgs, terminal: &Terminal) -> Result<Outcome> {
    let mut request = args.request.0.clone();
    request.options()?;
    let to = destination(&args.output, &args.checkpoint, request.format)?;
    request.file = to.file.clone();
    let (plan, outcome) = block_on(async {
        let source = open::checkpoint(&args.checkpoint, terminal).await?;
        let tell = |plan: &ConversionPlan| plan.notes().iter().for_each(|note| terminal.note(note));
        let (plan, outcome) = request.run(&source, &to.sinks, tell, terminal).await?;
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
        None => "all weights are unchanged".to_owned(),
        Some((difference, module)) => {
            let lossy = plan.losses().count();
            format!(
                "the largest weight difference is {difference:.3e}, in {module}; {lossy} modules are not exact"
            )
        }
    };
    let (count, format) = (plan.modules.len(), &outcome.record.format);
    let text = format!("{count} modules to {format}; {exactness}\n{}\n", to.path.display());
    terminal.result(&document, text)?;
    Ok(Outcome::Done)
}
