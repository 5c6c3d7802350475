//! Trains a tokenizer: byte-level BPE (Sennrich, Haddow, Birch, *Neural Machine Translation of Rare Words with Subword
//! Units*, 2016; bytes as in GPT-2), by the trainer of Hugging Face's `tokenizers`.
//!
//! 1. Split the texts into words by GPT-2's pattern. A word starts as its bytes.
//! 2. Merge the most frequent pair of neighbors into a new token. Of equally frequent pairs the one with the smaller
//!    ids comes first.
//! 3. Repeat 2. until the vocabulary is full or no pair is left.
//!
//! The same texts give the same file: the library uses hash maps only for look-ups and sums. Not here: reading files,
//! and other kinds of tokenizers.

use super::hugging_face::broken;
use crate::error::{Error, Result};
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, NormalizerWrapper, TokenizerImpl};

/// Tokens of single bytes, which can encode any text.
const BYTES: usize = 256;

/// Most bytes of text. The library counts pairs in 32 bits.
const MOST_BYTES: usize = i32::MAX as usize;

/// Texts go to the library in pieces of about this many bytes: it keeps some fifty bytes for each byte of a piece.
const PIECE: usize = 1 << 16;

/// Options of the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpeOptions {
    /// Number of tokens, special ones included; at least 256 plus the special tokens. Too little text gives fewer.
    pub vocab_size: usize,
    /// The beginning-of-sequence token; its id is 0.
    pub bos_token: String,
    /// The end-of-sequence token; its id is 1.
    pub eos_token: String,
    /// More special tokens, such as the marks of a chat template; their ids follow from 2 on.
    pub special_tokens: Vec<String>,
}

impl BpeOptions {
    /// Options for `vocab_size` tokens, with `<s>` and `</s>` as the only special ones.
    pub fn new(vocab_size: usize) -> Self {
        Self { vocab_size, bos_token: "<s>".into(), eos_token: "</s>".into(), special_tokens: Vec::new() }
    }

    /// All special tokens, in the order of ids.
    fn specials(&self) -> impl Iterator<Item = &String> {
        [&self.bos_token, &self.eos_token].into_iter().chain(&self.special_tokens)
    }

    fn check(&self) -> Result<()> {
        let specials: Vec<&String> = self.specials().collect();
        for (index, token) in specials.iter().enumerate() {
            // A single character may stand for a byte.
            if token.chars().nth(1).is_none() {
                return Err(Error::invalid_argument(format!(
                    "expected special tokens of at least two characters but found `{token}`"
                )));
            }
            if specials[..index].contains(token) {
                return Err(Error::invalid_argument(format!("the special token `{token}` is given twice")));
            }
        }
        let least = BYTES + specials.len();
        if self.vocab_size < least {
            return Err(Error::invalid_argument(format!(
                "expected a vocabulary of at least {least} tokens, for {BYTES} bytes and {} special tokens, but found {}",
                specials.len(),
                self.vocab_size
            )));
        }
        Ok(())
    }
}

/// A tokenizer's files, for transformers and [`HuggingFaceTokenizer`](super::HuggingFaceTokenizer).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainedBpe {
    /// The text of tokenizer.json.
    pub tokenizer_json: String,
    /// The text of tokenizer_config.json.
    pub tokenizer_config: String,
    /// Number of tokens, special ones included.
    pub vocab_size: usize,
    /// The id of the beginning-of-sequence token.
    pub bos_token_id: u32,
    /// The id of the end-of-sequence token.
    pub eos_token_id: u32,
}

/// Trains a tokenizer on texts. Line ends are not changed: see [`unify_line_ends`](super::unify_line_ends).
///
/// # Errors
/// `invalid_argument` for a vocabulary without room for all bytes and special tokens, for a special token that is given
/// twice or has fewer than two characters, for empty texts, and for 2 GiB of text or more.
pub fn train_bpe<T: AsRef<str> + Sync>(texts: &[T], options: &BpeOptions) -> Result<TrainedBpe> {
    train_in_pieces(texts, options, PIECE)
}

