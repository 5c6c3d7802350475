//! Translates a GGUF file's tokenizer to tokenizer.json and tokenizer_config.json, which the `tokenizers` library runs.
//!
//! - `llama`: SentencePiece BPE, which greedily merges the pair with the best score. This equals BPE with merges sorted
//!   by the score of their result; `transformers` converts these vocabularies in the same way. Byte tokens represent
//!   characters without a token.
//! - `gpt2`: byte-level BPE with its merges, after one of the pre-tokenizers named in [`split`].
//!
//! Any other tokenizer is an error with advice.

mod ends;
mod split;
mod spm;
mod write;

pub(super) use ends::{bos_token, end_tokens};
pub use write::{GgufTokenizer, tokenizer_metadata};

use super::metadata::Metadata;
use crate::error::{Error, ErrorCode, Result};
use crate::format::{clipped, quoted};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Appended to every refusal: the original model's folder still has the tokenizer.
const REMEDY: &str = "give the model's own tokenizer with `--tokenizer DIR`";

/// The maximum token length in bytes; real tokens have up to some hundreds (runs of spaces).
const MAX_TOKEN_BYTES: usize = 1024;

/// Token types, from llama.cpp's `llama_token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

fn problem(message: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Tokenizer, format!("{message}; {REMEDY}"))
}

/// The vocabulary and its special tokens, common to both tokenizer models.
struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Vec<i32>,
    ids: BTreeMap<&'a str, u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
}

/// The names and contents of the files.
///
/// # Errors
/// `tokenizer`, naming what cannot be translated, with advice.
pub(super) fn to_files(metadata: &Metadata<'_>) -> Result<Vec<(String, Vec<u8>)>> {
    let Some(model) = metadata.text("tokenizer.ggml.model")? else {
        return Err(problem("the file has no tokenizer (no key `tokenizer.ggml.model`)"));
    };
    let tokenizer = if let Some(json) = metadata.text("tokenizer.huggingface.json")? {
        json.as_bytes().to_vec()
    } else {
        let vocabulary = Vocabulary::read(metadata)?;
        match model {
            "llama" => spm::tokenizer(metadata, &vocabulary)?,
            "gpt2" => byte_level(metadata, &vocabulary)?,
            other => {
                return Err(problem(format!(
                    "the tokenizer {} (`tokenizer.ggml.model`) is not supported, only `llama` and `gpt2`",
                    quoted(other)
                )));
            }
        }
    };
    let config = tokenizer_config(metadata, model, &tokenizer)?;
    Ok(vec![
        ("tokenizer.json".to_owned(), tokenizer),
        ("tokenizer_config.json".to_owned(), config.to_string().into_bytes()),
    ])
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &Metadata<'a>) -> Result<Self> {
        let tokens = metadata.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        if tokens.is_empty() {
            return Err(problem("the file has no vocabulary (no `tokenizer.ggml.tokens`)"));
        }
        let kinds = metadata.integers("tokenizer.ggml.token_type")?;
        let mut kinds = kinds.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
        if kinds.len() != tokens.len() {
            return Err(problem(format!(
                "expected a `tokenizer.ggml.token_type` for each of {} tokens but found {}",
                tokens.len(),
                kinds.len()
            )));
        }
        ends::correct_kinds(metadata, tokens, &mut kinds);
        let mut ids = BTreeMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if token.len() > MAX_TOKEN_BYTES {
                return Err(problem(format!("token {id} is implausibly long: {} bytes", token.len())));
            }
            if let Some(first) = ids.insert(token.as_str(), id as u32) {
                return Err(problem(format!("the tokens {first} and {id} are the same, {}", quoted(token))));
            }
        }
        let special = |key: &str, default: u64| -> Result<Option<u32>> {
            let id = metadata.number(&format!("tokenizer.ggml.{key}"))?;
            let id = id.or_else(|| ends::default_special(metadata, tokens, default));
            Ok(id.and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < tokens.len()))
        };
        Ok(Self {
            tokens,
            kinds,
            ids,
            bos: special("bos_token_id", ends::BOS)?,
            eos: special("eos_token_id", ends::EOS)?,
            unknown: special("unknown_token_id", ends::UNKNOWN)?,
        })
    }

    fn text(&self, id: u32) -> &'a str {
        &self.tokens[id as usize]
    }

    /// Tokens that are split off from a text before anything else.
    fn added_tokens(&self, metadata: &Metadata<'_>) -> Vec<Value> {
        let mut added = Vec::new();
        for (id, (token, &kind)) in self.tokens.iter().zip(&self.kinds).enumerate() {
            let special = matches!(kind, CONTROL | UNKNOWN);
            if (special || kind == USER_DEFINED) && !token.is_empty() {
                let rstrip = ends::drops_space_behind(metadata, token);
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": rstrip,
                    "normalized": false, "special": special,
                }));
            }
        }
        added
    }

    /// The tokens added before and after every text.
    fn post_processor(&self, metadata: &Metadata<'_>, add_bos: bool) -> Result<Value> {
        let add_bos = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
        let add_eos = metadata.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        let (bos, eos) = (self.bos.filter(|_| add_bos), self.eos.filter(|_| add_eos));
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let mut special_tokens = serde_json::Map::new();
        let mut token = |id: u32| {
            let text = self.text(id);
            special_tokens.insert(text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
            json!({"SpecialToken": {"id": text, "type_id": 0}})
        };
        let bos = bos.map(&mut token);
        let eos = eos.map(&mut token);
        let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
        let around = |names: &[&str]| -> Vec<Value> {
            names
                .iter()
                .flat_map(|name| bos.clone().into_iter().chain([text(name)]).chain(eos.clone()))
                .collect()
        };
        Ok(json!({
            "type": "TemplateProcessing", "single": around(&["A"]), "pair": around(&["A", "B"]),
            "special_tokens": special_tokens,
        }))
    }
}

