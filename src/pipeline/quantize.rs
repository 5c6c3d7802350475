//! Quantizes a checkpoint into a folder or a file, one module at a time.
//!
//! The source is read by ranges and the result written as it comes: at no time is more in memory than a few chunks of
//! rows and one packed matrix.

mod job;
mod plan;

pub(super) use job::{copied_bytes, is_in_block};
pub use plan::QuantizationPlan;

use super::budget::Allocation;
use super::calibrated::memory::CalibrationMemory;
use super::calibrated::resume::{blocks_done, refuse_other_files};
use super::calibrated::{self, Calibration, calibrate_modules};
use super::encode::{Encoder, SCALE_TYPE, open_parameters};
use super::output::OutputPlace;
use super::select::{QuantizeOptions, plan_restore};
#[cfg(feature = "train")]
use crate::artifact::records::TRAINED;
use crate::artifact::records::{
    PARAMETERS_FILE, QuantizationRecord, SourceRecord, read_dequantization_record,
};
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::digest::sha256_hex;
use crate::error::{Error, Result};
use crate::format::sink::SinkDir;
use crate::layout::TargetLayout;
use crate::model::Checkpoint;
use crate::quant::stats::WeightError;
use crate::quant::{Granularity, Scheme};
use crate::task::Control;
use job::{About, QuantizeJob};
use serde_json::{Map, Value, json};
#[cfg(feature = "train")]
use {crate::quant::Scales, std::collections::BTreeMap};

/// What quantizing gave.
#[derive(Clone, Debug)]
pub struct QuantizeOutcome {
    /// As it was written, where a folder was.
    pub record: QuantizationRecord,
    /// Every module that was quantized, with its weight error.
    pub modules: Vec<(String, Scheme, WeightError)>,
    /// Bytes of all tensors in the output.
    pub bytes: u64,
    /// Modules that the layout holds less exactly than they were quantized, or copies in another type, and how.
    pub losses: Vec<(String, String)>,
    /// What came out while writing, a sentence each: the losses, and what became of the tokenizer in a GGUF file. What was
    /// known before is in [`QuantizationPlan::notes`].
    pub notes: Vec<String>,
    /// What calibrating was to take at its peak; `None` where nothing was calibrated.
    pub planned_memory: Option<CalibrationMemory>,
}

/// What a host hears while its checkpoint is quantized, before the work that it is about.
pub enum QuantizeEvent<'a> {
    /// An earlier run is gone on with.
    Resuming {
        /// Blocks that are done.
        blocks: usize,
        /// Blocks of the model.
        of: usize,
    },
    /// A target was given, and this is what came of it.
    Allocation(&'a Allocation),
    /// What becomes of each module, and what memory that takes.
    Plan(&'a QuantizationPlan),
}

impl QuantizeEvent<'_> {
    /// The same in words, a sentence each; none where all is as the options say.
    pub fn notes(&self) -> Vec<String> {
        match self {
            Self::Resuming { blocks, of } => vec![format!("going on: {blocks} of {of} blocks are done")],
            Self::Allocation(Allocation { bytes, budget_bytes, divergence, .. }) => vec![format!(
                "{bytes} of {budget_bytes} bytes for the modules; rounded to nearest the predictions diverge by about \
                 {divergence:.4} nats a token"
            )],
            Self::Plan(plan) => plan.notes(),
        }
    }
}

/// What the work needs from outside.
#[derive(Clone, Copy)]
pub struct QuantizeContext<'a> {
    /// The folder to write into.
    pub target: &'a dyn SinkDir,
    /// Hears what happens.
    pub tell: &'a dyn Fn(QuantizeEvent<'_>),
    /// Progress and cancellation.
    pub control: &'a dyn Control,
}

/// Quantizes `checkpoint`, with samples where the method learns from them: chooses the precision of each module where a
/// target was given, plans the memory, goes on from where an earlier run ended, and writes.
///
/// # Errors
/// `invalid_argument` for options that make no sense and for samples that are missing or that nothing asks for;
/// `out_of_memory` for a run that would take more than the options allow; `non_finite` where activations are no numbers;
/// whatever reading, quantizing and writing meet, with the module named; `cancelled`. A folder is then unfinished, and says
/// so when it is opened.
pub async fn quantize_checkpoint<B: Backend>(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    calibration: Option<Calibration<'_, B>>,
    context: &QuantizeContext<'_>,
) -> Result<QuantizeOutcome> {
    let QuantizeContext { tell, control, .. } = *context;
    let place = context.place(options);
    let plan = QuantizationPlan::new(checkpoint, options)?;
    place.refuse_foreign(plan.layout()).await?;
    let (calibrated, method) = (options.calibrated_method(), options.method);
    let calibration = match (calibrated, calibration) {
        (Some(method), None) => {
            let message = format!("method {} needs calibration samples", method.name());
            return Err(Error::invalid_argument(message));
        }
        (None, Some(_)) => {
            let message = format!("method {} takes no calibration samples", method.name());
            return Err(Error::invalid_argument(message));
        }
        (None, None) => {
            tell(QuantizeEvent::Plan(&plan));
            let encoder = Encoder::Direct { sparsity_threshold: options.sparsity_threshold };
            let parameters = plan.parameters();
            return QuantizeJob::new(checkpoint, &plan, encoder, parameters)?.run(&place, control).await;
        }
        (Some(_), Some(calibration)) => calibration,
    };
    checkpoint.store().hash_as_read();
    let scratch = calibration.scratch;
    if options.resume {
        refuse_other_files(scratch).await?;
        if let Some(blocks) = blocks_done(scratch).await? {
            tell(QuantizeEvent::Resuming { blocks, of: checkpoint.config().num_hidden_layers });
        }
    }
    let plan = plan.for_calibration(checkpoint, &calibration, context).await?;
    tell(QuantizeEvent::Plan(&plan));
    let parameters = plan.calibrated_parameters(calibration.samples);
    let key = if options.resume { Some(run_key(checkpoint, &plan, &parameters).await?) } else { None };
    let modules = calibrate_modules(checkpoint, &plan, SCALE_TYPE, calibration, key, control).await?;
    let slots = modules.slots();
    let job = QuantizeJob::new(checkpoint, &plan, Encoder::Calibrated(modules), parameters)?;
    let outcome = job.run(&place, control).await?;
    calibrated::clear(scratch, slots).await?;
    Ok(QuantizeOutcome { planned_memory: plan.memory(), ..outcome })
}

