//! Byte sinks: files written front to back that appear only when complete.
//!
//! Not here: scratch space that is read back (`scratch`).

use crate::error::{Error, ErrorCode, Result};
use crate::format::check_plain_name;
use crate::format::source::{MemoryDir, SourceDir};
use crate::task::BoxFuture;
use std::cell::{Cell, RefCell};
use std::future::ready;
use std::rc::Rc;
use std::sync::Arc;

#[cfg(not(target_os = "unknown"))]
pub use native::FsSinkDir;

/// A file being written. Dropping it unfinished leaves no file under its name.
pub trait ByteSink {
    /// Appends `bytes`.
    fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>>;

    /// Makes the file appear under its name, replacing a file of that name.
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<()>>;
}

/// A folder being written.
pub trait SinkDir {
    /// The name in messages.
    fn name(&self) -> &str;

    /// The folder's finished files, for reading. In memory, this is a snapshot: files finished later may be missing.
    fn existing(&self) -> Arc<dyn SourceDir>;

    /// Starts a file of the folder.
    fn create<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Box<dyn ByteSink>>>;

    /// Removes a file of the folder; a file that does not exist is no error.
    fn remove<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<()>>;

    /// Completes once the names of all finished files would survive a power failure. A file's content is durable as
    /// soon as the file appears.
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Ok(())))
    }

    /// Removes unfinished files left by killed writers. Finished files are not touched; files that are being written at
    /// the moment are lost.
    fn remove_unfinished(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Ok(())))
    }
}

/// Writes a whole small file, such as `config.json` or a report.
///
/// # Errors
/// Errors of the folder.
pub async fn write_whole(dir: &dyn SinkDir, file: &str, bytes: &[u8]) -> Result<()> {
    let mut sink = dir.create(file).await?;
    sink.write(bytes).await?;
    sink.finish().await
}

/// A writable folder in memory. Clones share the folder.
#[derive(Clone, Debug)]
pub struct MemorySinkDir(Rc<MemoryFolder>);

#[derive(Debug)]
struct MemoryFolder {
    name: String,
    files: RefCell<MemoryDir>,
    /// Remaining bytes, over all files; removing a file gives nothing back.
    room: Cell<u64>,
}

impl MemorySinkDir {
    /// An empty folder with this name in messages.
    pub fn new(name: impl Into<String>) -> Self {
        Self::with_room(name, u64::MAX)
    }

    /// A folder that is full after `bytes` bytes, like a full disk. For tests.
    pub fn with_room(name: impl Into<String>, bytes: u64) -> Self {
        let name = name.into();
        let files = RefCell::new(MemoryDir::new(&name));
        Self(Rc::new(MemoryFolder { name, files, room: Cell::new(bytes) }))
    }

    /// A readable snapshot of the finished files. Bytes are shared, not copied.
    pub fn to_dir(&self) -> MemoryDir {
        self.0.files.borrow().clone()
    }
}

impl SinkDir for MemorySinkDir {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn existing(&self) -> Arc<dyn SourceDir> {
        Arc::new(self.to_dir())
    }

    fn create<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Box<dyn ByteSink>>> {
        let created = check_plain_name(file).map_err(|error| error.context(&self.0.name)).map(|()| {
            let sink = MemorySink { folder: self.0.clone(), file: file.to_owned(), bytes: Vec::new() };
            Box::new(sink) as Box<dyn ByteSink>
        });
        Box::pin(ready(created))
    }

    fn remove<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<()>> {
        self.0.files.borrow_mut().remove(file);
        Box::pin(ready(Ok(())))
    }
}

struct MemorySink {
    folder: Rc<MemoryFolder>,
    file: String,
    bytes: Vec<u8>,
}

impl ByteSink for MemorySink {
    fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        let room = &self.folder.room;
        let result = match room.get().checked_sub(bytes.len() as u64) {
            Some(left) => {
                room.set(left);
                self.bytes.extend_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::new(ErrorCode::StorageFull, "no space left").context(&self.file)),
        };
        Box::pin(ready(result))
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        let Self { folder, file, bytes } = *self;
        folder.files.borrow_mut().insert(file, bytes);
        Box::pin(ready(Ok(())))
    }
}

#[cfg(not(target_os = "unknown"))]
mod native {
    use super::{ByteSink, SinkDir};
    use crate::error::{Context, Result};
    use crate::format::check_plain_name;
    use crate::format::source::{FsDir, SourceDir};
    use crate::task::BoxFuture;
    use std::fs;
    use std::future::ready;
    use std::io::{self, BufWriter, Write};
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use tempfile::NamedTempFile;

