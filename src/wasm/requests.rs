//! What callers ask for, as plain objects with JavaScript's spelling of names, and what that means to the floors below.
//! Floor 9.

use crate::backend::choice::{DeviceChoice, DeviceRequest};
use crate::calibrate::{SampleOptions, Samples};
use crate::error::{Error, Result};
use crate::format::gguf::TensorType;
use crate::generate::{GenerateOptions, SamplerOptions};
use crate::layout::{GptqZeros, OpenOptions, TargetLayout};
use crate::model::ModelConfig;
use crate::pipeline::auto::AutoOptions;
use crate::pipeline::{ConvertOptions, QuantizeOptions};
use crate::quant::{
    Activations, Bits, ColumnOrder, GptqOptions, Granularity, Method, ReferenceInputs, ScaleRule,
};
use crate::recipe::Recipe;
use crate::tokenizer::{TextCodec, unify_line_ends};
use crate::validate::holding::Holding;
use crate::validate::run::ValidateOptions;
use crate::validate::verdict::Limits;
use crate::validate::windows::WindowOptions;
use serde::Deserialize;

/// The one of `choices` that is spelled `name`.
fn choice<T: Copy>(option: &str, name: &str, choices: &[(&str, T)]) -> Result<T> {
    choices.iter().find(|(spelling, _)| *spelling == name).map(|&(_, value)| value).ok_or_else(|| {
        let known: Vec<&str> = choices.iter().map(|(spelling, _)| *spelling).collect();
        Error::invalid_argument(format!(
            "expected `{option}` to be one of {} but found `{name}`",
            known.join(", ")
        ))
    })
}

fn activations(name: &str) -> Result<Activations> {
    choice("activations", name, &[("f32", Activations::F32), ("int8", Activations::Int8)])
}

/// Where something runs.
fn device(device: &Option<String>, adapter: &Option<String>) -> Result<DeviceRequest> {
    let devices = [("auto", DeviceChoice::Auto), ("cpu", DeviceChoice::Cpu), ("gpu", DeviceChoice::Gpu)];
    let device = device.as_deref().map(|name| choice("device", name, &devices)).transpose()?;
    Ok(DeviceRequest { device: device.unwrap_or_default(), adapter: adapter.clone() })
}

/// Options of opening a checkpoint.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct OpenRequest {
    gptq_zeros: Option<String>,
}

impl OpenRequest {
    pub(super) fn options(&self) -> Result<OpenOptions> {
        let versions = [("v1", GptqZeros::V1), ("v2", GptqZeros::V2)];
        let gptq_zeros = self.gptq_zeros.as_deref().map(|name| choice("gptqZeros", name, &versions));
        Ok(OpenOptions { gptq_zeros: gptq_zeros.transpose()? })
    }
}

/// What to quantize, and how.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct QuantizeRequest {
    method: Option<Method>,
    bits: Option<u32>,
    group_size: Option<i64>,
    symmetric: Option<bool>,
    recipe: Option<Recipe>,
    quantize_head: bool,
    quantize_embedding: Option<u32>,
    ternary_scale: Option<String>,
    sparsity_threshold: Option<f32>,
    activations: Option<String>,
    format: Option<String>,
    strict: bool,
    gptq: GptqRequest,
    pub(super) calibration: Option<CalibrationRequest>,
    device: Option<String>,
    adapter: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct GptqRequest {
    damping: Option<f32>,
    act_order: Option<String>,
    scales: Option<String>,
    sweeps: Option<usize>,
    reference_inputs: Option<String>,
}

impl GptqRequest {
    fn options(&self) -> Result<GptqOptions> {
        let usual = GptqOptions::default();
        let orders = [
            ("none", ColumnOrder::Stored),
            ("group-aware", ColumnOrder::GroupAware),
            ("static", ColumnOrder::StaticGroups),
            ("group-index", ColumnOrder::GroupIndex),
        ];
        let rules = [("range", ScaleRule::Range), ("least-error", ScaleRule::LeastError)];
        let references = [("original", ReferenceInputs::Original), ("quantized", ReferenceInputs::Quantized)];
        let order = self.act_order.as_deref().map(|name| choice("gptq.actOrder", name, &orders));
        let scales = self.scales.as_deref().map(|name| choice("gptq.scales", name, &rules));
        let reference =
            self.reference_inputs.as_deref().map(|name| choice("gptq.referenceInputs", name, &references));
        Ok(GptqOptions {
            reference: reference.transpose()?.unwrap_or(usual.reference),
            damping: self.damping.unwrap_or(usual.damping),
            order: order.transpose()?.unwrap_or(usual.order),
            scales: scales.transpose()?.unwrap_or(usual.scales),
            sweeps: self.sweeps.unwrap_or(usual.sweeps),
        })
    }
}

