//! `lowbit plan`: memory at each precision, without loading the model.

use super::options::OptionArgs;
use super::terminal::Terminal;
use super::{Outcome, open};
use crate::error::Result;
use crate::plan::{MemoryPlan, parse_params};
use crate::request::PlanRequest;
use crate::task::block_on;
use std::fmt::Write;
use std::path::PathBuf;

/// Show a model's memory at each precision
#[derive(clap::Args)]
pub struct PlanArgs {
    /// A checkpoint: a folder, or a GGUF file
    #[arg(required_unless_present = "params", conflicts_with = "params")]
    checkpoint: Option<PathBuf>,

    /// Plan for a parameter count instead, such as 500M or 1.5B
    #[arg(long, value_name = "COUNT")]
    params: Option<String>,

    #[command(flatten)]
    request: OptionArgs<PlanRequest>,
}

pub fn run(args: &PlanArgs, terminal: &Terminal) -> Result<Outcome> {
    let request = &args.request.0;
    let plan = match (&args.checkpoint, &args.params) {
        (Some(path), _) => {
            let checkpoint = block_on(open::checkpoint(path, terminal))?;
            let config = checkpoint.config();
            MemoryPlan::new(config.into(), &request.options(Some(config)))?
        }
        (None, count) => MemoryPlan::for_parameters(
            parse_params(count.as_deref().unwrap_or_default())?,
            &request.options(None),
        )?,
    };
    terminal.result(&plan, table(&plan))?;
    Ok(Outcome::Done)
}

fn table(plan: &MemoryPlan) -> String {
    let mut text = String::new();
    let estimated = if plan.estimated { " (typical dimensions)" } else { "" };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} parameters{estimated}, context {}", plan.parameters, plan.context);
    let _ = writeln!(
        text,
        "{:10} {:>12} {:>12} {:>12} {:>12} {:>12} {:>6}",
        "precision", "weights", "embedding", "KV cache", "working", "total", "fits"
    );
    for row in &plan.precisions {
        let fits = row.fits.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let _ = writeln!(
            text,
            "{:10} {:>12} {:>12} {:>12} {:>12} {:>12} {fits:>6}",
            row.precision.name(),
            bytes(row.linear_bytes + row.norm_bytes),
            bytes(row.embedding_bytes + row.head_bytes),
            bytes(row.kv_cache_bytes),
            bytes(row.working_bytes),
            bytes(row.total_bytes),
        );
    }
    let recommendation = &plan.recommendation;
    let _ = writeln!(text, "recommended: {}: {}", recommendation.precision.name(), recommendation.reason);
    text
}

fn bytes(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}
