//! The known keys of configuration files, and what happens to each. Any other key may change what a model computes, so
//! it is refused unless the caller allows it by name.

use super::{clipped, quoted};
use crate::error::{Error, ErrorCode, Result};
use serde_json::{Map, Value};

/// What happens to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Its value is used; values that cannot be used are refused where they are read.
    Honoured,
    /// It does not change results: it is about a tool, training or memory.
    Harmless,
    /// It is not applied. Opening the checkpoint warns if its value would change results.
    NotApplied,
    /// Refused for this reason, unless its value is [neutral](is_neutral).
    Refused(&'static str),
}

/// Keys with one treatment.
#[derive(Clone, Copy, Debug)]
pub struct KnownKeys {
    /// What happens to them.
    pub treatment: Treatment,
    /// Their names.
    pub names: &'static [&'static str],
}

/// What happens to a key; `None` for an unknown one.
pub fn treatment(known: &[KnownKeys], key: &str) -> Option<Treatment> {
    known.iter().find(|keys| keys.names.contains(&key)).map(|keys| keys.treatment)
}

/// Whether a value turns nothing on: null, false, an empty list or an empty object.
pub fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

/// What unknown keys may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// What the model computes; errors are `unsupported_model`.
    Model,
    /// What the stored weights mean; errors are `unsupported_format`.
    Weights,
    /// How texts are encoded and chats are written; errors are `tokenizer`.
    Texts,
}

impl Subject {
    /// The error for a key that is not supported, for a reason.
    pub fn refused(self, key: &str, value: &str, reason: &str) -> Error {
        self.error(format!("{} = {} is not supported: {reason}", quoted(key), clipped(value, 100)))
    }

    /// The error for an unknown key.
    pub fn unknown(self, key: &str, value: &str) -> Error {
        let what = match self {
            Self::Model => "what the model computes",
            Self::Weights => "what the weights mean",
            Self::Texts => "how texts are encoded or chats are written",
        };
        self.error(format!(
            "unknown key {} = {}: it may change {what}; to ignore it, name it in the option allow_unknown",
            quoted(key),
            clipped(value, 100)
        ))
    }

    fn error(self, message: String) -> Error {
        match self {
            Self::Model => Error::unsupported_model(message),
            Self::Weights => Error::unsupported_format(message),
            Self::Texts => Error::new(ErrorCode::Tokenizer, message),
        }
    }
}

/// Checks the keys of an object, and returns the unknown ones that `allowed` names. Unknown keys with a neutral value
/// are ignored. `prefix` is the path of a nested object, with a dot at its end: `rope_scaling.`
///
/// # Errors
/// The code of `subject`, naming the key and its value, for a key that is refused or unknown.
pub fn check(
    object: &Map<String, Value>,
    treatment: impl Fn(&str) -> Option<Treatment>,
    allowed: &[String],
    prefix: &str,
    subject: Subject,
) -> Result<Vec<String>> {
    let mut ignored = Vec::new();
    for (name, value) in object.iter().filter(|(_, value)| !is_neutral(value)) {
        let key = format!("{prefix}{name}");
        match treatment(name) {
            Some(Treatment::Refused(reason)) => {
                return Err(subject.refused(&key, &value.to_string(), reason));
            }
            Some(_) => {}
            None if allowed.contains(&key) => ignored.push(key),
            None => return Err(subject.unknown(&key, &value.to_string())),
        }
    }
    Ok(ignored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const KNOWN: &[KnownKeys] = &[
        KnownKeys { treatment: Treatment::Honoured, names: &["hidden_size"] },
        KnownKeys { treatment: Treatment::Refused("there is one decoder"), names: &["is_encoder_decoder"] },
    ];

    fn checked(object: &Value, allowed: &[&str]) -> Result<Vec<String>> {
        let allowed: Vec<String> = allowed.iter().map(|key| (*key).to_owned()).collect();
        check(object.as_object().unwrap(), |key| treatment(KNOWN, key), &allowed, "text.", Subject::Model)
    }

    #[test]
    fn unknown_keys_are_refused_or_allowed_by_name() {
        let neutral =
            json!({"hidden_size": 8, "a": null, "b": false, "c": [], "d": {}, "is_encoder_decoder": false});
        assert_eq!(checked(&neutral, &[]).unwrap(), [""; 0]);
        for (object, says) in [
            (json!({"hidden_size": 8, "a": 0}), "unknown key `text.a` = 0"),
            (json!({"a": {"b": "c"}}), "unknown key `text.a` = {\"b\":\"c\"}"),
            (
                json!({"is_encoder_decoder": true}),
                "`text.is_encoder_decoder` = true is not supported: there is one decoder",
            ),
        ] {
            let error = checked(&object, &["a", "text.is_encoder_decoder"]).unwrap_err();
            assert_eq!(error.code(), ErrorCode::UnsupportedModel);
            assert!(error.to_string().contains(says), "{error}");
        }
        assert_eq!(checked(&json!({"a": 1, "hidden_size": 8}), &["text.a", "other"]).unwrap(), ["text.a"]);
    }
}
