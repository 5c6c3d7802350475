//! Progress reports, cancellation, and yielding to the event loop.

use crate::error::Error;
use crate::task::{BoxFuture, Control, Progress};
use js_sys::Promise;
use std::cell::{Cell, RefCell};
use std::future::ready;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen_futures::JsFuture;

#[wasm_bindgen]
extern "C" {
    /// `{progress(phase, done, total, item), cancelled(): boolean, turn(): Promise, now(): milliseconds}`
    #[derive(Clone)]
    #[wasm_bindgen(typescript_type = "Control")]
    pub type ControlHandle;

    #[wasm_bindgen(method, catch)]
    fn progress(this: &ControlHandle, phase: &str, done: f64, total: f64, item: &str) -> Result<(), JsValue>;

    #[wasm_bindgen(method)]
    fn cancelled(this: &ControlHandle) -> bool;

    #[wasm_bindgen(method)]
    fn turn(this: &ControlHandle) -> Promise;

    #[wasm_bindgen(method)]
    fn now(this: &ControlHandle) -> f64;
}

/// Time of work before yielding to the event loop.
const TURN_MS: f64 = 20.0;

/// Least time between two progress reports.
const REPORT_MS: f64 = 50.0;

/// Passes on the newest report, and yields to the event loop after each, so that a page's timers run between any two
/// reports.
pub(super) struct JsControl {
    host: ControlHandle,
    last_turn: Cell<f64>,
    last_report: Cell<f64>,
    newest: RefCell<Option<Report>>,
}

struct Report {
    phase: String,
    done: u64,
    total: u64,
    item: String,
}

impl JsControl {
    pub(super) fn new(host: ControlHandle) -> Self {
        let last_turn = Cell::new(host.now());
        Self { host, last_turn, last_report: Cell::new(f64::NEG_INFINITY), newest: RefCell::new(None) }
    }

    /// A clock in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.host.now() / 1000.0
    }

    fn report(&self, now: f64) {
        if now - self.last_report.get() < REPORT_MS {
            return;
        }
        if let Some(Report { phase, done, total, item }) = self.newest.borrow_mut().take() {
            self.last_report.set(now);
            // A failing listener must not end the work.
            let _ = self.host.progress(&phase, done as f64, total as f64, &item);
        }
    }
}

impl Control for JsControl {
    fn progress(&self, progress: &Progress<'_>) {
        let &Progress { phase, done, total, item } = progress;
        let report = Report { phase: phase.to_owned(), done, total, item: item.to_owned() };
        *self.newest.borrow_mut() = Some(report);
    }

    fn cancelled(&self) -> bool {
        self.host.cancelled()
    }

    fn yield_now(&self) -> BoxFuture<'_, ()> {
        let now = self.host.now();
        if now - self.last_turn.get() < TURN_MS {
            return Box::pin(ready(()));
        }
        Box::pin(async move {
            self.report(now);
            // A rejected promise has yielded, too.
            let _ = JsFuture::from(self.host.turn()).await;
            self.last_turn.set(self.host.now());
        })
    }
}

/// The error of a handle that is in use or was disposed of.
pub(super) fn busy(what: &str) -> Error {
    Error::invalid_argument(format!("the {what} is in use or was disposed of"))
}
