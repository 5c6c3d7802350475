//! Special tokens for a GGUF file: their roles, what cannot be stored, and where llama.cpp stops.

use super::{Added, File, inexact};
use crate::error::Result;
use crate::format::quoted;
use crate::layout::gguf::tokenizer::ends;
use crate::sort;
use serde_json::Value;
use std::collections::BTreeMap;

/// The maximum number of tokens that a message lists.
const SHOWN: usize = 5;

/// Ids of tokens with a role.
pub(super) struct Named {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) pad: Option<u32>,
}

/// The ids of the tokens that tokenizer_config.json names, or otherwise config.json.
pub(super) fn named(tokenizer_config: &Value, config: &Value, id_of: impl Fn(&str) -> Option<u32>) -> Named {
    let find = |name: &str| {
        let named = tokenizer_config.get(name).filter(|token| !token.is_null());
        let text = named.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
        let of_model = || {
            let ids = config.get(name.to_owned() + "_id")?;
            let first = ids.as_array().map_or(Some(ids), |ids| ids.first())?;
            u32::try_from(first.as_u64()?).ok()
        };
        text.and_then(&id_of).or_else(of_model)
    };
    Named { bos: find("bos_token"), eos: find("eos_token"), pad: find("pad_token") }
}

/// The end-of-text tokens of config.json.
pub(super) fn ends_of(config: &Value) -> Vec<u32> {
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    match config.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn list<'a>(texts: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = texts.len().saturating_sub(SHOWN);
    let shown: Vec<String> = texts.take(SHOWN).map(quoted).collect();
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// Refuses added tokens with other ids than the `tokenizers` library assigns: the model's id if it has the text,
/// otherwise the next free one.
pub(super) fn check_ids(added: &[Added], vocab: &BTreeMap<String, u32>) -> Result<()> {
    let mut next = vocab.len() as u32;
    for token in added {
        let id = match vocab.get(&token.content) {
            Some(&id) => id,
            None => {
                next += 1;
                next - 1
            }
        };
        if id != token.id {
            return Err(inexact(format_args!(
                "its token {} is listed as {} but becomes {id}",
                quoted(&token.content),
                token.id
            )));
        }
    }
    Ok(())
}

/// Removes added tokens without an embedding row, because llama.cpp needs a row per token. Returns their ids, sorted.
pub(super) fn leave_out(added: &mut Vec<Added>, rows: Option<usize>, notes: &mut Vec<String>) -> Vec<u32> {
    let Some(rows) = rows else { return Vec::new() };
    let (kept, beyond): (Vec<_>, Vec<_>) =
        std::mem::take(added).into_iter().partition(|token| (token.id as usize) < rows);
    *added = kept;
    if !beyond.is_empty() {
        let texts = list(beyond.iter().map(|token| token.content.as_str()));
        notes.push(format!("the tokens beyond the {rows} rows of the embedding are left out: {texts}"));
    }
    let mut ids: Vec<u32> = beyond.into_iter().map(|token| token.id).collect();
    sort::sort(&mut ids);
    ids
}

/// Refuses added tokens whose matching rules differ from llama.cpp's, which searches for the exact text.
pub(super) fn check_matching(file: &File) -> Result<()> {
    for token in &file.added_tokens {
        for (flag, set) in
            [("lstrip", token.lstrip), ("rstrip", token.rstrip), ("single_word", token.single_word)]
        {
            if set {
                return Err(inexact(format_args!(
                    "its token {} has `{flag}`, which GGUF cannot express",
                    quoted(&token.content)
                )));
            }
        }
        if token.normalized && changes(file.normalizer.as_ref(), &token.content) {
            return Err(inexact(format_args!(
                "its token {} is matched in normalized texts (`normalized`), which GGUF cannot express",
                quoted(&token.content)
            )));
        }
    }
    Ok(())
}

/// Whether normalization changes where a token is found.
fn changes(normalizer: Option<&Value>, token: &str) -> bool {
    let Some(normalizer) = normalizer.filter(|normalizer| !normalizer.is_null()) else { return false };
    match normalizer.get("type").and_then(Value::as_str) {
        Some("NFC") => !token.is_ascii(),
        Some("Replace") => {
            let what = normalizer.get("pattern").and_then(|pattern| pattern.get("String"));
            what.and_then(Value::as_str).is_none_or(|what| token.contains(what))
        }
        Some("Sequence") => match normalizer.get("normalizers").and_then(Value::as_array) {
            Some(steps) => {
                steps.iter().any(|step| step.get("normalizers").is_some() || changes(Some(step), token))
            }
            None => true,
        },
        _ => true,
    }
}

/// The metadata keys of end-of-text tokens. `wanted` are the model's own; a note names others at which llama.cpp stops.
pub(super) fn end_keys(
    tokens: &[String],
    is_spm: bool,
    eos: Option<u32>,
    wanted: &[u32],
    notes: &mut Vec<String>,
) -> [(&'static str, Option<u32>); 3] {
    let known = ends::by_text_alone(tokens);
    let mut unnamed: Vec<u32> = Vec::new();
    for &end in wanted {
        if (end as usize) < tokens.len()
            && Some(end) != eos
            && !known.contains(&end)
            && !unnamed.contains(&end)
        {
            unnamed.push(end);
        }
    }
    let texts = |ids: &[u32]| {
        let texts: Vec<&str> = ids.iter().map(|&id| tokens[id as usize].as_str()).collect();
        list(texts.into_iter())
    };
    if unnamed.len() > 2 {
        let more = texts(&unnamed[2..]);
        notes.push(format!("GGUF has too few keys for the tokens that end a text: {more} no longer do"));
    }
    let mut not_wanted: Vec<u32> = known.into_iter().chain(eos).filter(|id| !wanted.contains(id)).collect();
    sort::sort(&mut not_wanted);
    not_wanted.dedup();
    if !not_wanted.is_empty() {
        notes.push(format!(
            "llama.cpp also ends a text at {}, but the model's configuration does not",
            texts(&not_wanted)
        ));
    }
    let default = if is_spm { 2 } else { 11 };
    if eos.is_none() && default < tokens.len() && !wanted.contains(&(default as u32)) {
        notes.push(format!(
            "the model names no token that ends a text, so llama.cpp takes token {default}, {}",
            quoted(&tokens[default])
        ));
    }
    [
        ("eos_token_id", eos),
        ("eot_token_id", unnamed.first().copied()),
        ("eom_token_id", unnamed.get(1).copied()),
    ]
}
