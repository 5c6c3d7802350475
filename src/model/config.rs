//! What a model is: `config.json`, as transformers 4 and 5 write it, reduced to what the decoder does.
//!
//! Whatever the decoder does not do is an error that names it: a run that is silently wrong is the worst outcome.
//! Floor 5.

use super::rope::{RopeConfig, RopeScaling};
use crate::backend::GateActivation;
use crate::error::{Error, Result};
use crate::format::json;
use serde::Deserialize;
use serde_json::Value;

/// The families of decoders that share this crate's one implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 1 to 3 and everything that calls itself `llama`.
    Llama,
    /// Mistral without a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen 3: each head of q and k is normalized.
    Qwen3,
    /// BitNet b1.58: squared ReLU and a norm before each output projection.
    BitNet,
}

impl Architecture {
    const ALL: [(Architecture, &'static str); 5] = [
        (Architecture::Llama, "llama"),
        (Architecture::Mistral, "mistral"),
        (Architecture::Qwen2, "qwen2"),
        (Architecture::Qwen3, "qwen3"),
        (Architecture::BitNet, "bitnet"),
    ];

    /// The `model_type` of config.json.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(architecture, _)| *architecture == self).map_or("", |(_, name)| name)
    }
}

/// Everything that the decoder needs to know. All sizes are checked: non-zero, and small enough to multiply.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Elements of a head; even. Not always `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// The longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Whether the embedding serves as the head.
    pub tie_word_embeddings: bool,
    /// Gate of the MLP.
    pub activation: GateActivation,
    /// Biases on the q, k and v projections.
    pub qkv_bias: bool,
    /// A bias on the attention's output projection.
    pub o_bias: bool,
    /// Biases on the three projections of the MLP.
    pub mlp_bias: bool,
    /// RMS norms on each head of q and k.
    pub qk_norm: bool,
    /// BitNet's norms before `o_proj` and `down_proj`.
    pub sub_norms: bool,
    /// Beginning-of-sequence token.
    pub bos_token_id: Option<u32>,
    /// End-of-sequence tokens.
    pub eos_token_ids: Vec<u32>,
}

/// Larger than any model's; keeps every product of two or three sizes inside `u64`.
const LARGEST_DIMENSION: u64 = 1 << 24;
/// Keeps the parameter count inside `u64`, with every size the largest.
const MOST_LAYERS: u64 = 1_000;

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: Option<u64>,
    max_position_embeddings: Option<u64>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    partial_rotary_factor: Option<f64>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<u64>,
    use_sliding_window: Option<bool>,
    layer_types: Option<Vec<String>>,
    bos_token_id: Option<TokenIds>,
    eos_token_id: Option<TokenIds>,
}

#[derive(Deserialize, Clone)]
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

/// `2`, `[2, 3]`, or `-1` where a tool means "none".
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum TokenIds {
    One(i64),
    Many(Vec<i64>),
}

impl TokenIds {
    pub(crate) fn ids(&self) -> Vec<u32> {
        let all = match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        };
        all.iter().filter_map(|&id| u32::try_from(id).ok()).collect()
    }
}

