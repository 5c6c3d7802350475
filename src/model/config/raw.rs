//! config.json as it is written, and the checks for features that the decoder does not support.

use super::Architecture;
use super::family::Defaults;
use crate::backend::GateActivation;
use crate::error::{Error, Result};
use crate::format::{clipped, json, quoted};
use crate::model::rope::{RopeConfig, RopeScaling};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
pub(super) struct Raw {
    pub(super) model_type: Option<String>,
    architectures: Option<Vec<String>>,
    pub(super) hidden_size: Option<u64>,
    pub(super) intermediate_size: Option<u64>,
    pub(super) num_hidden_layers: Option<u64>,
    pub(super) num_attention_heads: Option<u64>,
    pub(super) num_key_value_heads: Option<u64>,
    pub(super) head_dim: Option<u64>,
    pub(super) vocab_size: Option<u64>,
    pub(super) max_position_embeddings: Option<u64>,
    original_max_position_embeddings: Option<f64>,
    pub(super) rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    pub(super) tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    pub(super) attention_bias: Option<bool>,
    pub(super) mlp_bias: Option<bool>,
    is_causal: Option<bool>,
    sliding_window: Option<i64>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<i64>,
    per_layer_config: Option<Value>,
    layer_types: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

/// The token ids under a key: `2`, `[2, 3]`, or `-1`, by which some tools mean "none". `None` if the key is missing or
/// null.
///
/// # Errors
/// `invalid_checkpoint` naming the key.
pub(crate) fn token_ids(config: &Value, key: &str) -> Result<Option<Vec<u32>>> {
    let one = |value: &Value| {
        json::read::<i64>(value).map_err(|_| {
            let found = clipped(&value.to_string(), 60);
            Error::invalid_checkpoint(format!(
                "expected `{key}` to be a token id, or a list of them, but found {found}"
            ))
        })
    };
    let ids: Vec<i64> = match config.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(items)) => items.iter().map(one).collect::<Result<_>>()?,
        Some(value) => vec![one(value)?],
    };
    Ok(Some(ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect()))
}

impl Raw {
    /// Reads the keys of config.json that the decoder uses. Missing keys and nulls both become `None`.
    pub(super) fn read(config: &Value) -> Result<Self> {
        json::read(config)
            .map_err(|error| Error::invalid_checkpoint(format!("expected a model configuration: {error}")))
    }

    /// # Errors
    /// `unsupported_model` naming the key.
    pub(super) fn refuse_unsupported(&self, config: &Value, architecture: Architecture) -> Result<()> {
        self.refuse_other_heads()?;
        if self.is_causal == Some(false) {
            return Err(Error::unsupported_model(
                "bidirectional attention (is_causal = false) is not supported: such models compute embeddings, not text",
            ));
        }
        if self.per_layer_config.is_some() {
            return Err(Error::unsupported_model(
                "layers with different configurations (per_layer_config) are not supported",
            ));
        }
        self.refuse_window(config, architecture)?;
        if let Some(other) = self.layer_types.iter().flatten().find(|kind| *kind != "full_attention") {
            return Err(Error::unsupported_model(format!("layer type {} is not supported", quoted(other))));
        }
        Ok(())
    }

