//! Bindings of loaded models: generation, logits, perplexity.

use super::checkpoint::CheckpointHandle;
use super::codec::{CodecHandle, JsCodec};
use super::control::{ControlHandle, JsControl, busy};
use super::error::{from_js, to_js};
use super::values::{JsResult, from_value, settled, to_value};
use crate::backend::any::AnyBackend;
use crate::backend::choice::DeviceOutcome;
use crate::error::{Error, ErrorCode, Result};
use crate::generate::{GenerateOptions, Generation, Session};
use crate::model::decoder::Logits;
use crate::model::runner::working_bytes;
use crate::model::{CausalLm, Checkpoint};
use crate::request::{LoadRequest, PerplexityRequest};
use crate::task::Control;
use js_sys::{Float32Array, Function, Promise};
use serde::Serialize;
use std::cell::RefCell;
use std::rc::Rc;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};

/// A model, and the session of its chat.
struct Loaded {
    model: CausalLm<AnyBackend>,
    session: Option<Session<AnyBackend>>,
}

/// A loaded model. It runs one call at a time; a second call meanwhile is an error.
#[wasm_bindgen(js_name = Model)]
pub struct ModelHandle {
    /// Empty while the model is in use.
    model: Rc<RefCell<Option<Loaded>>>,
    about: About,
}

#[derive(Clone, Serialize)]
struct About {
    device: String,
    activations: &'static str,
    /// Why it fell back to the CPU, if no device was requested.
    fallback_reason: Option<String>,
    max_position_embeddings: usize,
    vocab_size: usize,
}

/// Takes a model for one call, and puts it back when dropped.
struct ModelGuard {
    place: Rc<RefCell<Option<Loaded>>>,
    model: Option<Loaded>,
}

impl ModelGuard {
    fn take(place: &Rc<RefCell<Option<Loaded>>>) -> Result<Self> {
        let model = place.borrow_mut().take().ok_or_else(|| busy("model"))?;
        Ok(Self { place: place.clone(), model: Some(model) })
    }

    fn get(&mut self) -> &mut Loaded {
        self.model.as_mut().expect("held until it is dropped")
    }
}

impl Drop for ModelGuard {
    fn drop(&mut self) {
        *self.place.borrow_mut() = self.model.take();
    }
}

#[derive(Serialize)]
struct Piece {
    token_id: u32,
    text: String,
}

#[derive(Serialize)]
struct Generated {
    text: String,
    token_ids: Vec<u32>,
    prompt_ids: Vec<u32>,
    finish_reason: &'static str,
    /// Prompt tokens reused from earlier turns of the chat.
    reused_tokens: usize,
    /// Decoding speed; null when only one token was generated.
    tokens_per_second: Option<f64>,
    prefill_seconds: f64,
    /// GPU kernel dispatches per token; null on the CPU.
    dispatches_per_token: Option<f64>,
}

#[derive(Serialize)]
struct Perplexity {
    perplexity: f64,
    tokens: u64,
    context: usize,
    stride: Option<usize>,
}

/// Loads a model onto the requested device.
pub(super) async fn load(
    checkpoint: &Checkpoint,
    request: &LoadRequest,
    control: &dyn Control,
) -> Result<DeviceOutcome<CausalLm<AnyBackend>>> {
    let options = request.options();
    let load = async |backend| {
        if let AnyBackend::Cpu(_) = backend {
            refuse_what_does_not_fit(checkpoint)?;
        }
        CausalLm::load(backend, checkpoint, options, control).await
    };
    // No note of a fallback to the CPU: `ModelHandle::about` reports it.
    request.device.run(|_| (), load).await
}

/// Memory for models: 4 GiB of 32-bit addresses, less 256 MiB for the engine itself.
pub(super) const HEAP_BYTES: u64 = (4 << 30) - (256 << 20);

/// Checks sizes before loading: a module that runs out of memory traps without a message.
fn refuse_what_does_not_fit(checkpoint: &Checkpoint) -> Result<()> {
    let needed = checkpoint.bytes().saturating_add(working_bytes(checkpoint.config()));
    if needed > HEAP_BYTES {
        return Err(Error::new(
            ErrorCode::OutOfMemory,
            format!(
                "{}: the model needs {needed} bytes but the memory of a WebAssembly module holds {HEAP_BYTES}; run it on a GPU, or quantize it",
                checkpoint.name()
            ),
        ));
    }
    Ok(())
}

#[wasm_bindgen(js_class = Model)]
impl ModelHandle {
    /// Loads a model onto the requested device.
    pub async fn load(
        checkpoint: &CheckpointHandle,
        #[wasm_bindgen(unchecked_param_type = "options.LoadRequest")] request: JsValue,
        control: ControlHandle,
    ) -> JsResult<ModelHandle> {
        let checkpoint = checkpoint.get();
        let run = async {
            let request: LoadRequest = from_value(request, "loadModel")?;
            load(&checkpoint, &request, &JsControl::new(control)).await
        };
        let DeviceOutcome { result: model, fallback_reason } = run.await.map_err(to_js)?;
        let config = checkpoint.config();
        let about = About {
            device: model.capabilities().device.clone(),
            activations: model.activations().name(),
            fallback_reason: fallback_reason.map(|error| error.to_string()),
            max_position_embeddings: config.max_position_embeddings,
            vocab_size: config.vocab_size,
        };
        let loaded = Loaded { model, session: None };
        Ok(Self { model: Rc::new(RefCell::new(Some(loaded))), about })
    }

    /// Where and how it runs.
    #[wasm_bindgen(unchecked_return_type = "types.ModelInfo")]
    pub fn about(&self) -> JsResult<JsValue> {
        to_value(&self.about)
    }

