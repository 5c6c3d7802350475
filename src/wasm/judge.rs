//! Bindings of validation, comparison, and the devices to run on.

use super::checkpoint::CheckpointHandle;
use super::codec::{CodecHandle, JsCodec};
use super::control::{ControlHandle, JsControl};
use super::error::to_js;
use super::model::load;
use super::scratch::{JsScratch, ScratchHandle};
use super::values::{JsResult, from_value, to_value};
use crate::backend::{cpu, survey};
use crate::error::Result;
use crate::model::Checkpoint;
use crate::request::{CompareRequest, Machine, ValidateRequest};
use crate::validate::continuations::{self, Continuation};
use crate::validate::report::ValidationReport;
use crate::validate::run::RunContext;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

/// Validates `quantized` against `original`; returns the report.
#[wasm_bindgen(js_name = validate, unchecked_return_type = "types.ValidationReport")]
pub async fn validate_checkpoints(
    original: &CheckpointHandle,
    quantized: &CheckpointHandle,
    #[wasm_bindgen(unchecked_param_type = "options.ValidateRequest")] request: JsValue,
    codec: CodecHandle,
    quantized_codec: Option<CodecHandle>,
    scratch: ScratchHandle,
    control: ControlHandle,
) -> JsResult<JsValue> {
    let (original, quantized) = (original.get(), quantized.get());
    let codecs = (JsCodec(codec), quantized_codec.map(JsCodec));
    let control = JsControl::new(control);
    let run = async {
        let request: ValidateRequest = from_value(request, "validate")?;
        judge(&original, &quantized, &request, &codecs, &JsScratch(scratch), &control).await
    };
    to_value(&run.await.map_err(to_js)?)
}

async fn judge(
    original: &Checkpoint,
    quantized: &Checkpoint,
    request: &ValidateRequest,
    (codec, quantized_codec): &(JsCodec, Option<JsCodec>),
    scratch: &JsScratch,
    control: &JsControl,
) -> Result<ValidationReport> {
    let clock = || control.seconds();
    let quantized_codec = quantized_codec.as_ref().map(|codec| Ok(codec as _));
    let context = RunContext { codec, quantized_codec, clock: &clock, scratch, control };
    request.run(original, quantized, Machine::default(), &context, |_| Ok(()), |_| ()).await
}

/// Continues the same prompts with two models, one model after the other.
#[wasm_bindgen(unchecked_return_type = "types.Comparison[]")]
pub async fn compare(
    a: &CheckpointHandle,
    b: &CheckpointHandle,
    #[wasm_bindgen(unchecked_param_type = "options.CompareRequest")] request: JsValue,
    codec_a: CodecHandle,
    codec_b: CodecHandle,
    control: ControlHandle,
) -> JsResult<JsValue> {
    let (a, b) = (a.get(), b.get());
    let control = JsControl::new(control);
    let run = async {
        let request: CompareRequest = from_value(request, "compare")?;
        let first = continued(&a, &request, &JsCodec(codec_a), &control).await?;
        let second = continued(&b, &request, &JsCodec(codec_b), &control).await?;
        let prompts: Vec<&str> = request.prompts.iter().map(String::as_str).collect();
        Result::Ok(continuations::pair(&prompts, first, second))
    };
    to_value(&run.await.map_err(to_js)?)
}

async fn continued(
    checkpoint: &Checkpoint,
    request: &CompareRequest,
    codec: &JsCodec,
    control: &JsControl,
) -> Result<Vec<Continuation>> {
    let prompts = continuations::from_texts(request.prompts.iter().map(String::as_str), codec)?;
    let mut model = load(checkpoint, &request.load, control).await?.result;
    continuations::continue_all(&mut model, codec, &prompts, request.max_tokens, control).await
}

/// Fails if this module's kernels compute wrong results: some runtimes miscompile instructions.
#[wasm_bindgen(js_name = selfCheck)]
pub fn self_check() -> JsResult<()> {
    cpu::self_check().map_err(to_js)
}

/// The devices that models can run on; each adapter is checked against the CPU.
#[wasm_bindgen(unchecked_return_type = "types.Devices")]
pub async fn devices() -> JsResult<JsValue> {
    to_value(&survey::devices().await)
}
