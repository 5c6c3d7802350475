//! The named tensors of a checkpoint folder, in one file or in shards with an index.
//!
//! Ambiguous folders are read as `transformers` reads them:
//! - `model.safetensors` takes precedence over `model.safetensors.index.json`, which is then ignored.
//! - The index only lists the shards. A tensor is read from the shard that holds it, listed or not (as in
//!   `transformers` 5; version 4 ignores tensors that the index does not list).
//! - A tensor in two shards is accepted if both copies are equal. Otherwise it is an error, because readers disagree
//!   about which copy counts.
//!
//! Not here: the meaning of tensors (`layout`, `model`).

use crate::error::{Error, ErrorCode, Result};
use crate::format::passing::ReadCache;
use crate::format::row_order::RowOrder;
use crate::format::safetensors::{Entry, Header, TensorInfo, UniqueMap, read_header};
use crate::format::source::{ByteSource, MemorySource, SourceDir, read_whole};
use crate::format::{check_inner_name, clipped, foreign, quoted, zeroed};
use crate::sort;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// The single weight file of a small checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";

/// The file that maps tensors to shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The maximum index size. The largest models need about 10 MB.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// A weight file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFile {
    /// Its name inside the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// The named tensors of a checkpoint, readable by range. Clones share the open files.
#[derive(Clone)]
pub struct TensorStore {
    /// The checkpoint's name in messages.
    name: String,
    sources: Vec<Arc<dyn ByteSource>>,
    /// Parallel to `sources`, sorted by name.
    files: Vec<StoreFile>,
    tensors: BTreeMap<String, Located>,
    /// Names without a stored tensor, each with the stored tensor that it refers to.
    aliases: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
    total_bytes: u64,
    /// Digests and resident bytes of tensors that were read.
    pub(super) passing: ReadCache,
}

#[derive(Clone)]
struct Located {
    /// Index into `sources`.
    file: usize,
    entry: Entry,
    rows: RowOrder,
}

/// A tensor of a container that this module does not parse itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// The tensor's name.
    pub name: String,
    /// Type and dimensions. Block formats are bytes, `U8`.
    pub info: TensorInfo,
    /// The byte range of its data.
    pub range: Range<u64>,
    /// The order in which its rows are stored.
    pub rows: RowOrder,
}

/// The used part of an index. `metadata.total_size` is not reliable, so it is not read.
#[derive(Deserialize)]
struct Index {
    weight_map: UniqueMap,
}

impl TensorStore {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists, and reads their headers.
    ///
    /// # Errors
    /// `not_found` if the folder has neither file; `invalid_checkpoint` for a broken index, a missing shard, or a
    /// tensor with different values in two shards; and as [`read_header`].
    pub async fn open(dir: &dyn SourceDir) -> Result<Self> {
        let within = |error: Error| error.context(dir.name());
        if let Some(source) = dir.open(SINGLE_FILE).await? {
            let header = read_header(&*source).await?;
            return Self::assemble(dir.name(), vec![(SINGLE_FILE.into(), source, header)]).map_err(within);
        }
        let Some(index) = dir.open(INDEX_FILE).await? else {
            return Err(within(Error::new(
                ErrorCode::NotFound,
                format!("expected {SINGLE_FILE} or {INDEX_FILE} but found neither"),
            )));
        };
        let mut shards = Vec::new();
        for name in listed_shards(&*index).await? {
            let Some(source) = dir.open(&name).await? else {
                return Err(within(Error::invalid_checkpoint(format!(
                    "the shard {} is missing, which {INDEX_FILE} lists",
                    quoted(&name)
                ))));
            };
            let header = read_header(&*source).await?;
            shards.push((name, source, header));
        }
        drop_copies(&mut shards).await.map_err(within)?;
        Self::assemble(dir.name(), shards).map_err(within)
    }

    /// Opens one file of a folder as a store.
    ///
    /// # Errors
    /// `not_found` if it does not exist; errors of its header.
    pub async fn open_file(dir: &dyn SourceDir, file: &str) -> Result<Self> {
        let Some(source) = dir.open(file).await? else {
            return Err(Error::new(ErrorCode::NotFound, format!("expected {file} but found none")));
        };
        let header = read_header(&*source).await?;
        Self::assemble(dir.name(), vec![(file.into(), source, header)])
    }

