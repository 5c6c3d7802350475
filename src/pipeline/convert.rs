//! Converts between layouts, with the same codes, scales and zero points.
//!
//! Floating point is avoided where possible. A layout may hold a matrix in finer
//! groups, which is exact. Scales of another type are rounded, and a module that does not fit becomes floating point;
//! both are reported before the work starts. A GGUF file also holds floating-point matrices, rounded to its types.

mod plan;

pub use plan::{Conversion, ConversionPlan, plan_conversion};

use super::float_type::config_changes;
use super::output::{self, Form, OutputMatrix, OutputPlace, OutputPlan, Tensor, distance, gguf};
use crate::artifact::records::{
    ModuleRecord, QUANTIZATION_RECORD, QuantizationRecord, SourceRecord, read_quantization_record,
};
use crate::error::{Context, Error, Result};
use crate::format::gguf::TensorType;
use crate::format::shard_index::TensorStore;
use crate::format::sink::SinkDir;
use crate::layout::TargetLayout;
use crate::layout::gguf::can_quantize;
use crate::model::Checkpoint;
use crate::model::names;
use crate::quant::{Coding, QuantizedTensor, regroup};
use crate::task::Control;
use plan::as_symmetric;
use serde_json::{Map, json};
use std::collections::{BTreeMap, BTreeSet};

/// Options of a conversion.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvertOptions {
    /// The layout to write.
    pub layout: TargetLayout,
    /// Fail if anything would be lost.
    pub strict: bool,
    /// GGUF only: the type of the blocks' floating-point matrices; `None`: `F16`. Embedding and head become `F16`, or
    /// `F32` if the blocks do.
    pub gguf_type: Option<TensorType>,
    /// GGUF only: the file name; `None`: `model.gguf`.
    pub file: Option<String>,
}

impl ConvertOptions {
    /// Default options.
    pub fn new(layout: TargetLayout) -> Self {
        Self { layout, strict: false, gguf_type: None, file: None }
    }

    /// Refuses invalid combinations.
    ///
    /// # Errors
    /// `invalid_argument`.
    pub fn check(&self) -> Result<()> {
        if self.layout != TargetLayout::Gguf && (self.gguf_type.is_some() || self.file.is_some()) {
            return Err(Error::invalid_argument(format!(
                "a GGUF type and a file name require the layout gguf, but the layout is {}",
                self.layout.name()
            )));
        }
        match self.gguf_type {
            Some(other) if !can_quantize(other) => {
                Err(Error::invalid_argument(format!("weights cannot be rounded to {other}")))
            }
            _ => Ok(()),
        }
    }
}

/// The result of a conversion.
#[derive(Debug)]
pub struct ConvertOutcome {
    /// The written record, for a folder.
    pub record: QuantizationRecord,
    /// Bytes of all tensors in the output.
    pub bytes: u64,
    /// The largest weight difference for each module of the plan.
    pub differences: Vec<f32>,
    /// Notes found while writing, about the tokenizer of a GGUF file. Earlier notes are in
    /// [`ConversionPlan::notes`].
    pub notes: Vec<String>,
    /// The reason why a GGUF file has no tokenizer for llama.cpp.
    pub tokenizer_problem: Option<Error>,
}

impl ConvertOutcome {
    /// The largest weight difference, and its module's index in the plan. `None` if all weights are unchanged.
    pub fn largest_difference(&self) -> Option<(f32, usize)> {
        let moved = self.differences.iter().copied().enumerate().filter(|(_, difference)| *difference > 0.0);
        moved.fold(None, |most: Option<(f32, usize)>, (index, difference)| match most {
            Some((largest, _)) if largest >= difference => most,
            _ => Some((difference, index)),
        })
    }
}

/// Writes `checkpoint` according to its plan.
///
/// # Errors
/// Errors of reading and writing, with the module's name; `cancelled`. The folder is then unfinished, and is refused
/// when it is opened.
pub async fn convert(
    checkpoint: &Checkpoint,
    plan: &ConversionPlan,
    target: &dyn SinkDir,
    control: &dyn Control,
) -> Result<ConvertOutcome> {
    let place = OutputPlace { target, file: plan.options.file.as_deref() };
    place.refuse_foreign(plan.options.layout).await?;
    let mut job = ConvertJob { checkpoint, plan };
    let (output, mut written) = output::write(&mut job, checkpoint, &place, control).await?;
    let before = read_quantization_record(checkpoint.dir().as_ref()).await?;
    let usual = usual_coding(&plan.modules);
    let record = QuantizationRecord {
        schema: "lowbit.quantization/1".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        method: before.as_ref().map_or_else(|| "unknown".to_owned(), |record| record.method.clone()),
        scheme: usual.map_or_else(|| "f16".to_owned(), |scheme| scheme.to_string()),
        format: plan.options.layout.name().to_owned(),
        activations: plan.activations,
        bits_per_weight: written.bits_per_weight(),
        parameters: Map::from_iter([("converted_from".to_owned(), json!(checkpoint.layout().name()))]),
        source: SourceRecord::of(checkpoint).await?,
        modules: plan.modules.iter().map(module_record).collect(),
    };
    let differences =
        plan.modules.iter().map(|module| written.differences.remove(&module.module).unwrap_or(0.0)).collect();
    let (notes, tokenizer_problem) = (output.tokenizer.remarks.clone(), output.tokenizer.problem.clone());
    output.finish(&record).await?;
    Ok(ConvertOutcome { record, bytes: written.bytes, differences, notes, tokenizer_problem })
}