    /// Continues a prompt. `on_piece` gets `{tokenId, text}` for each token, and the model waits for the promise that
    /// it returns. In a `chat` the KV cache is kept for the next turn.
    #[wasm_bindgen(unchecked_return_type = "types.GenerateResult")]
    pub async fn generate(
        &self,
        prompt_ids: Vec<u32>,
        chat: bool,
        #[wasm_bindgen(unchecked_param_type = "options.GenerateOptions")] request: JsValue,
        codec: CodecHandle,
        #[wasm_bindgen(unchecked_param_type = "(piece: types.Piece) => Promise<void>")] on_piece: Function,
        control: ControlHandle,
    ) -> JsResult<JsValue> {
        let held = ModelGuard::take(&self.model);
        let run = async {
            let mut held = held?;
            let options: GenerateOptions = from_value(request, "generate")?;
            let (codec, control) = (JsCodec(codec), JsControl::new(control));
            let prompt = Prompt { ids: prompt_ids, chat, options, on_piece };
            prompt.run(held.get(), &codec, &control).await
        };
        to_value(&run.await.map_err(to_js)?)
    }

    /// The logits after each of `ids`, row by row.
    pub async fn logits(&self, ids: Vec<u32>, control: ControlHandle) -> JsResult<Float32Array> {
        let held = ModelGuard::take(&self.model);
        let run = async {
            let mut held = held?;
            logits(&mut held.get().model, &ids, &JsControl::new(control)).await
        };
        run.await.map_err(to_js)
    }

    /// Perplexity of a text.
    #[wasm_bindgen(unchecked_return_type = "types.PerplexityResult")]
    pub async fn perplexity(
        &self,
        #[wasm_bindgen(unchecked_param_type = "options.PerplexityRequest")] request: JsValue,
        codec: CodecHandle,
        control: ControlHandle,
    ) -> JsResult<JsValue> {
        let held = ModelGuard::take(&self.model);
        let run = async {
            let mut held = held?;
            let request: PerplexityRequest = from_value(request, "perplexity")?;
            let control = JsControl::new(control);
            perplexity(&mut held.get().model, &request, &JsCodec(codec), &control).await
        };
        to_value(&run.await.map_err(to_js)?)
    }
}

struct Prompt {
    ids: Vec<u32>,
    chat: bool,
    options: GenerateOptions,
    on_piece: Function,
}

impl Prompt {
    async fn run(self, loaded: &mut Loaded, codec: &JsCodec, control: &JsControl) -> Result<Generated> {
        let Loaded { model, session } = loaded;
        let start = control.seconds();
        let mut generation = if self.chat {
            Generation::resume(model, codec, &self.ids, &self.options, control, session.take()).await?
        } else {
            Generation::start(model, codec, &self.ids, &self.options, control).await?
        };
        let prefill_seconds = control.seconds() - start;
        let start = control.seconds();
        let (mut text, mut finish_reason) = (String::new(), "");
        while let Some(piece) = generation.next(control).await? {
            text.push_str(&piece.text);
            finish_reason = piece.finished.map_or(finish_reason, |reason| reason.name());
            self.say(Piece { token_id: piece.token_id, text: piece.text }).await?;
        }
        let seconds = control.seconds() - start;
        let token_ids = generation.token_ids().to_vec();
        let dispatches_per_token = generation.dispatches_per_token();
        let reused_tokens = generation.reused();
        if self.chat {
            *session = Some(generation.into_session());
        }
        // The first token comes from prefill.
        let decoded = token_ids.len().saturating_sub(1);
        let timed = decoded > 0 && seconds > 0.0;
        Ok(Generated {
            text,
            token_ids,
            prompt_ids: self.ids,
            finish_reason,
            reused_tokens,
            tokens_per_second: timed.then(|| decoded as f64 / seconds),
            prefill_seconds,
            dispatches_per_token,
        })
    }

    async fn say(&self, piece: Piece) -> Result<()> {
        let piece = to_value(&piece).map_err(|error| from_js(&error))?;
        let answer = self.on_piece.call1(&JsValue::NULL, &piece).map_err(|error| from_js(&error))?;
        match answer.dyn_into::<Promise>() {
            Ok(promise) => settled(promise).await.map(drop),
            Err(_) => Ok(()),
        }
    }
}

async fn logits(
    model: &mut CausalLm<AnyBackend>,
    ids: &[u32],
    control: &dyn Control,
) -> Result<Float32Array> {
    if ids.is_empty() {
        return Err(Error::invalid_argument("expected at least one token id but found none"));
    }
    let vocab = model.config().vocab_size;
    let len = u32::try_from(ids.len() * vocab).map_err(|_| {
        Error::new(ErrorCode::OutOfMemory, "the logits of so many tokens do not fit in one array")
    })?;
    let rows = Float32Array::new_with_length(len);
    let mut cache = model.new_cache(ids.len())?;
    let keep = |index: usize, row: &[f32]| {
        rows.subarray((index * vocab) as u32, ((index + 1) * vocab) as u32).copy_from(row);
        Ok(())
    };
    model.forward(ids, &mut cache, Logits::All, control, keep).await?;
    Ok(rows)
}

async fn perplexity(
    model: &mut CausalLm<AnyBackend>,
    request: &PerplexityRequest,
    codec: &JsCodec,
    control: &dyn Control,
) -> Result<Perplexity> {
    let found = request.run(model, codec, control).await?;
    let crate::request::Perplexity { perplexity, tokens, context, stride, .. } = found;
    Ok(Perplexity { perplexity, tokens, context, stride })
}
