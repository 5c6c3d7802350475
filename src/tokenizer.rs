//! Text to token ids and back, by Hugging Face's `tokenizers`, with the chat template of the checkpoint.
//!
//! Reads `tokenizer.json` and `tokenizer_config.json` of a folder. [`TextCodec`] is what the rest of the crate sees, so
//! that a page can bring a tokenizer of its own. Floor 5.

use crate::error::{Error, ErrorCode, Result};
#[cfg(feature = "tokenizer")]
pub use hugging_face::{ChatMessage, HuggingFaceTokenizer};
use std::borrow::Cow;

/// Turns text into token ids and back.
pub trait TextCodec {
    /// The ids of `text`, without special tokens around it. Special tokens that the text spells out are recognised.
    fn encode(&self, text: &str) -> Result<Vec<u32>>;

    /// The ids of a prompt: `text` with the tokens that the model expects in front of it.
    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>>;

    /// The text of `ids`. Special tokens are left out; bytes that are no UTF-8 become U+FFFD.
    fn decode(&self, ids: &[u32]) -> Result<String>;

    /// The token in front of every text that the model was trained on, where it has one.
    fn bos_token_id(&self) -> Option<u32>;

    /// How many ids there are, counting from 0 to the largest.
    fn vocab_size(&self) -> usize;
}

/// Line ends as `\n`, whatever system wrote the text: as the field's tools read text files.
pub fn unify_line_ends(text: &str) -> Cow<'_, str> {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n").into() } else { text.into() }
}

/// Refuses a tokenizer that makes ids which the embedding does not have. Fewer ids are normal: tables are padded.
pub fn check_vocabulary(codec: &dyn TextCodec, embedding_rows: usize) -> Result<()> {
    if codec.vocab_size() > embedding_rows {
        return Err(Error::new(
            ErrorCode::InvalidCheckpoint,
            format!(
                "the tokenizer makes {} ids but the embedding has {embedding_rows} rows: they do not belong together",
                codec.vocab_size()
            ),
        ));
    }
    Ok(())
}

#[cfg(feature = "tokenizer")]
mod hugging_face {
    use super::TextCodec;
    use crate::error::{Error, ErrorCode, Result};
    use crate::format::small_file::{read_file, read_json};
    use crate::format::source::SourceDir;
    use serde_json::Value;
    use tokenizers::Tokenizer;

    /// The tokenizer of a Hugging Face folder.
    pub struct HuggingFaceTokenizer {
        tokenizer: Tokenizer,
        bos: Option<(u32, String)>,
        eos: Option<String>,
        add_bos: bool,
        vocab_size: usize,
        chat_template: Option<String>,
    }

    /// One turn of a chat.
    #[derive(Clone, Debug)]
    pub struct ChatMessage {
        /// `system`, `user` or `assistant`.
        pub role: String,
        /// What was said.
        pub content: String,
    }

    /// The part of tokenizer.json on which `tokenizers` 0.23 panics where it is no JSON, instead of returning an error.
    #[derive(serde::Deserialize)]
    struct DecoderPart {
        #[serde(rename = "decoder")]
        _decoder: Option<Value>,
    }

    fn broken(file: &str, error: impl std::fmt::Display) -> Error {
        Error::new(ErrorCode::Tokenizer, format!("{file}: {error}"))
    }

    impl HuggingFaceTokenizer {
        /// Reads the tokenizer of a folder. `bos_token_id` is the model configuration's, used where the tokenizer's
        /// files name none.
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
            let mut tokenizer =
                Tokenizer::from_bytes(&bytes).map_err(|error| broken("tokenizer.json", error))?;
            // Files may ask for cut or padded ids; texts here are taken whole.
            tokenizer.with_padding(None);
            tokenizer.with_truncation(None).map_err(|error| broken("tokenizer.json", error))?;
            let config = read_json(dir, "tokenizer_config.json").await?.unwrap_or(Value::Null);
            let vocab_size =
                tokenizer.get_vocab(true).values().max().map_or(0, |&largest| largest as usize + 1);

