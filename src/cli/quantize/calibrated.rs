//! `lowbit quantize` by a method that calibrates: reads the samples, opens the device, and says what will be done. Floor 9.

use super::Args;
use crate::backend::any::AnyBackend;
use crate::backend::choice::DeviceRequest;
use crate::cli::device::note_cpu;
use crate::cli::terminal::Terminal;
use crate::error::{Error, Result};
use crate::format::scratch::{KeptScratch, Scratch};
use crate::model::Checkpoint;
use crate::pipeline::budget::{Allocation, Budget};
use crate::pipeline::calibrated::resume::has_state;
use crate::pipeline::{
    Calibration, QuantizeOptions, QuantizeOutcome, QuantizeSurroundings, Told, quantize_checkpoint,
};
use crate::plan::parse_bytes;
use indicatif::DecimalBytes;

/// Quantizes, on the device that was asked for.
pub(super) async fn run(
    args: &Args,
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    around: &QuantizeSurroundings<'_>,
    terminal: &Terminal,
) -> Result<QuantizeOutcome> {
    let samples = args.calibration.samples(checkpoint, args.tokenizer.as_deref(), terminal).await?;
    let scratch = scratch(args).await?;
    // What is planned is the CPU backend's; a GPU's driver alone takes tens of megabytes.
    let device = args.device.request();
    let bound_to_plan = options.memory.is_some() && !device.is_given();
    let device = if bound_to_plan { DeviceRequest::cpu() } else { device };
    let work = async |backend: AnyBackend| {
        let new_backend = || backend.another();
        let calibration =
            Calibration { samples: &samples, new_backend: &new_backend, scratch: scratch.as_ref() };
        quantize_checkpoint(checkpoint, options, Some(calibration), around).await
    };
    let done = device.run(|error| note_cpu(terminal, error), work).await?.result;
    if let Some(path) = &args.resume {
        // Whatever else somebody put there stays, and so does the folder then.
        let _ = std::fs::remove_dir(path);
    }
    Ok(done)
}

/// Says what will be done.
pub(super) fn show(told: Told<'_>, terminal: &Terminal) {
    match told {
        Told::Resuming { blocks, of } => {
            terminal.note(format_args!("going on: {blocks} of {of} blocks are done"));
        }
        Told::Allocation(allocation) => terminal.note(describe(allocation)),
        Told::Plan(plan) => {
            for note in plan.notes() {
                terminal.note(note);
            }
            if let Some(needed) = plan.memory() {
                terminal.note(format_args!(
                    "needs about {} of memory and {} of scratch space",
                    DecimalBytes(needed.peak_bytes),
                    DecimalBytes(needed.scratch_bytes)
                ));
            }
        }
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
    pub(super) fn target(&self) -> Result<Option<Budget>> {
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
