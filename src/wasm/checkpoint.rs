//! Bindings of open checkpoints: inspection and planning before any weight is read.

use super::error::to_js;
use super::source::{FileHandle, FolderHandle, JsFile, JsFolder};
use super::values::{JsResult, from_value, to_value};
use crate::error::Result;
use crate::format::small_file::read_file;
use crate::layout::OpenOptions;
use crate::model::{Checkpoint, Inspection};
use crate::plan::{MemoryPlan, ModelDims};
use crate::request::PlanRequest;
use js_sys::{Object, Reflect, Uint8Array};
use std::rc::Rc;
use std::sync::Arc;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

/// An open checkpoint. Freeing the handle during a call is safe.
#[wasm_bindgen(js_name = Checkpoint)]
pub struct CheckpointHandle(Rc<Checkpoint>);

/// The files of a tokenizer.
const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

#[wasm_bindgen(js_class = Checkpoint)]
impl CheckpointHandle {
    /// Opens a folder.
    pub async fn open(
        folder: FolderHandle,
        #[wasm_bindgen(unchecked_param_type = "options.OpenOptions")] options: JsValue,
    ) -> JsResult<CheckpointHandle> {
        let opened = async {
            let options: OpenOptions = from_value(options, "openCheckpoint")?;
            Checkpoint::open_with(Arc::new(JsFolder::new(folder)), &options).await
        };
        opened.await.map(|checkpoint| Self(Rc::new(checkpoint))).map_err(to_js)
    }

    /// Opens a GGUF file.
    #[wasm_bindgen(js_name = openGguf)]
    pub async fn open_gguf(
        file: FileHandle,
        #[wasm_bindgen(unchecked_param_type = "options.OpenOptions")] options: JsValue,
    ) -> JsResult<CheckpointHandle> {
        let opened = async {
            let options: OpenOptions = from_value(options, "openCheckpoint")?;
            Checkpoint::open_gguf_with(Arc::new(JsFile::new(file)?), &options).await
        };
        opened.await.map(|checkpoint| Self(Rc::new(checkpoint))).map_err(to_js)
    }

    /// Another handle of the same checkpoint, for a function that takes ownership.
    pub fn share(&self) -> Self {
        Self(self.0.clone())
    }

    /// Describes the checkpoint: architecture, sizes, number formats.
    #[wasm_bindgen(unchecked_return_type = "types.CheckpointInfo")]
    pub fn inspect(&self) -> JsResult<JsValue> {
        to_value(&Inspection::new(&self.0).map_err(to_js)?)
    }

    /// Plans its memory at each precision.
    #[wasm_bindgen(unchecked_return_type = "types.Plan")]
    pub fn plan(
        &self,
        #[wasm_bindgen(unchecked_param_type = "options.PlanRequest")] request: JsValue,
    ) -> JsResult<JsValue> {
        let plan = || {
            let request: PlanRequest = from_value(request, "plan")?;
            let config = self.0.config();
            MemoryPlan::new(ModelDims::from(config), &request.options(Some(config)))
        };
        to_value(&plan().map_err(to_js)?)
    }

    /// The beginning-of-sequence token of the model configuration.
    #[wasm_bindgen(getter, js_name = bosTokenId)]
    pub fn bos_token_id(&self) -> Option<u32> {
        self.0.config().bos_token_id
    }

    /// Unknown keys of the tokenizer's settings to ignore.
    #[wasm_bindgen(getter, js_name = allowUnknown)]
    pub fn allow_unknown(&self) -> Vec<String> {
        self.0.allow_unknown().to_vec()
    }

    /// The number of rows of the embedding.
    #[wasm_bindgen(getter, js_name = embeddingRows)]
    pub fn embedding_rows(&self) -> usize {
        self.0.config().vocab_size
    }

    /// The files for the module `tokenizer`, by name.
    #[wasm_bindgen(js_name = tokenizerFiles, unchecked_return_type = "Record<string, Uint8Array>")]
    pub async fn tokenizer_files(&self) -> JsResult<Object> {
        let checkpoint = self.0.clone();
        let read = async {
            if let Some(problem) = checkpoint.tokenizer_problem() {
                return Err(problem.clone());
            }
            let files = Object::new();
            for name in TOKENIZER_FILES {
                if let Some(bytes) = read_file(checkpoint.dir().as_ref(), name).await? {
                    // Setting a property of a fresh object cannot fail.
                    let _ = Reflect::set(&files, &name.into(), &Uint8Array::from(bytes.as_slice()));
                }
            }
            Result::Ok(files)
        };
        read.await.map_err(to_js)
    }
}

impl CheckpointHandle {
    pub(super) fn get(&self) -> Rc<Checkpoint> {
        self.0.clone()
    }
}

/// Plans the memory of a model with `parameters` parameters at each precision.
#[wasm_bindgen(js_name = planParameters, unchecked_return_type = "types.Plan")]
pub fn plan_parameters(
    parameters: f64,
    #[wasm_bindgen(unchecked_param_type = "options.PlanRequest")] request: JsValue,
) -> JsResult<JsValue> {
    let plan = || {
        let request: PlanRequest = from_value(request, "plan")?;
        MemoryPlan::for_parameters(parameters as u64, &request.options(None))
    };
    to_value(&plan().map_err(to_js)?)
}
