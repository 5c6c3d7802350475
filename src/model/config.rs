//! A model's configuration: `config.json`, as transformers 4 and 5 write it, reduced to what the decoder needs.
//!
//! A feature that the decoder does not support is an error that names it: a run that is silently wrong is the worst
//! outcome.

mod family;
pub mod keys;
mod raw;

pub(crate) use raw::token_ids;

use super::rope::RopeConfig;
use crate::backend::GateActivation;
use crate::error::{Error, Result};
use crate::format::quoted;
use crate::options::{Named, find, named};
use raw::Raw;
use serde_json::Value;

named! {
    /// Families of decoders, by the `model_type` of config.json
    pub enum Architecture {
        /// Llama 1 to 3 and everything that calls itself `llama`
        Llama = "llama",
        /// Mistral without a sliding window
        Mistral = "mistral",
        /// Qwen 2 and 2.5: biases on q, k and v
        Qwen2 = "qwen2",
        /// Qwen 3: each head of q and k is normalized
        Qwen3 = "qwen3",
        /// BitNet b1.58: squared ReLU and a norm before each output projection
        BitNet = "bitnet",
    }
}

/// All parameters of the decoder. Sizes are checked: non-zero, and small enough to multiply.
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
    /// Elements of a head, even; not always `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// The longest sequence that the model supports.
    pub max_position_embeddings: usize,
    /// Epsilon of every RMS norm.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Whether the embedding is also the head.
    pub tie_word_embeddings: bool,
    /// Activation of the MLP's gate.
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

/// Larger than in any model. Keeps every product of two or three sizes within `u64`.
const LARGEST_DIMENSION: u64 = 1 << 24;
/// Keeps the parameter count within `u64`, even with the largest sizes.
const MOST_LAYERS: u64 = 1_000;

impl ModelConfig {
    /// Reads the JSON of a `config.json`.
    ///
    /// # Errors
    /// `unsupported_model` for what the decoder does not support and for unknown keys, `invalid_checkpoint` for invalid
    /// values.
    pub fn from_json(config: &Value) -> Result<Self> {
        keys::check(config, &[])?;
        Self::from_known(config)
    }

    /// Reads the JSON of a `config.json` whose keys have been [checked](keys::check).
    pub(super) fn from_known(config: &Value) -> Result<Self> {
        if !config.is_object() {
            return Err(Error::invalid_checkpoint("expected a model configuration but found no JSON object"));
        }
        let raw = Raw::read(config)?;
        let model_type = raw
            .model_type
            .as_deref()
            .ok_or_else(|| Error::invalid_checkpoint("expected `model_type` but found none"))?;
        let Ok(architecture) = find::<Architecture>(model_type) else {
            return Err(Error::unsupported_model(format!(
                "model_type {} is not supported; expected one of {}",
                quoted(model_type),
                Architecture::names().join(", ")
            )));
        };
        raw.refuse_unsupported(config, architecture)?;
        let defaults = architecture.defaults();
        // A missing key has the default of its class. A null has the meaning of `None` in the class.
        let absent = |key: &str| config.get(key).is_none();

        let hidden_size = size("hidden_size", raw.hidden_size)?;
        let num_attention_heads = size("num_attention_heads", raw.num_attention_heads)?;
        let of_class = defaults.num_key_value_heads.filter(|_| absent("num_key_value_heads"));
        let num_key_value_heads = match raw.num_key_value_heads.or(of_class) {
            // Only Mistral's class requires a number.
            None if architecture != Architecture::Mistral => num_attention_heads,
            heads => size("num_key_value_heads", heads)?,
        };
        let head_dim = match raw.head_dim.or(defaults.head_dim.filter(|_| absent("head_dim"))) {
            None if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
            None => {
                return Err(Error::invalid_checkpoint(format!(
                    "expected num_attention_heads to divide hidden_size, but found {num_attention_heads} and {hidden_size}"
                )));
            }
            dim => size("head_dim", dim)?,
        };
        if architecture == Architecture::BitNet && head_dim * num_attention_heads != hidden_size {
            return Err(Error::unsupported_model(format!(
                "head_dim = {head_dim} is not supported in BitNet: its norm before `o_proj` has {hidden_size} elements"
            )));
        }
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
        // Widths of matrices that are products.
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
        raw.check_layer_types(num_hidden_layers)?;
        let rms_norm_eps = raw.rms_norm_eps.unwrap_or(defaults.rms_norm_eps) as f32;
        if !(rms_norm_eps.is_finite() && rms_norm_eps > 0.0) {
            return Err(Error::invalid_checkpoint(format!(
                "expected a positive rms_norm_eps but found {rms_norm_eps}"
            )));
        }
        let vocab_size = size("vocab_size", raw.vocab_size)?;
        let bias = raw.attention_bias.unwrap_or(false);
        // The configured tokens, or the default of the class.
        let tokens = |key: &str, of_class: Option<u32>| -> Result<Vec<u32>> {
            let of_class = of_class.filter(|&id| absent(key) && (id as usize) < vocab_size);
            Ok(token_ids(config, key)?.unwrap_or_else(|| of_class.into_iter().collect()))
        };
        let bos_token_ids = tokens("bos_token_id", defaults.bos_token_id)?;
        Ok(Self {
            architecture,
            hidden_size,
            intermediate_size: size("intermediate_size", raw.intermediate_size)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size,
            max_position_embeddings: size(
                "max_position_embeddings",
                raw.max_position_embeddings.or(Some(defaults.max_position_embeddings)),
            )?,
            rms_norm_eps,
            rope: raw.rope(defaults)?,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(false),
            activation: raw.activation(defaults)?,
            // The biases of Qwen 2 and Mistral do not depend on the configuration.
            qkv_bias: match architecture {
                Architecture::Qwen2 => true,
                Architecture::Mistral => false,
                _ => bias,
            },
            o_bias: bias && !matches!(architecture, Architecture::Qwen2 | Architecture::Mistral),
            mlp_bias: raw.mlp_bias.unwrap_or(false) && architecture == Architecture::Llama,
            qk_norm: architecture == Architecture::Qwen3,
            sub_norms: architecture == Architecture::BitNet,
            bos_token_id: bos_token_ids.first().copied(),
            eos_token_ids: tokens("eos_token_id", defaults.eos_token_id)?,
        })
    }