/// tokenizer.json, serialized without a copy of the vocabulary.
#[derive(Serialize)]
struct TokenizerFile<'a> {
    version: &'static str,
    truncation: Value,
    padding: Value,
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: BpeModel<'a>,
}

#[derive(Serialize)]
struct BpeModel<'a> {
    r#type: &'static str,
    dropout: Value,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Value,
    end_of_word_suffix: Value,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: ById<'a>,
    merges: Vec<(&'a str, &'a str)>,
}

/// A vocabulary in id order.
struct ById<'a>(&'a [String]);

impl Serialize for ById<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (id, token) in self.0.iter().enumerate() {
            map.serialize_entry(token, &id)?;
        }
        map.end()
    }
}

impl TokenizerFile<'_> {
    fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| problem(clipped(&error.to_string(), 200)))
    }
}

/// The name of the pre-tokenizer. llama.cpp treats an empty name as none.
fn pre_tokenizer<'a>(metadata: &Metadata<'a>) -> Result<Option<&'a str>> {
    Ok(metadata.text("tokenizer.ggml.pre")?.filter(|pre| !pre.is_empty()))
}

/// Warnings for the user about a tokenizer that is used anyway.
pub(super) fn warnings(metadata: &Metadata<'_>) -> Vec<String> {
    let text = |key: &str| metadata.text(key).ok().flatten();
    let mut warnings = Vec::new();
    if text("tokenizer.ggml.model") == Some("gpt2")
        && text("tokenizer.huggingface.json").is_none()
        && matches!(pre_tokenizer(metadata), Ok(None))
    {
        warnings.push(format!(
            "the key `tokenizer.ggml.pre` is missing, so llama.cpp's default rule splits texts; if it is not \
             the model's own, its output gets worse; take a newer conversion of the model, or {REMEDY}"
        ));
    }
    let held_back = metadata.integers("tokenizer.ggml.suppress_tokens").ok().flatten().unwrap_or_default();
    if !held_back.is_empty() {
        warnings.push(format!(
            "the key `tokenizer.ggml.suppress_tokens` names {} tokens that the model should never choose; they are not suppressed",
            held_back.len()
        ));
    }
    warnings
}

