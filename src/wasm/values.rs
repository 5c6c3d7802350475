//! Rust values as plain objects of JavaScript, and back.

use super::error::{from_js, to_js};
use crate::error::{Context, Error, ErrorCode, Result};
use crate::format::json;
use crate::options::{self, Options};
use js_sys::{Promise, Uint8Array};
use serde::Serialize;
use serde_json::{Map, Value};
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::JsFuture;

/// What a binding returns: an error is one that JavaScript can catch.
pub(super) type JsResult<T> = Result<T, JsValue>;

/// A value as `JSON.parse` would have made it, with names as JavaScript has them: `group_size` is `groupSize`.
pub(super) fn to_value<T: Serialize + ?Sized>(value: &T) -> JsResult<JsValue> {
    // Indented, as files are: with another spelling, or without the text, every type would be compiled for it once more.
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| to_js(Error::new(ErrorCode::Io, error.to_string())))?;
    js_sys::JSON::parse(&options::camel_case_keys(&text))
}

/// Reads an object of options; `what` is what messages call it. Undefined is as an empty object.
pub(super) fn from_value<T: Options>(value: JsValue, what: &str) -> Result<T> {
    let read = || {
        if value.is_undefined() || value.is_null() {
            return options::read(&Value::Object(Map::new()));
        }
        // Through text, because a reader of JavaScript's objects would see only the fields that it asks for.
        let text = js_sys::JSON::stringify(&value).ok().and_then(|text| text.as_string());
        let text = text.ok_or_else(|| Error::invalid_argument("expected a plain object of options"))?;
        let object: Value =
            json::parse(text.as_bytes()).map_err(|error| Error::invalid_argument(error.to_string()))?;
        options::read(&object)
    };
    read().context_with(|| what)
}

/// Waits for a promise.
pub(super) async fn settled(promise: Promise) -> Result<JsValue> {
    JsFuture::from(promise).await.map_err(|error| from_js(&error))
}

/// A copy of `bytes` that JavaScript may keep: a view of this module's memory would not outlive its growth.
pub(super) fn copied(bytes: &[u8]) -> Uint8Array {
    Uint8Array::from(bytes)
}

/// A count or an offset as JavaScript's numbers hold it: exact up to 2^53, which no file reaches.
pub(super) fn number(value: u64) -> f64 {
    value as f64
}
