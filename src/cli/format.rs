//! `--format`: the layouts that can be written. Floor 9.

use crate::layout::{GptqZeros, TargetLayout};
use clap::ValueEnum;

/// `--format` of `convert` and `quantize`.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum OutputFormatArg {
    CompressedTensors,
    /// As version 1, which every tool reads
    Gptq,
    /// Zero points as they are
    GptqV2,
    Awq,
    Bitnet,
    /// One file for llama.cpp, of any checkpoint
    Gguf,
}

impl From<OutputFormatArg> for TargetLayout {
    fn from(arg: OutputFormatArg) -> Self {
        match arg {
            OutputFormatArg::CompressedTensors => Self::CompressedTensors,
            OutputFormatArg::Gptq => Self::Gptq(GptqZeros::V1),
            OutputFormatArg::GptqV2 => Self::Gptq(GptqZeros::V2),
            OutputFormatArg::Awq => Self::Awq,
            OutputFormatArg::Bitnet => Self::BitNet,
            OutputFormatArg::Gguf => Self::Gguf,
        }
    }
}
