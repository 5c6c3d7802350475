//! BitNet weights as stored by `transformers` (`integrations/bitnet.py`) and by microsoft/bitnet-b1.58-2B-4T.
//!
//! `weight`, `U8 [out/4, in]`: bits `2i` and `2i + 1` of byte `[r, c]` hold row `i * out/4 + r` of column `c`, as the
//! ternary value plus 1. `weight_scale` is `[1]`. Two conventions share these names:
//!
//! - `linear_class: "bitlinear"`, the default, stores `1 / mean |W|`, and the layer *divides* by it;
//! - `linear_class: "autobitlinear"` with `quantization_mode: "offline"` *multiplies* by it. This crate writes this
//!   convention.
//!
//! `linear_class: "autobitlinear"` with `quantization_mode: "online"` stores floating-point master weights, which every
//! forward pass makes ternary. They are read as these ternary weights, and can be converted to packed ones.
//!
//! The packer pads rows to a multiple of 4, but the loader refuses padded files. They are neither read nor written.
//! Activations are always INT8 per token.

use super::stored::{in_tensor, matrix, require_shape, scales, zeroed_words};
use super::{ModuleStorage, dense, is_embedding, keys};
use crate::dtype::{DType, decode_f32};
use crate::error::{Error, ErrorCode, Result};
use crate::format::json;
use crate::format::safetensors::TensorInfo;
use crate::format::shard_index::TensorStore;
use crate::format::{clipped, quoted};
use crate::quant::{
    Activations, Coding, Granularity, PackedTensor, ScaleType, Scales, Scheme, TernaryQuantizer, packing,
};
use regex_lite::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Value, json};

const SCHEME: Scheme = Scheme::Ternary { granularity: Granularity::Tensor };

/// Bytes of master weights per read.
const CHUNK_BYTES: usize = 4 << 20;

/// Limits for patterns from untrusted files.
const MAX_PATTERN_BYTES: usize = 32 * 1024;
const MAX_PATTERNS: usize = 4096;

pub(super) const KNOWN_KEYS: [&str; 5] =
    ["linear_class", "quantization_mode", "use_rms_norm", "rms_norm_eps", "modules_to_not_convert"];

/// What `quantization_config` says about a BitNet checkpoint.
#[derive(Debug)]
pub struct Config {
    weights: Weights,
    /// Linear modules that stay in floating point.
    kept: Vec<Kept>,
}

/// How the weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weights {
    /// Codes, and a scale by which the layer divides.
    Divided,
    /// Codes, and a scale by which the layer multiplies.
    Multiplied,
    /// Floating-point master weights.
    Online,
}

/// A name of `modules_to_not_convert`. transformers uses it as a pattern for prefixes of a module's name, and as a
/// literal suffix.
#[derive(Debug)]
struct Kept {
    ending: String,
    /// Matches a whole prefix.
    beginning: Regex,
}

impl Kept {
    fn new(name: String) -> Result<Self> {
        let pattern = RegexBuilder::new(&format!("^(?:{name})$")).size_limit(MAX_PATTERN_BYTES).build();
        let beginning = pattern.map_err(|error| {
            Error::unsupported_format(format!(
                "the pattern {} of `modules_to_not_convert` is not supported: {}",
                quoted(&name),
                clipped(&error.to_string(), 200)
            ))
        })?;
        Ok(Self { ending: name, beginning })
    }

    /// A prefix must end at a part boundary: `layers.1` does not match `layers.10`.
    fn matches(&self, module: &str) -> bool {
        let bytes = module.as_bytes();
        let ends_part = |end: &usize| *end == bytes.len() || bytes[*end] == b'.' || bytes[*end - 1] == b'.';
        module.ends_with(&self.ending)
            || (1..=bytes.len())
                .filter(|end| module.is_char_boundary(*end))
                .filter(ends_part)
                .any(|end| self.beginning.is_match(&module[..end]))
    }
}

#[derive(Deserialize)]
struct RawConfig {
    linear_class: Option<String>,
    quantization_mode: Option<String>,
    use_rms_norm: Option<bool>,
    modules_to_not_convert: Option<Vec<String>>,
}

