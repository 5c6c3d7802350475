//! Chat templates in GGUF: one unnamed template, and any number of named ones.

use crate::format::gguf::{Array, Value as GgufValue};
use crate::format::quoted;
use serde_json::Value;
use std::collections::BTreeMap;

/// Adds the templates of tokenizer_config.json: a text, or a list of named templates in which `default` is the unnamed
/// one.
pub(super) fn add(
    tokenizer_config: &Value,
    metadata: &mut BTreeMap<String, GgufValue>,
    notes: &mut Vec<String>,
) {
    let mut names = Vec::new();
    for (name, template) in listed(tokenizer_config, notes) {
        let key = match name.as_str() {
            "default" => "tokenizer.chat_template".to_owned(),
            name => format!("tokenizer.chat_template.{name}"),
        };
        if metadata.contains_key(&key) {
            notes.push(format!(
                "only the first of several chat templates called {} is in the file",
                quoted(&name)
            ));
            continue;
        }
        metadata.insert(key, GgufValue::String(template));
        if name != "default" {
            names.push(name);
        }
    }
    if !names.is_empty() {
        metadata.insert("tokenizer.chat_templates".to_owned(), GgufValue::Array(Array::String(names)));
    }
}

/// Templates with names that are valid in keys.
fn listed(tokenizer_config: &Value, notes: &mut Vec<String>) -> Vec<(String, String)> {
    match tokenizer_config.get("chat_template") {
        Some(Value::String(template)) => vec![("default".to_owned(), template.clone())],
        Some(Value::Array(entries)) => {
            let mut listed = Vec::new();
            for entry in entries {
                let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
                let (Some(name), Some(template)) = (text("name"), text("template")) else {
                    notes.push("a chat template without a name or a text is left out".to_owned());
                    continue;
                };
                let key: String =
                    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
                if key != name {
                    notes.push(format!(
                        "the chat template {} is called {} in the file",
                        quoted(name),
                        quoted(&key)
                    ));
                }
                listed.push((key, template.to_owned()));
            }
            listed
        }
        _ => Vec::new(),
    }
}
