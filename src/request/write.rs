//! What writes weights without looking for codes: from one layout to another, and back to floating point.

use super::WindowRequest;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::gguf::TensorType;
use crate::layout::{GptqZeros, TargetLayout};
use crate::options::{Bounds, Texts, named, options};
use crate::pipeline::convert::ConvertOptions;

named! {
    /// How weights are spelled: as the tools of these names do.
    pub enum Format {
        /// compressed-tensors, which vLLM and transformers read
        CompressedTensors = "compressed-tensors",
        /// GPTQ as version 1, which every tool reads
        Gptq = "gptq",
        /// GPTQ with zero points as they are
        GptqV2 = "gptq-v2",
        /// AWQ's gemm
        Awq = "awq",
        /// BitNet's ternary weights, as transformers has them
        Bitnet = "bitnet",
        /// One file for llama.cpp
        Gguf = "gguf",
    }
}

impl Format {
    /// The layout of that name.
    pub(crate) fn layout(self) -> TargetLayout {
        match self {
            Self::CompressedTensors => TargetLayout::CompressedTensors,
            Self::Gptq => TargetLayout::Gptq(GptqZeros::V1),
            Self::GptqV2 => TargetLayout::Gptq(GptqZeros::V2),
            Self::Awq => TargetLayout::Awq,
            Self::Bitnet => TargetLayout::BitNet,
            Self::Gguf => TargetLayout::Gguf,
        }
    }
}

named! {
    /// What floating-point matrices become in a GGUF file, by the names of the format.
    #[allow(non_camel_case_types, reason = "the names of the format")]
    pub enum GgufType {
        /// Single precision
        F32 = "f32",
        /// Half precision
        F16 = "f16",
        /// bfloat16
        BF16 = "bf16",
        /// 8 bits
        Q8_0 = "q8_0",
        /// 4 bits
        Q4_0 = "q4_0",
        /// 4 bits and a minimum
        Q4_1 = "q4_1",
        /// 4 bits in blocks of 256 columns
        Q4_K = "q4_k",
        /// Ternary; rows of 256 columns
        TQ2_0 = "tq2_0",
    }
}

impl GgufType {
    /// The type of that name.
    pub(crate) fn tensor_type(self) -> TensorType {
        match self {
            Self::F32 => TensorType::F32,
            Self::F16 => TensorType::F16,
            Self::BF16 => TensorType::BF16,
            Self::Q8_0 => TensorType::Q8_0,
            Self::Q4_0 => TensorType::Q4_0,
            Self::Q4_1 => TensorType::Q4_1,
            Self::Q4_K => TensorType::Q4_K,
            Self::TQ2_0 => TensorType::TQ2_0,
        }
    }
}

options! {
    /// What a conversion makes.
    pub struct ConvertRequest {
        /// The layout to write
        pub format: Option<Format> = None, required = true;
        /// Fail where anything would be lost
        pub strict: bool = false;
        /// For gguf: what floating-point matrices of the blocks become [default: f16]
        pub gguf_type: Option<GgufType> = None;
        /// For gguf: the name of the file [default: model.gguf]
        #[form(By("output"))]
        pub file: Option<String> = None;
    }
}

impl ConvertRequest {
    /// What it means to the job.
    ///
    /// # Errors
    /// `invalid_argument` without a format; as [`ConvertOptions::check`].
    pub(crate) fn options(&self) -> Result<ConvertOptions> {
        let format = self.format.ok_or_else(|| Error::invalid_argument("expected a format to write"))?;
        let mut options = ConvertOptions::new(format.layout());
        options.strict = self.strict;
        options.gguf_type = self.gguf_type.map(GgufType::tensor_type);
        options.file = self.file.clone();
        options.check()?;
        Ok(options)
    }
}

named! {
    /// A type of weights in floating point.
    pub enum FloatType {
        /// Half precision
        F16 = "f16",
        /// Single precision
        F32 = "f32",
    }
}

impl FloatType {
    /// The type of that name.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
        }
    }
}

/// The share of the original's predictions that is usually to be kept, and below which training begins with the original instead.
const MIN_RETENTION: f64 = 0.995;
const MIN_RETENTION_FOR_TRAINING: f64 = 0.99;

/// What a dequantized model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be run as it is.
    Use,
    /// For training to go on from.
    Training,
}

impl DequantizeRequest {
    /// The limit that was asked for, or the usual one.
    pub(crate) fn retention_limit(&self, purpose: Purpose) -> f64 {
        self.min_retention.unwrap_or(match purpose {
            Purpose::Use => MIN_RETENTION,
            Purpose::Training => MIN_RETENTION_FOR_TRAINING,
        })
    }

    /// Refuses what only a comparison of predictions is for, where there is no text to compare them on.
    ///
    /// # Errors
    /// `invalid_argument`.
    pub(crate) fn check_comparison<T, O>(&self, text: Option<T>, original: Option<O>) -> Result<()> {
        let usual = Self::default();
        let asks =
            original.is_some() || self.windows != usual.windows || self.min_retention != usual.min_retention;
        if asks && text.is_none() {
            return Err(Error::invalid_argument(
                "an original, a context, a stride and a retention belong to a text on which predictions are compared",
            ));
        }
        Ok(())
    }
}

options! {
    /// What dequantizing makes, and on what its predictions are compared.
    pub struct DequantizeRequest {
        /// Type of the weights [default: f16; f32 where the quantized model rounds activations so that f16 would change its
        /// predictions]
        pub dtype: Option<FloatType> = None;
        /// Compare predictions on this text
        #[form(By("text"))]
        pub texts: Texts = Texts::default();
        /// How the text is cut.
        #[form(Group)]
        pub windows: WindowRequest = WindowRequest::default();
        /// The share of predictions that the dequantized model shall keep of the original's [default: 0.995; 0.99 for training]
        pub min_retention: Option<f64> = None, within Bounds::from(0.0).up_to(1.0);
    }
}