impl Config {
    /// Reads `quantization_config`. Unknown keys that `allowed` names are ignored.
    ///
    /// # Errors
    /// `unsupported_format` for a norm inside linear layers, an unknown key, or a ternary head in online mode.
    pub fn parse(config: &Value, allowed: &[String]) -> Result<Self> {
        let raw: RawConfig = json::read(config)
            .map_err(|error| Error::invalid_checkpoint(clipped(&error.to_string(), 200)))?;
        keys::check("bitnet", config, allowed)?;
        if raw.use_rms_norm == Some(true) {
            return Err(Error::unsupported_format("`use_rms_norm` inside linear layers is not supported"));
        }
        let mode = raw.quantization_mode.as_deref().unwrap_or("offline");
        let weights = match (raw.linear_class.as_deref().unwrap_or("bitlinear"), mode) {
            ("bitlinear", _) => Weights::Divided,
            ("autobitlinear", "offline") => Weights::Multiplied,
            ("autobitlinear", "online") => Weights::Online,
            (class, mode) => {
                return Err(Error::unsupported_format(format!(
                    "expected `bitlinear`, or `autobitlinear` with the mode `offline` or `online`, but found {} with {}",
                    quoted(class),
                    quoted(mode)
                )));
            }
        };
        let kept = raw.modules_to_not_convert.unwrap_or_else(|| vec![HEAD.to_owned()]);
        if kept.len() > MAX_PATTERNS {
            return Err(Error::unsupported_format(format!(
                "expected at most {MAX_PATTERNS} names in `modules_to_not_convert` but found {}",
                kept.len()
            )));
        }
        // In packed checkpoints, the tensors show which modules are packed.
        let kept = if weights == Weights::Online { kept } else { Vec::new() };
        let config = Self { weights, kept: kept.into_iter().map(Kept::new).collect::<Result<_>>()? };
        if weights == Weights::Online && !config.keeps(HEAD) {
            return Err(Error::unsupported_format(
                "a ternary head is not supported: `modules_to_not_convert` does not list it",
            ));
        }
        Ok(config)
    }

    /// Whether the stored weights are master weights.
    pub(super) fn is_online(&self) -> bool {
        self.weights == Weights::Online
    }

    /// Whether a module stays in floating point.
    fn keeps(&self, module: &str) -> bool {
        is_embedding(module) || self.kept.iter().any(|kept| kept.matches(module))
    }

    /// The tensors decide: bytes with a scale are packed; floating point without a scale was not converted. Master
    /// weights are reported as packed, because every forward pass uses them as ternary weights.
    pub(super) fn module(&self, store: &TensorStore, module: &str) -> Result<ModuleStorage> {
        if self.is_online() {
            let stored = dense::module(store, module)?;
            let (rows, cols) = stored.shape();
            let packed = ModuleStorage::Packed {
                coding: Coding::Affine(SCHEME),
                activations: Activations::Int8,
                rows,
                cols,
            };
            return Ok(if self.keeps(module) { stored } else { packed });
        }
        let (weight, scale) = names(module);
        let scale_info = store.get(&scale);
        if store.get(&weight).is_some_and(|info| info.dtype != DType::U8) || scale_info.is_none() {
            if scale_info.is_some() {
                return Err(in_tensor(
                    &weight,
                    Error::unsupported_format("expected packed weights of type U8 beside a `weight_scale`"),
                ));
            }
            return dense::module(store, module);
        }
        let (quarter, cols) = matrix(&weight, store.require(&weight)?)?;
        let rows = quarter.checked_mul(4).ok_or_else(|| {
            in_tensor(&weight, Error::new(ErrorCode::OutOfMemory, format!("{quarter} x 4 rows are too many")))
        })?;
        require_shape(&scale, store.require(&scale)?, &[&[1], &[], &[1, 1]])?;
        Ok(ModuleStorage::Packed {
            coding: Coding::Affine(SCHEME),
            activations: Activations::Int8,
            rows,
            cols,
        })
    }

    pub(super) async fn read_packed(&self, store: &TensorStore, module: &str) -> Result<PackedTensor> {
        let ModuleStorage::Packed { rows, cols, .. } = self.module(store, module)? else {
            return Err(Error::invalid_checkpoint("expected packed weights but found floating point"));
        };
        if self.is_online() {
            return pack_masters(store, module).await;
        }
        let (weight, scale) = names(module);
        let mut scales = scales(store, &scale).await?;
        if self.weights == Weights::Divided {
            let inverse = 1.0 / scales.get(0);
            if !inverse.is_finite() {
                return Err(in_tensor(
                    &scale,
                    Error::new(ErrorCode::NonFinite, "the layer divides by its scale, which is 0"),
                ));
            }
            scales = Scales::F32(vec![inverse]);
        }
        let bytes = store.read(&weight).await?;
        let quarter = rows / 4;
        let words = packing::words(cols, 2);
        let mut codes = zeroed_words(rows, words)?;
        let mut row_codes = vec![0u8; cols];
        for (row, out) in codes.chunks_exact_mut(words).enumerate() {
            let (shift, from) = (2 * (row / quarter), row % quarter * cols);
            for (code, byte) in row_codes.iter_mut().zip(&bytes[from..from + cols]) {
                *code = (byte >> shift) & 3;
            }
            packing::pack_row(&row_codes, 2, out);
        }
        PackedTensor::new(SCHEME, rows, cols, codes, scales, None).map_err(|error| in_tensor(&weight, error))
    }
}

