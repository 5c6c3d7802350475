//! GGUF files as checkpoints. Metadata becomes config.json and tokenizer.json, tensors get Hugging Face names and row
//! order, and blocks become packed tensors.
//!
//! Pitfalls of the format that are handled here:
//! - Every tensor has its own type: in a `Q8_0` file, rows that are not whole blocks are `F16`.
//! - The `llama` architecture interleaves the rows of q and k, including blocks.
//! - If `output.weight` is missing, the embedding is also the head.
//! - Llama 3.1's RoPE scaling is stored as a tensor.
//! - The conversion may have lost the tokenizer.
//!
//! Activations are `f32` for every type, including ternary ones: the file requests nothing else. Not here: the
//! container (`format::gguf`).

mod blocks;
mod config;
mod encode;
mod keys;
mod metadata;
mod names;
mod output;
mod quantize;
mod tokenizer;

pub use blocks::decode_rows;
pub(super) use encode::{SMALL_BLOCK, can_hold, planned_tensors};
pub use encode::{block_type, encode};
pub use output::check_config;
pub use output::{GgufOutput, GgufTensor};
pub use quantize::{can_quantize, rows as quantize_rows};
pub use tokenizer::{GgufTokenizer, tokenizer_metadata};

use super::stored::{in_tensor, matrix};
use super::{ModuleStorage, dense};
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::format::gguf::{Entry, Header, TensorType, read_header};
use crate::format::quoted;
use crate::format::row_order::RowOrder;
use crate::format::safetensors::TensorInfo;
use crate::format::shard_index::{StoredTensor, TensorStore};
use crate::format::source::{ByteSource, MemoryDir};
use crate::quant::{Activations, QuantizedTensor};
use metadata::Metadata;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of blocks per read.
const CHUNK_BYTES: usize = 4 << 20;

/// An open file, presented as a checkpoint folder.
pub struct GgufCheckpoint {
    /// The metadata's model description as a config.json.
    pub config_json: Value,
    /// The side files of the equivalent folder: config.json, and the tokenizer's files unless the tokenizer was lost.
    pub files: MemoryDir,
    /// Why the tokenizer in the metadata cannot be used.
    pub tokenizer_problem: Option<Error>,
    /// The tensors under their Hugging Face names.
    pub store: TensorStore,
    /// Which tensors are blocks.
    pub config: Config,
    /// Warnings for the user about how the file was interpreted.
    pub warnings: Vec<String>,
    /// Unknown keys that were ignored because the caller allows them.
    pub ignored_keys: Vec<String>,
}

/// The tensors of a file that are blocks, with their types.
#[derive(Debug)]
pub struct Config {
    /// By Hugging Face name.
    blocks: BTreeMap<String, TensorType>,
}

impl GgufCheckpoint {
    /// Reads a file's header. Unknown keys that `allowed` names are ignored.
    ///
    /// # Errors
    /// `unsupported_model` naming an architecture, a key or a tensor that the decoder does not support or know;
    /// `unsupported_format` for a tensor type that is not decoded; `invalid_checkpoint` for contradictions. All name
    /// the file.
    pub async fn open(source: Arc<dyn ByteSource>, allowed: &[String]) -> Result<Self> {
        let header = read_header(source.as_ref()).await?;
        let name = source.name().to_owned();
        Self::from_header(source, &header, allowed).await.context_with(|| name)
    }

