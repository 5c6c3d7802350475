//! AWQ's `gemm` layout, as written by AutoAWQ, GPTQModel and auto-round.
//!
//! For weights of 4 bits:
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `qweight` | I32 | `[in, out / 8]` | field `i` of word `j` holds output `8 j + ORDER[i]` |
//! | `qzeros` | I32 | `[groups, out / 8]` | the same packing, zero points unchanged |
//! | `scales` | F16, BF16 | `[groups, out]` | weight = (code - zero point) * scale |
//!
//! Symmetric files (`zero_point: false`) also store zero points. So zero points are always read from the tensors, and
//! every module is read as asymmetric. AWQ also changes norms and dense weights; these are read from the same files as
//! usual.
//!
//! Not read: `gemv`, `gemv_fast`, `marlin` and other packings, and other widths.

use super::gptq::dynamic::Dynamic;
use super::gptq::granularity;
use super::stored::{
    for_each_words, in_tensor, matrix, require_float, require_shape, require_type, scales, transpose_scales,
    word_bytes, zeroed_words,
};
use super::{ModuleStorage, PackedFormat, dense, keys};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::json;
use crate::format::safetensors::TensorInfo;
use crate::format::shard_index::TensorStore;
use crate::format::{clipped, quoted};
use crate::quant::{Activations, Bits, Granularity, PackedTensor, Scheme, packing};
use crate::sort;
use serde::Deserialize;
use serde_json::{Value, json};

/// The output, of the eight in a word, that field `i` holds.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The content of `quantization_config`, or of `quant_config.json`, for an AWQ checkpoint.
#[derive(Debug)]
pub struct Config {
    granularity: Granularity,
    dynamic: Dynamic,
}

/// Keys besides GPTQ's that are read here, or that only describe how codes were found or how to run them.
pub(super) const KNOWN_KEYS: [&str; 9] = [
    "w_bit",
    "q_group_size",
    // The tensors show the values of these two.
    "zero_point",
    "modules_to_not_convert",
    "do_fuse",
    "fuse_max_seq_len",
    "modules_to_fuse",
    "duo_scaling",
    "apply_clip",
];

#[derive(Deserialize)]
struct RawConfig {
    #[serde(alias = "w_bit")]
    bits: i64,
    #[serde(alias = "q_group_size")]
    group_size: Option<i64>,
    version: Option<String>,
    checkpoint_format: Option<String>,
    format: Option<String>,
    pack_dtype: Option<String>,
    dynamic: Option<Value>,
    /// Settings by module name, from [`auto_round`](crate::layout::auto_round).
    extra_config: Option<Value>,
}

/// A module's tensor names.
struct AwqNames {
    weight: String,
    qweight: String,
    qzeros: String,
    scales: String,
}

impl AwqNames {
    fn new(module: &str) -> Self {
        let name = |suffix: &str| format!("{module}.{suffix}");
        Self {
            weight: name("weight"),
            qweight: name("qweight"),
            qzeros: name("qzeros"),
            scales: name("scales"),
        }
    }
}

/// A packed module with consistent tensors.
struct ModuleTensors {
    granularity: Granularity,
    rows: usize,
    cols: usize,
}

impl ModuleTensors {
    fn scheme(&self) -> Scheme {
        Scheme::Integer { bits: Bits::Four, granularity: self.granularity, symmetric: false }
    }
}

impl Config {
    /// Reads the config, with the keys of `config.json` or of `quant_config.json`. Unknown keys that `allowed` names
    /// are ignored.
    ///
    /// # Errors
    /// `unsupported_format` for other bit widths and packings; `invalid_checkpoint` for a broken config.
    pub fn parse(config: &Value, allowed: &[String]) -> Result<Self> {
        let raw: RawConfig = json::read(config)
            .map_err(|error| Error::invalid_checkpoint(clipped(&error.to_string(), 200)))?;
        keys::check("awq", config, allowed)?;
        keys::refuse_other_than_integer_weights(config)?;
        for (key, value) in [
            ("version", &raw.version),
            ("checkpoint_format", &raw.checkpoint_format),
            ("format", &raw.format),
        ] {
            if let Some(other) = value.as_deref().filter(|value| !value.eq_ignore_ascii_case("gemm")) {
                return Err(Error::unsupported_format(format!(
                    "expected `{key}` to be gemm but found {}",
                    quoted(other)
                )));
            }
        }
        if raw.bits != 4 {
            return Err(Error::unsupported_format(format!("expected 4 bits but found {}", raw.bits)));
        }
        if let Some(other) = raw.pack_dtype.as_deref().filter(|dtype| *dtype != "int32") {
            return Err(Error::unsupported_format(format!(
                "expected `pack_dtype` to be int32 but found {}",
                quoted(other)
            )));
        }
        let dynamic = Dynamic::parse(raw.dynamic.as_ref(), raw.extra_config.as_ref())?;
        for rule in dynamic.rules() {
            rule.group_size.map_or(Ok(Granularity::Channel), granularity)?;
            if let Some(other) = rule.bits.filter(|&bits| bits != 4) {
                return Err(Error::unsupported_format(format!(
                    "expected 4 bits but found {other} in `dynamic`"
                )));
            }
        }
        Ok(Self { granularity: granularity(raw.group_size.unwrap_or(-1))?, dynamic })
    }

