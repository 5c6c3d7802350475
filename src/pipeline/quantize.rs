//! Quantizes a checkpoint into a folder, one module at a time.
//!
//! The source is read by ranges and the result written as it comes: at no time is more in memory than a few chunks of
//! rows and one packed matrix. Floor 8.

use super::calibrated::memory::plan_memory;
use super::calibrated::{self, Calibration, Found};
use super::copy::{Copy, f16_holds};
use super::encode::{Encoder, SCALE_TYPE, open_parameters, stored_scale_type};
use super::float_type::{config_changes, one_type, scale_type};
use super::select::{ModulePlan, QuantizeOptions, copied_tensors, plan_modules, plan_restore};
use crate::artifact::output::OutputFolder;
use crate::artifact::records::{
    ModuleRecord, PARAMETERS_FILE, QUANTIZATION_RECORD, QuantizationRecord, SourceRecord,
    read_dequantization_record,
};
use crate::backend::Backend;
use crate::digest::sha256_hex;
use crate::dtype::{DType, encode_f32};
use crate::error::{Context, Error, Result};
use crate::format::safetensors::{SafetensorsWriter, TensorInfo};
use crate::format::sink::SinkDir;
use crate::format::source::SourceDir;
use crate::layout::TargetLayout;
use crate::model::Checkpoint;
use crate::model::names::{self, Linear};
use crate::model::weights::DenseRows;
use crate::order;
use crate::quant::Method;
use crate::quant::awq::RATIOS;
use crate::quant::stats::WeightError;
use crate::quant::{Activations, Granularity, PackedTensor, Scheme};
use crate::task::{self, Control, Progress};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};

/// What quantizing gave.
#[derive(Clone, Debug)]
pub struct QuantizeOutcome {
    /// As it was written.
    pub record: QuantizationRecord,
    /// Every module that was quantized, with its weight error.
    pub modules: Vec<(String, Scheme, WeightError)>,
    /// Bytes of all tensors in the output.
    pub bytes: u64,
}

/// Quantizes `checkpoint` into `target`. `existing` is the target folder to read from, so that nothing foreign is
/// overwritten.
///
/// # Errors
/// Whatever reading, quantizing and writing meet, with the module named; `cancelled`. The folder is then unfinished,
/// and says so when it is opened.
pub async fn quantize(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    target: &dyn SinkDir,
    existing: Option<&dyn SourceDir>,
    control: &dyn Control,
) -> Result<QuantizeOutcome> {
    let plans = plan_modules(checkpoint, options)?;
    if let Some(method) = options.calibrated_method() {
        return Err(Error::invalid_argument(format!("method {} needs calibration samples", method.name())));
    }
    let parameters = parameters(options);
    Job::direct(checkpoint, plans, options, parameters).await?.run(target, existing, control).await
}

/// As [`quantize`], with a method that learns from calibration samples. The samples are run through the model before the
/// first file is written.
///
/// # Errors
/// As [`quantize`]'s; `invalid_argument` for a method that does not calibrate; `out_of_memory` for a run that would take
/// more than the options allow; `non_finite` where activations are no numbers.
pub async fn quantize_calibrated<B: Backend>(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    calibration: Calibration<'_, B>,
    target: &dyn SinkDir,
    existing: Option<&dyn SourceDir>,
    control: &dyn Control,
) -> Result<QuantizeOutcome> {
    let plans = plan_modules(checkpoint, options)?;
    if options.calibrated_method().is_none() {
        return Err(Error::invalid_argument(format!(
            "method {} takes no calibration samples",
            options.method.name()
        )));
    }
    let mut parameters = parameters(options);
    let samples = calibration.samples;
    plan_memory(checkpoint, &plans, options, samples)?
        .check_within(options.memory)
        .context_with(|| checkpoint.name().to_owned())?;
    parameters.insert("samples".into(), json!(samples.windows.len()));
    parameters.insert("sequence_length".into(), json!(samples.windows.iter().map(Vec::len).max()));
    parameters.insert("calibration_tokens".into(), json!(samples.tokens()));
    parameters.insert("calibration_sha256".into(), json!(samples.sha256));
    if options.asks_for(Method::Gptq) {
        parameters.insert("damping".into(), json!(options.gptq.damping));
        parameters.insert("scales".into(), json!(options.gptq.scales.name()));
        parameters.insert("sweeps".into(), json!(options.gptq.sweeps));
        parameters.insert("act_order".into(), json!(options.gptq.order.name()));
        parameters.insert("reference_inputs".into(), json!(options.gptq.reference.name()));
    }
    if options.asks_for(Method::Awq) {
        parameters.insert("ratios".into(), json!(RATIOS));
    }
    let key = if options.resume { Some(run_key(checkpoint, options, &parameters).await?) } else { None };
    let scratch = calibration.scratch;
    let found = calibrated::find(checkpoint, &plans, options, SCALE_TYPE, calibration, key, control).await?;
    let (modules, vectors) = found.names();
    let job = Job::new(checkpoint, plans, Encoder::Calibrated(found), options, parameters);
    let outcome = job.run(target, existing, control).await?;
    Found::clear(scratch, &modules, &vectors).await?;
    Ok(outcome)
}

