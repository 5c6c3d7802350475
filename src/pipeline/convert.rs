//! From one layout to another: the same codes, scales and zero points in another spelling.
//!
//! Nothing goes through floating point where it can be avoided. What a layout cannot hold as it is, it may hold in finer
//! groups, which is exact too; scales of another type are rounded, and a module that fits in no way becomes F16. Both are
//! said before the work starts. Floor 8.

mod difference;

pub use difference::largest_difference;

use super::copy::Copy;
use super::float_type::{config_changes, one_exact_type, scale_type};
use crate::artifact::output::OutputFolder;
use crate::artifact::records::{
    ModuleRecord, QUANTIZATION_RECORD, QuantizationRecord, SourceRecord, read_quantization_record,
};
use crate::dtype::{DType, encode_f32};
use crate::error::{Context, Error, Result};
use crate::format::safetensors::{SafetensorsWriter, TensorInfo};
use crate::format::sink::SinkDir;
use crate::format::source::SourceDir;
use crate::layout::{ModuleStorage, PackedFormat, TargetLayout};
use crate::model::Checkpoint;
use crate::model::names::{self, Linear};
use crate::order;
use crate::quant::{Activations, Granularity, PackedTensor, ScaleType, Scheme, dequantize, regroup};
use crate::task::{self, Control, Progress};
use serde_json::{Map, json};
use std::collections::{BTreeMap, HashMap};

/// What becomes of one packed module.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversion {
    /// Module name.
    pub module: String,
    /// Its scheme in the source.
    pub from: Scheme,
    /// Its form in the output; `None`: floating point, F16.
    pub to: Option<PackedFormat>,
    /// What is lost; `None` where the weights stay exactly what they are.
    pub loss: Option<String>,
    rows: usize,
    cols: usize,
}

/// What will become of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct ConversionPlan {
    /// The layout to write.
    pub layout: TargetLayout,
    /// Every packed module, in the order of the data flow.
    pub modules: Vec<Conversion>,
    /// What is lost beside weights.
    pub notes: Vec<String>,
    activations: Activations,
    /// All zero points are in the middle, so that the weights are symmetric.
    symmetric: bool,
    /// The type of all that is not packed, where the layout has one.
    one_type: Option<DType>,
}

/// Decides for every packed module, and reads all of them for that.
///
/// # Errors
/// `invalid_argument` for a checkpoint that is not quantized; `unsupported_format` when the layout can hold none of the
/// modules, or with `strict` where anything would be lost; whatever reading meets.
pub async fn plan_conversion(
    checkpoint: &Checkpoint,
    layout: TargetLayout,
    strict: bool,
    control: &dyn Control,
) -> Result<ConversionPlan> {
    let packed = packed_modules(checkpoint)?;
    if packed.is_empty() {
        return Err(Error::invalid_argument(format!(
            "{}: expected a quantized checkpoint but found floating-point weights; see `lowbit quantize`",
            checkpoint.name()
        )));
    }
    let mut plan = ConversionPlan {
        layout,
        modules: Vec::new(),
        notes: Vec::new(),
        activations: Activations::F32,
        symmetric: true,
        one_type: None,
    };
    // Some layouts keep zero points for symmetric weights too. Weights are called symmetric when all modules are.
    for module in &packed {
        let tensor = read(checkpoint, module).await?;
        plan.symmetric &= tensor.zero_points().is_none() || regroup::as_symmetric(&tensor)?.is_some();
        if checkpoint.module(module)?.activations() == Activations::Int8 {
            plan.activations = Activations::Int8;
        }
        task::checkpoint(control).await?;
    }
    for module in packed {
        let tensor = read(checkpoint, &module).await?;
        let converted = plan.adapt(&module, &tensor);
        let (to, loss) = match converted {
            Ok((converted, loss)) => (Some(PackedFormat::from(&converted)), loss),
            Err(reason) => (None, Some(format!("floating point, F16: {reason}"))),
        };
        if let (true, Some(loss)) = (strict, &loss) {
            return Err(Error::unsupported_format(format!("module `{module}`: {loss}")));
        }
        let (from, rows, cols) = (tensor.scheme(), tensor.rows(), tensor.cols());
        plan.modules.push(Conversion { module, from, to, loss, rows, cols });
        task::checkpoint(control).await?;
    }
    if let Some(first) =
        plan.modules.first().filter(|_| plan.modules.iter().all(|module| module.to.is_none()))
    {
        return Err(Error::unsupported_format(format!(
            "the {} layout can hold none of the modules; `{}`: {}",
            layout.name(),
            first.module,
            first.loss.as_deref().unwrap_or_default()
        )));
    }
    plan.take_one_type(checkpoint)?;
    let keeps_activations = matches!(layout, TargetLayout::CompressedTensors | TargetLayout::BitNet);
    if plan.activations == Activations::Int8 && !keeps_activations {
        plan.notes.push(format!(
            "the {} layout does not say that activations are INT8; the model will run with f32 ones",
            layout.name()
        ));
        plan.activations = Activations::F32;
    }
    Ok(plan)
}

