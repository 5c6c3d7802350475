//! Output folders written by JavaScript: directory handles, paths, streams, memory.

use super::error::from_js;
use super::source::{FolderHandle, JsFolder};
use super::values::{copied, settled};
use crate::error::{Context, Result};
use crate::format::check_plain_name;
use crate::format::sink::{ByteSink, SinkDir};
use crate::format::source::SourceDir;
use crate::task::BoxFuture;
use js_sys::{Promise, Uint8Array};
use std::sync::Arc;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};

#[wasm_bindgen]
extern "C" {
    /// `{name, existing: Folder, create(file): Promise<Sink>, remove(file): Promise, removeUnfinished(): Promise}`
    #[derive(Clone)]
    #[wasm_bindgen(typescript_type = "TargetFolder")]
    pub type TargetHandle;

    #[wasm_bindgen(method, getter)]
    fn name(this: &TargetHandle) -> String;

    #[wasm_bindgen(method, getter)]
    fn existing(this: &TargetHandle) -> FolderHandle;

    #[wasm_bindgen(method, catch)]
    fn create(this: &TargetHandle, file: &str) -> Result<Promise, JsValue>;

    #[wasm_bindgen(method, catch)]
    fn remove(this: &TargetHandle, file: &str) -> Result<Promise, JsValue>;

    #[wasm_bindgen(method, catch, js_name = removeUnfinished)]
    fn remove_unfinished(this: &TargetHandle) -> Result<Promise, JsValue>;

    /// `{write(bytes): Promise, finish(): Promise, abort(): void}`
    #[wasm_bindgen(typescript_type = "Sink")]
    pub type SinkHandle;

    #[wasm_bindgen(method, catch)]
    fn write(this: &SinkHandle, bytes: Uint8Array) -> Result<Promise, JsValue>;

    #[wasm_bindgen(method, catch)]
    fn finish(this: &SinkHandle) -> Result<Promise, JsValue>;

    #[wasm_bindgen(method, catch)]
    fn abort(this: &SinkHandle) -> Result<(), JsValue>;
}

/// Writes are buffered to this many bytes, because each crosses into JavaScript, and perhaps to another thread.
const BUFFER_BYTES: usize = 1 << 20;

/// An output folder in JavaScript.
pub(super) struct JsTarget {
    target: TargetHandle,
    name: String,
}

impl JsTarget {
    pub(super) fn new(target: TargetHandle) -> Self {
        Self { name: target.name(), target }
    }

    async fn start(&self, file: &str) -> Result<Box<dyn ByteSink>> {
        check_plain_name(file)?;
        let sink = settled(self.target.create(file).map_err(|error| from_js(&error))?).await?;
        Ok(Box::new(JsSink {
            sink: Some(sink.unchecked_into()),
            name: file.to_owned(),
            gathered: Vec::new(),
        }))
    }
}

impl SinkDir for JsTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn existing(&self) -> Arc<dyn SourceDir> {
        Arc::new(JsFolder::new(self.target.existing()))
    }

    fn create<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<Box<dyn ByteSink>>> {
        Box::pin(async move { self.start(file).await.context_with(|| self.name.as_str()) })
    }

    fn remove<'a>(&'a self, file: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let removed = self.target.remove(file).map_err(|error| from_js(&error));
            settled(removed?).await.map(drop).context_with(|| self.name.as_str())
        })
    }

    fn remove_unfinished(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let removed = self.target.remove_unfinished().map_err(|error| from_js(&error));
            settled(removed?).await.map(drop).context_with(|| self.name.as_str())
        })
    }
}

/// A file being written by JavaScript. Dropping it unfinished aborts it.
struct JsSink {
    sink: Option<SinkHandle>,
    name: String,
    gathered: Vec<u8>,
}

impl JsSink {
    async fn flush(&mut self) -> Result<()> {
        if let (Some(sink), false) = (&self.sink, self.gathered.is_empty()) {
            let written = sink.write(copied(&self.gathered)).map_err(|error| from_js(&error));
            settled(written?).await?;
            self.gathered.clear();
        }
        Ok(())
    }

    async fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        if self.gathered.len() + bytes.len() > BUFFER_BYTES {
            self.flush().await?;
        }
        if bytes.len() < BUFFER_BYTES {
            self.gathered.extend_from_slice(bytes);
            return Ok(());
        }
        let Some(sink) = &self.sink else { return Ok(()) };
        let written = sink.write(copied(bytes)).map_err(|error| from_js(&error));
        settled(written?).await.map(drop)
    }

    async fn close(mut self) -> Result<()> {
        self.flush().await?;
        let Some(sink) = &self.sink else { return Ok(()) };
        settled(sink.finish().map_err(|error| from_js(&error))?).await?;
        self.sink = None;
        Ok(())
    }
}

impl ByteSink for JsSink {
    fn write<'a>(&'a mut self, bytes: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let written = self.write_all(bytes).await;
            written.context_with(|| self.name.as_str())
        })
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            let name = self.name.clone();
            self.close().await.context_with(|| name)
        })
    }
}

impl Drop for JsSink {
    fn drop(&mut self) {
        if let Some(sink) = &self.sink {
            // The reason for aborting is reported already, so an error of `abort` is ignored.
            let _ = sink.abort();
        }
    }
}
