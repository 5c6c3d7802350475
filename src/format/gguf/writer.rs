//! Writes a GGUF file front to back, tensor by tensor, in pieces of any size.
//!
//! The header comes first, so the types and dimensions of all tensors must be known before the first data byte. The
//! data never has to be in memory at once. Not here: what is written (`layout`).

use super::value::write_string;
use super::{ALIGNMENT, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, TensorType, Value, tensor};
use crate::error::{Error, Result};
use crate::format::sink::ByteSink;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A GGUF file being written. The same tensors and metadata give the same file: metadata is sorted by key, and there is
/// no timestamp. Dropping it unfinished leaves no file.
pub struct GgufWriter {
    sink: Box<dyn ByteSink>,
    /// Names and byte counts, in data order.
    tensors: Vec<(String, u64)>,
    /// Index of the tensor being written; `tensors.len()` at the end.
    current: usize,
    /// Bytes of the current tensor written so far.
    written: u64,
}

impl GgufWriter {
    /// Writes the header of a version 3 file. Tensor data follows in the order given here; dimensions are outermost
    /// first.
    ///
    /// # Errors
    /// `invalid_argument` for a duplicate name, zero or more than four dimensions, rows that are not whole blocks, a
    /// size that overflows, or an alignment among the metadata; errors of the sink.
    pub async fn begin(
        mut sink: Box<dyn ByteSink>,
        metadata: &BTreeMap<String, Value>,
        tensors: Vec<(String, TensorType, Vec<u64>)>,
    ) -> Result<Self> {
        if metadata.contains_key(ALIGNMENT) {
            return Err(Error::invalid_argument(format!("`{ALIGNMENT}` is set by the writer")));
        }
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&3u32.to_le_bytes());
        header.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
        header.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            write_string(key, &mut header);
            value.write(&mut header);
        }
        let mut names = BTreeSet::new();
        let mut lens = Vec::new();
        let mut offset = 0u64;
        for (name, tensor_type, dims) in tensors {
            let named = |message: &str| Error::invalid_argument(message).context(tensor(&name));
            if !names.insert(name.clone()) {
                return Err(named("the name is given twice"));
            }
            if dims.is_empty() || dims.len() > MAX_DIMS as usize {
                return Err(named("expected one to four dimensions"));
            }
            let width = dims[dims.len() - 1];
            let row = tensor_type.row_bytes(width).ok_or_else(|| {
                named(&format!("rows of {width} elements are not whole {tensor_type} blocks, or too long"))
            })?;
            let len = dims[..dims.len() - 1].iter().try_fold(row, |len, &dim| len.checked_mul(dim));
            let end =
                len.and_then(|len| offset.checked_add(len)?.checked_next_multiple_of(DEFAULT_ALIGNMENT));
            let (Some(len), Some(end)) = (len, end) else { return Err(named("its size overflows")) };
            write_string(&name, &mut header);
            header.extend_from_slice(&(dims.len() as u32).to_le_bytes());
            for dim in dims.iter().rev() {
                header.extend_from_slice(&dim.to_le_bytes());
            }
            header.extend_from_slice(&tensor_type.number().to_le_bytes());
            header.extend_from_slice(&offset.to_le_bytes());
            offset = end;
            lens.push((name, len));
        }
        header.resize(header.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
        sink.write(&header).await?;
        let mut writer = Self { sink, tensors: lens, current: 0, written: 0 };
        writer.skip_complete().await?;
        Ok(writer)
    }

    /// Appends `bytes` to the tensor `name`, which must be the first incomplete one.
    ///
    /// # Errors
    /// `invalid_argument`, naming the tensor, if another tensor is due or this one becomes too long; errors of the
    /// sink.
    pub async fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let named = |message: String| Error::invalid_argument(message).context(tensor(name));
        let Some((due, len)) = self.tensors.get(self.current) else {
            return Err(named("expected no more data: every tensor is complete".to_owned()));
        };
        if due != name {
            return Err(named(format!("expected data of {} first", tensor(due))));
        }
        if bytes.len() as u64 > len - self.written {
            let found = self.written + bytes.len() as u64;
            return Err(named(format!("expected {len} bytes in all but found at least {found}")));
        }
        self.sink.write(bytes).await?;
        self.written += bytes.len() as u64;
        self.skip_complete().await
    }

    /// Makes the file appear under its name.
    ///
    /// # Errors
    /// `invalid_argument`, naming the tensor, if data is missing; errors of the sink.
    pub async fn finish(self) -> Result<()> {
        if let Some((due, len)) = self.tensors.get(self.current) {
            return Err(Error::invalid_argument(format!(
                "expected {len} bytes before the end of the file but found {}",
                self.written
            ))
            .context(tensor(due)));
        }
        self.sink.finish().await
    }

    /// Pads completed tensors and moves on to the next one that needs data.
    async fn skip_complete(&mut self) -> Result<()> {
        while let Some((_, len)) = self.tensors.get(self.current)
            && *len == self.written
        {
            let padding = len.next_multiple_of(DEFAULT_ALIGNMENT) - len;
            self.sink.write(&[0; DEFAULT_ALIGNMENT as usize][..padding as usize]).await?;
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }
}

impl fmt::Debug for GgufWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GgufWriter").field("due", &self.tensors.get(self.current)).finish_non_exhaustive()
    }
}