    async fn from_header(source: Arc<dyn ByteSource>, header: &Header, allowed: &[String]) -> Result<Self> {
        let metadata = Metadata(&header.metadata);
        refuse_split(&metadata)?;
        let architecture = config::architecture(&metadata)?;
        let ignored_keys = keys::check(&metadata, architecture, allowed)?;
        let head_dim =
            (architecture == "llama").then(|| config::head_dim(&metadata, architecture)).transpose()?;
        let mut blocks = BTreeMap::new();
        let mut tensors = Vec::new();
        for (gguf_name, entry) in &header.tensors {
            if gguf_name == names::ROPE_FREQS {
                continue;
            }
            let Some(name) = names::to_hugging_face(gguf_name) else {
                return Err(in_tensor(
                    gguf_name,
                    Error::unsupported_model("the decoder has no tensor of this name"),
                ));
            };
            let stored =
                stored_tensor(&name, entry, head_dim).map_err(|error| in_tensor(gguf_name, error))?;
            if blocks::coding(entry.tensor_type).is_some() {
                blocks.insert(name, entry.tensor_type);
            }
            tensors.push(stored);
        }
        refuse_unused(&metadata, architecture, &header.tensors)?;
        let rope_factors = match header.tensors.get(names::ROPE_FREQS) {
            Some(entry) => Some(read_factors(source.as_ref(), entry).await?),
            None => None,
        };
        let rows = |tensor: &str| header.tensors.get(tensor).and_then(|entry| entry.dims.first().copied());
        let vocab_size = rows("token_embd.weight").ok_or_else(|| {
            Error::invalid_checkpoint("expected the tensor `token_embd.weight` but found none")
        })?;
        let config_json = config::to_json(
            &metadata,
            &config::FromTensors {
                vocab_size,
                has_head: rows("output.weight").is_some(),
                has_q_bias: rows("blk.0.attn_q.bias").is_some(),
                has_mlp_bias: rows("blk.0.ffn_up.bias").is_some(),
                rope_factors,
            },
        )?;
        let mut files =
            MemoryDir::new(source.name()).with("config.json", config_json.to_string().into_bytes());
        let mut tokenizer_problem = None;
        match tokenizer::to_files(&metadata) {
            Ok(translated) => {
                for (file, bytes) in translated {
                    files.insert(file, bytes);
                }
            }
            Err(problem) => tokenizer_problem = Some(problem.context(source.name())),
        }
        let warnings = tokenizer::warnings(&metadata);
        let file = source.name().rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
        let store = TensorStore::from_parts(source.name(), &file, source.clone(), tensors)?;
        Ok(Self {
            config_json,
            files,
            tokenizer_problem,
            store,
            config: Config { blocks },
            warnings,
            ignored_keys,
        })
    }
}

fn refuse_split(metadata: &Metadata<'_>) -> Result<()> {
    match metadata.number("split.count")? {
        Some(count) if count > 1 => Err(Error::unsupported_format(format!(
            "expected one file but this is a part of {count} (`split.count`); merge them first"
        ))),
        _ => Ok(()),
    }
}

/// Refuses tensors that the decoder would ignore, because ignoring them changes the model: an output projection's bias
/// without the others, a norm's bias, a layer beyond the last.
fn refuse_unused(
    metadata: &Metadata<'_>,
    architecture: &str,
    tensors: &BTreeMap<String, Entry>,
) -> Result<()> {
    let layers = metadata.require_number(&format!("{architecture}.block_count"))?;
    let has = |tensor: &str| tensors.contains_key(tensor);
    let (q_bias, mlp_bias) = (has("blk.0.attn_q.bias"), has("blk.0.ffn_up.bias"));
    for name in tensors.keys() {
        let Some((layer, module)) = names::layer(name) else { continue };
        let used = match module {
            "attn_q.bias" | "attn_k.bias" | "attn_v.bias" => q_bias,
            "attn_output.bias" => q_bias && architecture != "qwen2",
            "ffn_gate.bias" | "ffn_up.bias" | "ffn_down.bias" => mlp_bias && architecture == "llama",
            "attn_q_norm.weight" | "attn_k_norm.weight" => architecture == "qwen3",
            other => other.ends_with(".weight"),
        };
        if !used || layer.is_some_and(|layer| u64::from(layer) >= layers) {
            let found = format!("a {architecture} model of {layers} blocks does not use it");
            return Err(in_tensor(name, Error::unsupported_model(found)));
        }
    }
    Ok(())
}

