//! Parses a GPTQ `quantization_config`, reduced to what affects the weights.

use super::dynamic::Dynamic;
use super::zeros::{GptqZeros, Storage};
use crate::error::{Error, Result};
use crate::format::json;
use crate::format::{clipped, quoted};
use crate::layout::keys;
use crate::quant::{Bits, Granularity};
use serde::Deserialize;
use serde_json::Value;

/// The content of `quantization_config`, or of `quantize_config.json`, for a GPTQ checkpoint.
#[derive(Debug)]
pub struct Config {
    settings: Settings,
    dynamic: Dynamic,
    /// The storage of asymmetric zero points. Unknown keys that
    /// `allowed` names are ignored.
    pub(super) zeros: Storage,
    warnings: Vec<String>,
}

/// The settings of one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) bits: Bits,
    pub(super) granularity: Granularity,
    pub(super) symmetric: bool,
}

/// Keys that are read here, or that only describe how codes were found. In transformers, AWQ's config class derives
/// from this one.
pub(in crate::layout) const KNOWN_KEYS: [&str; 34] = [
    "bits",
    "group_size",
    "sym",
    "checkpoint_format",
    "format",
    "pack_dtype",
    "dynamic",
    "is_marlin_format",
    // The tensors show these: a `g_idx`, a packed head.
    "desc_act",
    "lm_head",
    "static_groups",
    "act_group_aware",
    "damp_percent",
    "damp_auto_increment",
    "true_sequential",
    "mse",
    "gptaq",
    "foem",
    "hessian",
    "fallback",
    "mock_quantization",
    "model_seqlen",
    "block_name_to_quantize",
    "module_name_preceding_first_block",
    "modules_in_block_to_quantize",
    "pad_token_id",
    "max_input_length",
    "cache_block_outputs",
    "use_cuda_fp16",
    "use_exllama",
    "disable_exllama",
    "exllama_config",
    "quantizer",
    "use_safetensors",
];

#[derive(Deserialize)]
struct RawConfig {
    bits: i64,
    group_size: Option<i64>,
    sym: Option<bool>,
    checkpoint_format: Option<String>,
    format: Option<String>,
    pack_dtype: Option<String>,
    dynamic: Option<Value>,
    /// Settings by module name, from [`auto_round`](crate::layout::auto_round).
    extra_config: Option<Value>,
    meta: Option<Value>,
    provider: Option<String>,
    is_marlin_format: Option<bool>,
}

impl Config {
    /// Reads the config. `zeros` is the caller's choice for the storage of asymmetric zero points. Unknown keys that
    /// `allowed` names are ignored.
    ///
    /// # Errors
    /// `unsupported_format` for a packing other than GPTQ's own; `invalid_checkpoint` for a broken config.
    pub fn parse(config: &Value, zeros: Option<GptqZeros>, allowed: &[String]) -> Result<Self> {
        let raw: RawConfig = json::read(config)
            .map_err(|error| Error::invalid_checkpoint(clipped(&error.to_string(), 200)))?;
        keys::check("gptq", config, allowed)?;
        keys::refuse_other_than_integer_weights(config)?;
        let label = raw.checkpoint_format.as_deref().or(raw.format.as_deref());
        if raw.is_marlin_format == Some(true) {
            return Err(Error::unsupported_format("the packing `marlin` is not supported"));
        }
        if let Some(other) = label.filter(|label| !matches!(*label, "gptq" | "gptq_v2")) {
            return Err(Error::unsupported_format(format!(
                "expected `checkpoint_format` to be gptq or gptq_v2 but found {}",
                quoted(other)
            )));
        }
        if let Some(other) = raw.pack_dtype.as_deref().filter(|dtype| *dtype != "int32") {
            return Err(Error::unsupported_format(format!(
                "expected `pack_dtype` to be int32 but found {}",
                quoted(other)
            )));
        }
        let settings = Settings {
            bits: bits(raw.bits)?,
            granularity: granularity(raw.group_size.unwrap_or(-1))?,
            // Without `sym`, zero points are read from the tensors.
            symmetric: raw.sym.unwrap_or(false),
        };
        let dynamic = Dynamic::parse(raw.dynamic.as_ref(), raw.extra_config.as_ref())?;
        for rule in dynamic.rules() {
            settings.with(rule.bits, rule.group_size, rule.sym)?;
        }
        let any_asymmetric =
            !settings.symmetric || dynamic.rules().any(|rule| rule.sym == Some(false) && !rule.skip);
        let writer = Writer::of(raw.meta.as_ref(), raw.provider.as_deref());
        let mut warnings = Vec::new();
        let version = match (zeros, label, writer) {
            (Some(version), ..) => version,
            (None, Some("gptq_v2"), _) => GptqZeros::V2,
            (None, _, Writer::KnownV1 { .. }) => GptqZeros::V1,
            (None, ..) => {
                if any_asymmetric {
                    warnings.push(
                        "the files do not reliably say how this GPTQ checkpoint stores asymmetric zero points; \
                         version 1 is assumed, and `--gptq-zeros v2` selects version 2"
                            .to_owned(),
                    );
                }
                GptqZeros::V1
            }
        };
        let zeros = match (version, writer, label) {
            (GptqZeros::V2, ..) => Storage::V2,
            (GptqZeros::V1, Writer::KnownV1 { whole_words }, _) if !whole_words => Storage::V1Fields,
            // The label was introduced by tools that subtract whole words; older files have no label.
            (GptqZeros::V1, Writer::Unknown, None) => Storage::V1Fields,
            (GptqZeros::V1, ..) => Storage::V1Words,
        };
        Ok(Self { settings, dynamic, zeros, warnings })
    }