impl ModelConfig {
    /// Reads the JSON of a `config.json`.
    ///
    /// # Errors
    /// `unsupported_model` for what the decoder does not do, `invalid_checkpoint` for what makes no sense.
    pub fn from_json(config: &Value) -> Result<Self> {
        if !config.is_object() {
            return Err(Error::invalid_checkpoint("expected a model configuration but found no JSON object"));
        }
        let raw: Raw = json::read(config)
            .map_err(|error| Error::invalid_checkpoint(format!("expected a model configuration: {error}")))?;
        let model_type = raw
            .model_type
            .as_deref()
            .ok_or_else(|| Error::invalid_checkpoint("expected `model_type` but found none"))?;
        let Some(&(architecture, _)) = Architecture::ALL.iter().find(|(_, name)| *name == model_type) else {
            let known: Vec<_> = Architecture::ALL.iter().map(|(_, name)| *name).collect();
            return Err(Error::unsupported_model(format!(
                "model_type `{model_type}` is not supported; expected one of {}",
                known.join(", ")
            )));
        };
        raw.refuse_what_the_decoder_does_not_do(architecture)?;

        let hidden_size = size("hidden_size", raw.hidden_size)?;
        let num_attention_heads = size("num_attention_heads", raw.num_attention_heads)?;
        let num_key_value_heads = match raw.num_key_value_heads {
            None => num_attention_heads,
            heads => size("num_key_value_heads", heads)?,
        };
        let head_dim = match raw.head_dim {
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(Error::invalid_checkpoint(format!(
                    "expected num_attention_heads to divide hidden_size, but found {num_attention_heads} and {hidden_size}"
                )));
            }
            dim => size("head_dim", dim)?,
        };
        if num_attention_heads % num_key_value_heads != 0 {
            return Err(Error::invalid_checkpoint(format!(
                "expected num_key_value_heads to divide num_attention_heads, but found {num_key_value_heads} and {num_attention_heads}"
            )));
        }
        if head_dim % 2 != 0 {
            return Err(Error::unsupported_model(format!(
                "rotary embedding needs an even head_dim but found {head_dim}"
            )));
        }
        // Every width that a matrix has.
        for (what, width) in [
            ("num_attention_heads x head_dim", num_attention_heads as u64 * head_dim as u64),
            ("num_key_value_heads x head_dim", num_key_value_heads as u64 * head_dim as u64),
        ] {
            if width > LARGEST_DIMENSION {
                return Err(Error::invalid_checkpoint(format!("{what} = {width} is implausibly large")));
            }
        }
        let num_hidden_layers = size("num_hidden_layers", raw.num_hidden_layers)?;
        if num_hidden_layers as u64 > MOST_LAYERS {
            return Err(Error::invalid_checkpoint(format!(
                "num_hidden_layers = {num_hidden_layers} is implausibly large"
            )));
        }
        let default_eps = if architecture == Architecture::BitNet { 1e-5 } else { 1e-6 };
        let rms_norm_eps = raw.rms_norm_eps.unwrap_or(default_eps) as f32;
        if !(rms_norm_eps.is_finite() && rms_norm_eps > 0.0) {
            return Err(Error::invalid_checkpoint(format!(
                "expected a positive rms_norm_eps but found {rms_norm_eps}"
            )));
        }
        let bias = raw.attention_bias.unwrap_or(false);
        Ok(Self {
            architecture,
            hidden_size,
            intermediate_size: size("intermediate_size", raw.intermediate_size)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: size("vocab_size", raw.vocab_size)?,
            max_position_embeddings: size(
                "max_position_embeddings",
                raw.max_position_embeddings.or(Some(2048)),
            )?,
            rms_norm_eps,
            rope: raw.rope(architecture)?,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            activation: raw.activation(architecture)?,
            // Qwen 2 and Mistral have theirs fixed, whatever the configuration says.
            qkv_bias: match architecture {
                Architecture::Qwen2 => true,
                Architecture::Mistral => false,
                _ => bias,
            },
            o_bias: bias && !matches!(architecture, Architecture::Qwen2 | Architecture::Mistral),
            mlp_bias: raw.mlp_bias.unwrap_or(false) && architecture == Architecture::Llama,
            qk_norm: architecture == Architecture::Qwen3,
            sub_norms: architecture == Architecture::BitNet,
            bos_token_id: raw.bos_token_id.and_then(|ids| ids.ids().first().copied()),
            eos_token_ids: raw.eos_token_id.map(|ids| ids.ids()).unwrap_or_default(),
        })
    }

    /// Parameters of the model: every stored number, a tied table once.
    pub fn parameter_count(&self) -> u64 {
        let (hidden, inner) = (self.hidden_size as u64, self.intermediate_size as u64);
        let q = (self.num_attention_heads * self.head_dim) as u64;
        let kv = (self.num_key_value_heads * self.head_dim) as u64;
        let attention = hidden * (q + 2 * kv) + q * hidden;
        let biases = u64::from(self.qkv_bias) * (q + 2 * kv)
            + u64::from(self.o_bias) * hidden
            + u64::from(self.mlp_bias) * (2 * inner + hidden);
        let norms = 2 * hidden
            + u64::from(self.qk_norm) * 2 * self.head_dim as u64
            + u64::from(self.sub_norms) * (q + inner);
        let tables = if self.tie_word_embeddings { 1 } else { 2 };
        self.num_hidden_layers as u64 * (attention + 3 * hidden * inner + biases + norms)
            + tables * self.vocab_size as u64 * hidden
            + hidden
    }
}

