//! The tokenizer of a Hugging Face folder.

use super::chat::{self, ChatTemplate, Moment};
use super::files::{self, Templates};
use super::{PROBE_CHAT, TextCodec, check_vocabulary, oniguruma};
use crate::error::{Error, ErrorCode, Result};
use crate::format::small_file::read_file;
use crate::format::source::SourceDir;
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

/// The tokenizer of a Hugging Face folder.
pub struct HuggingFaceTokenizer {
    tokenizer: Tokenizer,
    /// The BOS token that the tokenizer's files name. Prompts and templates use only this one.
    named_bos: Option<u32>,
    /// `named_bos`, else the BOS token of the model configuration.
    bos: Option<u32>,
    add_bos: bool,
    vocab_size: usize,
    base_vocab_size: usize,
    /// Rows of the model's embedding; ids from here on are refused.
    rows: usize,
    templates: Templates,
    /// Special tokens as variables of templates: `bos_token`, `eos_token` and so on.
    special_tokens: Map<String, Value>,
    clock: fn() -> Moment,
}

/// The part of tokenizer.json on which `tokenizers` 0.23 panics when it is invalid JSON.
#[derive(serde::Deserialize)]
struct DecoderPart {
    #[serde(rename = "decoder")]
    _decoder: Option<Value>,
}

pub(super) fn broken(file: &str, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Tokenizer, format!("{file}: {error}"))
}

/// The number of ids (the largest plus one), with and without added tokens.
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
    /// Reads the tokenizer of a folder. `bos_token_id` is that of the model configuration: [`TextCodec::bos_token_id`]
    /// returns it when the tokenizer's files name none. Prompts and templates then start without a BOS token, as in
    /// transformers.
    ///
    /// # Errors
    /// `not_found` without a tokenizer.json, `tokenizer` for files that cannot be read and for unknown keys.
    pub async fn open(dir: &dyn SourceDir, bos_token_id: Option<u32>) -> Result<Self> {
        Self::open_with(dir, bos_token_id, &[]).await
    }

    /// As [`open`](Self::open). Unknown keys of tokenizer_config.json that `allowed` names are ignored.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(
        dir: &dyn SourceDir,
        bos_token_id: Option<u32>,
        allowed: &[String],
    ) -> Result<Self> {
        Self::open_folder(dir, bos_token_id, allowed).await.map_err(|error| error.within(dir.name()))
    }

    async fn open_folder(dir: &dyn SourceDir, bos_token_id: Option<u32>, allowed: &[String]) -> Result<Self> {
        let bytes = read_file(dir, "tokenizer.json")
            .await?
            .ok_or_else(|| Error::new(ErrorCode::NotFound, "expected a tokenizer.json but found none"))?;
        serde_json::from_slice::<DecoderPart>(&bytes).map_err(|error| broken("tokenizer.json", error))?;
        let bytes = oniguruma::translate_file(bytes).map_err(|error| broken("tokenizer.json", error))?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| broken("tokenizer.json", error))?;
        // A file may request truncation or padding; texts are always encoded whole.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| broken("tokenizer.json", error))?;
        let (vocab_size, base_vocab_size) = count(&tokenizer);

        let config = files::config(dir, allowed).await?;
        let mut special_tokens = files::special_tokens(dir, &config).await?;
        let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("");
        let is_llama = matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast");
        if is_llama {
            // The class has default tokens for those that the files do not mention; a null counts as a mention.
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
        // transformers' Llama tokenizers add the BOS token by default, whatever tokenizer.json says.
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

    /// Fits the tokenizer to a model with `embedding_rows`. From now on, encoding a token beyond them is an error; only
    /// added tokens can be beyond.
    ///
    /// # Errors
    /// `invalid_checkpoint` when the base vocabulary is larger, or when the BOS token has no row.
    pub fn fit(&mut self, embedding_rows: usize) -> Result<()> {
        check_vocabulary(self, embedding_rows)?;
        self.rows = embedding_rows;
        self.check(self.bos.as_slice()).map_err(|error| {
            Error::new(
                ErrorCode::InvalidCheckpoint,
                format!("the beginning-of-sequence token: {}", error.message()),
            )
        })
    }

    /// Replaces the clock for templates that print the date. The default is the system's local time.
    #[cfg(all(target_arch = "wasm32", feature = "bindings"))]
    pub(crate) fn set_clock(&mut self, clock: fn() -> Moment) {
        self.clock = clock;
    }

    /// Whether the folder has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.templates.any()
    }

    /// Renders a chat with the checkpoint's template into a prompt for the assistant's answer, as transformers does.
    /// Each message is an object with a `role`. The template gets its other keys too, in order and without nulls. A
    /// model's reasoning is given as both `reasoning_content` and `thinking`.
    ///
    /// # Errors
    /// `not_found` without a template; `invalid_argument` for no messages or an invalid one; `tokenizer` for a template
    /// that fails or uses an unsupported feature.
    pub fn apply_chat_template(&self, messages: &[Value]) -> Result<String> {
        self.apply_chat_template_with(messages, None, None)
    }

    /// As [`HuggingFaceTokenizer::apply_chat_template`], with optional JSON schemas of tools that the model may call,
    /// and optional documents. With tools, a template named `tool_use` is preferred.
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

    /// Renders the chat without the start of another answer, for training: transformers' `add_generation_prompt=False`.
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

    /// Refuses ids without a row in the embedding.
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
    fn probe_chat(&self) -> Option<Result<String>> {
        let messages: Vec<Value> = serde_json::from_str(PROBE_CHAT).expect("it is JSON");
        self.has_chat_template().then(|| self.apply_chat_template(&messages))
    }

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
