//! The way back to floating point, and from one layout to another. Floor 9.

use super::checkpoint::CheckpointHandle;
use super::codec::{CodecOfJs, JsCodec};
use super::control::{ControlOfJs, JsControl};
use super::error::to_js;
use super::sink::{JsTarget, TargetOfJs};
use super::values::{JsResult, from_value, to_value};
use crate::artifact::records::DequantizationRecord;
use crate::backend::any::AnyBackend;
use crate::backend::cpu::CpuBackend;
use crate::error::Result;
use crate::format::sink::SinkDir;
use crate::model::Checkpoint;
use crate::pipeline::convert::{convert, plan_conversion};
use crate::pipeline::dequantize::{default_dtype, dequantize_checkpoint};
use crate::request::{ConvertRequest, DequantizeRequest};
use crate::task::Control;
use crate::validate::agreement::{self, Agreement, Forms};
use crate::validate::windows::Dataset;
use serde::Serialize;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

#[derive(Serialize)]
struct Dequantized {
    #[serde(flatten)]
    record: DequantizationRecord,
    /// Null where no text was given.
    agreement: Option<Agreement>,
}

/// Writes an ordinary checkpoint. Where the request has a text, predictions on it are compared, with those of `original` too.
#[wasm_bindgen(unchecked_return_type = "types.DequantizeSummary")]
pub async fn dequantize(
    checkpoint: &CheckpointHandle,
    original: Option<CheckpointHandle>,
    #[wasm_bindgen(unchecked_param_type = "options.DequantizeRequest")] request: JsValue,
    codec: Option<JsCodec>,
    target: JsTarget,
    control: JsControl,
) -> JsResult<JsValue> {
    let (checkpoint, original) = (checkpoint.get(), original.map(|original| original.get()));
    let run = async {
        let request: DequantizeRequest = from_value(request, "dequantize")?;
        let codec = codec.map(CodecOfJs);
        request.check_comparison(codec.is_some(), original.is_some())?;
        // A text that is of no use is found before the work.
        let data = codec.as_ref().map(|codec| Dataset::new("text", &request.texts.0, codec)).transpose()?;
        let dtype = match request.dtype {
            Some(dtype) => dtype.dtype(),
            None => default_dtype(&checkpoint)?,
        };
        let target = TargetOfJs::new(target);
        let control = ControlOfJs::new(control);
        let record = dequantize_checkpoint(&checkpoint, dtype, &target, &control).await?;
        let agreement = match &data {
            None => None,
            Some(data) => {
                let dequantized = Checkpoint::open(target.existing()).await?;
                let forms = Forms {
                    quantized: &checkpoint,
                    dequantized: &dequantized,
                    original: original.as_deref(),
                };
                Some(compare(forms, &request, data, &control).await?)
            }
        };
        Result::Ok(Dequantized { record, agreement })
    };
    to_value(&run.await.map_err(to_js)?)
}

async fn compare(
    forms: Forms<'_>,
    request: &DequantizeRequest,
    data: &Dataset,
    control: &dyn Control,
) -> Result<Agreement> {
    let windows = request.windows.windows(forms.quantized.config());
    // The type that models have everywhere, so that they are compiled once.
    let new_backend = || AnyBackend::Cpu(CpuBackend::new());
    agreement::measure(forms, data, &windows, request.min_retention(false), new_backend, control).await
}

#[derive(Serialize)]
struct Converted {
    format: String,
    /// What is lost beside weights.
    notes: Vec<String>,
    /// What becomes of each matrix that cannot be kept as it is.
    losses: Vec<Loss>,
    /// The largest distance of a weight from the checkpoint's.
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
    target: JsTarget,
    control: JsControl,
) -> JsResult<JsValue> {
    let checkpoint = checkpoint.get();
    let run = async {
        let request: ConvertRequest = from_value(request, "convert")?;
        let (target, control) = (TargetOfJs::new(target), ControlOfJs::new(control));
        let plan = plan_conversion(&checkpoint, &request.options()?, &control).await?;
        let outcome = convert(&checkpoint, &plan, &target, &control).await?;
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
