//! The safetensors container: a header with the names and byte ranges of tensors, then their data.
//!
//! ```text
//! 8 bytes      n, the header's length, little-endian
//! n bytes      JSON: {"__metadata__": {text: text}, name: {"dtype", "shape", "data_offsets": [begin, end]}, ...}
//! the rest     the tensors' data, little-endian, without holes; offsets count from here
//! ```
//!
//! The header has its own reader instead of the `safetensors` crate's. The crate uses `usize` offsets, limited to 4 GiB
//! on wasm32, and needs the whole file in memory. It serves as the reference in tests. Format:
//! <https://huggingface.co/docs/safetensors/index#format>.
//!
//! Not here: several files as one checkpoint (`shard_index`), and the meaning of tensors (`layout`).

use crate::dtype::DType;
use crate::error::{Error, ErrorCode, Result};
use crate::format::source::ByteSource;
use crate::format::{clipped, foreign, quoted, zeroed};
use crate::shape::Shape;
use crate::sort;
use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::collections::btree_map;
use std::fmt;
use std::ops::Range;

mod writer;

pub use writer::{SafetensorsWriter, write_order};

/// The maximum header size, for reading and writing: the limit of all readers of the format.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The header key that holds text instead of a tensor.
const METADATA: &str = "__metadata__";

/// Type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The element type.
    pub dtype: DType,
    /// The dimensions, outermost first.
    pub shape: Shape,
}

impl TensorInfo {
    /// A tensor of this type and these dimensions.
    pub fn new(dtype: DType, dims: impl Into<Vec<u64>>) -> Self {
        Self { dtype, shape: Shape::new(dims) }
    }

    /// Bytes of the tensor's data, or `None` if the product overflows.
    pub fn byte_len(&self) -> Option<u64> {
        self.shape.element_count()?.checked_mul(self.dtype.size() as u64)
    }
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type and shape.
    pub info: TensorInfo,
    /// The byte range of the data, from the start of the file.
    pub range: Range<u64>,
}

/// The header of a file, checked against the file's length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The tensors by name. Their ranges are inside the file, disjoint, and as long as type and shape require.
    pub tensors: BTreeMap<String, Entry>,
    /// The text under `__metadata__`; empty when there is none.
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks a file's header.
///
/// # Errors
/// As [`Header::parse`], and `invalid_checkpoint` for a file shorter than its header. Every message names the file.
pub async fn read_header(source: &dyn ByteSource) -> Result<Header> {
    match read_and_check(source).await {
        Err(error) if error.code() == ErrorCode::InvalidCheckpoint => {
            Err(foreign::explain(source, error).await)
        }
        read => read,
    }
}

async fn read_and_check(source: &dyn ByteSource) -> Result<Header> {
    let named = |error: Error| error.context(source.name());
    let file_len = source.len();
    if file_len < 8 {
        return Err(named(Error::invalid_checkpoint(format!(
            "expected a safetensors file of at least 8 bytes but found {file_len}"
        ))));
    }
    let mut prefix = [0; 8];
    source.read_at(0, &mut prefix).await?;
    let header_len = u64::from_le_bytes(prefix);
    check_header_len(header_len, file_len).map_err(named)?;
    let mut json = zeroed(header_len).map_err(named)?;
    source.read_at(8, &mut json).await?;
    Header::parse(&json, file_len).map_err(named)
}

/// Checks the header's length before anything is allocated for it.
fn check_header_len(header_len: u64, file_len: u64) -> Result<()> {
    if header_len > MAX_HEADER_BYTES {
        return Err(Error::invalid_checkpoint(format!(
            "expected a safetensors header of at most {MAX_HEADER_BYTES} bytes but its length field says {header_len}"
        )));
    }
    if header_len > file_len - 8 {
        return Err(Error::invalid_checkpoint(format!(
            "the header's length field says {header_len} bytes but the file has only {file_len}"
        )));
    }
    Ok(())
}

