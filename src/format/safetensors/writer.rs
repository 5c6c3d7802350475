//! Writes a safetensors file front to back, tensor by tensor, in pieces of any size.
//!
//! The header comes first, so the types and shapes of all tensors must be known before the first data byte. The data
//! never has to be in memory at once. Not here: what is written (`layout`).

use super::{MAX_HEADER_BYTES, METADATA, TensorInfo, tensor};
use crate::error::{Error, Result};
use crate::format::sink::ByteSink;
use crate::sort;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// Sorts tensors into the data order of [`SafetensorsWriter`].
///
/// The order is by name if every tensor then starts at a multiple of its element size, which some readers require.
/// Otherwise it is by descending element size, then by name, which always aligns. By name, the tensors of a module are
/// adjacent, so its writer need not hold them back; this works for practically all real checkpoints. The order depends
/// only on the tensors.
///
/// # Errors
/// `invalid_argument`, naming the tensor, if a size overflows.
pub fn write_order(tensors: &mut [(String, TensorInfo)]) -> Result<()> {
    sort::sort_by(tensors, |(a, _), (b, _)| a.cmp(b));
    let mut offset = 0u64;
    let mut aligned = true;
    for (name, info) in &*tensors {
        aligned &= offset.is_multiple_of(info.dtype.size() as u64);
        let end = info.byte_len().and_then(|len| offset.checked_add(len));
        offset = end.ok_or_else(|| {
            Error::invalid_argument(format!(
                "the size of {} values of shape {} overflows",
                info.dtype, info.shape
            ))
            .context(tensor(name))
        })?;
    }
    if !aligned {
        // The sort is stable, so names stay sorted within a size.
        sort::sort_by_key(tensors, |(_, info)| std::cmp::Reverse(info.dtype.size()));
    }
    Ok(())
}

/// A safetensors file being written. The same tensors and metadata give the same file.
///
/// Dropping it unfinished leaves no file.
pub struct SafetensorsWriter {
    sink: Box<dyn ByteSink>,
    order: Vec<String>,
    /// Bytes of each tensor, in the order of `order`.
    lens: Vec<u64>,
    /// Index into `order` of the tensor being written; `order.len()` at the end.
    current: usize,
    /// Bytes of the current tensor written so far.
    written: u64,
}

impl SafetensorsWriter {
    /// Sorts the tensors by [`write_order`] and writes the header.
    ///
    /// `transformers` reads only files whose metadata has a `format`, such as `pt`; the caller must add it.
    ///
    /// # Errors
    /// `invalid_argument` for a duplicate name, the name `__metadata__`, a size that overflows, or a header above the
    /// readers' size limit; errors of the sink.
    pub async fn begin(
        mut sink: Box<dyn ByteSink>,
        mut tensors: Vec<(String, TensorInfo)>,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self> {
        write_order(&mut tensors)?;
        let header = header_bytes(&tensors, &metadata)?;
        let lens = tensors.iter().map(|(_, info)| info.byte_len().expect("write_order checked it")).collect();
        let order: Vec<_> = tensors.into_iter().map(|(name, _)| name).collect();
        let mut sorted: Vec<_> = order.iter().collect();
        sort::sort(&mut sorted);
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::invalid_argument("the name is given twice").context(tensor(pair[0])));
        }
        if let Some(name) = order.iter().find(|name| *name == METADATA) {
            return Err(Error::invalid_argument("the name is reserved by the format").context(tensor(name)));
        }
        sink.write(&header).await?;
        let mut writer = Self { sink, order, lens, current: 0, written: 0 };
        writer.skip_complete();
        Ok(writer)
    }

    /// The tensors' names in data order.
    pub fn order(&self) -> &[String] {
        &self.order
    }

    /// Appends `bytes` to the tensor `name`, which must be the first incomplete one in [`order`](Self::order).
    ///
    /// # Errors
    /// `invalid_argument`, naming the tensor, if another tensor is due or this one becomes too long; errors of the
    /// sink.
    pub async fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            // Tensors without elements were skipped already; callers may write them anyway.
            return Ok(());
        }
        let Some(due) = self.order.get(self.current) else {
            return Err(Error::invalid_argument("expected no more data: every tensor is complete")
                .context(tensor(name)));
        };
        if due != name {
            return Err(Error::invalid_argument(format!("expected data of {} first", tensor(due)))
                .context(tensor(name)));
        }
        let len = self.lens[self.current];
        let left = len - self.written;
        if bytes.len() as u64 > left {
            return Err(Error::invalid_argument(format!(
                "expected {len} bytes in all but found at least {}",
                self.written + bytes.len() as u64
            ))
            .context(tensor(name)));
        }
        self.sink.write(bytes).await?;
        self.written += bytes.len() as u64;
        self.skip_complete();
        Ok(())
    }

    /// Makes the file appear under its name.
    ///
    /// # Errors
    /// `invalid_argument`, naming the tensor, if data is missing; errors of the sink.
    pub async fn finish(self) -> Result<()> {
        if let Some(due) = self.order.get(self.current) {
            let expected = self.lens[self.current];
            return Err(Error::invalid_argument(format!(
                "expected {expected} bytes before the end of the file but found {}",
                self.written
            ))
            .context(tensor(due)));
        }
        self.sink.finish().await
    }

    /// Moves on to the next tensor that needs data.
    fn skip_complete(&mut self) {
        while self.lens.get(self.current) == Some(&self.written) {
            self.current += 1;
            self.written = 0;
        }
    }
}

