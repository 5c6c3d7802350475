//! Finds the codes of a model's blocks with the help of calibration samples, block by block.
//!
//! The packed matrices wait in scratch: they are found in the order of the data flow and written in the order of the
//! file. Floor 8.

mod awq;
pub mod memory;
pub mod resume;

use super::encode::{encode_directly, weight_error};
use super::kept;
use super::quantize::QuantizationPlan;
use super::select::{Method, ModulePlan, QuantizeOptions};
use crate::artifact::records::CalibrationRecord;
use crate::backend::Backend;
use crate::calibrate::awq::Shared;
use crate::calibrate::rows::quantize_rows;
use crate::calibrate::{InputStatistics, Samples, Start, Statistics, Walk, WalkOptions, walk};
use crate::error::{Context, Error, Result};
use crate::format::scratch::Scratch;
use crate::layout::PackedFormat;
use crate::model::Checkpoint;
use crate::model::block::LinearInput;
use crate::model::names::Linear;
use crate::model::weights::{DenseRows, WeightSource};
use crate::quant::gptq::{Prepared, ReferenceInputs};
use crate::quant::{GptqQuantizer, PackedTensor, RtnQuantizer, ScaleType, WeightError};
use crate::task::{self, Control};
use resume::Journal;
use std::cell::Cell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// What a calibrated method needs beside its options.
pub struct Calibration<'a, B> {
    /// What the model is run on.
    pub samples: &'a Samples,
    /// Makes what runs it. A target asks for three, one after the other.
    pub new_backend: &'a dyn Fn() -> Result<B>,
    /// Where hidden states and finished matrices wait.
    pub scratch: &'a dyn Scratch,
}

/// The matrices that wait in scratch.
pub(super) struct Found<'a> {
    scratch: &'a dyn Scratch,
    modules: BTreeMap<String, FoundModule>,
    /// Norms and biases that changed.
    vectors: BTreeSet<String>,
}

/// What is known of a matrix that waits.
struct FoundModule {
    format: PackedFormat,
    /// How its codes were found, where it was calibrated.
    record: Option<CalibrationRecord>,
    /// The error of its weights, without scales that they were multiplied by before they were packed.
    error: WeightError,
}

impl<'a> Found<'a> {
    fn new(scratch: &'a dyn Scratch) -> Self {
        Self { scratch, modules: BTreeMap::new(), vectors: BTreeSet::new() }
    }

    /// Keeps a matrix.
    async fn keep(
        &mut self,
        module: &str,
        tensor: &PackedTensor,
        record: Option<CalibrationRecord>,
        error: WeightError,
    ) -> Result<()> {
        kept::save(self.scratch, module, tensor).await?;
        let format = PackedFormat::from(tensor);
        self.modules.insert(module.to_owned(), FoundModule { format, record, error });
        Ok(())
    }

    /// Deletes everything of the run from its scratch.
    pub(super) async fn clear(scratch: &dyn Scratch, modules: &[String], vectors: &[String]) -> Result<()> {
        // Without its notes the rest is of no use, so they go first.
        resume::forget(scratch).await?;
        for blob in walk::SLOTS {
            scratch.delete(blob).await?;
        }
        for module in modules {
            scratch.delete(&kept::blob(module)).await?;
        }
        for tensor in vectors {
            scratch.delete(&kept::vector_blob(tensor)).await?;
        }
        Ok(())
    }

    /// The modules and the vectors in scratch.
    pub(super) fn names(&self) -> (Vec<String>, Vec<String>) {
        (self.modules.keys().cloned().collect(), self.vectors.iter().cloned().collect())
    }

    /// What the module will be, where it is in a block.
    pub(super) fn format(&self, module: &str) -> Option<PackedFormat> {
        self.modules.get(module).map(|found| found.format)
    }

    /// How its codes were found, where it was calibrated.
    pub(super) fn record(&self, module: &str) -> Option<&CalibrationRecord> {
        self.modules.get(module)?.record.as_ref()
    }

    /// The error of its weights, where it is in a block.
    pub(super) fn weight_error(&self, module: &str) -> Option<&WeightError> {
        self.modules.get(module).map(|found| &found.error)
    }

    /// Whether a norm or a bias is not as it was.
    pub(super) fn has_vector(&self, tensor: &str) -> bool {
        self.vectors.contains(tensor)
    }