impl Header {
    /// Parses `json`, the header text of a file of `file_len` bytes (it follows the 8 bytes of the length field).
    ///
    /// Unknown keys of a tensor are ignored; spaces after the JSON are padding.
    ///
    /// # Errors
    /// `unsupported_format` for an unknown data type. `invalid_checkpoint` for malformed JSON, a duplicate name, a size
    /// that overflows, or ranges that do not cover the data exactly once. Messages name the tensor.
    ///
    /// # Panics
    /// If `json` and its length field do not fit into `file_len`: the caller must have read them from that file.
    pub fn parse(json: &[u8], file_len: u64) -> Result<Self> {
        let data_start = 8 + json.len() as u64;
        let data_len = file_len.checked_sub(data_start).expect("the header lies inside the file");
        if let Err(error) = std::str::from_utf8(json) {
            return Err(Error::invalid_checkpoint(format!(
                "the header is not UTF-8 text: wrong byte at offset {}",
                8 + error.valid_up_to()
            )));
        }
        // serde_json limits nesting to 128 levels, so it cannot overflow the stack.
        let raw: RawHeader = serde_json::from_slice(json).map_err(|error| {
            let message = clipped(&error.to_string(), 400);
            Error::invalid_checkpoint(format!("the safetensors header is broken: {message}"))
        })?;
        let mut header = Self { tensors: BTreeMap::new(), metadata: raw.metadata };
        for (name, raw) in raw.tensors {
            let entry = raw.check(data_start, data_len).map_err(|error| error.context(tensor(&name)))?;
            header.tensors.insert(name, entry);
        }
        header.check_cover(data_start..file_len)?;
        Ok(header)
    }

    /// Checks that the tensors cover `data` exactly: no byte twice, none left out.
    fn check_cover(&self, data: Range<u64>) -> Result<()> {
        let mut entries: Vec<_> = self.tensors.iter().map(|(name, entry)| (&entry.range, name)).collect();
        // By the end too: an empty tensor comes before a tensor that starts at the same offset.
        sort::sort_by_key(&mut entries, |&(range, name)| (range.start, range.end, name));
        let mut end = data.start;
        let mut before = None;
        for (range, name) in entries {
            if range.start != end {
                let found = if range.start < end { "overlaps" } else { "leaves a hole after" };
                let neighbour = before.map_or_else(|| "the header".into(), |name: &String| tensor(name));
                return Err(Error::invalid_checkpoint(format!(
                    "expected data from offset {} on but found {}, which {found} {neighbour}",
                    end - data.start,
                    range.start - data.start,
                ))
                .context(tensor(name)));
            }
            end = range.end;
            before = Some(name);
        }
        if end != data.end {
            let last = before.map_or_else(|| "the header".into(), |name| tensor(name));
            return Err(Error::invalid_checkpoint(format!(
                "expected the file to end after {last} at {end} bytes but it has {}",
                data.end
            )));
        }
        Ok(())
    }
}

fn tensor(name: &str) -> String {
    format!("tensor {}", quoted(name))
}

