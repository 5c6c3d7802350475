//! Translates a tokenizer.json to GGUF metadata if that is exactly equivalent; otherwise the error names the
//! difference.
//!
//! - Byte-level BPE becomes `gpt2` if llama.cpp has a name for its pre-tokenizer.
//! - BPE with byte fallback becomes `llama` if scores can replace its merges. A score belongs to a token, a rank to a
//!   pair. So every pair that makes a token must be a merge, and the merges of a token must be consecutive. This holds
//!   for vocabularies that come from SentencePiece.
//!
//! A tokenizer that differs only in rare cases is written with a note that names them.

mod special;
mod special_tokens;
mod templates;

use super::{BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, split};
use crate::error::{Error, ErrorCode, Result};
use crate::format::gguf::{Array, Value as GgufValue};
use crate::format::json;
use crate::format::{clipped, quoted};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const UNUSED: i32 = 5;

/// The character that represents a space in SentencePiece vocabularies.
const SPACE: &str = "\u{2581}";

fn inexact(why: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorCode::Tokenizer,
        format!("the tokenizer cannot be written into a GGUF file exactly: {why}"),
    )
}

/// A tokenizer as GGUF metadata.
pub struct GgufTokenizer {
    /// The entries, whose keys begin with `tokenizer.`.
    pub metadata: BTreeMap<String, GgufValue>,
    /// Why only readers of `tokenizer.huggingface.json`, such as this crate, find the tokenizer in the entries.
    pub problem: Option<Error>,
    /// Cases in which a reader of the file differs from the tokenizer.
    pub notes: Vec<String>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: BTreeMap<String, u32>,
    merges: Vec<Merge>,
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

/// `"a b"` or `["a", "b"]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

impl Merge {
    fn pair(&self) -> Option<(&str, &str)> {
        match self {
            Self::Pair(left, right) => Some((left, right)),
            Self::Text(text) => text.split_once(' '),
        }
    }
}

/// The metadata for a tokenizer.
///
/// `tokenizer` is tokenizer.json. `tokenizer_config` is tokenizer_config.json or null. `config` is config.json: it
/// gives the rows of the embedding, to which the vocabulary is padded, and the end-of-text tokens. If GGUF cannot
/// express the tokenizer exactly, tokenizer.json itself is stored.
pub fn tokenizer_metadata(tokenizer: &[u8], tokenizer_config: &Value, config: &Value) -> GgufTokenizer {
    let mut notes = Vec::new();
    let (mut metadata, problem) = match exact(tokenizer, tokenizer_config, config, &mut notes) {
        Ok(metadata) => (metadata, None),
        Err(problem) => {
            notes.clear();
            (carried(tokenizer, tokenizer_config, config), Some(problem))
        }
    };
    templates::add(tokenizer_config, &mut metadata, &mut notes);
    GgufTokenizer { metadata, problem, notes }
}

/// The metadata for readers of `tokenizer.huggingface.json`. Other readers find no tokenizer in it.
fn carried(tokenizer: &[u8], tokenizer_config: &Value, config: &Value) -> BTreeMap<String, GgufValue> {
    let mut metadata = BTreeMap::new();
    let mut set = |key: &str, value: GgufValue| _ = metadata.insert(format!("tokenizer.{key}"), value);
    set("ggml.model", GgufValue::String("no_vocab".to_owned()));
    let Ok(text) = std::str::from_utf8(tokenizer) else { return metadata };
    let Ok(file) = serde_json::from_slice::<OnlyAdded>(tokenizer) else { return metadata };
    set("huggingface.json", GgufValue::String(text.to_owned()));
    let id_of =
        |text: &str| file.added_tokens.iter().find(|added| added.content == text).map(|added| added.id);
    let named = special::named(tokenizer_config, config, id_of);
    let keys = ["eos_token_id", "eot_token_id", "eom_token_id"];
    let others = special::ends_of(config).into_iter().filter(|&end| Some(end) != named.eos);
    for (key, id) in keys.into_iter().zip(named.eos.into_iter().chain(others)) {
        set(&format!("ggml.{key}"), GgufValue::U32(id));
    }
    if let Some(bos) = named.bos {
        set("ggml.bos_token_id", GgufValue::U32(bos));
    }
    set("ggml.add_bos_token", GgufValue::Bool(special_tokens::asks_for_bos(tokenizer_config)));
    metadata
}

/// The part of tokenizer.json that is needed here.
#[derive(Deserialize)]
struct OnlyAdded {
    #[serde(default)]
    added_tokens: Vec<Added>,
}

fn exact(
    tokenizer: &[u8],
    tokenizer_config: &Value,
    config: &Value,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<String, GgufValue>> {
    let broken = |error: serde_json::Error| inexact(clipped(&error.to_string(), 200));
    let tokenizer: Value = serde_json::from_slice(tokenizer).map_err(broken)?;
    let mut file: File = json::read(&tokenizer).map_err(broken)?;
    // Not a field of `File`: that would copy it, and it is large.
    let model = tokenizer.get("model").ok_or_else(|| inexact("it has no model"))?;
    let kind = model.get("type").and_then(Value::as_str).unwrap_or("BPE");
    if kind != "BPE" {
        return Err(inexact(format_args!("its model is {}, not BPE", quoted(kind))));
    }
    let bpe: Bpe = json::read(model).map_err(broken)?;
    for affix in [&bpe.continuing_subword_prefix, &bpe.end_of_word_suffix] {
        if affix.as_ref().is_some_and(|affix| !affix.is_empty()) {
            return Err(inexact("its pieces carry a prefix or a suffix"));
        }
    }
    let mut metadata = BTreeMap::new();
    let mut set = |key: &str, value: GgufValue| _ = metadata.insert(format!("tokenizer.ggml.{key}"), value);
    let rows = config.get("vocab_size").and_then(Value::as_u64).and_then(|rows| usize::try_from(rows).ok());
    let ids = special::check_ids(&file.added_tokens, &bpe.vocab);
    let left_out = special::leave_out(&mut file.added_tokens, rows, notes);
    special::check_matching(&file)?;
    let (tokens, kinds) = token_list(&file, &bpe, rows, &left_out)?;
    ids?;
    if bpe.byte_fallback {
        set("model", GgufValue::String("llama".to_owned()));
        set("pre", GgufValue::String("default".to_owned()));
        set("add_space_prefix", GgufValue::Bool(space_prefix(&file, notes)?));
        set("scores", GgufValue::Array(Array::F32(scores(&bpe, &tokens, &kinds)?)));
    } else {
        let pre = split::name_of(file.normalizer.as_ref(), file.pre_tokenizer.as_ref(), bpe.ignore_merges)
            .ok_or_else(|| inexact("llama.cpp has no name for its pre-tokenizer or normalizer"))?;
        set("model", GgufValue::String("gpt2".to_owned()));
        set("pre", GgufValue::String(pre.to_owned()));
        let merges = bpe.merges.iter().map(|merge| match merge.pair() {
            Some((left, right)) if !left.contains(' ') && !right.contains(' ') => {
                Ok(format!("{left} {right}"))
            }
            _ => Err(inexact("a merge is not two pieces without spaces")),
        });
        set("merges", GgufValue::Array(Array::String(merges.collect::<Result<_>>()?)));
    }
    let id_of = |text: &str| {
        let added = file.added_tokens.iter().find(|added| added.content == text).map(|added| added.id);
        added.or_else(|| bpe.vocab.get(text).copied()).filter(|&id| (id as usize) < tokens.len())
    };
    let within = |id: Option<u32>| id.filter(|&id| (id as usize) < tokens.len());
    let mut named = special::named(tokenizer_config, config, id_of);
    named.bos = within(named.bos);
    named.eos = within(named.eos);
    let around = special_tokens::of_prompt(file.post_processor.as_ref(), tokenizer_config, named.bos)?;
    let front = special_tokens::only("before", &around.front, named.bos, &tokens)?;
    let behind = special_tokens::only("after", &around.behind, named.eos, &tokens)?;
    if let Some(bos) = front.filter(|_| around.unless_there) {
        let text = quoted(&tokens[bos as usize]);
        notes.push(format!("a text that begins with {text} itself gets a second one in llama.cpp"));
    }
    set("add_bos_token", GgufValue::Bool(front.is_some()));
    set("add_eos_token", GgufValue::Bool(behind.is_some()));
    let (bos, eos) = (named.bos.or(front), named.eos.or(behind));
    let ends = special::end_keys(&tokens, bpe.byte_fallback, eos, &special::ends_of(config), notes);
    let ids = [("bos_token_id", bos), ("padding_token_id", within(named.pad))];
    let unknown = bpe.unk_token.as_deref().and_then(id_of);
    for (key, id) in ids.into_iter().chain(ends).chain([("unknown_token_id", unknown)]) {
        if let Some(id) = id {
            set(key, GgufValue::U32(id));
        }
    }
    set("tokens", GgufValue::Array(Array::String(tokens)));
    set("token_type", GgufValue::Array(Array::I32(kinds)));
    Ok(metadata)
}

/// The tokens by id, with their types.
fn token_list(
    file: &File,
    bpe: &Bpe,
    rows: Option<usize>,
    left_out: &[u32],
) -> Result<(Vec<String>, Vec<i32>)> {
    let vocab = || bpe.vocab.iter().filter(|(_, id)| left_out.binary_search(id).is_err());
    let ids = vocab().map(|(_, &id)| id).chain(file.added_tokens.iter().map(|added| added.id));
    let used = ids.max().map_or(0, |largest| largest as usize + 1);
    let count = rows.unwrap_or(used);
    // An id needs at least a byte of text in the file, but a single large id must not make a list of billions.
    let most = bpe.vocab.len() + file.added_tokens.len();
    if used > count || used > 2 * most + 1024 || rows.is_some_and(|rows| rows > 16 * most + (1 << 20)) {
        return Err(inexact(format_args!(
            "it has ids up to {used} for {most} tokens and {count} embeddings"
        )));
    }
    let mut tokens = vec![String::new(); count];
    let mut kinds = vec![UNUSED; count];
    for (text, &id) in vocab() {
        let is_byte = bpe.byte_fallback && byte_of(text).is_some();
        kinds[id as usize] = if is_byte { BYTE } else { NORMAL };
        tokens[id as usize].clone_from(text);
    }
    for added in &file.added_tokens {
        kinds[added.id as usize] = if added.special { CONTROL } else { USER_DEFINED };
        tokens[added.id as usize].clone_from(&added.content);
    }
    let unknown = bpe.unk_token.as_ref().and_then(|text| bpe.vocab.get(text));
    if let Some(&id) = unknown.filter(|&&id| (id as usize) < count) {
        kinds[id as usize] = UNKNOWN;
    }
    name_the_rest(&mut tokens, &kinds)?;
    Ok((tokens, kinds))
}

/// Names embedding rows without a token, because llama.cpp requires a unique name for every row.
fn name_the_rest(tokens: &mut [String], kinds: &[i32]) -> Result<()> {
    let mut taken = BTreeSet::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, _)| kinds[*id] != UNUSED) {
        if !taken.insert(token.clone()) {
            return Err(inexact(format_args!("two of its tokens are {}, {id} is the second", quoted(token))));
        }
    }
    for (id, token) in tokens.iter_mut().enumerate().filter(|(id, _)| kinds[*id] == UNUSED) {
        *token = format!("[PAD{id}]");
        while !taken.insert(token.clone()) {
            token.push('_');
        }
    }
    Ok(())
}