fn train_in_pieces<T: AsRef<str> + Sync>(
    texts: &[T],
    options: &BpeOptions,
    piece: usize,
) -> Result<TrainedBpe> {
    options.check()?;
    let bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
    if bytes == 0 {
        return Err(Error::invalid_argument("expected texts to make a tokenizer from but they are empty"));
    }
    if bytes > MOST_BYTES {
        return Err(Error::invalid_argument(format!(
            "expected at most {MOST_BYTES} bytes of text to make a tokenizer from but found {bytes}"
        )));
    }

    let specials: Vec<AddedToken> =
        options.specials().map(|token| AddedToken::from(token.clone(), true)).collect();
    // Each merge joins at least two bytes, so there are fewer merges than bytes. The bound matters because the library
    // allocates room for all tokens at once.
    let most = BYTES + specials.len() + bytes;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(options.vocab_size.min(most))
        .show_progress(false)
        .special_tokens(specials)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer: TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, TemplateProcessing, ByteLevel> =
        TokenizerImpl::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
    let texts = texts.iter().flat_map(|text| Pieces { text: text.as_ref(), piece });
    let failed = |error| broken("tokenizer.json", error);
    tokenizer.train(&mut trainer, texts).map_err(failed)?;
    let front: TemplateProcessing = serde_json::from_value(in_front(&options.bos_token))
        .map_err(|error| broken("tokenizer.json", error))?;
    tokenizer.with_post_processor(Some(front));
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": true,
        "add_eos_token": false,
        "bos_token": options.bos_token,
        "eos_token": options.eos_token,
        "clean_up_tokenization_spaces": false,
    });
    Ok(TrainedBpe {
        tokenizer_json: tokenizer.to_string(true).map_err(failed)?,
        tokenizer_config: format!("{config:#}"),
        vocab_size: tokenizer.get_vocab_size(true),
        bos_token_id: 0,
        eos_token_id: 1,
    })
}

/// A post-processor that puts `bos` in front of each text.
fn in_front(bos: &str) -> Value {
    let token = json!({ "SpecialToken": { "id": bos, "type_id": 0 } });
    let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    json!({
        "type": "TemplateProcessing",
        "single": [token, sequence("A")],
        "pair": [token, sequence("A"), token, sequence("B")],
        "special_tokens": { bos: { "id": bos, "ids": [0], "tokens": [bos] } },
    })
}

