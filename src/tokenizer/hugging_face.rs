//! The tokenizer of a Hugging Face folder.

use super::chat::{self, ChatTemplate, Moment};
use super::files::{self, Templates};
use super::{TextCodec, check_vocabulary, oniguruma};
use crate::error::{Error, ErrorCode, Result};
use crate::format::small_file::read_file;
use crate::format::source::SourceDir;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

/// The tokenizer of a Hugging Face folder.
pub struct HuggingFaceTokenizer {
    tokenizer: Tokenizer,
    /// The token in front of every text, by the tokenizer's files alone: what prompts and templates get.
    named_bos: Option<u32>,
    /// The same, or else the model configuration's.
    bos: Option<u32>,
    add_bos: bool,
    vocab_size: usize,
    base_vocab_size: usize,
    /// Ids from here on have no row in the model's embedding.
    rows: usize,
    templates: Templates,
    /// What templates call by their names: `bos_token`, `eos_token` and so on.
    special_tokens: Map<String, Value>,
    clock: fn() -> Moment,
}

/// The part of tokenizer.json on which `tokenizers` 0.23 panics where it is no JSON, instead of returning an error.
#[derive(serde::Deserialize)]
struct DecoderPart {
    #[serde(rename = "decoder")]
    _decoder: Option<Value>,
}

pub(super) fn broken(file: &str, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Tokenizer, format!("{file}: {error}"))
}

/// Ids of the vocabulary, counted from 0 to the largest: with the tokens that were added to it, and without.
fn count(tokenizer: &Tokenizer) -> (usize, usize) {
    let added = tokenizer.get_added_tokens_decoder();
    let (mut all, mut base) = (0, 0);
    for id in tokenizer.get_vocab(true).into_values() {
        let end = id as usize + 1;
        all = all.max(end);
        if !added.contains_key(&id) {
            base = base.max(end);
        }
    }
    (all, base)
}

impl HuggingFaceTokenizer {
    /// Reads the tokenizer of a folder. `bos_token_id` is the model configuration's: [`TextCodec::bos_token_id`] gives
    /// it where the tokenizer's files name none. Prompts and templates then have none in front, as in transformers.
    ///
    /// # Errors
    /// `not_found` without a tokenizer.json, `tokenizer` for files that cannot be read.
    pub async fn open(dir: &dyn SourceDir, bos_token_id: Option<u32>) -> Result<Self> {
        Self::open_folder(dir, bos_token_id).await.map_err(|error| error.within(dir.name()))
    }

    async fn open_folder(dir: &dyn SourceDir, bos_token_id: Option<u32>) -> Result<Self> {
        let bytes = read_file(dir, "tokenizer.json")
            .await?
            .ok_or_else(|| Error::new(ErrorCode::NotFound, "expected a tokenizer.json but found none"))?;
        serde_json::from_slice::<DecoderPart>(&bytes).map_err(|error| broken("tokenizer.json", error))?;
        let bytes = oniguruma::translate_file(bytes).map_err(|error| broken("tokenizer.json", error))?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| broken("tokenizer.json", error))?;
        // Files may ask for cut or padded ids; texts here are taken whole.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| broken("tokenizer.json", error))?;
        let (vocab_size, base_vocab_size) = count(&tokenizer);

