//! The output job of quantizing.

use super::{QuantizationPlan, QuantizeOutcome};
use crate::artifact::records::{ModuleRecord, QUANTIZATION_RECORD, QuantizationRecord, SourceRecord};
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::format::gguf::TensorType;
use crate::format::safetensors::TensorInfo;
use crate::layout::{PackedFormat, TargetLayout};
use crate::model::Checkpoint;
use crate::model::names::{self, Linear};
use crate::pipeline::encode::{Encoder, stored_scale_type};
use crate::pipeline::float_type::{config_changes, one_type, scale_type};
use crate::pipeline::output::{
    self, Form, Origin, OutputMatrix, OutputPlace, OutputPlan, Tensor, f16_holds, gguf,
};
use crate::pipeline::select::{ModulePlan, copied_tensors};
use crate::quant::stats::WeightError;
use crate::quant::{Activations, ScaleType};
use crate::task::Control;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The job's settings for records, and changes besides quantizing.
pub(super) struct JobSettings {
    pub method: String,
    pub scheme: String,
    pub activations: Activations,
    pub layout: TargetLayout,
    pub parameters: Map<String, Value>,
    /// Whether the head is untied.
    pub unties: bool,
    /// Whether losses by the layout are errors.
    pub strict: bool,
}

pub(super) struct QuantizeJob<'a> {
    checkpoint: &'a Checkpoint,
    plans: &'a [ModulePlan],
    encoder: Encoder<'a>,
    settings: JobSettings,
    /// Matrices that a GGUF file rounds, with their losses.
    copies: Vec<(String, String)>,
    /// The layout's common type of unpacked tensors, if it has one.
    one_type: Option<DType>,
    errors: BTreeMap<String, WeightError>,
}

/// The common name, `mixed` if names differ, `None` without names.
fn one_or_mixed(mut names: impl Iterator<Item = String>) -> Option<String> {
    let first = names.next()?;
    Some(if names.all(|name| name == first) { first } else { "mixed".to_owned() })
}