    /// What it became.
    pub(super) async fn vector(&self, tensor: &str) -> Result<Vec<f32>> {
        kept::load_vector(self.scratch, tensor).await
    }

    /// The matrix.
    pub(super) async fn load(&self, module: &str) -> Result<PackedTensor> {
        kept::load(self.scratch, module).await
    }
}

/// Quantizes the modules of all blocks, from where a run with the same `key` ended in the same scratch. Those that a recipe gives to a method without calibration are among them: what
/// comes after them is calibrated for what they become.
pub(super) async fn find<'a, B: Backend>(
    checkpoint: &Checkpoint,
    plan: &QuantizationPlan,
    scale_type: ScaleType,
    calibration: Calibration<'a, B>,
    key: Option<String>,
    control: &dyn Control,
) -> Result<Found<'a>> {
    let Calibration { samples, new_backend, scratch } = calibration;
    let (backend, plans, options) = (new_backend()?, plan.modules(), plan.options());
    let layers = checkpoint.config().num_hidden_layers;
    let mut found = Found::new(scratch);
    let mut start = Start::Embed;
    let mut journal = None;
    if let Some(key) = key {
        let key = format!("{key}, on {}", backend.capabilities().device);
        let (opened, before) = Journal::open(scratch, key).await?;
        journal = Some(opened);
        start = Start::EmbedKept;
        if let Some((blocks, done)) = before {
            found = done;
            start = Start::GoOn(blocks);
        }
    }
    let first = if let Start::GoOn(blocks) = start { blocks } else { 0 };
    if first == layers {
        return Ok(found);
    }
    let walk_options = WalkOptions {
        start,
        statistics: Statistics {
            drift: follows_original(options),
            mean_absolute: plans.iter().any(|plan| plan.method == Some(Method::Awq)),
        },
        holds_blocks: plan.memory().is_some_and(|memory| memory.holds_block),
        phase: "calibrate",
    };
    let mut walk = Walk::begin(checkpoint, samples, backend, scratch, walk_options, control).await?;
    if let (Some(journal), Start::EmbedKept) = (&mut journal, start) {
        journal.write(Some(0), &found).await?;
    }
    for layer in first..layers {
        walk.enter_block(layer).await?;
        for _ in LinearInput::ALL {
            let InputStatistics { input: site, hessian, drift, mean_absolute } =
                walk.next_input(control).await?;
            let is_last = layer + 1 == layers && site == LinearInput::Down;
            if site_method(plans, layer, site) == Some(Method::Awq) {
                // AWQ compares with what the block makes of the same inputs.
                drop(drift);
                let row_memory = Cell::default();
                let shared = Shared { checkpoint, scale_type, row_memory: &row_memory, control };
                let inputs = (site, &hessian, mean_absolute.unwrap_or_default());
                awq::quantize_site(&mut walk, shared, plans, layer, inputs, is_last, &mut found).await?;
                continue;
            }
            let mut replaced = Vec::new();
            let weights = |linear: &Linear| {
                let (rows, cols) = linear.shape(checkpoint.config());
                (rows * cols) as u64
            };
            let (mut done, total) = (0, site.linears().iter().map(weights).sum::<u64>());
            // Modules that share an input share its factors, unless their groups differ.
            let mut prepared: BTreeMap<usize, Option<Prepared<'_>>> = BTreeMap::new();
            for &linear in site.linears() {
                let module = linear.module(layer);
                let before = done;
                done += weights(&linear);
                let report = |rows: usize| {
                    let cols = linear.shape(checkpoint.config()).1;
                    walk.report_quantizing(before + (rows * cols) as u64, total, &module, control);
                };
                report(0);
                let Some(plan) = plans.iter().find(|plan| plan.module == module) else { continue };
                let Some(scheme) = plan.scheme else { continue };
                let in_module = || format!("{}: module `{module}`", checkpoint.name());
                let (tensor, record, error) = if plan.method.is_some_and(Method::is_calibrated) {
                    let group_size = scheme.granularity().group_size(plan.cols);
                    let prepared = match prepared.entry(group_size) {
                        Entry::Occupied(entry) => entry.into_mut(),
                        Entry::Vacant(entry) => {
                            let steps =
                                Prepared::in_steps(&hessian, drift.as_ref(), group_size, options.gptq);
                            entry.insert(steps.run(control).await?)
                        }
                    };
                    let found = gptq(checkpoint, plan, prepared.as_ref(), scale_type, control, report).await;
                    let (tensor, record) = found.context_with(in_module)?;
                    let error = weight_error(checkpoint, plan, &tensor, control).await;
                    (tensor, Some(record), error.context_with(in_module)?)
                } else {
                    let threshold = options.sparsity_threshold;
                    let found =
                        encode_directly(checkpoint, plan, scheme, threshold, scale_type, control).await;
                    let (tensor, error) = found.context_with(in_module)?;
                    (tensor, None, error)
                };
                found.keep(&module, &tensor, record, error).await?;
                replaced.push((linear, tensor));
            }
            // Before the next weights come.
            drop((prepared, hessian));
            drop(drift);
            if !replaced.is_empty() && !is_last {
                let replaced: Vec<_> =
                    replaced.iter().map(|(linear, tensor)| (*linear, WeightSource::Packed(tensor))).collect();
                walk.replace(&replaced).await?;
            }
        }
        if layer + 1 < layers {
            walk.leave_block(control).await?;
        }
        if let Some(journal) = &mut journal {
            journal.write(Some(layer + 1), &found).await?;
        }
    }
    Ok(found)
}