fn module_record(module: &Conversion) -> ModuleRecord {
    ModuleRecord {
        name: module.module.clone(),
        scheme: module.to.map_or_else(|| "f16".to_owned(), |format| format.coding.to_string()),
        method: None,
        reason: module.loss.clone(),
        calibration: None,
    }
}

fn usual_coding(modules: &[Conversion]) -> Option<Coding> {
    let mut counts: BTreeMap<String, (usize, Coding)> = BTreeMap::new();
    for format in modules.iter().filter_map(|module| module.to) {
        counts.entry(format.coding.to_string()).or_insert((0, format.coding)).0 += 1;
    }
    counts.into_values().max_by_key(|(count, _)| *count).map(|(_, coding)| coding)
}

async fn read(checkpoint: &Checkpoint, store: &TensorStore, module: &str) -> Result<QuantizedTensor> {
    let packed = checkpoint.layout().read_packed(store, module).await;
    packed.context_with(|| format!("{}: module `{module}`", checkpoint.name()))
}

struct ConvertJob<'a> {
    checkpoint: &'a Checkpoint,
    plan: &'a ConversionPlan,
}

impl ConvertJob<'_> {
    fn quantization_config(&self) -> Result<serde_json::Value> {
        let packed: Vec<_> =
            self.plan.modules.iter().filter_map(|module| Some((module.module.clone(), module.to?))).collect();
        let is_packed = |name: &String| packed.iter().any(|(module, _)| module == name);
        let mut ignore = self.checkpoint.linear_modules();
        ignore.retain(|module| module != names::EMBEDDING && !is_packed(module));
        // Tools that walk all modules also see a tied head.
        let head = names::HEAD.to_owned();
        if !is_packed(&head) && !ignore.contains(&head) {
            ignore.push(head);
        }
        self.plan.options.layout.quantization_config(&packed, &ignore, self.plan.activations)
    }

    /// The tensors of the plan's modules.
    fn of_modules(&self) -> Result<Vec<Tensor>> {
        let mut tensors = Vec::new();
        for (index, conversion) in self.plan.modules.iter().enumerate() {
            let Conversion { module, source, from, to, form, rows, cols, .. } = conversion;
            let shape = (*rows, *cols);
            match (from, to) {
                (_, Some(format)) => {
                    tensors.extend(Tensor::pieces(self.plan.options.layout, module, shape, *format, index));
                }
                (Some(_), None) => tensors.push(Tensor::rows(module, shape, *form, index)),
                (None, None) => {
                    tensors.push(gguf::copied(self.checkpoint, module, source, self.plan.wanted(module))?.0);
                }
            }
        }
        Ok(tensors)
    }
}

impl output::Job for ConvertJob<'_> {
    fn plan(&mut self, _wide: &BTreeSet<String>) -> Result<OutputPlan> {
        let (plan, store) = (self.plan, self.checkpoint.store());
        let mut tensors = self.of_modules()?;
        if plan.options.layout == TargetLayout::Gguf {
            tensors.extend(gguf::vectors(self.checkpoint)?);
        } else {
            for name in plan.copied_tensors(self.checkpoint) {
                let mut info = store.require(name)?.clone();
                info.dtype = plan.one_type.filter(|_| info.dtype.is_float()).unwrap_or(info.dtype);
                let form = Form::Plain(info.dtype);
                tensors.push(Tensor::copied(name, info, form, name, false));
            }
        }
        let config = self.checkpoint.config_json();
        Ok(OutputPlan {
            layout: Some(plan.options.layout),
            phase: "convert",
            written_last: QUANTIZATION_RECORD,
            changes: plan.one_type.map_or_else(Vec::new, |dtype| config_changes(config, dtype)),
            quantization_config: Some(self.quantization_config()?),
            tensors,
        })
    }

    fn module(&self, index: usize) -> &str {
        &self.plan.modules[index].module
    }

    async fn make(&mut self, index: usize, _control: &dyn Control) -> Result<OutputMatrix> {
        let conversion = &self.plan.modules[index];
        let tensor = read(self.checkpoint, self.checkpoint.store(), &conversion.source).await?;
        let Some(format) = conversion.to else {
            return Ok(OutputMatrix { tensor, loss: None, difference: 0.0 });
        };
        let converted = || {
            let symmetric = if self.plan.symmetric { as_symmetric(&tensor)? } else { None };
            let wanted = symmetric.unwrap_or_else(|| tensor.clone());
            let (converted, _) =
                self.plan.adapt(&conversion.module, wanted).map_err(Error::unsupported_format)?;
            match converted.affine() {
                Some(affine) if affine.scales().scale_type() != format.scale_type => {
                    Ok(regroup::round_scales(affine, format.scale_type)?.into())
                }
                _ => Ok::<_, Error>(converted),
            }
        };
        let converted = converted().context_with(|| format!("module `{}`", conversion.module))?;
        Ok(OutputMatrix { difference: distance(&tensor, &converted), tensor: converted, loss: None })
    }
}