/// The byte that a token such as `<0x0A>` represents.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Whether a leading space is added to texts.
fn space_prefix(file: &File, notes: &mut Vec<String>) -> Result<bool> {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let sequence = |steps: &[&Value]| json!({"type": "Sequence", "normalizers": steps});
    let metaspace = |scheme: &str| json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": false});
    let normalizer = file.normalizer.as_ref().filter(|normalizer| !normalizer.is_null());
    let pre_tokenizer = file.pre_tokenizer.as_ref().filter(|pre| !pre.is_null());
    match (normalizer, pre_tokenizer) {
        (Some(found), None) if *found == sequence(&[&prepend, &replace]) => Ok(true),
        (Some(found), None) if *found == sequence(&[&replace]) || *found == replace => Ok(false),
        (None, Some(found)) if *found == metaspace("first") || *found == metaspace("always") => {
            notes.push(
                "a text that begins with a space gets a second one in llama.cpp; the model's own tokenizer adds none".to_owned(),
            );
            if *found == metaspace("first") {
                notes.push(
                    "text after a special token gets a leading space in llama.cpp; the model's own tokenizer adds one \
                     only at the start of the whole text (`prepend_scheme`)"
                        .to_owned(),
                );
            }
            Ok(true)
        }
        (None, Some(found)) if *found == metaspace("never") => Ok(false),
        _ => Err(inexact("its normalizer or pre-tokenizer is not SentencePiece's")),
    }
}