/// What the result of a run depends on, but for the device that it runs on.
async fn run_key(
    checkpoint: &Checkpoint,
    options: &QuantizeOptions,
    parameters: &Map<String, Value>,
) -> Result<String> {
    let source = SourceRecord::of(checkpoint).await?;
    let run = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "source": source.sha256,
        "layout": options.target_layout().name(),
        "parameters": parameters,
    });
    Ok(sha256_hex(run.to_string().as_bytes()))
}

/// Quantizes a checkpoint that [`dequantize_checkpoint`](super::dequantize::dequantize_checkpoint) wrote on the very grid
/// that it was on: unchanged weights get the very codes that they had.
///
/// # Errors
/// `not_found` without the metadata; otherwise as [`quantize`].
pub async fn restore(
    checkpoint: &Checkpoint,
    target: &dyn SinkDir,
    existing: Option<&dyn SourceDir>,
    control: &dyn Control,
) -> Result<QuantizeOutcome> {
    let dir = checkpoint.dir().as_ref();
    let record = read_dequantization_record(dir).await?;
    let parameters = open_parameters(dir, &record, PARAMETERS_FILE).await?;
    let plans = plan_restore(checkpoint, &record)?;
    let all_ternary =
        plans.iter().all(|plan| plan.scheme == Some(Scheme::Ternary { granularity: Granularity::Tensor }));
    let about = About {
        method: record.method.clone(),
        scheme: record.scheme.clone(),
        activations: if record.activations == Activations::Int8.name() {
            Activations::Int8
        } else {
            Activations::F32
        },
        layout: if all_ternary { TargetLayout::BitNet } else { TargetLayout::CompressedTensors },
        parameters: Map::from_iter([("from_metadata".to_owned(), Value::Bool(true))]),
    };
    let mut scales = Vec::new();
    for module in &record.modules {
        scales.push(stored_scale_type(&parameters, &module.scales)?);
    }
    let copied = copied_tensors(checkpoint, &plans, false);
    let one_type = one_type(about.layout, checkpoint.store(), &copied, &scales).await?;
    let encoder =
        Encoder::Restore { record: &record, parameters: &parameters, scale_type: one_type.map(scale_type) };
    Job { checkpoint, plans, encoder, unties: false, one_type, about }.run(target, existing, control).await
}

/// Bytes of the tensors that come into the output beside those of the modules that `plans` quantize.
pub(super) async fn copied_bytes(
    checkpoint: &Checkpoint,
    plans: &[ModulePlan],
    options: &QuantizeOptions,
) -> Result<u64> {
    let job = Job::direct(checkpoint, plans.to_vec(), options, Map::new()).await?;
    let tensors = job.plan_tensors().await?;
    let is_other = |origin: &Origin| match origin {
        Origin::Copy(_) => true,
        Origin::Module(index) => !is_in_block(&plans[*index].module),
    };
    let others = tensors.values().filter(|(_, origin)| is_other(origin));
    Ok(others.map(|(info, _)| info.byte_len().unwrap_or(0)).sum())
}

