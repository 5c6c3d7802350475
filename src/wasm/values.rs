//! Converts Rust values to plain JavaScript objects and back.

use super::error::{from_js, to_js};
use crate::error::{Context, Error, ErrorCode, Result};
use crate::format::json;
use crate::options::{self, Options};
use js_sys::{Promise, Uint8Array};
use serde::Serialize;
use serde_json::{Map, Value};
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::JsFuture;

/// The result of a binding; JavaScript gets the error as an exception.
pub(super) type JsResult<T> = Result<T, JsValue>;

/// Converts a value to an object as from `JSON.parse`, with keys in camel case: `group_size` becomes `groupSize`.
pub(super) fn to_value<T: Serialize + ?Sized>(value: &T) -> JsResult<JsValue> {
    // Pretty-printed as files are: another formatter or serializer would be compiled once more for every type.
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| to_js(Error::new(ErrorCode::Io, error.to_string())))?;
    js_sys::JSON::parse(&options::camel_case_keys(&text))
}

/// Reads an object of options; `what` names it in messages. Undefined counts as an empty object.
pub(super) fn from_value<T: Options>(value: JsValue, what: &str) -> Result<T> {
    let read = || {
        if value.is_undefined() || value.is_null() {
            return options::read(&Value::Object(Map::new()));
        }
        // Through text: a direct reader of JavaScript objects sees only the fields that it asks for, so unknown ones
        // would pass.
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

/// A copy of `bytes` that JavaScript may keep: growing this module's memory would detach a view.
pub(super) fn copied(bytes: &[u8]) -> Uint8Array {
    Uint8Array::from(bytes)
}

/// A count or an offset as a JavaScript number: exact up to 2^53, which no file reaches.
pub(super) fn number(value: u64) -> f64 {
    value as f64
}