impl fmt::Debug for SafetensorsWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SafetensorsWriter")
            .field("due", &self.order.get(self.current))
            .finish_non_exhaustive()
    }
}

/// The length field and the JSON, padded with spaces so that the data starts at a multiple of 8.
fn header_bytes(tensors: &[(String, TensorInfo)], metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 8];
    serde_json::to_writer(&mut bytes, &HeaderText { tensors, metadata })
        .map_err(|error| Error::invalid_argument(format!("the header cannot be written: {error}")))?;
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    let len = bytes.len() as u64 - 8;
    if len > MAX_HEADER_BYTES {
        return Err(Error::invalid_argument(format!(
            "expected a safetensors header of at most {MAX_HEADER_BYTES} bytes but these tensors take {len}"
        )));
    }
    bytes[..8].copy_from_slice(&len.to_le_bytes());
    Ok(bytes)
}

/// The header as JSON: metadata first, then the tensors in data order.
struct HeaderText<'a> {
    tensors: &'a [(String, TensorInfo)],
    metadata: &'a BTreeMap<String, String>,
}

impl Serialize for HeaderText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct EntryText<'a> {
            dtype: &'a str,
            shape: &'a [u64],
            data_offsets: (u64, u64),
        }

        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, self.metadata)?;
        }
        let mut begin = 0;
        for (name, info) in self.tensors {
            let end = begin + info.byte_len().expect("write_order checked it");
            let (dtype, shape) = (info.dtype.name(), info.shape.dims());
            map.serialize_entry(name, &EntryText { dtype, shape, data_offsets: (begin, end) })?;
            begin = end;
        }
        map.end()
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::error::ErrorCode;
    use crate::format::safetensors::read_header;
    use crate::format::sink::{MemorySinkDir, SinkDir};
    use crate::format::source::{ByteSource, MemorySource};
    use crate::task::block_on;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const FILE: &str = "model.safetensors";

    type Described<'a> = (&'a str, DType, &'a [u64]);

    fn begin(
        dir: &MemorySinkDir,
        tensors: &[Described<'_>],
        metadata: &BTreeMap<String, String>,
    ) -> Result<SafetensorsWriter> {
        let tensors = tensors
            .iter()
            .map(|(name, dtype, dims)| ((*name).to_owned(), TensorInfo::new(*dtype, *dims)))
            .collect();
        let sink = block_on(dir.create(FILE))?;
        block_on(SafetensorsWriter::begin(sink, tensors, metadata.clone()))
    }

    #[test]
    fn tensors_are_laid_out_by_name_where_that_aligns_them() {
        let cases: [(&[Described<'_>], &[&str]); 4] = [
            (
                &[
                    ("m.scale", DType::F16, &[4]),
                    ("m.packed", DType::I32, &[2]),
                    ("m.shape", DType::I64, &[2]),
                ],
                &["m.packed", "m.scale", "m.shape"],
            ),
            // An odd number of half-precision values before 4-byte words.
            (
                &[
                    ("c", DType::I32, &[1]),
                    ("b", DType::F16, &[3]),
                    ("a", DType::F16, &[2]),
                    ("d", DType::U8, &[1]),
                ],
                &["c", "a", "b", "d"],
            ),
            (&[("b", DType::U8, &[3]), ("a", DType::U8, &[0]), ("c", DType::Bool, &[])], &["a", "b", "c"]),
            (&[], &[]),
        ];
        for (tensors, expected) in cases {
            for rotation in 0..tensors.len().max(1) {
                let mut shuffled = tensors.to_vec();
                shuffled.rotate_left(rotation);
                let writer = begin(&MemorySinkDir::new("out"), &shuffled, &BTreeMap::new()).unwrap();
                assert_eq!(writer.order(), expected);
            }
        }
    }

    /// Compares byte for byte, so that a change of the layout is noticed.
    #[test]
    fn a_file_is_these_bytes() {
        let dir = MemorySinkDir::new("out");
        let metadata = BTreeMap::from([("format".into(), "pt".into()), ("a \"b\"".into(), "ü".into())]);
        let mut writer =
            begin(&dir, &[("y", DType::U8, &[3]), ("x", DType::F16, &[1, 2])], &metadata).unwrap();
        block_on(writer.write("x", &[1, 2, 3])).unwrap();
        block_on(writer.write("x", &[4])).unwrap();
        block_on(writer.write("y", &[5, 6, 7])).unwrap();
        block_on(writer.finish()).unwrap();
        let json = concat!(
            r#"{"__metadata__":{"a \"b\"":"ü","format":"pt"},"x":{"dtype":"F16","shape":[1,2],"data_offsets":[0,4]},"#,
            r#""y":{"dtype":"U8","shape":[3],"data_offsets":[4,7]}}"#,
        );
        let mut expected = (json.len().next_multiple_of(8) as u64).to_le_bytes().to_vec();
        expected.extend_from_slice(json.as_bytes());
        expected.resize(expected.len().next_multiple_of(8), b' ');
        expected.extend_from_slice(&[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(**dir.to_dir().get(FILE).unwrap(), expected);
    }

    #[test]
    fn mistakes_name_the_tensor_and_leave_no_file() {
        let dir = MemorySinkDir::new("out");
        let metadata = BTreeMap::new();
        let refused: [(&[Described<'_>], &str); 4] = [
            (&[("a", DType::U8, &[1]), ("a", DType::F32, &[1])], "tensor `a`: the name is given twice"),
            (&[("__metadata__", DType::U8, &[1])], "reserved"),
            (&[("big", DType::F32, &[1 << 62])], "tensor `big`: the size"),
            (&[("half", DType::U8, &[1 << 63]), ("rest", DType::U8, &[1 << 63])], "tensor `rest`: the size"),
        ];
        for (tensors, expected) in refused {
            let error = begin(&dir, tensors, &metadata).err().unwrap();
            assert_eq!(error.code(), ErrorCode::InvalidArgument);
            assert!(error.to_string().contains(expected), "{error}");
        }
        let start = || begin(&dir, &[("a", DType::U8, &[2]), ("b", DType::U8, &[2])], &metadata).unwrap();
        let late = [
            (block_on(start().write("b", &[1])), "tensor `b`: expected data of tensor `a` first"),
            (
                block_on(start().write("a", &[1, 2, 3])),
                "tensor `a`: expected 2 bytes in all but found at least 3",
            ),
            (
                block_on(start().finish()),
                "tensor `a`: expected 2 bytes before the end of the file but found 0",
            ),
        ];
        for (result, expected) in late {
            assert_eq!(result.unwrap_err().to_string(), expected);
        }
        let mut writer = start();
        block_on(writer.write("a", &[1, 2])).unwrap();
        assert!(block_on(writer.write("a", &[3])).is_err());
        block_on(writer.write("b", &[1, 2])).unwrap();
        let error = block_on(writer.write("b", &[3])).unwrap_err();
        assert!(error.to_string().contains("every tensor is complete"), "{error}");
        drop(writer);
        assert_eq!(dir.to_dir().names().count(), 0);
    }

    const TYPES: [(DType, ::safetensors::Dtype); 6] = [
        (DType::U8, ::safetensors::Dtype::U8),
        (DType::F16, ::safetensors::Dtype::F16),
        (DType::BF16, ::safetensors::Dtype::BF16),
        (DType::I32, ::safetensors::Dtype::I32),
        (DType::F32, ::safetensors::Dtype::F32),
        (DType::I64, ::safetensors::Dtype::I64),
    ];

    /// Names with every character that JSON escapes, all types, small shapes.
    fn any_tensors() -> impl Strategy<Value = BTreeMap<String, (usize, Vec<u64>)>> {
        let name = prop_oneof!["[a-c.]{0,6}", "\\PC{0,6}", any::<String>()];
        let name = name.prop_filter("reserved", |name| name != METADATA);
        prop::collection::btree_map(name, (0..TYPES.len(), prop::collection::vec(0..5u64, 0..4)), 0..8)
    }

    fn any_metadata() -> impl Strategy<Value = BTreeMap<String, String>> {
        prop::collection::btree_map(any::<String>(), any::<String>(), 0..4)
    }

    fn data(name: &str, len: u64) -> Vec<u8> {
        (0..len).map(|index| (index as u8).wrapping_mul(31).wrapping_add(name.len() as u8)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        #[test]
        fn what_is_written_is_read_back_by_us_and_by_the_library(
            tensors in any_tensors(),
            metadata in any_metadata(),
            chunk in 1..20usize,
        ) {
            let infos: BTreeMap<_, _> = tensors
                .into_iter()
                .map(|(name, (dtype, dims))| (name, TensorInfo::new(TYPES[dtype].0, dims)))
                .collect();
            let dir = MemorySinkDir::new("out");
            block_on(async {
                let sink = dir.create(FILE).await.unwrap();
                let all: Vec<_> = infos.clone().into_iter().rev().collect();
                let mut writer = SafetensorsWriter::begin(sink, all, metadata.clone()).await.unwrap();
                for name in writer.order().to_vec() {
                    for bytes in data(&name, infos[&name].byte_len().unwrap()).chunks(chunk) {
                        writer.write(&name, bytes).await.unwrap();
                    }
                }
                writer.finish().await.unwrap();
            });
            let file = dir.to_dir().get(FILE).unwrap().clone();
            let source = MemorySource::new(FILE, file.clone());
            let header = block_on(read_header(&source)).unwrap();
            prop_assert_eq!(&header.metadata, &metadata);
            prop_assert_eq!(header.tensors.len(), infos.len());
            let theirs = ::safetensors::SafeTensors::deserialize(&file).unwrap();
            prop_assert_eq!(theirs.len(), infos.len());
            for (name, info) in &infos {
                let entry = &header.tensors[name];
                prop_assert_eq!(&entry.info, info);
                prop_assert_eq!(entry.range.start % info.dtype.size() as u64, 0, "aligned");
                let expected = data(name, info.byte_len().unwrap());
                let mut ours = vec![0; expected.len()];
                block_on(source.read_at(entry.range.start, &mut ours)).unwrap();
                prop_assert_eq!(&ours, &expected);
                prop_assert_eq!(theirs.tensor(name).unwrap().data(), expected);
            }
        }

        #[test]
        fn what_the_library_writes_is_read(tensors in any_tensors(), metadata in any_metadata()) {
            let stored: BTreeMap<_, _> = tensors.iter().map(|(name, (dtype, dims))| {
                let info = TensorInfo::new(TYPES[*dtype].0, dims.clone());
                (name, (data(name, info.byte_len().unwrap()), info))
            }).collect();
            let views = tensors.iter().map(|(name, (dtype, dims))| {
                let dims = dims.iter().map(|dim| *dim as usize).collect();
                (name, ::safetensors::tensor::TensorView::new(TYPES[*dtype].1, dims, &stored[name].0).unwrap())
            });
            // The library cannot read its own output without tensors but with metadata: `{},"__metadata__":{}}`.
            let theirs = (!metadata.is_empty()).then(|| metadata.clone().into_iter().collect::<HashMap<_, _>>());
            let file = ::safetensors::serialize(views, theirs).unwrap();
            let source = MemorySource::new(FILE, file);
            let header = block_on(read_header(&source)).unwrap();
            prop_assert_eq!(&header.metadata, &metadata);
            prop_assert_eq!(header.tensors.len(), stored.len());
            for (name, (expected, info)) in stored {
                prop_assert_eq!(&header.tensors[name].info, &info);
                let mut ours = vec![0; expected.len()];
                block_on(source.read_at(header.tensors[name].range.start, &mut ours)).unwrap();
                prop_assert_eq!(ours, expected);
            }
        }
    }
}