/// Whether a module is a linear layer of a block.
pub(super) fn is_in_block(module: &str) -> bool {
    module != names::EMBEDDING && module != names::HEAD
}

/// What the records say of a job.
struct About {
    method: String,
    scheme: String,
    activations: Activations,
    layout: TargetLayout,
    parameters: Map<String, Value>,
}

fn parameters(options: &QuantizeOptions) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("method".into(), json!(options.method.name()));
    map.insert("bits".into(), json!(options.scheme.storage_bits()));
    map.insert(
        "group_size".into(),
        match options.scheme.granularity() {
            Granularity::Group(size) => json!(size),
            _ => json!(-1),
        },
    );
    map.insert("symmetric".into(), json!(options.scheme.constant_zero_point().is_some()));
    map.insert("quantize_head".into(), json!(options.quantize_head));
    map.insert("quantize_embedding".into(), json!(options.quantize_embedding.map(|bits| bits.get())));
    map.insert("strict".into(), json!(options.strict));
    map.insert("sparsity_threshold".into(), json!(options.sparsity_threshold));
    map.insert("activations".into(), json!(options.activations.name()));
    if let Some(recipe) = &options.recipe {
        map.insert("recipe".into(), json!(recipe));
    }
    if let Some(allocation) = &options.allocation {
        map.insert("allocation".into(), json!(allocation));
    }
    map
}

/// The one name among `names`, `mixed` where they differ, `None` without any.
fn one_or_mixed(mut names: impl Iterator<Item = String>) -> Option<String> {
    let first = names.next()?;
    Some(if names.all(|name| name == first) { first } else { "mixed".to_owned() })
}

/// Where a tensor of the output comes from.
enum Origin {
    /// One of the tensors of quantized module `plans[index]`.
    Module(usize),
    /// A tensor of the source, perhaps in another type.
    Copy(Copy),
}

struct Job<'a> {
    checkpoint: &'a Checkpoint,
    plans: Vec<ModulePlan>,
    encoder: Encoder<'a>,
    /// The head gets a table of its own, which the source does not have.
    unties: bool,
    /// The type of all that is not packed, where the layout has one.
    one_type: Option<DType>,
    about: About,
}

struct Written {
    errors: BTreeMap<String, WeightError>,
    packed_bytes: u64,
    packed_weights: u64,
    bytes: u64,
}

impl<'a> Job<'a> {
    /// Codes from the weights alone.
    async fn direct(
        checkpoint: &'a Checkpoint,
        plans: Vec<ModulePlan>,
        options: &QuantizeOptions,
        parameters: Map<String, Value>,
    ) -> Result<Self> {
        let copied = copied_tensors(checkpoint, &plans, false);
        let one_type = one_type(options.target_layout(), checkpoint.store(), &copied, &[]).await?;
        let encoder = Encoder::Direct {
            sparsity_threshold: options.sparsity_threshold,
            scale_type: one_type.map_or(SCALE_TYPE, scale_type),
        };
        Ok(Self { one_type, ..Self::new(checkpoint, plans, encoder, options, parameters) })
    }

    fn new(
        checkpoint: &'a Checkpoint,
        plans: Vec<ModulePlan>,
        encoder: Encoder<'a>,
        options: &QuantizeOptions,
        parameters: Map<String, Value>,
    ) -> Self {
        let (mut method, mut scheme) = (options.method.name().to_owned(), options.scheme.to_string());
        if options.recipe.is_some() {
            // The embedding has always a scheme of its own.
            let linear = || plans.iter().filter(|plan| plan.module != names::EMBEDDING);
            let found = linear().filter_map(|plan| Some(plan.method?.name().to_owned()));
            method = one_or_mixed(found).unwrap_or(method);
            scheme =
                one_or_mixed(linear().filter_map(|plan| Some(plan.scheme?.to_string()))).unwrap_or(scheme);
        }
        let about = About {
            method,
            scheme,
            activations: options.activations,
            layout: options.target_layout(),
            parameters,
        };
        let unties = options.quantize_head && checkpoint.config().tie_word_embeddings;
        Self { checkpoint, plans, encoder, unties, one_type: None, about }
    }