    pub(super) fn module(&self, store: &TensorStore, module: &str) -> Result<ModuleStorage> {
        Ok(match self.find(store, module)? {
            None => dense::module(store, module)?,
            Some(found) => ModuleStorage::Packed {
                coding: found.scheme().into(),
                activations: Activations::F32,
                rows: found.rows,
                cols: found.cols,
            },
        })
    }

    pub(super) async fn read_packed(&self, store: &TensorStore, module: &str) -> Result<PackedTensor> {
        let Some(found) = self.find(store, module)? else {
            return Err(Error::invalid_checkpoint("expected packed weights but found floating point"));
        };
        let names = AwqNames::new(module);
        let ModuleTensors { granularity, rows, cols } = found;
        let groups = granularity.groups_per_row(cols);
        let stored_scales = scales(store, &names.scales).await?;
        let mut zero_points = vec![0u8; rows * groups];
        for_each_words(store, &names.qzeros, |group, words| {
            for (row, code) in fields(words).enumerate() {
                zero_points[output(row) * groups + group] = code;
            }
        })
        .await?;
        let words_across = packing::words(cols, 4);
        let mut codes = zeroed_words(rows, words_across).map_err(|error| in_tensor(&names.qweight, error))?;
        for_each_words(store, &names.qweight, |col, words| {
            for (row, code) in fields(words).enumerate() {
                codes[output(row) * words_across + col / 8] |= u32::from(code) << (col % 8 * 4);
            }
        })
        .await?;
        let scales = transpose_scales(&stored_scales, groups);
        PackedTensor::new(found.scheme(), rows, cols, codes, scales, Some(zero_points))
            .map_err(|error| in_tensor(&names.qweight, error))
    }

    /// All checks of a module that need only headers; `None` for floating point.
    fn find(&self, store: &TensorStore, module: &str) -> Result<Option<ModuleTensors>> {
        let names = AwqNames::new(module);
        let Some(info) = store.get(&names.qweight) else { return Ok(None) };
        if store.get(&names.weight).is_some() {
            return Err(Error::invalid_checkpoint("expected one of `weight` and `qweight` but found both"));
        }
        let rule = self.dynamic.rule(module);
        if rule.skip {
            return Err(Error::invalid_checkpoint(
                "the weights are packed but `dynamic` leaves them in floating point",
            ));
        }
        let granularity = rule.group_size.map_or(Ok(self.granularity), granularity)?;
        require_type(store, &names.qweight, DType::I32)?;
        let (cols, words) = matrix(&names.qweight, info)?;
        let rows = words.checked_mul(8).ok_or_else(|| {
            in_tensor(&names.qweight, Error::invalid_checkpoint(format!("{words} x 8 outputs are too many")))
        })?;
        let groups = granularity.groups_per_row(cols) as u64;
        require_shape(&names.scales, require_float(store, &names.scales)?, &[&[groups, rows as u64]])?;
        let zeros = require_type(store, &names.qzeros, DType::I32)?;
        require_shape(&names.qzeros, zeros, &[&[groups, words as u64]])?;
        Ok(Some(ModuleTensors { granularity, rows, cols }))
    }
}

/// The 4-bit fields of words, one byte each.
fn fields(words: &[u32]) -> impl Iterator<Item = u8> {
    words.iter().flat_map(|word| (0..8).map(move |field| (word >> (4 * field) & 15) as u8))
}

