//! Converts a quantized folder to a floating-point checkpoint.
//!
//! A separate file keeps scales and zero points, so that [`restore`](super::quantize::restore) finds the same codes for
//! unchanged weights, and rounds changed weights to the same grid.

use super::float_type::config_changes;
use super::output::{self, Form, Output, OutputMatrix, OutputPlace, OutputPlan, Tensor};
use crate::artifact::records::{
    DEQUANTIZATION_RECORD, DequantizationRecord, DequantizedModule, Fallback, PARAMETERS_FILE, SourceRecord,
    TensorReference, read_quantization_record,
};
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::format::safetensors::{SafetensorsWriter, TensorInfo};
use crate::format::sink::SinkDir;
use crate::model::Checkpoint;
use crate::quant::{ActivationGrid, Activations, QuantizedTensor, Section};
use crate::task::Control;
use std::collections::{BTreeMap, BTreeSet};

/// The default type of dequantized weights: `F16`, or `F32` if activations are rounded to
/// [`ActivationGrid::FullRange`]. On that grid a token's largest value is a rounding tie, so the smallest change of a
/// weight moves it by a whole step, and F16 weights change too many predictions
/// (97.7% agreed on two models; with F32 99.8% to 99.98%).
///
/// # Errors
/// A module that cannot be opened.
pub fn default_dtype(checkpoint: &Checkpoint) -> Result<DType> {
    if checkpoint.layout().activation_grid() == ActivationGrid::FullRange {
        for module in checkpoint.packed_modules()? {
            if checkpoint.module(&module)?.activations() == Activations::Int8 {
                return Ok(DType::F32);
            }
        }
    }
    Ok(DType::F16)
}

/// Writes `checkpoint` with floating-point weights in `dtype`, `F16` or `F32`; see [`default_dtype`].
///
/// # Errors
/// `invalid_argument` for a checkpoint that is not quantized; errors of reading and writing, with the module's name.
pub async fn dequantize_checkpoint(
    checkpoint: &Checkpoint,
    dtype: DType,
    target: &dyn SinkDir,
    control: &dyn Control,
) -> Result<DequantizationRecord> {
    let modules = checkpoint.packed_modules()?;
    if modules.is_empty() {
        return Err(Error::invalid_argument(format!(
            "{}: expected a quantized checkpoint but found floating-point weights",
            checkpoint.name()
        )));
    }
    let place = OutputPlace { target, file: None };
    let mut job = DequantizeJob { checkpoint, modules, dtype, parameters: Parameters::default() };
    let (output, _) = output::write(&mut job, checkpoint, &place, control).await?;
    let DequantizeJob { modules, parameters, .. } = job;
    let described = parameters.write(&modules, &output).await?;
    let quantization = read_quantization_record(checkpoint.dir().as_ref()).await?;
    let record = DequantizationRecord {
        schema: "lowbit.dequantization/1".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        dtype: dtype.name().to_owned(),
        method: quantization.as_ref().map_or_else(|| "unknown".to_owned(), |record| record.method.clone()),
        scheme: quantization.map_or_else(|| described[0].scheme.clone(), |record| record.scheme),
        activations: checkpoint.module(&modules[0])?.activations(),
        source: SourceRecord::of(checkpoint).await?,
        modules: described,
        fallback: None,
    };
    output.finish(&record).await?;
    Ok(record)
}

/// Writes the original's weights in `dtype` in place of the dequantized ones, as a starting point for training.
///
/// # Errors
/// `invalid_argument` for a quantized checkpoint; errors of reading and writing.
pub async fn fall_back(
    original: &Checkpoint,
    dtype: DType,
    fallback: Fallback,
    target: &dyn SinkDir,
    control: &dyn Control,
) -> Result<DequantizationRecord> {
    if original.is_quantized() {
        return Err(Error::invalid_argument(format!(
            "{}: expected the checkpoint that was quantized but found a quantized one",
            original.name()
        )));
    }
    let place = OutputPlace { target, file: None };
    let (modules, parameters) = (Vec::new(), Parameters::default());
    let mut job = DequantizeJob { checkpoint: original, modules, dtype, parameters };
    let (output, _) = output::write(&mut job, original, &place, control).await?;
    let record = DequantizationRecord {
        schema: "lowbit.dequantization/1".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        dtype: dtype.name().to_owned(),
        method: "none".to_owned(),
        scheme: "none".to_owned(),
        activations: Activations::F32,
        source: SourceRecord::of(original).await?,
        modules: Vec::new(),
        fallback: Some(fallback),
    };
    output.finish(&record).await?;
    Ok(record)
}

struct DequantizeJob<'a> {
    checkpoint: &'a Checkpoint,
    modules: Vec<String>,
    dtype: DType,
    parameters: Parameters,
}