        let config = files::config(dir).await?;
        let mut special_tokens = files::special_tokens(dir, &config).await?;
        let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("");
        let is_llama = matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast");
        if is_llama {
            // The class has tokens of its own where the files are silent; a null is not silence.
            for (key, token) in [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")] {
                let is_silent = config.get(key).is_none() && !special_tokens.contains_key(key);
                if is_silent && tokenizer.token_to_id(token).is_some() {
                    special_tokens.insert(key.to_owned(), Value::from(token));
                }
            }
        }
        let named_bos = special_tokens
            .get("bos_token")
            .and_then(Value::as_str)
            .and_then(|text| tokenizer.token_to_id(text));
        let bos = named_bos.or_else(|| bos_token_id.filter(|id| tokenizer.id_to_token(*id).is_some()));
        // transformers' Llama tokenizers put the token in front unless told otherwise, whatever tokenizer.json says.
        let add_bos = config.get("add_bos_token").and_then(Value::as_bool).unwrap_or(is_llama);
        Ok(Self {
            tokenizer,
            named_bos,
            bos,
            add_bos,
            vocab_size,
            base_vocab_size,
            rows: usize::MAX,
            templates: files::templates(dir, &config).await?,
            special_tokens,
            clock: chat::now,
        })
    }

    /// Makes the tokenizer one of a model with so many rows in its embedding: a text with a token beyond them, which
    /// only added tokens can be, is an error from here on.
    ///
    /// # Errors
    /// `invalid_checkpoint` where the vocabulary itself is larger, or the token in front of every text has no row.
    pub fn fit(&mut self, embedding_rows: usize) -> Result<()> {
        check_vocabulary(self, embedding_rows)?;
        self.rows = embedding_rows;
        self.check(self.bos.as_slice()).map_err(|error| {
            Error::new(
                ErrorCode::InvalidCheckpoint,
                format!("the token in front of every text: {}", error.message()),
            )
        })
    }

    /// Takes the time for templates that print it from elsewhere. Natively it is the system's local time.
    #[cfg(all(target_arch = "wasm32", feature = "bindings"))]
    pub(crate) fn set_clock(&mut self, clock: fn() -> Moment) {
        self.clock = clock;
    }

    /// Whether the folder has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.templates.any()
    }

    /// The prompt that the checkpoint's template makes of a chat, ready for the assistant's answer, as transformers
    /// renders it. Each message is an object with a `role`; the template gets all of its keys, in their order, but those
    /// that are null, and a model's reasoning by each of its names.
    ///
    /// # Errors
    /// `not_found` without a template, `invalid_argument` for no messages or one that is none, `tokenizer` for a
    /// template that fails or asks for what is not done here.
    pub fn apply_chat_template(&self, messages: &[Value]) -> Result<String> {
        self.apply_chat_template_with(messages, None, None)
    }

    /// The same, with the JSON schemas of tools that the model may call, and documents, where they are given. Of several
    /// templates `tool_use` is taken with tools.
    ///
    /// # Errors
    /// As [`HuggingFaceTokenizer::apply_chat_template`].
    pub fn apply_chat_template_with(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        documents: Option<&[Value]>,
    ) -> Result<String> {
        self.render(messages, tools, documents, true)
    }

    /// The chat as it stands, without the beginning of another answer: what transformers renders with
    /// `add_generation_prompt=False`, and what a model learns from.
    ///
    /// # Errors
    /// As [`HuggingFaceTokenizer::apply_chat_template`].
    pub fn chat_so_far(&self, messages: &[Value], tools: Option<&[Value]>) -> Result<String> {
        self.render(messages, tools, None, false)
    }

    fn render(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        documents: Option<&[Value]>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let template = self.templates.pick(tools.is_some())?;
        let template =
            ChatTemplate { text: template, special_tokens: &self.special_tokens, clock: self.clock };
        template.render(messages, tools, documents, add_generation_prompt)
    }

    /// Refuses ids that the embedding has no row for.
    fn check(&self, ids: &[u32]) -> Result<()> {
        let Some(&id) = ids.iter().find(|id| **id as usize >= self.rows) else { return Ok(()) };
        let token = self.tokenizer.id_to_token(id).unwrap_or_default();
        Err(Error::new(
            ErrorCode::Tokenizer,
            format!("the token `{token}` has the id {id} but the model's embedding has {} rows", self.rows),
        ))
    }

    fn ids(&self, text: &str, with_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, with_special_tokens);
        Ok(encoding.map_err(|error| broken("tokenizer", error))?.get_ids().to_vec())
    }
}

impl TextCodec for HuggingFaceTokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.ids(text, false)?;
        self.check(&ids)?;
        Ok(ids)
    }

    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.ids(text, true)?;
        if let Some(bos) = self.named_bos
            && self.add_bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        self.check(&ids)?;
        Ok(ids)
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, true).map_err(|error| broken("tokenizer", error))
    }

    fn bos_token_id(&self) -> Option<u32> {
        self.bos
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn base_vocab_size(&self) -> usize {
        self.base_vocab_size
    }
}

#[cfg(test)]
mod tests;
