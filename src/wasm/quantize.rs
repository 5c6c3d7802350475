//! Bindings of quantization.

use super::checkpoint::CheckpointHandle;
use super::codec::{CodecHandle, JsCodec};
use super::control::{ControlHandle, JsControl};
use super::error::to_js;
use super::model::HEAP_BYTES;
use super::scratch::{JsScratch, ScratchHandle};
use super::sink::{JsTarget, TargetHandle};
use super::values::{JsResult, from_value, to_value};
use crate::calibrate::Samples;
use crate::error::Result;
use crate::model::Checkpoint;
use crate::options::LocationGiven;
use crate::pipeline::calibrated::memory::CalibrationMemory;
use crate::pipeline::{QuantizeContext, QuantizeOutcome};
use crate::request::{CalibrationHost, CalibrationRequest, QuantizeRequest};
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
    /// Bytes of the source checkpoint.
    source_bytes: u64,
    modules: Vec<Module>,
    notes: Vec<String>,
    /// Planned peak memory of calibration; null without calibration.
    planned_memory: Option<CalibrationMemory>,
}

#[derive(Serialize)]
struct Module {
    name: String,
    scheme: String,
    snr_db: Option<f64>,
    max_abs_error: f64,
}

/// Quantizes a checkpoint into `target`. `codec` encodes the calibration texts of `request`. `kept`: `scratch` may hold
/// the state of an earlier run, and keeps the state of this run if it does not finish.
#[wasm_bindgen(js_name = quantize, unchecked_return_type = "types.QuantizeSummary")]
pub async fn quantize_into(
    checkpoint: &CheckpointHandle,
    #[wasm_bindgen(unchecked_param_type = "options.QuantizeRequest")] request: JsValue,
    codec: Option<CodecHandle>,
    target: TargetHandle,
    scratch: ScratchHandle,
    kept: bool,
    control: ControlHandle,
) -> JsResult<JsValue> {
    let checkpoint = checkpoint.get();
    let (target, control) = (JsTarget::new(target), JsControl::new(control));
    let run = async {
        let mut request: QuantizeRequest = from_value(request, "quantize")?;
        request.resume = LocationGiven(kept);
        let notes = RefCell::new(Vec::new());
        let tell = |told: crate::pipeline::QuantizeEvent<'_>| notes.borrow_mut().extend(told.notes());
        let context = QuantizeContext { target: &target, tell: &tell, control: &control };
        let samples = request.calibration.as_ref();
        let samples =
            samples.map(|calibration| samples_of(&checkpoint, calibration, codec.map(JsCodec), &notes));
        let samples = samples.transpose()?;
        let host = CalibrationHost {
            samples: samples.as_ref(),
            scratch: &JsScratch(scratch),
            // A module that runs out of memory traps without a message.
            heap_bytes: Some(HEAP_BYTES),
            on_cpu: &|_| (),
        };
        let outcome = request.run(&checkpoint, &context, &host).await?;
        Result::Ok(summary(&checkpoint, outcome, notes.into_inner()))
    };
    to_value(&run.await.map_err(to_js)?)
}

fn samples_of(
    checkpoint: &Checkpoint,
    calibration: &CalibrationRequest,
    codec: Option<JsCodec>,
    notes: &RefCell<Vec<String>>,
) -> Result<Samples> {
    let codec = codec.as_ref().map(|codec| codec as &dyn TextCodec);
    let samples = calibration.draw(checkpoint.config(), codec)?;
    notes.borrow_mut().extend(samples.warning());
    Ok(samples)
}

fn summary(checkpoint: &Checkpoint, outcome: QuantizeOutcome, mut notes: Vec<String>) -> Quantized {
    let QuantizeOutcome { record, modules, bytes, notes: written, planned_memory, .. } = outcome;
    notes.extend(written);
    let modules = modules.into_iter().map(|(name, scheme, error)| Module {
        name,
        scheme: scheme.to_string(),
        snr_db: error.snr_db(),
        max_abs_error: error.max_abs_error().into(),
    });
    let modules = modules.collect();
    Quantized { record, bytes, source_bytes: checkpoint.bytes(), modules, notes, planned_memory }
}
