//! `lowbit check-gradients`: checks that a model can be trained.

use super::Outcome;
use super::learner::LearnerArgs;
use super::open;
use super::options::OptionArgs;
use super::quantize::append;
use super::terminal::Terminal;
use crate::artifact::metrics::Metric;
use crate::backend::cpu::CpuBackend;
use crate::error::{Error, Result};
use crate::pipeline::gradients::check_gradients;
use crate::request::CheckGradientsRequest;
use crate::task::block_on;
use crate::train::gradients::{GradientReport, SLOPE_ERROR};
use std::path::PathBuf;

/// Check a model's gradients: every tensor has one, a step lowers the loss, directional derivatives fit
#[derive(clap::Args)]
pub struct CheckGradientsArgs {
    #[command(flatten)]
    from: LearnerArgs,

    #[command(flatten)]
    request: OptionArgs<CheckGradientsRequest>,

    /// Append metrics to a file as JSON lines
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
}

pub fn run(args: &CheckGradientsArgs, terminal: &Terminal) -> Result<Outcome> {
    open::check_writable(args.metrics.as_ref(), &[])?;
    let request = &args.request.0;
    let (name, report) = block_on(async {
        let model = args.from.open(terminal).await?;
        let options = request.options(model.config())?;
        let mut corpus = args.from.corpus(&model, options.capacity, &args.from.data)?;
        let origin = model.origin(request.seed);
        let report = check_gradients(CpuBackend::new(), origin, &mut corpus, &options).await;
        let report = report.map_err(|error| error.within(&model.name))?;
        Ok::<_, Error>((model.name, report))
    })?;
    if let Some(path) = &args.metrics {
        let passed = if report.passed { 1.0 } else { 0.0 };
        append(path, &[Metric::new("gradient_flow_test_passed", passed, name)])?;
    }
    terminal.result(&report, describe(&report))?;
    Ok(if report.passed { Outcome::Done } else { Outcome::Rejected })
}

/// Formats the report for people.
pub fn describe(report: &GradientReport) -> String {
    let mut text = format!(
        "{}: {} tensors, {} elements, {} predictions of loss {:.5}, gradients of length {:.5}\n",
        if report.passed { "passed" } else { "failed" },
        report.tensors,
        report.elements,
        report.predictions,
        report.loss,
        report.length
    );
    if let Some(step) = report.step {
        text += &format!("a step at rate {} leads to a loss of {:.5}\n", step.learning_rate, step.loss);
    }
    match &report.slopes {
        Some(slopes) => {
            let worst = slopes.iter().map(|slope| slope.error()).fold(0.0, f64::max);
            text += &format!(
                "along {} directions the loss has the slope of the gradients within {:.1e}; {SLOPE_ERROR} is the most\n",
                slopes.len(),
                worst
            );
        }
        None if report.rounded => text += "no slopes: gradients pass rounding straight through\n",
        None => {}
    }
    report.failures.iter().fold(text, |text, failure| text + failure + "\n")
}
