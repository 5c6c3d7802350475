//! The GGUF container, little-endian, version 3, and version 2, which has the same layout.
//!
//! ```text
//! "GGUF"       magic
//! u32, 2 x u64 version, number of tensors, number of metadata entries
//! metadata     key, type number, value; texts and arrays with u64 lengths in front
//! tensors      name, u32 number of dimensions, u64 dimensions (innermost first), u32 type, u64 offset
//! padding      to a multiple of general.alignment (default 32); offsets count from here
//! data         the tensors, each at a multiple of the alignment
//! ```
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. The file does not store the header's length, so
//! the header is read in growing pieces until it is complete.
//!
//! Not here: the meaning of keys and tensors, and the content of blocks (`layout`).

use crate::error::{Error, Result};
use crate::format::source::ByteSource;
use crate::format::{quoted, zeroed};
use crate::sort;
use std::collections::BTreeMap;
use std::ops::Range;

mod cursor;
mod tensor_type;
mod value;
mod writer;

pub use tensor_type::TensorType;
pub use value::{Array, Value};
pub use writer::GgufWriter;

use cursor::{Cursor, Stop};

/// The first bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// The metadata key of the alignment of tensor data.
pub const ALIGNMENT: &str = "general.alignment";

/// The alignment if the file does not state one.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The maximum header size. Vocabularies of 250,000 tokens take about 10 MB.
pub const MAX_HEADER_BYTES: u64 = 256 << 20;

/// The size of the first read; enough for models with small vocabularies.
const FIRST_PIECE: u64 = 128 << 10;

/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;

/// The minimum size of a metadata entry: the length of its key, its type, and one byte.
const MIN_ENTRY_BYTES: u64 = 13;
/// The minimum size of a tensor entry: name length, number of dimensions, type and offset.
const MIN_TENSOR_BYTES: u64 = 24;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Element type.
    pub tensor_type: TensorType,
    /// The dimensions, outermost first (the file stores them innermost first).
    pub dims: Vec<u64>,
    /// The byte range of the data, from the start of the file.
    pub range: Range<u64>,
}

/// The header of a file, checked against the file's length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// The metadata entries.
    pub metadata: BTreeMap<String, Value>,
    /// The tensors by name. Their ranges are inside the file, disjoint, and as long as type and dimensions require.
    pub tensors: BTreeMap<String, Entry>,
}

/// Reads and checks a file's header.
///
/// # Errors
/// `unsupported_format` for another version, byte order or tensor type; `invalid_checkpoint` if the file is not GGUF or
/// contradicts itself. Every message names the file.
pub async fn read_header(source: &dyn ByteSource) -> Result<Header> {
    let named = |error: Error| error.context(source.name());
    let file_len = source.len();
    let longest = file_len.min(MAX_HEADER_BYTES);
    let mut len = longest.min(FIRST_PIECE);
    loop {
        let mut bytes = zeroed(len).map_err(named)?;
        source.read_at(0, &mut bytes).await?;
        match parse(&bytes, file_len) {
            Ok(header) => return Ok(header),
            Err(Stop::Refused(error)) => return Err(named(error)),
            Err(Stop::NeedsMore) if len < longest => len = longest.min(len.saturating_mul(4)),
            Err(Stop::NeedsMore) => {
                return Err(named(Error::invalid_checkpoint(format!(
                    "expected a GGUF header of at most {MAX_HEADER_BYTES} bytes but it is longer"
                ))));
            }
        }
    }
}

/// Whether a file begins with the GGUF magic.
///
/// # Errors
/// Errors of reading.
pub async fn is_gguf(source: &dyn ByteSource) -> Result<bool> {
    let mut magic = [0; 4];
    if source.len() < magic.len() as u64 {
        return Ok(false);
    }
    source.read_at(0, &mut magic).await?;
    Ok(magic == MAGIC)
}

/// Parses the header of a file of `file_len` bytes; `bytes` are its first bytes.
fn parse(bytes: &[u8], file_len: u64) -> Result<Header, Stop> {
    let refuse = |message: String| Stop::Refused(Error::invalid_checkpoint(message));
    let mut cursor = Cursor::new(bytes, file_len);
    let magic = cursor.bytes::<4>()?;
    if magic != MAGIC {
        return Err(refuse(format!("expected a GGUF file but it begins with \"{}\"", magic.escape_ascii())));
    }
    check_version(cursor.u32()?)?;
    let (tensor_count, entry_count) = (cursor.u64()?, cursor.u64()?);
    cursor.check_room("metadata entries", entry_count, MIN_ENTRY_BYTES)?;
    cursor.check_room("tensors", tensor_count, MIN_TENSOR_BYTES)?;
    let mut header = Header::default();
    for _ in 0..entry_count {
        let key = cursor.string()?;
        let value =
            Value::read(&mut cursor).map_err(|stop| within(stop, || format!("key {}", quoted(&key))))?;
        if header.metadata.contains_key(&key) {
            return Err(refuse(format!("the key {} appears twice", quoted(&key))));
        }
        header.metadata.insert(key, value);
    }
    let alignment = alignment(&header.metadata).map_err(Stop::Refused)?;
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        let name = cursor.string()?;
        let raw = RawTensor::read(&mut cursor).map_err(|stop| within(stop, || tensor(&name)))?;
        tensors.push((name, raw));
    }
    let data_start = cursor.position().checked_next_multiple_of(alignment);
    for (name, raw) in tensors {
        let entry = data_start
            .ok_or_else(|| Error::invalid_checkpoint("its offset overflows"))
            .and_then(|start| raw.check(start, file_len, alignment))
            .map_err(|error| Stop::Refused(error.context(tensor(&name))))?;
        if header.tensors.contains_key(&name) {
            return Err(refuse(format!("the tensor {} appears twice", quoted(&name))));
        }
        header.tensors.insert(name, entry);
    }
    check_disjoint(&header.tensors).map_err(Stop::Refused)?;
    Ok(header)
}

