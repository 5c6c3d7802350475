//! A `tokenizer.json`: it opens and encodes, or is refused.
//!
//! The parser is the `tokenizers` library; what is ours is that its failures arrive as errors.

#[cfg(not(feature = "tokenizer"))]
pub fn run(_: &[u8]) {}

#[cfg(feature = "tokenizer")]
pub use opened::run;

#[cfg(feature = "tokenizer")]
mod opened {
    use lowbit::ErrorCode;
    use lowbit::internals::format::source::MemoryDir;
    use lowbit::internals::task::block_on;
    use lowbit::internals::tokenizer::{HuggingFaceTokenizer, TextCodec};

    pub fn run(input: &[u8]) {
        let dir = MemoryDir::new("checkpoint").with("tokenizer.json", input.to_vec());
        let codec = match block_on(HuggingFaceTokenizer::open(&dir, Some(1))) {
            Ok(codec) => codec,
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::Tokenizer, "{error:?}");
                return;
            }
        };
        for text in ["", "a b", "abc \u{e9}\n  <s>"] {
            for ids in [codec.encode(text), codec.encode_prompt(text)].into_iter().flatten() {
                // The text may change on its way; what must not happen is a panic.
                let _ = codec.decode(&ids);
            }
        }
    }
}
