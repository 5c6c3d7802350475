//! Copies single tensors from a checkpoint into a file that is being written, some bytes at a time.
//!
//! Floor 8.

use crate::dtype::{DType, decode_f32, encode_f32};
use crate::error::{Context, Result};
use crate::format::safetensors::SafetensorsWriter;
use crate::format::shard_index::TensorStore;
use crate::model::weights::refuse_non_finite;
use crate::task::{self, Control};
use half::f16;

/// Bytes that are read at a time; a multiple of every element size.
const CHUNK_BYTES: u64 = 4 << 20;

/// A tensor of the source on its way into the output.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    /// Its name in the source.
    pub tensor: String,
    /// Its type in the output. Another one than the source's only between floating-point types.
    pub dtype: DType,
}

impl Copy {
    /// Writes the tensor as `name`.
    pub async fn write(
        &self,
        store: &TensorStore,
        writer: &mut SafetensorsWriter,
        name: &str,
        control: &dyn Control,
    ) -> Result<()> {
        let from = store.require(&self.tensor)?.dtype;
        let mut chunks = Chunks::new(store, &self.tensor)?;
        let (mut values, mut converted) = (Vec::new(), Vec::new());
        let mut elements = 0;
        while let Some(bytes) = chunks.next().await? {
            refuse_non_finite(&self.tensor, from, bytes, elements)?;
            elements += bytes.len() / from.size();
            if from == self.dtype {
                writer.write(name, bytes).await?;
            } else {
                values.resize(bytes.len() / from.size(), 0.0);
                converted.clear();
                decode_f32(from, bytes, &mut values)
                    .and_then(|()| encode_f32(self.dtype, &values, &mut converted))
                    .context_with(|| format!("tensor `{}`", self.tensor))?;
                writer.write(name, &converted).await?;
            }
            task::checkpoint(control).await?;
        }
        Ok(())
    }
}

/// Whether every value of a floating-point tensor is in the range of f16.
pub(super) async fn f16_holds(store: &TensorStore, tensor: &str) -> Result<bool> {
    let dtype = store.require(tensor)?.dtype;
    let mut chunks = Chunks::new(store, tensor)?;
    let mut values = Vec::new();
    while let Some(bytes) = chunks.next().await? {
        values.resize(bytes.len() / dtype.size(), 0.0);
        decode_f32(dtype, bytes, &mut values)?;
        if values.iter().any(|&value| !f16::from_f32(value).is_finite()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The bytes of a tensor, chunk by chunk.
struct Chunks<'a> {
    store: &'a TensorStore,
    tensor: &'a str,
    len: u64,
    next: u64,
    bytes: Vec<u8>,
}

impl<'a> Chunks<'a> {
    fn new(store: &'a TensorStore, tensor: &'a str) -> Result<Self> {
        // The header's reader has checked that the size does not overflow.
        let len = store.require(tensor)?.byte_len().unwrap_or(0);
        Ok(Self { store, tensor, len, next: 0, bytes: Vec::new() })
    }

    async fn next(&mut self) -> Result<Option<&[u8]>> {
        if self.next == self.len {
            return Ok(None);
        }
        let end = self.len.min(self.next + CHUNK_BYTES);
        self.bytes.resize((end - self.next) as usize, 0);
        self.store.read_range(self.tensor, self.next..end, &mut self.bytes).await?;
        self.next = end;
        Ok(Some(&self.bytes))
    }
}