impl<'a> QuantizeJob<'a> {
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        plan: &'a QuantizationPlan,
        encoder: Encoder<'a>,
        parameters: Map<String, Value>,
    ) -> Result<Self> {
        let options = plan.options();
        let (mut method, mut scheme) = (options.method.name().to_owned(), options.scheme.to_string());
        if options.recipe.is_some() {
            // The embedding's scheme is separate.
            let linear = || plan.modules().iter().filter(|plan| plan.module != names::EMBEDDING);
            let found = linear().filter_map(|plan| Some(plan.method?.name().to_owned()));
            method = one_or_mixed(found).unwrap_or(method);
            scheme =
                one_or_mixed(linear().filter_map(|plan| Some(plan.scheme?.to_string()))).unwrap_or(scheme);
        }
        let settings = JobSettings {
            method,
            scheme,
            activations: options.activations,
            layout: plan.layout(),
            parameters,
            unties: options.quantize_head && checkpoint.config().tie_word_embeddings,
            strict: options.strict,
        };
        let copies = plan.copies(checkpoint)?;
        Ok(Self { copies, ..Self::about(checkpoint, plan.modules(), encoder, settings) })
    }

    pub(super) fn about(
        checkpoint: &'a Checkpoint,
        plans: &'a [ModulePlan],
        encoder: Encoder<'a>,
        settings: JobSettings,
    ) -> Self {
        let (copies, errors) = (Vec::new(), BTreeMap::new());
        Self { checkpoint, plans, encoder, settings, copies, one_type: None, errors }
    }

    /// Sets another method for the record.
    #[cfg(feature = "train")]
    pub(super) fn by(mut self, method: &str) -> Self {
        self.settings.method = method.to_owned();
        self
    }

    fn module_record(&self, plan: &ModulePlan) -> ModuleRecord {
        ModuleRecord {
            name: plan.module.clone(),
            scheme: plan.scheme.map_or_else(|| "f16".to_owned(), |scheme| scheme.to_string()),
            method: plan.method,
            reason: plan.reason.clone(),
            calibration: self.encoder.calibration(&plan.module).cloned(),
        }
    }

    pub(super) async fn run(
        mut self,
        place: &OutputPlace<'_>,
        control: &dyn Control,
    ) -> Result<QuantizeOutcome> {
        let checkpoint = self.checkpoint;
        let (output, written) = output::write(&mut self, checkpoint, place, control).await?;
        let modules = self.plans.iter().map(|plan| self.module_record(plan)).collect();
        let JobSettings { method, scheme, activations, layout, parameters, .. } = self.settings;
        let record = QuantizationRecord {
            schema: "lowbit.quantization/1".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            method,
            scheme,
            format: layout.name().to_owned(),
            activations,
            bits_per_weight: written.bits_per_weight(),
            parameters,
            source: SourceRecord::of(checkpoint).await?,
            modules,
        };
        let losses = [self.copies, written.losses].concat();
        let mut notes: Vec<String> =
            losses.iter().map(|(module, loss)| format!("{module}: {loss}")).collect();
        notes.extend_from_slice(&output.tokenizer.remarks);
        output.finish(&record).await?;
        let mut errors = self.errors;
        let modules = self
            .plans
            .iter()
            .filter_map(|plan| Some((plan.module.clone(), plan.scheme?, errors.remove(&plan.module)?)));
        let modules = modules.collect();
        Ok(QuantizeOutcome { record, modules, bytes: written.bytes, losses, notes, planned_memory: None })
    }

    /// A module's format in the output.
    fn format(&self, plan: &ModulePlan) -> Result<Option<PackedFormat>> {
        let Some(scheme) = plan.scheme else { return Ok(None) };
        let found = self.encoder.format(&plan.module, scheme, self.one_type.map(scale_type))?;
        Ok(Some(self.settings.layout.own_format(found)))
    }

    fn quantization_config(&self) -> Result<Value> {
        let mut quantized = Vec::new();
        for plan in self.plans {
            if let Some(format) = self.format(plan)? {
                quantized.push((plan.module.clone(), format));
            }
        }
        // All other linear modules: kept modules have no plan when restoring, and tools that walk all modules also see
        // a tied head.
        let blocks = (0..self.checkpoint.config().num_hidden_layers)
            .flat_map(|layer| Linear::ALL.map(|linear| linear.module(layer)));
        let mut ignore: Vec<String> = blocks.chain([names::HEAD.to_owned()]).collect();
        ignore.extend(
            self.plans
                .iter()
                .filter(|plan| plan.module == names::EMBEDDING && plan.scheme.is_none())
                .map(|plan| plan.module.clone()),
        );
        ignore.retain(|ignored| quantized.iter().all(|(module, _)| module != ignored));
        self.settings.layout.quantization_config(&quantized, &ignore, self.settings.activations)
    }

    /// The tensors of the module that `plans[index]` quantizes.
    fn pieces(&self, index: usize) -> Result<Option<Vec<Tensor>>> {
        let plan = &self.plans[index];
        let Some(format) = self.format(plan)? else { return Ok(None) };
        Ok(Some(Tensor::pieces(self.settings.layout, &plan.module, (plan.rows, plan.cols), format, index)))
    }

    /// The tensors of a folder.
    fn folder_tensors(&self, wide: &BTreeSet<String>) -> Result<Vec<Tensor>> {
        let mut tensors = Vec::new();
        for index in 0..self.plans.len() {
            tensors.extend(self.pieces(index)?.into_iter().flatten());
        }
        let table = format!("{}.weight", self.checkpoint.embedding_module());
        let head = format!("{}.weight", names::HEAD);
        let store = self.checkpoint.store();
        for name in copied_tensors(self.checkpoint, self.plans, self.settings.unties) {
            let info = store.require(name)?;
            let is_table = name == table || name == head;
            let dtype = match self.one_type {
                Some(one_type) if info.dtype.is_float() => one_type,
                None if is_table && info.dtype == DType::F32 && !wide.contains(name) => DType::F16,
                _ => info.dtype,
            };
            // A tied embedding is stored under the name that every tool expects.
            let output = if name == table { format!("{}.weight", names::EMBEDDING) } else { name.to_owned() };
            let tentative = dtype == DType::F16 && info.dtype != dtype;
            let info = TensorInfo { dtype, shape: info.shape.clone() };
            tensors.push(Tensor::copied(&output, info, Form::Plain(dtype), name, tentative));
        }
        Ok(tensors)
    }

    /// The tensors of a GGUF file.
    fn file_tensors(&self) -> Result<Vec<Tensor>> {
        let mut tensors = Vec::new();
        for (module, source) in gguf::matrices(self.checkpoint, self.settings.unties) {
            let index = self.plans.iter().position(|plan| plan.module == module);
            if let Some(pieces) = index.map(|index| self.pieces(index)).transpose()?.flatten() {
                tensors.extend(pieces);
                continue;
            }
            tensors.push(gguf::copied(self.checkpoint, &module, &source, TensorType::F16)?.0);
        }
        tensors.extend(gguf::vectors(self.checkpoint)?);
        Ok(tensors)
    }
}