    fn module_record(&self, plan: &ModulePlan) -> ModuleRecord {
        ModuleRecord {
            name: plan.module.clone(),
            scheme: plan.scheme.map_or_else(|| "f16".to_owned(), |scheme| scheme.to_string()),
            method: plan.method.map(|method| method.name().to_owned()),
            reason: plan.reason.clone(),
            calibration: self.encoder.calibration(&plan.module).cloned(),
        }
    }

    async fn run(
        self,
        target: &dyn SinkDir,
        existing: Option<&dyn SourceDir>,
        control: &dyn Control,
    ) -> Result<QuantizeOutcome> {
        let config = self.quantization_config()?;
        let tensors = self.plan_tensors().await?;
        let mut changes =
            if self.unties { vec![("tie_word_embeddings", Value::Bool(false))] } else { vec![] };
        changes.extend(
            self.one_type.into_iter().flat_map(|dtype| config_changes(self.checkpoint.config_json(), dtype)),
        );

        let folder = OutputFolder::begin(target, existing, QUANTIZATION_RECORD).await?;
        folder.write_config(self.checkpoint.config_json(), &changes, Some(config)).await?;
        folder.copy_side_files(self.checkpoint.dir().as_ref()).await?;
        let written = self.write(&tensors, &folder, control).await?;
        let modules = self.plans.iter().map(|plan| self.module_record(plan)).collect();
        let record = QuantizationRecord {
            schema: "lowbit.quantization/1".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            method: self.about.method,
            scheme: self.about.scheme,
            format: self.about.layout.name().to_owned(),
            activations: self.about.activations.name().to_owned(),
            bits_per_weight: written.packed_bytes as f64 * 8.0 / written.packed_weights.max(1) as f64,
            parameters: self.about.parameters,
            source: SourceRecord::of(self.checkpoint).await?,
            modules,
        };
        folder.finish(&record).await?;
        let modules = self.plans.iter().filter_map(|plan| {
            Some((plan.module.clone(), plan.scheme?, written.errors.get(&plan.module)?.clone()))
        });
        Ok(QuantizeOutcome { record, modules: modules.collect(), bytes: written.bytes })
    }

    fn quantization_config(&self) -> Result<Value> {
        let mut quantized = Vec::new();
        for plan in &self.plans {
            if let Some(scheme) = plan.scheme {
                quantized.push((plan.module.clone(), self.encoder.format(&plan.module, scheme)?));
            }
        }
        // Every other linear module: one that a recipe kept has no plan when it is restored, and a tied head is a module
        // too, to tools that walk all modules.
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
        self.about.layout.quantization_config(&quantized, &ignore, self.about.activations)
    }

    /// Names and shapes of everything that will be written.
    async fn plan_tensors(&self) -> Result<BTreeMap<String, (TensorInfo, Origin)>> {
        let mut tensors = BTreeMap::new();
        for (index, plan) in self.plans.iter().enumerate() {
            let Some(scheme) = plan.scheme else { continue };
            let format = self.encoder.format(&plan.module, scheme)?;
            let planned = self.about.layout.planned_tensors(&plan.module, plan.rows, plan.cols, format);
            tensors.extend(planned.into_iter().map(|(name, info)| (name, (info, Origin::Module(index)))));
        }
        let table = format!("{}.weight", self.checkpoint.embedding_module());
        let head = format!("{}.weight", names::HEAD);
        let store = self.checkpoint.store();
        for name in copied_tensors(self.checkpoint, &self.plans, self.unties) {
            let info = store.require(name)?;
            let is_table = name == table || name == head;
            let dtype = match self.one_type {
                Some(one_type) if info.dtype.is_float() => one_type,
                None if is_table && info.dtype == DType::F32 && f16_holds(store, name).await? => DType::F16,
                _ => info.dtype,
            };
            // The table of a tied model goes under the name that every tool looks for.
            let output = if name == table { format!("{}.weight", names::EMBEDDING) } else { name.to_owned() };
            let info = TensorInfo { dtype, shape: info.shape.clone() };
            tensors.insert(output, (info, Origin::Copy(Copy { tensor: name.to_owned(), dtype })));
        }
        Ok(tensors)
    }

