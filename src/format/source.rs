//! Byte sources: files with random access, and the folders that hold them.
//!
//! The traits are asynchronous because browser sources are; native sources are ready at once. Not here: the meaning of
//! the bytes (`safetensors`), and files that are both written and read (`scratch`).

use crate::error::{Error, ErrorCode, Result};
use crate::format::check_inner_name;
use crate::task::{BoxFuture, Shareable};
use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(not(target_os = "unknown"))]
pub use native::{FileSource, FsDir};

/// A file that can be read by range.
pub trait ByteSource: Shareable {
    /// The name in messages: a path, a URL, a file name.
    fn name(&self) -> &str;

    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether the source holds no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// Fails with `io` if the source ends before `out` is full; the content of `out` is then unspecified.
    fn read_at<'a>(&'a self, offset: u64, out: &'a mut [u8]) -> BoxFuture<'a, Result<()>>;
}

/// A folder of sources: a checkpoint on disk, in memory, behind a URL or behind a directory handle.
pub trait SourceDir: Shareable {
    /// The name in messages.
    fn name(&self) -> &str;

    /// Opens a file of the folder by name; `None` if it does not exist. The separator of subfolders is `/` on every
    /// system.
    ///
    /// Names come from untrusted files, so an implementation must never leave its folder.
    fn open<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Option<Arc<dyn ByteSource>>>>;

    /// The sorted names of the folder's entries, or of `subfolder`'s, if the folder can be listed. For messages only:
    /// use [`open`](Self::open) to find files.
    fn list(&self, subfolder: Option<&str>) -> Option<Vec<String>> {
        _ = subfolder;
        None
    }
}

/// Reads a whole source, for files that are small by nature (`config.json`, an index).
///
/// # Errors
/// `invalid_checkpoint` if the source is longer than `max_bytes`; errors of reading.
pub async fn read_whole(source: &dyn ByteSource, max_bytes: u64) -> Result<Vec<u8>> {
    if source.len() > max_bytes {
        return Err(Error::invalid_checkpoint(format!(
            "expected at most {max_bytes} bytes but the file has {}",
            source.len()
        ))
        .context(source.name()));
    }
    let mut bytes = crate::format::zeroed(source.len()).map_err(|error| error.context(source.name()))?;
    source.read_at(0, &mut bytes).await?;
    Ok(bytes)
}

/// The error of a read past the end.
pub(crate) fn ends_early(offset: u64, wanted: usize, len: u64) -> Error {
    Error::new(
        ErrorCode::Io,
        format!("expected {wanted} bytes at offset {offset} but the file ends at {len}"),
    )
}

/// A source whose bytes are in memory.
#[derive(Clone, Debug)]
pub struct MemorySource {
    name: String,
    bytes: Arc<Vec<u8>>,
}

impl MemorySource {
    /// A source with this name in messages; shared bytes are not copied.
    pub fn new(name: impl Into<String>, bytes: impl Into<Arc<Vec<u8>>>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }
}

impl ByteSource for MemorySource {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at<'a>(&'a self, offset: u64, out: &'a mut [u8]) -> BoxFuture<'a, Result<()>> {
        let stored = usize::try_from(offset)
            .ok()
            .and_then(|start| self.bytes.get(start..start.checked_add(out.len())?));
        let result = match stored {
            Some(stored) => {
                out.copy_from_slice(stored);
                Ok(())
            }
            None => Err(ends_early(offset, out.len(), self.len()).context(&self.name)),
        };
        Box::pin(std::future::ready(result))
    }
}

/// A folder whose files are in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryDir {
    name: String,
    files: BTreeMap<String, Arc<Vec<u8>>>,
}

impl MemoryDir {
    /// An empty folder with this name in messages.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), files: BTreeMap::new() }
    }

    /// Adds a file, or replaces the file of that name.
    pub fn insert(&mut self, file: impl Into<String>, bytes: impl Into<Arc<Vec<u8>>>) {
        self.files.insert(file.into(), bytes.into());
    }

    /// As [`insert`](Self::insert), to build a folder in one expression.
    #[must_use]
    pub fn with(mut self, file: impl Into<String>, bytes: impl Into<Arc<Vec<u8>>>) -> Self {
        self.insert(file, bytes);
        self
    }

    /// Removes a file from the folder.
    pub fn remove(&mut self, file: &str) -> Option<Arc<Vec<u8>>> {
        self.files.remove(file)
    }

    /// A file's bytes.
    pub fn get(&self, file: &str) -> Option<&Arc<Vec<u8>>> {
        self.files.get(file)
    }

    /// The names of the files, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