/// The output head, which stays in floating point by default.
const HEAD: &str = "lm_head";

/// The ternary weights of a forward pass: signs or 0, times the mean magnitude of the master weights.
async fn pack_masters(store: &TensorStore, module: &str) -> Result<PackedTensor> {
    let ModuleStorage::Dense { tensor, dtype, rows, cols } = dense::module(store, module)? else {
        return Err(Error::invalid_checkpoint("expected floating-point weights but found packed ones"));
    };
    let mut quantizer = TernaryQuantizer::new(Granularity::Tensor, rows, cols, ScaleType::F32, None)?;
    let row_bytes = cols * dtype.size();
    let rows_at_once = (CHUNK_BYTES / row_bytes).max(1);
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for observing in [true, false] {
        for start in (0..rows).step_by(rows_at_once) {
            let end = rows.min(start + rows_at_once);
            bytes.resize((end - start) * row_bytes, 0);
            values.resize((end - start) * cols, 0.0);
            store
                .read_range(&tensor, (start * row_bytes) as u64..(end * row_bytes) as u64, &mut bytes)
                .await?;
            decode_f32(dtype, &bytes, &mut values)?;
            let taken =
                if observing { quantizer.observe_rows(&values) } else { quantizer.push_rows(&values) };
            taken.map_err(|error| in_tensor(&tensor, error))?;
        }
    }
    quantizer.finish()
}

fn names(module: &str) -> (String, String) {
    (format!("{module}.weight"), format!("{module}.weight_scale"))
}

pub(super) fn can_hold(rows: usize, scheme: Scheme) -> Result<(), String> {
    if scheme != SCHEME {
        return Err(format!("it holds ternary codes with one scale per tensor, not {scheme}"));
    }
    if !rows.is_multiple_of(4) {
        return Err(format!("it needs a multiple of 4 rows, not {rows}"));
    }
    Ok(())
}

pub(super) fn planned_tensors(
    module: &str,
    rows: usize,
    cols: usize,
    scale_type: ScaleType,
) -> Vec<(String, TensorInfo)> {
    let (weight, scale) = names(module);
    vec![
        (weight, TensorInfo::new(DType::U8, [rows as u64 / 4, cols as u64])),
        (scale, TensorInfo::new(scale_type.dtype(), [1])),
    ]
}

pub(super) fn encode(module: &str, tensor: &PackedTensor) -> Vec<(String, Vec<u8>)> {
    let (rows, cols) = (tensor.rows(), tensor.cols());
    let quarter = rows / 4;
    let mut bytes = vec![0u8; quarter * cols];
    let mut row_codes = vec![0u8; cols];
    for row in 0..rows {
        tensor.unpack_row(row, &mut row_codes);
        let (shift, from) = (2 * (row / quarter), row % quarter * cols);
        for (byte, code) in bytes[from..from + cols].iter_mut().zip(&row_codes) {
            *byte |= code << shift;
        }
    }
    let (weight, scale) = names(module);
    vec![(weight, bytes), (scale, tensor.scales().to_bytes())]
}