impl output::Job for DequantizeJob<'_> {
    fn plan(&mut self, _wide: &BTreeSet<String>) -> Result<OutputPlan> {
        let (checkpoint, dtype) = (self.checkpoint, self.dtype);
        let mut tensors = Vec::new();
        for name in checkpoint.store().names() {
            let (module, what) = name.rsplit_once('.').unwrap_or((name, ""));
            if what != "bias" && self.modules.iter().any(|packed| packed == module) {
                continue;
            }
            let mut info = checkpoint.store().require(name)?.clone();
            info.dtype = kept_dtype(&info, dtype);
            let form = Form::Plain(info.dtype);
            tensors.push(Tensor::copied(name, info, form, name, false));
        }
        for (index, module) in self.modules.iter().enumerate() {
            let shape = checkpoint.module(module)?.shape();
            tensors.push(Tensor::rows(module, shape, Form::Plain(dtype), index));
        }
        Ok(OutputPlan {
            layout: None,
            phase: "dequantize",
            written_last: DEQUANTIZATION_RECORD,
            changes: config_changes(checkpoint.config_json(), dtype),
            quantization_config: None,
            tensors,
        })
    }

    fn module(&self, index: usize) -> &str {
        &self.modules[index]
    }

    async fn make(&mut self, index: usize, _control: &dyn Control) -> Result<OutputMatrix> {
        let (checkpoint, module) = (self.checkpoint, &self.modules[index]);
        let packed = checkpoint.layout().read_packed(checkpoint.store(), module).await;
        let tensor = packed.context_with(|| format!("module `{module}`"))?;
        self.parameters.take(module, &tensor);
        Ok(OutputMatrix { tensor, loss: None, difference: 0.0 })
    }
}

/// Collects scales and zero points for their file, with each module's scheme.
#[derive(Default)]
struct Parameters {
    infos: Vec<(String, TensorInfo)>,
    values: BTreeMap<String, Vec<u8>>,
    described: BTreeMap<String, DequantizedModule>,
}

impl Parameters {
    fn take(&mut self, module: &str, packed: &QuantizedTensor) {
        let mut add = |what: &str, dtype: DType, bytes: Vec<u8>| {
            let tensor = format!("{module}.{what}");
            let count = (bytes.len() / dtype.size()) as u64;
            self.infos.push((tensor.clone(), TensorInfo::new(dtype, [count])));
            self.values.insert(tensor.clone(), bytes);
            TensorReference { file: PARAMETERS_FILE.to_owned(), tensor }
        };
        let sections = packed.sections();
        let mut section = |name: &str| {
            let Section { dtype, bytes, .. } = sections.iter().find(|section| section.name == name)?;
            Some(add(name, *dtype, bytes.clone()))
        };
        let scales = section("scales").expect("every coding has scales");
        let zero_points = section("zero_points");
        let g_idx = packed.affine().filter(|affine| affine.column_order().is_some()).map(|affine| {
            let bytes = affine.g_idx().iter().flat_map(|group| group.to_le_bytes()).collect();
            add("g_idx", DType::I32, bytes)
        });
        let described = DequantizedModule {
            name: module.to_owned(),
            scheme: packed.coding().to_string(),
            scales,
            zero_points,
            g_idx,
            sparsity: zeros(packed) as f64 / (packed.rows() as f64 * packed.cols() as f64),
        };
        self.described.insert(module.to_owned(), described);
    }

    /// Writes the file, and returns the records of the modules in this order.
    async fn write(mut self, modules: &[String], output: &Output<'_>) -> Result<Vec<DequantizedModule>> {
        if let Some(sink) = output.create(PARAMETERS_FILE).await? {
            let mut writer = SafetensorsWriter::begin(sink, self.infos, BTreeMap::new()).await?;
            for name in writer.order().to_vec() {
                writer.write(&name, &self.values[&name]).await?;
            }
            writer.finish().await?;
        }
        Ok(modules.iter().filter_map(|module| self.described.remove(module)).collect())
    }
}

/// The number of weights that are exactly 0.
fn zeros(packed: &QuantizedTensor) -> usize {
    let mut row = vec![0.0; packed.cols()];
    (0..packed.rows())
        .map(|index| {
            packed.decode_rows(index..index + 1, &mut row);
            row.iter().filter(|&&value| value == 0.0).count()
        })
        .sum()
}

/// The output type of an unquantized tensor. `F32` widens 16-bit tensors. `F16` narrows `F32` matrices, but not
/// vectors.
fn kept_dtype(info: &TensorInfo, wanted: DType) -> DType {
    let is_matrix = info.shape.dims().len() > 1;
    match (info.dtype, wanted) {
        (DType::F16 | DType::BF16, DType::F32) => DType::F32,
        (DType::F32, DType::F16) if is_matrix => DType::F16,
        (stored, _) => stored,
    }
}
