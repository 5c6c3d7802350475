//! The accepted keys of a `quantization_config`. Any other key may change what the weights mean, so it is refused.

use crate::error::{Error, Result};
use crate::format::{clipped, quoted};
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

/// Refuses keys that are in none of the lists of `known`. Keys with an empty value (null, false, an empty list or map)
/// are ignored.
///
/// # Errors
/// `unsupported_format` naming the key and its value.
pub(super) fn refuse_unknown(config: &Value, known: &[&[&str]]) -> Result<()> {
    let says_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    };
    let is_known = |key: &str| OF_EVERY_TOOL.contains(&key) || known.iter().any(|keys| keys.contains(&key));
    let unknown = config
        .as_object()
        .into_iter()
        .flatten()
        .find(|(key, value)| !is_known(key.as_str()) && !says_nothing(value));
    match unknown {
        None => Ok(()),
        Some((key, value)) => Err(Error::unsupported_format(format!(
            "the key {} with the value {} is not supported: it may change what the weights mean",
            quoted(key),
            clipped(&value.to_string(), 100)
        ))),
    }
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
            refuse_unknown(&config, known).unwrap();
        }
        let error = refuse_unknown(&json!({"bits": 4, "rotation": "hadamard"}), known).unwrap_err();
        assert!(error.to_string().contains("`rotation` with the value \"hadamard\""), "{error}");
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
