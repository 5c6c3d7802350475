//! The way back: a quantized folder becomes an ordinary floating-point checkpoint, from which training can go on.
//!
//! The scales and zero points go with it, in a file of their own, so that [`restore`](super::quantize::restore) finds the very same codes again as
//! long as the weights were not changed, and a quantized model on the same grid where they were. Floor 8.

use super::copy::Copy;
use super::float_type::config_changes;
use crate::artifact::output::OutputFolder;
use crate::artifact::records::{
    DEQUANTIZATION_RECORD, DequantizationRecord, DequantizedModule, PARAMETERS_FILE, SourceRecord,
    TensorReference, read_quantization_record,
};
use crate::dtype::{DType, encode_f32};
use crate::error::{Context, Error, Result};
use crate::format::safetensors::{SafetensorsWriter, TensorInfo};
use crate::format::sink::SinkDir;
use crate::format::source::SourceDir;
use crate::layout::ModuleStorage;
use crate::model::Checkpoint;
use crate::model::names::{self, Linear};
use crate::order;
use crate::quant::{ActivationGrid, Activations, PackedTensor, Scales, dequantize};
use crate::task::{self, Control, Progress};
use std::collections::BTreeMap;

/// Elements that are dequantized at a time.
const CHUNK_ELEMENTS: usize = 1 << 20;

/// The type that dequantized weights take where nobody names one: `F16`, but `F32` where a token's activations are rounded to
/// [`ActivationGrid::FullRange`]. A token's largest value lies half a step from two codes there, so the smallest change of a
/// weight moves it by a whole step: with F16 weights the models' predictions part more often than the agreement allows
/// (97.7% agreed on two models, where F32 gave 99.8% to 99.98%).
///
/// # Errors
/// A module that cannot be opened.
pub fn default_dtype(checkpoint: &Checkpoint) -> Result<DType> {
    if checkpoint.layout().activation_grid() == ActivationGrid::FullRange {
        for module in packed_modules(checkpoint)? {
            if checkpoint.module(&module)?.activations() == Activations::Int8 {
                return Ok(DType::F32);
            }
        }
    }
    Ok(DType::F16)
}

/// Writes `checkpoint` as an ordinary one with weights in `dtype`, `F16` or `F32`; see [`default_dtype`].
///
/// # Errors
/// `invalid_argument` for a checkpoint that is not quantized; whatever reading and writing meet, with the module named.
pub async fn dequantize_checkpoint(
    checkpoint: &Checkpoint,
    dtype: DType,
    target: &dyn SinkDir,
    existing: Option<&dyn SourceDir>,
    control: &dyn Control,
) -> Result<DequantizationRecord> {
    let modules = packed_modules(checkpoint)?;
    if modules.is_empty() {
        return Err(Error::invalid_argument(format!(
            "{}: expected a quantized checkpoint but found floating-point weights",
            checkpoint.name()
        )));
    }
    let folder = OutputFolder::begin(target, existing, DEQUANTIZATION_RECORD).await?;
    let changes = config_changes(checkpoint.config_json(), dtype);
    folder.write_config(checkpoint.config_json(), &changes, None).await?;
    folder.copy_side_files(checkpoint.dir().as_ref()).await?;
    let described = write_parameters(checkpoint, &modules, &folder).await?;
    write_weights(checkpoint, &modules, dtype, &folder, control).await?;
    let quantization = read_quantization_record(checkpoint.dir().as_ref()).await?;
    let record = DequantizationRecord {
        schema: "lowbit.dequantization/1".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        dtype: dtype.name().to_owned(),
        method: quantization.as_ref().map_or_else(|| "unknown".to_owned(), |record| record.method.clone()),
        scheme: quantization.map_or_else(|| described[0].scheme.clone(), |record| record.scheme),
        activations: checkpoint.module(&modules[0])?.activations().name().to_owned(),
        source: SourceRecord::of(checkpoint).await?,
        modules: described,
    };
    folder.finish(&record).await?;
    Ok(record)
}

/// The quantized modules, in the order of the data flow.
fn packed_modules(checkpoint: &Checkpoint) -> Result<Vec<String>> {
    let blocks = (0..checkpoint.config().num_hidden_layers)
        .flat_map(|layer| Linear::ALL.map(|linear| linear.module(layer)));
    let tables = if checkpoint.config().tie_word_embeddings {
        vec![checkpoint.embedding_module().to_owned()]
    } else {
        vec![names::EMBEDDING.to_owned(), names::HEAD.to_owned()]
    };
    let mut packed = Vec::new();
    for module in blocks.chain(tables) {
        if let ModuleStorage::Packed { .. } = checkpoint.module(&module)? {
            packed.push(module);
        }
    }
    Ok(packed)
}

async fn read(checkpoint: &Checkpoint, module: &str) -> Result<PackedTensor> {
    let packed = checkpoint.layout().read_packed(checkpoint.store(), module).await;
    packed.context_with(|| format!("module `{module}`"))
}

