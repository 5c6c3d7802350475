//! The way back to floating point, and from one layout to another. Floor 9.

use super::checkpoint::CheckpointHandle;
use super::control::{ControlOfJs, JsControl};
use super::error::to_js;
use super::requests::ConvertRequest;
use super::sink::{JsTarget, TargetOfJs};
use super::source::{FolderOfJs, JsFolder};
use super::values::{JsResult, from_value, to_value};
use crate::artifact::output::refuse_foreign;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::check_plain_name;
use crate::format::gguf::TensorType;
use crate::model::Checkpoint;
use crate::pipeline::convert::{convert, plan_conversion};
use crate::pipeline::dequantize::{default_dtype, dequantize_checkpoint};
use crate::pipeline::gguf::{self, GgufOptions};
use crate::task::Control;
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
    /// Of a GGUF file: the largest distance of a weight from the checkpoint's.
    largest_weight_difference: Option<f32>,
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
        let (target, existing) = (TargetOfJs::new(target), FolderOfJs::new(existing));
        let control = ControlOfJs::new(control);
        if request.format == "gguf" {
            return to_gguf(&checkpoint, &request, &target, &control).await;
        }
        let layout = request.layout()?;
        refuse_foreign(&existing).await?;
        let plan = plan_conversion(&checkpoint, layout, request.strict, &control).await?;
        let record = convert(&checkpoint, &plan, &target, Some(&existing), &control).await?;
        let lossy = plan
            .modules
            .iter()
            .filter_map(|module| Some(Loss { name: module.module.clone(), loss: module.loss.clone()? }));
        let losses = lossy.collect();
        Result::Ok(Converted {
            format: record.format,
            notes: plan.notes,
            losses,
            largest_weight_difference: None,
        })
    };
    to_value(&run.await.map_err(to_js)?)
}

async fn to_gguf(
    checkpoint: &Checkpoint,
    request: &ConvertRequest,
    target: &TargetOfJs,
    control: &dyn Control,
) -> Result<Converted> {
    let file = request.file.as_deref().unwrap_or("model.gguf");
    check_plain_name(file)?;
    let linear = request.gguf_type()?;
    let tables = if linear == TensorType::F32 { linear } else { TensorType::F16 };
    let modules = gguf::plan(checkpoint, GgufOptions { linear, tables }, control).await?;
    let mut losses = Vec::new();
    for module in &modules {
        let Some(reason) = &module.reason else { continue };
        if request.strict {
            return Err(Error::unsupported_format(format!("module `{}`: {reason}", module.module)));
        }
        losses.push(Loss { name: module.module.clone(), loss: format!("{} ({reason})", module.tensor_type) });
    }
    let report = gguf::write(checkpoint, modules, target, file, control).await?;
    let largest = report.modules.iter().map(|module| module.max_abs_difference).fold(0.0, f32::max);
    Ok(Converted {
        format: "gguf".to_owned(),
        notes: report.remarks(),
        losses,
        largest_weight_difference: Some(largest),
    })
}
