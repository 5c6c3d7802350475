//! Converts errors to JavaScript and back.

use crate::error::{Error, ErrorCode};
use js_sys::Reflect;
use wasm_bindgen::{JsCast, JsValue};

/// A JavaScript `Error` whose `code` is one of [`ErrorCode::as_str`].
pub fn to_js(error: Error) -> JsValue {
    let value = js_sys::Error::new(&error.to_string());
    value.set_name("LowbitError");
    // Setting a property of a fresh object cannot fail.
    let _ = Reflect::set(&value, &"code".into(), &error.code().as_str().into());
    value.into()
}

/// Converts what JavaScript threw or rejected with. A known `code` is kept. Everything else becomes an `io` error,
/// because most JavaScript called from here reads or writes.
pub fn from_js(thrown: &JsValue) -> Error {
    let code = Reflect::get(thrown, &"code".into()).ok().and_then(|code| code.as_string());
    let code = code.and_then(|code| ErrorCode::from_name(&code)).unwrap_or(ErrorCode::Io);
    let message = match thrown.dyn_ref::<js_sys::Error>() {
        Some(error) => String::from(error.message()),
        None => thrown.as_string().unwrap_or_else(|| format!("{thrown:?}")),
    };
    Error::new(code, message)
}
