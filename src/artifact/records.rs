//! The records that go with a quantized or dequantized checkpoint.
//!
//! Field names are part of the public interface. No times and no machine: equal input gives equal bytes.

use crate::calibrate::CalibrationRecord;
use crate::digest;
use crate::error::{Error, ErrorCode, Result};
use crate::format::json;
use crate::format::small_file::read_json;
use crate::format::source::SourceDir;
use crate::model::Checkpoint;
use crate::quant::{Activations, Method};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The name of the record of a quantized folder, its last file.
pub const QUANTIZATION_RECORD: &str = "quantization_config.json";
/// The name of the record of a dequantized folder, its last file.
pub const DEQUANTIZATION_RECORD: &str = "quantization_metadata.json";

/// What records call the method of weights that were trained to be quantized.
pub const TRAINED: &str = "qat";

/// The name of the record of a folder with weights that were trained in floating point, its last file.
pub const TRAINING_RECORD: &str = "training_record.json";

/// The file beside a dequantized checkpoint that keeps scales and zero points.
pub const PARAMETERS_FILE: &str = "quantization_parameters.safetensors";

/// Which checkpoint something was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// As it was given.
    pub path: String,
    /// Parameters of the model.
    pub parameters: u64,
    /// Bytes of all stored tensors.
    pub bytes: u64,
    /// SHA-256 over config.json and, in the order of their names, each tensor's name, type, shape and SHA-256: so tensors can be
    /// hashed in whatever order they are read.
    pub sha256: String,
}

impl SourceRecord {
    /// Reads what has not passed since the store [hashes](crate::format::shard_index::TensorStore::hash_as_read).
    pub(crate) async fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Ok(Self {
            path: checkpoint.name().to_owned(),
            parameters: checkpoint.config().parameter_count(),
            bytes: checkpoint.bytes(),
            sha256: hash_checkpoint(checkpoint).await?,
        })
    }
}

/// What was done to one module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleRecord {
    /// Module name.
    pub name: String,
    /// `int4-g32-sym`, or `f16` where the module was kept.
    pub scheme: String,
    /// The method that was asked for; absent where the module was kept, and where no codes were looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Why it is not what the options ask for: the rule of the recipe, or what the layout cannot hold; absent where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How its codes were found; absent where no calibration was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationRecord>,
}

/// `quantization_config.json`: how a folder was made. Written last, so its presence means that the folder is whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizationRecord {
    /// `lowbit.quantization/1`
    pub schema: String,
    /// Version of this crate.
    pub version: String,
    /// `rtn`, `gptq`, `awq`, `ternary`, or `qat` where the weights were trained; `mixed` where a recipe has several, which `modules` then names.
    pub method: String,
    /// The scheme that was asked for; `mixed` where a recipe has several.
    pub scheme: String,
    /// File layout of the weights: `compressed-tensors` or `bitnet`.
    pub format: String,
    /// Precision of the activations that the folder is meant to run with.
    pub activations: Activations,
    /// Mean bits of a weight in the quantized modules, scales and zero points included.
    pub bits_per_weight: f64,
    /// All options, by their command-line names.
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// What it was made from.
    pub source: SourceRecord,
    /// Every linear module, in the order of the data flow.
    pub modules: Vec<ModuleRecord>,
}

/// A tensor of a file in the same folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorReference {
    /// File name.
    pub file: String,
    /// Tensor name.
    pub tensor: String,
}

/// How the weights of one module were quantized before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DequantizedModule {
    /// Module name.
    pub name: String,
    /// `int4-g32-sym`, ...
    pub scheme: String,
    /// `[rows x groups]`, flat.
    pub scales: TensorReference,
    /// `[rows x groups]`, flat, unsigned; null where the scheme has a constant one.
    pub zero_points: Option<TensorReference>,
    /// `[cols]`, the group of each input column; absent where groups are runs of columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub g_idx: Option<TensorReference>,
    /// Share of weights that are exactly 0.
    pub sparsity: f64,
}

/// `quantization_metadata.json`: what a dequantized folder was before. Written last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DequantizationRecord {
    /// `lowbit.dequantization/1`
    pub schema: String,
    /// Version of this crate.
    pub version: String,
    /// Type of the weights: `F16` or `F32`.
    pub dtype: String,
    /// How the codes were found; `unknown` where another tool made them.
    pub method: String,
    /// The scheme of most modules.
    pub scheme: String,
    /// Precision of the activations that the quantized folder is meant to run with.
    pub activations: Activations,
    /// The quantized folder.
    pub source: SourceRecord,
    /// Every module that was quantized, in the order of the data flow; none where these are the original's weights.
    pub modules: Vec<DequantizedModule>,
    /// Why these are the original's weights, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
}

/// Too little of the original's predictions was left, so that training begins with the original.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fallback {
    /// The share that was left.
    pub retention: f64,
    /// The share that was asked for.
    pub min_retention: f64,
}

async fn hash_checkpoint(checkpoint: &Checkpoint) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(checkpoint.config_json().to_string().as_bytes());
    let store = checkpoint.store();
    for name in store.names() {
        let info = store.require(name)?;
        hash.update(name.as_bytes());
        hash.update(info.dtype.name().as_bytes());
        hash.update(info.shape.to_string().as_bytes());
        hash.update(store.digest(name).await?);
    }
    Ok(digest::hex(&hash.finalize()))
}

/// Reads the record of a dequantized folder.
///
/// # Errors
/// `not_found` where there is none.
pub async fn read_dequantization_record(dir: &dyn SourceDir) -> Result<DequantizationRecord> {
    let record = read_json(dir, DEQUANTIZATION_RECORD).await?.ok_or_else(|| {
        Error::new(
            ErrorCode::NotFound,
            format!(
                "{}: expected a {DEQUANTIZATION_RECORD}, as dequantizing writes it, but found none",
                dir.name()
            ),
        )
    })?;
    json::read(&record)
        .map_err(|error| Error::invalid_checkpoint(format!("{DEQUANTIZATION_RECORD}: {error}")))
}

/// Reads the record of a quantized folder; `None` where another tool wrote it.
pub async fn read_quantization_record(dir: &dyn SourceDir) -> Result<Option<QuantizationRecord>> {
    let Some(record) = read_json(dir, QUANTIZATION_RECORD).await? else {
        return Ok(None);
    };
    // auto-round has a file of the same name, with other things in it.
    if record.get("schema").is_none() {
        return Ok(None);
    }
    json::read(&record)
        .map(Some)
        .map_err(|error| Error::invalid_checkpoint(format!("{QUANTIZATION_RECORD}: {error}")))
}