impl SourceDir for MemoryDir {
    fn name(&self) -> &str {
        &self.name
    }

    fn open<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Option<Arc<dyn ByteSource>>>> {
        let opened = check_inner_name(file).map_err(|error| error.context(&self.name)).map(|()| {
            let bytes = self.files.get(file)?;
            Some(Arc::new(MemorySource::new(file, bytes.clone())) as Arc<dyn ByteSource>)
        });
        Box::pin(std::future::ready(opened))
    }

    fn list(&self, subfolder: Option<&str>) -> Option<Vec<String>> {
        let inside = |name: &str| match subfolder {
            None => Some(name.to_owned()),
            Some(folder) => name.strip_prefix(folder)?.strip_prefix('/').map(str::to_owned),
        };
        Some(self.names().filter_map(inside).collect())
    }
}

#[cfg(not(target_os = "unknown"))]
mod native {
    use super::{ByteSource, SourceDir, ends_early};
    use crate::error::{Context, Error, ErrorCode, Result};
    use crate::format::check_inner_name;
    use crate::format::links::followed;
    use crate::sort;
    use crate::task::BoxFuture;
    use std::fs::{self, File};
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    /// A file on disk. Reads take an explicit offset, so one handle serves any number of readers.
    #[derive(Debug)]
    pub struct FileSource {
        name: String,
        file: File,
        len: u64,
    }

    impl FileSource {
        /// Opens the file at `path`. Follows symbolic links, which the Hugging Face cache uses.
        ///
        /// # Errors
        /// `not_found` if there is none; `invalid_argument` for a folder or a device; `io` otherwise.
        pub fn open(path: impl AsRef<Path>) -> Result<Self> {
            let name = path.as_ref().display().to_string();
            let path = followed(path.as_ref());
            // Checked before opening: opening a named pipe would wait for a writer.
            if !fs::metadata(&path).context_with(|| &name)?.is_file() {
                return Err(Error::invalid_argument("expected a file but found something else").context(name));
            }
            let file = File::open(path).context_with(|| &name)?;
            let len = file.metadata().context_with(|| &name)?.len();
            Ok(Self { name, file, len })
        }
    }

    impl ByteSource for FileSource {
        fn name(&self) -> &str {
            &self.name
        }

        fn len(&self) -> u64 {
            self.len
        }

        fn read_at<'a>(&'a self, offset: u64, out: &'a mut [u8]) -> BoxFuture<'a, Result<()>> {
            let result = read_exact_at(&self.file, offset, out, self.len).context_with(|| &self.name);
            Box::pin(std::future::ready(result))
        }
    }

    /// Fills `out` from `offset` on, within the `len` bytes that the file had when it was opened.
    pub(crate) fn read_exact_at(file: &File, offset: u64, out: &mut [u8], len: u64) -> Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > len) {
            return Err(ends_early(offset, out.len(), len));
        }
        let mut done = 0;
        while done < out.len() {
            let at = offset + done as u64;
            match read_some_at(file, at, &mut out[done..]) {
                // The file was truncated after it was opened.
                Ok(0) => return Err(ends_early(offset, out.len(), at)),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    #[cfg(unix)]
    fn read_some_at(file: &File, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(file, out, offset)
    }

    /// Moves the handle's cursor, which nothing else uses.
    #[cfg(windows)]
    fn read_some_at(file: &File, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(file, out, offset)
    }

    /// Also moves the handle's cursor: on WASI, std has positional reads only with an unstable compiler.
    #[cfg(target_os = "wasi")]
    fn read_some_at(mut file: &File, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        use io::{Read, Seek};
        file.seek(io::SeekFrom::Start(offset))?;
        file.read(out)
    }

    /// A folder on disk.
    #[derive(Clone, Debug)]
    pub struct FsDir {
        name: String,
        path: PathBuf,
    }

    impl FsDir {
        /// The folder at `path`.
        ///
        /// # Errors
        /// `not_found` if nothing exists there; `invalid_argument` if it is not a folder.
        pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
            let dir = Self::at(path);
            if !fs::metadata(followed(&dir.path)).context_with(|| &dir.name)?.is_dir() {
                return Err(Error::invalid_argument("expected a folder but found a file").context(dir.name));
            }
            Ok(dir)
        }

        /// The folder at `path`, which need not exist yet.
        pub fn at(path: impl Into<PathBuf>) -> Self {
            let path = path.into();
            Self { name: path.display().to_string(), path }
        }

        /// The folder's path.
        pub fn path(&self) -> &Path {
            &self.path
        }
    }

    impl SourceDir for FsDir {
        fn name(&self) -> &str {
            &self.name
        }

        fn open<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Option<Arc<dyn ByteSource>>>> {
            let opened = check_inner_name(file).map_err(|error| error.context(&self.name)).and_then(|()| {
                match FileSource::open(self.path.join(file)) {
                    Ok(source) => Ok(Some(Arc::new(source) as Arc<dyn ByteSource>)),
                    Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
                    Err(error) => Err(error),
                }
            });
            Box::pin(std::future::ready(opened))
        }

        fn list(&self, subfolder: Option<&str>) -> Option<Vec<String>> {
            let folder = subfolder.map_or_else(|| self.path.clone(), |folder| self.path.join(folder));
            let entries = fs::read_dir(followed(&folder)).ok()?;
            let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
            let mut names: Vec<_> = entries.filter_map(name).collect();
            sort::sort(&mut names);
            Some(names)
        }
    }
}