    async fn write(
        &self,
        tensors: &BTreeMap<String, (TensorInfo, Origin)>,
        folder: &OutputFolder<'_>,
        control: &dyn Control,
    ) -> Result<Written> {
        let infos = tensors.iter().map(|(name, (info, _))| (name.clone(), info.clone())).collect();
        let metadata = order::map([("format".to_owned(), "pt".to_owned())]);
        let sink = folder.create("model.safetensors").await?;
        let mut writer = SafetensorsWriter::begin(sink, infos, metadata).await?;
        let mut written = Written { errors: BTreeMap::new(), packed_bytes: 0, packed_weights: 0, bytes: 0 };
        let order: Vec<String> = writer.order().to_vec();
        // Pieces of a module whose turn comes later: scales, mostly.
        let mut waiting: HashMap<String, Vec<u8>> = HashMap::new();
        for (done, name) in order.iter().enumerate() {
            control.progress(&Progress {
                phase: "quantize",
                done: done as u64,
                total: order.len() as u64,
                item: name,
            });
            let (info, origin) = &tensors[name];
            written.bytes += info.byte_len().unwrap_or(0);
            match origin {
                Origin::Copy(copy) => match self.encoder.changed_vector(&copy.tensor).await? {
                    Some(values) => {
                        let mut bytes = Vec::new();
                        encode_f32(copy.dtype, &values, &mut bytes)
                            .context_with(|| format!("tensor `{name}`"))?;
                        writer.write(name, &bytes).await?;
                    }
                    None => copy
                        .write(self.checkpoint.store(), &mut writer, name, control)
                        .await
                        .context_with(|| self.checkpoint.name())?,
                },
                Origin::Module(index) => {
                    if !waiting.contains_key(name) {
                        let plan = &self.plans[*index];
                        let pieces = self.quantize_module(plan, &mut written, control).await;
                        waiting.extend(pieces.context_with(|| {
                            format!("{}: tensor `{}.weight`", self.checkpoint.name(), plan.source)
                        })?);
                    }
                    let bytes = waiting.remove(name).expect("a layout writes what it planned");
                    writer.write(name, &bytes).await?;
                }
            }
        }
        writer.finish().await?;
        Ok(written)
    }

    /// The tensors of one module, and its error.
    async fn quantize_module(
        &self,
        plan: &ModulePlan,
        written: &mut Written,
        control: &dyn Control,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let scheme = plan.scheme.expect("only quantized modules have this origin");
        let packed = self.encoder.encode(self.checkpoint, plan, scheme, control).await?;
        let error = self.weight_error(plan, &packed, control).await?;
        written.packed_bytes += packed.packed_bytes();
        written.packed_weights += plan.rows as u64 * plan.cols as u64;
        written.errors.insert(plan.module.clone(), error);
        self.about.layout.encode(&plan.module, packed, self.encoder.format(&plan.module, scheme)?)
    }

    async fn weight_error(
        &self,
        plan: &ModulePlan,
        packed: &PackedTensor,
        control: &dyn Control,
    ) -> Result<WeightError> {
        if let Some(error) = self.encoder.weight_error(&plan.module) {
            return Ok(error.clone());
        }
        let mut error = WeightError::default();
        let mut rows = DenseRows::new(self.checkpoint, &plan.source)?;
        while let Some((range, values)) = rows.next().await? {
            error.add_rows(values, packed, range);
            task::checkpoint(control).await?;
        }
        Ok(error)
    }
}
