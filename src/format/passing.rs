//! Digests and bytes kept of tensors as they are read, so that a file behind a slow connection is read only once.

use crate::error::Result;
use crate::format::shard_index::TensorStore;
use crate::sort;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes per read when only the digest is wanted.
const CHUNK_BYTES: u64 = 4 << 20;

/// The kept data, by stored tensor name.
#[derive(Clone, Default)]
pub(super) struct ReadCache {
    shared: Arc<Mutex<Shared>>,
    /// Sorted names of tensors that are not read: all their bytes are 0.
    blank: Vec<String>,
}

/// State shared by all clones of a store.
#[derive(Default)]
struct Shared {
    /// Whether tensors are hashed as they are read.
    hashes: bool,
    digests: BTreeMap<String, Hashed>,
    /// The leading bytes read so far of tensors that stay resident.
    held: BTreeMap<String, Vec<u8>>,
}

/// Recovers from a poisoned lock: only readers depend on this state, and they read again what is missing.
fn shared(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The digest of a tensor, possibly incomplete.
enum Hashed {
    /// Over this many leading bytes.
    Part(u64, Sha256),
    Whole([u8; 32]),
}

impl ReadCache {
    fn is_blank(&self, tensor: &str) -> bool {
        self.blank.binary_search_by(|blank| blank.as_str().cmp(tensor)).is_ok()
    }

    /// Fills `out` without reading the source, if possible; returns whether it was.
    pub(super) fn fill(&self, tensor: &str, bytes: &Range<u64>, out: &mut [u8]) -> bool {
        if self.is_blank(tensor) {
            out.fill(0);
            return true;
        }
        let shared = shared(&self.shared);
        let held = shared.held.get(tensor).filter(|held| bytes.end <= held.len() as u64);
        held.is_some_and(|held| {
            out.copy_from_slice(&held[bytes.start as usize..bytes.end as usize]);
            true
        })
    }

    /// Records `out`, the bytes `bytes` of a tensor of `len` bytes. Bytes that do not continue the last range are
    /// ignored.
    pub(super) fn take(&self, tensor: &str, len: u64, bytes: &Range<u64>, out: &[u8]) {
        if self.is_blank(tensor) {
            return;
        }
        let Shared { hashes, digests, held } = &mut *shared(&self.shared);
        let new = |known: u64| {
            let goes_on = (bytes.start..bytes.end).contains(&known);
            goes_on.then(|| &out[(known - bytes.start) as usize..])
        };
        if let Some(held) = held.get_mut(tensor)
            && let Some(new) = new(held.len() as u64)
        {
            held.reserve_exact((len - held.len() as u64) as usize);
            held.extend_from_slice(new);
        }
        if !*hashes {
            return;
        }
        if !digests.contains_key(tensor) {
            digests.insert(tensor.to_owned(), Hashed::Part(0, Sha256::new()));
        }
        let Some(hashed) = digests.get_mut(tensor) else { return };
        if let Hashed::Part(known, hash) = hashed {
            if let Some(new) = new(*known) {
                hash.update(new);
                *known = bytes.end;
            }
            if *known == len {
                *hashed = Hashed::Whole(std::mem::take(hash).finalize().into());
            }
        }
    }
}

/// Keeps the bytes of tensors in memory once they were read. Dropping it releases them.
pub struct ResidentTensors {
    shared: Arc<Mutex<Shared>>,
    tensors: Vec<String>,
}

impl Drop for ResidentTensors {
    fn drop(&mut self) {
        let held = &mut shared(&self.shared).held;
        for tensor in &self.tensors {
            held.remove(tensor);
        }
    }
}

impl TensorStore {
    /// Enables hashing: a tensor that is read front to back gets its digest on the way. See [`digest`](Self::digest).
    pub fn hash_as_read(&self) {
        shared(&self.passing.shared).hashes = true;
    }

    /// SHA-256 of a tensor's bytes. Reads the bytes that were not hashed yet.
    ///
    /// # Errors
    /// As [`read_range`](Self::read_range)'s.
    pub async fn digest(&self, tensor: &str) -> Result<[u8; 32]> {
        self.hash_as_read();
        let len = self.require(tensor)?.byte_len().unwrap_or(0);
        let stored = self.resolve(tensor).unwrap_or(tensor);
        let mut bytes = Vec::new();
        loop {
            let known = match shared(&self.passing.shared).digests.get(stored) {
                Some(Hashed::Whole(digest)) => return Ok(*digest),
                Some(Hashed::Part(known, _)) => *known,
                None => 0,
            };
            let end = (known + CHUNK_BYTES).min(len);
            bytes.resize((end - known) as usize, 0);
            self.read_range(tensor, known..end, &mut bytes).await?;
        }
    }

    /// The same store with some tensors replaced by zeros, for callers that need everything except their values.
    #[must_use]
    pub fn with_blank(&self, tensors: impl IntoIterator<Item = String>) -> Self {
        let mut blank: Vec<String> = tensors.into_iter().collect();
        sort::sort(&mut blank);
        let mut store = self.clone();
        store.passing.blank = blank;
        store
    }

    /// Keeps tensors resident for readers that want them more than once. Names that are not stored are ignored.
    #[must_use]
    pub fn hold(&self, tensors: impl IntoIterator<Item = String>) -> ResidentTensors {
        let tensors: Vec<String> = tensors.into_iter().collect();
        let held = &mut shared(&self.passing.shared).held;
        for tensor in &tensors {
            held.insert(tensor.clone(), Vec::new());
        }
        ResidentTensors { shared: self.passing.shared.clone(), tensors }
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::format::safetensors::TensorInfo;
    use crate::format::source::{ByteSource, MemoryDir, SourceDir};
    use crate::task::{BoxFuture, block_on};
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Counts the bytes read.
    struct Counting(Arc<dyn ByteSource>, Arc<AtomicU64>);

    impl ByteSource for Counting {
        fn name(&self) -> &str {
            self.0.name()
        }

        fn len(&self) -> u64 {
            self.0.len()
        }

        fn read_at<'a>(&'a self, offset: u64, out: &'a mut [u8]) -> BoxFuture<'a, Result<()>> {
            self.1.fetch_add(out.len() as u64, Ordering::Relaxed);
            self.0.read_at(offset, out)
        }
    }

    fn store(tensor: &[u8]) -> (TensorStore, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(0));
        let dir = MemoryDir::new("m").with("t", tensor.to_vec());
        let source = block_on(dir.open("t")).unwrap().unwrap();
        let stored = crate::format::shard_index::StoredTensor {
            name: "t".to_owned(),
            info: TensorInfo::new(DType::U8, [tensor.len() as u64]),
            range: 0..tensor.len() as u64,
            rows: crate::format::row_order::RowOrder::Plain,
        };
        let source = Arc::new(Counting(source, count.clone()));
        (TensorStore::from_parts("m", "t", source, [stored]).unwrap(), count)
    }

    proptest! {
        #[test]
        fn whatever_is_read_before_digest_and_bytes_are_those_of_the_tensor(
            tensor in prop::collection::vec(any::<u8>(), 0..40),
            reads in prop::collection::vec((0usize..41, 0usize..41), 0..6),
            holds in any::<bool>(),
        ) {
            let (store, _) = store(&tensor);
            store.hash_as_read();
            let _held = holds.then(|| store.hold(["t".to_owned(), "another".to_owned()]));
            for (a, b) in reads {
                let (a, b) = (a.min(tensor.len()), b.min(tensor.len()));
                let range = a.min(b)..a.max(b);
                let mut out = vec![0; range.len()];
                block_on(store.read_range("t", range.start as u64..range.end as u64, &mut out)).unwrap();
                prop_assert_eq!(&out, &tensor[range]);
            }
            prop_assert_eq!(block_on(store.digest("t")).unwrap(), <[u8; 32]>::from(Sha256::digest(&tensor)));
        }
    }

    #[test]
    fn what_passed_or_is_held_is_not_read_again() {
        let (store, count) = store(&[7; 10]);
        store.hash_as_read();
        block_on(store.read("t")).unwrap();
        block_on(store.digest("t")).unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 10);
        let held = store.hold(["t".to_owned()]);
        for _ in 0..3 {
            assert_eq!(block_on(store.read("t")).unwrap(), [7; 10]);
        }
        assert_eq!(count.load(Ordering::Relaxed), 20);
        drop(held);
        block_on(store.read("t")).unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 30);
    }
}