    /// Number of the model's parameters: every stored number; a tied table counts once.
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
    use crate::model::rope::RopeScaling;
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

    /// The configuration of a family without the keys that have defaults in its class.
    fn without_defaults(model_type: &str) -> ModelConfig {
        ModelConfig::from_json(&json!({
            "model_type": model_type, "hidden_size": 256, "intermediate_size": 172, "num_hidden_layers": 5,
            "num_attention_heads": 64, "vocab_size": 512, "sliding_window": null,
        }))
        .unwrap()
    }

    #[test]
    fn keys_that_are_missing_have_the_defaults_of_their_class() {
        for (model_type, kv, head_dim, positions, bos, eos) in [
            ("llama", 64, 4, 2048, Some(1), vec![2]),
            ("mistral", 8, 4, 131_072, Some(1), vec![2]),
            ("qwen2", 32, 4, 32_768, None, vec![]),
            ("qwen3", 32, 128, 32_768, None, vec![]),
        ] {
            let config = without_defaults(model_type);
            assert_eq!((config.num_key_value_heads, config.head_dim), (kv, head_dim), "{model_type}");
            assert_eq!(config.max_position_embeddings, positions, "{model_type}");
            assert_eq!((config.bos_token_id, config.eos_token_ids), (bos, eos), "{model_type}");
        }
        let full = [
            ("model_type", json!("qwen2")),
            ("use_sliding_window", json!(true)),
            ("sliding_window", json!(4)),
            ("max_window_layers", json!(0)),
            ("layer_types", json!(vec!["full_attention"; 5])),
        ];
        assert!(with(&full).is_ok(), "layer_types takes precedence over max_window_layers");
        let error = with(&[("layer_types", json!(["full_attention"]))]).unwrap_err();
        assert!(error.to_string().contains("expected `layer_types` for 5 layers"), "{error}");
        let others = [("sliding_window", json!(-1)), ("max_window_layers", json!(-1))];
        assert!(with(&others).is_ok(), "llama ignores these keys");
        // A null is not a missing key: as many key and value heads as query heads, and no end-of-sequence token.
        let null = [
            ("model_type", json!("qwen2")),
            ("num_key_value_heads", json!(null)),
            ("eos_token_id", json!(null)),
        ];
        let config = with(&null).unwrap();
        assert_eq!((config.num_key_value_heads, config.eos_token_ids), (8, vec![]));
    }

    #[test]
    fn numbers_may_be_written_as_floating_point() {
        assert_eq!(with(&[("hidden_size", json!(64.0))]).unwrap(), with(&[]).unwrap());
    }

    #[test]
    fn the_parameter_count_is_that_of_the_stored_numbers() {
        // stories260K: counted from its file, the tied head once.
        assert_eq!(with(&[]).unwrap().parameter_count(), 260_032);
    }

    #[test]
    fn unsupported_features_are_named() {
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
                    ("max_window_layers", json!(0)),
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
            // The class has a window by default.
            (
                &[("model_type", json!("mistral")), ("max_position_embeddings", json!(8192))],
                ErrorCode::UnsupportedModel,
                "sliding_window = 4096, the default of the family",
            ),
            (
                &[
                    ("model_type", json!("qwen3")),
                    ("sliding_window", json!(8)),
                    ("use_sliding_window", json!(true)),
                    ("max_window_layers", json!(4)),
                ],
                ErrorCode::UnsupportedModel,
                "sliding_window",
            ),
            (&[("is_causal", json!(false))], ErrorCode::UnsupportedModel, "is_causal"),
            (
                &[("per_layer_config", json!({"1": {"hidden_act": "gelu"}}))],
                ErrorCode::UnsupportedModel,
                "per_layer_config",
            ),
            (
                &[("model_type", json!("mistral")), ("sliding_window", json!(-1))],
                ErrorCode::UnsupportedModel,
                "sliding_window = -1",
            ),
            (&[("hidden_size", json!("64"))], ErrorCode::InvalidCheckpoint, "`hidden_size`"),
            (&[("eos_token_id", json!(["a"]))], ErrorCode::InvalidCheckpoint, "`eos_token_id`"),
            (
                &[("architectures", json!(["LlamaForSequenceClassification"]))],
                ErrorCode::UnsupportedModel,
                "LlamaForSequenceClassification",
            ),
            (
                &[("rope_parameters", json!({"full_attention": {"rope_theta": 5.0}}))],
                ErrorCode::UnsupportedModel,
                "full_attention",
            ),
            (
                &[(
                    "rope_parameters",
                    json!({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}),
                )],
                ErrorCode::UnsupportedModel,
                "partial_rotary_factor",
            ),
            (&[("rope_scaling", json!([1, 2]))], ErrorCode::InvalidCheckpoint, "rope_scaling"),
            (&[("rms_norm_eps", json!("NaN"))], ErrorCode::InvalidCheckpoint, "NaN"),
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
