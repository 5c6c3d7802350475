//! Quantizing. Floor 9.

use super::checkpoint::CheckpointHandle;
use super::codec::{CodecOfJs, JsCodec};
use super::control::{ControlOfJs, JsControl};
use super::error::to_js;
use super::model::HEAP_BYTES;
use super::requests::QuantizeRequest;
use super::scratch::{JsScratch, ScratchOfJs};
use super::sink::{JsTarget, TargetOfJs};
use super::source::{FolderOfJs, JsFolder};
use super::values::{JsResult, from_value, to_value};
use crate::backend::any::AnyBackend;
use crate::calibrate::samples::FEW_TOKENS;
use crate::error::Result;
use crate::format::source::SourceDir;
use crate::model::Checkpoint;
use crate::pipeline::calibrated::memory::CalibrationMemory;
use crate::pipeline::{Calibration, QuantizeOutcome, QuantizeSurroundings, Told, quantize_checkpoint};
use crate::tokenizer::TextCodec;
use serde::Serialize;
use std::cell::RefCell;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

#[derive(Serialize)]
struct Quantized {
    record: crate::artifact::QuantizationRecord,
    /// Bytes of all tensors in the output.
    bytes: u64,
    /// Of the source.
    source_bytes: u64,
    modules: Vec<Module>,
    notes: Vec<String>,
    /// What calibrating was to take at its peak; null where nothing was calibrated.
    planned_memory: Option<CalibrationMemory>,
}

#[derive(Serialize)]
struct Module {
    name: String,
    scheme: String,
    snr_db: Option<f64>,
    max_abs_error: f64,
}

/// Quantizes a checkpoint into `target`; `existing` reads the same folder. `codec` is asked for where `request` has
/// calibration texts.
#[wasm_bindgen(js_name = quantize)]
pub async fn quantize(
    checkpoint: &CheckpointHandle,
    request: JsValue,
    codec: Option<JsCodec>,
    target: JsTarget,
    existing: JsFolder,
    scratch: JsScratch,
    control: JsControl,
) -> JsResult<JsValue> {
    let checkpoint = checkpoint.get();
    let (target, existing) = (TargetOfJs::new(target), FolderOfJs::new(existing));
    let control = ControlOfJs::new(control);
    let run = async {
        let request: QuantizeRequest = from_value(request, "quantize")?;
        let work = Work { checkpoint: &checkpoint, target: &target, existing: &existing, control: &control };
        work.run(&request, codec.map(CodecOfJs), &ScratchOfJs(scratch)).await
    };
    to_value(&run.await.map_err(to_js)?)
}

struct Work<'a> {
    checkpoint: &'a Checkpoint,
    target: &'a TargetOfJs,
    existing: &'a dyn SourceDir,
    control: &'a ControlOfJs,
}

impl Work<'_> {
    async fn run(
        &self,
        request: &QuantizeRequest,
        codec: Option<CodecOfJs>,
        scratch: &ScratchOfJs,
    ) -> Result<Quantized> {
        let &Self { checkpoint, target, existing, control } = self;
        let mut options = request.options()?;
        // What the engine's own memory can hold at most.
        options.memory = Some(HEAP_BYTES);
        let planned = RefCell::new(Vec::new());
        let tell = |told: Told<'_>| {
            let Told::Plan(plan) = told else { return };
            let noted = plan.modules().iter().filter_map(|plan| {
                let became = plan.scheme.map_or_else(|| "f16".to_owned(), |scheme| scheme.to_string());
                plan.reason.as_ref().map(|reason| format!("{}: {became} ({reason})", plan.module))
            });
            // A second time where another device takes over.
            *planned.borrow_mut() = noted.collect();
        };
        let around = QuantizeSurroundings { target, existing: Some(existing), tell: &tell, control };
        let mut few = None;
        let outcome = match &request.calibration {
            None => quantize_checkpoint::<AnyBackend>(checkpoint, &options, None, &around).await?,
            Some(calibration) => {
                let codec = codec.as_ref().map(|codec| codec as &dyn TextCodec);
                let samples = calibration.samples(checkpoint.config(), codec)?;
                if samples.tokens() < FEW_TOKENS {
                    few = Some(format!(
                        "calibrated with {} tokens; below {FEW_TOKENS} a wide layer's statistics are noisy",
                        samples.tokens()
                    ));
                }
                let work = async |backend: AnyBackend| {
                    let new_backend = || backend.another();
                    let calibration = Calibration { samples: &samples, new_backend: &new_backend, scratch };
                    quantize_checkpoint(checkpoint, &options, Some(calibration), &around).await
                };
                request.device()?.run(|_| (), work).await?.result
            }
        };
        let QuantizeOutcome { record, modules, bytes, notes, planned_memory, .. } = outcome;
        let notes = planned.take().into_iter().chain(few).chain(notes).collect();
        let modules = modules.into_iter().map(|(name, scheme, error)| Module {
            name,
            scheme: scheme.to_string(),
            snr_db: error.snr_db(),
            max_abs_error: error.max_abs_error().into(),
        });
        let modules = modules.collect();
        Ok(Quantized { record, bytes, source_bytes: checkpoint.bytes(), modules, notes, planned_memory })
    }
}
