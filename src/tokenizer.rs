//! Text to token ids and back, by Hugging Face's `tokenizers`, with the chat template of the checkpoint.
//!
//! [`TextCodec`] is what the rest of the crate sees, so that a page can bring a tokenizer of its own. The rooms: the
//! tokenizer of a folder and its files, Oniguruma's patterns as the library here reads them, chats, and how a tokenizer is made of
//! texts (`train`).

#[cfg(feature = "tokenizer")]
pub mod chat;
#[cfg(feature = "tokenizer")]
mod files;
#[cfg(feature = "tokenizer")]
mod hugging_face;
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

    /// How many ids there are without the tokens that were added to the vocabulary, counted as `vocab_size`.
    fn base_vocab_size(&self) -> usize {
        self.vocab_size()
    }
}

/// Line ends as `\n`, whatever system wrote the text: as the field's tools read text files.
pub fn unify_line_ends(text: &str) -> Cow<'_, str> {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n").into() } else { text.into() }
}

/// Refuses a tokenizer whose vocabulary makes ids which the embedding does not have. Fewer ids are normal: tables are
/// padded. So are added tokens beyond the last row, as a `<pad>` that nobody ever encodes: whoever makes ids refuses
/// those where they come up.
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