/// Whether the samples have to go through the original model beside the quantized one.
fn follows_original(options: &QuantizeOptions) -> bool {
    options.asks_for(Method::Gptq) && options.gptq.reference_inputs == ReferenceInputs::Original
}

/// The method by which layers that read a site are calibrated: none, or one.
fn site_method(plans: &[ModulePlan], layer: usize, site: LinearInput) -> Option<Method> {
    let modules = site.linears().iter().map(|linear| linear.module(layer));
    let mut methods = modules.filter_map(|module| plans.iter().find(|plan| plan.module == module)?.method);
    methods.find(|method| method.is_calibrated())
}

/// Rounds one module by GPTQ and to nearest, and takes what leaves the smaller error in its output.
async fn gptq(
    checkpoint: &Checkpoint,
    plan: &ModulePlan,
    prepared: Option<&Prepared<'_>>,
    scale_type: ScaleType,
    control: &dyn Control,
    report: impl Fn(usize),
) -> Result<(PackedTensor, CalibrationRecord)> {
    let Some(scheme) = plan.scheme else {
        return Err(Error::invalid_argument("expected a module that is to be quantized"));
    };
    let mut rows = DenseRows::new(checkpoint, &plan.source)?;
    let Some(prepared) = prepared else {
        let mut quantizer = RtnQuantizer::new(scheme, plan.rows, plan.cols, scale_type)?;
        while let Some((_, values)) = rows.next().await? {
            quantizer.push_rows(values)?;
            task::checkpoint(control).await?;
        }
        let record = CalibrationRecord {
            method: Method::Rtn.name().to_owned(),
            output_error: None,
            rtn_output_error: None,
            damping: None,
            ratio: None,
            clipped: None,
            reason: Some(
                "the Hessian of its inputs is not positive definite, however much it is damped".to_owned(),
            ),
        };
        return Ok((quantizer.finish()?, record));
    };
    let mut quantizer = GptqQuantizer::new(prepared, scheme, plan.rows, plan.cols, scale_type)?;
    quantize_rows(&mut rows, &mut quantizer, control, report).await?;
    let outcome = quantizer.finish()?;
    let share = |error: f64| if outcome.signal > 0.0 { error / outcome.signal } else { 0.0 };
    let (gptq_error, rtn_error) = (share(outcome.gptq_error), share(outcome.rtn_error));
    let (method, tensor, reason) = match outcome.gptq {
        Some(tensor) if gptq_error <= rtn_error => (Method::Gptq, tensor, None),
        Some(_) => {
            (Method::Rtn, outcome.rtn, Some(format!("gptq would leave more output error: {gptq_error:.3e}")))
        }
        None => (Method::Rtn, outcome.rtn, Some("gptq met numbers that are not finite".to_owned())),
    };
    let record = CalibrationRecord {
        method: method.name().to_owned(),
        output_error: Some(if method == Method::Gptq { gptq_error } else { rtn_error }),
        rtn_output_error: Some(rtn_error),
        damping: Some(prepared.damping()),
        ratio: None,
        clipped: None,
        reason,
    };
    Ok((tensor, record))
}