fn byte_level(metadata: &Metadata<'_>, vocabulary: &Vocabulary<'_>) -> Result<Vec<u8>> {
    let pre = pre_tokenizer(metadata)?.unwrap_or("default");
    let split = split::by_name(pre).ok_or_else(|| {
        problem(format!("the pre-tokenizer {} (`tokenizer.ggml.pre`) is not supported", quoted(pre)))
    })?;
    let Some(texts) = metadata.strings("tokenizer.ggml.merges")? else {
        return Err(problem("the file has lost the tokenizer's merges (no `tokenizer.ggml.merges`)"));
    };
    let mut merges = Vec::with_capacity(texts.len());
    for text in texts {
        // A piece may begin with a space, which is also the separator.
        let space = text.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let pair = space.map(|at| (&text[..at], &text[at + 1..]));
        match pair {
            Some((left, right)) if !right.is_empty() => merges.push((left, right)),
            _ => return Err(problem(format!("expected merges of two tokens but found {}", quoted(text)))),
        }
    }
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(false);
    if prefix {
        return Err(problem("`tokenizer.ggml.add_space_prefix` is not supported for `gpt2` tokenizers"));
    }
    TokenizerFile {
        version: "1.0",
        truncation: Value::Null,
        padding: Value::Null,
        added_tokens: vocabulary.added_tokens(metadata),
        normalizer: split.normalizer,
        pre_tokenizer: split.pre_tokenizer,
        post_processor: vocabulary.post_processor(metadata, split.add_bos)?,
        decoder: json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
        model: BpeModel {
            r#type: "BPE",
            dropout: Value::Null,
            unk_token: None,
            continuing_subword_prefix: Value::Null,
            end_of_word_suffix: Value::Null,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: split.ignore_merges,
            vocab: ById(vocabulary.tokens),
            merges,
        },
    }
    .to_bytes()
}

/// The part of tokenizer.json with the special tokens.
#[derive(Deserialize)]
struct AddedTokens {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u64,
    content: String,
}

/// `tokenizer` is tokenizer.json, whose added tokens are used if the metadata lists no vocabulary.
fn tokenizer_config(metadata: &Metadata<'_>, model: &str, tokenizer: &[u8]) -> Result<Value> {
    let mut config = serde_json::Map::new();
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    let listed = metadata.strings("tokenizer.ggml.tokens")?;
    let tokens = listed.unwrap_or_default();
    let added = match listed {
        Some(_) => Vec::new(),
        None => serde_json::from_slice::<AddedTokens>(tokenizer).map_or(Vec::new(), |file| file.added_tokens),
    };
    for (key, name, default) in [
        ("bos_token_id", "bos_token", ends::BOS),
        ("eos_token_id", "eos_token", ends::EOS),
        ("unknown_token_id", "unk_token", ends::UNKNOWN),
    ] {
        let id = metadata.number(&format!("tokenizer.ggml.{key}"))?;
        let id = id.or_else(|| ends::default_special(metadata, tokens, default));
        let text = id.and_then(|id| usize::try_from(id).ok()).and_then(|id| tokens.get(id));
        let text =
            text.or_else(|| added.iter().find(|token| Some(token.id) == id).map(|token| &token.content));
        if let Some(text) = text {
            config.insert(name.to_owned(), json!(text));
        }
    }
    let pre = pre_tokenizer(metadata)?.unwrap_or("default");
    let default = model == "llama" || split::by_name(pre).is_some_and(|split| split.add_bos);
    let add_bos = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(default);
    config.insert("add_bos_token".to_owned(), json!(add_bos));
    if let Some(templates) = chat_templates(metadata)? {
        config.insert("chat_template".to_owned(), templates);
    }
    Ok(Value::Object(config))
}

/// The unnamed template, or a list of all templates if some are named.
fn chat_templates(metadata: &Metadata<'_>) -> Result<Option<Value>> {
    let unnamed = metadata.text("tokenizer.chat_template")?;
    let mut templates = Vec::new();
    for (key, value) in metadata.entries() {
        if let (Some(name), Some(template)) = (key.strip_prefix("tokenizer.chat_template."), value.as_str()) {
            templates.push(json!({"name": name, "template": template}));
        }
    }
    if templates.is_empty() {
        return Ok(unnamed.map(|template| json!(template)));
    }
    templates.extend(unnamed.map(|template| json!({"name": "default", "template": template})));
    Ok(Some(Value::Array(templates)))
}