    /// Large enough to make system calls cheap next to the copy, small enough for several open files.
    const BUFFER_BYTES: usize = 1 << 18;

    /// The suffix of this crate's temporary files and folders.
    const UNFINISHED: &str = ".lowbit.tmp";

    /// A writable folder on disk. Each file is a temporary file in the same folder until it is complete.
    #[derive(Clone, Debug)]
    pub struct FsSinkDir {
        name: String,
        path: PathBuf,
    }

    impl FsSinkDir {
        /// The folder at `path`, created with its parents if it does not exist.
        ///
        /// # Errors
        /// `io` or `storage_full` if it cannot be created, or if something else has its name.
        pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
            let dir = Self::at(path);
            fs::create_dir_all(&dir.path).context_with(|| &dir.name)?;
            Ok(dir)
        }

        /// The folder at `path`, created when its first file is started.
        pub fn at(path: impl Into<PathBuf>) -> Self {
            let path = path.into();
            Self { name: path.display().to_string(), path }
        }

        /// The folder's path.
        pub fn path(&self) -> &Path {
            &self.path
        }

        /// As [`SinkDir::remove_unfinished`], for one file only: others may be being written.
        ///
        /// # Errors
        /// `io` if something cannot be removed.
        pub fn remove_unfinished_of(&self, file: &str) -> Result<()> {
            self.remove_temporary(&format!(".{file}.")).context_with(|| &self.name)
        }

        /// Removes temporary files and folders whose names begin with `prefix`.
        fn remove_temporary(&self, prefix: &str) -> io::Result<()> {
            let entries = match fs::read_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.as_encoded_bytes();
                if !(name.starts_with(prefix.as_bytes()) && name.ends_with(UNFINISHED.as_bytes())) {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        }

        /// Flushes the folder's entries to disk. Windows has no such call: there the file system's journal covers the
        /// rename.
        fn sync(&self) -> io::Result<()> {
            if cfg!(unix) { fs::File::open(&self.path)?.sync_all() } else { Ok(()) }
        }

        fn place(&self, file: &str) -> Result<PathBuf> {
            check_plain_name(file).context_with(|| &self.name)?;
            Ok(self.path.join(file))
        }

        fn start(&self, file: &str) -> Result<FsSink> {
            let path = self.place(file)?;
            fs::create_dir_all(&self.path).context_with(|| &self.name)?;
            let mut builder = tempfile::Builder::new();
            let prefix = format!(".{file}.");
            builder.prefix(&prefix).suffix(UNFINISHED);
            // tempfile's own files are private to the user; a model must be an ordinary file, whose mode the umask
            // narrows.
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
            let temp = builder.tempfile_in(&self.path).context_with(|| path.display().to_string())?;
            Ok(FsSink { temp: BufWriter::with_capacity(BUFFER_BYTES, DirectWriter(temp)), path })
        }
    }

    impl SinkDir for FsSinkDir {
        fn name(&self) -> &str {
            &self.name
        }

        fn existing(&self) -> Arc<dyn SourceDir> {
            Arc::new(FsDir::at(&self.path))
        }

        fn create<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Box<dyn ByteSink>>> {
            let started = self.start(file).map(|sink| Box::new(sink) as Box<dyn ByteSink>);
            Box::pin(ready(started))
        }

