//! Translates between GGUF metadata and the config.json that transformers would write for the same model.
//!
//! Metadata that config.json cannot express is an error that names the key.

mod llama3;
mod write;

pub(super) use write::{interleaved_head_dim, rope_factors, to_metadata};

use super::metadata::Metadata;
use super::tokenizer;
use crate::error::{Error, Result};
use crate::format::quoted;
use serde_json::{Map, Value, json};

/// llama.cpp's architectures, with the decoder's `model_type`. Mistral files use `llama`.
const ARCHITECTURES: [(&str, &str); 3] = [("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")];

/// Facts that only the tensors reveal.
pub(super) struct FromTensors {
    /// Rows of the embedding.
    pub(super) vocab_size: u64,
    /// Whether there is an `output.weight`.
    pub(super) has_head: bool,
    /// Whether q has a bias.
    pub(super) has_q_bias: bool,
    /// Whether the MLP has biases.
    pub(super) has_mlp_bias: bool,
    /// The divisors of RoPE's frequencies.
    pub(super) rope_factors: Option<Vec<f32>>,
}

/// The architecture, by llama.cpp's name.
///
/// # Errors
/// `unsupported_model` naming an unsupported architecture.
pub(super) fn architecture(metadata: &Metadata<'_>) -> Result<&'static str> {
    let found = metadata.require_text("general.architecture")?;
    let known = ARCHITECTURES.iter().find(|(name, _)| *name == found);
    known.map(|(name, _)| *name).ok_or_else(|| {
        let names: Vec<_> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
        Error::unsupported_model(format!(
            "key `general.architecture`: expected one of {} but found {}",
            names.join(", "),
            quoted(found)
        ))
    })
}

/// Elements per head.
pub(super) fn head_dim(metadata: &Metadata<'_>, architecture: &str) -> Result<u64> {
    let key = |name: &str| format!("{architecture}.{name}");
    if let Some(length) = metadata.number(&key("attention.key_length"))? {
        return Ok(length);
    }
    let hidden = metadata.require_number(&key("embedding_length"))?;
    let heads = metadata.require_number(&key("attention.head_count"))?;
    match hidden.checked_rem(heads) {
        Some(0) => Ok(hidden / heads),
        _ => Err(Error::invalid_checkpoint(format!(
            "expected `{}` to divide `{}` but found {heads} and {hidden}",
            key("attention.head_count"),
            key("embedding_length")
        ))),
    }
}

/// The config.json of the model.
///
/// # Errors
/// `unsupported_model` naming an unsupported key or value; `invalid_checkpoint` for a missing or malformed key.
pub(super) fn to_json(metadata: &Metadata<'_>, tensors: &FromTensors) -> Result<Value> {
    let architecture = architecture(metadata)?;
    let keys = Keys { metadata, architecture };
    let model_type =
        ARCHITECTURES.iter().find(|(name, _)| *name == architecture).map_or("", |(_, model)| model);
    let head_dim = head_dim(metadata, architecture)?;
    for (name, same) in [("attention.value_length", head_dim), ("rope.dimension_count", head_dim)] {
        keys.refuse_other(name, same)?;
    }
    keys.refuse_other("expert_count", 0)?;
    keys.refuse_window()?;
    let heads = keys.require("attention.head_count")?;
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| _ = config.insert(key.to_owned(), value);
    set("architectures", json!([class_of(model_type)]));
    set("model_type", json!(model_type));
    set("hidden_size", json!(keys.require("embedding_length")?));
    set("intermediate_size", json!(keys.require("feed_forward_length")?));
    set("num_hidden_layers", json!(keys.require("block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(keys.number("attention.head_count_kv")?.unwrap_or(heads)));
    set("head_dim", json!(head_dim));
    set("vocab_size", json!(tensors.vocab_size));
    set("max_position_embeddings", json!(keys.require("context_length")?));
    set("rms_norm_eps", json!(metadata.require_float(&keys.key("attention.layer_norm_rms_epsilon"))?));
    set("hidden_act", json!("silu"));
    set("tie_word_embeddings", json!(!tensors.has_head));
    // Qwen 2 has these biases without a config key.
    set("attention_bias", json!(tensors.has_q_bias && model_type != "qwen2"));
    set("mlp_bias", json!(tensors.has_mlp_bias));
    // The default of llama.cpp and transformers.
    let theta = metadata.float(&keys.key("rope.freq_base"))?.unwrap_or(10_000.0);
    set("rope_theta", json!(theta));
    set("rope_scaling", keys.rope_scaling(theta, head_dim, tensors.rope_factors.as_deref())?);
    set("torch_dtype", json!("float32"));
    // Null if there are none: a missing key would mean the family's default.
    set("bos_token_id", json!(tokenizer::bos_token(metadata)?));
    set("eos_token_id", json!(tokenizer::end_tokens(metadata)?));
    Ok(Value::Object(config))
}

fn class_of(model_type: &str) -> &'static str {
    match model_type {
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        _ => "LlamaForCausalLM",
    }
}

/// Access to the keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata<'a>,
    architecture: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn number(&self, name: &str) -> Result<Option<u64>> {
        self.metadata.number(&self.key(name))
    }

    fn require(&self, name: &str) -> Result<u64> {
        self.metadata.require_number(&self.key(name))
    }

    /// A window as long as the context has no effect.
    fn refuse_window(&self) -> Result<()> {
        let window = self.number("attention.sliding_window")?.filter(|&window| window > 0);
        let context = self.require("context_length")?;
        match window {
            Some(window) if window < context => Err(Error::unsupported_model(format!(
                "key `{}`: a window of {window} in a context of {context} is not supported",
                self.key("attention.sliding_window")
            ))),
            _ => Ok(()),
        }
    }

    fn refuse_other(&self, name: &str, expected: u64) -> Result<()> {
        match self.number(name)? {
            Some(found) if found != expected => Err(Error::unsupported_model(format!(
                "key `{}`: {found} is not supported, only {expected}",
                self.key(name)
            ))),
            _ => Ok(()),
        }
    }

    /// `rope_scaling` of config.json.
    ///
    /// The type `none` makes a factor irrelevant. The oldest key, `rope.scale_linear`, has no type next to it.
    fn rope_scaling(&self, theta: f64, head_dim: u64, factors: Option<&[f32]>) -> Result<Value> {
        let kind = self.metadata.text(&self.key("rope.scaling.type"))?;
        let factor = match self.metadata.float(&self.key("rope.scaling.factor"))? {
            None => self.metadata.float(&self.key("rope.scale_linear"))?,
            factor => factor,
        };
        if factors.is_some() && self.architecture != "llama" {
            return Err(Error::unsupported_model(format!(
                "the tensor `rope_freqs.weight` is not supported in a {} model: its decoders ignore it",
                self.architecture
            )));
        }
        if let Some(factors) = factors.filter(|factors| factors.iter().any(|&factor| factor != 1.0)) {
            if kind.is_some_and(|kind| kind != "none") {
                return Err(Error::unsupported_model(format!(
                    "`{}` together with the tensor `rope_freqs.weight` is not supported",
                    self.key("rope.scaling.type")
                )));
            }
            return llama3::scaling_of_factors(theta, head_dim, factors);
        }
        match (kind, factor) {
            (None | Some("none"), None) => Ok(Value::Null),
            (Some("none"), Some(_)) => Ok(Value::Null),
            (None | Some("linear"), Some(factor)) if factor == 1.0 || factor == 0.0 => Ok(Value::Null),
            (None | Some("linear"), Some(factor)) => Ok(json!({"rope_type": "linear", "factor": factor})),
            (Some("linear"), None) => Ok(Value::Null),
            (Some(other), _) => Err(Error::unsupported_model(format!(
                "key `{}`: {} is not supported, only `none` and `linear`",
                self.key("rope.scaling.type"),
                quoted(other)
            ))),
        }
    }
}
