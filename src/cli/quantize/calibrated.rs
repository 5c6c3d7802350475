//! `lowbit quantize` by a method that calibrates: reads the samples, says what will be needed, and for a target chooses a
//! scheme for each module first. Floor 9.

use super::Args;
use crate::backend::any::AnyBackend;
use crate::backend::choice::DeviceRequest;
use crate::calibrate::Samples;
use crate::cli::device::note_cpu;
use crate::cli::terminal::Terminal;
use crate::cli::{open, recipe};
use crate::error::{Error, Result};
use crate::format::scratch::{KeptScratch, Scratch};
use crate::model::Checkpoint;
use crate::pipeline::budget::{Allocation, Budget, choose};
use crate::pipeline::calibrated::memory::{CalibrationMemory, plan_memory};
use crate::pipeline::calibrated::resume::{blocks_done, has_state};
use crate::pipeline::select::{QuantizeOptions, plan_modules};
use crate::pipeline::{Calibration, QuantizeOutcome, quantize_calibrated};
use crate::plan::parse_bytes;
use indicatif::DecimalBytes;
use std::path::Path;

/// Quantizes into `folder`, and tells what memory was planned.
pub(super) async fn run(
    args: &Args,
    checkpoint: &Checkpoint,
    options: QuantizeOptions,
    folder: &Path,
    terminal: &Terminal,
) -> Result<(QuantizeOutcome, CalibrationMemory)> {
    let samples = args.calibration.samples(checkpoint, args.tokenizer.as_deref(), terminal).await?;
    open::output(folder, &args.checkpoint)?;
    let scratch = scratch(args).await?;
    let scratch = scratch.as_ref();
    if let Some(blocks) = blocks_done(scratch).await?.filter(|_| options.resume) {
        let all = checkpoint.config().num_hidden_layers;
        terminal.note(format_args!("going on: {blocks} of {all} blocks are done"));
    }
    let job = Job { args, checkpoint, samples: &samples, scratch, folder, terminal };
    // What is planned is the CPU backend's; a GPU's driver alone takes tens of megabytes.
    let device = args.device.request();
    let bound_to_plan = options.memory.is_some() && !device.is_given();
    let device = if bound_to_plan { DeviceRequest::cpu() } else { device };
    let work = async |backend| job.run(options.clone(), backend).await;
    let done = device.run(|error| note_cpu(terminal, error), work).await?.result;
    if let Some(path) = &args.resume {
        // Whatever else somebody put there stays, and so does the folder then.
        let _ = std::fs::remove_dir(path);
    }
    Ok(done)
}

/// A calibrated run, whatever device it is on.
struct Job<'a> {
    args: &'a Args,
    checkpoint: &'a Checkpoint,
    samples: &'a Samples,
    scratch: &'a dyn Scratch,
    folder: &'a Path,
    terminal: &'a Terminal,
}

impl Job<'_> {
    async fn run(
        &self,
        mut options: QuantizeOptions,
        backend: AnyBackend,
    ) -> Result<(QuantizeOutcome, CalibrationMemory)> {
        let &Self { args, checkpoint, samples, scratch, folder, terminal } = self;
        let calibration = || Ok::<_, Error>(Calibration { samples, backend: backend.another()?, scratch });
        if let Some(target) = args.target()? {
            let plans = plan_modules(checkpoint, &options)?;
            plan_memory(checkpoint, &plans, &options, samples)?.check_within(options.memory)?;
            let allocation = choose(checkpoint, &plans, &options, calibration, target, terminal).await?;
            terminal.note(describe(&allocation));
            options.recipe = Some(allocation.recipe.clone());
            options.allocation = Some(allocation);
        }
        let plans = plan_modules(checkpoint, &options)?;
        for note in recipe::notes(&plans) {
            terminal.note(note);
        }
        let needed = plan_memory(checkpoint, &plans, &options, samples)?;
        terminal.note(format_args!(
            "needs about {} of memory and {} of scratch space",
            DecimalBytes(needed.peak_bytes),
            DecimalBytes(needed.scratch_bytes)
        ));
        let (sinks, existing) = open::output(folder, &args.checkpoint)?;
        let outcome =
            quantize_calibrated(checkpoint, &options, calibration()?, &sinks, Some(&existing), terminal)
                .await?;
        Ok((outcome, needed))
    }
}

/// Where hidden states and finished matrices wait.
async fn scratch(args: &Args) -> Result<Box<dyn Scratch>> {
    let Some(path) = &args.resume else { return Ok(Box::new(args.calibration.scratch()?)) };
    let scratch = KeptScratch::open(path)?;
    if !scratch.names().is_empty() && !has_state(&scratch).await? {
        return Err(Error::invalid_argument(
            "expected an empty folder, or one in which a run was resumable, but found other files in it",
        )
        .context(path.display().to_string()));
    }
    Ok(Box::new(scratch))
}

impl Args {
    /// What the result may take.
    fn target(&self) -> Result<Option<Budget>> {
        Ok(match (&self.target_bytes, self.target_bpw) {
            (Some(bytes), _) => Some(Budget::Bytes(parse_bytes(bytes)?)),
            (None, Some(bits)) => Some(Budget::BitsPerWeight(bits)),
            (None, None) => None,
        })
    }

    /// Refuses a target without samples to choose by.
    pub(super) fn check_target(&self) -> Result<()> {
        if self.target()?.is_some() && !self.calibration.is_given() {
            return Err(Error::invalid_argument(
                "--target-bytes and --target-bpw measure on --calibration texts what each module loses; give some, and \
                 --method gptq or awq",
            ));
        }
        Ok(())
    }
}

fn describe(allocation: &Allocation) -> String {
    format!(
        "{} of {} bytes for the modules; rounded to nearest the predictions diverge by about {:.4} nats a token",
        allocation.bytes, allocation.budget_bytes, allocation.divergence
    )
}