impl ConversionPlan {
    /// Where everything in floating point is of one type, the scales are too.
    fn take_one_type(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let copied = self.copied_tensors(checkpoint);
        let scales: Vec<ScaleType> =
            self.modules.iter().filter_map(|module| Some(module.to?.scale_type)).collect();
        self.one_type = one_exact_type(self.layout, checkpoint.store(), &copied, &scales)?;
        if let Some(dtype) = self.one_type {
            for format in self.modules.iter_mut().filter_map(|module| module.to.as_mut()) {
                format.scale_type = scale_type(dtype);
            }
        }
        Ok(())
    }

    /// Everything but the weights of quantized modules.
    fn copied_tensors<'a>(&self, checkpoint: &'a Checkpoint) -> Vec<&'a str> {
        let mut packed: Vec<&str> = self.modules.iter().map(|module| module.module.as_str()).collect();
        order::sort(&mut packed);
        let is_copied = |name: &&str| {
            let (module, what) = name.rsplit_once('.').unwrap_or((name, ""));
            packed.binary_search(&module).is_err() || what == "bias"
        };
        checkpoint.store().names().filter(is_copied).collect()
    }

    /// The matrix as the layout can hold it, and what that loses; or why it cannot.
    fn adapt(&self, module: &str, tensor: &PackedTensor) -> Result<(PackedTensor, Option<String>), String> {
        self.layout.can_hold_module(module)?;
        let (rows, cols) = (tensor.rows(), tensor.cols());
        let text = |error: Error| error.to_string();
        let mut tensor = tensor.clone();
        if self.symmetric
            && let Some(symmetric) = regroup::as_symmetric(&tensor).map_err(text)?
        {
            tensor = symmetric;
        }
        let holds = |tensor: &PackedTensor| self.layout.can_hold(rows, cols, tensor.scheme());
        if holds(&tensor).is_err() && self.layout != TargetLayout::BitNet {
            let spread = regroup::spread_tensor_scale(&tensor).map_err(text)?;
            if let Some(finer) = self.finer_groups(&spread) {
                tensor = regroup::split_groups(&spread, finer).map_err(text)?;
            } else if holds(&spread).is_ok() {
                tensor = spread;
            }
        }
        holds(&tensor)?;
        let wanted = self.layout.scale_type(tensor.scales().scale_type());
        let exact = regroup::scales_fit(&tensor, wanted);
        if wanted != tensor.scales().scale_type() {
            tensor = regroup::round_scales(&tensor, wanted).map_err(text)?;
        }
        self.layout.can_hold_as(rows, cols, PackedFormat::from(&tensor))?;
        let loss = (!exact).then(|| format!("scales are rounded to {}", wanted.dtype()));
        Ok((tensor, loss))
    }

    /// The largest group size that the layout takes and that cuts no group of the matrix in two unequal parts.
    fn finer_groups(&self, tensor: &PackedTensor) -> Option<usize> {
        let Scheme::Integer { bits, granularity: Granularity::Group(size), symmetric } = tensor.scheme()
        else {
            return None;
        };
        // A group as wide as the matrix has no neighbour to be cut from.
        let size = if size >= tensor.cols() { tensor.cols() } else { size };
        (1..=size).rev().filter(|finer| size.is_multiple_of(*finer)).find(|&finer| {
            let scheme = Scheme::Integer { bits, granularity: Granularity::Group(finer), symmetric };
            self.layout.can_hold(tensor.rows(), tensor.cols(), scheme).is_ok()
        })
    }
}

