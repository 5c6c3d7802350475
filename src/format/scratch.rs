//! Scratch space: named blobs that are written, read back by range and discarded, such as hidden states between layers.
//!
//! Not here: output for the user (`sink`).

use crate::error::{Error, ErrorCode, Result};
use crate::format::check_plain_name;
use crate::task::BoxFuture;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::ready;

#[cfg(not(target_os = "unknown"))]
pub use native::{KeptScratch, TempScratch};

/// Storage for named blobs of bytes: memory, a temporary folder, a browser's private file system.
///
/// Names are plain file names. All methods take `&self`, so that several users can share one scratch space; no two of
/// them may write the same blob at the same time.
pub trait Scratch {
    /// Writes `bytes` from `offset` on, overwriting or extending the blob. A blob that does not exist starts empty.
    ///
    /// Fails with `invalid_argument` if `offset` is beyond the end (a blob has no holes), and with `storage_full` or
    /// `io` if the storage fails.
    fn write_at<'a>(&'a self, blob: &'a str, offset: u64, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>>;

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// Fails with `not_found` if there is no such blob, and with `io` if it ends before `out` is full; the content of
    /// `out` is then unspecified.
    fn read_at<'a>(&'a self, blob: &'a str, offset: u64, out: &'a mut [u8]) -> BoxFuture<'a, Result<()>>;

    /// Length in bytes, or `None` if there is no such blob.
    fn len<'a>(&'a self, blob: &'a str) -> BoxFuture<'a, Result<Option<u64>>>;

    /// Deletes the blob; a blob that does not exist is no error.
    fn delete<'a>(&'a self, blob: &'a str) -> BoxFuture<'a, Result<()>>;

    /// The names of all blobs, in no particular order.
    fn names(&self) -> BoxFuture<'_, Result<Vec<String>>>;

    /// Appends `bytes` to the blob. A blob that does not exist starts empty.
    fn append<'a>(&'a self, blob: &'a str, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let end = self.len(blob).await?.unwrap_or(0);
            self.write_at(blob, end, bytes).await
        })
    }
}

fn named(blob: &str) -> impl Fn(Error) -> Error {
    move |error| error.context(format!("scratch blob `{blob}`"))
}

fn absent() -> Error {
    Error::new(ErrorCode::NotFound, "expected it to be written before it is read")
}

fn hole(offset: u64, len: u64) -> Error {
    Error::invalid_argument(format!("cannot write at offset {offset} of a blob that has {len} bytes"))
}

/// Scratch space in memory.
#[derive(Debug, Default)]
pub struct MemoryScratch {
    blobs: RefCell<BTreeMap<String, Vec<u8>>>,
}

impl MemoryScratch {
    /// Empty scratch space.
    pub fn new() -> Self {
        Self::default()
    }

    fn write(&self, blob: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        check_plain_name(blob)?;
        let mut blobs = self.blobs.borrow_mut();
        let len = blobs.get(blob).map_or(0, Vec::len);
        let start = usize::try_from(offset).ok().filter(|start| *start <= len);
        let start = start.ok_or_else(|| hole(offset, len as u64))?;
        let stored = blobs.entry(blob.to_owned()).or_default();
        let (over, past) = bytes.split_at(bytes.len().min(stored.len() - start));
        stored.try_reserve(past.len()).map_err(|_| {
            Error::new(ErrorCode::StorageFull, format!("no memory for {} more bytes", past.len()))
        })?;
        stored[start..start + over.len()].copy_from_slice(over);
        stored.extend_from_slice(past);
        Ok(())
    }

    fn read(&self, blob: &str, offset: u64, out: &mut [u8]) -> Result<()> {
        let blobs = self.blobs.borrow();
        let stored = blobs.get(blob).ok_or_else(absent)?;
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| stored.get(start..start.checked_add(out.len())?));
        let range =
            range.ok_or_else(|| crate::format::source::ends_early(offset, out.len(), stored.len() as u64))?;
        out.copy_from_slice(range);
        Ok(())
    }
}

