//! A loaded model.

use crate::backend::any::AnyBackend;
use crate::backend::choice::DeviceOutcome;
use crate::error::{Error, Result};
use crate::generate::{FinishReason, GenerateOptions, Generated, Generation, Piece, Session};
use crate::model::{CausalLm, Checkpoint, ModelConfig};
use crate::request::{LoadRequest, Perplexity, PerplexityRequest};
use crate::task::{Control, block_on};
use crate::tokenizer::{HuggingFaceTokenizer, TextCodec};
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;

/// A loaded model with its tokenizer.
pub struct Model {
    model: CausalLm<AnyBackend>,
    codec: HuggingFaceTokenizer,
    /// The KV cache of a chat and its tokens.
    session: Option<Session<AnyBackend>>,
    fallback_reason: Option<Error>,
    control: Arc<dyn Control + Send + Sync>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Model").field(&self.device()).finish()
    }
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// The role, as in the model's template: `system`, `user`, `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".to_owned(), content: content.into() }
    }

    /// An answer of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: "assistant".to_owned(), content: content.into() }
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: "system".to_owned(), content: content.into() }
    }
}

impl Model {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        codec: HuggingFaceTokenizer,
        request: &LoadRequest,
        control: Arc<dyn Control + Send + Sync>,
    ) -> Result<Self> {
        let options = request.options();
        let load = async |backend| {
            CausalLm::load(backend, checkpoint, options, control.as_ref() as &dyn Control).await
        };
        let DeviceOutcome { result: model, fallback_reason } = block_on(request.device.run(|_| (), load))?;
        Ok(Self { model, codec, session: None, fallback_reason, control })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        self.model.config()
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        &self.model.capabilities().device
    }

    /// The reason for a fallback to the CPU.
    pub fn fallback_reason(&self) -> Option<&Error> {
        self.fallback_reason.as_ref()
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &HuggingFaceTokenizer {
        &self.codec
    }

    /// Continues a text, and returns the result at the end.
    ///
    /// # Errors
    /// `invalid_argument` for an empty prompt or options out of range; `context_overflow` if prompt and answer exceed
    /// the model's context; `non_finite` if logits are NaN; `cancelled`.
    pub fn generate(&mut self, prompt: &str, options: &GenerateOptions) -> Result<Generated> {
        self.stream(prompt, options)?.finish()
    }

    /// Continues a text, and streams pieces.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn stream(&mut self, prompt: &str, options: &GenerateOptions) -> Result<Pieces<'_>> {
        let ids = self.codec.encode_prompt(prompt)?;
        let control: &dyn Control = self.control.as_ref();
        let generation = Generation::start(&mut self.model, &self.codec, &ids, options, control);
        let generation = Some(block_on(generation)?);
        Ok(Pieces { generation, session: None, control })
    }

    /// Answers the last message of a chat with the checkpoint's template, and streams pieces. The KV cache is kept:
    /// the next call processes only new messages.
    ///
    /// # Errors
    /// `not_found` if the checkpoint has no template; as [`generate`](Self::generate).
    pub fn chat(&mut self, messages: &[Message], options: &GenerateOptions) -> Result<Pieces<'_>> {
        let messages: Vec<Value> = messages.iter().map(|message| json!(message)).collect();
        // The template contains all special tokens.
        let ids = self.codec.encode(&self.codec.apply_chat_template(&messages)?)?;
        let control: &dyn Control = self.control.as_ref();
        let before = self.session.take();
        let generation = Generation::resume(&mut self.model, &self.codec, &ids, options, control, before);
        let generation = Some(block_on(generation)?);
        Ok(Pieces { generation, session: Some(&mut self.session), control })
    }

    /// Measures the perplexity of a text.
    ///
    /// # Errors
    /// `non_finite` if logits are NaN; `invalid_argument` for a text that is too short.
    pub fn perplexity(&mut self, request: &PerplexityRequest) -> Result<Perplexity> {
        block_on(request.run(&mut self.model, &self.codec, self.control.as_ref()))
    }
}

/// A stream of text. Dropping it stops generation. It ends after an error.
pub struct Pieces<'m> {
    /// `None` after it was dropped.
    generation: Option<Generation<'m, AnyBackend>>,
    /// Receives the KV cache of a chat at the end.
    session: Option<&'m mut Option<Session<AnyBackend>>>,
    control: &'m dyn Control,
}

impl Pieces<'_> {
    /// The tokens so far.
    pub fn token_ids(&self) -> &[u32] {
        self.generation.as_ref().map_or(&[], Generation::token_ids)
    }

    /// The remaining text.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn finish(mut self) -> Result<Generated> {
        let (mut text, mut finish_reason) = (String::new(), FinishReason::MaxTokens);
        for piece in &mut self {
            let piece = piece?;
            text.push_str(&piece.text);
            finish_reason = piece.finished.unwrap_or(finish_reason);
        }
        Ok(Generated { token_ids: self.token_ids().to_vec(), text, finish_reason })
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        block_on(self.generation.as_mut()?.next(self.control)).transpose()
    }
}

impl Drop for Pieces<'_> {
    fn drop(&mut self) {
        if let (Some(session), Some(generation)) = (self.session.take(), self.generation.take()) {
            *session = Some(generation.into_session());
        }
    }
}
