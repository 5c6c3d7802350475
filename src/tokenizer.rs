//! Tokenizers: text to token ids and back with Hugging Face's `tokenizers`, and the checkpoint's chat template.
//!
//! The rest of the crate uses only [`TextCodec`], so that a page can bring its own tokenizer. The parts: the tokenizer
//! of a folder (`hugging_face`) and its small files (`files`), translation of Oniguruma patterns (`oniguruma`), chat
//! templates (`chat`), and training a tokenizer on texts (`train`).

#[cfg(feature = "tokenizer")]
pub mod chat;
#[cfg(feature = "tokenizer")]
mod files;
#[cfg(feature = "tokenizer")]
mod hugging_face;
#[cfg(feature = "tokenizer")]
pub mod keys;
#[cfg(feature = "tokenizer")]
mod oniguruma;
#[cfg(all(feature = "tokenizer", feature = "train"))]
pub mod train;

use crate::error::{Error, ErrorCode, Result};
#[cfg(feature = "tokenizer")]
pub use hugging_face::HuggingFaceTokenizer;
use std::borrow::Cow;

/// Turns text into token ids and back.
pub trait TextCodec {
    /// The ids of `text`, without special tokens around it. Special tokens spelled out in the text are recognized.
    fn encode(&self, text: &str) -> Result<Vec<u32>>;

    /// The ids of a prompt: `text` with the special tokens that the model expects in front.
    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>>;

    /// The text of `ids`. Special tokens are left out; bytes that are not UTF-8 become U+FFFD.
    fn decode(&self, ids: &[u32]) -> Result<String>;

    /// The beginning-of-sequence (BOS) token, if the model has one.
    fn bos_token_id(&self) -> Option<u32>;

    /// The number of ids: the largest id plus one.
    fn vocab_size(&self) -> usize;

    /// The prompt of a short chat by the checkpoint's template; `None` without a template.
    fn probe_chat(&self) -> Option<Result<String>> {
        None
    }

    /// As `vocab_size`, without added tokens.
    fn base_vocab_size(&self) -> usize {
        self.vocab_size()
    }
}

/// The messages of [`TextCodec::probe_chat`], as JSON.
pub(crate) const PROBE_CHAT: &str = r#"[{"role":"user","content":"Hello! "},{"role":"assistant","content":"Hi."},{"role":"user","content":"Bye"}]"#;

/// Converts all line ends to `\n`, as Python does when it reads text files.
pub fn unify_line_ends(text: &str) -> Cow<'_, str> {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n").into() } else { text.into() }
}

/// Refuses a tokenizer whose base vocabulary is larger than the embedding. Fewer ids are normal, because embeddings are
/// padded. Added tokens beyond the last row are also normal, such as a `<pad>` that is never encoded; the codec refuses
/// to encode them.
pub fn check_vocabulary(codec: &dyn TextCodec, embedding_rows: usize) -> Result<()> {
    if codec.base_vocab_size() > embedding_rows {
        return Err(Error::new(
            ErrorCode::InvalidCheckpoint,
            format!(
                "the tokenizer makes {} ids but the embedding has {embedding_rows} rows: they do not belong together",
                codec.base_vocab_size()
            ),
        ));
    }
    Ok(())
}