/// The store's description of a tensor; blocks are stored as rows of bytes.
fn stored_tensor(name: &str, entry: &Entry, interleaved: Option<u64>) -> Result<StoredTensor> {
    let info = match entry.tensor_type {
        TensorType::F32 => TensorInfo::new(DType::F32, entry.dims.clone()),
        TensorType::F16 => TensorInfo::new(DType::F16, entry.dims.clone()),
        TensorType::BF16 => TensorInfo::new(DType::BF16, entry.dims.clone()),
        tensor_type if blocks::coding(tensor_type).is_some() => match entry.dims[..] {
            [rows, cols] => {
                let row_bytes = tensor_type.row_bytes(cols).expect("the header was checked");
                TensorInfo::new(DType::U8, [rows, row_bytes])
            }
            _ => {
                return Err(Error::invalid_checkpoint(format!(
                    "expected a matrix of {tensor_type} blocks but found shape {:?}",
                    entry.dims
                )));
            }
        },
        other => {
            return Err(Error::unsupported_format(format!(
                "the type {other} is not supported; expected F32, F16, BF16 or {}",
                blocks::names().join(", ")
            )));
        }
    };
    let rows = match interleaved.filter(|_| names::is_interleaved(name)) {
        None => RowOrder::Plain,
        Some(head_dim) => {
            let rows = info.shape.dims().first().copied().unwrap_or(0);
            if head_dim == 0 || !head_dim.is_multiple_of(2) || !rows.is_multiple_of(head_dim) {
                return Err(Error::invalid_checkpoint(format!(
                    "expected rows in heads of an even length but found {rows} rows and heads of {head_dim}"
                )));
            }
            let len = entry.range.end - entry.range.start;
            match len.checked_div(rows) {
                Some(row_bytes) if row_bytes > 0 => RowOrder::Interleaved { block: head_dim, row_bytes },
                _ => RowOrder::Plain,
            }
        }
    };
    Ok(StoredTensor { name: name.to_owned(), info, range: entry.range.clone(), rows })
}

/// The maximum number of factors: half of the largest head.
const MAX_FACTORS: u64 = 1 << 16;

async fn read_factors(source: &dyn ByteSource, entry: &Entry) -> Result<Vec<f32>> {
    let tensor = |error| in_tensor(names::ROPE_FREQS, error);
    let len = entry.range.end - entry.range.start;
    if entry.tensor_type != TensorType::F32 || len > 4 * MAX_FACTORS {
        return Err(tensor(Error::unsupported_format(format!(
            "expected at most {MAX_FACTORS} F32 factors but found {} of shape {:?}",
            entry.tensor_type, entry.dims
        ))));
    }
    let mut bytes = vec![0; len as usize];
    source.read_at(entry.range.start, &mut bytes).await?;
    Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

impl Config {
    pub(super) fn module(&self, store: &TensorStore, module: &str) -> Result<ModuleStorage> {
        let tensor = format!("{module}.weight");
        let Some(&tensor_type) = self.blocks.get(&tensor) else { return dense::module(store, module) };
        let (rows, row_bytes) = matrix(&tensor, store.require(&tensor)?)?;
        let cols = row_bytes / tensor_type.block_bytes() as usize * tensor_type.block_elements() as usize;
        let coding = blocks::coding(tensor_type).expect("only such types are among the blocks");
        Ok(ModuleStorage::Packed { coding, activations: Activations::F32, rows, cols })
    }

    pub(super) async fn read_packed(&self, store: &TensorStore, module: &str) -> Result<QuantizedTensor> {
        let tensor = format!("{module}.weight");
        let Some(&tensor_type) = self.blocks.get(&tensor) else {
            return Err(Error::invalid_checkpoint(format!(
                "expected blocks but {} is dense",
                quoted(&tensor)
            )));
        };
        let (rows, cols) = self.module(store, module)?.shape();
        let (_, row_bytes) = matrix(&tensor, store.require(&tensor)?)?;
        let mut decoder =
            blocks::Decoder::new(tensor_type, rows, cols).map_err(|error| in_tensor(&tensor, error))?;
        let rows_at_once = (CHUNK_BYTES / row_bytes).max(1);
        let mut bytes = Vec::new();
        for start in (0..rows).step_by(rows_at_once) {
            let end = rows.min(start + rows_at_once);
            bytes.resize((end - start) * row_bytes, 0);
            let range = (start * row_bytes) as u64..(end * row_bytes) as u64;
            store.read_range(&tensor, range, &mut bytes).await?;
            decoder.push_rows(&bytes).map_err(|error| in_tensor(&tensor, error))?;
        }
        decoder.finish().map_err(|error| in_tensor(&tensor, error))
    }

    /// Whether any tensor is packed.
    pub fn has_blocks(&self) -> bool {
        !self.blocks.is_empty()
    }
}

#[cfg(test)]
mod tests;
