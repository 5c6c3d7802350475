//! The request of `convert`, and what else a written checkpoint is made of.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::gguf::TensorType;
use crate::layout::{GptqZeros, TargetLayout};
use crate::options::{named, options};
use crate::pipeline::convert::ConvertOptions;

named! {
    /// Layouts of the output.
    pub enum Format {
        /// compressed-tensors, for vLLM and transformers
        CompressedTensors = "compressed-tensors",
        /// GPTQ version 1, read by every tool
        Gptq = "gptq",
        /// GPTQ version 2, with exact zero points
        GptqV2 = "gptq-v2",
        /// AWQ gemm
        Awq = "awq",
        /// BitNet ternary weights, as in transformers
        Bitnet = "bitnet",
        /// One file for llama.cpp
        Gguf = "gguf",
    }
}

impl Format {
    /// The layout.
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
    /// GGUF types for floating-point matrices.
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
        /// 4 bits with a minimum
        Q4_1 = "q4_1",
        /// 4 bits, blocks of 256 columns
        Q4_K = "q4_k",
        /// Ternary, blocks of 256 columns
        TQ2_0 = "tq2_0",
    }
}

impl GgufType {
    /// The type.
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
    /// The output of a conversion.
    pub struct ConvertRequest {
        /// The layout to write
        pub format: Option<Format> = None, required = true;
        /// Fail if anything would be lost
        pub strict: bool = false;
        /// For gguf: the type of the blocks' floating-point matrices [default: f16]
        pub gguf_type: Option<GgufType> = None;
        /// For gguf: the file name [default: model.gguf]
        #[form(By("output"))]
        pub file: Option<String> = None;
    }
}

impl ConvertRequest {
    /// The job's options.
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
    /// Floating-point types of weights.
    pub enum FloatType {
        /// Half precision
        F16 = "f16",
        /// Single precision
        F32 = "f32",
    }
}

impl FloatType {
    /// The type.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
        }
    }
}
