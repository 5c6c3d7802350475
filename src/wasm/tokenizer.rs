//! The module `tokenizer`: text to token ids and back, with the tokenizer files of a checkpoint.

use super::error::to_js;
use crate::error::{Error, Result};
use crate::format::source::MemoryDir;
use crate::tokenizer::chat::Moment;
use crate::tokenizer::{HuggingFaceTokenizer, TextCodec};
use js_sys::{Array, Date, JSON, Object, Uint8Array};
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

/// The tokenizer of a checkpoint.
#[wasm_bindgen]
pub struct Tokenizer(HuggingFaceTokenizer);

#[wasm_bindgen]
impl Tokenizer {
    /// Reads `tokenizer.json` and the files beside it from `files`, an object of `Uint8Array`s. `name` is the folder's
    /// name in messages. `rows` is the number of rows in the model's embedding; encoding a token beyond them is an
    /// error. `allow_unknown` names unknown keys of the settings to ignore.
    pub async fn open(
        name: String,
        files: Object,
        bos_token_id: Option<u32>,
        rows: usize,
        allow_unknown: Vec<String>,
    ) -> Result<Tokenizer, JsValue> {
        let mut dir = MemoryDir::new(name.clone());
        for entry in Object::entries(&files).iter() {
            let entry = Array::from(&entry);
            let (name, bytes) = (entry.get(0).as_string().unwrap_or_default(), entry.get(1));
            dir.insert(name, Uint8Array::new(&bytes).to_vec());
        }
        let codec = HuggingFaceTokenizer::open_with(&dir, bos_token_id, &allow_unknown).await;
        let mut codec = codec.map_err(to_js)?;
        codec.set_clock(now);
        codec.fit(rows).map_err(|error| to_js(error.within(&name)))?;
        Ok(Self(codec))
    }

    /// The ids of `text`, without special tokens around it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, JsValue> {
        self.0.encode(text).map_err(to_js)
    }

    /// The ids of a prompt, with the special tokens that the model expects in front.
    #[wasm_bindgen(js_name = encodePrompt)]
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, JsValue> {
        self.0.encode_prompt(text).map_err(to_js)
    }

    /// The text of `ids`, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, JsValue> {
        self.0.decode(ids).map_err(to_js)
    }

    /// The beginning-of-sequence token, if the model has one.
    #[wasm_bindgen(getter, js_name = bosTokenId)]
    pub fn bos_token_id(&self) -> Option<u32> {
        self.0.bos_token_id()
    }

    /// The number of ids.
    #[wasm_bindgen(getter, js_name = vocabSize)]
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    /// Whether the checkpoint has a chat template.
    #[wasm_bindgen(getter, js_name = hasChatTemplate)]
    pub fn has_chat_template(&self) -> bool {
        self.0.has_chat_template()
    }

    /// Renders `messages` into a prompt. Each is an object with a `role` and any other keys that the template reads.
    #[wasm_bindgen(js_name = applyChatTemplate)]
    pub fn apply_chat_template(
        &self,
        #[wasm_bindgen(unchecked_param_type = "readonly object[]")] messages: Array,
    ) -> Result<String, JsValue> {
        read_messages(&messages).and_then(|messages| self.0.apply_chat_template(&messages)).map_err(to_js)
    }
}

fn read_messages(messages: &Array) -> Result<Vec<serde_json::Value>> {
    let wrong = || Error::invalid_argument("expected messages that can be written as JSON");
    let text = JSON::stringify(messages).ok().and_then(|text| text.as_string()).ok_or_else(wrong)?;
    serde_json::from_str(&text).map_err(|_| wrong())
}

/// JavaScript's local time.
fn now() -> Moment {
    let now = Date::new_0();
    Moment {
        year: now.get_full_year().clamp(1, 9999) as u16,
        month: now.get_month() as u8 + 1,
        day: now.get_date() as u8,
        hour: now.get_hours() as u8,
        minute: now.get_minutes() as u8,
        second: now.get_seconds() as u8,
        microsecond: now.get_milliseconds() * 1000,
    }
}
