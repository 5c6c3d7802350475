//! Tokens that llama.cpp recognizes by their text, because metadata often omits them: end-of-text tokens, and control
//! tokens whose type in the file is wrong. The lists are those of llama.cpp's `llama-vocab.cpp`.

use super::{CONTROL, NORMAL, USER_DEFINED};
use crate::error::Result;
use crate::layout::gguf::metadata::Metadata;

/// Tokens that end a text, a turn or a message, whatever the metadata names.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "[e~[",
];

/// Fill-in-the-middle tokens that also end a text: their keys, and their texts if the key is missing.
const FIM_ENDS: [(&str, &[&str]); 3] = [
    ("fim_pad_token_id", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    ("fim_rep_token_id", &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    ("fim_sep_token_id", &["<|file_sep|>"]),
];

/// The other fill-in-the-middle tokens: control tokens that do not end a text.
const FIM_TOKENS: [(&str, &[&str]); 3] = [
    (
        "fim_pre_token_id",
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<\u{ff5c}fim\u{2581}begin\u{ff5c}>",
            "<PRE>",
            "\u{2581}<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
    ),
    (
        "fim_suf_token_id",
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<\u{ff5c}fim\u{2581}hole\u{ff5c}>",
            "<SUF>",
            "\u{2581}<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
    ),
    (
        "fim_mid_token_id",
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<\u{ff5c}fim\u{2581}end\u{ff5c}>",
            "<MID>",
            "\u{2581}<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
    ),
];

/// Tokens that are shown, whatever their type in the file.
const SHOWN: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// The ids of tokens that llama.cpp treats as ends by their text alone, in ascending order. `named` tells whether the
/// metadata has a key, which then takes precedence over a text.
pub(super) fn by_text(tokens: &[String], named: impl Fn(&str) -> bool) -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let filling = || FIM_ENDS.iter().find(|(_, texts)| texts.contains(&token.as_str()));
        let ends = ENDS.contains(&token.as_str()) || filling().is_some_and(|(key, _)| !named(key));
        // The first of equal texts: a file that repeats a text has no usable vocabulary anyway.
        if ends && !found.iter().any(|&first| tokens[first as usize] == *token) {
            found.push(id as u32);
        }
    }
    found
}

/// The ids of the end tokens of a file that names none.
pub(super) fn by_text_alone(tokens: &[String]) -> Vec<u32> {
    let mut ids = by_text(tokens, |_| false);
    let exceptions = exceptions(tokens, &ids);
    ids.retain(|&id| exception(&exceptions, &tokens[id as usize]).is_none());
    ids
}

/// Texts, with the types of their tokens.
type Exceptions = Vec<(&'static str, i32)>;

fn exception(exceptions: &Exceptions, text: &str) -> Option<i32> {
    exceptions.iter().find(|(known, _)| *known == text).map(|(_, kind)| *kind)
}

/// The end texts that do not count in this vocabulary: two families use them for something else.
fn exceptions(tokens: &[String], ends: &[u32]) -> Exceptions {
    let text = |id: &u32| tokens.get(*id as usize).map(String::as_str);
    let has = |text_of_end: &str| ends.iter().any(|id| text(id) == Some(text_of_end));
    let calls = has("<|call|>") || has("<|calls|>");
    let mut exceptions = Exceptions::new();
    if calls && (has("<|return|>") || has("<|flush|>")) && has("<|end|>") {
        exceptions.push(("<|end|>", USER_DEFINED));
    }
    if has("<|tool_response>") && has("</s>") {
        exceptions.push(("</s>", NORMAL));
    }
    exceptions
}

/// The tokens at which llama.cpp stops: the metadata's end-of-text, end-of-turn and end-of-message tokens, then those
/// recognized by their text.
///
/// # Errors
/// `invalid_checkpoint` for a key whose value is not a number.
pub(in crate::layout::gguf) fn end_tokens(metadata: &Metadata<'_>) -> Result<Vec<u64>> {
    let tokens = metadata.strings("tokenizer.ggml.tokens").ok().flatten().unwrap_or_default();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    // llama.cpp ignores an id outside the vocabulary.
    let named = |name: &str| -> Result<Option<u64>> {
        let id = metadata.number(&key(name))?;
        Ok(id.filter(|&id| tokens.is_empty() || id < tokens.len() as u64))
    };
    let mut ids = Vec::new();
    ids.extend(named("eos_token_id")?.or_else(|| default_special(metadata, tokens, EOS)));
    for name in ["eot_token_id", "eom_token_id"].into_iter().chain(FIM_ENDS.map(|(name, _)| name)) {
        ids.extend(named(name)?);
    }
    ids.extend(by_text(tokens, |name| metadata.has(&key(name))).into_iter().map(u64::from));
    let ends: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
    let exceptions = exceptions(tokens, &ends);
    let counts = |id: u64| {
        let text = usize::try_from(id).ok().and_then(|id| tokens.get(id));
        text.is_none_or(|text| exception(&exceptions, text).is_none())
    };
    let mut unique = Vec::new();
    for id in ids {
        if counts(id) && !unique.contains(&id) {
            unique.push(id);
        }
    }
    Ok(unique)
}

/// llama.cpp's default ids for SentencePiece vocabularies: those of Llama 1. Its defaults for byte-level vocabularies,
/// Falcon's ids, are not used: in other vocabularies they are ordinary words.
pub(super) const UNKNOWN: u64 = 0;
pub(super) const BOS: u64 = 1;
pub(super) const EOS: u64 = 2;

/// `id`, one of the three defaults, if a SentencePiece vocabulary needs it.
pub(in crate::layout::gguf) fn default_special(
    metadata: &Metadata<'_>,
    tokens: &[String],
    id: u64,
) -> Option<u64> {
    let model = metadata.text("tokenizer.ggml.model").ok().flatten();
    (model == Some("llama") && id < tokens.len() as u64).then_some(id)
}

/// The beginning-of-text token.
pub(in crate::layout::gguf) fn bos_token(metadata: &Metadata<'_>) -> Result<Option<u64>> {
    let tokens = metadata.strings("tokenizer.ggml.tokens").ok().flatten().unwrap_or_default();
    Ok(metadata.number("tokenizer.ggml.bos_token_id")?.or_else(|| default_special(metadata, tokens, BOS)))
}

/// Corrects token types by llama.cpp's rules.
pub(super) fn correct_kinds(metadata: &Metadata<'_>, tokens: &[String], kinds: &mut [i32]) {
    let named = |name: &str| metadata.has(&format!("tokenizer.ggml.{name}"));
    let control = |token: &str| {
        ENDS.contains(&token)
            || FIM_ENDS.iter().chain(&FIM_TOKENS).any(|(name, texts)| texts.contains(&token) && !named(name))
    };
    let ends = by_text(tokens, named);
    let exceptions = exceptions(tokens, &ends);
    for (token, kind) in tokens.iter().zip(kinds) {
        let token = token.as_str();
        if let Some(other) = exception(&exceptions, token) {
            *kind = other;
        } else if SHOWN.contains(&token) {
            *kind = USER_DEFINED;
        } else if control(token) {
            *kind = CONTROL;
        }
    }
}

/// Whether llama.cpp drops white space after this special token. It does so for models named Phi-3, because no key says
/// it.
pub(super) fn drops_space_behind(metadata: &Metadata<'_>, token: &str) -> bool {
    let name = metadata.text("general.name").ok().flatten().unwrap_or_default().to_ascii_lowercase();
    (name.contains("phi-3") || name.contains("phi3")) && !["<unk>", "<s>", "<|endoftext|>"].contains(&token)
}
