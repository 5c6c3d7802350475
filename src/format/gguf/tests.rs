//! Tests of the container: header parsing, refusal of invalid headers, and round trips through the writer.

use super::value::write_string;
use super::*;
use crate::error::ErrorCode;
use crate::format::sink::{MemorySinkDir, SinkDir};
use crate::format::source::MemorySource;
use crate::task::block_on;
use proptest::prelude::*;

const FILE: &str = "model.gguf";

fn read(bytes: Vec<u8>) -> Result<Header> {
    block_on(read_header(&MemorySource::new(FILE, bytes)))
}

/// A file that a test corrupts.
#[derive(Clone)]
struct Parts {
    magic: [u8; 4],
    version: u32,
    tensor_count: Option<u64>,
    entry_count: Option<u64>,
    /// Keys, and encoded values with their type numbers.
    entries: Vec<(String, Vec<u8>)>,
    /// Name, dimensions innermost first, type, offset.
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    alignment: usize,
    data_len: usize,
}

impl Parts {
    fn sound() -> Self {
        Self {
            magic: MAGIC,
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: vec![entry("general.architecture", &Value::String("llama".into()))],
            tensors: vec![("a".into(), vec![32, 2], 8, 0), ("b".into(), vec![3], 0, 96)],
            alignment: 32,
            data_len: 108,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            write_string(key, &mut out);
            out.extend(value);
        }
        for (name, dims, tensor_type, offset) in &self.tensors {
            write_string(name, &mut out);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor_type.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment) + self.data_len, 7);
        out
    }
}

fn entry(key: &str, value: &Value) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    value.write(&mut bytes);
    (key.to_owned(), bytes)
}

#[test]
fn a_header_says_what_is_where() {
    for version in [2, 3] {
        let bytes = Parts { version, ..Parts::sound() }.bytes();
        let start = bytes.len() as u64 - 108;
        let header = read(bytes).unwrap();
        assert_eq!(header.metadata["general.architecture"].as_str(), Some("llama"));
        let a = &header.tensors["a"];
        // Outermost first; the file stores them in reverse.
        assert_eq!((a.tensor_type, &a.dims[..]), (TensorType::Q8_0, &[2, 32][..]));
        assert_eq!(a.range, start..start + 68);
        assert_eq!(header.tensors["b"].range, start + 96..start + 108);
    }
    let mut wide = Parts::sound();
    wide.entries.push(entry(ALIGNMENT, &Value::U32(64)));
    wide.alignment = 64;
    wide.tensors[1].3 = 128;
    wide.data_len = 140;
    let bytes = wide.bytes();
    let end = bytes.len() as u64;
    assert_eq!(read(bytes).unwrap().tensors["b"].range.end, end);
}

