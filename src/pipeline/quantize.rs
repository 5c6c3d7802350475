//! Quantizes a checkpoint into a folder or a file, one module at a time.
//!
//! The source is read by ranges and the result is streamed. Memory holds a few chunks of
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
use job::{JobSettings, QuantizeJob};
use serde_json::{Map, Value, json};
#[cfg(feature = "train")]
use {crate::quant::Scales, std::collections::BTreeMap};

/// The result of quantizing.
#[derive(Clone, Debug)]
pub struct QuantizeOutcome {
    /// The written record, for a folder.
    pub record: QuantizationRecord,
    /// The quantized modules with their weight errors.
    pub modules: Vec<(String, Scheme, WeightError)>,
    /// Bytes of all tensors in the output.
    pub bytes: u64,
    /// Losses of modules by the layout, and copies in another type.
    pub losses: Vec<(String, String)>,
    /// Notes found while writing, one sentence each: losses, and the tokenizer of a GGUF file. Earlier notes
    /// are in [`QuantizationPlan::notes`].
    pub notes: Vec<String>,
    /// The planned peak memory of calibration; `None` without calibration.
    pub planned_memory: Option<CalibrationMemory>,
}

/// Events of quantizing, each before its work.
pub enum QuantizeEvent<'a> {
    /// An earlier run is resumed.
    Resuming {
        /// Finished blocks.
        blocks: usize,
        /// Blocks of the model.
        of: usize,
    },
    /// The allocation for a target.
    Allocation(&'a Allocation),
    /// The plan of modules and memory.
    Plan(&'a QuantizationPlan),
}

impl QuantizeEvent<'_> {
    /// The event in sentences. A plan that follows the options has none.
    pub fn notes(&self) -> Vec<String> {
        match self {
            Self::Resuming { blocks, of } => vec![format!("resuming: {blocks} of {of} blocks are done")],
            Self::Allocation(Allocation { bytes, budget_bytes, divergence, .. }) => vec![format!(
                "{bytes} of {budget_bytes} bytes for the modules; with rounding to nearest, predictions diverge by \
                 about {divergence:.4} nats per token"
            )],
            Self::Plan(plan) => plan.notes(),
        }
    }
}

/// Resources of the host.
#[derive(Clone, Copy)]
pub struct QuantizeContext<'a> {
    /// The output folder.
    pub target: &'a dyn SinkDir,
    /// Receives events.
    pub tell: &'a dyn Fn(QuantizeEvent<'_>),
    /// Progress and cancellation.
    pub control: &'a dyn Control,
}

/// Quantizes `checkpoint`, with samples for a calibrated method. Allocates bits for a target, plans the memory, resumes
/// an earlier run, and writes.
///
/// # Errors
/// `invalid_argument` for invalid options, and for missing or unused samples; `out_of_memory` for a run that needs more
/// than the options allow; `non_finite` if activations are NaN; errors of reading, quantizing and writing, with the
/// module's name; `cancelled`. The folder is then unfinished, and is refused when it is opened.
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

/// Writes trained weights with learned `scales` by module name, or rounded to nearest without them.
/// `parameters` go into the record.
///
/// # Errors
/// As [`quantize_checkpoint`].
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

/// As [`quantize_checkpoint`], for a method without samples and a host without events.
///
/// # Errors
/// As [`quantize_checkpoint`].
pub async fn quantize(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    target: &dyn SinkDir,
    control: &dyn Control,
) -> Result<QuantizeOutcome> {
    let context = QuantizeContext { target, tell: &|_| (), control };
    quantize_checkpoint::<CpuBackend>(checkpoint, options, None, &context).await
}

/// As [`quantize_checkpoint`], for a calibrated method and a host without events.
///
/// # Errors
/// As [`quantize_checkpoint`].
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

/// The key of everything that determines a run's result, except the device.
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

/// Quantizes a checkpoint that [`dequantize_checkpoint`](super::dequantize::dequantize_checkpoint) wrote, on its former
/// grid. Unchanged weights get their former codes.
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
            "{}: expected dequantized weights but found the original's; quantize them instead",
            checkpoint.name()
        )));
    }
    let parameters = open_parameters(dir, &record, PARAMETERS_FILE).await?;
    let modules = plan_restore(checkpoint, &record)?;
    let all_ternary = modules.iter().all(|plan| plan.scheme == Some(Scheme::ternary(Granularity::Tensor)));
    let settings = JobSettings {
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
    QuantizeJob::about(checkpoint, &modules, encoder, settings).run(&place, control).await
}