/// A list replaces the loader's defaults (the head and tied weights), so it must be complete; null keeps the defaults.
pub(super) fn quantization_config(ignore: &[String]) -> Value {
    let ignore = if ignore.is_empty() { Value::Null } else { json!(ignore) };
    json!({
        "linear_class": "autobitlinear",
        "modules_to_not_convert": ignore,
        "quant_method": "bitnet",
        "quantization_mode": "offline",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Layout, OpenOptions, PackedFormat, TargetLayout};
    use crate::quant::ActivationGrid;
    use crate::task::block_on;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const MODULE: &str = "model.layers.0.mlp.up_proj";

    const FORMAT: PackedFormat =
        PackedFormat { coding: Coding::Affine(SCHEME), scale_type: ScaleType::F32, reordered: false };

    type Tensors = Vec<(String, TensorInfo, Vec<u8>)>;

    fn open(config: Value, tensors: Tensors) -> Result<(TensorStore, Layout)> {
        let store = TensorStore::in_memory("test", tensors, BTreeMap::new()).unwrap();
        let layout = block_on(Layout::open(Some(&config), &store, &OpenOptions::default()))?;
        Ok((store, layout))
    }

    fn read(config: Value, tensors: Tensors) -> Result<PackedTensor> {
        let (store, layout) = open(config, tensors)?;
        assert_eq!(layout.module(&store, MODULE)?.activations(), Activations::Int8);
        assert_eq!(layout.activation_grid(), ActivationGrid::Absmax127);
        Ok(block_on(layout.read_packed(&store, MODULE))?.affine().unwrap().clone())
    }

    /// The example in the documentation of transformers' `unpack_weights`.
    fn documented(scale: f32) -> Tensors {
        vec![
            (
                format!("{MODULE}.weight"),
                TensorInfo::new(DType::U8, [2, 2]),
                vec![0b1010_0001, 0b0001_1000, 0b1001_0000, 0b0000_1010],
            ),
            (
                format!("{MODULE}.weight_scale"),
                TensorInfo::new(DType::F32, [1]),
                scale.to_le_bytes().to_vec(),
            ),
        ]
    }

    #[test]
    fn both_conventions_give_the_documented_weights() {
        let signs = [0, -1, -1, 1, -1, 1, -1, 1, 1, 0, 0, -1, 1, -1, 1, -1];
        let cases = [
            (json!({"quant_method": "bitnet"}), 4.0, 0.25),
            (
                json!({"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "online"}),
                0.5,
                2.0,
            ),
            (json!({"quant_method": "bitnet", "linear_class": "autobitlinear"}), 4.0, 4.0),
            (bitnet_config(&[]), 0.5, 0.5),
        ];
        for (config, stored, multiplier) in cases {
            let tensor = read(config.clone(), documented(stored)).unwrap();
            let found: Vec<i32> = (0..16).map(|i| tensor.code(i / 2, i % 2) as i32 - 1).collect();
            assert_eq!(found, signs, "{config}");
            assert_eq!(tensor.scales(), &Scales::F32(vec![multiplier]), "{config}");
        }
    }

    fn bitnet_config(ignore: &[String]) -> Value {
        TargetLayout::BitNet
            .quantization_config(&[(MODULE.to_owned(), FORMAT)], ignore, Activations::Int8)
            .unwrap()
    }

    #[test]
    fn the_config_is_that_of_offline_autobitlinear() {
        assert_eq!(
            bitnet_config(&["lm_head".to_owned()]),
            json!({"linear_class": "autobitlinear", "modules_to_not_convert": ["lm_head"], "quant_method": "bitnet",
                   "quantization_mode": "offline"})
        );
        assert_eq!(bitnet_config(&[])["modules_to_not_convert"], Value::Null);
        let f32 =
            TargetLayout::BitNet.quantization_config(&[(MODULE.to_owned(), FORMAT)], &[], Activations::F32);
        assert!(f32.is_err());
    }

    /// Names, and the modules that transformers' `should_convert_module` keeps or converts for them.
    #[test]
    fn masters_that_stay_are_those_that_transformers_keeps() {
        let cases: [(&str, &[&str], &[&str]); 6] = [
            (
                "model.layers.1",
                &["model.layers.1.mlp.up_proj"],
                &["model.layers.10.mlp.up_proj", "model.layers.0.mlp.up_proj"],
            ),
            (
                "model.layers.1.",
                &["model.layers.1.mlp.up_proj", "model.layers.10.mlp.up_proj"],
                &["model.layers.2.mlp.up_proj"],
            ),
            ("model.layers.0.mlp.gate", &[], &["model.layers.0.mlp.gate_proj"]),
            (".*mlp.*", &["model.layers.3.mlp.up_proj"], &["model.layers.3.self_attn.q_proj"]),
            ("down_proj", &["model.layers.3.mlp.down_proj"], &["model.layers.3.mlp.up_proj"]),
            ("a|model.layers.0", &["model.layers.0.mlp.up_proj"], &["model.layers.4.mlp.up_proj"]),
        ];
        let online = |kept: Value| {
            let config = json!({"linear_class": "autobitlinear", "quantization_mode": "online",
                "modules_to_not_convert": kept});
            Config::parse(&config, &[])
        };
        for (name, kept, converted) in cases {
            let config = online(json!(["lm_head", name])).unwrap();
            assert!(kept.iter().all(|module| config.keeps(module)), "{name}");
            assert!(!converted.iter().any(|module| config.keeps(module)), "{name}");
        }
        for (kept, word) in [(json!(["lm_"]), "head"), (json!(["lm_head", "(?=x)"]), "`(?=x)`")] {
            let error = online(kept).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn contradictions_are_errors() {
        type Spoil = fn(&mut Value, &mut Tensors);
        let cases: [(&str, ErrorCode, Spoil); 12] = [
            ("row 0 holds a code above 2", ErrorCode::InvalidCheckpoint, |_, t| t[0].2[0] = 3),
            ("expected finite scales but found NaN", ErrorCode::NonFinite, |_, t| {
                t[1].2 = f32::NAN.to_le_bytes().to_vec();
            }),
            ("divides by its scale, which is 0", ErrorCode::NonFinite, |_, t| t[1].2 = vec![0; 4]),
            ("expected shape [1] but found [2]", ErrorCode::InvalidCheckpoint, |_, t| {
                t[1].1 = TensorInfo::new(DType::F16, [2]);
            }),
            ("expected packed weights of type U8", ErrorCode::UnsupportedFormat, |_, t| {
                t[0].1.dtype = DType::I8
            }),
            (
                "expected weights of type F32, F16 or BF16 but found U8",
                ErrorCode::UnsupportedFormat,
                |_, t| {
                    t.truncate(1);
                },
            ),
            ("expected a matrix with elements but found shape [4]", ErrorCode::InvalidCheckpoint, |_, t| {
                t[0].1 = TensorInfo::new(DType::U8, [4]);
            }),
            // Packed codes are not master weights.
            ("expected weights of type F32, F16 or BF16", ErrorCode::UnsupportedFormat, |c, _| {
                c["linear_class"] = json!("autobitlinear");
                c["quantization_mode"] = json!("online");
            }),
            ("but found `autobitlinear` with `later`", ErrorCode::UnsupportedFormat, |c, _| {
                c["linear_class"] = json!("autobitlinear");
                c["quantization_mode"] = json!("later");
            }),
            ("a ternary head is not supported", ErrorCode::UnsupportedFormat, |c, _| {
                c["linear_class"] = json!("autobitlinear");
                c["quantization_mode"] = json!("online");
                c["modules_to_not_convert"] = json!(["model.layers.0"]);
            }),
            ("unknown key `rotation` = \"hadamard\"", ErrorCode::UnsupportedFormat, |c, _| {
                c["rotation"] = json!("hadamard");
            }),
            ("`use_rms_norm` inside linear layers", ErrorCode::UnsupportedFormat, |c, _| {
                c["use_rms_norm"] = json!(true);
            }),
        ];
        for (message, code, spoil) in cases {
            let (mut config, mut tensors) = (json!({"quant_method": "bitnet"}), documented(1.0));
            spoil(&mut config, &mut tensors);
            let error = read(config, tensors).unwrap_err();
            assert!(error.to_string().contains(message), "expected {message:?} but found {error}");
            assert_eq!(error.code(), code, "{error}");
        }
    }

    #[test]
    fn modules_that_were_not_converted_are_dense() {
        let tensors = vec![("lm_head.weight".to_owned(), TensorInfo::new(DType::BF16, [3, 2]), vec![0; 12])];
        let (store, layout) = open(bitnet_config(&[]), tensors).unwrap();
        let storage = layout.module(&store, "lm_head").unwrap();
        assert!(matches!(storage, ModuleStorage::Dense { dtype: DType::BF16, rows: 3, cols: 2, .. }));
        assert!(block_on(layout.read_packed(&store, "lm_head")).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_again(quarter in 1usize..6, cols in 1usize..40, random in prop::collection::vec(-2f32..2.0, 800)) {
            let rows = quarter * 4;
            let mut quantizer = TernaryQuantizer::new(Granularity::Tensor, rows, cols, ScaleType::F32, None).unwrap();
            quantizer.observe_rows(&random[..rows * cols]).unwrap();
            quantizer.push_rows(&random[..rows * cols]).unwrap();
            let tensor = quantizer.finish().unwrap();
            let planned = TargetLayout::BitNet.planned_tensors(MODULE, rows, cols, FORMAT);
            let encoded = TargetLayout::BitNet.encode(MODULE, tensor.clone(), FORMAT).unwrap();
            let tensors = planned.into_iter().zip(encoded).map(|((name, info), (_, bytes))| (name, info, bytes)).collect();
            prop_assert_eq!(read(bitnet_config(&[]), tensors).unwrap(), tensor);
        }
    }
}
