//! Recognizes folders of other formats, and parts of a folder that are not used, to explain them in errors and
//! warnings.

use crate::error::{Error, ErrorCode, Result};
use crate::format::small_file::{read_file, read_json};
use crate::format::source::SourceDir;
use crate::format::{clipped, quoted};
use serde_json::Value;

/// The file that marks a LoRA adapter, alone or beside a model.
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Files by which other formats are recognized, and the explanation for the error.
const OTHERS: [(&[&str], &str); 10] = [
    (&["adapter_model.safetensors"], "it holds a LoRA adapter ({}): merge it into its base model"),
    (
        &["pytorch_model.bin", "pytorch_model.bin.index.json"],
        "its weights are PyTorch pickles ({}): convert them to safetensors, for instance with transformers' `save_pretrained`",
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
        "it is an ONNX export ({}), which is not supported: use the original model",
    ),
    (
        &["consolidated.safetensors", "consolidated.00.pth", "params.json"],
        "its weights are in the format of the model's authors ({}): use the folder in the Hugging Face format",
    ),
    (&["model_index.json"], "it is a diffusers pipeline ({}), not a language model"),
    (
        &["mlc-chat-config.json", "tensor-cache.json"],
        "it is a model compiled for MLC ({}), which is not supported",
    ),
    (&["weights.npz"], "its weights are in MLX's format ({}), which is not supported"),
    (&["tf_model.h5"], "its weights are in TensorFlow's format ({}): convert them to safetensors"),
    (&["flax_model.msgpack"], "its weights are in Flax's format ({}): convert them to safetensors"),
    (&["modules.json"], "it is a sentence-transformers model ({}): use the folder of its transformer"),
];

/// Refuses a folder with an adapter beside the model: the two are meant to be used together.
///
/// # Errors
/// `unsupported_model`.
pub(super) async fn refuse_adapter(dir: &dyn SourceDir) -> Result<()> {
    match dir.open(ADAPTER_CONFIG).await? {
        Some(_) => Err(Error::unsupported_model(format!(
            "found a LoRA adapter beside the model ({ADAPTER_CONFIG}), which is not applied: merge it into the model, or \
             use a folder without it"
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
            "{missing}: it is a LoRA adapter; merge it into {base} and use the result"
        ));
    }
    // The root of a model in the Hugging Face hub's cache. Its files are in `snapshots`.
    let snapshot = match read_file(dir, "refs/main").await {
        Ok(Some(commit)) => Some(clipped(String::from_utf8_lossy(&commit).trim(), 64)),
        _ => dir.list(Some("snapshots")).and_then(|snapshots| snapshots.into_iter().next()),
    };
    if let Some(commit) = snapshot {
        return not_found(format!(
            "{missing}: it is a model's folder in the hub's cache; use `snapshots/{commit}` inside it"
        ));
    }
    explained(dir, missing).await
}

/// The error of [`TensorStore::open`](crate::format::shard_index::TensorStore::open) with an explanation of what the
/// folder is.
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
        return not_found(format!("{missing}: pass the GGUF file {} itself", quoted(file)));
    }
    if let Some(file) = names.iter().find(|name| name.ends_with(".safetensors")) {
        return not_found(format!("{missing}; the file {} has an unexpected name", quoted(file)));
    }
    not_found(missing.to_owned())
}

fn not_found(message: String) -> Error {
    Error::new(ErrorCode::NotFound, message)
}

/// The warning for a folder's additional chat templates: they are not used, and outputs do not contain them.
pub(super) fn unread_templates(dir: &dyn SourceDir) -> Option<String> {
    const FOLDER: &str = "additional_chat_templates";
    let names = dir.list(Some(FOLDER)).unwrap_or_default();
    let names: Vec<String> =
        names.iter().filter(|name| name.ends_with(".jinja")).map(|name| quoted(name)).collect();
    let few = clipped(&names.join(", "), 200);
    (!names.is_empty()).then(|| format!("the chat templates in {FOLDER} are neither used nor copied: {few}"))
}
