//! Copies tensors from a checkpoint into an output, in chunks.

use super::form::Form;
use super::{Output, Tensor};
use crate::dtype::{DType, decode_f32, encode_f32};
use crate::error::{Context, Result};
use crate::format::shard_index::TensorStore;
use crate::model::weights::refuse_non_finite;
use crate::task::{self, Control};
use half::f16;

/// Chunk size in bytes, a multiple of every element size.
const CHUNK_BYTES: u64 = 4 << 20;

/// A source tensor in the process of being copied.
pub(super) struct Copying<'a> {
    store: &'a TensorStore,
    from: &'a str,
    /// Its type in the source. It differs from the output's only between floating-point types.
    dtype: DType,
    to: &'a Tensor,
    /// Whether to stop at a value that half precision cannot hold.
    tentative: bool,
    /// Columns of a matrix; a vector is one row.
    cols: usize,
    /// Copied elements.
    done: usize,
    largest: f32,
    values: Vec<f32>,
    converted: Vec<u8>,
}

impl<'a> Copying<'a> {
    /// Prepares to copy `from` into `to`.
    pub(super) fn new(
        store: &'a TensorStore,
        from: &'a str,
        to: &'a Tensor,
        tentative: bool,
    ) -> Result<Self> {
        let info = store.require(from)?;
        let cols = info.shape.dims().last().and_then(|&cols| usize::try_from(cols).ok()).unwrap_or(1).max(1);
        let (dtype, values, converted) = (info.dtype, Vec::new(), Vec::new());
        Ok(Self { store, from, dtype, to, tentative, cols, done: 0, largest: 0.0, values, converted })
    }

    /// Writes the tensor, or `changed` instead. Returns false if a value does not fit a tentative form.
    pub(super) async fn write(
        &mut self,
        changed: Option<Vec<f32>>,
        output: &mut Output<'_>,
        control: &dyn Control,
    ) -> Result<bool> {
        if let Some(values) = changed {
            // First in the source's type.
            let mut bytes = Vec::new();
            encode_f32(self.dtype, &values, &mut bytes).context_with(|| format!("tensor `{}`", self.from))?;
            return self.put(&bytes, output).await;
        }
        let mut chunks = Chunks::new(self.store, self.from, (self.cols * self.dtype.size()) as u64)?;
        while let Some(bytes) = chunks.next().await? {
            if !self.put(bytes, output).await? {
                return Ok(false);
            }
            task::yield_point(control).await?;
        }
        Ok(true)
    }

    /// The largest rounding error, if the tensor changes its form.
    pub(super) fn difference(&self) -> Option<f32> {
        (self.to.form != Form::Plain(self.dtype)).then_some(self.largest)
    }

    async fn put(&mut self, bytes: &[u8], output: &mut Output<'_>) -> Result<bool> {
        refuse_non_finite(self.from, self.dtype, bytes, self.done)?;
        let count = bytes.len() / self.dtype.size();
        self.done += count;
        if self.to.form == Form::Plain(self.dtype) {
            output.write(&self.to.name, bytes).await?;
            return Ok(true);
        }
        let Self { from, values, converted, to, cols, .. } = self;
        let in_tensor = || format!("tensor `{from}`");
        values.resize(count, 0.0);
        decode_f32(self.dtype, bytes, values).context_with(in_tensor)?;
        if self.tentative && !values.iter().all(fits_f16) {
            return Ok(false);
        }
        converted.clear();
        to.form.encode(values, converted).context_with(in_tensor)?;
        self.largest = self.largest.max(to.form.difference(*cols, values, converted)?);
        output.write(&self.to.name, &self.converted).await?;
        Ok(true)
    }
}

fn fits_f16(value: &f32) -> bool {
    f16::from_f32(*value).is_finite()
}

/// Whether every value of a floating-point tensor is in the range of f16.
pub(in crate::pipeline) async fn f16_holds(store: &TensorStore, tensor: &str) -> Result<bool> {
    let dtype = store.require(tensor)?.dtype;
    let mut chunks = Chunks::new(store, tensor, dtype.size() as u64)?;
    let mut values = Vec::new();
    while let Some(bytes) = chunks.next().await? {
        values.resize(bytes.len() / dtype.size(), 0.0);
        decode_f32(dtype, bytes, &mut values)?;
        if !values.iter().all(fits_f16) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The bytes of a tensor, chunk by chunk of whole rows.
struct Chunks<'a> {
    store: &'a TensorStore,
    tensor: &'a str,
    len: u64,
    at_once: u64,
    next: u64,
    bytes: Vec<u8>,
}

impl<'a> Chunks<'a> {
    fn new(store: &'a TensorStore, tensor: &'a str, row_bytes: u64) -> Result<Self> {
        // The header's reader has checked that the size does not overflow.
        let len = store.require(tensor)?.byte_len().unwrap_or(0);
        let at_once = (CHUNK_BYTES / row_bytes).max(1) * row_bytes;
        Ok(Self { store, tensor, len, at_once, next: 0, bytes: Vec::new() })
    }

    async fn next(&mut self) -> Result<Option<&[u8]>> {
        if self.next == self.len {
            return Ok(None);
        }
        let end = self.len.min(self.next + self.at_once);
        self.bytes.resize((end - self.next) as usize, 0);
        self.store.read_range(self.tensor, self.next..end, &mut self.bytes).await?;
        self.next = end;
        Ok(Some(&self.bytes))
    }
}