impl Scratch for MemoryScratch {
    fn write_at<'a>(&'a self, blob: &'a str, offset: u64, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(self.write(blob, offset, bytes).map_err(named(blob))))
    }

    fn read_at<'a>(&'a self, blob: &'a str, offset: u64, out: &'a mut [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(ready(self.read(blob, offset, out).map_err(named(blob))))
    }

    fn len<'a>(&'a self, blob: &'a str) -> BoxFuture<'a, Result<Option<u64>>> {
        Box::pin(ready(Ok(self.blobs.borrow().get(blob).map(|stored| stored.len() as u64))))
    }

    fn delete<'a>(&'a self, blob: &'a str) -> BoxFuture<'a, Result<()>> {
        self.blobs.borrow_mut().remove(blob);
        Box::pin(ready(Ok(())))
    }

    fn names(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(ready(Ok(self.blobs.borrow().keys().cloned().collect())))
    }
}

#[cfg(not(target_os = "unknown"))]
mod native {
    use super::{Scratch, absent, hole, named};
    use crate::error::{Context, Result};
    use crate::format::check_plain_name;
    use crate::format::source::read_exact_at;
    use crate::task::BoxFuture;
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::future::ready;
    use std::io::{Seek, SeekFrom, Write};
    use std::path::{Path, PathBuf};
    use tempfile::TempDir;

    /// Scratch space in its own folder, which is deleted on drop.
    #[derive(Debug)]
    pub struct TempScratch {
        // Before `folder`, so that the files are closed before it is deleted, as Windows requires.
        files: Files,
        folder: TempDir,
    }

    impl TempScratch {
        /// Scratch space in a new folder inside `parent`. The caller picks the parent, because hidden states can be
        /// larger than the system's temporary folder.
        ///
        /// # Errors
        /// `not_found`, `storage_full` or `io` if the folder cannot be created.
        pub fn new_in(parent: impl AsRef<Path>) -> Result<Self> {
            let parent = parent.as_ref();
            let folder = tempfile::Builder::new().prefix(".lowbit-scratch.").tempdir_in(parent);
            let folder = folder.context_with(|| parent.display().to_string())?;
            Ok(Self { files: Files { path: folder.path().to_owned(), blobs: RefCell::default() }, folder })
        }

        /// Scratch space in the system's temporary folder.
        ///
        /// # Errors
        /// As [`new_in`](Self::new_in).
        pub fn new() -> Result<Self> {
            Self::new_in(temporary_folder())
        }

        /// The folder's path.
        pub fn path(&self) -> &Path {
            self.folder.path()
        }
    }

    /// The system's temporary folder. std panics on WASI, which has none; there `TMPDIR` may name one.
    fn temporary_folder() -> PathBuf {
        if cfg!(target_os = "wasi") {
            std::env::var_os("TMPDIR").map_or_else(|| "/tmp".into(), PathBuf::from)
        } else {
            std::env::temp_dir()
        }
    }

    /// Scratch space in a persistent folder: a later process finds what an earlier one wrote. Survives a killed
    /// process, but not necessarily a power failure.
    #[derive(Debug)]
    pub struct KeptScratch(Files);