        fn remove<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<()>> {
            let removed = self.place(file).and_then(|path| match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(error).context_with(|| path.display().to_string())
                }
                _ => Ok(()),
            });
            Box::pin(ready(removed))
        }

        fn flush(&self) -> BoxFuture<'_, Result<()>> {
            Box::pin(ready(self.sync().context_with(|| &self.name)))
        }

        fn remove_unfinished(&self) -> BoxFuture<'_, Result<()>> {
            Box::pin(ready(self.remove_temporary(".").context_with(|| &self.name)))
        }
    }

    /// Writes to the file directly: tempfile's wrapper would name the temporary file in its errors.
    struct DirectWriter(NamedTempFile);

    impl Write for DirectWriter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.as_file_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    pub(super) struct FsSink {
        temp: BufWriter<DirectWriter>,
        path: PathBuf,
    }

    impl FsSink {
        fn persist(self) -> Result<()> {
            let Self { mut temp, path } = self;
            let shown = || path.display().to_string();
            temp.flush().context_with(shown)?;
            let (DirectWriter(temp), _) = temp.into_parts();
            // Synced once, before the file gets its name: a visible file is complete.
            temp.as_file().sync_all().context_with(shown)?;
            temp.persist(&path).map_err(|failed| failed.error).context_with(shown)?;
            Ok(())
        }
    }

    #[cfg(all(test, target_os = "linux"))]
    impl FsSink {
        /// A sink on a full disk: `/dev/full` takes the place of the temporary file.
        pub(super) fn on_a_full_disk(path: PathBuf) -> Self {
            let full = fs::File::options().write(true).open("/dev/full").expect("Linux has it");
            // A path that does not exist: dropping must not delete the device.
            let nowhere = tempfile::TempPath::try_from_path(path.with_extension("absent")).expect("absolute");
            let temp = NamedTempFile::from_parts(full, nowhere);
            FsSink { temp: BufWriter::with_capacity(BUFFER_BYTES, DirectWriter(temp)), path }
        }
    }

    impl ByteSink for FsSink {
        fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
            let written = self.temp.write_all(bytes).context_with(|| self.path.display().to_string());
            Box::pin(ready(written))
        }

        fn finish(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
            Box::pin(ready(self.persist()))
        }
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::format::source::{FsDir, SourceDir, read_whole};
    use crate::task::block_on;
    use std::fs;

    fn content(dir: &dyn SourceDir, file: &str) -> Option<Vec<u8>> {
        let source = block_on(dir.open(file)).unwrap()?;
        Some(block_on(read_whole(&*source, 1 << 30)).unwrap())
    }

    /// Runs `check` on a folder on disk and on one in memory; the second argument reads a finished file.
    fn on_each(check: impl Fn(&dyn SinkDir, &dyn Fn(&str) -> Option<Vec<u8>>)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/out");
        let disk = FsSinkDir::create(&path).unwrap();
        check(&disk, &|file| content(&FsDir::open(&path).unwrap(), file));
        let memory = MemorySinkDir::new("out");
        check(&memory, &|file| content(&memory.to_dir(), file));
    }

    #[test]
    fn a_file_appears_when_it_is_whole() {
        on_each(|dir, read| {
            block_on(write_whole(dir, "model", b"old")).unwrap();
            let mut sink = block_on(dir.create("model")).unwrap();
            block_on(sink.write(b"new ")).unwrap();
            block_on(sink.write(b"content")).unwrap();
            assert_eq!(read("model").unwrap(), b"old");
            block_on(sink.finish()).unwrap();
            assert_eq!(read("model").unwrap(), b"new content");
            block_on(dir.remove("model")).unwrap();
            block_on(dir.remove("model")).unwrap();
            assert_eq!(read("model"), None);
            for name in ["../up", "a/b", ""] {
                assert_eq!(block_on(dir.create(name)).err().unwrap().code(), ErrorCode::InvalidArgument);
            }
        });
    }

    #[test]
    fn a_dropped_sink_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dir = FsSinkDir::create(folder.path()).unwrap();
        let mut sink = block_on(dir.create("model")).unwrap();
        block_on(sink.write(&vec![1; 1 << 20])).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(sink);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_in_the_way_is_an_error_that_names_it_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("model")).unwrap();
        let dir = FsSinkDir::create(folder.path()).unwrap();
        let error = block_on(write_whole(&dir, "model", b"x")).unwrap_err();
        assert!(error.to_string().contains("model"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::write(folder.path().join("file"), b"").unwrap();
        let error = FsSinkDir::create(folder.path().join("file")).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn files_have_the_rights_of_ordinary_files() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let dir = FsSinkDir::create(folder.path()).unwrap();
        block_on(write_whole(&dir, "ours", b"x")).unwrap();
        fs::write(folder.path().join("ordinary"), b"x").unwrap();
        let mode = |file: &str| fs::metadata(folder.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode("ours"), mode("ordinary"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_storage_full_whenever_it_shows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        for (bytes, fails_at_once) in [(10, false), (1 << 20, true)] {
            let mut sink = Box::new(native::FsSink::on_a_full_disk(path.clone()));
            let written = block_on(sink.write(&vec![0; bytes]));
            assert_eq!(written.is_err(), fails_at_once);
            let error = written.and_then(|()| block_on(sink.finish())).unwrap_err();
            assert_eq!(error.code(), ErrorCode::StorageFull, "{error}");
            assert!(error.to_string().contains("model.safetensors: "), "{error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn no_space_is_storage_full_and_names_the_file() {
        let dir = MemorySinkDir::with_room("out", 5);
        block_on(write_whole(&dir, "small", b"1234")).unwrap();
        let error = block_on(write_whole(&dir, "model.safetensors", b"12")).unwrap_err();
        assert_eq!(error.code(), ErrorCode::StorageFull);
        assert!(error.to_string().contains("model.safetensors"), "{error}");
        assert_eq!(dir.to_dir().names().collect::<Vec<_>>(), ["small"]);
    }
}