/// The output that field number `field` holds.
fn output(field: usize) -> usize {
    field / 8 * 8 + ORDER[field % 8]
}

/// Group sizes that AWQ kernels accept.
const GROUP_SIZES: [usize; 4] = [16, 32, 64, 128];

pub(super) fn can_hold(rows: usize, cols: usize, scheme: Scheme) -> Result<(), String> {
    let Scheme::Integer { bits: Bits::Four, granularity, .. } = scheme else {
        return Err(format!("it holds integer codes of 4 bits, not {scheme}"));
    };
    match granularity {
        Granularity::Tensor => Err("it has one scale per output or group, not one per tensor".to_owned()),
        Granularity::Group(size) if !GROUP_SIZES.contains(&size) => {
            Err(format!("its tools take groups of 16, 32, 64 or 128 columns, not of {size}"))
        }
        Granularity::Group(size) if !cols.is_multiple_of(size) => {
            Err(format!("groups of {size} do not divide {cols} columns"))
        }
        _ if !rows.is_multiple_of(8) => Err(format!("it needs a multiple of 8 rows, not {rows}")),
        _ => Ok(()),
    }
}

pub(super) fn planned_tensors(
    module: &str,
    rows: usize,
    cols: usize,
    format: PackedFormat,
) -> Vec<(String, TensorInfo)> {
    let names = AwqNames::new(module);
    let groups = format.scheme().granularity().groups_per_row(cols) as u64;
    let (rows, cols) = (rows as u64, cols as u64);
    vec![
        (names.qweight, TensorInfo::new(DType::I32, [cols, rows / 8])),
        (names.qzeros, TensorInfo::new(DType::I32, [groups, rows / 8])),
        (names.scales, TensorInfo::new(format.scale_type.dtype(), [groups, rows])),
    ]
}

pub(super) fn encode(module: &str, tensor: &PackedTensor) -> Vec<(String, Vec<u8>)> {
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let groups = tensor.scheme().granularity().groups_per_row(cols);
    let names = AwqNames::new(module);
    let across = rows / 8;
    // The bit position of a row's field in its word.
    let shift = |row: usize| 4 * ORDER.iter().position(|&output| output == row % 8).unwrap_or(0);
    let mut qweight = vec![0u32; cols * across];
    let mut qzeros = vec![0u32; groups * across];
    let mut codes = vec![0u8; cols];
    for row in 0..rows {
        tensor.unpack_row(row, &mut codes);
        for (word, &code) in qweight[row / 8..].iter_mut().step_by(across).zip(&codes) {
            *word |= u32::from(code) << shift(row);
        }
        for (group, word) in qzeros[row / 8..].iter_mut().step_by(across).enumerate() {
            let constant = || tensor.scheme().constant_zero_point().unwrap_or(0);
            let zero =
                tensor.zero_points().map_or_else(constant, |zeros| u32::from(zeros[row * groups + group]));
            *word |= zero << shift(row);
        }
    }
    vec![
        (names.qweight, word_bytes(&qweight)),
        (names.qzeros, word_bytes(&qzeros)),
        (names.scales, transpose_scales(tensor.scales(), rows).to_bytes()),
    ]
}

/// The layout has one group size for all modules.
pub(super) fn quantization_config(entries: &[(String, PackedFormat)], ignore: &[String]) -> Result<Value> {
    let usual = entries[0].1.scheme().granularity();
    if let Some((module, format)) = entries.iter().find(|(_, format)| format.scheme().granularity() != usual)
    {
        return Err(Error::unsupported_format(format!(
            "the awq layout has one group size for all modules, but {} is {} and {} is {}",
            quoted(&entries[0].0),
            entries[0].1.scheme(),
            quoted(module),
            format.scheme()
        )));
    }
    let asymmetric = entries.iter().any(|(_, format)| format.scheme().constant_zero_point().is_none());
    // Loaders never convert the head, so it is not listed.
    let mut left_out: Vec<&String> = ignore.iter().filter(|module| *module != "lm_head").collect();
    sort::sort(&mut left_out);
    Ok(json!({
        "bits": 4,
        "group_size": match usual {
            Granularity::Group(size) => json!(size),
            _ => json!(-1),
        },
        "modules_to_not_convert": if left_out.is_empty() { Value::Null } else { json!(left_out) },
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": asymmetric,
    }))
}

#[cfg(test)]
mod tests;
