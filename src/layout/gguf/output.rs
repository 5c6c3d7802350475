//! Writes a GGUF file from a checkpoint in Hugging Face form: translates names, metadata and row order.

use super::{config, names};
use crate::error::{Error, Result};
use crate::format::gguf::{GgufWriter, TensorType, Value as GgufValue};
use crate::format::quoted;
use crate::format::sink::ByteSink;
use crate::sort;
use serde_json::Value;
use std::collections::BTreeMap;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Hugging Face name: `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Element type. Norms and biases are always `F32`.
    pub tensor_type: TensorType,
    /// Dimensions, outermost first.
    pub dims: Vec<u64>,
}

/// A GGUF file being written, tensor by tensor. The same inputs give the same file.
pub struct GgufOutput {
    writer: GgufWriter,
    /// In data order.
    tensors: Vec<Planned>,
    current: usize,
    /// Bytes of the current tensor received so far.
    taken: u64,
    /// Rows of the current tensor that wait until their head is complete.
    pending: Vec<u8>,
}

struct Planned {
    name: String,
    gguf_name: String,
    len: u64,
    /// Elements per head and bytes per row, if rows are interleaved.
    interleaved: Option<(usize, usize)>,
}

/// Checks whether GGUF decoders support a config.json. Writes nothing.
///
/// # Errors
/// `unsupported_model` naming an unsupported feature; `invalid_checkpoint` for a missing or malformed key.
pub fn check_config(config_json: &Value) -> Result<()> {
    config::to_metadata(config_json, 0)?;
    config::rope_factors(config_json)?;
    Ok(())
}

impl GgufOutput {
    /// Writes the header. `config_json` is the checkpoint's config.json. `tokenizer` is the result of
    /// [`tokenizer_metadata`](super::tokenizer_metadata), or `None` for a file without a tokenizer. A tied head must
    /// not be among the tensors.
    ///
    /// # Errors
    /// `unsupported_model` naming a feature that GGUF decoders of the same family do not support; `invalid_argument`
    /// for a tensor without a GGUF name or with an unsupported shape; errors of the sink.
    pub async fn begin(
        sink: Box<dyn ByteSink>,
        config_json: &Value,
        tokenizer: Option<BTreeMap<String, GgufValue>>,
        tensors: &[GgufTensor],
    ) -> Result<Self> {
        let mut metadata = config::to_metadata(config_json, file_type(tensors))?;
        // States that there is no tokenizer; otherwise readers would look for one.
        let none =
            || sort::map([("tokenizer.ggml.model".to_owned(), GgufValue::String("no_vocab".to_owned()))]);
        metadata.extend(tokenizer.unwrap_or_else(none));
        let head_dim = config::interleaved_head_dim(config_json)?;
        let factors = config::rope_factors(config_json)?;
        let mut planned = Vec::new();
        let mut list = Vec::new();
        if let Some(factors) = &factors {
            list.push((names::ROPE_FREQS.to_owned(), TensorType::F32, vec![factors.len() as u64]));
        }
        for GgufTensor { name, tensor_type, dims } in tensors {
            let named = |message: String| {
                Error::invalid_argument(message).context(format!("tensor {}", quoted(name)))
            };
            let Some(gguf_name) = names::to_gguf(name) else {
                return Err(named("GGUF has no name for it".to_owned()));
            };
            let row_bytes = dims.last().and_then(|&width| match dims.len() {
                1 => Some(tensor_type.block_bytes()),
                _ => tensor_type.row_bytes(width),
            });
            let rows = match dims.len() {
                1 => dims[0],
                _ => dims[..dims.len().saturating_sub(1)].iter().product(),
            };
            let Some((row_bytes, len)) = row_bytes.and_then(|bytes| Some((bytes, bytes.checked_mul(rows)?)))
            else {
                return Err(named(format!("the shape {dims:?} is not whole rows of {tensor_type}")));
            };
            let interleaved = head_dim.filter(|_| names::is_interleaved(name));
            if let Some(head_dim) = interleaved
                && !rows.is_multiple_of(head_dim as u64)
            {
                return Err(named(format!("expected rows in heads of {head_dim} but found {rows}")));
            }
            let interleaved = interleaved.map(|head_dim| (head_dim, row_bytes as usize));
            planned.push(Planned { name: name.clone(), gguf_name: gguf_name.clone(), len, interleaved });
            list.push((gguf_name, *tensor_type, dims.clone()));
        }
        let mut writer = GgufWriter::begin(sink, &metadata, list).await?;
        if let Some(factors) = factors {
            let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
            writer.write(names::ROPE_FREQS, &bytes).await?;
        }
        Ok(Self { writer, tensors: planned, current: 0, taken: 0, pending: Vec::new() })
    }

    /// Appends `bytes` to the tensor `name`, in Hugging Face row order and in pieces of any size. Tensors must be
    /// written in the order given to [`begin`](Self::begin).
    ///
    /// # Errors
    /// `invalid_argument` if another tensor is due or this one becomes too long; errors of the sink.
    pub async fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        while self.tensors.get(self.current).is_some_and(|due| due.len == self.taken) {
            self.current += 1;
            self.taken = 0;
        }
        let due = self.tensors.get(self.current).filter(|due| due.name == name);
        let Some(due) = due else {
            let expected = self.tensors.get(self.current).map_or("no more data", |due| due.name.as_str());
            return Err(Error::invalid_argument(format!("expected {} first", quoted(expected)))
                .context(format!("tensor {}", quoted(name))));
        };
        self.taken += bytes.len() as u64;
        let Some((head_dim, row_bytes)) = due.interleaved else {
            return self.writer.write(&due.gguf_name, bytes).await;
        };
        self.pending.extend_from_slice(bytes);
        let head_bytes = head_dim * row_bytes;
        let whole = self.pending.len() / head_bytes * head_bytes;
        let mut stored = Vec::with_capacity(whole);
        for head in self.pending[..whole].chunks_exact(head_bytes) {
            let (first, second) = head.split_at(head_bytes / 2);
            for (a, b) in first.chunks_exact(row_bytes).zip(second.chunks_exact(row_bytes)) {
                stored.extend_from_slice(a);
                stored.extend_from_slice(b);
            }
        }
        self.pending.drain(..whole);
        self.writer.write(&due.gguf_name, &stored).await
    }

    /// Makes the file appear under its name.
    ///
    /// # Errors
    /// `invalid_argument` if data is missing; errors of the sink.
    pub async fn finish(self) -> Result<()> {
        self.writer.finish().await
    }
}

/// `general.file_type`: llama.cpp's number for the type of most matrix elements.
fn file_type(tensors: &[GgufTensor]) -> u32 {
    let mut counts = BTreeMap::new();
    for tensor in tensors.iter().filter(|tensor| tensor.dims.len() > 1) {
        *counts.entry(tensor.tensor_type).or_insert(0u64) += tensor.dims.iter().product::<u64>();
    }
    let most = counts.into_iter().max_by_key(|(tensor_type, count)| (*count, tensor_type.number()));
    match most.map_or(TensorType::F32, |(tensor_type, _)| tensor_type) {
        TensorType::F16 => 1,
        TensorType::Q4_0 => 2,
        TensorType::Q4_1 => 3,
        TensorType::Q5_0 => 8,
        TensorType::Q5_1 => 9,
        TensorType::Q8_0 => 7,
        TensorType::Q4_K => 14,
        TensorType::Q6_K => 18,
        TensorType::BF16 => 32,
        TensorType::TQ1_0 => 36,
        TensorType::TQ2_0 => 37,
        _ => 0,
    }
}
