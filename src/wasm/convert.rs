//! The way back to floating point, and from one layout to another. Floor 9.

use super::checkpoint::CheckpointHandle;
use super::control::{ControlOfJs, JsControl};
use super::error::to_js;
use super::requests::ConvertRequest;
use super::sink::{JsTarget, TargetOfJs};
use super::source::{FolderOfJs, JsFolder};
use super::values::{JsResult, from_value, to_value};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::pipeline::dequantize::{default_dtype, dequantize_checkpoint};
use crate::pipeline::{convert, plan_conversion};
use serde::Serialize;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

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

/// Writes floating-point weights of a type, `f16` or `f32`, or that of [`default_dtype`]; gives the record of it.
#[wasm_bindgen]
pub async fn dequantize(
    checkpoint: &CheckpointHandle,
    dtype: Option<String>,
    target: JsTarget,
    existing: JsFolder,
    control: JsControl,
) -> JsResult<JsValue> {
    let checkpoint = checkpoint.get();
    let run = async {
        let dtype = match dtype.as_deref() {
            None => default_dtype(&checkpoint)?,
            Some("f16") => DType::F16,
            Some("f32") => DType::F32,
            Some(other) => {
                let message = format!("expected `dtype` to be f16 or f32 but found `{other}`");
                return Err(Error::invalid_argument(message));
            }
        };
        let (target, existing) = (TargetOfJs::new(target), FolderOfJs::new(existing));
        let control = ControlOfJs::new(control);
        dequantize_checkpoint(&checkpoint, dtype, &target, Some(&existing), &control).await
    };
    to_value(&run.await.map_err(to_js)?)
}

/// Spells a checkpoint in another layout.
#[wasm_bindgen(js_name = convert)]
pub async fn convert_checkpoint(
    checkpoint: &CheckpointHandle,
    request: JsValue,
    target: JsTarget,
    existing: JsFolder,
    control: JsControl,
) -> JsResult<JsValue> {
    let checkpoint = checkpoint.get();
    let run = async {
        let request: ConvertRequest = from_value(request, "convert")?;
        let options = request.options()?;
        let (target, existing) = (TargetOfJs::new(target), FolderOfJs::new(existing));
        let control = ControlOfJs::new(control);
        let plan = plan_conversion(&checkpoint, &options, &control).await?;
        let outcome = convert(&checkpoint, &plan, &target, Some(&existing), &control).await?;
        let lossy = plan.losses().map(|(name, loss)| Loss { name: name.to_owned(), loss: loss.to_owned() });
        Result::Ok(Converted {
            notes: [plan.remarks(), &outcome.notes].concat(),
            losses: lossy.collect(),
            largest_weight_difference: outcome.largest_difference().map_or(0.0, |(difference, _)| difference),
            format: outcome.record.format,
        })
    };
    to_value(&run.await.map_err(to_js)?)
}
