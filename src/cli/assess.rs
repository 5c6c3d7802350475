//! `lowbit assess`: measures a model's accuracy at each level of graded questions, and finds the level at the edge of
//! its ability.

use super::Outcome;
use super::open::{self, TokenizerArgs};
use super::options::OptionArgs;
use super::quantize::append;
use super::terminal::Terminal;
use crate::artifact::metrics::Metric;
use crate::backend::cpu::CpuBackend;
use crate::error::{Context, Error, Result};
use crate::pipeline::assess::{assess, by_level};
use crate::request::AssessRequest;
use crate::task::block_on;
use crate::train::assess::{Assessment, Verdict};
use crate::train::corpus::questions::graded_rows;
use std::path::PathBuf;

/// Ask a model graded questions; report its accuracy at each level, and the level at the edge of its ability
#[derive(clap::Args)]
pub struct AssessArgs {
    /// A checkpoint: a folder, or a GGUF file
    checkpoint: PathBuf,

    /// Questions as JSON lines with a `prompt` and an `answer`: one file for each level, easiest first, or a `level`
    /// number in each line
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    levels: Vec<PathBuf>,

    #[command(flatten)]
    request: OptionArgs<AssessRequest>,

    #[command(flatten)]
    tokenizer: TokenizerArgs,

    /// Append figures to a file as JSON lines
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

pub fn run(args: &AssessArgs, terminal: &Terminal) -> Result<Outcome> {
    open::check_writable(args.metrics.as_ref(), &[])?;
    let (name, found) = block_on(async {
        let checkpoint = open::checkpoint(&args.checkpoint, terminal).await?;
        let codec = open::tokenizer(&checkpoint, &args.tokenizer).await?;
        let stops = &checkpoint.config().eos_token_ids;
        let mut files = Vec::new();
        for path in &args.levels {
            let rows = open::text(path).and_then(|text| graded_rows(&text, &codec, stops));
            files.push(rows.context_with(|| path.display().to_string())?);
        }
        let new_backend = || Ok(CpuBackend::new());
        let noise = args.request.0.noise_questions;
        let found = assess(&new_backend, &checkpoint, &by_level(files), noise, terminal).await?;
        Ok::<_, Error>((checkpoint.name().to_owned(), found))
    })?;
    if let Some(path) = &args.metrics {
        append(path, &metrics(&found, &name))?;
    }
    terminal.result(&found, describe(&found))?;
    Ok(Outcome::Done)
}

fn metrics(found: &Assessment, subject: &str) -> Vec<Metric> {
    let mut metrics = vec![
        Metric::new("edge_of_chaos_assessment_completed", 1.0, subject),
        Metric::new("edge_of_chaos_optimal_level", found.chosen as f64, subject),
    ];
    let noise = found.optimal().and_then(|level| level.gradient_noise);
    metrics.extend(noise.map(|noise| Metric::new("gradient_variance_optimal", noise, subject)));
    metrics
}

/// The assessment as text.
fn describe(found: &Assessment) -> String {
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let mut text = String::from("level  right            from    to      gradient noise\n");
    for level in &found.levels {
        let accuracy = level.accuracy;
        let right = format!("{:>6} of {}", percent(accuracy.share), accuracy.questions);
        let noise = level.gradient_noise.map_or(String::new(), |noise| format!("{noise:.2}"));
        let (low, high) = (percent(accuracy.low), percent(accuracy.high));
        let line = format!("{:>5}  {right:<15}  {low:<6}  {high:<6}  {noise}", level.level);
        text += line.trim_end();
        text += "\n";
    }
    let why = match found.verdict {
        Verdict::AtTheEdge => "is the highest with 70% to 80%",
        Verdict::Between => "is the nearest to 75%; none has 70% to 80%",
        Verdict::TooEasy => "is the nearest to 75%; all are too easy",
        Verdict::TooHard => "is the nearest to 75%; all are too hard",
    };
    text += &format!("level {} {why}\n", found.chosen);
    for (easier, harder) in &found.inversions {
        text += &format!("not monotonic: level {harder} is easier than level {easier}\n");
    }
    if let Some(reason) = &found.no_gradient_noise {
        text += &format!("no gradients: {reason}\n");
    }
    text
}
