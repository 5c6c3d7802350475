//! llama.cpp's names for the ways in which byte-level BPE cuts a text into words, as far as they can be stated exactly.

use serde_json::{Value, json};

/// How a text is cut before merges.
pub(super) struct Split {
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    /// Words that are tokens are taken whole.
    pub(super) ignore_merges: bool,
    /// Whether the first token is put in front where the file does not say.
    pub(super) add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The split that `tokenizer.ggml.pre` names. Names on one line are one case to llama.cpp. Not among them: names for which it
/// does something more, as taking white space from around a token (`jina-v2-es`).
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
        // What llama.cpp takes where it knows nothing better: four cuts, one after another.
        "default" => plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => plain(&[r"\p{N}", GPT2]),
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
        | "jina-v5-nano" => Split { ignore_merges: true, add_bos: true, ..plain(&[LLAMA3]) },
        // The same cut, but merges decide, and no first token unless the file says so.
        "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => plain(&[LLAMA3]),
        // Qwen's own tokenizer composes characters first; llama.cpp does not.
        "qwen2" | "deepseek-r1-qwen" => Split { normalizer: json!({"type": "NFC"}), ..plain(&[QWEN2]) },
        // Qwen's cut, of models whose texts are taken as they are.
        "megrez" | "kormo" | "f2llmv2" | "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => plain(&[QWEN2]),
        _ => return None,
    })
}

/// llama.cpp's name of a tokenizer.json's way to cut, where it has one.
pub(super) fn name_of(
    normalizer: Option<&Value>,
    pre_tokenizer: Option<&Value>,
    ignore_merges: bool,
) -> Option<&'static str> {
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let smollm = json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]});
    // How files of these models spell it, besides our own spelling.
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

/// `trim_offsets` is about places in the text and changes no id.
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