            let bos = match token_text(&config, "bos_token") {
                Some(text) => tokenizer.token_to_id(&text).map(|id| (id, text)),
                None => None,
            };
            let bos = bos.or_else(|| bos_token_id.and_then(|id| Some((id, tokenizer.id_to_token(id)?))));
            let chat_template = match read_file(dir, "chat_template.jinja").await? {
                Some(bytes) => {
                    Some(String::from_utf8(bytes).map_err(|error| broken("chat_template.jinja", error))?)
                }
                None => template_of(&config),
            };
            let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("");
            // transformers' Llama tokenizers put the token in front unless told otherwise, whatever tokenizer.json says.
            let add_bos = config
                .get("add_bos_token")
                .and_then(Value::as_bool)
                .unwrap_or(matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast"));
            Ok(Self {
                tokenizer,
                bos,
                eos: token_text(&config, "eos_token"),
                add_bos,
                vocab_size,
                chat_template,
            })
        }

        /// Whether the folder has a chat template.
        pub fn has_chat_template(&self) -> bool {
            self.chat_template.is_some()
        }

        /// The prompt that the checkpoint's template makes of a chat, ready for the assistant's answer.
        ///
        /// # Errors
        /// `not_found` without a template, `tokenizer` for a template that fails.
        pub fn apply_chat_template(&self, messages: &[ChatMessage]) -> Result<String> {
            let template = self.chat_template.as_deref().ok_or_else(|| {
                Error::new(ErrorCode::NotFound, "expected a chat template but the checkpoint has none")
            })?;
            let mut environment = minijinja::Environment::new();
            // Templates come with checkpoints that anyone may have written.
            environment.set_fuel(Some(1_000_000));
            let syntax =
                minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
            environment.set_syntax(syntax.map_err(|error| broken("chat template", error))?);
            environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
            environment.add_function("raise_exception", |message: String| {
                Err::<String, _>(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
            });
            let turns: Vec<minijinja::Value> = messages
                .iter()
                .map(|turn| minijinja::context! { role => turn.role.as_str(), content => turn.content.as_str() })
                .collect();
            let context = minijinja::context! {
                messages => turns,
                add_generation_prompt => true,
                bos_token => self.bos.as_ref().map_or("", |(_, text)| text.as_str()),
                eos_token => self.eos.as_deref().unwrap_or(""),
            };
            environment.render_str(template, context).map_err(|error| broken("chat template", error))
        }
    }

    impl TextCodec for HuggingFaceTokenizer {
        fn encode(&self, text: &str) -> Result<Vec<u32>> {
            let encoding =
                self.tokenizer.encode_fast(text, false).map_err(|error| broken("tokenizer", error))?;
            Ok(encoding.get_ids().to_vec())
        }

        fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
            let encoding =
                self.tokenizer.encode_fast(text, true).map_err(|error| broken("tokenizer", error))?;
            let mut ids = encoding.get_ids().to_vec();
            if let Some((bos, _)) = &self.bos
                && self.add_bos
                && ids.first() != Some(bos)
            {
                ids.insert(0, *bos);
            }
            Ok(ids)
        }

        fn decode(&self, ids: &[u32]) -> Result<String> {
            self.tokenizer.decode(ids, true).map_err(|error| broken("tokenizer", error))
        }

        fn bos_token_id(&self) -> Option<u32> {
            self.bos.as_ref().map(|(id, _)| *id)
        }

        fn vocab_size(&self) -> usize {
            self.vocab_size
        }
    }

    /// A token is written as its text, or as an object that holds the text.
    fn token_text(config: &Value, key: &str) -> Option<String> {
        let token = config.get(key)?;
        token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
    }

    /// A template is written as its text, or as a list of named ones.
    fn template_of(config: &Value) -> Option<String> {
        let template = config.get("chat_template")?;
        if let Some(text) = template.as_str() {
            return Some(text.to_owned());
        }
        let named =
            template.as_array()?.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
        named?.get("template")?.as_str().map(str::to_owned)
    }
}
