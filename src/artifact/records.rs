//! The records in the folder of a quantized, dequantized or trained checkpoint.
//!
//! Field names are part of the public interface. There are no times and no machine names: equal input gives equal
//! bytes.

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

/// The record of a quantized folder, its last file.
pub const QUANTIZATION_RECORD: &str = "quantization_config.json";
/// The record of a dequantized folder, its last file.
pub const DEQUANTIZATION_RECORD: &str = "quantization_metadata.json";

/// The method that records name for weights from quantization-aware training.
pub const TRAINED: &str = "qat";

/// The record of a folder with weights trained in floating point, its last file.
pub const TRAINING_RECORD: &str = "training_record.json";

/// Scales and zero points, beside a dequantized checkpoint.
pub const PARAMETERS_FILE: &str = "quantization_parameters.safetensors";

/// The checkpoint that something was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// As given.
    pub path: String,
    /// Parameters of the model.
    pub parameters: u64,
    /// Bytes of all stored tensors.
    pub bytes: u64,
    /// SHA-256 over config.json and then, sorted by name, each tensor's name, type, shape and SHA-256. Tensors can
    /// therefore be hashed in whatever order they are read.
    pub sha256: String,
    /// Unknown keys of its configuration files that were ignored because the caller allowed them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored_keys: Vec<String>,
}

impl SourceRecord {
    /// Reads only the tensors that were not yet [hashed while
    /// read](crate::format::shard_index::TensorStore::hash_as_read).
    pub(crate) async fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Ok(Self {
            path: checkpoint.name().to_owned(),
            parameters: checkpoint.config().parameter_count(),
            bytes: checkpoint.bytes(),
            sha256: hash_checkpoint(checkpoint).await?,
            ignored_keys: checkpoint.ignored_keys().to_vec(),
        })
    }
}

/// How one module is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleRecord {
    /// Module name.
    pub name: String,
    /// `int4-g32-sym`, or `f16` for a module that was kept.
    pub scheme: String,
    /// The requested method; absent for a module that was kept, and where no codes were computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Why the module departs from the options: the recipe's rule, or what the layout cannot store. Absent if it does
    /// not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How calibration found its codes; absent without calibration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationRecord>,
}

/// `quantization_config.json`: how a folder was made. It is written last, so its presence means that the folder is
/// complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizationRecord {
    /// `lowbit.quantization/1`
    pub schema: String,
    /// Version of this crate.
    pub version: String,
    /// `rtn`, `gptq`, `awq` or `ternary`; `qat` for trained weights; `mixed` for a recipe with several methods, which
    /// `modules` then names.
    pub method: String,
    /// The requested scheme; `mixed` for a recipe with several.
    pub scheme: String,
    /// File layout of the weights: `compressed-tensors` or `bitnet`.
    pub format: String,
    /// Precision of the activations that the folder should run with.
    pub activations: Activations,
    /// Mean bits per weight in the quantized modules, scales and zero points included.
    pub bits_per_weight: f64,
    /// All options, by their command-line names.
    pub parameters: serde_json::Map<String, serde_json::Value>,
    /// The source checkpoint.
    pub source: SourceRecord,
    /// Every linear module, in data-flow order.
    pub modules: Vec<ModuleRecord>,
}

/// A tensor in a file of the same folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorReference {
    /// File name.
    pub file: String,
    /// Tensor name.
    pub tensor: String,
}

/// How the weights of one module were quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DequantizedModule {
    /// Module name.
    pub name: String,
    /// `int4-g32-sym`, ...
    pub scheme: String,
    /// `[rows x groups]`, flat.
    pub scales: TensorReference,
    /// `[rows x groups]`, flat, unsigned; null if the scheme has a constant zero point.
    pub zero_points: Option<TensorReference>,
    /// `[cols]`: the group of each input column; absent if groups are runs of consecutive columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub g_idx: Option<TensorReference>,
    /// Fraction of weights that are exactly 0.
    pub sparsity: f64,
}

/// `quantization_metadata.json`: the quantized form that a dequantized folder was made from. Written last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DequantizationRecord {
    /// `lowbit.dequantization/1`
    pub schema: String,
    /// Version of this crate.
    pub version: String,
    /// Type of the weights: `F16` or `F32`.
    pub dtype: String,
    /// The quantization method; `unknown` for codes of another tool.
    pub method: String,
    /// The scheme of most modules.
    pub scheme: String,
    /// Precision of the activations that the quantized folder should run with.
    pub activations: Activations,
    /// The quantized folder.
    pub source: SourceRecord,
    /// Every module that was quantized, in data-flow order; empty if the folder holds the original's weights.
    pub modules: Vec<DequantizedModule>,
    /// Why the folder holds the original's weights, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
}

/// The quantized model kept too few of the original's predictions, so the original's weights were written.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fallback {
    /// The retention that was measured.
    pub retention: f64,
    /// The retention that was required.
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
/// `not_found` if there is none.
pub async fn read_dequantization_record(dir: &dyn SourceDir) -> Result<DequantizationRecord> {
    let record = read_json(dir, DEQUANTIZATION_RECORD).await?.ok_or_else(|| {
        Error::new(
            ErrorCode::NotFound,
            format!(
                "{}: expected {DEQUANTIZATION_RECORD}, which dequantizing writes, but found none",
                dir.name()
            ),
        )
    })?;
    json::read(&record)
        .map_err(|error| Error::invalid_checkpoint(format!("{DEQUANTIZATION_RECORD}: {error}")))
}

/// Reads the record of a quantized folder; `None` if another tool wrote it.
pub async fn read_quantization_record(dir: &dyn SourceDir) -> Result<Option<QuantizationRecord>> {
    let Some(record) = read_json(dir, QUANTIZATION_RECORD).await? else {
        return Ok(None);
    };
    // auto-round writes a file of the same name with other content.
    if record.get("schema").is_none() {
        return Ok(None);
    }
    json::read(&record)
        .map(Some)
        .map_err(|error| Error::invalid_checkpoint(format!("{QUANTIZATION_RECORD}: {error}")))
}