    /// # Errors
    /// `invalid_checkpoint` if `layer_types` does not have an entry for each layer.
    pub(super) fn check_layer_types(&self, layers: usize) -> Result<()> {
        match &self.layer_types {
            Some(types) if types.len() != layers => Err(Error::invalid_checkpoint(format!(
                "expected `layer_types` for {layers} layers (num_hidden_layers) but found {}",
                types.len()
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses transformers classes with another head: all but causal language models and bare decoders.
    fn refuse_other_heads(&self) -> Result<()> {
        let runs = |class: &str| class.ends_with("ForCausalLM") || !class.contains("For");
        match self.architectures.iter().flatten().find(|class| !runs(class)) {
            Some(other) => Err(Error::unsupported_model(format!(
                "{} (architectures) is not a causal language model: its head does not predict the next token",
                quoted(other)
            ))),
            None => Ok(()),
        }
    }

    fn refuse_window(&self, config: &Value, architecture: Architecture) -> Result<()> {
        let defaults = architecture.defaults();
        // Families whose class has no window ignore the key.
        let Some(of_class) = defaults.sliding_window else { return Ok(()) };
        // Null means no window.
        let written = config.get("sliding_window").is_some();
        let window = if written { self.sliding_window } else { Some(of_class as i64) };
        let Some(window) = window else { return Ok(()) };
        if let Some(first) = defaults.max_window_layers {
            // In Qwen, a flag enables windows, and only for the last layers, unless `layer_types` lists each layer's
            // type.
            let first = self.max_window_layers.unwrap_or(first as i64);
            let any = self.layer_types.is_none()
                && self.num_hidden_layers.is_none_or(|layers| first < layers as i64);
            if !(self.use_sliding_window.unwrap_or(false) && any) {
                return Ok(());
            }
        }
        let longest = self.max_position_embeddings.unwrap_or(defaults.max_position_embeddings);
        if u64::try_from(window).is_ok_and(|window| window >= longest) {
            return Ok(());
        }
        let from =
            if written { "" } else { ", the default of the family because config.json has no such key" };
        Err(Error::unsupported_model(format!(
            "sliding window attention (sliding_window = {window}{from}) is not supported"
        )))
    }

    pub(super) fn activation(&self, defaults: &Defaults) -> Result<GateActivation> {
        match self.hidden_act.as_deref().unwrap_or(defaults.hidden_act) {
            "silu" | "swish" => Ok(GateActivation::Silu),
            "relu2" => Ok(GateActivation::SquaredRelu),
            other => Err(Error::unsupported_model(format!(
                "activation {} (hidden_act) is not supported; expected silu or relu2",
                quoted(other)
            ))),
        }
    }

    /// A non-empty `rope_scaling` replaces `rope_parameters` completely, as transformers 5 reads a configuration that
    /// has both.
    fn raw_rope(&self) -> Result<Option<RawRope>> {
        let says_something = |value: &&Value| value.as_object().is_none_or(|object| !object.is_empty());
        let of_key =
            |key, value: &'_ Option<Value>| value.clone().filter(|v| says_something(&v)).map(|v| (key, v));
        let found = of_key("rope_scaling", &self.rope_scaling)
            .or_else(|| of_key("rope_parameters", &self.rope_parameters));
        let Some((key, value)) = found else { return Ok(None) };
        let Some(object) = value.as_object() else {
            return Err(Error::invalid_checkpoint(format!("expected `{key}` to be an object")));
        };
        if let Some((kind, _)) = object.iter().find(|(_, value)| value.is_object()) {
            return Err(Error::unsupported_model(format!(
                "a separate {key} for layers of type {} is not supported",
                quoted(kind)
            )));
        }
        json::read(&value).map(Some).map_err(|error| {
            Error::invalid_checkpoint(format!("expected rope parameters in `{key}`: {error}"))
        })
    }

    pub(super) fn rope(&self, defaults: &Defaults) -> Result<RopeConfig> {
        let raw = self.raw_rope()?;
        let rotated = raw.as_ref().and_then(|rope| rope.partial_rotary_factor).or(self.partial_rotary_factor);
        if let Some(factor) = rotated.filter(|&factor| factor != 1.0) {
            return Err(Error::unsupported_model(format!(
                "partial_rotary_factor = {factor} is not supported"
            )));
        }
        let theta = raw.as_ref().and_then(|rope| rope.rope_theta).or(self.rope_theta);
        let theta = positive("rope_theta", theta.or(Some(defaults.rope_theta)))?;
        let Some(raw) = raw else { return Ok(RopeConfig { theta, scaling: RopeScaling::None }) };
        let scaling = match raw.rope_type.as_deref().or(raw.old_type.as_deref()).unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: positive("rope factor", raw.factor)? },
            "llama3" => self.llama3(&raw, defaults)?,
            other => {
                return Err(Error::unsupported_model(format!(
                    "rope type {} is not supported",
                    quoted(other)
                )));
            }
        };
        Ok(RopeConfig { theta, scaling })
    }

    fn llama3(&self, raw: &RawRope, defaults: &Defaults) -> Result<RopeScaling> {
        let low_freq_factor = positive("rope low_freq_factor", raw.low_freq_factor)?;
        let high_freq_factor = positive("rope high_freq_factor", raw.high_freq_factor)?;
        if high_freq_factor <= low_freq_factor {
            return Err(Error::invalid_checkpoint(format!(
                "expected rope high_freq_factor above low_freq_factor but found {high_freq_factor} and {low_freq_factor}"
            )));
        }
        // The model's own key takes precedence over the key in the rope parameters. The default of both is the longest
        // sequence.
        let longest = self.max_position_embeddings.unwrap_or(defaults.max_position_embeddings) as f64;
        let original = self.original_max_position_embeddings.or(raw.original_max_position_embeddings);
        Ok(RopeScaling::Llama3 {
            factor: positive("rope factor", raw.factor)?,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: positive(
                "rope original_max_position_embeddings",
                original.or(Some(longest)),
            )?,
        })
    }
}

fn positive(name: &str, value: Option<f64>) -> Result<f64> {
    match value {
        Some(value) if value.is_finite() && value > 0.0 => Ok(value),
        found => {
            let found = found.map_or_else(|| "none".to_owned(), |value| value.to_string());
            Err(Error::invalid_checkpoint(format!("expected a positive {name} but found {found}")))
        }
    }
}