/// The layouts that folders are written in.
pub(super) fn layout(name: &str) -> Result<TargetLayout> {
    choice(
        "format",
        name,
        &[
            ("compressed-tensors", TargetLayout::CompressedTensors),
            ("gptq", TargetLayout::Gptq(GptqZeros::V1)),
            ("gptq-v2", TargetLayout::Gptq(GptqZeros::V2)),
            ("awq", TargetLayout::Awq),
            ("bitnet", TargetLayout::BitNet),
        ],
    )
}

impl QuantizeRequest {
    /// Where calibration runs the model.
    pub(super) fn device(&self) -> Result<DeviceRequest> {
        device(&self.device, &self.adapter)
    }

    pub(super) fn options(&self) -> Result<QuantizeOptions> {
        let method = self.method.unwrap_or(Method::Rtn);
        let mut options = if method == Method::Ternary {
            if self.bits.is_some() || self.group_size.is_some() || self.symmetric.is_some() {
                return Err(Error::invalid_argument(
                    "ternary weights have no bits, group size or zero point to choose; see `ternaryScale`",
                ));
            }
            let scopes = [("tensor", Granularity::Tensor), ("channel", Granularity::Channel)];
            let scope = self.ternary_scale.as_deref().unwrap_or("tensor");
            QuantizeOptions::ternary(choice("ternaryScale", scope, &scopes)?)
        } else {
            if self.ternary_scale.is_some() {
                return Err(Error::invalid_argument("`ternaryScale` belongs to the method ternary"));
            }
            let bits = Bits::try_from(self.bits.unwrap_or(4))?;
            let size = self.group_size.map(Granularity::from_group_size).transpose()?;
            let granularity = size.unwrap_or(bits.usual_granularity());
            let symmetric = self.symmetric.unwrap_or(true);
            match method {
                Method::Gptq => QuantizeOptions::gptq(bits, granularity, symmetric),
                Method::Awq => QuantizeOptions::awq(bits, granularity, symmetric),
                _ => QuantizeOptions::rtn(bits, granularity, symmetric),
            }
        };
        if let Some(recipe) = &self.recipe {
            recipe.check()?;
        }
        options.recipe = self.recipe.clone();
        options.gptq = self.gptq.options()?;
        options.quantize_head = self.quantize_head;
        options.quantize_embedding = self.quantize_embedding.map(Bits::try_from).transpose()?;
        options.layout = self.format.as_deref().map(layout).transpose()?;
        options.strict = self.strict;
        options.sparsity_threshold = self.sparsity_threshold;
        if let Some(name) = &self.activations {
            options.activations = activations(name)?;
        }
        options.check()?;
        let calibrated = options.calibrated_method();
        if calibrated.is_none() && self.device()?.is_given() {
            return Err(Error::invalid_argument(format!(
                "method {} runs no model, so there is no `device` to choose",
                options.method.name()
            )));
        }
        if self.calibration.is_some() != calibrated.is_some() {
            let method = calibrated.unwrap_or(options.method).name();
            let what = if calibrated.is_some() { "needs" } else { "takes no" };
            return Err(Error::invalid_argument(format!("method {method} {what} `calibration` texts")));
        }
        Ok(options)
    }
}

/// Samples of text or of token ids.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct CalibrationRequest {
    texts: Vec<String>,
    tokens: Vec<u32>,
    samples: Option<usize>,
    sequence_length: Option<usize>,
    seed: Option<u64>,
}

/// As many samples as other tools take.
const SAMPLES: usize = 128;

/// The longest samples, contexts and windows that are taken without being asked for.
const LONGEST: usize = 2048;

impl CalibrationRequest {
    /// Whether any text is to be encoded.
    pub(super) fn needs_codec(&self) -> bool {
        !self.texts.is_empty()
    }

