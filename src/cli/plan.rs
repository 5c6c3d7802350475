//! `lowbit plan`: what a model needs at each precision, before any of it is loaded. Floor 9.

use super::terminal::Terminal;
use super::{Outcome, open};
use crate::error::Result;
use crate::plan::{Plan, PlanOptions, parse_bytes, parse_params};
use crate::task::block_on;
use std::fmt::Write;
use std::path::PathBuf;

/// Show what a model needs at each precision
#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint: a folder, or a GGUF file
    #[arg(required_unless_present = "params", conflicts_with = "params")]
    checkpoint: Option<PathBuf>,

    /// Plan for a parameter count instead, as 500M or 1.5B
    #[arg(long, value_name = "COUNT")]
    params: Option<String>,

    /// Memory that may be used, as 8GB or 512MiB
    #[arg(long, value_name = "BYTES")]
    memory: Option<String>,

    /// Tokens that the KV cache has room for [default: what the model was made for, at most 2048]
    #[arg(long, value_name = "N")]
    context: Option<u64>,
}

pub fn run(args: &Args, terminal: &Terminal) -> Result<Outcome> {
    let mut options = PlanOptions::default();
    options.memory = args.memory.as_deref().map(parse_bytes).transpose()?;
    options.context = args.context.unwrap_or(options.context);
    let plan = match (&args.checkpoint, &args.params) {
        (Some(path), _) => {
            let checkpoint = block_on(open::checkpoint(path, terminal))?;
            let config = checkpoint.config();
            if args.context.is_none() {
                options.context = options.context.min(config.max_position_embeddings as u64);
            }
            Plan::new(config.into(), &options)?
        }
        (None, count) => Plan::for_parameters(parse_params(count.as_deref().unwrap_or_default())?, &options)?,
    };
    terminal.result(&plan, table(&plan))?;
    Ok(Outcome::Done)
}

fn table(plan: &Plan) -> String {
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
            row.precision.as_str(),
            bytes(row.linear_bytes + row.norm_bytes),
            bytes(row.embedding_bytes + row.head_bytes),
            bytes(row.kv_cache_bytes),
            bytes(row.working_bytes),
            bytes(row.total_bytes),
        );
    }
    let recommendation = &plan.recommendation;
    let _ = writeln!(text, "recommended: {}: {}", recommendation.precision.as_str(), recommendation.reason);
    text
}

fn bytes(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}
