//! The request of `quantize`, and calibration texts.

use super::LONGEST;
use super::write::Format;
use crate::backend::choice::DeviceRequest;
use crate::calibrate::{SampleOptions, Samples};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::options::{Bounds, Bytes, Kind, LocationGiven, OptionValue, Options, named, options};
use crate::pipeline::QuantizeOptions;
use crate::pipeline::budget::Budget;
use crate::quant::{Activations, Bits, GptqOptions, Granularity, Method, Scheme};
use crate::recipe::Recipe;
use crate::tokenizer::{TextCodec, unify_line_ends};
use serde_json::Value;

named! {
    /// Granularities of ternary scales.
    #[derive(Default)]
    pub enum TernaryScale {
        /// One scale per matrix
        #[default]
        Tensor = "tensor",
        /// One scale per row
        Channel = "channel",
    }
}

options! {
    /// Options of quantizing.
    pub struct QuantizeRequest {
        /// Quantization method; gptq and awq need calibration texts
        pub method: Method = Method::Rtn;
        /// Bits per weight [default: 4]
        pub bits: Option<Bits> = None;
        /// Weights per scale; -1: a whole row [default: 128, and -1 for 8 bits]
        pub group_size: Option<Granularity> = None;
        /// Symmetric codes, without zero points [default: true]
        #[form(Not("asym", "Give each group a zero point of its own"))]
        pub symmetric: Option<bool> = None;
        /// Rules that change bits, group size or method of some modules, or keep them in floating point
        #[form(By("recipe"))]
        pub recipe: Option<Recipe> = None;
        /// Limit of all output tensors in bytes; bits are chosen for each module by its sensitivity on the calibration
        /// texts
        pub target_bytes: Option<Bytes> = None, within Bounds::from(1.0);
        /// Limit of the quantized modules' mean bits per weight, including scales and zero points; bits are chosen for
        /// each module by its sensitivity on the calibration texts
        pub target_bpw: Option<f64> = None, within Bounds::above(0.0);
        /// Quantize the head too
        pub quantize_head: bool = false;
        /// Quantize the embedding too, to this many bits
        pub quantize_embedding: Option<Bits> = None;
        /// Weights per ternary scale [default: tensor]
        pub ternary_scale: Option<TernaryScale> = None;
        /// Ternary threshold: weights below this share of the scale become 0 [default: 0.5, rounding to nearest]
        pub sparsity_threshold: Option<f32> = None, within Bounds::above(0.0);
        /// Precision of activations declared in the output [default: int8 for ternary weights, f32 for others]
        pub activations: Option<Activations> = None;
        /// The layout to write [default: compressed-tensors; bitnet for ternary weights with one scale per tensor]
        pub format: Option<Format> = None;
        /// Name of a GGUF file [default: model.gguf]
        #[form(By("output"))]
        pub file: Option<String> = None;
        /// Fail if the layout cannot hold a module's scheme, instead of using the nearest one
        pub strict: bool = false;
        /// Round a dequantized checkpoint to its former grid; unchanged weights get their former codes
        pub from_metadata: bool = false;
        /// Options of gptq
        pub gptq: GptqOptions = GptqOptions::default();
        /// Calibration texts of gptq and awq, preferably similar to the model's later input
        #[form(By("calibration"))]
        pub calibration: Option<CalibrationRequest> = None;
        /// Calibrated methods: memory limit in bytes; a larger run is refused; calibrates on the CPU unless a device is
        /// given
        pub memory: Option<Bytes> = None;
        /// Calibrated methods: save finished blocks here, to continue after an interruption; emptied at the end
        #[form(By("resume"))]
        pub resume: LocationGiven = LocationGiven::default();
        /// The device for calibration.
        #[form(Group)]
        pub device: DeviceRequest = DeviceRequest::default();
    }
}

options! {
    /// Calibration texts and their samples.
    pub struct TextsOptions {
        /// Calibration texts
        #[form(By("calibration"))]
        pub texts: Vec<String> = Vec::new();
        /// Token ids, appended to those of the texts
        #[form(By("calibration"))]
        pub tokens: Vec<u32> = Vec::new();
        /// Tokens in a sample, including the BOS token [default: the model's context, at most 2048]
        pub sequence_length: Option<usize> = None, within Bounds::from(2.0);
        /// Seed to draw samples from the whole texts instead of their start
        pub seed: Option<u64> = None;
    }
}

