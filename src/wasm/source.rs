//! Files and folders read by JavaScript: `Blob`s, URLs, directory handles, paths, any object with `read`.

use super::error::from_js;
use super::values::{number, settled};
use crate::error::{Context, Error, ErrorCode, Result};
use crate::format::check_inner_name;
use crate::format::source::{ByteSource, SourceDir};
use crate::task::BoxFuture;
use js_sys::{Promise, Uint8Array};
use std::sync::Arc;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};

#[wasm_bindgen]
extern "C" {
    /// `{name, size, read(offset, length): Promise<Uint8Array>}`
    #[derive(Clone)]
    #[wasm_bindgen(typescript_type = "OpenFile")]
    pub type FileHandle;

    #[wasm_bindgen(method, getter)]
    fn name(this: &FileHandle) -> String;

    #[wasm_bindgen(method, getter)]
    fn size(this: &FileHandle) -> f64;

    #[wasm_bindgen(method, catch)]
    fn read(this: &FileHandle, offset: f64, length: f64) -> Result<Promise, JsValue>;

    /// `{name, open(file): Promise<File | undefined>}`
    #[derive(Clone)]
    #[wasm_bindgen(typescript_type = "Folder")]
    pub type FolderHandle;

    #[wasm_bindgen(method, getter)]
    fn name(this: &FolderHandle) -> String;

    #[wasm_bindgen(method, catch)]
    fn open(this: &FolderHandle, file: &str) -> Result<Promise, JsValue>;
}

/// A file in JavaScript.
pub(super) struct JsFile {
    file: FileHandle,
    name: String,
    len: u64,
}

impl JsFile {
    /// # Errors
    /// `invalid_argument` for a size that is not a whole number of bytes.
    pub(super) fn new(file: FileHandle) -> Result<Self> {
        let (name, size) = (file.name(), file.size());
        if !(size >= 0.0 && size.fract() == 0.0 && size <= 9_007_199_254_740_991.0) {
            return Err(
                Error::invalid_argument(format!("expected a size in bytes but found {size}")).context(name)
            );
        }
        Ok(Self { file, name, len: size as u64 })
    }

    async fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let wanted = out.len();
        if offset.checked_add(wanted as u64).is_none_or(|end| end > self.len) {
            return Err(Error::new(
                ErrorCode::Io,
                format!("expected {wanted} bytes at offset {offset} but the file ends at {}", self.len),
            ));
        }
        let promise =
            self.file.read(number(offset), number(wanted as u64)).map_err(|error| from_js(&error))?;
        let bytes = settled(promise).await?;
        let bytes = bytes.dyn_ref::<Uint8Array>().ok_or_else(|| {
            Error::invalid_argument("expected `read` to give a Uint8Array but found something else")
        })?;
        if bytes.length() as usize != wanted {
            return Err(Error::new(
                ErrorCode::Io,
                format!("expected {wanted} bytes at offset {offset} but got {}", bytes.length()),
            ));
        }
        bytes.copy_to(out);
        Ok(())
    }
}

impl ByteSource for JsFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at<'a>(&'a self, offset: u64, out: &'a mut [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.read(offset, out).await.context_with(|| self.name.as_str()) })
    }
}

/// A folder in JavaScript.
pub(super) struct JsFolder {
    folder: FolderHandle,
    name: String,
}

impl JsFolder {
    pub(super) fn new(folder: FolderHandle) -> Self {
        Self { name: folder.name(), folder }
    }

    async fn open_file(&self, file: &str) -> Result<Option<Arc<dyn ByteSource>>> {
        check_inner_name(file)?;
        let opened = settled(self.folder.open(file).map_err(|error| from_js(&error))?).await?;
        if opened.is_undefined() || opened.is_null() {
            return Ok(None);
        }
        Ok(Some(Arc::new(JsFile::new(opened.unchecked_into())?)))
    }
}

impl SourceDir for JsFolder {
    fn name(&self) -> &str {
        &self.name
    }

    fn open<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Option<Arc<dyn ByteSource>>>> {
        Box::pin(async move { self.open_file(file).await.map_err(|error| error.within(&self.name)) })
    }
}