fn within(stop: Stop, place: impl FnOnce() -> String) -> Stop {
    match stop {
        Stop::Refused(error) => Stop::Refused(error.context(place())),
        Stop::NeedsMore => Stop::NeedsMore,
    }
}

fn tensor(name: &str) -> String {
    format!("tensor {}", quoted(name))
}

fn check_version(version: u32) -> Result<(), Stop> {
    let why = match version {
        2 | 3 => return Ok(()),
        1 => "version 1, which was never stable".to_owned(),
        _ if matches!(version.swap_bytes(), 1..=3) => "a big-endian file".to_owned(),
        other => format!("version {other}"),
    };
    Err(Stop::Refused(Error::unsupported_format(format!(
        "expected GGUF version 2 or 3, little-endian, but found {why}"
    ))))
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64> {
    let Some(value) = metadata.get(ALIGNMENT) else { return Ok(DEFAULT_ALIGNMENT) };
    match value.as_u64() {
        Some(alignment) if alignment.is_power_of_two() => Ok(alignment),
        _ => Err(Error::invalid_checkpoint(format!(
            "key `{ALIGNMENT}`: expected a power of two but found {}",
            crate::format::clipped(&format!("{value:?}"), 60)
        ))),
    }
}

/// A tensor entry of the header, unchecked.
struct RawTensor {
    /// Innermost first.
    dims: Vec<u64>,
    type_number: u32,
    offset: u64,
}

impl RawTensor {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, Stop> {
        let count = cursor.u32()?;
        if count > MAX_DIMS {
            return Err(Stop::Refused(Error::invalid_checkpoint(format!(
                "expected at most {MAX_DIMS} dimensions but found {count}"
            ))));
        }
        let mut dims = Vec::with_capacity(count as usize);
        for _ in 0..count {
            dims.push(cursor.u64()?);
        }
        Ok(Self { dims, type_number: cursor.u32()?, offset: cursor.u64()? })
    }

    /// All checks that need only this tensor.
    fn check(mut self, data_start: u64, file_len: u64, alignment: u64) -> Result<Entry> {
        let Some(tensor_type) = TensorType::from_number(self.type_number) else {
            return Err(Error::unsupported_format(format!(
                "the tensor type with number {} is not known",
                self.type_number
            )));
        };
        if !self.offset.is_multiple_of(alignment) {
            return Err(Error::invalid_checkpoint(format!(
                "expected an offset that is a multiple of {alignment} but found {}",
                self.offset
            )));
        }
        let overflow = || {
            Error::invalid_checkpoint(format!(
                "the size of {tensor_type} values of shape {:?} overflows",
                self.dims
            ))
        };
        let width = self.dims.first().copied().unwrap_or(1);
        if !width.is_multiple_of(tensor_type.block_elements()) {
            return Err(Error::invalid_checkpoint(format!(
                "expected rows of whole {tensor_type} blocks, {} elements each, but found {width} columns",
                tensor_type.block_elements()
            )));
        }
        let mut len = tensor_type.row_bytes(width).ok_or_else(overflow)?;
        for dim in self.dims.iter().skip(1) {
            len = len.checked_mul(*dim).ok_or_else(overflow)?;
        }
        let start = data_start.checked_add(self.offset).ok_or_else(overflow)?;
        let end = start.checked_add(len).ok_or_else(overflow)?;
        if end > file_len {
            return Err(Error::invalid_checkpoint(format!(
                "its {len} bytes from offset {start} on reach beyond the file of {file_len} bytes; is it truncated?"
            )));
        }
        self.dims.reverse();
        Ok(Entry { tensor_type, dims: self.dims, range: start..end })
    }
}

/// Refuses tensors that share bytes, which no valid writer produces. Gaps between tensors are padding.
fn check_disjoint(tensors: &BTreeMap<String, Entry>) -> Result<()> {
    let mut entries: Vec<_> = tensors
        .iter()
        .filter(|(_, entry)| !entry.range.is_empty())
        .map(|(name, e)| (&e.range, name))
        .collect();
    sort::sort_by_key(&mut entries, |&(range, name)| (range.start, name));
    for pair in entries.windows(2) {
        let [(before, first), (after, second)] = pair else { continue };
        if after.start < before.end {
            return Err(Error::invalid_checkpoint(format!(
                "its data at offset {} overlaps that of {}, which ends at {}",
                after.start,
                tensor(first),
                before.end
            ))
            .context(tensor(second)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
