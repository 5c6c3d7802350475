//! `lowbit demo`: quantizes a checkpoint, validates the results, and generates text from two models.

use super::Outcome;
use super::compare;
use super::open::{self, TokenizerArgs};
use super::perplexity::TextArgs;
use super::terminal::Terminal;
use super::validate;
use crate::api::destination;
use crate::artifact::summary::{SUMMARY_FILE, Summary};
use crate::error::{Error, ErrorCode, Result};
use crate::format::sink::{FsSinkDir, write_whole};
use crate::pipeline::auto::variant;
use crate::pipeline::{QuantizeOptions, quantize};
use crate::quant::{Bits, Granularity, Method, Scheme};
use crate::request::{CompareRequest, PerplexityRequest, ValidateRequest};
use crate::task::block_on;
use crate::validate::continuations::Pair;
use crate::validate::report::ValidationReport;
use serde::Serialize;
use std::path::PathBuf;

/// Quantize a checkpoint in several ways, validate the results, and generate text from two models
#[derive(clap::Args)]
pub struct DemoArgs {
    /// A checkpoint: a folder, or a GGUF file
    #[arg(long, value_name = "DIR", default_value = "tests/fixtures/tale-llama")]
    checkpoint: PathBuf,

    /// Held-out text [default: heldout.txt in the checkpoint's folder]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    /// Output folder
    #[arg(short, long, value_name = "DIR", default_value = "target/demo")]
    output: PathBuf,
}

#[derive(Serialize)]
struct DemoReport {
    output: PathBuf,
    variants: Vec<ValidationReport>,
    texts: Vec<Pair>,
}

pub fn run(args: &DemoArgs, terminal: &Terminal) -> Result<Outcome> {
    let document = block_on(demo(args, terminal))?;
    if terminal.is_json() {
        terminal.result(&document, "")?;
    }
    // A rejected variant is not a failure of the demo.
    Ok(Outcome::Done)
}

async fn demo(args: &DemoArgs, terminal: &Terminal) -> Result<DemoReport> {
    let say = |text: String| if terminal.is_json() { Ok(()) } else { terminal.print(&text) };
    let text = args.text.clone().unwrap_or_else(|| args.checkpoint.join("heldout.txt"));
    let checkpoint = open::checkpoint(&args.checkpoint, terminal).await?;
    say(format!(
        "{}: {} parameters, {} bytes\n\n",
        checkpoint.name(),
        checkpoint.config().parameter_count(),
        checkpoint.bytes()
    ))?;
    let variants = [
        ("int8", QuantizeOptions::new(Method::Rtn, Scheme::symmetric(Bits::Eight, Granularity::Channel))),
        ("int4", QuantizeOptions::new(Method::Rtn, Scheme::symmetric(Bits::Four, Granularity::Group(32)))),
        ("ternary", QuantizeOptions::ternary(Granularity::Tensor)),
    ];
    let text = TextArgs { text }.read(&PerplexityRequest::default())?;
    let judged = ValidateRequest { text, ..ValidateRequest::default() };
    let mut reports = Vec::new();
    for (name, options) in variants {
        let folder = args.output.join(name);
        let sinks = destination::folder(&folder, &args.checkpoint)?;
        quantize(&checkpoint, &options, &sinks, terminal).await?;
        let quantized = open::checkpoint(&folder, terminal).await?;
        let report =
            validate::measure(&checkpoint, &quantized, &judged, &TokenizerArgs::default(), terminal).await?;
        validate::write_report(&folder.join("validation_report.json"), &report)?;
        say(format!("{}\n", validate::describe(&report)))?;
        reports.push(report);
    }
    let summary = Summary::new(reports.iter().map(variant).collect());
    let json =
        serde_json::to_vec_pretty(&summary).map_err(|error| Error::new(ErrorCode::Io, error.to_string()))?;
    write_whole(&FsSinkDir::create(&args.output)?, SUMMARY_FILE, &json).await?;

    let request = CompareRequest { prompts: prompts(args)?, max_tokens: 48, ..CompareRequest::default() };
    let int4 = args.output.join("int4");
    let texts =
        compare::pairs(&args.checkpoint, &int4, &request, &TokenizerArgs::default(), terminal).await?;
    say(format!("A: the original, B: INT4\n\n{}", compare::describe(&texts)))?;
    say(format!("The folders, reports and {SUMMARY_FILE} are in {}\n", args.output.display()))?;
    Ok(DemoReport { output: args.output.clone(), variants: reports, texts })
}

/// The checkpoint's own prompts, if it has some.
fn prompts(args: &DemoArgs) -> Result<Vec<String>> {
    let path = args.checkpoint.join("prompts.txt");
    if !path.is_file() {
        return Ok(vec!["Once upon a time".to_owned()]);
    }
    Ok(open::text(&path)?.lines().filter(|line| !line.trim().is_empty()).take(4).map(str::to_owned).collect())
}