#[cfg(not(target_os = "unknown"))]
pub(crate) use native::read_exact_at;

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::task::block_on;

    /// The same file in memory and on disk: both sources must answer alike.
    fn sources() -> (tempfile::TempDir, Vec<Arc<dyn ByteSource>>) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("digits"), b"0123456789").unwrap();
        let disk = FsDir::open(folder.path()).unwrap();
        let memory = MemoryDir::new("memory").with("digits", b"0123456789".to_vec());
        let dirs: [&dyn SourceDir; 2] = [&disk, &memory];
        let opened = dirs.map(|dir| block_on(dir.open("digits")).unwrap().unwrap()).to_vec();
        for dir in dirs {
            assert!(block_on(dir.open("absent")).unwrap().is_none());
            for name in ["../digits", "/etc/hostname", "..", "", "a/../digits"] {
                assert_eq!(
                    block_on(dir.open(name)).err().unwrap().code(),
                    ErrorCode::InvalidArgument,
                    "{name}"
                );
            }
        }
        (folder, opened)
    }

    #[test]
    fn ranges_come_whole_or_not_at_all() {
        let (_folder, sources) = sources();
        for source in sources {
            assert_eq!((source.len(), source.is_empty()), (10, false));
            for (offset, expected) in [(0, "0123456789"), (3, "345"), (9, "9"), (10, "")] {
                let mut out = vec![0; expected.len()];
                block_on(source.read_at(offset, &mut out)).unwrap();
                assert_eq!(out, expected.as_bytes());
            }
            for (offset, len) in [(0, 11), (10, 1), (8, 3), (u64::MAX, 1), (u64::MAX - 1, 10)] {
                let error = block_on(source.read_at(offset, &mut vec![0; len])).unwrap_err();
                assert_eq!(error.code(), ErrorCode::Io, "{offset} {len}");
                assert!(error.to_string().contains("digits"), "{error}");
            }
        }
    }

    #[test]
    fn what_is_no_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("inner")).unwrap();
        let dir = FsDir::open(folder.path()).unwrap();
        let error = block_on(dir.open("inner")).err().unwrap();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        assert!(error.to_string().contains("inner"), "{error}");
        assert_eq!(FsDir::open(folder.path().join("absent")).unwrap_err().code(), ErrorCode::NotFound);
        std::fs::write(folder.path().join("file"), b"").unwrap();
        assert_eq!(FsDir::open(folder.path().join("file")).unwrap_err().code(), ErrorCode::InvalidArgument);
    }

    #[test]
    fn a_file_that_shrank_after_it_was_opened_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shrinking");
        std::fs::write(&path, [1; 100]).unwrap();
        let source = FileSource::open(&path).unwrap();
        std::fs::write(&path, [1; 10]).unwrap();
        let error = block_on(source.read_at(0, &mut [0; 100])).unwrap_err();
        assert!(error.to_string().ends_with("but the file ends at 10"), "{error}");
    }

    #[test]
    fn a_small_file_is_read_whole_and_a_large_one_is_not() {
        let source = MemorySource::new("config.json", b"{}".to_vec());
        assert_eq!(block_on(read_whole(&source, 2)).unwrap(), b"{}");
        let error = block_on(read_whole(&source, 1)).unwrap_err();
        assert_eq!(error.to_string(), "config.json: expected at most 1 bytes but the file has 2");
    }
}