impl<'a> QuantizeContext<'a> {
    fn place<'p>(&self, options: &'p QuantizeOptions) -> OutputPlace<'p>
    where
        'a: 'p,
    {
        OutputPlace { target: self.target, file: options.file.as_deref() }
    }
}

/// Writes weights that were trained to be quantized: on learned `scales` by their modules' names, and to nearest where there are none.
/// `parameters` go into the record.
///
/// # Errors
/// As [`quantize_checkpoint`]'s.
#[cfg(feature = "train")]
pub(super) async fn write_trained(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    scales: BTreeMap<String, Scales>,
    parameters: Map<String, Value>,
    place: &OutputPlace<'_>,
    control: &dyn Control,
) -> Result<QuantizeOutcome> {
    let plan = QuantizationPlan::new(checkpoint, options)?;
    place.refuse_foreign(plan.layout()).await?;
    let method = ("method".to_owned(), json!(TRAINED));
    let parameters = plan.parameters().into_iter().chain([method]).chain(parameters).collect();
    let job = QuantizeJob::new(checkpoint, &plan, Encoder::Trained { scales }, parameters)?;
    job.by(TRAINED).run(place, control).await
}

/// As [`quantize_checkpoint`], for a method that needs no samples and a host that wants to hear nothing.
///
/// # Errors
/// As [`quantize_checkpoint`]'s.
pub async fn quantize(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    target: &dyn SinkDir,
    control: &dyn Control,
) -> Result<QuantizeOutcome> {
    let context = QuantizeContext { target, tell: &|_| (), control };
    quantize_checkpoint::<CpuBackend>(checkpoint, options, None, &context).await
}

/// As [`quantize_checkpoint`], for a method that calibrates and a host that wants to hear nothing.
///
/// # Errors
/// As [`quantize_checkpoint`]'s.
pub async fn quantize_calibrated<B: Backend>(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    calibration: Calibration<'_, B>,
    target: &dyn SinkDir,
    control: &dyn Control,
) -> Result<QuantizeOutcome> {
    let context = QuantizeContext { target, tell: &|_| (), control };
    quantize_checkpoint(checkpoint, options, Some(calibration), &context).await
}

/// What the result of a run depends on, but for the device that it runs on.
async fn run_key(
    checkpoint: &Checkpoint,
    plan: &QuantizationPlan,
    parameters: &Map<String, Value>,
) -> Result<String> {
    let source = SourceRecord::of(checkpoint).await?;
    let run = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "source": source.sha256,
        "layout": plan.layout().name(),
        "parameters": parameters,
    });
    Ok(sha256_hex(run.to_string().as_bytes()))
}

/// Quantizes a checkpoint that [`dequantize_checkpoint`](super::dequantize::dequantize_checkpoint) wrote on the very grid
/// that it was on: unchanged weights get the very codes that they had.
///
/// # Errors
/// `not_found` without the metadata; otherwise as [`quantize_checkpoint`].
pub async fn restore(
    checkpoint: &Checkpoint,
    target: &dyn SinkDir,
    control: &dyn Control,
) -> Result<QuantizeOutcome> {
    let dir = checkpoint.dir().as_ref();
    let record = read_dequantization_record(dir).await?;
    if record.modules.is_empty() {
        return Err(Error::invalid_argument(format!(
            "{}: expected weights that were dequantized but these are the original's; quantize them anew",
            checkpoint.name()
        )));
    }
    let parameters = open_parameters(dir, &record, PARAMETERS_FILE).await?;
    let modules = plan_restore(checkpoint, &record)?;
    let all_ternary = modules.iter().all(|plan| plan.scheme == Some(Scheme::ternary(Granularity::Tensor)));
    let about = About {
        method: record.method.clone(),
        scheme: record.scheme.clone(),
        activations: record.activations,
        layout: if all_ternary { TargetLayout::BitNet } else { TargetLayout::CompressedTensors },
        parameters: Map::from_iter([("from_metadata".to_owned(), Value::Bool(true))]),
        unties: false,
        strict: false,
    };
    let encoder = Encoder::Restore { record: &record, parameters: &parameters };
    let place = OutputPlace { target, file: None };
    QuantizeJob::about(checkpoint, &modules, encoder, about).run(&place, control).await
}