    /// The tokens of all texts, end to end, and what stands in front of each sample.
    pub(super) fn tokens(
        &self,
        config: &ModelConfig,
        codec: Option<&dyn TextCodec>,
    ) -> Result<(Vec<u32>, Option<u32>)> {
        let mut tokens = Vec::new();
        let mut bos = config.bos_token_id;
        if self.needs_codec() {
            let codec = codec.ok_or_else(|| {
                Error::invalid_argument("calibration texts need a tokenizer; give `tokens` instead")
            })?;
            bos = codec.bos_token_id();
            for text in &self.texts {
                tokens.extend(codec.encode(&unify_line_ends(text))?);
            }
        }
        tokens.extend(&self.tokens);
        Ok((tokens, bos))
    }

    /// How they are cut.
    pub(super) fn cut(&self, config: &ModelConfig) -> SampleOptions {
        SampleOptions {
            samples: self.samples.unwrap_or(SAMPLES),
            sequence_length: self.sequence_length.unwrap_or(LONGEST.min(config.max_position_embeddings)),
            shuffle: self.seed,
        }
    }

    pub(super) fn samples(&self, config: &ModelConfig, codec: Option<&dyn TextCodec>) -> Result<Samples> {
        let (tokens, bos) = self.tokens(config, codec)?;
        let samples = Samples::new(&tokens, bos, &self.cut(config))?;
        samples.check_vocabulary(config.vocab_size)?;
        Ok(samples)
    }
}

/// What a search tries, and by what it judges.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct AutoRequest {
    method: Option<Method>,
    bits: Option<u32>,
    memory: Option<u64>,
    samples: Option<Vec<usize>>,
    pub(super) calibration: CalibrationRequest,
    pub(super) validate: ValidateRequest,
    device: Option<String>,
    adapter: Option<String>,
}

impl AutoRequest {
    pub(super) fn device(&self) -> Result<DeviceRequest> {
        device(&self.device, &self.adapter)
    }

    pub(super) fn options(&self) -> Result<AutoOptions> {
        let usual = AutoOptions::default();
        Ok(AutoOptions {
            method: self.method.unwrap_or(usual.method),
            bits: self.bits.map(Bits::try_from).transpose()?,
            memory: self.memory,
            samples: self.samples.clone().unwrap_or(usual.samples),
        })
    }
}

/// What a conversion makes.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ConvertRequest {
    format: String,
    strict: bool,
    gguf_type: Option<String>,
    file: Option<String>,
}

impl ConvertRequest {
    /// The type of floating-point matrices in a GGUF file.
    fn gguf_type(&self) -> Result<TensorType> {
        let types = [
            ("f32", TensorType::F32),
            ("f16", TensorType::F16),
            ("bf16", TensorType::BF16),
            ("q8_0", TensorType::Q8_0),
            ("q4_0", TensorType::Q4_0),
            ("q4_1", TensorType::Q4_1),
            ("q4_k", TensorType::Q4_K),
            ("tq2_0", TensorType::TQ2_0),
        ];
        choice("ggufType", self.gguf_type.as_deref().unwrap_or("f16"), &types)
    }

    /// # Errors
    /// `invalid_argument` for a type without a GGUF file.
    pub(super) fn options(&self) -> Result<ConvertOptions> {
        let is_file = self.format == TargetLayout::Gguf.name();
        if !is_file && (self.gguf_type.is_some() || self.file.is_some()) {
            return Err(Error::invalid_argument("`ggufType` and `file` belong to the format gguf"));
        }
        Ok(ConvertOptions {
            layout: if is_file { TargetLayout::Gguf } else { layout(&self.format)? },
            strict: self.strict,
            gguf_type: if is_file { Some(self.gguf_type()?) } else { None },
            file: self.file.clone(),
        })
    }
}

/// How a model is loaded.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct LoadRequest {
    device: Option<String>,
    activations: Option<String>,
    adapter: Option<String>,
}

impl LoadRequest {
    pub(super) fn device(&self) -> Result<DeviceRequest> {
        device(&self.device, &self.adapter)
    }

    pub(super) fn activations(&self) -> Result<Option<Activations>> {
        self.activations.as_deref().map(activations).transpose()
    }
}

/// How text is generated.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct GenerateRequest {
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<u64>,
    stop: Vec<String>,
    ignore_eos: bool,
    continue_prompt: bool,
}

