//! Translates auto-round's config into that of the layout that holds its tensors.
//!
//! `packing_format` names the layout, and `extra_config` has the settings of individual modules:
//!
//! | `packing_format` | layout |
//! |---|---|
//! | `auto_round:auto_gptq`, `auto_round:gptq`, none | GPTQ, zero points minus one, per field |
//! | `auto_round`, `auto_round:gptqmodel` | GPTQ, zero points unchanged |
//! | `auto_round:auto_awq`, `auto_round:awq` | AWQ `gemm` |

use super::keys;
use crate::error::{Error, Result};
use crate::format::{clipped, quoted};
use serde_json::{Map, Value, json};

/// Whether a lower-case method name is one of auto-round's.
pub(super) fn is_method(method: &str) -> bool {
    matches!(method, "auto-round" | "auto_round" | "autoround" | "intel/auto-round")
}

/// Modules with at least this many bits are in floating point.
const FLOAT_BITS: i64 = 16;

/// The method of the layout that holds the tensors, and the translated `quantization_config`.
///
/// # Errors
/// `unsupported_format` for another packing, and for non-integer number types.
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
        let (names, patterns) = rules(&extra)?;
        translated.insert("extra_config".to_owned(), Value::Object(names));
        translated.insert("dynamic".to_owned(), Value::Object(patterns));
    }
    Ok((method, Value::Object(translated)))
}

/// Splits `extra_config` into settings by module name, null for floating point, and rules for `dynamic`.
fn rules(extra: &Value) -> Result<(Map<String, Value>, Map<String, Value>)> {
    let Some(extra) = extra.as_object() else {
        return Err(Error::invalid_checkpoint("expected `extra_config` to be a map"));
    };
    let is_name =
        |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    let (mut names, mut patterns) = (Map::new(), Map::new());
    for (name, settings) in extra {
        let kept = settings_of(name, settings)?;
        if is_name(name) {
            names.insert(name.clone(), kept.map_or(Value::Null, Value::Object));
        } else {
            // An auto-round pattern may match anywhere in a name; rules of `dynamic` match from its start.
            let sign = if kept.is_some() { "+:" } else { "-:" };
            patterns.insert(format!("{sign}(?:.*)(?:{name})"), Value::Object(kept.unwrap_or_default()));
        }
    }
    Ok((names, patterns))
}

/// The settings of a module that a rule needs; `None` if it stays in floating point.
fn settings_of(name: &str, settings: &Value) -> Result<Option<Map<String, Value>>> {
    let in_module = |error: Error| error.context(format!("extra_config {}", quoted(name)));
    let Some(settings) = settings.as_object() else {
        return Err(in_module(Error::invalid_checkpoint("expected a map")));
    };
    if settings.get("bits").and_then(Value::as_f64).is_some_and(|bits| bits >= FLOAT_BITS as f64) {
        return Ok(None);
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
    Ok(Some(kept))
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
        assert_eq!(translated["dynamic"], json!({"+:(?:.*)(?:.*mlp.*)": {"bits": 2, "group_size": 32}}));
        assert_eq!(
            translated["extra_config"],
            json!({"model.layers.0.self_attn.q_proj": {"bits": 8, "sym": false}, "lm_head": null})
        );
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
