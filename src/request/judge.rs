//! What measures and judges: perplexity, comparison, validation, and the search for a good enough result.

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

/// What a text is called that has no name.
const UNNAMED: &str = "text";

options! {
    /// The text that a model predicts.
    pub struct PerplexityRequest {
        /// The text to predict
        #[form(By("text"))]
        pub texts: Texts = Texts::default(), required = true;
        /// What results call the text [default: text]
        #[form(By("text"))]
        pub name: Option<String> = None;
        /// How it is cut.
        #[form(Group)]
        pub windows: WindowRequest = WindowRequest::default();
    }
}

impl PerplexityRequest {
    /// How well this text is predicted.
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
    /// What two models continue.
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
    /// What to measure beside perplexity, and by what to judge it.
    pub struct MeasureOptions {
        /// Prompts that both models continue [default: passages of the text]
        #[form(By("prompts"))]
        pub prompts: Vec<String> = Vec::new();
        /// New tokens for each prompt
        pub max_tokens: usize = ValidateOptions::MAX_TOKENS, within Bounds::from(1.0);
        /// Multiple-choice questions as JSON lines
        #[form(By("benchmark"))]
        pub benchmark: Option<String> = None;
        /// Rounds of the speed measurement; 0 leaves it out
        pub speed_rounds: usize = ValidateOptions::SPEED_ROUNDS;
        /// By what the measurements are judged
        pub limits: Limits = Limits::default();
        /// Precision of the quantized model's activations [default: what the checkpoint says, mostly f32]
        pub activations: Option<Activations> = None;
    }
}

options! {
    /// How much of two models is in memory at once.
    pub struct ResidencyOptions {
        /// Memory that may be used, in bytes; two models that take more run layer by layer [default: what is free, where that is
        /// known]
        pub memory: Option<Bytes> = None;
        /// Hold one block at a time instead of two models, however much memory there is
        pub layer_streamed: bool = false;
        /// Hold both models, however little memory there is
        pub side_by_side: bool = false;
    }
}

impl ResidencyOptions {
    /// How much of two models is in memory; `free` is what the machine has left, where that is known.
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
                "expected a limit of memory, layer by layer or side by side, and not several of them",
            )),
        }
    }
}

impl MeasureOptions {
    /// What is measured of models with this text. `machine` is what is known of it.
    ///
    /// # Errors
    /// `invalid_argument` for limits that nothing can reach, prompts or questions that cannot be read.
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

/// What an edge knows of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine {
    /// Bytes that may still be taken.
    pub free_bytes: Option<u64>,
    /// Bytes of the processor's largest cache.
    pub last_level_cache_bytes: Option<u64>,
}

options! {
    /// What a validation measures, and by what it judges.
    pub struct ValidateRequest {
        /// The text that the models have not seen.
        #[form(Group)]
        pub text: PerplexityRequest = PerplexityRequest::default();
        /// What is measured beside perplexity.
        #[form(Group)]
        pub measure: MeasureOptions = MeasureOptions::default();
        /// How much of the models is in memory.
        #[form(Group)]
        pub residency: ResidencyOptions = ResidencyOptions::default();
        /// Where the models run.
        #[form(Group)]
        pub device: DeviceRequest = DeviceRequest::default();
    }
}

impl ValidateRequest {
    /// A validation with a text that the models have not seen.
    pub fn of(text: impl Into<String>) -> Self {
        Self { text: PerplexityRequest::of(text), ..Self::default() }
    }

    /// What is measured of a model with this text.
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
    /// The methods that learn from texts.
    #[derive(Default)]
    pub enum LearningMethod {
        /// Which way to round, column by column
        #[default]
        Gptq = "gptq",
        /// Which columns to round more finely
        Awq = "awq",
    }
}

options! {
    /// What a search for a good enough result tries, and by what it judges.
    pub struct AutoRequest {
        /// The text that the models have not seen.
        #[form(Group)]
        pub text: PerplexityRequest = PerplexityRequest::default();
        /// What is learned from
        #[form(By("calibration"))]
        pub calibration: TextsOptions = TextsOptions::default();
        /// Numbers of calibration samples to try, growing
        pub samples: Vec<usize> = SAMPLES.to_vec();
        /// How codes are found
        pub method: LearningMethod = LearningMethod::Gptq;
        /// Where to begin, 4 or 8 bits [default: what a plan recommends for the size]
        pub bits: Option<Bits> = None;
        /// The most bits a weight that may be used, with scales, in place of bits to begin with: each layer gets what fits best
        pub target_bpw: Option<f64> = None, within Bounds::above(0.0);
        /// What is measured beside perplexity
        pub validate: MeasureOptions = MeasureOptions::default();
        /// How much of the models is in memory.
        #[form(Group)]
        pub residency: ResidencyOptions = ResidencyOptions::default();
        /// Where the models run that learn and are judged.
        #[form(Group)]
        pub device: DeviceRequest = DeviceRequest::default();
    }
}

impl AutoRequest {
    /// How an attempt is judged with this text.
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

    /// What it means to the search.
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
