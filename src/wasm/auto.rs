//! Bindings of the automatic search for a good enough result.

use super::checkpoint::CheckpointHandle;
use super::codec::{CodecHandle, JsCodec};
use super::control::{ControlHandle, JsControl};
use super::error::{from_js, to_js};
use super::scratch::{JsScratch, ScratchHandle};
use super::sink::{JsTarget, TargetHandle};
use super::values::{JsResult, from_value, settled, to_value};
use crate::backend::any::AnyBackend;
use crate::calibrate::SampleOptions;
use crate::error::{Error, Result};
use crate::format::sink::SinkDir;
use crate::model::Checkpoint;
use crate::pipeline::auto::search::{Attempt, Judgement};
use crate::pipeline::auto::{AutoContext, AutoOutcome, Event, Outputs, SearchCandidate, auto};
use crate::request::{AutoRequest, Machine};
use crate::task::BoxFuture;
use crate::tokenizer::TextCodec;
use crate::validate::report::ValidationReport;
use crate::validate::run::ValidateOptions;
use crate::validate::windows::Dataset;
use js_sys::{Function, Promise};
use serde::Serialize;
use std::cell::RefCell;
use std::rc::Rc;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};

#[wasm_bindgen]
extern "C" {
    /// `{summary: Target, create(name): Promise<Target>}`
    #[wasm_bindgen(typescript_type = "Outputs")]
    pub type OutputsHandle;

    #[wasm_bindgen(method, getter)]
    fn summary(this: &OutputsHandle) -> TargetHandle;

    #[wasm_bindgen(method, catch)]
    fn create(this: &OutputsHandle, name: &str) -> Result<Promise, JsValue>;
}

struct JsOutputs {
    outputs: OutputsHandle,
    summary: JsTarget,
}

impl Outputs for JsOutputs {
    fn summary(&self) -> &dyn SinkDir {
        &self.summary
    }

    fn create<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Box<dyn SinkDir>>> {
        Box::pin(async move {
            let target = settled(self.outputs.create(name).map_err(|error| from_js(&error))?).await?;
            Ok(Box::new(JsTarget::new(target.unchecked_into())) as Box<dyn SinkDir>)
        })
    }
}

/// The checkpoints of a search to run.
#[wasm_bindgen]
#[derive(Default)]
pub struct AutoJob {
    candidates: RefCell<Vec<(Rc<Checkpoint>, CodecHandle)>>,
}

/// An event of the search, for JavaScript.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum SearchEvent<'a> {
    Ranked { name: &'a str, nats: f64 },
    Checkpoint { name: &'a str, reason: &'a str, attempts: Vec<String> },
    Attempt { name: &'a str, promoted: &'a [String] },
    Judged { name: &'a str, report: &'a ValidationReport, judgement: Judgement },
}

impl<'a> From<&Event<'a>> for SearchEvent<'a> {
    fn from(event: &Event<'a>) -> Self {
        match *event {
            Event::Ranked { name, nats } => Self::Ranked { name, nats },
            Event::Checkpoint { name, reason, attempts } => {
                Self::Checkpoint { name, reason, attempts: attempts.iter().map(Attempt::name).collect() }
            }
            Event::Attempt { name, promoted } => Self::Attempt { name, promoted },
            Event::Judged { name, report, judgement } => Self::Judged { name, report, judgement },
        }
    }
}

/// A checkpoint with its tokenizer and texts.
struct Prepared {
    checkpoint: Rc<Checkpoint>,
    codec: JsCodec,
    data: Dataset,
    validate: ValidateOptions,
    calibration: Vec<u32>,
    bos_token_id: Option<u32>,
    cut: SampleOptions,
}

impl Prepared {
    fn new(checkpoint: Rc<Checkpoint>, codec: CodecHandle, request: &AutoRequest) -> Result<Self> {
        let codec = JsCodec(codec);
        let config = checkpoint.config();
        let data = request.text.dataset(&codec)?;
        let validate = request.validate_options(&data, config, &codec, Machine::default())?;
        let (calibration, bos_token_id) = request.calibration.encode(config, Some(&codec))?;
        let cut = request.calibration.cut(config, 1);
        Ok(Self { checkpoint, codec, data, validate, calibration, bos_token_id, cut })
    }

    fn candidate(&self) -> SearchCandidate<'_> {
        SearchCandidate {
            checkpoint: &self.checkpoint,
            codec: &self.codec as &dyn TextCodec,
            data: &self.data,
            validate: self.validate.clone(),
            calibration: &self.calibration,
            bos_token_id: self.bos_token_id,
            cut: self.cut,
        }
    }
}

#[wasm_bindgen]
impl AutoJob {
    /// A search without checkpoints.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a checkpoint; they are tried in the order in which they are added.
    pub fn add(&self, checkpoint: &CheckpointHandle, codec: CodecHandle) {
        self.candidates.borrow_mut().push((checkpoint.get(), codec));
    }

    /// Quantizes and validates until a result is good. `tell` gets the events.
    #[wasm_bindgen(unchecked_return_type = "types.SearchOutcome")]
    pub async fn run(
        &self,
        #[wasm_bindgen(unchecked_param_type = "options.AutoRequest")] request: JsValue,
        outputs: OutputsHandle,
        scratch: ScratchHandle,
        #[wasm_bindgen(unchecked_param_type = "(event: types.AutoEvent) => void")] tell: Function,
        control: ControlHandle,
    ) -> JsResult<JsValue> {
        let candidates = self.candidates.take();
        let control = JsControl::new(control);
        let run = async {
            let request: AutoRequest = from_value(request, "auto")?;
            if candidates.is_empty() {
                return Err(Error::invalid_argument("expected at least one checkpoint but found none"));
            }
            let prepared = candidates.into_iter().map(|(of, codec)| Prepared::new(of, codec, &request));
            let prepared = prepared.collect::<Result<Vec<_>>>()?;
            let candidates: Vec<SearchCandidate<'_>> = prepared.iter().map(Prepared::candidate).collect();
            let context = AutoContext {
                outputs: &JsOutputs { summary: JsTarget::new(outputs.summary()), outputs },
                scratch: &JsScratch(scratch),
                clock: &|| control.seconds(),
                control: &control,
                trainer: None,
                tell: &|event| {
                    if let Ok(told) = to_value(&SearchEvent::from(&event)) {
                        // A failing listener must not end the search.
                        let _ = tell.call1(&JsValue::NULL, &told);
                    }
                },
            };
            let options = request.options();
            let search =
                async |backend: AnyBackend| auto(&candidates, &options, || backend.sibling(), &context).await;
            Ok(request.device.run(|_| (), search).await?.result)
        };
        let outcome: AutoOutcome = run.await.map_err(to_js)?;
        to_value(&outcome)
    }
}