    /// A checkpoint in memory, for tests and for newly made tensors.
    ///
    /// # Errors
    /// `invalid_argument`, naming the tensor, if bytes disagree with type and shape, or for a duplicate name.
    pub fn in_memory(
        name: &str,
        tensors: impl IntoIterator<Item = (String, TensorInfo, Vec<u8>)>,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut header = Header { tensors: BTreeMap::new(), metadata };
        let mut data = Vec::new();
        for (tensor, info, bytes) in tensors {
            if info.byte_len() != Some(bytes.len() as u64) {
                return Err(Error::invalid_argument(format!(
                    "{} bytes are not {} values of shape {}",
                    bytes.len(),
                    info.dtype,
                    info.shape
                ))
                .context(format!("tensor {}", quoted(&tensor))));
            }
            let begin = data.len() as u64;
            data.extend_from_slice(&bytes);
            let entry = Entry { info, range: begin..data.len() as u64 };
            if header.tensors.insert(tensor.clone(), entry).is_some() {
                return Err(Error::invalid_argument("the name is given twice")
                    .context(format!("tensor {}", quoted(&tensor))));
            }
        }
        let source = Arc::new(MemorySource::new(name, data));
        Self::assemble(name, vec![(name.into(), source, header)])
    }

    /// A store of one file in any container, under the names of the model's modules.
    ///
    /// # Errors
    /// `invalid_checkpoint`, naming the tensor, for a duplicate name, a range outside the file, or a range whose length
    /// disagrees with type, dimensions and row order.
    pub fn from_parts(
        name: &str,
        file: &str,
        source: Arc<dyn ByteSource>,
        tensors: impl IntoIterator<Item = StoredTensor>,
    ) -> Result<Self> {
        let mut located = BTreeMap::new();
        for StoredTensor { name, info, range, rows } in tensors {
            let whole_blocks = match rows {
                RowOrder::Plain => true,
                RowOrder::Interleaved { block, row_bytes } => {
                    let block_bytes = block.checked_mul(row_bytes).filter(|bytes| *bytes > 0);
                    let len = range.end.saturating_sub(range.start);
                    block.is_multiple_of(2) && block_bytes.is_some_and(|bytes| len.is_multiple_of(bytes))
                }
            };
            let len = range.end.checked_sub(range.start);
            if len.is_none() || info.byte_len() != len || range.end > source.len() || !whole_blocks {
                return Err(Error::invalid_checkpoint(format!(
                    "bytes {range:?} do not hold {} values of shape {}",
                    info.dtype, info.shape
                ))
                .context(format!("tensor {}", quoted(&name))));
            }
            let entry = Entry { info, range };
            if located.insert(name.clone(), Located { file: 0, entry, rows }).is_some() {
                return Err(Error::invalid_checkpoint("the name appears twice")
                    .context(format!("tensor {}", quoted(&name))));
            }
        }
        let mut store = Self::assemble(name, vec![(file.to_owned(), source, Header::default())])?;
        for located in located.values() {
            let range = &located.entry.range;
            store.total_bytes = store.total_bytes.saturating_add(range.end - range.start);
        }
        store.tensors = located;
        Ok(store)
    }

