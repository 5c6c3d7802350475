//! The accepted keys of a `quantization_config`. Any other key may change what the weights mean, so it is refused.

use super::{awq, bitnet_hf, compressed_tensors, gptq};
use crate::error::{Error, Result};
use crate::format::known_keys::{self, Subject, Treatment};
use crate::format::quoted;
use serde_json::Value;

/// Keys about the method, the tool and its run, or hints for a runtime.
const OF_EVERY_TOOL: [&str; 12] = [
    "quant_method",
    "method",
    "version",
    "meta",
    "backend",
    "provider",
    "producer",
    "tokenizer",
    "dataset",
    "batch_size",
    "model_name_or_path",
    "model_file_base_name",
];

/// The lists of keys of a method.
fn of_method(method: &str) -> &'static [&'static [&'static str]] {
    match method {
        "compressed-tensors" => &[&compressed_tensors::KNOWN_KEYS],
        "bitnet" => &[&bitnet_hf::KNOWN_KEYS],
        "awq" => &[&awq::KNOWN_KEYS, &gptq::KNOWN_KEYS, &AUTO_ROUND],
        // auto-round's own packing is GPTQ's.
        "gptq" | "auto-round" => &[&gptq::KNOWN_KEYS, &AUTO_ROUND],
        _ => &[],
    }
}

/// Whether the `quantization_config` of a method may have the key.
pub fn is_known(method: &str, key: &str) -> bool {
    OF_EVERY_TOOL.contains(&key) || of_method(method).iter().any(|keys| keys.contains(&key))
}

/// Refuses unknown keys of a method's `quantization_config` that the caller does not allow.
///
/// # Errors
/// `unsupported_format` naming the key and its value.
pub(super) fn check(method: &str, config: &Value, allowed: &[String]) -> Result<()> {
    refuse_unknown(config, of_method(method), allowed)
}

/// Refuses keys that are in none of the lists of `known` and not allowed by the caller.
///
/// # Errors
/// `unsupported_format` naming the key and its value.
pub(super) fn refuse_unknown(config: &Value, known: &[&[&str]], allowed: &[String]) -> Result<()> {
    let is_known = |key: &str| OF_EVERY_TOOL.contains(&key) || known.iter().any(|keys| keys.contains(&key));
    let treatment = |key: &str| is_known(key).then_some(Treatment::Honoured);
    let Some(object) = config.as_object() else { return Ok(()) };
    known_keys::check(object, treatment, allowed, "", Subject::Weights).map(drop)
}

/// auto-round's own settings, in every layout that it writes. They do not change what the weights mean.
pub(super) const AUTO_ROUND: [&str; 37] = [
    "autoround_version",
    "packing_format",
    "extra_config",
    "block_name_to_quantize",
    "to_quant_block_names",
    "quant_block_list",
    "data_type",
    "act_bits",
    "act_data_type",
    "act_dynamic",
    "act_group_size",
    "act_sym",
    "amp",
    "enable_minmax_tuning",
    "enable_norm_bias_tuning",
    "enable_quanted_input",
    "enable_alg_ext",
    "enable_adam",
    "gradient_accumulate_steps",
    "iters",
    "low_gpu_mem_usage",
    "low_cpu_mem_usage",
    "lr",
    "minmax_lr",
    "momentum",
    "nblocks",
    "nsamples",
    "scale_dtype",
    "seqlen",
    "seed",
    "static_kv_dtype",
    "model_free",
    "supported_types",
    "regex_config",
    "not_use_best_mse",
    "dynamic_max_gap",
    "sampler",
];

/// Refuses auto-round settings for activations below 16 bits and for non-integer number types.
///
/// # Errors
/// `unsupported_format`.
pub(super) fn refuse_other_than_integer_weights(config: &Value) -> Result<()> {
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    if let Some(bits) = number("act_bits").filter(|bits| *bits < 16.0) {
        return Err(Error::unsupported_format(format!(
            "activations of {bits} bits (act_bits) are not supported"
        )));
    }
    for key in ["data_type", "static_kv_dtype"] {
        if let Some(other) = text(key).filter(|text| !matches!(*text, "int" | "int_sym" | "int_asym")) {
            return Err(Error::unsupported_format(format!(
                "expected `{key}` to be int but found {}",
                quoted(other)
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_says_something_unknown_is_refused() {
        let known: &[&[&str]] = &[&["bits"], &["sym"]];
        for config in [
            json!({"bits": 4, "sym": true, "quant_method": "gptq"}),
            json!({"rotation": null, "adapter": {}, "other": [], "flag": false}),
            json!({}),
            json!(null),
        ] {
            refuse_unknown(&config, known, &[]).unwrap();
        }
        let rotated = json!({"bits": 4, "rotation": "hadamard"});
        let error = refuse_unknown(&rotated, known, &[]).unwrap_err();
        assert!(error.to_string().contains("unknown key `rotation` = \"hadamard\""), "{error}");
        refuse_unknown(&rotated, known, &["rotation".to_owned()]).unwrap();
    }

    #[test]
    fn auto_round_s_other_numbers_are_named() {
        refuse_other_than_integer_weights(&json!({"data_type": "int", "act_bits": 16})).unwrap();
        for (config, word) in [
            (json!({"act_bits": 8}), "act_bits"),
            (json!({"data_type": "mx_fp"}), "data_type"),
            (json!({"static_kv_dtype": "fp8"}), "static_kv_dtype"),
        ] {
            let error = refuse_other_than_integer_weights(&config).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