impl GenerateRequest {
    pub(super) fn options(&self) -> GenerateOptions {
        let usual = SamplerOptions::default();
        GenerateOptions {
            sampler: SamplerOptions {
                temperature: self.temperature.unwrap_or(usual.temperature),
                top_k: self.top_k.unwrap_or(usual.top_k),
                top_p: self.top_p.unwrap_or(usual.top_p),
                min_p: self.min_p.unwrap_or(usual.min_p),
                repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
                seed: self.seed.unwrap_or(usual.seed),
            },
            max_tokens: self.max_tokens.unwrap_or(GenerateOptions::default().max_tokens),
            ignore_eos: self.ignore_eos,
            stop_strings: self.stop.clone(),
            continue_prompt: self.continue_prompt,
        }
    }
}

/// A text that models are judged by, and how it is cut.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PerplexityRequest {
    pub(super) text: String,
    pub(super) name: Option<String>,
    context: Option<usize>,
    stride: Option<usize>,
}

fn windows(context: Option<usize>, stride: Option<usize>, config: &ModelConfig) -> WindowOptions {
    WindowOptions { context: context.unwrap_or(LONGEST.min(config.max_position_embeddings)), stride }
}

impl PerplexityRequest {
    pub(super) fn windows(&self, config: &ModelConfig) -> WindowOptions {
        windows(self.context, self.stride, config)
    }
}

/// What a validation measures, and by what it judges.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ValidateRequest {
    pub(super) text: String,
    pub(super) name: Option<String>,
    context: Option<usize>,
    stride: Option<usize>,
    pub(super) prompts: Vec<String>,
    max_tokens: Option<usize>,
    /// JSON lines.
    pub(super) benchmark: Option<String>,
    speed_rounds: Option<usize>,
    activations: Option<String>,
    memory: Option<u64>,
    limits: LimitsRequest,
    device: Option<String>,
    adapter: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LimitsRequest {
    max_perplexity_increase: Option<f64>,
    max_benchmark_drop_points: Option<f64>,
    max_new_failures: Option<usize>,
    min_memory_ratio: Option<f64>,
    min_speed_ratio: Option<f64>,
}

impl LimitsRequest {
    fn limits(&self) -> Limits {
        let usual = Limits::default();
        Limits {
            max_perplexity_increase: self.max_perplexity_increase.unwrap_or(usual.max_perplexity_increase),
            max_benchmark_drop_points: self
                .max_benchmark_drop_points
                .unwrap_or(usual.max_benchmark_drop_points),
            max_new_failures: self.max_new_failures.unwrap_or(usual.max_new_failures),
            min_memory_ratio: self.min_memory_ratio.or(usual.min_memory_ratio),
            min_speed_ratio: self.min_speed_ratio.unwrap_or(usual.min_speed_ratio),
            min_speed_rounds: usual.min_speed_rounds,
        }
    }
}

impl ValidateRequest {
    /// The options without prompts and questions, which need a tokenizer.
    pub(super) fn options(&self, method: String, config: &ModelConfig) -> Result<ValidateOptions> {
        Ok(ValidateOptions {
            method,
            windows: windows(self.context, self.stride, config),
            prompts: Vec::new(),
            max_tokens: self.max_tokens.unwrap_or(ValidateOptions::MAX_TOKENS),
            benchmark: Vec::new(),
            speed_rounds: self.speed_rounds.unwrap_or(ValidateOptions::SPEED_ROUNDS),
            last_level_cache_bytes: None,
            activations: self.activations.as_deref().map(activations).transpose()?,
            limits: self.limits.limits(),
            holding: self.memory.map_or(Holding::Both, Holding::Within),
        })
    }

    pub(super) fn device(&self) -> Result<DeviceRequest> {
        device(&self.device, &self.adapter)
    }
}

/// What two models shall continue.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct CompareRequest {
    pub(super) prompts: Vec<String>,
    max_tokens: Option<usize>,
    device: Option<String>,
    adapter: Option<String>,
}

impl CompareRequest {
    pub(super) fn max_tokens(&self) -> usize {
        self.max_tokens.unwrap_or(ValidateOptions::MAX_TOKENS)
    }

    pub(super) fn device(&self) -> Result<DeviceRequest> {
        device(&self.device, &self.adapter)
    }
}

/// Options of a plan.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PlanRequest {
    pub(super) memory: Option<u64>,
    pub(super) context: Option<u64>,
}