/// The header as parsed from JSON, unchecked.
#[derive(Default)]
struct RawHeader {
    tensors: BTreeMap<String, RawEntry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawEntry {
    /// All checks that need only this tensor.
    fn check(self, data_start: u64, data_len: u64) -> Result<Entry> {
        let dtype = DType::from_name(&self.dtype).ok_or_else(|| {
            Error::unsupported_format(format!("the data type {} is not supported", quoted(&self.dtype)))
        })?;
        let info = TensorInfo { dtype, shape: Shape::new(self.shape) };
        let (begin, end) = self.data_offsets;
        if begin > end {
            return Err(Error::invalid_checkpoint(format!(
                "expected data_offsets in ascending order but found [{begin}, {end}]"
            )));
        }
        if end > data_len {
            return Err(Error::invalid_checkpoint(format!(
                "data_offsets [{begin}, {end}] reach beyond the file, which holds {data_len} bytes of data; \
                 is it truncated?"
            )));
        }
        let shape = || clipped(&info.shape.to_string(), 120);
        match info.byte_len() {
            Some(len) if len == end - begin => {}
            Some(len) => {
                return Err(Error::invalid_checkpoint(format!(
                    "{dtype} values of shape {} take {len} bytes but data_offsets [{begin}, {end}] hold {}",
                    shape(),
                    end - begin
                )));
            }
            None => {
                return Err(Error::invalid_checkpoint(format!(
                    "the size of {dtype} values of shape {} overflows",
                    shape()
                )));
            }
        }
        Ok(Entry { info, range: data_start + begin..data_start + end })
    }
}

/// Manual, because a derived map would silently keep the last of two equal names.
impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                let mut has_metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        if std::mem::replace(&mut has_metadata, true) {
                            return Err(de::Error::custom(format_args!("`{METADATA}` appears twice")));
                        }
                        // The reference library reads null as no metadata.
                        let metadata: Option<UniqueMap> = map.next_value().map_err(|error| {
                            de::Error::custom(format_args!("`{METADATA}` must map text to text: {error}"))
                        })?;
                        header.metadata = metadata.map(|UniqueMap(unique)| unique).unwrap_or_default();
                        continue;
                    }
                    let entry = map
                        .next_value()
                        .map_err(|error| de::Error::custom(format_args!("{}: {error}", tensor(&name))))?;
                    match header.tensors.entry(name) {
                        btree_map::Entry::Vacant(slot) => _ = slot.insert(entry),
                        btree_map::Entry::Occupied(slot) => {
                            let twice = tensor(slot.key());
                            return Err(de::Error::custom(format_args!("{twice} appears twice")));
                        }
                    }
                }
                Ok(header)
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A map from strings to strings without duplicate keys.
pub(super) struct UniqueMap(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UniqueVisitor;

        impl<'de> Visitor<'de> for UniqueVisitor {
            type Value = UniqueMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap, A::Error> {
                let mut unique = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map
                        .next_value::<String>()
                        .map_err(|error| de::Error::custom(format_args!("{}: {error}", quoted(&key))))?;
                    if unique.contains_key(&key) {
                        return Err(de::Error::custom(format_args!("{} appears twice", quoted(&key))));
                    }
                    unique.insert(key, value);
                }
                Ok(UniqueMap(unique))
            }
        }

        deserializer.deserialize_map(UniqueVisitor)
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::format::source::{FileSource, MemorySource};
    use crate::task::block_on;
    use proptest::prelude::*;

    fn read(file: Vec<u8>) -> Result<Header> {
        block_on(read_header(&MemorySource::new("model.safetensors", file)))
    }

    /// A file with this header and `data_len` bytes of data.
    fn file(header: &str, data_len: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data_len, 7);
        bytes
    }

    #[test]
    fn a_header_says_what_is_where() {
        let header = r#"{"__metadata__":{"format":"pt"},
            "b":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16],"note":{"unknown":["keys","are",0]}},
            "scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
            "empty":{"dtype":"I64","shape":[0,9],"data_offsets":[4,4]},
            "at the end":{"dtype":"U8","shape":[0],"data_offsets":[16,16]}}   "#;
        let start = 8 + header.len() as u64;
        let header = read(file(header, 16)).unwrap();
        let b = &header.tensors["b"];
        assert_eq!(b.info, TensorInfo::new(DType::F16, [2, 3]));
        assert_eq!(b.range, start + 4..start + 16);
        assert_eq!(header.tensors["scalar"].info.shape.element_count(), Some(1));
        assert_eq!(header.tensors["empty"].range, start + 4..start + 4);
        assert_eq!(header.metadata["format"], "pt");
        assert_eq!(read(file("{}", 0)).unwrap(), Header::default());
        assert_eq!(read(file(r#"{"__metadata__":null}"#, 0)).unwrap(), Header::default());
    }

    /// Ranges are u64 throughout, on wasm32 too: shards of 12 GB are common.
    #[test]
    fn offsets_go_beyond_32_bits() {
        let json = br#"{"big":{"dtype":"F32","shape":[3000000000],"data_offsets":[0,12000000000]}}"#;
        let header = Header::parse(json, 8 + json.len() as u64 + 12_000_000_000).unwrap();
        assert_eq!(header.tensors["big"].range.end, 8 + json.len() as u64 + 12_000_000_000);
    }

    #[test]
    fn a_hostile_header_is_an_error_that_says_where() {
        use ErrorCode::{InvalidCheckpoint, UnsupportedFormat};
        let prefix = |len: u64, rest: &[u8]| [&len.to_le_bytes()[..], rest].concat();
        let deep = format!("{}{}", r#"{"bad":"#, "[".repeat(1 << 20));
        let deep_unknown =
            format!(r#"{{"bad":{{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":{}"#, "[".repeat(1 << 20));
        let text = |header: &str, data_len| file(header, data_len);
        let one = |entry: &str, data_len| file(&format!(r#"{{"bad":{{{entry}}}}}"#), data_len);
        let two = |a: &str, bad: &str, data_len| {
            let entry = |offsets: &str| format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":[{offsets}]}}"#);
            file(&format!(r#"{{"a":{},"bad":{}}}"#, entry(a), entry(bad)), data_len)
        };
        let cases: Vec<(&str, Vec<u8>, ErrorCode, &str)> = vec![
            ("empty file", vec![], InvalidCheckpoint, "at least 8 bytes but found 0"),
            ("seven bytes", vec![0; 7], InvalidCheckpoint, "at least 8 bytes but found 7"),
            ("header of no bytes", prefix(0, b""), InvalidCheckpoint, "broken: EOF"),
            ("header past the end", prefix(3, b"{}"), InvalidCheckpoint, "3 bytes but the file has only 10"),
            ("header of 2^64-1 bytes", prefix(u64::MAX, b"{}"), InvalidCheckpoint, "18446744073709551615"),
            ("header of 100 MB + 1", prefix(100_000_001, b"{}"), InvalidCheckpoint, "at most 100000000"),
            (
                "not UTF-8",
                prefix(4, b"{\"\xff\""),
                InvalidCheckpoint,
                "not UTF-8 text: wrong byte at offset 10",
            ),
            ("not JSON", text("hello", 0), InvalidCheckpoint, "header is broken: expected value"),
            ("an array", text("[]", 0), InvalidCheckpoint, "expected an object of tensors"),
            ("two values", text("{}{}", 0), InvalidCheckpoint, "trailing characters"),
            ("cut off", text(r#"{"bad":{"dtype":"U8","#, 0), InvalidCheckpoint, "tensor `bad`: EOF"),
            ("a tower of arrays", text(&deep, 0), InvalidCheckpoint, "tensor `bad`: "),
            ("a tower in an unknown key", text(&deep_unknown, 0), InvalidCheckpoint, "tensor `bad`: "),
            (
                "metadata of numbers",
                text(r#"{"__metadata__":{"n":1}}"#, 0),
                InvalidCheckpoint,
                "`n`: invalid type",
            ),
            (
                "metadata nested",
                text(r#"{"__metadata__":{"n":{}}}"#, 0),
                InvalidCheckpoint,
                "`__metadata__` must map",
            ),
            (
                "metadata a list",
                text(r#"{"__metadata__":[]}"#, 0),
                InvalidCheckpoint,
                "`__metadata__` must map",
            ),
            (
                "metadata twice",
                text(r#"{"__metadata__":{},"__metadata__":{}}"#, 0),
                InvalidCheckpoint,
                "`__metadata__` appears twice",
            ),
            (
                "metadata key twice",
                text(r#"{"__metadata__":{"n":"1","n":"2"}}"#, 0),
                InvalidCheckpoint,
                "`n` appears twice",
            ),
            (
                "tensor twice",
                text(
                    r#"{"bad":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},
                        "b\u0061d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
                    0,
                ),
                InvalidCheckpoint,
                "tensor `bad` appears twice",
            ),
            (
                "tensor a number",
                text(r#"{"bad":1}"#, 0),
                InvalidCheckpoint,
                "tensor `bad`: invalid type: integer",
            ),
            (
                "no dtype",
                one(r#""shape":[],"data_offsets":[0,1]"#, 1),
                InvalidCheckpoint,
                "missing field `dtype`",
            ),
            (
                "no shape",
                one(r#""dtype":"U8","data_offsets":[0,1]"#, 1),
                InvalidCheckpoint,
                "missing field `shape`",
            ),
            (
                "no offsets",
                one(r#""dtype":"U8","shape":[]"#, 1),
                InvalidCheckpoint,
                "missing field `data_offsets`",
            ),
            (
                "field twice",
                one(r#""dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]"#, 1),
                InvalidCheckpoint,
                "duplicate field `dtype`",
            ),
            (
                "unknown dtype",
                one(r#""dtype":"F4\n","shape":[],"data_offsets":[0,1]"#, 1),
                UnsupportedFormat,
                r"tensor `bad`: the data type `F4\n` is not supported",
            ),
            (
                "negative dimension",
                one(r#""dtype":"U8","shape":[-1],"data_offsets":[0,1]"#, 1),
                InvalidCheckpoint,
                "tensor `bad`: invalid value: integer `-1`",
            ),
            (
                "fractional dimension",
                one(r#""dtype":"U8","shape":[1.0],"data_offsets":[0,1]"#, 1),
                InvalidCheckpoint,
                "tensor `bad`: invalid type: floating point",
            ),
            (
                "dimension of 2^64",
                one(r#""dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]"#, 1),
                InvalidCheckpoint,
                "tensor `bad`: ",
            ),
            (
                "shape overflows",
                one(r#""dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]"#, 0),
                InvalidCheckpoint,
                "overflows",
            ),
            (
                "bytes overflow",
                one(r#""dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]"#, 0),
                InvalidCheckpoint,
                "overflows",
            ),
            (
                "three offsets",
                one(r#""dtype":"U8","shape":[],"data_offsets":[0,1,2]"#, 1),
                InvalidCheckpoint,
                "tensor `bad`: ",
            ),
            (
                "offsets reversed",
                one(r#""dtype":"U8","shape":[1],"data_offsets":[1,0]"#, 1),
                InvalidCheckpoint,
                "ascending order but found [1, 0]",
            ),
            (
                "offsets past the end",
                one(r#""dtype":"U8","shape":[2],"data_offsets":[0,2]"#, 1),
                InvalidCheckpoint,
                "[0, 2] reach beyond the file, which holds 1 bytes of data",
            ),
            (
                "offsets of 2^64-1",
                one(
                    r#""dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]"#,
                    1,
                ),
                InvalidCheckpoint,
                "reach beyond the file",
            ),
            (
                "too few bytes",
                one(r#""dtype":"F32","shape":[2],"data_offsets":[0,7]"#, 7),
                InvalidCheckpoint,
                "shape [2] take 8 bytes but data_offsets [0, 7] hold 7",
            ),
            (
                "too many bytes",
                one(r#""dtype":"BF16","shape":[2],"data_offsets":[0,5]"#, 5),
                InvalidCheckpoint,
                "take 4 bytes but data_offsets [0, 5] hold 5",
            ),
            ("overlap", two("0,4", "2,6", 6), InvalidCheckpoint, "found 2, which overlaps tensor `a`"),
            ("same bytes", two("0,4", "0,4", 4), InvalidCheckpoint, "overlaps tensor `a`"),
            ("hole", two("0,4", "5,9", 9), InvalidCheckpoint, "which leaves a hole after tensor `a`"),
            (
                "hole at the start",
                two("9,13", "1,5", 13),
                InvalidCheckpoint,
                "leaves a hole after the header",
            ),
            ("bytes left over", two("0,4", "4,8", 9), InvalidCheckpoint, "to end after tensor `bad`"),
            ("data without tensors", text("{}", 1), InvalidCheckpoint, "to end after the header"),
        ];
        let mut wrong = Vec::new();
        for (case, file, code, expected) in cases {
            let holds = |word: &[u8]| file.windows(word.len()).any(|window| window == word);
            let place = if holds(b"\"bad\":") { "`bad`" } else { "" };
            let error = read(file.clone()).expect_err(case);
            let message = error.to_string();
            let right = error.code() == code
                && message.starts_with("model.safetensors: ")
                && message.contains(expected)
                && message.contains(place);
            if !right {
                wrong.push(format!(
                    "{case}: expected {code:?}, {expected:?} and {place:?} but found {error:?}"
                ));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn messages_stay_short_whatever_the_file_says() {
        let name = "n".repeat(1 << 20);
        for entry in [
            r#"{"dtype":"U8","shape":[1],"data_offsets":[1,0]}"#.to_owned(),
            format!(r#"{{"dtype":"{name}","shape":[],"data_offsets":[0,0]}}"#),
            format!(r#"{{"dtype":"U8","shape":[{}0],"data_offsets":[0,1]}}"#, "1,".repeat(1 << 19)),
            format!(r#"{{"dtype":"U8","shape":["{name}"],"data_offsets":[0,1]}}"#),
        ] {
            let error = read(file(&format!(r#"{{"{name}":{entry}}}"#), 1)).unwrap_err().to_string();
            assert!(error.len() < 700, "{} bytes: {error:.700}", error.len());
        }
    }

    #[test]
    fn real_files_are_read() {
        let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/models");
        for (model, tensors, dtype) in [
            ("stories260K", 47, DType::F32),
            ("stories260K-f16", 47, DType::F16),
            ("story-llama-0.66M", 20, DType::F32),
        ] {
            let path = format!("{models}/{model}/model.safetensors");
            let Ok(source) = FileSource::open(&path) else {
                println!("skipped: {model} is not here");
                continue;
            };
            let header = block_on(read_header(&source)).unwrap();
            assert_eq!(header.tensors.len(), tensors, "{model}");
            assert!(header.tensors.values().all(|entry| entry.info.dtype == dtype), "{model}");
            assert_eq!(header.metadata["format"], "pt");
            agree_with_oracle(&std::fs::read(&path).unwrap(), Ok(&header));
        }
    }

    /// Files written by other tools, which this crate must exchange files with.
    #[test]
    fn files_of_other_tools_are_read() {
        let Ok(peers) = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/peers")) else {
            println!("skipped: files of other tools are not here");
            return;
        };
        let mut read = 0;
        for folder in peers {
            let path = folder.unwrap().path().join("model.safetensors");
            if let Ok(source) = FileSource::open(&path) {
                let header = block_on(read_header(&source)).unwrap();
                agree_with_oracle(&std::fs::read(&path).unwrap(), Ok(&header));
                read += 1;
            }
        }
        assert!(read > 0);
    }

    /// Compares with the reference library's reading of the same bytes.
    fn agree_with_oracle(file: &[u8], ours: Result<&Header, &Error>) {
        match (::safetensors::SafeTensors::deserialize(file), ours) {
            (Ok(theirs), Ok(ours)) => {
                assert_eq!(theirs.len(), ours.tensors.len());
                for (name, view) in theirs.iter() {
                    let Entry { info, range } = &ours.tensors[name];
                    assert_eq!(view.dtype().to_string(), info.dtype.name());
                    let dims: Vec<_> = view.shape().iter().map(|dim| *dim as u64).collect();
                    assert_eq!(dims, info.shape.dims());
                    assert_eq!(view.data(), &file[range.start as usize..range.end as usize]);
                }
            }
            (Err(_), Err(_)) => {}
            (Ok(_), Err(ours)) => {
                // We refuse more than the library: duplicate keys (it keeps the last) and types that no weight has.
                let message = ours.to_string();
                assert!(
                    message.contains("twice") || ours.code() == ErrorCode::UnsupportedFormat,
                    "{message}"
                );
            }
            (Err(theirs), Ok(_)) => panic!("the library refuses it: {theirs}"),
        }
    }

    const TYPES: [&str; 8] = ["U8", "BOOL", "F8_E4M3", "F16", "BF16", "F32", "I64", "F4"];

    /// One edit of an otherwise valid header.
    #[derive(Clone, Debug)]
    enum Edit {
        DType(usize, usize),
        Dim(usize, u64),
        Begin(usize, i64),
        End(usize, i64),
        Swap(usize, usize),
        Rename(usize, usize),
        Length(i64),
    }

    fn edits() -> impl Strategy<Value = Vec<Edit>> {
        let edit = prop_oneof![
            (0..6usize, 0..TYPES.len()).prop_map(|(at, dtype)| Edit::DType(at, dtype)),
            (0..6usize, prop_oneof![0..5u64, Just(1 << 63), Just(u64::MAX)])
                .prop_map(|(at, dim)| Edit::Dim(at, dim)),
            (0..6usize, -5..5i64).prop_map(|(at, by)| Edit::Begin(at, by)),
            (0..6usize, -5..5i64).prop_map(|(at, by)| Edit::End(at, by)),
            (0..6usize, 0..6usize).prop_map(|(a, b)| Edit::Swap(a, b)),
            (0..6usize, 0..6usize).prop_map(|(a, b)| Edit::Rename(a, b)),
            (-3..3i64).prop_map(Edit::Length),
        ];
        prop::collection::vec(edit, 0..3)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        #[test]
        fn arbitrary_bytes_never_panic_and_the_library_agrees(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            header_len in prop::option::of(0u64..220),
        ) {
            let mut bytes = bytes;
            if let (Some(len), Some(field)) = (header_len, bytes.first_chunk_mut()) {
                *field = len.to_le_bytes();
            }
            agree_with_oracle(&bytes, read(bytes.clone()).as_ref());
        }

        #[test]
        fn nearly_sound_headers_get_the_verdict_of_the_library(
            tensors in prop::collection::vec((0..TYPES.len() - 1, prop::collection::vec(0..4u64, 0..3)), 0..6),
            edits in edits(),
        ) {
            let mut end = 0i64;
            let mut raw: Vec<_> = tensors.into_iter().enumerate().map(|(index, (dtype, dims))| {
                let begin = end;
                let size = DType::from_name(TYPES[dtype]).unwrap().size() as u64;
                end += (dims.iter().product::<u64>() * size) as i64;
                (format!("t{index}"), TYPES[dtype], dims, begin, end)
            }).collect();
            for edit in edits {
                let count = raw.len();
                if let Edit::Length(by) = edit { end += by; continue; }
                if count == 0 { continue; }
                match edit {
                    Edit::DType(at, dtype) => raw[at % count].1 = TYPES[dtype],
                    Edit::Dim(at, dim) => match raw[at % count].2.first_mut() {
                        Some(first) => *first = dim,
                        None => raw[at % count].2.push(dim),
                    },
                    Edit::Begin(at, by) => raw[at % count].3 += by,
                    Edit::End(at, by) => raw[at % count].4 += by,
                    Edit::Swap(a, b) => raw.swap(a % count, b % count),
                    Edit::Rename(a, b) => raw[a % count].0 = format!("t{b}"),
                    Edit::Length(_) => unreachable!("handled above"),
                }
            }
            let entries: Vec<_> = raw.iter().map(|(name, dtype, dims, begin, end)| {
                format!(r#""{name}":{{"dtype":"{dtype}","shape":{dims:?},"data_offsets":[{begin},{end}]}}"#)
            }).collect();
            let bytes = file(&format!("{{{}}}", entries.join(",")), end.max(0) as usize);
            agree_with_oracle(&bytes, read(bytes.clone()).as_ref());
        }
    }
}
