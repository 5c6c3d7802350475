//! auto-round's own way to say what it wrote, read as the layout that its tensors have.
//!
//! `packing_format` names that layout, and `extra_config` says which modules differ from the rest:
//!
//! | `packing_format` | layout |
//! |---|---|
//! | `auto_round:auto_gptq`, `auto_round:gptq`, none | GPTQ, zero points minus one, field by field |
//! | `auto_round`, `auto_round:gptqmodel` | GPTQ, zero points as they are |
//! | `auto_round:auto_awq`, `auto_round:awq` | AWQ `gemm` |
//!
//! Floor 3.

use super::keys;
use crate::error::{Error, Result};
use crate::format::{clipped, quoted};
use serde_json::{Map, Value, json};

/// What auto-round calls itself as a method, in lower case.
pub(super) fn is_method(method: &str) -> bool {
    matches!(method, "auto-round" | "auto_round" | "autoround" | "intel/auto-round")
}

/// Bits from which a module is in floating point.
const FLOAT_BITS: i64 = 16;

/// Its config in the spelling of the layout that holds the tensors: the method, and its `quantization_config`.
///
/// # Errors
/// `unsupported_format` for another packing, and for numbers that are no integers.
pub(super) fn translate(config: &Value) -> Result<(&'static str, Value)> {
    let packing = config.get("packing_format").and_then(Value::as_str).unwrap_or("auto_round:auto_gptq");
    let (method, label) = match packing {
        "auto_round:auto_gptq" | "auto_round:gptq" => ("gptq", Some("gptq")),
        "auto_round" | "auto_round:gptqmodel" => ("gptq", Some("gptq_v2")),
        "auto_round:auto_awq" | "auto_round:awq" => ("awq", None),
        other => {
            return Err(Error::unsupported_format(format!(
                "expected `packing_format` to be auto_round, auto_round:auto_gptq or auto_round:auto_awq but found {}",
                quoted(other)
            )));
        }
    };
    let mut translated = config.as_object().cloned().unwrap_or_default();
    let extra = translated.shift_remove("extra_config");
    translated.insert("quant_method".to_owned(), json!(method));
    translated.insert("provider".to_owned(), json!("auto-round"));
    if let Some(label) = label {
        translated.insert("checkpoint_format".to_owned(), json!(label));
    }
    if let Some(extra) = extra.filter(|extra| !extra.is_null()) {
        translated.insert("dynamic".to_owned(), rules(&extra)?);
    }
    Ok((method, Value::Object(translated)))
}

/// `extra_config` as rules of `dynamic`: names first, which count before patterns.
fn rules(extra: &Value) -> Result<Value> {
    let Some(extra) = extra.as_object() else {
        return Err(Error::invalid_checkpoint("expected `extra_config` to be a map"));
    };
    let is_name =
        |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    let (names, patterns): (Vec<_>, Vec<_>) = extra.iter().partition(|(name, _)| is_name(name));
    let mut rules = Map::new();
    for (name, settings) in names {
        let (sign, settings) = rule(name, settings)?;
        rules.insert(format!("{sign}{}$", name.replace('.', r"\.")), settings);
    }
    for (pattern, settings) in patterns {
        let (sign, settings) = rule(pattern, settings)?;
        // A pattern may match anywhere in a name; rules of `dynamic` match from its start.
        rules.insert(format!("{sign}(?:.*)(?:{pattern})"), settings);
    }
    Ok(Value::Object(rules))
}

/// The rule's sign, and what is left of the settings of a module for `dynamic`.
fn rule(name: &str, settings: &Value) -> Result<(&'static str, Value)> {
    let in_module = |error: Error| error.context(format!("extra_config {}", quoted(name)));
    let Some(settings) = settings.as_object() else {
        return Err(in_module(Error::invalid_checkpoint("expected a map")));
    };
    if settings.get("bits").and_then(Value::as_f64).is_some_and(|bits| bits >= FLOAT_BITS as f64) {
        return Ok(("-:", json!({})));
    }
    let object = Value::Object(settings.clone());
    keys::refuse_other_than_integer_weights(&object).map_err(in_module)?;
    let mut kept = Map::new();
    for (key, value) in settings.iter().filter(|(_, value)| !value.is_null()) {
        match key.as_str() {
            "bits" | "group_size" | "sym" => _ = kept.insert(key.clone(), value.clone()),
            _ if keys::AUTO_ROUND.contains(&key.as_str()) => {}
            other => {
                return Err(in_module(Error::unsupported_format(format!(
                    "the key {} with the value {} is not supported",
                    quoted(other),
                    clipped(&value.to_string(), 100)
                ))));
            }
        }
    }
    Ok(("+:", Value::Object(kept)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packing_decides_the_layout() {
        for (packing, method, label) in [
            (json!("auto_round:auto_gptq"), "gptq", json!("gptq")),
            (json!("auto_round:gptqmodel"), "gptq", json!("gptq_v2")),
            (json!("auto_round"), "gptq", json!("gptq_v2")),
            (json!(null), "gptq", json!("gptq")),
            (json!("auto_round:auto_awq"), "awq", json!(null)),
        ] {
            let config = json!({"quant_method": "auto-round", "bits": 4, "packing_format": packing});
            let (found, translated) = translate(&config).unwrap();
            assert_eq!((found, &translated["checkpoint_format"]), (method, &label), "{packing}");
            assert_eq!(translated["bits"], 4);
        }
        let error = translate(&json!({"packing_format": "auto_round:llm_compressor"})).unwrap_err();
        assert!(error.to_string().contains("packing_format"), "{error}");
    }

    #[test]
    fn modules_of_their_own_become_rules() {
        let config = json!({"bits": 4, "extra_config": {
            ".*mlp.*": {"bits": 2, "group_size": 32, "act_bits": 16, "data_type": "int", "act_sym": null},
            "model.layers.0.self_attn.q_proj": {"bits": 8, "sym": false},
            "lm_head": {"bits": 16},
        }});
        let (_, translated) = translate(&config).unwrap();
        let expected = json!({
            r"+:model\.layers\.0\.self_attn\.q_proj$": {"bits": 8, "sym": false},
            "-:lm_head$": {},
            "+:(?:.*)(?:.*mlp.*)": {"bits": 2, "group_size": 32},
        });
        assert_eq!(translated["dynamic"], expected);
        assert_eq!(translated.get("extra_config"), None);
        for (settings, word) in [
            (json!({"bits": 4, "act_bits": 8}), "act_bits"),
            (json!({"data_type": "nv_fp"}), "data_type"),
            (json!({"bits": 4, "rotation": "hadamard"}), "rotation"),
            (json!(4), "expected a map"),
        ] {
            let error = translate(&json!({"extra_config": {"m": settings}})).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