    impl KeptScratch {
        /// The folder at `path`, created if it does not exist, with the blobs that it holds.
        ///
        /// # Errors
        /// `io` or `storage_full` if it cannot be created or read.
        pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
            let path = path.into();
            let read = || -> std::io::Result<BTreeMap<String, Blob>> {
                fs::create_dir_all(&path)?;
                let mut blobs = BTreeMap::new();
                for entry in fs::read_dir(&path)? {
                    let entry = entry?;
                    let Ok(name) = entry.file_name().into_string() else { continue };
                    if entry.file_type()?.is_file() {
                        let file = File::options().read(true).write(true).open(entry.path())?;
                        let len = file.metadata()?.len();
                        blobs.insert(name, Blob { file, len });
                    }
                }
                Ok(blobs)
            };
            let blobs = RefCell::new(read().context_with(|| path.display().to_string())?);
            Ok(Self(Files { path, blobs }))
        }
    }

    /// Blobs stored as files of a folder.
    #[derive(Debug)]
    struct Files {
        path: PathBuf,
        blobs: RefCell<BTreeMap<String, Blob>>,
    }

    #[derive(Debug)]
    struct Blob {
        file: File,
        len: u64,
    }

    impl Files {
        fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
            check_plain_name(name)?;
            let mut blobs = self.blobs.borrow_mut();
            if !blobs.contains_key(name) {
                if offset > 0 {
                    return Err(hole(offset, 0));
                }
                let mut options = File::options();
                let file = options.read(true).write(true).create_new(true).open(self.path.join(name))?;
                blobs.insert(name.to_owned(), Blob { file, len: 0 });
            }
            let blob = blobs.get_mut(name).expect("it was just inserted");
            if offset > blob.len {
                return Err(hole(offset, blob.len));
            }
            blob.file.seek(SeekFrom::Start(offset))?;
            blob.file.write_all(bytes)?;
            blob.len = blob.len.max(offset + bytes.len() as u64);
            Ok(())
        }

        fn read(&self, name: &str, offset: u64, out: &mut [u8]) -> Result<()> {
            let blobs = self.blobs.borrow();
            let blob = blobs.get(name).ok_or_else(absent)?;
            read_exact_at(&blob.file, offset, out, blob.len)
        }

        fn remove(&self, name: &str) -> Result<()> {
            // Closed before it is deleted, as Windows requires.
            if self.blobs.borrow_mut().remove(name).is_some() {
                fs::remove_file(self.path.join(name))?;
            }
            Ok(())
        }
    }

    /// Delegates everything to the inner `Files`.
    macro_rules! scratch_of_files {
        ($type:ty, $files:tt) => {
            impl Scratch for $type {
                fn write_at<'a>(
                    &'a self,
                    blob: &'a str,
                    offset: u64,
                    bytes: &'a [u8],
                ) -> BoxFuture<'a, Result<()>> {
                    Box::pin(ready(self.$files.write(blob, offset, bytes).map_err(named(blob))))
                }

                fn read_at<'a>(
                    &'a self,
                    blob: &'a str,
                    offset: u64,
                    out: &'a mut [u8],
                ) -> BoxFuture<'a, Result<()>> {
                    Box::pin(ready(self.$files.read(blob, offset, out).map_err(named(blob))))
                }

                fn len<'a>(&'a self, blob: &'a str) -> BoxFuture<'a, Result<Option<u64>>> {
                    Box::pin(ready(Ok(self.$files.blobs.borrow().get(blob).map(|blob| blob.len))))
                }

                fn delete<'a>(&'a self, blob: &'a str) -> BoxFuture<'a, Result<()>> {
                    Box::pin(ready(self.$files.remove(blob).map_err(named(blob))))
                }

                fn names(&self) -> BoxFuture<'_, Result<Vec<String>>> {
                    Box::pin(ready(Ok(self.$files.blobs.borrow().keys().cloned().collect())))
                }
            }
        };
    }

    scratch_of_files!(TempScratch, files);
    scratch_of_files!(KeptScratch, 0);
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::task::block_on;
    use proptest::prelude::*;

    fn both() -> [Box<dyn Scratch>; 2] {
        [Box::new(MemoryScratch::new()), Box::new(TempScratch::new().unwrap())]
    }

    #[test]
    fn kept_blobs_are_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let open = || KeptScratch::open(&path).unwrap();
        let first = open();
        assert!(block_on(first.names()).unwrap().is_empty());
        for (blob, bytes) in [("a", &b"abc"[..]), ("b", b"x"), ("c", b"y")] {
            block_on(first.append(blob, bytes)).unwrap();
        }
        block_on(first.delete("b")).unwrap();
        drop(first);
        let second = open();
        assert_eq!(block_on(second.names()).unwrap(), ["a", "c"]);
        block_on(second.append("a", b"def")).unwrap();
        block_on(second.write_at("a", 1, b"B")).unwrap();
        let third = open();
        let mut out = [0; 6];
        block_on(third.read_at("a", 0, &mut out)).unwrap();
        assert_eq!(&out, b"aBcdef");
        assert_eq!(block_on(third.len("c")).unwrap(), Some(1));
        block_on(third.delete("c")).unwrap();
        assert_eq!(block_on(open().names()).unwrap(), ["a"]);
    }

    #[test]
    fn blobs_are_written_read_and_deleted() {
        for scratch in both() {
            assert_eq!(block_on(scratch.len("h")).unwrap(), None);
            block_on(scratch.append("h", b"abc")).unwrap();
            block_on(scratch.append("h", b"def")).unwrap();
            block_on(scratch.write_at("h", 2, b"CD")).unwrap();
            block_on(scratch.write_at("other", 0, b"x")).unwrap();
            let mut out = [0; 4];
            block_on(scratch.read_at("h", 1, &mut out)).unwrap();
            assert_eq!(&out, b"bCDe");
            assert_eq!(block_on(scratch.len("h")).unwrap(), Some(6));
            block_on(scratch.delete("h")).unwrap();
            block_on(scratch.delete("h")).unwrap();
            assert_eq!(block_on(scratch.len("h")).unwrap(), None);
            assert_eq!(block_on(scratch.len("other")).unwrap(), Some(1));
        }
    }

    #[test]
    fn mistakes_name_the_blob() {
        for scratch in both() {
            block_on(scratch.append("h", b"abc")).unwrap();
            let cases = [
                (block_on(scratch.read_at("absent", 0, &mut [0])), ErrorCode::NotFound, "absent"),
                (block_on(scratch.read_at("h", 2, &mut [0; 2])), ErrorCode::Io, "`h`"),
                (block_on(scratch.read_at("h", u64::MAX, &mut [0; 2])), ErrorCode::Io, "`h`"),
                (block_on(scratch.write_at("h", 4, b"x")), ErrorCode::InvalidArgument, "`h`"),
                (block_on(scratch.write_at("new", 1, b"x")), ErrorCode::InvalidArgument, "`new`"),
                (block_on(scratch.append("../h", b"x")), ErrorCode::InvalidArgument, "../h"),
            ];
            for (result, code, name) in cases {
                let error = result.unwrap_err();
                assert_eq!(error.code(), code, "{error}");
                assert!(error.to_string().contains(name), "{error}");
            }
        }
    }

    #[test]
    fn the_temporary_folder_goes_with_its_owner() {
        let scratch = TempScratch::new().unwrap();
        block_on(scratch.append("h", b"abc")).unwrap();
        let path = scratch.path().to_owned();
        assert!(path.join("h").exists());
        drop(scratch);
        assert!(!path.exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        /// Memory serves as the reference for the files.
        #[test]
        fn disk_and_memory_answer_alike(
            steps in prop::collection::vec((0u8..3, 0u64..40, prop::collection::vec(any::<u8>(), 0..20)), 0..30)
        ) {
            let scratches = both();
            for (kind, offset, bytes) in steps {
                let [memory, disk] = scratches.each_ref().map(|scratch| {
                    let mut out = vec![0; bytes.len()];
                    let result = block_on(async {
                        match kind {
                            0 => scratch.write_at("h", offset, &bytes).await,
                            1 => scratch.append("h", &bytes).await,
                            _ => scratch.read_at("h", offset, &mut out).await,
                        }
                    });
                    (result.map(|()| out).map_err(|error| error.code()), block_on(scratch.len("h")).unwrap())
                });
                prop_assert_eq!(memory, disk);
            }
        }
    }
}
