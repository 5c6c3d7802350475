//! Tokens that llama.cpp knows by their text, because metadata often leaves them out: those that end a text, and those that
//! are no words whatever kind the file calls them. The lists are facts about llama.cpp's `llama-vocab.cpp`.

use super::{CONTROL, NORMAL, USER_DEFINED};
use crate::error::Result;
use crate::layout::gguf::metadata::Metadata;

/// They end a text, a turn or a message, whatever the metadata names.
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

/// Tokens of models that fill in code, which end a text too: their keys, and their texts where the key is missing.
const FILLING_ENDS: [(&str, &[&str]); 3] = [
    ("fim_pad_token_id", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    ("fim_rep_token_id", &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    ("fim_sep_token_id", &["<|file_sep|>"]),
];

/// The others of those models: no words, but no ends either.
const FILLING: [(&str, &[&str]); 3] = [
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

/// They are shown, whatever kind the file calls them.
const SHOWN: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// The ids of the tokens of `tokens` that llama.cpp takes for ends by their text alone, smallest first. `named` says whether the
/// metadata has a key, which then decides instead of a text.
pub(super) fn by_text(tokens: &[String], named: impl Fn(&str) -> bool) -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let filling = || FILLING_ENDS.iter().find(|(_, texts)| texts.contains(&token.as_str()));
        let ends = ENDS.contains(&token.as_str()) || filling().is_some_and(|(key, _)| !named(key));
        // The first of equal ones: a file that repeats a text has no usable vocabulary anyway.
        if ends && !found.iter().any(|&first| tokens[first as usize] == *token) {
            found.push(id as u32);
        }
    }
    found
}

/// The ids of the tokens that end a text in a file that names none.
pub(super) fn by_text_alone(tokens: &[String]) -> Vec<u32> {
    let mut ids = by_text(tokens, |_| false);
    let exceptions = exceptions(tokens, &ids);
    ids.retain(|&id| exception(&exceptions, &tokens[id as usize]).is_none());
    ids
}

/// Texts, and the kinds that their tokens have.
type Exceptions = Vec<(&'static str, i32)>;

fn exception(exceptions: &Exceptions, text: &str) -> Option<i32> {
    exceptions.iter().find(|(known, _)| *known == text).map(|(_, kind)| *kind)
}

/// Of the ends of a vocabulary, those that do not count: two families use the texts for something else.
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

/// Tokens at which llama.cpp stops: those that the metadata names for the end of the text, of a turn and of a message, then
/// those that it knows by their text.
///
/// # Errors
/// `invalid_checkpoint` for a key that holds no number.
pub(in crate::layout::gguf) fn end_tokens(metadata: &Metadata<'_>) -> Result<Vec<u64>> {
    let tokens = metadata.strings("tokenizer.ggml.tokens").ok().flatten().unwrap_or_default();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    // An id that the vocabulary does not have is as good as none, to llama.cpp too.
    let named = |name: &str| -> Result<Option<u64>> {
        let id = metadata.number(&key(name))?;
        Ok(id.filter(|&id| tokens.is_empty() || id < tokens.len() as u64))
    };
    let mut ids = Vec::new();
    ids.extend(named("eos_token_id")?.or_else(|| default_special(metadata, tokens, EOS)));
    for name in ["eot_token_id", "eom_token_id"].into_iter().chain(FILLING_ENDS.map(|(name, _)| name)) {
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

/// The ids that llama.cpp takes where a SentencePiece vocabulary names none: those of Llama 1. For byte-level vocabularies it
/// takes Falcon's, which are ordinary words elsewhere; nobody can have meant those.
pub(super) const UNKNOWN: u64 = 0;
pub(super) const BOS: u64 = 1;
pub(super) const EOS: u64 = 2;

/// `id`, one of the three, where it stands for what a SentencePiece vocabulary does not name.
pub(in crate::layout::gguf) fn default_special(
    metadata: &Metadata<'_>,
    tokens: &[String],
    id: u64,
) -> Option<u64> {
    let model = metadata.text("tokenizer.ggml.model").ok().flatten();
    (model == Some("llama") && id < tokens.len() as u64).then_some(id)
}

/// The token in front of texts.
pub(in crate::layout::gguf) fn bos_token(metadata: &Metadata<'_>) -> Result<Option<u64>> {
    let tokens = metadata.strings("tokenizer.ggml.tokens").ok().flatten().unwrap_or_default();
    Ok(metadata.number("tokenizer.ggml.bos_token_id")?.or_else(|| default_special(metadata, tokens, BOS)))
}

/// Corrects the kinds of the tokens that llama.cpp knows better than the file.
pub(super) fn correct_kinds(metadata: &Metadata<'_>, tokens: &[String], kinds: &mut [i32]) {
    let named = |name: &str| metadata.has(&format!("tokenizer.ggml.{name}"));
    let control = |token: &str| {
        ENDS.contains(&token)
            || FILLING_ENDS.iter().chain(&FILLING).any(|(name, texts)| texts.contains(&token) && !named(name))
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

/// Whether llama.cpp drops white space behind this token, which is no ordinary one: it does so for models that are called
/// Phi-3, because no key says it.
pub(super) fn drops_space_behind(metadata: &Metadata<'_>, token: &str) -> bool {
    let name = metadata.text("general.name").ok().flatten().unwrap_or_default().to_ascii_lowercase();
    (name.contains("phi-3") || name.contains("phi3")) && !["<unk>", "<s>", "<|endoftext|>"].contains(&token)
}