#[test]
fn every_kind_of_value_is_read_and_written() {
    let nested = Array::Arrays(vec![Array::U8(vec![1, 2]), Array::String(vec!["x".into(), String::new()])]);
    let values = [
        Value::U8(200),
        Value::I8(-3),
        Value::U16(60_000),
        Value::I16(-300),
        Value::U32(4_000_000_000),
        Value::I32(-5),
        Value::F32(1e-5),
        Value::Bool(true),
        Value::String("grüße\n".into()),
        Value::U64(u64::MAX),
        Value::I64(i64::MIN),
        Value::F64(0.1),
        Value::Array(Array::U16(vec![1, 2])),
        Value::Array(Array::I16(vec![-1])),
        Value::Array(Array::I8(vec![-1, 5])),
        Value::Array(Array::U32(vec![7])),
        Value::Array(Array::I32(vec![-7, 0])),
        Value::Array(Array::F32(vec![0.5, -1000.0])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(Array::U64(vec![])),
        Value::Array(Array::I64(vec![-1])),
        Value::Array(Array::F64(vec![0.25])),
        Value::Array(nested),
    ];
    let mut parts = Parts::sound();
    parts.entries = values.iter().enumerate().map(|(i, value)| entry(&format!("k{i:02}"), value)).collect();
    let header = read(parts.bytes()).unwrap();
    assert!(header.metadata.values().eq(values.iter()), "{:?}", header.metadata);
    assert_eq!(header.metadata["k06"].as_f64(), Some(1e-5), "an f32 means its shortest decimal");
    assert_eq!(header.metadata["k00"].as_u64(), Some(200));
    assert_eq!(header.metadata["k05"].as_u64(), None);
}

/// A vocabulary makes the header longer than the first read.
#[test]
fn long_headers_are_read_in_pieces() {
    let tokens: Vec<String> = (0..60_000).map(|i| format!("token{i}")).collect();
    let mut parts = Parts::sound();
    parts.entries.push(entry("tokens", &Value::Array(Array::String(tokens.clone()))));
    let bytes = parts.bytes();
    assert!(bytes.len() as u64 > 4 * FIRST_PIECE);
    let header = read(bytes).unwrap();
    assert_eq!(header.metadata["tokens"].as_array().unwrap().as_strings().unwrap(), tokens);
    assert_eq!(header.tensors.len(), 2);
}

#[test]
fn a_hostile_header_is_an_error_that_says_where() {
    use ErrorCode::{InvalidCheckpoint, UnsupportedFormat};
    type Spoil = fn(&mut Parts);
    let deep = || {
        let mut bytes = 9u32.to_le_bytes().to_vec();
        for _ in 0..1000 {
            bytes.extend(9u32.to_le_bytes());
            bytes.extend(1u64.to_le_bytes());
        }
        bytes
    };
    let cases: [(&str, ErrorCode, Spoil); 27] = [
        ("it begins with \"ggml\"", InvalidCheckpoint, |p| p.magic = *b"ggml"),
        ("found version 1, which was never stable", UnsupportedFormat, |p| p.version = 1),
        ("found version 4", UnsupportedFormat, |p| p.version = 4),
        ("found a big-endian file", UnsupportedFormat, |p| p.version = 3u32.swap_bytes()),
        ("expected 18446744073709551615 tensors", InvalidCheckpoint, |p| p.tensor_count = Some(u64::MAX)),
        ("metadata entries at offset", InvalidCheckpoint, |p| p.entry_count = Some(1 << 40)),
        ("the file ends", InvalidCheckpoint, |p| p.tensor_count = Some(9)),
        ("key `k`: expected a value type from 0 to 12 but found `13`", InvalidCheckpoint, |p| {
            p.entries.push(("k".into(), 13u32.to_le_bytes().to_vec()));
        }),
        ("key `k`: expected a boolean, 0 or 1, but found 2", InvalidCheckpoint, |p| {
            p.entries.push(("k".into(), [&7u32.to_le_bytes()[..], &[2]].concat()));
        }),
        ("key `k`: expected 18446744073709551615 bytes", InvalidCheckpoint, |p| {
            p.entries.push(("k".into(), [&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat()));
        }),
        ("key `k`: expected 9223372036854775808 array elements", InvalidCheckpoint, |p| {
            let array = [&9u32.to_le_bytes()[..], &6u32.to_le_bytes(), &(1u64 << 63).to_le_bytes()].concat();
            p.entries.push(("k".into(), array));
        }),
        ("key `k`: expected 100 array elements", InvalidCheckpoint, |p| {
            let array = [&9u32.to_le_bytes()[..], &8u32.to_le_bytes(), &100u64.to_le_bytes()].concat();
            p.entries.push(("k".into(), array));
        }),
        ("key `k`: the text at offset", InvalidCheckpoint, |p| {
            p.entries.push(("k".into(), [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0xff]].concat()));
        }),
        ("the key `general.architecture` appears twice", InvalidCheckpoint, |p| {
            p.entries.push(p.entries[0].clone());
        }),
        ("key `general.alignment`: expected a power of two but found U32(0)", InvalidCheckpoint, |p| {
            p.entries.push(entry(ALIGNMENT, &Value::U32(0)));
        }),
        ("expected a power of two but found U32(24)", InvalidCheckpoint, |p| {
            p.entries.push(entry(ALIGNMENT, &Value::U32(24)));
        }),
        ("key `general.alignment`: expected a power of two but found String", InvalidCheckpoint, |p| {
            p.entries.push(entry(ALIGNMENT, &Value::String("32".into())));
        }),
        ("tensor `a`: expected at most 4 dimensions but found 5", InvalidCheckpoint, |p| {
            p.tensors[0].1 = vec![32, 1, 1, 1, 1];
        }),
        ("tensor `a`: the tensor type with number 4 is not known", UnsupportedFormat, |p| p.tensors[0].2 = 4),
        ("tensor `b`: expected an offset that is a multiple of 32 but found 100", InvalidCheckpoint, |p| {
            p.tensors[1].3 = 100;
        }),
        ("tensor `a`: expected rows of whole Q8_0 blocks", InvalidCheckpoint, |p| {
            p.tensors[0].1 = vec![48, 2]
        }),
        ("tensor `a`: the size of Q8_0 values", InvalidCheckpoint, |p| {
            p.tensors[0].1 = vec![32, u64::MAX];
        }),
        ("tensor `b`: its 12 bytes from offset", InvalidCheckpoint, |p| p.data_len = 107),
        ("tensor `b`: the size of F32 values of shape [3] overflows", InvalidCheckpoint, |p| {
            p.tensors[1].3 = u64::MAX - 31;
        }),
        ("tensor `b`: its data at offset", InvalidCheckpoint, |p| p.tensors[1].3 = 64),
        ("the tensor `a` appears twice", InvalidCheckpoint, |p| p.tensors[1].0 = "a".into()),
        ("expected arrays nested at most 4 deep", InvalidCheckpoint, |_| ()),
    ];
    for (message, code, spoil) in cases {
        let mut parts = Parts::sound();
        spoil(&mut parts);
        if message.contains("nested") {
            parts.entries.push(("k".into(), deep()));
        }
        let error = read(parts.bytes()).expect_err(message);
        assert!(error.to_string().contains(message), "expected {message:?} but found {error}");
        assert!(error.to_string().starts_with(FILE), "{error}");
        assert_eq!(error.code(), code, "{error}");
    }
    let whole = Parts::sound().bytes();
    for len in 0..whole.len() {
        let error = read(whole[..len].to_vec()).expect_err("a truncated file");
        assert_eq!(error.code(), InvalidCheckpoint, "{len} bytes: {error}");
    }
}

fn write(
    metadata: &BTreeMap<String, Value>,
    tensors: &[(String, TensorType, Vec<u64>)],
    data: impl Fn(usize) -> Vec<u8>,
) -> Result<Vec<u8>> {
    let dir = MemorySinkDir::new("out");
    block_on(async {
        let mut writer = GgufWriter::begin(dir.create(FILE).await?, metadata, tensors.to_vec()).await?;
        for (index, (name, ..)) in tensors.iter().enumerate() {
            for piece in data(index).chunks(5) {
                writer.write(name, piece).await?;
            }
        }
        writer.finish().await
    })?;
    Ok(dir.to_dir().get(FILE).unwrap().to_vec())
}

#[test]
fn a_writer_refuses_what_no_reader_would_take() {
    let none = BTreeMap::new();
    let alignment = BTreeMap::from([(ALIGNMENT.to_owned(), Value::U32(32))]);
    let one = |tensor_type, dims: &[u64]| vec![("a".to_owned(), tensor_type, dims.to_vec())];
    let twice = [one(TensorType::F32, &[1]), one(TensorType::F32, &[1])].concat();
    let cases = [
        (&alignment, vec![], vec![], "is set by the writer"),
        (&none, twice, vec![0; 4], "tensor `a`: the name is given twice"),
        (&none, one(TensorType::Q4_0, &[2, 33]), vec![], "rows of 33 elements are not whole Q4_0 blocks"),
        (&none, one(TensorType::F32, &[1, 1, 1, 1, 1]), vec![], "expected one to four dimensions"),
        (&none, one(TensorType::F32, &[u64::MAX, 4]), vec![], "its size overflows"),
        (
            &none,
            one(TensorType::F32, &[2]),
            vec![0; 4],
            "expected 8 bytes before the end of the file but found 4",
        ),
        (&none, one(TensorType::F32, &[2]), vec![0; 9], "expected 8 bytes in all but found at least 9"),
    ];
    for (metadata, tensors, data, message) in cases {
        let error = write(metadata, &tensors, |_| data.clone()).expect_err(message);
        assert!(error.to_string().contains(message), "expected {message:?} but found {error}");
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i64>().prop_map(Value::I64),
        any::<bool>().prop_map(Value::Bool),
        ".{0,8}".prop_map(Value::String),
        prop::collection::vec(-1e9f32..1e9, 0..9).prop_map(|values| Value::Array(Array::F32(values))),
        prop::collection::vec(".{0,4}", 0..9).prop_map(|values| Value::Array(Array::String(values))),
    ]
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_again(
        metadata in prop::collection::btree_map("[a-z.]{1,8}", any_value(), 0..6),
        tensors in prop::collection::btree_map(
            "[a-z.]{1,8}",
            (prop::sample::select(vec![TensorType::F32, TensorType::F16, TensorType::Q4_0, TensorType::TQ2_0]), 0u64..3, 1u64..4),
            0..5,
        ),
    ) {
        let tensors: Vec<_> = tensors
            .into_iter()
            .map(|(name, (tensor_type, blocks, rows))| (name, tensor_type, vec![rows, blocks * tensor_type.block_elements()]))
            .collect();
        let len = |index: usize| {
            let (_, tensor_type, dims) = &tensors[index];
            (dims[0] * tensor_type.row_bytes(dims[1]).unwrap()) as usize
        };
        let bytes = write(&metadata, &tensors, |index| vec![index as u8 + 1; len(index)]).unwrap();
        let header = read(bytes.clone()).unwrap();
        prop_assert_eq!(&header.metadata, &metadata);
        prop_assert_eq!(header.tensors.len(), tensors.len());
        for (index, (name, tensor_type, dims)) in tensors.iter().enumerate() {
            let entry = &header.tensors[name];
            prop_assert_eq!((&entry.tensor_type, &entry.dims), (tensor_type, dims));
            prop_assert!(bytes[entry.range.start as usize..entry.range.end as usize].iter().all(|b| *b == index as u8 + 1));
            prop_assert_eq!((entry.range.end - entry.range.start) as usize, len(index));
        }
    }

    #[test]
    fn flipped_bytes_never_panic(at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        let mut bytes = Parts::sound().bytes();
        let index = at.index(bytes.len());
        bytes[index] = byte;
        let _ = read(bytes.clone());
        bytes.truncate(cut.index(bytes.len()));
        let _ = read(bytes);
    }
}