/// Splits a text into pieces of at least `piece` bytes, at places where GPT-2's pattern splits too, so that words stay
/// whole. Such a place is before a line end that is followed by a word: the pattern makes this line end a word of its
/// own.
struct Pieces<'a> {
    text: &'a str,
    piece: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.text.is_empty() {
            return None;
        }
        let at = self.text.as_bytes().iter().enumerate().skip(self.piece.max(1)).find_map(|(at, &byte)| {
            let next = || self.text[at + 1..].chars().next();
            (byte == b'\n' && next().is_some_and(|next| !next.is_whitespace())).then_some(at)
        });
        let (piece, rest) = self.text.split_at(at.unwrap_or(self.text.len()));
        self.text = rest;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::source::MemoryDir;
    use crate::task::block_on;
    use crate::tokenizer::{HuggingFaceTokenizer, TextCodec};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static TALE: LazyLock<String> = LazyLock::new(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tale-llama/heldout.txt");
        std::fs::read_to_string(path).unwrap()
    });

    fn open(made: &TrainedBpe) -> HuggingFaceTokenizer {
        let dir = MemoryDir::new("m")
            .with("tokenizer.json", made.tokenizer_json.clone().into_bytes())
            .with("tokenizer_config.json", made.tokenizer_config.clone().into_bytes());
        block_on(HuggingFaceTokenizer::open(&dir, None)).unwrap()
    }

    #[test]
    fn the_vocabulary_is_as_large_as_asked() {
        for vocab_size in [258, 259, 300, 1000] {
            let made = train_bpe(&[TALE.as_str()], &BpeOptions::new(vocab_size)).unwrap();
            let codec = open(&made);
            assert_eq!((made.vocab_size, codec.vocab_size()), (vocab_size, vocab_size));
            assert_eq!(codec.bos_token_id(), Some(made.bos_token_id));
            assert_eq!(codec.encode("</s><s>").unwrap(), [made.eos_token_id, made.bos_token_id]);
            let ids = codec.encode(&TALE).unwrap();
            assert_eq!(codec.decode(&ids).unwrap(), *TALE);
            assert_eq!(codec.encode_prompt(&TALE).unwrap(), [vec![made.bos_token_id], ids].concat());
        }
        // It allows two merges: `aa` and `aaaa`.
        let few = train_bpe(&["aaaa"], &BpeOptions::new(usize::MAX)).unwrap();
        assert_eq!((few.vocab_size, open(&few).encode("aaaa").unwrap()), (260, vec![259]));
    }

    #[test]
    fn special_tokens_are_named_by_the_caller() {
        let options = BpeOptions {
            bos_token: "$A:1".into(),
            eos_token: "<|end of text|>".into(),
            special_tokens: vec!["<|user|>".into(), "é:".into()],
            ..BpeOptions::new(400)
        };
        let codec = open(&train_bpe(&[TALE.as_str()], &options).unwrap());
        let spelled = "$A:1<|user|>é:<|end of text|>";
        assert_eq!(codec.encode(spelled).unwrap(), [0, 2, 3, 1]);
        assert_eq!(codec.encode_prompt("<|user|>").unwrap(), [0, 2]);
        assert_eq!(codec.decode(&[0, 2, 3, 1]).unwrap(), "");
    }

    #[test]
    fn the_same_texts_give_the_same_file() {
        let lines: Vec<&str> = TALE.split_inclusive('\n').collect();
        let options = BpeOptions::new(2000);
        let made = train_bpe(&lines, &options).unwrap();
        for _ in 0..4 {
            assert_eq!(train_bpe(&lines, &options).unwrap(), made);
        }
        // The result does not depend on the pieces.
        let spaced = TALE.replace(". ", ".\n\n \n").replace(", ", " \n\n\t");
        let whole = train_in_pieces(&[&spaced], &options, usize::MAX).unwrap();
        for piece in [0, 1, 1000] {
            assert!(Pieces { text: &spaced, piece }.count() > 20);
            assert_eq!(train_in_pieces(&[&spaced], &options, piece).unwrap(), whole, "{piece}");
        }
    }

    #[test]
    fn what_makes_no_tokenizer_is_refused() {
        let named = |bos: &str, more: &[&str]| BpeOptions {
            bos_token: bos.into(),
            special_tokens: more.iter().map(|token| (*token).to_owned()).collect(),
            ..BpeOptions::new(300)
        };
        for (texts, options, expected) in [
            (&["a"][..], BpeOptions::new(257), "at least 258 tokens"),
            (&["a"], BpeOptions { vocab_size: 258, ..named("<s>", &["<u>"]) }, "at least 259 tokens"),
            (&[], BpeOptions::new(300), "are empty"),
            (&["", ""], BpeOptions::new(300), "are empty"),
            (&["a"], named("</s>", &[]), "`</s>` is given twice"),
            (&["a"], named("<s>", &["<u>", "<u>"]), "`<u>` is given twice"),
            (&["a"], named("", &[]), "two characters but found ``"),
            (&["a"], named("<s>", &["Ġ"]), "two characters but found `Ġ`"),
        ] {
            let error = train_bpe(texts, &options).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    static SMALL: LazyLock<HuggingFaceTokenizer> =
        LazyLock::new(|| open(&train_bpe(&[TALE.as_str()], &BpeOptions::new(500)).unwrap()));

    proptest! {
        #[test]
        fn any_text_comes_back(text in "(\\PC|[ \n\t\r\0]|the |\u{301}|🦀){0,40}") {
            prop_assume!(!text.contains("<s>") && !text.contains("</s>"));
            let ids = SMALL.encode(&text).unwrap();
            prop_assert!(ids.iter().all(|&id| (2..500).contains(&id)));
            prop_assert_eq!(SMALL.decode(&ids).unwrap(), text);
        }

        #[test]
        fn small_texts_give_the_same_file_each_time(texts in prop::collection::vec("[abc ]{0,12}", 1..30)) {
            prop_assume!(texts.iter().any(|text| !text.is_empty()));
            let made = train_bpe(&texts, &BpeOptions::new(400)).unwrap();
            prop_assert_eq!(train_bpe(&texts, &BpeOptions::new(400)).unwrap(), made);
        }
    }
}