    /// Joins the shards, which must be sorted by name.
    fn assemble(name: &str, shards: Vec<Shard>) -> Result<Self> {
        let mut store = Self {
            name: name.to_owned(),
            sources: Vec::new(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            aliases: BTreeMap::new(),
            metadata: BTreeMap::new(),
            total_bytes: 0,
            passing: ReadCache::default(),
        };
        for (file, (shard, source, header)) in shards.into_iter().enumerate() {
            for (tensor, entry) in header.tensors {
                // Ranges are disjoint parts of a file whose length is a u64: only the sum over several shards could
                // overflow.
                store.total_bytes = store.total_bytes.saturating_add(entry.range.end - entry.range.start);
                store.tensors.insert(tensor, Located { file, entry, rows: RowOrder::Plain });
            }
            // Shards of a checkpoint normally agree about metadata; otherwise the first one wins.
            for (key, value) in header.metadata {
                store.metadata.entry(key).or_insert(value);
            }
            store.files.push(StoreFile { name: shard, bytes: source.len() });
            store.sources.push(source);
        }
        store.aliases = find_aliases(&store.metadata, &store.tensors);
        Ok(store)
    }

    /// The same tensors under the names that `rename` returns.
    ///
    /// # Errors
    /// `invalid_checkpoint` if two tensors get the same name.
    pub fn renamed(mut self, rename: impl Fn(&str) -> String) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (old, located) in std::mem::take(&mut self.tensors) {
            let new = rename(&old);
            if tensors.contains_key(&new) {
                return Err(Error::invalid_checkpoint(format!(
                    "the tensor {} appears twice, once as {}",
                    quoted(&new),
                    quoted(&old)
                ))
                .context(&self.name));
            }
            tensors.insert(new, located);
        }
        self.tensors = tensors;
        self.aliases = sort::map(self.aliases.iter().map(|(name, target)| (rename(name), rename(target))));
        Ok(self)
    }

    /// Whether the tensors `a` and `b` are stored as the same bytes, of the same type, shape and order of rows.
    ///
    /// # Errors
    /// `invalid_checkpoint` if there is no such tensor; `io` if a file fails or was truncated.
    pub async fn same_bytes(&self, a: &str, b: &str) -> Result<bool> {
        let first = self.locate(a).ok_or_else(|| self.missing(a))?;
        let second = self.locate(b).ok_or_else(|| self.missing(b))?;
        if first.entry.info != second.entry.info || first.rows != second.rows {
            return Ok(false);
        }
        let source = |located: &Located| self.sources[located.file].as_ref();
        same_ranges((source(first), first.entry.range.start), (source(second), &second.entry.range)).await
    }

    /// The checkpoint's name in messages: its folder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The sorted names of the stored tensors, without aliases.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The stored tensor for `name`: the tensor itself, or the target of the alias.
    ///
    /// Some files store tied weights once and name the alias in their metadata:
    /// `"model.embed_tokens.weight": "lm_head.weight"`. An alias is valid if its target is stored and its own name is
    /// not. Aliases do not chain.
    pub fn resolve(&self, name: &str) -> Option<&str> {
        let name = self.aliases.get(name).map_or(name, String::as_str);
        self.tensors.get_key_value(name).map(|(stored, _)| stored.as_str())
    }

    /// Type and shape of the tensor `name`, or of its alias target.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.locate(name).map(|located| &located.entry.info)
    }

    /// As [`get`](Self::get).
    ///
    /// # Errors
    /// `invalid_checkpoint`, naming the tensor and the files, if there is none.
    pub fn require(&self, name: &str) -> Result<&TensorInfo> {
        self.get(name).ok_or_else(|| self.missing(name))
    }

    /// Reads the bytes `bytes` of the tensor `name`, relative to its start, into `out`.
    ///
    /// # Errors
    /// `invalid_checkpoint` if there is no such tensor; `invalid_argument` if the range is outside the tensor or `out`
    /// has another length; `io` if the file fails or was truncated. All name the tensor.
    pub async fn read_range(&self, name: &str, bytes: Range<u64>, out: &mut [u8]) -> Result<()> {
        let located = self.locate(name).ok_or_else(|| self.missing(name))?;
        let range = &located.entry.range;
        let len = range.end - range.start;
        if bytes.start > bytes.end || bytes.end > len || bytes.end - bytes.start != out.len() as u64 {
            return Err(Error::invalid_argument(format!(
                "expected a range inside the {len} bytes, as long as the buffer of {}, but found {bytes:?}",
                out.len()
            ))
            .context(format!("tensor {}", quoted(name))));
        }
        let stored = self.resolve(name).unwrap_or(name);
        if !self.passing.fill(stored, &bytes, out) {
            let source = &self.sources[located.file];
            let read = located.rows.read(source.as_ref(), range.start, bytes.clone(), out).await;
            read.map_err(|error| error.context(format!("tensor {}", quoted(name))))?;
        }
        self.passing.take(stored, len, &bytes, out);
        Ok(())
    }

    /// Reads all bytes of the tensor `name`.
    ///
    /// # Errors
    /// As [`read_range`](Self::read_range), and `out_of_memory` if the tensor does not fit.
    pub async fn read(&self, name: &str) -> Result<Vec<u8>> {
        let located = self.locate(name).ok_or_else(|| self.missing(name))?;
        let len = located.entry.range.end - located.entry.range.start;
        let mut out = zeroed(len).map_err(|error| error.context(format!("tensor {}", quoted(name))))?;
        self.read_range(name, 0..len, &mut out).await?;
        Ok(out)
    }

    /// The merged `__metadata__` of all files; on conflict, the first file by name wins.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Total data bytes of all stored tensors.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The files, sorted by name.
    pub fn files(&self) -> &[StoreFile] {
        &self.files
    }

    /// The name of the file that holds the tensor `name`.
    pub fn file_of(&self, name: &str) -> Option<&str> {
        self.locate(name).map(|located| self.files[located.file].name.as_str())
    }

    fn locate(&self, name: &str) -> Option<&Located> {
        self.tensors.get(self.resolve(name)?)
    }

    fn missing(&self, name: &str) -> Error {
        let files = match &self.files[..] {
            [] => "an empty index".to_owned(),
            [only] => only.name.clone(),
            [first, .., last] => format!("{} files, {} to {}", self.files.len(), first.name, last.name),
        };
        Error::invalid_checkpoint(format!(
            "the tensor {} is missing in {}",
            quoted(name),
            clipped(&files, 200)
        ))
        .context(&self.name)
    }
}

