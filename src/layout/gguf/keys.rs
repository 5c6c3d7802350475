//! The known keys of GGUF metadata. Any other key may change what the model computes, so it is refused unless the
//! caller allows it by name.

use super::metadata::Metadata;
use crate::error::{Error, Result};
use crate::format::gguf::Value as GgufValue;
use crate::format::known_keys::Subject;
use crate::format::{clipped, quoted};

/// Keys of an architecture (`llama.*` and so on) that are read or that a decoder can ignore: tensor layout and expert
/// counts of models without experts, parameters of unsupported RoPE scalings, and the model's history.
const ARCHITECTURE: [&str; 21] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "tensor_data_layout",
    "expert_count",
    "expert_used_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
];

/// Keys of an architecture that change the computation unless they have this value, which equals their absence.
const NEUTRAL_VALUES: [(&str, GgufValue); 4] = [
    ("attention.causal", GgufValue::Bool(true)),
    // Multiplies RoPE's cosines and sines.
    ("rope.scaling.attn_factor", GgufValue::F64(1.0)),
    ("rope.scaling.yarn_log_multiplier", GgufValue::F64(0.0)),
    ("use_parallel_residual", GgufValue::Bool(false)),
];

/// Keys of the tokenizer (`tokenizer.*`) that are read, or that only other kinds of tokenizers use.
const TOKENIZER: [&str; 38] = [
    "chat_template",
    "chat_templates",
    "huggingface.json",
    "rwkv.world",
    "ggml.add_bos_token",
    "ggml.add_eos_token",
    "ggml.add_sep_token",
    "ggml.add_space_prefix",
    "ggml.added_tokens",
    "ggml.bos_token_id",
    "ggml.cls_token_id",
    "ggml.eom_token_id",
    "ggml.eos_token_id",
    "ggml.eot_token_id",
    "ggml.fim_mid_token_id",
    "ggml.fim_pad_token_id",
    "ggml.fim_pre_token_id",
    "ggml.fim_rep_token_id",
    "ggml.fim_sep_token_id",
    "ggml.fim_suf_token_id",
    "ggml.mask_token_id",
    "ggml.merges",
    "ggml.middle_token_id",
    "ggml.model",
    "ggml.padding_token_id",
    "ggml.pre",
    "ggml.precompiled_charsmap",
    "ggml.prefix_token_id",
    "ggml.remove_extra_whitespaces",
    "ggml.scores",
    "ggml.separator_token_id",
    "ggml.seperator_token_id",
    "ggml.suffix_token_id",
    "ggml.suppress_tokens",
    "ggml.token_type",
    "ggml.token_type_count",
    "ggml.tokens",
    "ggml.unknown_token_id",
];
/// More keys of the tokenizer, by their beginning.
const TOKENIZER_PREFIXES: [&str; 1] = ["chat_template."];

/// Other keys, by their beginning: descriptions, the quantizer's notes, and the number of files, which is read.
const OTHER_PREFIXES: [&str; 3] = ["general.", "quantize.", "split."];

/// Checks all keys, and returns the unknown ones that `allowed` names.
///
/// # Errors
/// `unsupported_model` naming a key that is unknown, or whose value is not supported.
pub(super) fn check(metadata: &Metadata<'_>, architecture: &str, allowed: &[String]) -> Result<Vec<String>> {
    let prefix = format!("{architecture}.");
    let mut ignored = Vec::new();
    for (key, value) in metadata.entries() {
        let is_known = match (key.strip_prefix(&prefix), key.strip_prefix("tokenizer.")) {
            (Some(name), _) => {
                refuse_other_than_neutral(key, name, value)?;
                ARCHITECTURE.contains(&name) || NEUTRAL_VALUES.iter().any(|(known, _)| *known == name)
            }
            (None, Some(name)) => {
                TOKENIZER.contains(&name) || TOKENIZER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            }
            (None, None) => OTHER_PREFIXES.iter().any(|prefix| key.starts_with(prefix)),
        };
        if is_known {
            continue;
        }
        if !allowed.iter().any(|allowed| allowed == key) {
            return Err(Subject::Model.unknown(key, &shown(value)));
        }
        ignored.push(key.to_owned());
    }
    Ok(ignored)
}

fn refuse_other_than_neutral(key: &str, name: &str, value: &GgufValue) -> Result<()> {
    match NEUTRAL_VALUES.iter().find(|(known, _)| *known == name) {
        Some((_, neutral)) if !is_same(value, neutral) => Err(Error::unsupported_model(format!(
            "key {}: {} is not supported, only {}",
            quoted(key),
            clipped(&format!("{value:?}"), 60),
            plain(neutral)
        ))),
        _ => Ok(()),
    }
}

/// Whether two booleans are equal, or two numbers of any type.
fn is_same(found: &GgufValue, neutral: &GgufValue) -> bool {
    let number = |value: &GgufValue| value.as_f64().or_else(|| value.as_u64().map(|number| number as f64));
    match neutral.as_bool() {
        Some(_) => found.as_bool() == neutral.as_bool(),
        None => number(found).is_some() && number(found) == number(neutral),
    }
}

fn plain(value: &GgufValue) -> String {
    match (value.as_bool(), value.as_f64()) {
        (Some(flag), _) => flag.to_string(),
        (_, Some(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// A value for messages. Arrays can be as long as a vocabulary.
fn shown(value: &GgufValue) -> String {
    match value.as_array() {
        Some(_) => "an array".to_owned(),
        None => format!("{value:?}"),
    }
}