    /// The settings of a module; `None` if it stays in floating point.
    pub(super) fn settings_of(&self, module: &str) -> Result<Option<Settings>> {
        let rule = self.dynamic.rule(module);
        if rule.skip {
            return Ok(None);
        }
        self.settings.with(rule.bits, rule.group_size, rule.sym).map(Some)
    }

    /// The layout's name in reports.
    pub fn name(&self) -> &'static str {
        if self.zeros == Storage::V2 { "gptq_v2" } else { "gptq" }
    }

    /// Warnings for the user.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl Settings {
    fn with(mut self, other_bits: Option<i64>, group_size: Option<i64>, sym: Option<bool>) -> Result<Self> {
        if let Some(other) = other_bits {
            self.bits = bits(other)?;
        }
        if let Some(size) = group_size {
            self.granularity = granularity(size)?;
        }
        self.symmetric = sym.unwrap_or(self.symmetric);
        Ok(self)
    }
}

fn bits(bits: i64) -> Result<Bits> {
    u32::try_from(bits)
        .map_err(|_| Error::unsupported_format(format!("expected 2, 3, 4 or 8 bits but found {bits}")))
        .and_then(Bits::try_from)
}

/// -1 means one scale per output.
pub(in crate::layout) fn granularity(group_size: i64) -> Result<Granularity> {
    match usize::try_from(group_size) {
        Ok(size) if size > 0 => Ok(Granularity::Group(size)),
        _ if group_size == -1 => Ok(Granularity::Channel),
        _ => Err(Error::invalid_checkpoint(format!(
            "expected `group_size` to be positive, or -1, but found {group_size}"
        ))),
    }
}

/// The tool that wrote a file. It decides how version 1 is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    /// Writes version 1 unless the label is `gptq_v2`.
    KnownV1 {
        /// Whether it subtracts whole words.
        whole_words: bool,
    },
    Unknown,
}

impl Writer {
    fn of(meta: Option<&Value>, provider: Option<&str>) -> Self {
        let quantizers: Vec<&str> = match meta.and_then(|meta| meta.get("quantizer")) {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        for quantizer in quantizers {
            let (name, version) = quantizer.split_once(':').unwrap_or((quantizer, ""));
            match name.to_ascii_lowercase().as_str() {
                // Asymmetric files written before version 0.9 could not be read by any tool.
                "gptqmodel" if at_least(version, [0, 9]) => return Self::KnownV1 { whole_words: true },
                super::QUANTIZER => return Self::KnownV1 { whole_words: true },
                _ => {}
            }
        }
        if provider == Some("auto-round") {
            return Self::KnownV1 { whole_words: false };
        }
        Self::Unknown
    }
}

/// Whether a version such as `7.7.0` is at least `least`.
fn at_least(version: &str, least: [u64; 2]) -> bool {
    let mut parts = version.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse::<u64>().unwrap_or(0)
    });
    [parts.next().unwrap_or(0), parts.next().unwrap_or(0)] >= least
}