/// Writes `checkpoint` in the plan's layout.
///
/// # Errors
/// Whatever reading and writing meet, with the module named; `cancelled`. The folder is then unfinished, and says so
/// when it is opened.
pub async fn convert(
    checkpoint: &Checkpoint,
    plan: &ConversionPlan,
    target: &dyn SinkDir,
    existing: Option<&dyn SourceDir>,
    control: &dyn Control,
) -> Result<QuantizationRecord> {
    let config = plan.quantization_config(checkpoint)?;
    let tensors = plan.tensors(checkpoint)?;
    let folder = OutputFolder::begin(target, existing, QUANTIZATION_RECORD).await?;
    let changes =
        plan.one_type.map_or_else(Vec::new, |dtype| config_changes(checkpoint.config_json(), dtype));
    folder.write_config(checkpoint.config_json(), &changes, Some(config)).await?;
    folder.copy_side_files(checkpoint.dir().as_ref()).await?;
    let packed = write(checkpoint, plan, &tensors, &folder, control).await?;
    let before = read_quantization_record(checkpoint.dir().as_ref()).await?;
    let usual = usual_scheme(&plan.modules);
    let record = QuantizationRecord {
        schema: "lowbit.quantization/1".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        method: before.as_ref().map_or_else(|| "unknown".to_owned(), |record| record.method.clone()),
        scheme: usual.map_or_else(|| "f16".to_owned(), |scheme| scheme.to_string()),
        format: plan.layout.name().to_owned(),
        activations: plan.activations.name().to_owned(),
        bits_per_weight: packed.bytes as f64 * 8.0 / packed.weights.max(1) as f64,
        parameters: Map::from_iter([("converted_from".to_owned(), json!(checkpoint.layout().name()))]),
        source: SourceRecord::of(checkpoint).await?,
        modules: plan.modules.iter().map(module_record).collect(),
    };
    folder.finish(&record).await?;
    Ok(record)
}

fn module_record(module: &Conversion) -> ModuleRecord {
    ModuleRecord {
        name: module.module.clone(),
        scheme: module.to.map_or_else(|| "f16".to_owned(), |format| format.scheme.to_string()),
        method: None,
        reason: module.loss.clone(),
        calibration: None,
    }
}

fn usual_scheme(modules: &[Conversion]) -> Option<Scheme> {
    let mut counts: BTreeMap<String, (usize, Scheme)> = BTreeMap::new();
    for format in modules.iter().filter_map(|module| module.to) {
        counts.entry(format.scheme.to_string()).or_insert((0, format.scheme)).0 += 1;
    }
    counts.into_values().max_by_key(|(count, _)| *count).map(|(_, scheme)| scheme)
}

fn linear_modules(checkpoint: &Checkpoint) -> Vec<String> {
    let blocks = (0..checkpoint.config().num_hidden_layers)
        .flat_map(|layer| Linear::ALL.map(|linear| linear.module(layer)));
    let tables = if checkpoint.config().tie_word_embeddings {
        vec![checkpoint.embedding_module().to_owned()]
    } else {
        vec![names::EMBEDDING.to_owned(), names::HEAD.to_owned()]
    };
    blocks.chain(tables).collect()
}

/// The quantized modules, in the order of the data flow.
fn packed_modules(checkpoint: &Checkpoint) -> Result<Vec<String>> {
    let mut packed = Vec::new();
    for module in linear_modules(checkpoint) {
        if let ModuleStorage::Packed { .. } = checkpoint.module(&module)? {
            packed.push(module);
        }
    }
    Ok(packed)
}

async fn read(checkpoint: &Checkpoint, module: &str) -> Result<PackedTensor> {
    let packed = checkpoint.layout().read_packed(checkpoint.store(), module).await;
    packed.context_with(|| format!("{}: module `{module}`", checkpoint.name()))
}

/// Where a tensor of the output comes from.
enum Origin {
    /// One of the tensors of `modules[index]`.
    Module(usize),
    Copy(Copy),
}

/// What the packed modules take.
#[derive(Default)]
struct Written {
    bytes: u64,
    weights: u64,
}

impl ConversionPlan {
    fn quantization_config(&self, checkpoint: &Checkpoint) -> Result<serde_json::Value> {
        let packed: Vec<_> =
            self.modules.iter().filter_map(|module| Some((module.module.clone(), module.to?))).collect();
        let is_packed = |name: &String| packed.iter().any(|(module, _)| module == name);
        let mut ignore = linear_modules(checkpoint);
        ignore.retain(|module| module != names::EMBEDDING && !is_packed(module));
        // A tied head is a module too, to tools that walk all modules.
        let head = names::HEAD.to_owned();
        if !is_packed(&head) && !ignore.contains(&head) {
            ignore.push(head);
        }
        self.layout.quantization_config(&packed, &ignore, self.activations)
    }