impl output::Job for QuantizeJob<'_> {
    fn plan(&mut self, wide: &BTreeSet<String>) -> Result<OutputPlan> {
        let layout = self.settings.layout;
        let copied = copied_tensors(self.checkpoint, self.plans, false);
        let mut scales: Vec<ScaleType> = Vec::new();
        if let Encoder::Restore { record, parameters } = &self.encoder {
            for module in &record.modules {
                scales.push(stored_scale_type(parameters, &module.scales)?);
            }
        }
        self.one_type = one_type(layout, self.checkpoint.store(), &copied, &scales, wide)?;
        let mut changes =
            if self.settings.unties { vec![("tie_word_embeddings", Value::Bool(false))] } else { vec![] };
        let config = self.checkpoint.config_json();
        changes.extend(self.one_type.into_iter().flat_map(|dtype| config_changes(config, dtype)));
        let is_file = layout == TargetLayout::Gguf;
        Ok(OutputPlan {
            layout: Some(layout),
            phase: "quantize",
            written_last: QUANTIZATION_RECORD,
            changes,
            quantization_config: Some(self.quantization_config()?),
            tensors: if is_file { self.file_tensors()? } else { self.folder_tensors(wide)? },
        })
    }

    fn module(&self, index: usize) -> &str {
        &self.plans[index].module
    }

    async fn make(&mut self, index: usize, control: &dyn Control) -> Result<OutputMatrix> {
        let plan = &self.plans[index];
        let made = async {
            let scheme = plan.scheme.expect("only quantized modules are made");
            let scale_type = self.one_type.map(scale_type);
            let (packed, error) =
                self.encoder.encode(self.checkpoint, plan, (scheme, scale_type), control).await?;
            Ok::<_, Error>((self.settings.layout.own_scales(&packed)?, packed, error))
        };
        let place = || format!("{}: tensor `{}.weight`", self.checkpoint.name(), plan.source);
        let (own, packed, error) = made.await.context_with(place)?;
        self.errors.insert(plan.module.clone(), error);
        let Some((tensor, loss)) = own else {
            return Ok(OutputMatrix { tensor: packed, loss: None, difference: 0.0 });
        };
        if let (true, Some(loss)) = (self.settings.strict, &loss) {
            return Err(Error::unsupported_format(format!("module `{}`: {loss}", plan.module)));
        }
        Ok(OutputMatrix { difference: output::distance(&packed, &tensor), tensor, loss })
    }

    async fn changed_vector(&self, tensor: &str) -> Result<Option<Vec<f32>>> {
        self.encoder.changed_vector(tensor).await
    }
}

/// Bytes of the output's tensors outside the quantized modules of blocks.
pub(in crate::pipeline) async fn copied_bytes(
    checkpoint: &Checkpoint,
    plan: &QuantizationPlan,
) -> Result<u64> {
    use output::Job as _;
    let encoder = Encoder::Direct { sparsity_threshold: None };
    let mut job = QuantizeJob::new(checkpoint, plan, encoder, Map::new())?;
    let mut wide = BTreeSet::new();
    for tensor in job.plan(&wide)?.tensors {
        if let Origin::Copy { tensor, tentative: true } = tensor.origin
            && !f16_holds(checkpoint.store(), &tensor).await?
        {
            wide.insert(tensor);
        }
    }
    let is_other = |tensor: &&Tensor| match tensor.origin {
        Origin::Pieces(index, _) | Origin::Rows(index) => !is_in_block(&plan.modules()[index].module),
        Origin::Copy { .. } => true,
    };
    Ok(job.plan(&wide)?.tensors.iter().filter(is_other).map(Tensor::bytes).sum())
}

/// Whether a module is a linear layer of a block.
pub(in crate::pipeline) fn is_in_block(module: &str) -> bool {
    module != names::EMBEDDING && module != names::HEAD
}
