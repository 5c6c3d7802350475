//! Scratch space in JavaScript, outside this module's memory.

use super::error::from_js;
use super::values::{copied, number, settled};
use crate::error::{Context, Error, Result};
use crate::format::scratch::Scratch;
use crate::task::BoxFuture;
use js_sys::{Array, Promise, Uint8Array};
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};

#[wasm_bindgen]
extern "C" {
    /// `{writeAt(blob, offset, bytes), readAt(blob, offset, length), size(blob), delete(blob), names()}`; all return
    /// promises.
    #[derive(Clone)]
    #[wasm_bindgen(typescript_type = "Scratch")]
    pub type ScratchHandle;

    #[wasm_bindgen(method, catch, js_name = writeAt)]
    fn write_at(this: &ScratchHandle, blob: &str, offset: f64, bytes: Uint8Array)
    -> Result<Promise, JsValue>;

    #[wasm_bindgen(method, catch, js_name = readAt)]
    fn read_at(this: &ScratchHandle, blob: &str, offset: f64, length: f64) -> Result<Promise, JsValue>;

    #[wasm_bindgen(method, catch)]
    fn size(this: &ScratchHandle, blob: &str) -> Result<Promise, JsValue>;

    #[wasm_bindgen(method, catch, js_name = delete)]
    fn remove(this: &ScratchHandle, blob: &str) -> Result<Promise, JsValue>;

    #[wasm_bindgen(method, catch)]
    fn names(this: &ScratchHandle) -> Result<Promise, JsValue>;
}

/// Scratch space in JavaScript.
pub(super) struct JsScratch(pub(super) ScratchHandle);

async fn answer(called: Result<Promise, JsValue>, blob: &str) -> Result<JsValue> {
    let answered = match called {
        Ok(promise) => settled(promise).await,
        Err(error) => Err(from_js(&error)),
    };
    answered.context_with(|| format!("scratch blob `{blob}`"))
}

impl Scratch for JsScratch {
    fn write_at<'a>(&'a self, blob: &'a str, offset: u64, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(
            async move { answer(self.0.write_at(blob, number(offset), copied(bytes)), blob).await.map(drop) },
        )
    }

    fn read_at<'a>(&'a self, blob: &'a str, offset: u64, out: &'a mut [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let called = self.0.read_at(blob, number(offset), number(out.len() as u64));
            let bytes = answer(called, blob).await?;
            match bytes.dyn_ref::<Uint8Array>() {
                Some(bytes) if bytes.length() as usize == out.len() => bytes.copy_to(out),
                _ => {
                    return Err(Error::invalid_argument(format!(
                        "scratch blob `{blob}`: expected {} bytes but found something else",
                        out.len()
                    )));
                }
            }
            Ok(())
        })
    }

    fn len<'a>(&'a self, blob: &'a str) -> BoxFuture<'a, Result<Option<u64>>> {
        Box::pin(async move { Ok(answer(self.0.size(blob), blob).await?.as_f64().map(|len| len as u64)) })
    }

    fn delete<'a>(&'a self, blob: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { answer(self.0.remove(blob), blob).await.map(drop) })
    }

    fn names(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(async move {
            let names = settled(self.0.names().map_err(|error| from_js(&error))?).await?;
            Ok(Array::from(&names).iter().filter_map(|name| name.as_string()).collect())
        })
    }
}