/// Scores that order merges by their ranks.
fn scores(bpe: &Bpe, tokens: &[String], kinds: &[i32]) -> Result<Vec<f32>> {
    let mut pairs = BTreeSet::new();
    let mut made: BTreeMap<String, usize> = BTreeMap::new();
    let mut last = String::new();
    for merge in &bpe.merges {
        let Some((left, right)) = merge.pair() else { return Err(inexact("a merge is not two pieces")) };
        let token = format!("{left}{right}");
        if token != last {
            if made.contains_key(&token) {
                return Err(inexact(format_args!(
                    "the merges that make {} are not consecutive",
                    quoted(&token)
                )));
            }
            made.insert(token.clone(), made.len());
            last = token;
        }
        pairs.insert((left, right));
    }
    let is_piece = |text: &str| bpe.vocab.get(text).is_some_and(|&id| kinds[id as usize] == NORMAL);
    for token in tokens.iter().zip(kinds).filter(|(_, kind)| **kind == NORMAL).map(|(token, _)| token) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if is_piece(left) && is_piece(right) && !pairs.contains(&(left, right)) {
                return Err(inexact(format_args!(
                    "{} and {} have no merge, although they and their concatenation are tokens",
                    quoted(left),
                    quoted(right)
                )));
            }
        }
    }
    let unmade = made.len() as f32;
    let score = |token: &String| made.get(token).map_or(-unmade, |&rank| -(rank as f32));
    // Control tokens and bytes do not take part in merges.
    Ok(tokens
        .iter()
        .zip(kinds)
        .map(|(token, &kind)| if kind == NORMAL { score(token) } else { 0.0 })
        .collect())
}