impl fmt::Debug for TensorStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TensorStore")
            .field("name", &self.name)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// A weight file: its name inside the folder, its source, and its header.
type Shard = (String, Arc<dyn ByteSource>, Header);

/// The sorted files that an index names.
async fn listed_shards(index: &dyn ByteSource) -> Result<Vec<String>> {
    let json = read_whole(index, MAX_INDEX_BYTES).await?;
    let named = |error: Error| error.context(index.name());
    let read = || {
        foreign::refuse(&json)?;
        let Index { weight_map: UniqueMap(weight_map) } = serde_json::from_slice(&json).map_err(|error| {
            Error::invalid_checkpoint(format!("the index is broken: {}", clipped(&error.to_string(), 400)))
        })?;
        for (tensor, file) in &weight_map {
            if check_inner_name(&in_folder(file.clone())).is_err() {
                return Err(Error::invalid_checkpoint(format!(
                    "the index puts the tensor {} into {}, which is not the name of a file inside the folder",
                    quoted(tensor),
                    quoted(file)
                )));
            }
        }
        let mut names: Vec<_> = weight_map.into_values().map(in_folder).collect();
        sort::sort(&mut names);
        names.dedup();
        Ok(names)
    };
    read().map_err(named)
}

/// Removes a leading `./`.
fn in_folder(file: String) -> String {
    file.strip_prefix("./").map(str::to_owned).unwrap_or(file)
}

/// Removes from later shards the tensors that an earlier one holds as well.
///
/// # Errors
/// `invalid_checkpoint` naming a tensor with different values in two shards.
async fn drop_copies(shards: &mut [Shard]) -> Result<()> {
    for later in 1..shards.len() {
        let (before, rest) = shards.split_at_mut(later);
        let (file, source, header) = &mut rest[0];
        let mut copies = Vec::new();
        for (name, entry) in &header.tensors {
            let first = before.iter().find_map(|shard| Some((shard, shard.2.tensors.get(name)?)));
            let Some(((first_file, first_source, _), first)) = first else { continue };
            let same = first.info == entry.info
                && same_ranges((first_source.as_ref(), first.range.start), (source.as_ref(), &entry.range))
                    .await?;
            if !same {
                return Err(Error::invalid_checkpoint(format!(
                    "the tensor {} is in both {} and {}, with different values",
                    quoted(name),
                    quoted(first_file),
                    quoted(file)
                )));
            }
            copies.push(name.clone());
        }
        for name in copies {
            header.tensors.remove(&name);
        }
    }
    Ok(())
}