options! {
    /// Calibration data.
    pub struct CalibrationRequest {
        /// Texts or token ids.
        #[form(Group)]
        pub texts: TextsOptions = TextsOptions::default();
        /// Calibration samples
        pub samples: usize = 128, within Bounds::from(1.0);
    }
}

impl OptionValue for Bits {
    fn kind() -> Kind {
        Kind::Numbers(&[2, 3, 4, 8])
    }

    fn read(value: &Value) -> Result<Self, String> {
        Self::try_from(u32::read(value)?).map_err(|error| error.message().to_owned())
    }

    fn show(&self) -> Option<Value> {
        Some(Value::from(self.get()))
    }
}

impl OptionValue for Granularity {
    fn kind() -> Kind {
        Kind::GroupSize
    }

    fn read(value: &Value) -> Result<Self, String> {
        let size = value
            .as_i64()
            .or_else(|| f64::read(value).ok().filter(|size| size.fract() == 0.0).map(|s| s as i64));
        let size = size.ok_or_else(|| format!("expected a positive group size or -1 but found {value}"))?;
        Self::from_group_size(size).map_err(|error| error.message().to_owned())
    }

    fn show(&self) -> Option<Value> {
        match self {
            Self::Group(size) => Some(Value::from(*size)),
            Self::Channel | Self::Tensor => Some(Value::from(-1)),
        }
    }
}

impl OptionValue for Recipe {
    fn kind() -> Kind {
        Kind::Recipe
    }

    fn read(value: &Value) -> Result<Self, String> {
        Self::from_value(value).map_err(|error| error.to_string())
    }

    fn show(&self) -> Option<Value> {
        None
    }
}

impl QuantizeRequest {
    /// The job's options.
    ///
    /// # Errors
    /// `invalid_argument` for options that contradict each other.
    pub(crate) fn options(&self) -> Result<QuantizeOptions> {
        self.check()?;
        let refuse = |reason: &str| Err(Error::invalid_argument(reason));
        if self.from_metadata && *self != (Self { from_metadata: true, ..Self::default() }) {
            return refuse("restoring from metadata takes all settings from there; expected no other option");
        }
        let mut options = if self.method == Method::Ternary {
            if self.bits.is_some() || self.group_size.is_some() || self.symmetric.is_some() {
                return refuse(
                    "ternary weights have no bits, group size or zero points; only their ternary scale can be chosen",
                );
            }
            QuantizeOptions::ternary(match self.ternary_scale.unwrap_or_default() {
                TernaryScale::Tensor => Granularity::Tensor,
                TernaryScale::Channel => Granularity::Channel,
            })
        } else {
            if self.ternary_scale.is_some() {
                return refuse("a ternary scale requires the method ternary");
            }
            let bits = self.bits.unwrap_or(Bits::Four);
            let usual = match self.format {
                // GGUF's blocks have a scale for every 32 columns, even if scales repeat.
                Some(Format::Gguf) => Granularity::Group(32),
                _ => bits.usual_granularity(),
            };
            let (granularity, symmetric) = (self.group_size.unwrap_or(usual), self.symmetric.unwrap_or(true));
            let scheme = Scheme::symmetric(bits, granularity).with_symmetry(symmetric);
            QuantizeOptions::new(self.method, scheme)
        };
        options.recipe = self.recipe.clone();
        options.gptq = self.gptq;
        options.quantize_head = self.quantize_head;
        options.quantize_embedding = self.quantize_embedding;
        options.layout = self.format.map(Format::layout);
        options.file = self.file.clone();
        options.strict = self.strict;
        options.sparsity_threshold = self.sparsity_threshold;
        options.activations = self.activations.unwrap_or(options.activations);
        options.resume = self.resume.0;
        options.memory = self.memory.map(|bytes| bytes.0);
        options.target = self.target()?;
        options.check()?;
        if self.gptq != GptqOptions::default() && !options.asks_for(Method::Gptq) {
            return Err(Error::invalid_argument(format!(
                "options of gptq require the method gptq, but the method is {} and no recipe rule uses gptq",
                options.method
            )));
        }
        self.check_calibration(&options)?;
        Ok(options)
    }

