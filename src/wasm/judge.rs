//! Validation of a quantized model against its original, and what there is to run on. Floor 9.

use super::checkpoint::CheckpointHandle;
use super::codec::{CodecOfJs, JsCodec};
use super::control::{ControlOfJs, JsControl};
use super::error::to_js;
use super::model::load;
use super::requests::{CompareRequest, ValidateRequest};
use super::scratch::{JsScratch, ScratchOfJs};
use super::values::{JsResult, from_value, to_value};
use crate::artifact::records::read_quantization_record;
use crate::backend::any::AnyBackend;
use crate::backend::{cpu, survey};
use crate::error::{Context, Result};
use crate::model::{Checkpoint, LoadOptions};
use crate::validate::benchmark::parse_jsonl;
use crate::validate::continuations::{self, Continuation};
use crate::validate::report::ValidationReport;
use crate::validate::run::{Surroundings, ValidateOptions, validate};
use crate::validate::windows::Dataset;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

/// Judges `quantized` against `original`; gives the report.
#[wasm_bindgen(js_name = validate)]
pub async fn validate_checkpoints(
    original: &CheckpointHandle,
    quantized: &CheckpointHandle,
    request: JsValue,
    codec: JsCodec,
    scratch: JsScratch,
    control: JsControl,
) -> JsResult<JsValue> {
    let (original, quantized) = (original.get(), quantized.get());
    let control = ControlOfJs::new(control);
    let run = async {
        let request: ValidateRequest = from_value(request, "validate")?;
        judge(&original, &quantized, &request, &CodecOfJs(codec), &ScratchOfJs(scratch), &control).await
    };
    to_value(&run.await.map_err(to_js)?)
}

/// The text, tokenized, and everything that is measured on it and beside it.
pub(super) fn prepared(
    original: &Checkpoint,
    method: String,
    request: &ValidateRequest,
    codec: &CodecOfJs,
) -> Result<(Dataset, ValidateOptions)> {
    let data = Dataset::new(request.name.as_deref().unwrap_or("text"), &request.text, codec)?;
    let mut options = request.options(method, original.config())?;
    options.limits.validate()?;
    options.prompts = if request.prompts.is_empty() {
        let (prompts, tokens) = (ValidateOptions::PROMPTS, ValidateOptions::PROMPT_TOKENS);
        continuations::from_dataset(&data, prompts, tokens, codec)?
    } else {
        continuations::from_texts(request.prompts.iter().map(String::as_str), codec)?
    };
    if let Some(lines) = &request.benchmark {
        options.benchmark = parse_jsonl(lines.as_bytes()).context_with(|| "benchmark")?;
    }
    Ok((data, options))
}

async fn judge(
    original: &Checkpoint,
    quantized: &Checkpoint,
    request: &ValidateRequest,
    codec: &CodecOfJs,
    scratch: &ScratchOfJs,
    control: &ControlOfJs,
) -> Result<ValidationReport> {
    let record = read_quantization_record(quantized.dir().as_ref()).await?;
    let method = record.map_or_else(|| "unknown".to_owned(), |record| record.method);
    let (data, options) = prepared(original, method, request, codec)?;
    let clock = || control.seconds();
    let around = Surroundings { codec, clock: &clock, scratch, control };
    let validate = async |backend: AnyBackend| {
        validate(original, quantized, &data, &options, || backend.another(), &around).await
    };
    Ok(request.device()?.run(|_| (), validate).await?.result)
}

/// Lets two models continue the same prompts, one model after the other.
#[wasm_bindgen]
pub async fn compare(
    a: &CheckpointHandle,
    b: &CheckpointHandle,
    request: JsValue,
    codec_a: JsCodec,
    codec_b: JsCodec,
    control: JsControl,
) -> JsResult<JsValue> {
    let (a, b) = (a.get(), b.get());
    let control = ControlOfJs::new(control);
    let run = async {
        let request: CompareRequest = from_value(request, "compare")?;
        let first = continued(&a, &request, &CodecOfJs(codec_a), &control).await?;
        let second = continued(&b, &request, &CodecOfJs(codec_b), &control).await?;
        let prompts: Vec<&str> = request.prompts.iter().map(String::as_str).collect();
        Result::Ok(continuations::pair(&prompts, first, second))
    };
    to_value(&run.await.map_err(to_js)?)
}

async fn continued(
    checkpoint: &Checkpoint,
    request: &CompareRequest,
    codec: &CodecOfJs,
    control: &ControlOfJs,
) -> Result<Vec<Continuation>> {
    let prompts = continuations::from_texts(request.prompts.iter().map(String::as_str), codec)?;
    let mut model = load(checkpoint, &request.device()?, LoadOptions::default(), control).await?.result;
    continuations::continue_all(&mut model, codec, &prompts, request.max_tokens(), control).await
}

/// Fails where the kernels of this module do not compute what they should: some runtimes translate instructions wrongly.
#[wasm_bindgen(js_name = selfCheck)]
pub fn self_check() -> JsResult<()> {
    cpu::self_check().map_err(to_js)
}

/// The devices that models can run on, each adapter checked against the CPU.
#[wasm_bindgen]
pub async fn devices() -> JsResult<JsValue> {
    to_value(&survey::devices().await)
}