/// Whether two files hold the same bytes: one from an offset on, the other in a range.
async fn same_ranges(a: (&dyn ByteSource, u64), b: (&dyn ByteSource, &Range<u64>)) -> Result<bool> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for range in chunks(b.1.end - b.1.start) {
        first.resize((range.end - range.start) as usize, 0);
        second.resize(first.len(), 0);
        a.0.read_at(a.1 + range.start, &mut first).await?;
        b.0.read_at(b.1.start + range.start, &mut second).await?;
        if first != second {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Bytes compared at a time.
const COMPARED_BYTES: u64 = 1 << 20;

fn chunks(len: u64) -> impl Iterator<Item = Range<u64>> {
    (0..len.div_ceil(COMPARED_BYTES)).map(move |chunk| {
        let start = chunk * COMPARED_BYTES;
        start..len.min(start + COMPARED_BYTES)
    })
}

fn find_aliases(
    metadata: &BTreeMap<String, String>,
    tensors: &BTreeMap<String, Located>,
) -> BTreeMap<String, String> {
    let is_alias =
        |(name, target): &(&String, &String)| tensors.contains_key(*target) && !tensors.contains_key(*name);
    sort::map(metadata.iter().filter(is_alias).map(|(name, target)| (name.clone(), target.clone())))
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::format::safetensors::SafetensorsWriter;
    use crate::format::sink::{MemorySinkDir, SinkDir};
    use crate::format::source::{FsDir, MemoryDir};
    use crate::task::block_on;

    /// The bytes of a file of `U8` tensors.
    fn file(tensors: &[(&str, &[u8])], metadata: &[(&str, &str)]) -> Arc<Vec<u8>> {
        let dir = MemorySinkDir::new("");
        block_on(async {
            let infos = tensors
                .iter()
                .map(|(name, bytes)| ((*name).into(), TensorInfo::new(DType::U8, [bytes.len() as u64])))
                .collect();
            let metadata = metadata.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
            let mut writer = SafetensorsWriter::begin(dir.create("f").await?, infos, metadata).await?;
            for name in writer.order().to_vec() {
                let bytes = tensors.iter().find(|(tensor, _)| *tensor == name).unwrap().1;
                writer.write(&name, bytes).await?;
            }
            writer.finish().await
        })
        .unwrap();
        dir.to_dir().remove("f").unwrap()
    }

    fn index(weight_map: &[(&str, &str)]) -> Vec<u8> {
        let entries: Vec<_> =
            weight_map.iter().map(|(tensor, file)| format!("{tensor:?}:{file:?}")).collect();
        format!(r#"{{"metadata":{{"total_size":1e9}},"weight_map":{{{}}}}}"#, entries.join(",")).into_bytes()
    }

    /// Two shards; `shared` is stored only in the second one.
    fn sharded(weight_map: &[(&str, &str)]) -> MemoryDir {
        MemoryDir::new("checkpoint")
            .with("1.safetensors", file(&[("a", &[1, 2, 3])], &[("format", "pt"), ("who", "first")]))
            .with(
                "2.safetensors",
                file(&[("b", &[4, 5]), ("shared", &[6])], &[("who", "second"), ("alias", "a")]),
            )
            .with(INDEX_FILE, index(weight_map))
    }

    const MAP: [(&str, &str); 3] =
        [("shared", "2.safetensors"), ("a", "1.safetensors"), ("b", "2.safetensors")];

    #[test]
    fn shards_are_one_checkpoint() {
        let store = block_on(TensorStore::open(&sharded(&MAP))).unwrap();
        assert_eq!(store.names().collect::<Vec<_>>(), ["a", "b", "shared"]);
        assert_eq!(store.total_bytes(), 6);
        let files: Vec<_> = store.files().iter().map(|file| file.name.as_str()).collect();
        assert_eq!(files, ["1.safetensors", "2.safetensors"]);
        assert_eq!(store.file_of("b"), Some("2.safetensors"));
        assert_eq!(store.metadata()["who"], "first");
        assert_eq!(block_on(store.read("b")).unwrap(), [4, 5]);
        let mut out = [0; 2];
        block_on(store.read_range("a", 1..3, &mut out)).unwrap();
        assert_eq!(out, [2, 3]);
        // The alias target is in another shard than the metadata.
        assert_eq!(block_on(store.read("alias")).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn one_file_comes_before_the_index() {
        let dir = sharded(&MAP).with(SINGLE_FILE, file(&[("only", &[9])], &[]));
        let store = block_on(TensorStore::open(&dir)).unwrap();
        assert_eq!(store.names().collect::<Vec<_>>(), ["only"]);
    }

    /// Indexes are edited by hand, or left stale by tools that move or drop tensors.
    #[test]
    fn a_tensor_is_where_a_shard_holds_it_whatever_the_index_says() {
        let other = [("b", "1.safetensors"), ("a", "2.safetensors")];
        let absent = [("a", "1.safetensors"), ("c", "2.safetensors")];
        for map in [&MAP[1..], &other, &absent] {
            let store = block_on(TensorStore::open(&sharded(map))).unwrap();
            assert_eq!(store.names().collect::<Vec<_>>(), ["a", "b", "shared"], "{map:?}");
            assert_eq!(store.total_bytes(), 6);
            assert_eq!(block_on(store.read("b")).unwrap(), [4, 5]);
        }
    }

    #[test]
    fn shards_may_be_in_subfolders_and_hold_copies() {
        let dir = MemoryDir::new("checkpoint")
            .with("parts/1.safetensors", file(&[("a", &[1, 2]), ("b", &[3])], &[]))
            .with("parts/2.safetensors", file(&[("a", &[1, 2]), ("c", &[4])], &[]))
            .with(INDEX_FILE, index(&[("a", "./parts/2.safetensors"), ("b", "parts/1.safetensors")]));
        let store = block_on(TensorStore::open(&dir)).unwrap();
        assert_eq!(store.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!((store.total_bytes(), store.file_of("a")), (4, Some("parts/1.safetensors")));
        assert!(block_on(store.same_bytes("a", "a")).unwrap());
        assert!(!block_on(store.same_bytes("b", "c")).unwrap());
        assert!(!block_on(store.same_bytes("a", "c")).unwrap());
    }

    #[test]
    fn tensors_can_be_given_other_names() {
        let store = block_on(TensorStore::open(&sharded(&MAP))).unwrap();
        let renamed = store.clone().renamed(|name| format!("model.{name}")).unwrap();
        assert_eq!(renamed.names().collect::<Vec<_>>(), ["model.a", "model.b", "model.shared"]);
        assert_eq!(renamed.resolve("model.alias"), Some("model.a"));
        let error = store.renamed(|_| "same".to_owned()).unwrap_err();
        assert!(error.to_string().contains("`same` appears twice"), "{error}");
    }

    #[test]
    fn an_alias_serves_a_name_that_is_not_stored() {
        let names = [
            ("format", "pt"),
            ("tied", "stored"),
            ("other", "absent"),
            ("chain", "tied"),
            ("stored", "second"),
            ("loop", "loop"),
        ];
        let single = file(&[("stored", &[1, 2]), ("second", &[3])], &names);
        let store = block_on(TensorStore::open(&MemoryDir::new("m").with(SINGLE_FILE, single))).unwrap();
        assert_eq!(store.names().collect::<Vec<_>>(), ["second", "stored"]);
        for (name, stored) in [
            ("tied", Some("stored")),
            ("stored", Some("stored")),
            ("chain", None),
            ("other", None),
            ("format", None),
            ("loop", None),
        ] {
            assert_eq!(store.resolve(name), stored, "{name}");
            assert_eq!(store.get(name), stored.map(|_| &store.tensors["stored"].entry.info), "{name}");
        }
        assert_eq!(block_on(store.read("tied")).unwrap(), [1, 2]);
    }

    #[test]
    fn a_folder_that_does_not_add_up_is_an_error_that_says_what_is_wrong() {
        let without_shard = {
            let mut dir = sharded(&MAP);
            dir.remove("2.safetensors");
            dir
        };
        let twice =
            sharded(&MAP).with("2.safetensors", file(&[("a", &[7]), ("b", &[4]), ("shared", &[6])], &[]));
        let index_text = |text: &str| sharded(&MAP).with(INDEX_FILE, text.as_bytes().to_vec());
        let cases = [
            (MemoryDir::new("empty"), ErrorCode::NotFound, "empty: expected model.safetensors or model.safe"),
            (without_shard, ErrorCode::InvalidCheckpoint, "checkpoint: the shard `2.safetensors` is missing"),
            (twice, ErrorCode::InvalidCheckpoint, "`a` is in both `1.safetensors` and `2.safetensors`"),
            (
                sharded(&[("a", "../1.safetensors")]),
                ErrorCode::InvalidCheckpoint,
                "the tensor `a` into `../1.safetensors`, which is not the name of a file",
            ),
            (sharded(&[("a", "")]), ErrorCode::InvalidCheckpoint, "not the name of a file"),
            (sharded(&[("a", "absent")]), ErrorCode::InvalidCheckpoint, "the shard `absent` is missing"),
            (
                index_text("{"),
                ErrorCode::InvalidCheckpoint,
                "model.safetensors.index.json: the index is broken: EOF",
            ),
            (index_text("[]"), ErrorCode::InvalidCheckpoint, "the index is broken"),
            (index_text("{}"), ErrorCode::InvalidCheckpoint, "missing field `weight_map`"),
            (index_text(r#"{"weight_map":{"a":1}}"#), ErrorCode::InvalidCheckpoint, "`a`: invalid type"),
            (
                index_text(r#"{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}"#),
                ErrorCode::InvalidCheckpoint,
                "`a` appears twice",
            ),
            (
                sharded(&MAP).with("1.safetensors", b"not it".to_vec()),
                ErrorCode::InvalidCheckpoint,
                "1.safetensors: expected a safetensors file",
            ),
        ];
        for (dir, code, expected) in cases {
            let error = block_on(TensorStore::open(&dir)).expect_err(expected);
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn a_missing_tensor_and_a_range_outside_are_errors_that_name_it() {
        let store = block_on(TensorStore::open(&sharded(&MAP))).unwrap();
        assert_eq!(store.require("a").unwrap().shape.dims(), [3]);
        let error = store.require("lm_head.weight").unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidCheckpoint);
        assert_eq!(
            error.to_string(),
            "checkpoint: the tensor `lm_head.weight` is missing in 2 files, 1.safetensors to 2.safetensors"
        );
        assert!(block_on(store.read("lm_head.weight")).is_err());
        #[allow(clippy::reversed_empty_ranges, reason = "that is the mistake")]
        for (range, len) in [(0..4, 4), (2..1, 0), (0..2, 3), (0..u64::MAX, 1), (u64::MAX..u64::MAX, 0)] {
            let error = block_on(store.read_range("a", range.clone(), &mut vec![0; len])).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument, "{range:?}");
            assert!(error.to_string().contains("tensor `a`"), "{error}");
        }
    }

    #[test]
    fn tensors_in_memory_are_a_checkpoint_too() {
        let tensor = |name: &str, len| (name.to_owned(), TensorInfo::new(DType::U8, [2]), vec![5; len]);
        let store =
            TensorStore::in_memory("test", [tensor("x", 2), tensor("w", 2)], BTreeMap::new()).unwrap();
        assert_eq!(store.names().collect::<Vec<_>>(), ["w", "x"]);
        assert_eq!(block_on(store.read("x")).unwrap(), [5, 5]);
        assert!(TensorStore::in_memory("test", [tensor("x", 3)], BTreeMap::new()).is_err());
        assert!(TensorStore::in_memory("test", [tensor("x", 2), tensor("x", 2)], BTreeMap::new()).is_err());
    }

    #[test]
    fn a_real_file_with_an_aliased_embedding_is_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/models/story-llama-0.66M");
        let Ok(dir) = FsDir::open(path) else {
            println!("skipped: story-llama-0.66M is not here");
            return;
        };
        let store = block_on(TensorStore::open(&dir)).unwrap();
        assert_eq!(store.resolve("model.embed_tokens.weight"), Some("lm_head.weight"));
        assert_eq!(
            store.require("model.embed_tokens.weight").unwrap(),
            &TensorInfo::new(DType::F32, [2048, 128])
        );
        assert_eq!(store.total_bytes(), 2_624_000);
        assert_eq!(block_on(store.read("model.norm.weight")).unwrap().len(), 512);
    }
}