    /// The budget of the output.
    fn target(&self) -> Result<Option<Budget>> {
        match (self.target_bytes, self.target_bpw) {
            (Some(_), Some(_)) => {
                Err(Error::invalid_argument("expected a target in bytes or in bits per weight, not both"))
            }
            (Some(bytes), None) => Ok(Some(Budget::Bytes(bytes.0))),
            (None, Some(bits)) => Ok(Some(Budget::BitsPerWeight(bits))),
            (None, None) => Ok(None),
        }
    }

    /// Refuses unused texts, calibrated methods without texts, and options that need calibration without it.
    fn check_calibration(&self, options: &QuantizeOptions) -> Result<()> {
        let given = self.calibration.is_some();
        if options.target.is_some() && !given {
            return Err(Error::invalid_argument(
                "a target needs calibration texts to measure each module's sensitivity, and the method gptq or awq",
            ));
        }
        let method = options.calibrated_method();
        if given != method.is_some() {
            let (method, what) = match method {
                Some(method) => (method, "needs"),
                None => (options.method, "takes no"),
            };
            return Err(Error::invalid_argument(format!("method {method} {what} calibration texts")));
        }
        let idle = [
            ("a memory limit", self.memory.is_some()),
            ("a place to resume from", self.resume.0),
            ("a device", self.device.is_given()),
        ];
        match idle.iter().find(|(_, given)| *given) {
            Some((what, _)) if method.is_none() => Err(Error::invalid_argument(format!(
                "method {} does not calibrate; {what} requires a method that does",
                options.method
            ))),
            _ => Ok(()),
        }
    }

    /// The device for calibration.
    pub(crate) fn calibration_device(&self) -> DeviceRequest {
        // The memory plan is for the CPU backend. A GPU's driver alone takes tens of megabytes.
        if self.memory.is_some() && !self.device.is_given() {
            DeviceRequest::cpu()
        } else {
            self.device.clone()
        }
    }
}

impl TextsOptions {
    /// Whether a tokenizer is needed.
    pub(crate) fn needs_codec(&self) -> bool {
        !self.texts.is_empty()
    }

    /// The concatenated tokens of all texts, and the BOS token of each sample.
    ///
    /// # Errors
    /// `invalid_argument` for texts without a tokenizer; errors of the tokenizer.
    pub(crate) fn encode(
        &self,
        config: &ModelConfig,
        codec: Option<&dyn TextCodec>,
    ) -> Result<(Vec<u32>, Option<u32>)> {
        let mut tokens = Vec::new();
        let mut bos = config.bos_token_id;
        if self.needs_codec() {
            let codec = codec.ok_or_else(|| {
                Error::invalid_argument("calibration texts need a tokenizer; give token ids instead")
            })?;
            bos = codec.bos_token_id();
            for text in &self.texts {
                tokens.extend(codec.encode(&unify_line_ends(text))?);
            }
        }
        tokens.extend(&self.tokens);
        Ok((tokens, bos))
    }

    /// The options for cutting so many samples.
    pub(crate) fn cut(&self, config: &ModelConfig, samples: usize) -> SampleOptions {
        SampleOptions {
            samples,
            sequence_length: self.sequence_length.unwrap_or(LONGEST.min(config.max_position_embeddings)),
            shuffle: self.seed,
        }
    }
}

impl CalibrationRequest {
    /// Calibration data of one text.
    pub fn of(text: impl Into<String>) -> Self {
        let texts = TextsOptions { texts: vec![text.into()], ..TextsOptions::default() };
        Self { texts, ..Self::default() }
    }

    /// The samples.
    ///
    /// # Errors
    /// As [`TextsOptions::encode`] and [`Samples::new`].
    pub(crate) fn draw(&self, config: &ModelConfig, codec: Option<&dyn TextCodec>) -> Result<Samples> {
        let (tokens, bos) = self.texts.encode(config, codec)?;
        self.samples_of(&tokens, bos, config)
    }

    /// Samples of given tokens.
    ///
    /// # Errors
    /// As [`Samples::new`].
    pub(crate) fn samples_of(
        &self,
        tokens: &[u32],
        bos: Option<u32>,
        config: &ModelConfig,
    ) -> Result<Samples> {
        let samples = Samples::new(tokens, bos, &self.texts.cut(config, self.samples))?;
        samples.check_vocabulary(config.vocab_size)?;
        Ok(samples)
    }
}
