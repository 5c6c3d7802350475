//! Translates a config.json to GGUF metadata.

use super::llama3::Llama3;
use crate::error::{Error, Result};
use crate::format::gguf::Value as GgufValue;
use crate::format::quoted;
use crate::sort;
use serde_json::Value;
use std::collections::BTreeMap;

/// The metadata of a model with this config.json; `file_type` is llama.cpp's number for the tensors' type.
///
/// # Errors
/// `unsupported_model` naming a feature that the format cannot express; `invalid_checkpoint` for a missing or malformed
/// key.
pub(in crate::layout::gguf) fn to_metadata(
    config: &Value,
    file_type: u32,
) -> Result<BTreeMap<String, GgufValue>> {
    let architecture = architecture_of(config)?;
    let number = |key: &str| match config.get(key).filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => {
            value.as_u64().and_then(|value| u32::try_from(value).ok()).map(Some).ok_or_else(|| {
                Error::invalid_checkpoint(format!(
                    "config.json: expected `{key}` to be a small number but found {value}"
                ))
            })
        }
    };
    let require = |key: &str| {
        number(key)?
            .ok_or_else(|| Error::invalid_checkpoint(format!("config.json: expected `{key}` but found none")))
    };
    if let Some(window) = number("sliding_window")?
        && config.get("use_sliding_window").and_then(Value::as_bool).unwrap_or(architecture == "llama")
        && window < require("max_position_embeddings")?
    {
        return Err(Error::unsupported_model(format!("`sliding_window` = {window} is not supported")));
    }
    refuse_what_decoders_do_not_do(config, architecture)?;
    let heads = require("num_attention_heads")?;
    let head_dim = u32::try_from(head_dim_of(config)?).unwrap_or(u32::MAX);
    let mut metadata = sort::map([
        ("general.architecture".to_owned(), GgufValue::String(architecture.to_owned())),
        ("general.type".to_owned(), GgufValue::String("model".to_owned())),
        ("general.file_type".to_owned(), GgufValue::U32(file_type)),
        ("general.quantization_version".to_owned(), GgufValue::U32(2)),
    ]);
    let mut set = |key: &str, value: GgufValue| _ = metadata.insert(format!("{architecture}.{key}"), value);
    set("block_count", GgufValue::U32(require("num_hidden_layers")?));
    set("context_length", GgufValue::U32(require("max_position_embeddings")?));
    set("embedding_length", GgufValue::U32(require("hidden_size")?));
    set("feed_forward_length", GgufValue::U32(require("intermediate_size")?));
    set("vocab_size", GgufValue::U32(require("vocab_size")?));
    set("attention.head_count", GgufValue::U32(heads));
    set("attention.head_count_kv", GgufValue::U32(number("num_key_value_heads")?.unwrap_or(heads)));
    set("attention.key_length", GgufValue::U32(head_dim));
    set("attention.value_length", GgufValue::U32(head_dim));
    set("rope.dimension_count", GgufValue::U32(head_dim));
    let epsilon = config.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6);
    set("attention.layer_norm_rms_epsilon", GgufValue::F32(epsilon as f32));
    set("rope.freq_base", GgufValue::F32(theta_of(config) as f32));
    if let Some((kind, scaling)) = scaling_of(config) {
        match kind {
            // The factors are a tensor.
            "llama3" if architecture == "llama" => {}
            "llama3" => {
                return Err(Error::unsupported_model(format!(
                    "rope type `llama3` is not supported: llama.cpp's {architecture} models ignore its factors"
                )));
            }
            "linear" => {
                let factor = scaling.get("factor").and_then(Value::as_f64).unwrap_or(1.0);
                set("rope.scaling.type", GgufValue::String("linear".to_owned()));
                set("rope.scaling.factor", GgufValue::F32(factor as f32));
            }
            other => {
                return Err(Error::unsupported_model(format!(
                    "rope type {} is not supported",
                    quoted(other)
                )));
            }
        }
    }
    Ok(metadata)
}

