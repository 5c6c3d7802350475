//! WebGPU's JavaScript side, where wgpu does not reach: whether there is a GPU, what it is called, what goes wrong.
//!
//! In a browser a call only sends a command to another process, and its errors come back later. So everything runs inside
//! of error scopes; they are exchanged for new ones before results are used, and then every error is known. wgpu's own
//! scopes panic at errors of the kind `internal`, which a driver that cannot compile a kernel causes.

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
    /// The class, where this is a page.
    #[wasm_bindgen(method, getter, js_name = Window)]
    fn window(this: &Global) -> Option<Object>;
    /// The class, where this is a worker.
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

    /// Like a set. Its keys come as an iterator in browsers, as an array in Node's `webgpu`, where wgpu's own reading of them
    /// panics; so each is asked for.
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

    /// Each of its texts may be empty, so that pages cannot tell users apart.
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
    // wgpu panics where neither class is there.
    let known = global.window().is_some() || global.worker().is_some();
    global.navigator().filter(|_| known)?.gpu()
}

/// Whether this environment has WebGPU, with or without an adapter.
pub(super) fn has_webgpu() -> bool {
    gpu().is_some()
}

/// Whether the WGSL of this environment has a feature, by its name there; `None` where the environment does not tell.
pub(super) fn has_language_feature(name: &str) -> Option<bool> {
    Some(gpu()?.language_features()?.has(name))
}

/// What the environment says of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Info {
    /// The most telling name that it gives away; may be empty.
    pub(super) name: String,
    /// Whether it is known to compute on the processor.
    pub(super) is_fallback: bool,
}

/// The adapter that `requestAdapter` gives for a preference, `high-performance` or `low-power`.
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

/// The kinds of scopes, from the inside out. What ran out of memory is refused by every later command, so that comes first.
const KINDS: [(Kind, &str); 3] =
    [(Kind::OutOfMemory, "out-of-memory"), (Kind::Internal, "internal"), (Kind::Validation, "validation")];

/// Writes a device's errors into a [`Failure`].
pub(super) struct Watch {
    scopes: Scopes,
    failure: Failure,
    work: Cell<Work>,
    /// Sent when the errors of scopes that were left are known.
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

    /// What the calls from here on are for.
    pub(super) fn set_work(&self, work: Work) {
        self.leave();
        self.enter();
        self.work.set(work);
    }

    /// Waits until every error of the calls so far is known. No submission is waited for: what comes of one is known by itself.
    ///
    /// # Errors
    /// None; natively a device may not answer.
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
        // Not awaited here, so that an error is kept also where the one who caused it does not wait.
        js_sys::futures::spawn_local(async move {
            for (kind, popped) in left {
                // A scope of a lost device may not be readable; its loss is reported elsewhere.
                if let Some(found) = popped.await.ok().and_then(JsNullable::into_option) {
                    failure.keep_first(error(kind, work, &found.message()));
                }
            }
            known.send(Ok(()));
        });
    }
}
