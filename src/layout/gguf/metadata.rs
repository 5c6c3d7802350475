//! Typed access to GGUF metadata, with errors that name the key.

use crate::error::{Error, Result};
use crate::format::gguf::{Array, Value};
use crate::format::{clipped, quoted};
use std::collections::BTreeMap;

/// The metadata entries of a file.
pub(super) struct Metadata<'a>(pub(super) &'a BTreeMap<String, Value>);

fn unexpected(key: &str, expected: &str, found: &Value) -> Error {
    Error::invalid_checkpoint(format!(
        "key {}: expected {expected} but found {}",
        quoted(key),
        clipped(&format!("{found:?}"), 60)
    ))
}

fn missing(key: &str) -> Error {
    Error::invalid_checkpoint(format!("expected the key {} but found none", quoted(key)))
}

impl<'a> Metadata<'a> {
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Whether the key exists, with any value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// A number, or an array of equal numbers: some keys can differ per block.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let of_blocks = value.as_array().and_then(Array::as_i32s).filter(|of_blocks| !of_blocks.is_empty());
        let number = match of_blocks {
            Some(of_blocks) if of_blocks.iter().any(|number| *number != of_blocks[0]) => {
                return Err(Error::unsupported_model(format!(
                    "key {}: different values per block are not supported",
                    quoted(key)
                )));
            }
            Some(of_blocks) => u64::try_from(of_blocks[0]).ok(),
            None => value.as_u64(),
        };
        number.map(Some).ok_or_else(|| unexpected(key, "an unsigned number", value))
    }

    pub(super) fn require_number(&self, key: &str) -> Result<u64> {
        self.number(key)?.ok_or_else(|| missing(key))
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(unexpected(key, "a finite floating-point number", value)),
        }
    }

    pub(super) fn require_float(&self, key: &str) -> Result<f64> {
        self.float(key)?.ok_or_else(|| missing(key))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| unexpected(key, "text", value))
    }

    pub(super) fn require_text(&self, key: &str) -> Result<&'a str> {
        self.text(key)?.ok_or_else(|| missing(key))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| unexpected(key, "a boolean", value))
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<&'a [String]>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let strings = value.as_array().and_then(Array::as_strings);
        strings.map(Some).ok_or_else(|| unexpected(key, "an array of strings", value))
    }

    pub(super) fn floats(&self, key: &str) -> Result<Option<&'a [f32]>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let floats = value.as_array().and_then(Array::as_f32s);
        floats.map(Some).ok_or_else(|| unexpected(key, "an array of F32 numbers", value))
    }

    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i32>>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let integers = value.as_array().and_then(Array::as_i32s);
        integers.map(Some).ok_or_else(|| unexpected(key, "an array of I32 numbers", value))
    }
}