/// Writes scales and zero points, and says what each module was.
async fn write_parameters(
    checkpoint: &Checkpoint,
    modules: &[String],
    folder: &OutputFolder<'_>,
) -> Result<Vec<DequantizedModule>> {
    let mut described = Vec::new();
    let mut infos = Vec::new();
    let mut values: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for module in modules {
        let packed = read(checkpoint, module).await?;
        let count = packed.scales().len() as u64;
        let reference = |tensor: String| TensorReference { file: PARAMETERS_FILE.to_owned(), tensor };
        let (dtype, bytes) = scale_bytes(packed.scales());
        let scales = format!("{module}.scales");
        infos.push((scales.clone(), TensorInfo::new(dtype, [count])));
        values.insert(scales.clone(), bytes);
        let zero_points = packed.zero_points().map(|zeros| {
            let name = format!("{module}.zero_points");
            infos.push((name.clone(), TensorInfo::new(DType::U8, [count])));
            values.insert(name.clone(), zeros.to_vec());
            reference(name)
        });
        let g_idx = packed.column_order().map(|_| {
            let name = format!("{module}.g_idx");
            infos.push((name.clone(), TensorInfo::new(DType::I32, [packed.cols() as u64])));
            let bytes = packed.g_idx().iter().flat_map(|group| group.to_le_bytes()).collect();
            values.insert(name.clone(), bytes);
            reference(name)
        });
        described.push(DequantizedModule {
            name: module.clone(),
            scheme: packed.scheme().to_string(),
            scales: reference(scales),
            zero_points,
            g_idx,
            sparsity: zeros(&packed) as f64 / (packed.rows() as f64 * packed.cols() as f64),
        });
    }
    let sink = folder.create(PARAMETERS_FILE).await?;
    let mut writer = SafetensorsWriter::begin(sink, infos, BTreeMap::new()).await?;
    for name in writer.order().to_vec() {
        writer.write(&name, &values[&name]).await?;
    }
    writer.finish().await?;
    Ok(described)
}

fn scale_bytes(scales: &Scales) -> (DType, Vec<u8>) {
    match scales {
        Scales::F16(values) => (DType::F16, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Scales::BF16(values) => (DType::BF16, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Scales::F32(values) => (DType::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
    }
}

/// How many weights are exactly 0.
fn zeros(packed: &PackedTensor) -> usize {
    let mut row = vec![0.0; packed.cols()];
    (0..packed.rows())
        .map(|index| {
            dequantize::rows(packed, index..index + 1, &mut row);
            row.iter().filter(|&&value| value == 0.0).count()
        })
        .sum()
}

async fn write_weights(
    checkpoint: &Checkpoint,
    modules: &[String],
    dtype: DType,
    folder: &OutputFolder<'_>,
    control: &dyn Control,
) -> Result<()> {
    let mut tensors: BTreeMap<String, (TensorInfo, Option<Copy>)> = BTreeMap::new();
    for name in checkpoint.store().names() {
        let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
        let is_bias = name.ends_with(".bias");
        if modules.iter().any(|packed| packed == module) && !is_bias {
            continue;
        }
        let info = checkpoint.store().require(name)?;
        let dtype = kept_dtype(info, dtype);
        let copy = Copy { tensor: name.to_owned(), dtype };
        tensors.insert(name.to_owned(), (TensorInfo { dtype, shape: info.shape.clone() }, Some(copy)));
    }
    for module in modules {
        let (rows, cols) = checkpoint.module(module)?.shape();
        let info = TensorInfo::new(dtype, [rows as u64, cols as u64]);
        tensors.insert(format!("{module}.weight"), (info, None));
    }
    let infos = tensors.iter().map(|(name, (info, _))| (name.clone(), info.clone())).collect();
    let metadata = order::map([("format".to_owned(), "pt".to_owned())]);
    let sink = folder.create("model.safetensors").await?;
    let mut writer = SafetensorsWriter::begin(sink, infos, metadata).await?;
    let order = writer.order().to_vec();
    for (done, name) in order.iter().enumerate() {
        control.progress(&Progress {
            phase: "dequantize",
            done: done as u64,
            total: order.len() as u64,
            item: name,
        });
        match &tensors[name].1 {
            Some(copy) => copy.write(checkpoint.store(), &mut writer, name, control).await?,
            None => {
                let module = name.trim_end_matches(".weight");
                let packed = read(checkpoint, module).await?;
                write_rows(&packed, dtype, &mut writer, name, control).await?;
            }
        }
    }
    writer.finish().await
}

/// The type of a tensor that was not quantized. What is small, or already in 16 bits, is not rounded once more.
fn kept_dtype(info: &TensorInfo, wanted: DType) -> DType {
    let is_matrix = info.shape.dims().len() > 1;
    match (info.dtype, wanted) {
        (DType::F16 | DType::BF16, DType::F32) => DType::F32,
        (DType::F32, DType::F16) if is_matrix => DType::F16,
        (stored, _) => stored,
    }
}

async fn write_rows(
    packed: &PackedTensor,
    dtype: DType,
    writer: &mut SafetensorsWriter,
    name: &str,
    control: &dyn Control,
) -> Result<()> {
    let rows_at_once = (CHUNK_ELEMENTS / packed.cols()).max(1);
    let (mut values, mut bytes) = (Vec::new(), Vec::new());
    for start in (0..packed.rows()).step_by(rows_at_once) {
        let rows = start..packed.rows().min(start + rows_at_once);
        values.resize(rows.len() * packed.cols(), 0.0);
        dequantize::rows(packed, rows, &mut values);
        bytes.clear();
        encode_f32(dtype, &values, &mut bytes).context_with(|| format!("tensor `{name}`"))?;
        writer.write(name, &bytes).await?;
        task::checkpoint(control).await?;
    }
    Ok(())
}
