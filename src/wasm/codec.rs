//! A [`TextCodec`] in JavaScript: the module `tokenizer`, or a page's own tokenizer.

use super::error::from_js;
use crate::error::{Error, ErrorCode, Result};
use crate::tokenizer::{PROBE_CHAT, TextCodec};
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

#[wasm_bindgen]
extern "C" {
    /// The methods of the class in the module `tokenizer`.
    #[derive(Clone)]
    #[wasm_bindgen(typescript_type = "Codec")]
    pub type CodecHandle;

    #[wasm_bindgen(method, catch)]
    fn encode(this: &CodecHandle, text: &str) -> Result<Vec<u32>, JsValue>;

    #[wasm_bindgen(method, catch, js_name = encodePrompt)]
    fn encode_prompt(this: &CodecHandle, text: &str) -> Result<Vec<u32>, JsValue>;

    #[wasm_bindgen(method, catch)]
    fn decode(this: &CodecHandle, ids: &[u32]) -> Result<String, JsValue>;

    #[wasm_bindgen(method, getter, js_name = bosTokenId)]
    fn bos_token_id(this: &CodecHandle) -> Option<u32>;

    #[wasm_bindgen(method, getter, js_name = vocabSize)]
    fn vocab_size(this: &CodecHandle) -> usize;

    #[wasm_bindgen(method, getter, js_name = hasChatTemplate)]
    fn has_chat_template(this: &CodecHandle) -> bool;

    #[wasm_bindgen(method, catch, js_name = applyChatTemplate)]
    fn apply_chat_template(this: &CodecHandle, messages: &JsValue) -> Result<String, JsValue>;
}

/// A tokenizer in JavaScript.
pub(super) struct JsCodec(pub(super) CodecHandle);

fn text_error(thrown: &JsValue) -> Error {
    let error = from_js(thrown);
    match error.code() {
        // `from_js` defaults to `io`, but a tokenizer does no I/O.
        ErrorCode::Io => Error::new(ErrorCode::Tokenizer, error.message()),
        _ => error,
    }
}

impl TextCodec for JsCodec {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.0.encode(text).map_err(|error| text_error(&error))
    }

    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.0.encode_prompt(text).map_err(|error| text_error(&error))
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.0.decode(ids).map_err(|error| text_error(&error))
    }

    fn bos_token_id(&self) -> Option<u32> {
        self.0.bos_token_id()
    }

    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn probe_chat(&self) -> Option<Result<String>> {
        let prompt = || {
            let messages = js_sys::JSON::parse(PROBE_CHAT)?;
            self.0.apply_chat_template(&messages)
        };
        self.0.has_chat_template().then(|| prompt().map_err(|error| text_error(&error)))
    }
}
