//! Translates SentencePiece vocabularies with scores to BPE with merges.

use super::{BYTE, BpeModel, ById, CONTROL, TokenizerFile, UNKNOWN, USER_DEFINED, Vocabulary, problem};
use crate::error::Result;
use crate::layout::gguf::metadata::Metadata;
use crate::sort;
use serde_json::{Value, json};
use std::cmp::Reverse;

/// The character that represents a space.
const SPACE: &str = "\u{2581}";

/// The maximum total length of all merges' pieces, relative to the vocabulary's bytes. Real vocabularies need about 3;
/// a crafted one could need the square of its longest token.
const MAX_MERGE_RATIO: usize = 32;

pub(super) fn tokenizer(metadata: &Metadata<'_>, vocabulary: &Vocabulary<'_>) -> Result<Vec<u8>> {
    let scores = metadata.floats("tokenizer.ggml.scores")?.unwrap_or_default();
    if scores.len() != vocabulary.tokens.len() {
        return Err(problem(format!(
            "expected a `tokenizer.ggml.scores` for each of {} tokens but found {}",
            vocabulary.tokens.len(),
            scores.len()
        )));
    }
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(problem(format!("the score of token {id} is no number")));
    }
    let ordinary = |id: usize| !matches!(vocabulary.kinds[id], UNKNOWN | CONTROL | USER_DEFINED | BYTE);
    let mut ordinary_scores = (0..scores.len()).filter(|&id| ordinary(id)).map(|id| scores[id]);
    let first = ordinary_scores.next();
    if ordinary_scores.all(|score| Some(score) == first) {
        return Err(problem(
            "the file's tokenizer was lost in conversion: all scores (`tokenizer.ggml.scores`) are equal, so they do \
             not define an order of merges",
        ));
    }
    let byte_fallback =
        (0..=255u8).all(|byte| vocabulary.ids.contains_key(format!("<0x{byte:02X}>").as_str()));
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = Vec::new();
    let mut decoders = vec![json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "})];
    decoders.push(json!({"type": "ByteFallback"}));
    decoders.push(json!({"type": "Fuse"}));
    if prefix {
        normalizers.push(json!({"type": "Prepend", "prepend": SPACE}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
    TokenizerFile {
        version: "1.0",
        truncation: Value::Null,
        padding: Value::Null,
        added_tokens: vocabulary.added_tokens(metadata),
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        post_processor: vocabulary.post_processor(metadata, true)?,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: BpeModel {
            r#type: "BPE",
            dropout: Value::Null,
            unk_token: vocabulary.unknown.map(|id| vocabulary.text(id)),
            continuing_subword_prefix: Value::Null,
            end_of_word_suffix: Value::Null,
            fuse_unk: true,
            byte_fallback,
            ignore_merges: false,
            vocab: ById(vocabulary.tokens),
            merges: merges(vocabulary, scores, ordinary)?,
        },
    }
    .to_bytes()
}

/// All pairs that make a token, by descending score; among equal scores the longest left piece comes first, as in
/// `transformers`.
fn merges<'a>(
    vocabulary: &Vocabulary<'a>,
    scores: &[f32],
    ordinary: impl Fn(usize) -> bool,
) -> Result<Vec<(&'a str, &'a str)>> {
    let vocabulary_bytes: usize = vocabulary.tokens.iter().map(|token| token.len() + 8).sum();
    let is_piece = |piece: &str| vocabulary.ids.get(piece).is_some_and(|&id| ordinary(id as usize));
    let mut merges = Vec::new();
    let mut bytes = 0;
    for (id, token) in vocabulary.tokens.iter().enumerate().filter(|(id, _)| ordinary(*id)) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if is_piece(left) && is_piece(right) {
                merges.push((scores[id], left, right));
                bytes += token.len();
            }
        }
        if bytes > MAX_MERGE_RATIO * vocabulary_bytes {
            return Err(problem(
                "the vocabulary is implausible: nearly every part of every token is a token",
            ));
        }
    }
    sort::sort_by(&mut merges, |a, b| {
        let lengths = |merge: &(f32, &str, &str)| Reverse((merge.1.chars().count(), merge.2.chars().count()));
        b.0.total_cmp(&a.0).then_with(|| lengths(a).cmp(&lengths(b)))
    });
    Ok(merges.into_iter().map(|(_, left, right)| (left, right)).collect())
}