impl Raw {
    fn refuse_what_the_decoder_does_not_do(&self, architecture: Architecture) -> Result<()> {
        if let Some(window) = self.sliding_window {
            // Qwen's configurations carry a window that a flag of its own switches on.
            let switched_on = match architecture {
                Architecture::Qwen2 | Architecture::Qwen3 => self.use_sliding_window.unwrap_or(false),
                _ => self.use_sliding_window.unwrap_or(true),
            };
            let longest = self.max_position_embeddings.unwrap_or(u64::MAX);
            if switched_on && window < longest {
                return Err(Error::unsupported_model(format!(
                    "sliding window attention (sliding_window = {window}) is not supported"
                )));
            }
        }
        if let Some(other) = self.layer_types.iter().flatten().find(|kind| *kind != "full_attention") {
            return Err(Error::unsupported_model(format!("layer type `{other}` is not supported")));
        }
        for factor in
            [self.partial_rotary_factor, self.rope_parameters.as_ref().and_then(|r| r.partial_rotary_factor)]
                .into_iter()
                .flatten()
        {
            if factor != 1.0 {
                return Err(Error::unsupported_model(format!(
                    "partial_rotary_factor = {factor} is not supported"
                )));
            }
        }
        Ok(())
    }

    fn activation(&self, architecture: Architecture) -> Result<GateActivation> {
        let default = if architecture == Architecture::BitNet { "relu2" } else { "silu" };
        match self.hidden_act.as_deref().unwrap_or(default) {
            "silu" | "swish" => Ok(GateActivation::Silu),
            "relu2" => Ok(GateActivation::SquaredRelu),
            other => Err(Error::unsupported_model(format!(
                "activation `{other}` (hidden_act) is not supported; expected silu or relu2"
            ))),
        }
    }

    fn rope(&self, architecture: Architecture) -> Result<RopeConfig> {
        let default = if architecture == Architecture::BitNet { 500_000.0 } else { 10_000.0 };
        let scaling = self.rope_parameters.clone().or_else(|| self.rope_scaling.clone());
        let theta = scaling.as_ref().and_then(|r| r.rope_theta).or(self.rope_theta).unwrap_or(default);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(Error::invalid_checkpoint(format!(
                "expected a positive rope_theta but found {theta}"
            )));
        }
        let Some(raw) = scaling else { return Ok(RopeConfig { theta, scaling: RopeScaling::None }) };
        let positive = |name: &str, value: Option<f64>| match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            found => {
                let found = found.map_or_else(|| "none".to_owned(), |value| value.to_string());
                Err(Error::invalid_checkpoint(format!("expected a positive rope {name} but found {found}")))
            }
        };
        let kind = raw.rope_type.as_deref().or(raw.old_type.as_deref()).unwrap_or("default");
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: positive("factor", raw.factor)? },
            "llama3" => {
                let low_freq_factor = positive("low_freq_factor", raw.low_freq_factor)?;
                let high_freq_factor = positive("high_freq_factor", raw.high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(Error::invalid_checkpoint(format!(
                        "expected rope high_freq_factor above low_freq_factor but found {high_freq_factor} and {low_freq_factor}"
                    )));
                }
                RopeScaling::Llama3 {
                    factor: positive("factor", raw.factor)?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: positive(
                        "original_max_position_embeddings",
                        raw.original_max_position_embeddings,
                    )?,
                }
            }
            other => return Err(Error::unsupported_model(format!("rope type `{other}` is not supported"))),
        };
        Ok(RopeConfig { theta, scaling })
    }
}

