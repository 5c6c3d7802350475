//! WebGPU's JavaScript API, where wgpu does not cover it: availability, adapter names, and errors.
//!
//! In a browser a call only sends a command to another process, and its errors arrive later. Therefore all calls run
//! inside error scopes. Before results are used, the scopes are popped and replaced by new ones; all errors are then
//! known. wgpu's own scopes panic at errors of the kind `internal`, which a driver causes that cannot compile a kernel.

use super::failure::{Failure, Kind, Work, error};
use super::signal::Signal;
use crate::error::Result;
use js_sys::{JsNullable, Object, Promise};
use std::cell::{Cell, RefCell};
use wasm_bindgen::JsCast;
use wasm_bindgen::prelude::wasm_bindgen;

#[wasm_bindgen]
extern "C" {
    type Global;
    /// The class `Window`, present in a page.
    #[wasm_bindgen(method, getter, js_name = Window)]
    fn window(this: &Global) -> Option<Object>;
    /// The class `WorkerGlobalScope`, present in a worker.
    #[wasm_bindgen(method, getter, js_name = WorkerGlobalScope)]
    fn worker(this: &Global) -> Option<Object>;
    #[wasm_bindgen(method, getter)]
    fn navigator(this: &Global) -> Option<Navigator>;

    type Navigator;
    #[wasm_bindgen(method, getter)]
    fn gpu(this: &Navigator) -> Option<Gpu>;

    type Gpu;
    #[wasm_bindgen(method, js_name = requestAdapter)]
    fn request_adapter(this: &Gpu, options: &AdapterOptions) -> Promise<JsNullable<Adapter>>;
    #[wasm_bindgen(method, getter, js_name = wgslLanguageFeatures)]
    fn language_features(this: &Gpu) -> Option<LanguageFeatures>;

    /// A set of names. Its keys are an iterator in browsers but an array in Node's `webgpu`, where wgpu's own reading
    /// panics. Each name is therefore queried with `has`.
    type LanguageFeatures;
    #[wasm_bindgen(method)]
    fn has(this: &LanguageFeatures, name: &str) -> bool;

    #[wasm_bindgen(extends = Object)]
    type AdapterOptions;
    #[wasm_bindgen(method, setter, js_name = powerPreference)]
    fn set_power_preference(this: &AdapterOptions, preference: &str);

    type Adapter;
    #[wasm_bindgen(method, getter)]
    fn info(this: &Adapter) -> Option<AdapterInfo>;

    /// Every text may be empty, to protect against fingerprinting.
    type AdapterInfo;
    #[wasm_bindgen(method, getter)]
    fn vendor(this: &AdapterInfo) -> Option<String>;
    #[wasm_bindgen(method, getter)]
    fn architecture(this: &AdapterInfo) -> Option<String>;
    #[wasm_bindgen(method, getter)]
    fn description(this: &AdapterInfo) -> Option<String>;
    #[wasm_bindgen(method, getter, js_name = isFallbackAdapter)]
    fn is_fallback_adapter(this: &AdapterInfo) -> Option<bool>;

    #[derive(Clone)]
    type Scopes;
    #[wasm_bindgen(method, js_name = pushErrorScope)]
    fn push(this: &Scopes, filter: &str);
    #[wasm_bindgen(method, js_name = popErrorScope)]
    fn pop(this: &Scopes) -> Promise<JsNullable<ScopedError>>;

    type ScopedError;
    #[wasm_bindgen(method, getter)]
    fn message(this: &ScopedError) -> String;
}

fn gpu() -> Option<Gpu> {
    let global: Global = js_sys::global().unchecked_into();
    // wgpu panics if neither class exists.
    let known = global.window().is_some() || global.worker().is_some();
    global.navigator().filter(|_| known)?.gpu()
}

/// Whether this environment has WebGPU, with or without an adapter.
pub(super) fn has_webgpu() -> bool {
    gpu().is_some()
}

/// Whether this environment's WGSL has the named language feature; `None` if it does not report features.
pub(super) fn has_language_feature(name: &str) -> Option<bool> {
    Some(gpu()?.language_features()?.has(name))
}

/// An adapter's description by the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Info {
    /// The most specific name available; may be empty.
    pub(super) name: String,
    /// Whether it reports itself as a software fallback.
    pub(super) is_fallback: bool,
}

/// The adapter that `requestAdapter` returns for a power preference: `high-performance` or `low-power`.
pub(super) async fn adapter_info(preference: &str) -> Option<Info> {
    let options: AdapterOptions = Object::new().unchecked_into();
    options.set_power_preference(preference);
    let adapter = gpu()?.request_adapter(&options).await.ok()?.into_option()?;
    let Some(info) = adapter.info() else { return Some(Info { name: String::new(), is_fallback: false }) };
    let name = info.description().filter(|description| !description.is_empty()).unwrap_or_else(|| {
        let [vendor, architecture] =
            [info.vendor(), info.architecture()].map(|text| text.unwrap_or_default());
        format!("{vendor} {architecture}").trim().to_owned()
    });
    Some(Info { name, is_fallback: info.is_fallback_adapter().unwrap_or(false) })
}

/// The kinds of scopes, from innermost to outermost. Every later command refuses an object that could not be allocated,
/// so that error must be recorded first.
const KINDS: [(Kind, &str); 3] =
    [(Kind::OutOfMemory, "out-of-memory"), (Kind::Internal, "internal"), (Kind::Validation, "validation")];

/// Records a device's errors in a [`Failure`].
pub(super) struct Watch {
    scopes: Scopes,
    failure: Failure,
    work: Cell<Work>,
    /// Signals of popped scopes, sent when their errors are known.
    pending: RefCell<Vec<Signal>>,
}

impl Watch {
    pub(super) fn new(device: &wgpu::Device, failure: &Failure) -> Self {
        let scopes: &Scopes = device.as_webgpu().expect("the web has no other backend").unchecked_ref();
        let watch = Self {
            scopes: scopes.clone(),
            failure: failure.clone(),
            work: Cell::default(),
            pending: RefCell::default(),
        };
        watch.enter();
        watch
    }

    /// Sets the work that later errors belong to.
    pub(super) fn set_work(&self, work: Work) {
        self.leave();
        self.enter();
        self.work.set(work);
    }

    /// Waits until all errors of earlier calls are known. Does not wait for a submission: its results have their own
    /// signal.
    ///
    /// # Errors
    /// None. The native counterpart fails if the device does not respond.
    pub(super) async fn settle(&self, _: Option<wgpu::SubmissionIndex>) -> Result<()> {
        self.set_work(self.work.get());
        let pending = self.pending.take();
        for known in pending {
            known.await?;
        }
        Ok(())
    }

    fn enter(&self) {
        for (_, filter) in KINDS.iter().rev() {
            self.scopes.push(filter);
        }
    }

    fn leave(&self) {
        let left = KINDS.map(|(kind, _)| (kind, self.scopes.pop()));
        let (known, work, failure) = (Signal::default(), self.work.get(), self.failure.clone());
        self.pending.borrow_mut().push(known.clone());
        // Runs as a task, so that errors are recorded even if the caller does not wait.
        js_sys::futures::spawn_local(async move {
            for (kind, popped) in left {
                // Scopes of a lost device may be unreadable. The loss itself is reported by its callback.
                if let Some(found) = popped.await.ok().and_then(JsNullable::into_option) {
                    failure.keep_first(error(kind, work, &found.message()));
                }
            }
            known.send(Ok(()));
        });
    }
}