    /// Names and shapes of everything that will be written.
    fn tensors(&self, checkpoint: &Checkpoint) -> Result<BTreeMap<String, (TensorInfo, Origin)>> {
        let mut tensors = BTreeMap::new();
        let store = checkpoint.store();
        for name in self.copied_tensors(checkpoint) {
            let mut info = store.require(name)?.clone();
            info.dtype = self.one_type.filter(|_| info.dtype.is_float()).unwrap_or(info.dtype);
            let copy = Copy { tensor: name.to_owned(), dtype: info.dtype };
            tensors.insert(name.to_owned(), (info, Origin::Copy(copy)));
        }
        for (index, Conversion { module, to, rows, cols, .. }) in self.modules.iter().enumerate() {
            match to {
                Some(format) => {
                    let planned = self.layout.planned_tensors(module, *rows, *cols, *format);
                    tensors.extend(
                        planned.into_iter().map(|(name, info)| (name, (info, Origin::Module(index)))),
                    );
                }
                None => {
                    let dtype = self.one_type.unwrap_or(DType::F16);
                    let info = TensorInfo::new(dtype, [*rows as u64, *cols as u64]);
                    tensors.insert(format!("{module}.weight"), (info, Origin::Module(index)));
                }
            }
        }
        Ok(tensors)
    }

    /// The tensors of one module.
    fn encode(
        &self,
        module: &Conversion,
        tensor: &PackedTensor,
        written: &mut Written,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let Some(format) = module.to else {
            let mut values = vec![0.0; tensor.cols()];
            let dtype = self.one_type.unwrap_or(DType::F16);
            let mut bytes = Vec::with_capacity(tensor.rows() * tensor.cols() * dtype.size());
            for row in 0..tensor.rows() {
                dequantize::rows(tensor, row..row + 1, &mut values);
                encode_f32(dtype, &values, &mut bytes)?;
            }
            return Ok(vec![(format!("{}.weight", module.module), bytes)]);
        };
        let (mut converted, _) = self.adapt(&module.module, tensor).map_err(Error::unsupported_format)?;
        if converted.scales().scale_type() != format.scale_type {
            converted = regroup::round_scales(&converted, format.scale_type)?;
        }
        written.bytes += converted.packed_bytes();
        written.weights += module.rows as u64 * module.cols as u64;
        self.layout.encode(&module.module, converted, format)
    }
}

async fn write(
    checkpoint: &Checkpoint,
    plan: &ConversionPlan,
    tensors: &BTreeMap<String, (TensorInfo, Origin)>,
    folder: &OutputFolder<'_>,
    control: &dyn Control,
) -> Result<Written> {
    let infos = tensors.iter().map(|(name, (info, _))| (name.clone(), info.clone())).collect();
    let metadata = order::map([("format".to_owned(), "pt".to_owned())]);
    let sink = folder.create("model.safetensors").await?;
    let mut writer = SafetensorsWriter::begin(sink, infos, metadata).await?;
    let mut written = Written::default();
    let order: Vec<String> = writer.order().to_vec();
    // Pieces of a module whose turn comes later: scales, mostly.
    let mut waiting: HashMap<String, Vec<u8>> = HashMap::new();
    for (done, name) in order.iter().enumerate() {
        control.progress(&Progress {
            phase: "convert",
            done: done as u64,
            total: order.len() as u64,
            item: name,
        });
        match &tensors[name].1 {
            Origin::Copy(copy) => copy
                .write(checkpoint.store(), &mut writer, name, control)
                .await
                .context_with(|| checkpoint.name().to_owned())?,
            Origin::Module(index) => {
                if !waiting.contains_key(name) {
                    let module = &plan.modules[*index];
                    let tensor = read(checkpoint, &module.module).await?;
                    let pieces = plan.encode(module, &tensor, &mut written);
                    waiting.extend(pieces.context_with(|| format!("module `{}`", module.module))?);
                    task::checkpoint(control).await?;
                }
                let bytes = waiting.remove(name).expect("a layout writes what it planned");
                writer.write(name, &bytes).await?;
            }
        }
    }
    writer.finish().await?;
    Ok(written)
}