fn size(name: &str, value: Option<u64>) -> Result<usize> {
    match value {
        None => Err(Error::invalid_checkpoint(format!("expected `{name}` but found none"))),
        Some(0) => Err(Error::invalid_checkpoint(format!("expected a positive {name} but found 0"))),
        Some(value) if value > LARGEST_DIMENSION => {
            Err(Error::invalid_checkpoint(format!("{name} = {value} is implausibly large")))
        }
        Some(value) => Ok(value as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorCode;
    use serde_json::json;

    fn base() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5,
            "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": [2, 3]
        })
    }

    fn with(changes: &[(&str, Value)]) -> Result<ModelConfig> {
        let mut json = base();
        for (key, value) in changes {
            json[*key] = value.clone();
        }
        ModelConfig::from_json(&json)
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 500000.0});
        let new = with(&[("rope_parameters", llama3.clone())]).unwrap();
        let old = with(&[("rope_scaling", llama3), ("rope_theta", json!(500000.0))]).unwrap();
        assert_eq!(new.rope, old.rope);
        assert_eq!(new.rope.theta, 500_000.0);
        let linear = with(&[("rope_scaling", json!({"type": "linear", "factor": 2.0}))]).unwrap();
        assert_eq!(linear.rope.scaling, RopeScaling::Linear { factor: 2.0 });
        assert_eq!(linear.rope.theta, 10_000.0);
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = with(&[]).unwrap();
        assert_eq!((config.head_dim, config.num_key_value_heads), (8, 4));
        assert_eq!(config.eos_token_ids, [2, 3]);
        assert!(!config.qkv_bias && !config.o_bias && !config.qk_norm);
        let qwen = with(&[("model_type", json!("qwen2")), ("sliding_window", json!(16))]).unwrap();
        assert!(qwen.qkv_bias && !qwen.o_bias);
        let bitnet = with(&[("model_type", json!("bitnet")), ("hidden_act", json!("relu2"))]).unwrap();
        assert_eq!((bitnet.activation, bitnet.rope.theta), (GateActivation::SquaredRelu, 500_000.0));
        let mistral = with(&[("model_type", json!("mistral")), ("sliding_window", Value::Null)]);
        assert!(mistral.is_ok());
    }

    #[test]
    fn the_parameter_count_is_that_of_the_stored_numbers() {
        // stories260K: counted from its file, the tied head once.
        assert_eq!(with(&[]).unwrap().parameter_count(), 260_032);
    }

    #[test]
    fn what_the_decoder_does_not_do_is_named() {
        type Case<'a> = (&'a [(&'a str, Value)], ErrorCode, &'a str);
        let cases: &[Case<'_>] = &[
            (&[("model_type", json!("gpt2"))], ErrorCode::UnsupportedModel, "gpt2"),
            (
                &[("model_type", json!("mistral")), ("sliding_window", json!(128))],
                ErrorCode::UnsupportedModel,
                "sliding_window",
            ),
            (
                &[
                    ("model_type", json!("qwen2")),
                    ("sliding_window", json!(8)),
                    ("use_sliding_window", json!(true)),
                ],
                ErrorCode::UnsupportedModel,
                "sliding_window",
            ),
            (
                &[("layer_types", json!(["full_attention", "sliding_attention"]))],
                ErrorCode::UnsupportedModel,
                "sliding_attention",
            ),
            (&[("hidden_act", json!("gelu"))], ErrorCode::UnsupportedModel, "gelu"),
            (
                &[("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}))],
                ErrorCode::UnsupportedModel,
                "yarn",
            ),
            (&[("partial_rotary_factor", json!(0.5))], ErrorCode::UnsupportedModel, "partial_rotary_factor"),
            (&[("head_dim", json!(7))], ErrorCode::UnsupportedModel, "head_dim"),
            (&[("num_attention_heads", json!(7))], ErrorCode::InvalidCheckpoint, "num_attention_heads"),
            (&[("num_key_value_heads", json!(3))], ErrorCode::InvalidCheckpoint, "num_key_value_heads"),
            (&[("num_hidden_layers", json!(1u64 << 23))], ErrorCode::InvalidCheckpoint, "num_hidden_layers"),
            (&[("vocab_size", json!(u64::MAX))], ErrorCode::InvalidCheckpoint, "vocab_size"),
            (&[("hidden_size", json!(0))], ErrorCode::InvalidCheckpoint, "hidden_size"),
            (&[("hidden_size", json!(-64))], ErrorCode::InvalidCheckpoint, "-64"),
            (
                &[("head_dim", json!(1 << 24)), ("num_attention_heads", json!(1 << 10))],
                ErrorCode::InvalidCheckpoint,
                "head_dim",
            ),
            (&[("rms_norm_eps", json!(-1.0))], ErrorCode::InvalidCheckpoint, "rms_norm_eps"),
            (&[("rope_theta", json!(0.0))], ErrorCode::InvalidCheckpoint, "rope_theta"),
            (&[("rope_scaling", json!({"type": "linear"}))], ErrorCode::InvalidCheckpoint, "factor"),
        ];
        for (changes, code, word) in cases {
            let error = with(changes).expect_err(word);
            assert_eq!(error.code(), *code, "{error}");
            assert!(error.to_string().contains(word), "{error} does not name {word}");
        }
    }
}
