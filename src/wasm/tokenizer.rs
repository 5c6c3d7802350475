//! The module `tokenizer`: text to token ids and back, by the files of a checkpoint. Floor 9.

use super::error::to_js;
use crate::error::{Error, Result};
use crate::format::source::MemoryDir;
use crate::tokenizer::{ChatMessage, HuggingFaceTokenizer, TextCodec};
use js_sys::{Array, Object, Reflect, Uint8Array};
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};

/// The tokenizer of a checkpoint.
#[wasm_bindgen]
pub struct Tokenizer(HuggingFaceTokenizer);

#[wasm_bindgen]
impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` from `files`, an object of `Uint8Array`s.
    /// Messages call the place `name`.
    pub async fn open(name: String, files: Object, bos_token_id: Option<u32>) -> Result<Tokenizer, JsValue> {
        let mut dir = MemoryDir::new(name);
        for entry in Object::entries(&files).iter() {
            let entry = Array::from(&entry);
            let (name, bytes) = (entry.get(0).as_string().unwrap_or_default(), entry.get(1));
            dir.insert(name, Uint8Array::new(&bytes).to_vec());
        }
        HuggingFaceTokenizer::open(&dir, bos_token_id).await.map(Self).map_err(to_js)
    }

    /// The ids of `text`, without special tokens around it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, JsValue> {
        self.0.encode(text).map_err(to_js)
    }

    /// The ids of a prompt, with the tokens that the model expects in front of it.
    #[wasm_bindgen(js_name = encodePrompt)]
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, JsValue> {
        self.0.encode_prompt(text).map_err(to_js)
    }

    /// The text of `ids`, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, JsValue> {
        self.0.decode(ids).map_err(to_js)
    }

    /// The token in front of every text, where the model has one.
    #[wasm_bindgen(getter, js_name = bosTokenId)]
    pub fn bos_token_id(&self) -> Option<u32> {
        self.0.bos_token_id()
    }

    /// How many ids there are.
    #[wasm_bindgen(getter, js_name = vocabSize)]
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    /// Whether the checkpoint has a chat template.
    #[wasm_bindgen(getter, js_name = hasChatTemplate)]
    pub fn has_chat_template(&self) -> bool {
        self.0.has_chat_template()
    }

    /// The prompt that the template makes of `messages`, an array of `{role, content}`.
    #[wasm_bindgen(js_name = applyChatTemplate)]
    pub fn apply_chat_template(&self, messages: Array) -> Result<String, JsValue> {
        let messages = messages.iter().enumerate().map(|(index, message)| chat_message(index, &message));
        let messages = messages.collect::<Result<Vec<_>>>().map_err(to_js)?;
        self.0.apply_chat_template(&messages).map_err(to_js)
    }
}

fn chat_message(index: usize, message: &JsValue) -> Result<ChatMessage> {
    let text = |key: &str| {
        let value = message.dyn_ref::<Object>().and_then(|object| Reflect::get(object, &key.into()).ok());
        value.and_then(|value| value.as_string()).ok_or_else(|| {
            Error::invalid_argument(format!("messages[{index}]: expected `{key}` to be a string"))
        })
    };
    Ok(ChatMessage { role: text("role")?, content: text("content")? })
}
