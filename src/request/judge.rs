//! Requests of `perplexity`, `compare`, `validate` and `auto`.

use super::quantize::TextsOptions;
use super::{LoadRequest, WindowRequest};
use crate::backend::choice::DeviceRequest;
use crate::error::{Context, Error, Result};
use crate::model::ModelConfig;
use crate::options::{Bounds, Bytes, Options, Texts, named, options};
use crate::pipeline::auto::{AutoOptions, SAMPLES};
use crate::quant::{Activations, Bits, Method};
use crate::tokenizer::TextCodec;
use crate::validate::benchmark::parse_jsonl;
use crate::validate::continuations;
use crate::validate::residency::Residency;
use crate::validate::run::ValidateOptions;
use crate::validate::verdict::Limits;
use crate::validate::windows::Dataset;

/// The default name of a text.
const UNNAMED: &str = "text";

options! {
    /// The text for perplexity.
    pub struct PerplexityRequest {
        /// The text to predict
        #[form(By("text"))]
        pub texts: Texts = Texts::default(), required = true;
        /// Name of the text in results [default: text]
        #[form(By("text"))]
        pub name: Option<String> = None;
        /// Its windows.
        #[form(Group)]
        pub windows: WindowRequest = WindowRequest::default();
    }
}

impl PerplexityRequest {
    /// Perplexity of this text.
    pub fn of(text: impl Into<String>) -> Self {
        Self { texts: Texts(text.into()), ..Self::default() }
    }

    /// The text in tokens.
    ///
    /// # Errors
    /// As [`Dataset::new`].
    pub(crate) fn dataset(&self, codec: &dyn TextCodec) -> Result<Dataset> {
        Dataset::new(self.name.as_deref().unwrap_or(UNNAMED), &self.texts.0, codec)
    }
}

options! {
    /// Prompts for two models.
    pub struct CompareRequest {
        /// Texts to continue
        #[form(As("prompt"))]
        pub prompts: Vec<String> = Vec::new(), required = true;
        /// At most this many new tokens
        pub max_tokens: usize = ValidateOptions::MAX_TOKENS, within Bounds::from(1.0);
        /// How the models are loaded.
        #[form(Group)]
        pub load: LoadRequest = LoadRequest::default();
    }
}

options! {
    /// Measurements besides perplexity, and their limits.
    pub struct MeasureOptions {
        /// Prompts that both models continue [default: passages of the text]
        #[form(By("prompts"))]
        pub prompts: Vec<String> = Vec::new();
        /// New tokens for each prompt
        pub max_tokens: usize = ValidateOptions::MAX_TOKENS, within Bounds::from(1.0);
        /// Multiple-choice questions as JSON lines
        #[form(By("benchmark"))]
        pub benchmark: Option<String> = None;
        /// Rounds of the speed measurement; 0 turns it off
        pub speed_rounds: usize = ValidateOptions::SPEED_ROUNDS;
        /// Limits of the verdict
        pub limits: Limits = Limits::default();
        /// Precision of the quantized model's activations [default: the checkpoint's, usually f32]
        pub activations: Option<Activations> = None;
    }
}

options! {
    /// How much of two models is in memory.
    pub struct ResidencyOptions {
        /// Available memory in bytes; two models that need more run layer by layer [default: free memory, if known]
        pub memory: Option<Bytes> = None;
        /// Always hold one block at a time instead of two models
        pub layer_streamed: bool = false;
        /// Always hold both models
        pub side_by_side: bool = false;
    }
}

impl ResidencyOptions {
    /// The residency. `free` is the machine's free memory, if known.
    ///
    /// # Errors
    /// `invalid_argument` for more than one of the three options.
    pub(crate) fn residency(&self, free: Option<u64>) -> Result<Residency> {
        match (self.memory, self.layer_streamed, self.side_by_side) {
            (Some(Bytes(memory)), false, false) => Ok(Residency::Within(memory)),
            (None, true, false) => Ok(Residency::LayerStreamed),
            (None, false, true) => Ok(Residency::SideBySide),
            (None, false, false) => Ok(free.map_or(Residency::SideBySide, Residency::Within)),
            _ => Err(Error::invalid_argument(
                "expected at most one of a memory limit, layer-streamed execution and side-by-side execution",
            )),
        }
    }
}

