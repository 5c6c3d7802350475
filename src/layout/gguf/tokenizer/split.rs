//! llama.cpp's pre-tokenizers for byte-level BPE, by name, if they can be expressed exactly.

use serde_json::{Value, json};

/// How a text is split before merges.
pub(super) struct Split {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    /// A word that is a token is not split by merges.
    pub(super) ignore_merges: bool,
    /// Whether the beginning-of-text token is added if the file does not say.
    pub(super) add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pre-tokenizer that `tokenizer.ggml.pre` names. llama.cpp treats names on one line alike. Omitted are names with
/// extra behaviour in llama.cpp, such as stripping white space around a token (`jina-v2-es`).
pub(super) fn by_name(name: &str) -> Option<Split> {
    let plain = |patterns: &[&str]| Split {
        normalizer: Value::Null,
        pre_tokenizer: sequence(patterns),
        ignore_merges: false,
        add_bos: false,
    };
    Some(match name {
        "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "a.x-4.0" | "mellum" | "modern-bert"
        | "exaone4" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" => plain(&[GPT2]),
        // llama.cpp's fallback: four splits in sequence.
        "default" => plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => plain(&[r"\p{N}", GPT2]),
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
        | "jina-v5-nano" => Split { ignore_merges: true, add_bos: true, ..plain(&[LLAMA3]) },
        // The same split, but merges apply to whole words, and a first token is added only if the file says so.
        "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => plain(&[LLAMA3]),
        // Qwen's own tokenizer normalizes to NFC first; llama.cpp does not.
        "qwen2" | "deepseek-r1-qwen" => Split { normalizer: json!({"type": "NFC"}), ..plain(&[QWEN2]) },
        // Qwen's split for models without normalization.
        "megrez" | "kormo" | "f2llmv2" | "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => plain(&[QWEN2]),
        _ => return None,
    })
}

/// llama.cpp's name for the pre-tokenizer of a tokenizer.json, if it has one.
pub(super) fn name_of(
    normalizer: Option<&Value>,
    pre_tokenizer: Option<&Value>,
    ignore_merges: bool,
) -> Option<&'static str> {
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let smollm = json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]});
    // How files of these models spell it, besides our spelling.
    let others = [("gpt-2", byte_level(true)), ("smollm", smollm)];
    let found = without_offsets(pre_tokenizer?);
    let normalizer = normalizer.unwrap_or(&Value::Null);
    let names = ["gpt-2", "llama-bpe", "qwen2", "smollm"];
    let ours = names.into_iter().filter_map(|name| Some((name, by_name(name)?)));
    let ours =
        ours.filter(|(_, split)| split.normalizer == *normalizer && split.ignore_merges == ignore_merges);
    ours.map(|(name, split)| (name, split.pre_tokenizer))
        .chain(others.into_iter().filter(|_| normalizer.is_null() && !ignore_merges))
        .find(|(_, known)| without_offsets(known) == found)
        .map(|(name, _)| name)
}

/// Removes `trim_offsets`, which affects only text positions and no ids.
fn without_offsets(pre_tokenizer: &Value) -> Value {
    let mut value = pre_tokenizer.clone();
    let forget = |step: &mut Value| {
        if let Some(step) = step.as_object_mut() {
            step.shift_remove("trim_offsets");
        }
    };
    forget(&mut value);
    if let Some(steps) = value.get_mut("pretokenizers").and_then(Value::as_array_mut) {
        steps.iter_mut().for_each(forget);
    }
    value
}

fn sequence(patterns: &[&str]) -> Value {
    let mut steps: Vec<Value> = patterns
        .iter()
        .map(|pattern| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}))
        .collect();
    steps.push(
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
    );
    json!({"type": "Sequence", "pretokenizers": steps})
}
