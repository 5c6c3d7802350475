//! What a folder is that is no checkpoint of this crate: people have many that look like one.

use crate::error::{Context, Error, ErrorCode, Result};
use crate::format::small_file::{read_file, read_json};
use crate::format::source::SourceDir;
use crate::format::{clipped, quoted};
use serde_json::Value;

/// The file that makes a folder an adapter, or a model with one.
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Files that other formats are known by, and what to say of them.
const OTHERS: [(&[&str], &str); 10] = [
    (
        &["adapter_model.safetensors"],
        "it has the weights of a LoRA adapter ({}): merge it into its base model",
    ),
    (
        &["pytorch_model.bin", "pytorch_model.bin.index.json"],
        "its weights are PyTorch's pickles ({}): convert them to safetensors, as transformers' `save_pretrained` writes",
    ),
    (
        &[
            "onnx/model.onnx",
            "onnx/model_q4.onnx",
            "onnx/model_q4f16.onnx",
            "onnx/model_quantized.onnx",
            "onnx/model_fp16.onnx",
            "onnx/model_int8.onnx",
            "model.onnx",
            "genai_config.json",
        ],
        "it is an ONNX export ({}), which is not read: take the model that it was made from",
    ),
    (
        &["consolidated.safetensors", "consolidated.00.pth", "params.json"],
        "its weights are spelled as the model's authors do ({}): take the folder in the layout of Hugging Face",
    ),
    (&["model_index.json"], "it is a pipeline of diffusers ({}), no language model"),
    (
        &["mlc-chat-config.json", "tensor-cache.json"],
        "it is a model compiled for MLC ({}), which is not read",
    ),
    (&["weights.npz"], "its weights are MLX's ({}), which are not read"),
    (&["tf_model.h5"], "its weights are TensorFlow's ({}): convert them to safetensors"),
    (&["flax_model.msgpack"], "its weights are Flax's ({}): convert them to safetensors"),
    (&["modules.json"], "it is a model of sentence-transformers ({}): take the folder of its transformer"),
];

/// Refuses a folder with an adapter beside the model: whoever put it there means the two together.
///
/// # Errors
/// `unsupported_model`.
pub(super) async fn refuse_adapter(dir: &dyn SourceDir) -> Result<()> {
    match dir.open(ADAPTER_CONFIG).await? {
        Some(_) => Err(Error::unsupported_model(format!(
            "there is a LoRA adapter beside the model ({ADAPTER_CONFIG}), which is not applied: merge it into the model, or \
             take a folder without it"
        ))),
        None => Ok(()),
    }
}

/// The error for a folder without config.json.
pub(super) async fn without_config(dir: &dyn SourceDir) -> Error {
    let missing = "expected a checkpoint folder but found no config.json in it";
    if let Ok(Some(adapter)) = read_json(dir, ADAPTER_CONFIG).await {
        let base = adapter.get("base_model_name_or_path").and_then(Value::as_str);
        let base = base.map_or_else(|| "its base model".to_owned(), quoted);
        return not_found(format!(
            "{missing}: it is a LoRA adapter; merge it into {base} and take the result"
        ));
    }
    // The root of a model in the cache of Hugging Face's hub, whose files are elsewhere.
    let snapshot = match read_file(dir, "refs/main").await {
        Ok(Some(commit)) => Some(clipped(String::from_utf8_lossy(&commit).trim(), 64)),
        _ => dir.list(Some("snapshots")).and_then(|snapshots| snapshots.into_iter().next()),
    };
    if let Some(commit) = snapshot {
        return not_found(format!(
            "{missing}: it is a model's folder in the hub's cache; take `snapshots/{commit}` inside it"
        ));
    }
    explained(dir, missing).await
}

/// An error of [`TensorStore::open`](crate::format::shard_index::TensorStore::open), with what the folder is.
pub(super) async fn without_weights(dir: &dyn SourceDir, error: Error) -> Error {
    if error.code() != ErrorCode::NotFound {
        return error;
    }
    explained(dir, "expected model.safetensors or model.safetensors.index.json but found neither").await
}

async fn explained(dir: &dyn SourceDir, missing: &str) -> Error {
    for (files, what) in OTHERS {
        for file in files {
            if let Ok(Some(_)) = dir.open(file).await {
                return not_found(format!("{missing}: {}", what.replace("{}", file)));
            }
        }
    }
    let names = dir.list(None).unwrap_or_default();
    if let Some(file) = names.iter().find(|name| name.ends_with(".gguf")) {
        return not_found(format!("{missing}: give the GGUF file {} itself", quoted(file)));
    }
    if let Some(file) = names.iter().find(|name| name.ends_with(".safetensors")) {
        return not_found(format!("{missing}; {} has another name", quoted(file)));
    }
    not_found(missing.to_owned())
}

fn not_found(message: String) -> Error {
    Error::new(ErrorCode::NotFound, message)
}

/// Settings of generation_config.json that change even the likeliest text, with the values that change nothing.
const SETTINGS: [(&str, f64); 9] = [
    ("repetition_penalty", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("num_beams", 1.0),
    ("suppress_tokens", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("bad_words_ids", 0.0),
];

/// What to say of settings that are not applied: generating takes its options from the caller alone.
pub(super) fn unapplied_settings(generation: &Value) -> Option<String> {
    let applies = |key: &str, neutral: f64| match generation.get(key) {
        Some(Value::Number(number)) => number.as_f64() != Some(neutral),
        Some(Value::Array(items)) => !items.is_empty(),
        _ => false,
    };
    let unapplied: Vec<String> = SETTINGS
        .iter()
        .filter(|(key, neutral)| applies(key, *neutral))
        .map(|(key, _)| format!("`{key}` = {}", clipped(&generation[*key].to_string(), 40)))
        .collect();
    (!unapplied.is_empty())
        .then(|| format!("generation_config.json sets {}, which is not applied", unapplied.join(", ")))
}

/// What to say of a folder's chat templates beyond the first: nobody reads them here, and what is written does not have them.
pub(super) fn unread_templates(dir: &dyn SourceDir) -> Option<String> {
    const FOLDER: &str = "additional_chat_templates";
    let names = dir.list(Some(FOLDER)).unwrap_or_default();
    let names: Vec<String> =
        names.iter().filter(|name| name.ends_with(".jinja")).map(|name| quoted(name)).collect();
    let few = clipped(&names.join(", "), 200);
    (!names.is_empty()).then(|| format!("the chat templates in {FOLDER} are neither used nor copied: {few}"))
}

/// Reads generation_config.json. An empty one, which broken uploads leave, is as good as none, as transformers takes it.
///
/// # Errors
/// As [`read_json`].
pub(super) async fn generation_config(dir: &dyn SourceDir) -> Result<Option<Value>> {
    const FILE: &str = "generation_config.json";
    let Some(bytes) = read_file(dir, FILE).await? else { return Ok(None) };
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    crate::format::json::value(&bytes)
        .map(Some)
        .map_err(|error| Error::invalid_checkpoint(format!("expected JSON: {error}")))
        .context_with(|| FILE)
}
