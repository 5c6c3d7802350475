//! Bindings of dequantization and of conversion between layouts.

use super::checkpoint::CheckpointHandle;
use super::codec::{CodecHandle, JsCodec};
use super::control::{ControlHandle, JsControl};
use super::error::to_js;
use super::sink::{JsTarget, TargetHandle};
use super::values::{JsResult, from_value, to_value};
use crate::artifact::records::DequantizationRecord;
use crate::error::Result;
use crate::request::{ConvertRequest, DequantizeContext, DequantizeRequest, Dequantized};
use crate::tokenizer::TextCodec;
use crate::validate::agreement::Agreement;
use serde::Serialize;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

#[derive(Serialize)]
struct DequantizeSummary {
    #[serde(flatten)]
    record: DequantizationRecord,
    /// Null without a text.
    agreement: Option<Agreement>,
}

/// Dequantizes to a floating-point checkpoint. If the request has a text, compares predictions on it, also with
/// `original`.
#[wasm_bindgen(unchecked_return_type = "types.DequantizeSummary")]
pub async fn dequantize(
    checkpoint: &CheckpointHandle,
    original: Option<CheckpointHandle>,
    #[wasm_bindgen(unchecked_param_type = "options.DequantizeRequest")] request: JsValue,
    codec: Option<CodecHandle>,
    target: TargetHandle,
    control: ControlHandle,
) -> JsResult<JsValue> {
    let (checkpoint, original) = (checkpoint.get(), original.map(|original| original.get()));
    let run = async {
        let request: DequantizeRequest = from_value(request, "dequantize")?;
        let codec = codec.map(JsCodec);
        let codec = codec.as_ref().map(|codec| codec as &dyn TextCodec);
        let (target, control) = (JsTarget::new(target), JsControl::new(control));
        let context =
            DequantizeContext { original: original.as_deref(), codec, target: &target, control: &control };
        let Dequantized { record, agreement } = request.run(&checkpoint, &context).await?;
        Result::Ok(DequantizeSummary { record, agreement })
    };
    to_value(&run.await.map_err(to_js)?)
}

#[derive(Serialize)]
struct Converted {
    format: String,
    /// Losses other than of weights.
    notes: Vec<String>,
    /// The change of each matrix that the format cannot keep exactly.
    losses: Vec<Loss>,
    /// The largest absolute difference between a weight and the source's.
    largest_weight_difference: f32,
}

#[derive(Serialize)]
struct Loss {
    name: String,
    loss: String,
}

/// Converts a checkpoint to another layout.
#[wasm_bindgen(js_name = convert, unchecked_return_type = "types.ConvertSummary")]
pub async fn convert_checkpoint(
    checkpoint: &CheckpointHandle,
    #[wasm_bindgen(unchecked_param_type = "options.ConvertRequest")] request: JsValue,
    target: TargetHandle,
    control: ControlHandle,
) -> JsResult<JsValue> {
    let checkpoint = checkpoint.get();
    let run = async {
        let request: ConvertRequest = from_value(request, "convert")?;
        let (target, control) = (JsTarget::new(target), JsControl::new(control));
        let (plan, outcome) = request.run(&checkpoint, &target, |_| (), &control).await?;
        let losses = plan
            .modules
            .iter()
            .filter_map(|module| Some(Loss { name: module.module.clone(), loss: module.loss.clone()? }));
        let losses = losses.collect();
        let largest_weight_difference =
            outcome.largest_difference().map_or(0.0, |(difference, _)| difference);
        let notes = [plan.remarks(), &outcome.notes].concat();
        Result::Ok(Converted { format: outcome.record.format, notes, losses, largest_weight_difference })
    };
    to_value(&run.await.map_err(to_js)?)
}