impl MeasureOptions {
    /// The validation's options for models with this text.
    ///
    /// # Errors
    /// `invalid_argument` for impossible limits and unreadable prompts or questions.
    pub(crate) fn options(
        &self,
        windows: &WindowRequest,
        residency: &ResidencyOptions,
        data: &Dataset,
        config: &ModelConfig,
        codec: &dyn TextCodec,
        machine: Machine,
    ) -> Result<ValidateOptions> {
        self.check()?;
        let prompts = if self.prompts.is_empty() {
            continuations::from_dataset(
                data,
                ValidateOptions::PROMPTS,
                ValidateOptions::PROMPT_TOKENS,
                codec,
            )?
        } else {
            continuations::from_texts(self.prompts.iter().map(String::as_str), codec)?
        };
        let benchmark = self.benchmark.as_ref().map(|lines| parse_jsonl(lines.as_bytes()));
        Ok(ValidateOptions {
            method: "unknown".to_owned(),
            windows: windows.windows(config),
            prompts,
            max_tokens: self.max_tokens,
            benchmark: benchmark.transpose().context_with(|| "benchmark")?.unwrap_or_default(),
            speed_rounds: self.speed_rounds,
            last_level_cache_bytes: machine.last_level_cache_bytes,
            activations: self.activations,
            limits: self.limits.clone(),
            residency: residency.residency(machine.free_bytes)?,
        })
    }
}

/// Properties of the machine, if the edge knows them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine {
    /// Free memory in bytes.
    pub free_bytes: Option<u64>,
    /// Size of the last-level cache in bytes.
    pub last_level_cache_bytes: Option<u64>,
}

options! {
    /// Measurements and limits of a validation.
    pub struct ValidateRequest {
        /// Held-out text.
        #[form(Group)]
        pub text: PerplexityRequest = PerplexityRequest::default();
        /// Measurements besides perplexity.
        #[form(Group)]
        pub measure: MeasureOptions = MeasureOptions::default();
        /// How much of the models is in memory.
        #[form(Group)]
        pub residency: ResidencyOptions = ResidencyOptions::default();
        /// The device.
        #[form(Group)]
        pub device: DeviceRequest = DeviceRequest::default();
    }
}

impl ValidateRequest {
    /// A validation on a held-out text.
    pub fn of(text: impl Into<String>) -> Self {
        Self { text: PerplexityRequest::of(text), ..Self::default() }
    }

    /// The validation's options for a model with this text.
    ///
    /// # Errors
    /// As [`MeasureOptions::options`].
    pub(crate) fn options(
        &self,
        data: &Dataset,
        config: &ModelConfig,
        codec: &dyn TextCodec,
        machine: Machine,
    ) -> Result<ValidateOptions> {
        self.measure.options(&self.text.windows, &self.residency, data, config, codec, machine)
    }
}

named! {
    /// The calibrated methods.
    #[derive(Default)]
    pub enum LearningMethod {
        /// Rounds column by column and compensates errors
        #[default]
        Gptq = "gptq",
        /// Scales columns with large inputs
        Awq = "awq",
    }
}

options! {
    /// Attempts and limits of a search.
    pub struct AutoRequest {
        /// Held-out text.
        #[form(Group)]
        pub text: PerplexityRequest = PerplexityRequest::default();
        /// Calibration texts
        #[form(By("calibration"))]
        pub calibration: TextsOptions = TextsOptions::default();
        /// Numbers of calibration samples to try, ascending
        pub samples: Vec<usize> = SAMPLES.to_vec();
        /// Quantization method
        pub method: LearningMethod = LearningMethod::Gptq;
        /// Initial precision, 4 or 8 bits [default: recommended for the model's size]
        pub bits: Option<Bits> = None;
        /// Limit of mean bits per weight, including scales, instead of an initial precision; bits are chosen for each
        /// layer
        pub target_bpw: Option<f64> = None, within Bounds::above(0.0);
        /// Measurements besides perplexity
        pub validate: MeasureOptions = MeasureOptions::default();
        /// How much of the models is in memory.
        #[form(Group)]
        pub residency: ResidencyOptions = ResidencyOptions::default();
        /// The device for calibration and validation.
        #[form(Group)]
        pub device: DeviceRequest = DeviceRequest::default();
    }
}

impl AutoRequest {
    /// The validation's options for attempts with this text.
    ///
    /// # Errors
    /// As [`MeasureOptions::options`].
    pub(crate) fn validate_options(
        &self,
        data: &Dataset,
        config: &ModelConfig,
        codec: &dyn TextCodec,
        machine: Machine,
    ) -> Result<ValidateOptions> {
        self.validate.options(&self.text.windows, &self.residency, data, config, codec, machine)
    }

    /// The search's options.
    pub(crate) fn options(&self) -> AutoOptions {
        AutoOptions {
            method: match self.method {
                LearningMethod::Gptq => Method::Gptq,
                LearningMethod::Awq => Method::Awq,
            },
            bits: self.bits,
            target_bpw: self.target_bpw,
            memory: self.residency.memory.map(|bytes| bytes.0),
            samples: self.samples.clone(),
        }
    }
}