/// llama.cpp supports one activation function, and biases only where a family always has them.
fn refuse_what_decoders_do_not_do(config: &Value, architecture: &str) -> Result<()> {
    match config.get("hidden_act").and_then(Value::as_str).unwrap_or("silu") {
        "silu" | "swish" => {}
        other => {
            return Err(Error::unsupported_model(format!(
                "`hidden_act` = {} is not supported: llama.cpp's {architecture} models are always SiLU",
                quoted(other)
            )));
        }
    }
    let biases: &[&str] = match architecture {
        "llama" => &[],
        // The biases of q, k and v do not depend on this key.
        "qwen2" => &["mlp_bias"],
        _ => &["attention_bias", "mlp_bias"],
    };
    for key in biases {
        if config.get(*key).is_some_and(|value| *value == true) {
            return Err(Error::unsupported_model(format!(
                "`{key}` is not supported: llama.cpp's {architecture} models have no such biases"
            )));
        }
    }
    Ok(())
}

/// llama.cpp's name for the family.
fn architecture_of(config: &Value) -> Result<&'static str> {
    match config.get("model_type").and_then(Value::as_str) {
        // llama.cpp treats Mistral as a llama.
        Some("llama" | "mistral") => Ok("llama"),
        Some("qwen2") => Ok("qwen2"),
        Some("qwen3") => Ok("qwen3"),
        other => Err(Error::unsupported_model(format!(
            "expected a llama, mistral, qwen2 or qwen3 model to write as GGUF but found {}",
            quoted(other.unwrap_or("no `model_type`"))
        ))),
    }
}

fn head_dim_of(config: &Value) -> Result<u64> {
    let number = |key: &str| config.get(key).and_then(Value::as_u64).filter(|&value| value > 0);
    let head_dim =
        number("head_dim").or_else(|| number("hidden_size")?.checked_div(number("num_attention_heads")?));
    head_dim.filter(|&dim| dim > 0 && dim.is_multiple_of(2)).ok_or_else(|| {
        Error::invalid_checkpoint("config.json: expected heads of an even length but found none")
    })
}

/// Elements per head, if the family's rows of q and k are interleaved.
pub(in crate::layout::gguf) fn interleaved_head_dim(config: &Value) -> Result<Option<usize>> {
    match architecture_of(config)? {
        "llama" => Ok(usize::try_from(head_dim_of(config)?).ok()),
        _ => Ok(None),
    }
}

fn theta_of(config: &Value) -> f64 {
    let nested = config.get("rope_parameters").and_then(|rope| rope.get("rope_theta"));
    nested.or_else(|| config.get("rope_theta")).and_then(Value::as_f64).unwrap_or(10_000.0)
}

/// The type and parameters of a RoPE scaling that changes something.
fn scaling_of(config: &Value) -> Option<(&str, &Value)> {
    let scaling = ["rope_parameters", "rope_scaling"]
        .into_iter()
        .find_map(|key| config.get(key).filter(|v| v.is_object()))?;
    let kind =
        scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str).unwrap_or("default");
    (kind != "default").then_some((kind, scaling))
}

/// The frequency divisors of Llama 3.1's scaling.
pub(in crate::layout::gguf) fn rope_factors(config: &Value) -> Result<Option<Vec<f32>>> {
    let Some(("llama3", scaling)) = scaling_of(config) else { return Ok(None) };
    let number = |key: &str| {
        scaling.get(key).and_then(Value::as_f64).filter(|value| value.is_finite() && *value > 0.0).ok_or_else(
            || Error::invalid_checkpoint(format!("config.json: expected a positive rope `{key}`")),
        )
    };
    let scaling = Llama3 {
        factor: number("factor")?,
        low: number("low_freq_factor")?,
        high: number("high_freq_factor")?,
        original: number("original_max_position_embeddings")?,
    };
    let head_dim = head_dim_of(config)?;
    let theta = theta_of(config);
    Ok(Some((0..head_dim / 2).map(|i| scaling.divisor(theta, head_dim, i) as f32).collect()))
}
